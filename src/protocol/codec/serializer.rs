//! Writing values: serde's serializer of bincode, wrapped to hash types and to set descriptors and large byte
//! strings aside.
//!
//! Invariant: what is hashed is decided by the calls serde makes, and never by a value's content other than
//! which variant it is and how many elements it has.

use super::handover::{self, Slot};
use super::shape::{Kind, Shape};
use crate::descriptor::Descriptor;
use crate::protocol::frame::Outgoing;
use bytes::Bytes;
use serde::ser::{
    Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// One value being written.
pub(super) struct Encoding {
    /// How long the frame is so far.
    written: Cell<usize>,
    pieces: RefCell<Vec<(usize, Bytes)>>,
    fds: RefCell<Vec<Arc<Descriptor>>>,
    shape: Shape,
    depth: Cell<usize>,
    max_depth: usize,
    problem: RefCell<Option<String>>,
}

impl Encoding {
    pub(super) fn new(max_depth: usize) -> Encoding {
        Encoding {
            written: Cell::new(0),
            pieces: RefCell::default(),
            fds: RefCell::default(),
            shape: Shape::new(),
            depth: Cell::new(0),
            max_depth,
            problem: RefCell::new(None),
        }
    }

    pub(super) fn typed<'v, T: ?Sized>(&'v self, value: &'v T) -> Typed<'v, T> {
        Typed {
            value,
            encoding: self,
        }
    }

    /// The frame has that length now.
    pub(super) fn has_written_to(&self, len: usize) {
        self.written.set(len);
    }

    /// Puts what was set aside beside what was written, and gives the hash.
    #[inline]
    pub(super) fn finish(&mut self, frame: &mut Outgoing) -> u64 {
        // Most times there is nothing, which is better seen than copied.
        let (pieces, fds) = (self.pieces.get_mut(), self.fds.get_mut());
        if !pieces.is_empty() {
            frame.pieces = std::mem::take(pieces);
        }
        if !fds.is_empty() {
            frame.fds = std::mem::take(fds);
        }
        self.shape.hash()
    }

    /// Our own reason for a failure, if it was ours.
    pub(super) fn problem(self) -> Option<String> {
        self.problem.into_inner()
    }

    fn descend<E: serde::ser::Error>(&self) -> Result<(), E> {
        self.depth.set(self.depth.get() + 1);
        if self.depth.get() <= self.max_depth {
            return Ok(());
        }
        Err(self.too_deep())
    }

    #[cold]
    fn too_deep<E: serde::ser::Error>(&self) -> E {
        let problem = format!(
            "the value is nested deeper than max_depth, {}",
            self.max_depth
        );
        self.problem.replace(Some(problem.clone()));
        E::custom(problem)
    }

    fn ascend(&self) {
        self.depth.set(self.depth.get() - 1);
    }

    /// A value inside an option or a newtype.
    fn nested<S: Serializer, T: Serialize + ?Sized>(
        &self,
        value: &T,
        write: impl FnOnce(&Typed<'_, T>) -> Result<S::Ok, S::Error>,
    ) -> Result<S::Ok, S::Error> {
        self.descend()?;
        let result = write(&self.typed(value));
        self.ascend();
        result
    }

    fn write_fd<S: Serializer, T: Serialize + ?Sized>(
        &self,
        inner: S,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.shape.add(Kind::Fd);
        let fds = self.fds.take();
        let (result, slot) = handover::open(Slot::SendFds(fds), || value.serialize(inner));
        if let Slot::SendFds(fds) = slot {
            self.fds.replace(fds);
        }
        result
    }

    fn write_bytes<S: Serializer, T: Serialize + ?Sized>(
        &self,
        inner: S,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.shape.add(Kind::Bytes);
        let (result, slot) = handover::open(Slot::SendBytes(None), || value.serialize(inner));
        if let Slot::SendBytes(Some(bytes)) = slot {
            self.pieces.borrow_mut().push((self.written.get(), bytes));
        }
        result
    }
}

/// A value that writes itself through the wrapper.
pub(super) struct Typed<'a, T: ?Sized> {
    value: &'a T,
    encoding: &'a Encoding,
}

impl<T: Serialize + ?Sized> Serialize for Typed<'_, T> {
    fn serialize<S: Serializer>(&self, inner: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(TypedSerializer {
            inner,
            encoding: self.encoding,
        })
    }
}

/// serde's serializer `S`, with everything that passes hashed.
struct TypedSerializer<'a, S> {
    inner: S,
    encoding: &'a Encoding,
}

macro_rules! scalars {
    ($($method:ident($type:ty) = $kind:ident;)*) => {$(
        fn $method(self, value: $type) -> Result<S::Ok, S::Error> {
            self.encoding.shape.add(Kind::$kind);
            self.inner.$method(value)
        }
    )*};
}

impl<'a, S: Serializer> Serializer for TypedSerializer<'a, S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Parts<'a, S::SerializeSeq>;
    type SerializeTuple = Parts<'a, S::SerializeTuple>;
    type SerializeTupleStruct = Parts<'a, S::SerializeTupleStruct>;
    type SerializeTupleVariant = Parts<'a, S::SerializeTupleVariant>;
    type SerializeMap = Parts<'a, S::SerializeMap>;
    type SerializeStruct = Parts<'a, S::SerializeStruct>;
    type SerializeStructVariant = Parts<'a, S::SerializeStructVariant>;

    scalars! {
        serialize_bool(bool) = Bool;
        serialize_i8(i8) = I8;
        serialize_i16(i16) = I16;
        serialize_i32(i32) = I32;
        serialize_i64(i64) = I64;
        serialize_i128(i128) = I128;
        serialize_u8(u8) = U8;
        serialize_u16(u16) = U16;
        serialize_u32(u32) = U32;
        serialize_u64(u64) = U64;
        serialize_u128(u128) = U128;
        serialize_f32(f32) = F32;
        serialize_f64(f64) = F64;
        serialize_char(char) = Char;
        serialize_str(&str) = Str;
        serialize_bytes(&[u8]) = Bytes;
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        self.encoding.shape.add(Kind::None);
        self.inner.serialize_none()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.encoding.shape.add(Kind::Some);
        self.encoding
            .nested::<S, T>(value, |value| self.inner.serialize_some(value))
    }

    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        self.encoding.shape.product(0);
        self.inner.serialize_unit()
    }

    fn serialize_unit_struct(self, name: &'static str) -> Result<S::Ok, S::Error> {
        self.encoding.shape.product(0);
        self.inner.serialize_unit_struct(name)
    }

    fn serialize_unit_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<S::Ok, S::Error> {
        // For the receiver an enum has parts, whatever its variant.
        self.encoding.descend()?;
        self.encoding.ascend();
        self.encoding.shape.variant(variant);
        self.encoding.shape.product(0);
        self.inner.serialize_unit_variant(name, index, variant)
    }

    fn serialize_newtype_struct<T>(self, name: &'static str, value: &T) -> Result<S::Ok, S::Error>
    where
        T: Serialize + ?Sized,
    {
        match name {
            handover::FD => self.encoding.write_fd(self.inner, value),
            handover::BYTES => self.encoding.write_bytes(self.inner, value),
            _ => self.encoding.nested::<S, T>(value, |value| {
                self.inner.serialize_newtype_struct(name, value)
            }),
        }
    }

    fn serialize_newtype_variant<T>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error>
    where
        T: Serialize + ?Sized,
    {
        self.encoding.shape.variant(variant);
        self.encoding.nested::<S, T>(value, |value| {
            self.inner
                .serialize_newtype_variant(name, index, variant, value)
        })
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        self.encoding.shape.add(Kind::Seq);
        self.encoding.parts(self.inner.serialize_seq(len))
    }

    fn serialize_tuple(self, len: usize) -> Result<Self::SerializeTuple, S::Error> {
        self.encoding.shape.product(len);
        self.encoding.parts(self.inner.serialize_tuple(len))
    }

    fn serialize_tuple_struct(
        self,
        name: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleStruct, S::Error> {
        self.encoding.shape.product(len);
        self.encoding
            .parts(self.inner.serialize_tuple_struct(name, len))
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        self.encoding.shape.variant(variant);
        self.encoding.shape.product(len);
        self.encoding.parts(
            self.inner
                .serialize_tuple_variant(name, index, variant, len),
        )
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        self.encoding.shape.add(Kind::Map);
        self.encoding.parts(self.inner.serialize_map(len))
    }

    fn serialize_struct(
        self,
        name: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStruct, S::Error> {
        self.encoding.shape.product(len);
        self.encoding.parts(self.inner.serialize_struct(name, len))
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        self.encoding.shape.variant(variant);
        self.encoding.shape.product(len);
        self.encoding.parts(
            self.inner
                .serialize_struct_variant(name, index, variant, len),
        )
    }
}

impl Encoding {
    fn parts<'v, P, E: serde::ser::Error>(
        &'v self,
        inner: Result<P, E>,
    ) -> Result<Parts<'v, P>, E> {
        self.descend()?;
        Ok(Parts {
            inner: inner?,
            encoding: self,
        })
    }
}

/// A value of several parts, being written one part after the other.
struct Parts<'a, P> {
    inner: P,
    encoding: &'a Encoding,
}

impl<P> Parts<'_, P> {
    fn finish<R>(self, end: impl FnOnce(P) -> R) -> R {
        self.encoding.ascend();
        end(self.inner)
    }
}

impl<P: SerializeSeq> SerializeSeq for Parts<'_, P> {
    type Ok = P::Ok;
    type Error = P::Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), P::Error> {
        self.inner.serialize_element(&self.encoding.typed(value))
    }

    fn end(self) -> Result<P::Ok, P::Error> {
        self.encoding.shape.add(Kind::End);
        self.finish(P::end)
    }
}

impl<P: SerializeMap> SerializeMap for Parts<'_, P> {
    type Ok = P::Ok;
    type Error = P::Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), P::Error> {
        self.inner.serialize_key(&self.encoding.typed(key))
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), P::Error> {
        self.inner.serialize_value(&self.encoding.typed(value))
    }

    fn end(self) -> Result<P::Ok, P::Error> {
        self.encoding.shape.add(Kind::End);
        self.finish(P::end)
    }
}

impl<P: SerializeTuple> SerializeTuple for Parts<'_, P> {
    type Ok = P::Ok;
    type Error = P::Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), P::Error> {
        self.inner.serialize_element(&self.encoding.typed(value))
    }

    fn end(self) -> Result<P::Ok, P::Error> {
        self.finish(P::end)
    }
}

/// The four kinds of parts whose method is `serialize_field`, with or without a name.
macro_rules! fields {
    ($($trait:ident($($key:ident)?);)*) => {$(
        impl<P: $trait> $trait for Parts<'_, P> {
            type Ok = P::Ok;
            type Error = P::Error;

            fn serialize_field<T>(&mut self, $($key: &'static str,)? value: &T) -> Result<(), P::Error>
            where
                T: Serialize + ?Sized,
            {
                self.inner.serialize_field($($key,)? &self.encoding.typed(value))
            }

            fn end(self) -> Result<P::Ok, P::Error> {
                self.finish(P::end)
            }
        }
    )*};
}

fields! {
    SerializeTupleStruct();
    SerializeTupleVariant();
    SerializeStruct(key);
    SerializeStructVariant(key);
}
