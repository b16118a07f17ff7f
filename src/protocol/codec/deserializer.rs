//! Reading values: serde's deserializer of bincode, wrapped to hash types, to keep accounts of depth, elements and
//! memory, and to hand out descriptors and shared byte strings.
//!
//! Invariant: no input makes it allocate, recurse or loop beyond the limits. Lengths are held against the limits
//! before the first element is read; strings are always read as parts of the payload, whose length bounds them.

use super::handover::{self, Slot};
use super::shape::{Kind, Shape};
use crate::limits::Limits;
use bytes::Bytes;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;

/// One value being read.
pub(super) struct Decoding<'a> {
    payload: Bytes,
    fds: RefCell<Vec<Option<OwnedFd>>>,
    limits: &'a Limits,
    shape: Shape,
    depth: Cell<usize>,
    elements: Cell<usize>,
    memory: Cell<usize>,
    /// Byte strings or sequences of `u8` were read: the usual reason for a wrong hash.
    byte_strings: Cell<bool>,
    problem: RefCell<Option<String>>,
}

impl<'a> Decoding<'a> {
    pub(super) fn new(payload: Bytes, fds: Vec<OwnedFd>, limits: &'a Limits) -> Decoding<'a> {
        Decoding {
            payload,
            fds: RefCell::new(fds.into_iter().map(Some).collect()),
            limits,
            shape: Shape::new(),
            depth: Cell::new(0),
            elements: Cell::new(0),
            memory: Cell::new(0),
            byte_strings: Cell::new(false),
            problem: RefCell::new(None),
        }
    }

    pub(super) fn seed<T>(&self) -> Part<'_, PhantomData<T>> {
        Part {
            seed: PhantomData,
            decoding: self,
        }
    }

    /// Whether a value that could be read is also what the sender meant.
    pub(super) fn accept(&self, hash: Option<u64>, unused: usize) -> Result<(), String> {
        if hash.is_some_and(|hash| hash != self.shape.hash()) {
            let hint = match self.byte_strings.get() {
                true => {
                    "; where one side has a byte string and the other `Vec<u8>`, use `Bytes` on both sides"
                }
                false => "",
            };
            return Err(format!("the sender's types have another shape{hint}"));
        }
        if unused > 0 {
            return Err(format!("{unused} bytes are left over behind the value"));
        }
        match self.fds.borrow().iter().flatten().count() {
            0 => Ok(()),
            left => Err(format!(
                "{left} descriptors came with the value and are not part of it"
            )),
        }
    }

    /// Our own reason for a failure, or else `other`.
    pub(super) fn problem(&self, other: &str) -> String {
        self.problem.take().unwrap_or_else(|| other.to_owned())
    }

    fn refuse<E: Error>(&self, problem: String) -> E {
        let error = E::custom(&problem);
        self.problem.replace(Some(problem));
        error
    }

    fn descend<E: Error>(&self) -> Result<(), E> {
        self.depth.set(self.depth.get() + 1);
        match self.depth.get() <= self.limits.max_depth {
            true => Ok(()),
            false => Err(self.refuse(format!(
                "the value is nested deeper than max_depth, {}",
                self.limits.max_depth
            ))),
        }
    }

    /// Accounts for something that takes `size` bytes of memory.
    fn charge<E: Error>(&self, size: usize) -> Result<(), E> {
        self.memory.set(self.memory.get().saturating_add(size));
        match self.memory.get() <= self.limits.max_memory {
            true => Ok(()),
            false => Err(self.refuse(format!(
                "the value takes more than max_memory, {} bytes",
                self.limits.max_memory
            ))),
        }
    }

    fn count<E: Error>(&self, size: usize) -> Result<(), E> {
        self.elements.set(self.elements.get() + 1);
        self.expect(0)?;
        self.charge(size)
    }

    /// Refuses an announced number of elements before the first of them is read.
    fn expect<E: Error>(&self, announced: usize) -> Result<(), E> {
        match self.elements.get().saturating_add(announced) <= self.limits.max_elements {
            true => Ok(()),
            false => Err(self.refuse(format!(
                "the value has more than max_elements, {}",
                self.limits.max_elements
            ))),
        }
    }

    fn read_fd<R>(&self, read: impl FnOnce() -> R) -> R {
        self.shape.add(Kind::Fd);
        let fds = self.fds.take();
        let (result, slot) = handover::open(Slot::TakeFds(fds), read);
        if let Slot::TakeFds(fds) = slot {
            self.fds.replace(fds);
        }
        result
    }

    fn read_bytes<R>(&self, read: impl FnOnce() -> R) -> R {
        self.shape.add(Kind::Bytes);
        self.byte_strings.set(true);
        handover::open(Slot::TakeBytes(self.payload.clone()), read).0
    }
}

/// serde's seed of a value or of a part of one, wrapped.
pub(super) struct Part<'a, S> {
    seed: S,
    decoding: &'a Decoding<'a>,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Part<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.seed.deserialize(TypedDeserializer {
            inner,
            decoding: self.decoding,
        })
    }
}

/// serde's deserializer `D`, with everything that passes hashed and accounted for.
struct TypedDeserializer<'a, D> {
    inner: D,
    decoding: &'a Decoding<'a>,
}

impl<'a, D> TypedDeserializer<'a, D> {
    fn wrap<V>(&self, visitor: V) -> TypedVisitor<'a, V> {
        TypedVisitor {
            visitor,
            decoding: self.decoding,
            variants: &[],
        }
    }
}

macro_rules! scalars {
    ($($method:ident = $kind:ident => $inner:ident;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.decoding.shape.add(Kind::$kind);
            self.inner.$inner(visitor)
        }
    )*};
}

/// What a format that does not describe itself cannot do; bincode says so.
macro_rules! unknowable {
    ($($method:ident;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method(visitor)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for TypedDeserializer<'_, D> {
    type Error = D::Error;

    scalars! {
        deserialize_bool = Bool => deserialize_bool;
        deserialize_i8 = I8 => deserialize_i8;
        deserialize_i16 = I16 => deserialize_i16;
        deserialize_i32 = I32 => deserialize_i32;
        deserialize_i64 = I64 => deserialize_i64;
        deserialize_i128 = I128 => deserialize_i128;
        deserialize_u16 = U16 => deserialize_u16;
        deserialize_u32 = U32 => deserialize_u32;
        deserialize_u64 = U64 => deserialize_u64;
        deserialize_u128 = U128 => deserialize_u128;
        deserialize_f32 = F32 => deserialize_f32;
        deserialize_f64 = F64 => deserialize_f64;
        deserialize_char = Char => deserialize_char;
        deserialize_str = Str => deserialize_str;
        // Borrowed also where an owned one is wanted: bincode would set the announced length aside unseen.
        deserialize_string = Str => deserialize_str;
    }

    unknowable! {
        deserialize_any;
        deserialize_identifier;
        deserialize_ignored_any;
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.decoding.shape.add(Kind::U8);
        self.decoding.byte_strings.set(true);
        self.inner.deserialize_u8(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.decoding.shape.add(Kind::Bytes);
        self.decoding.byte_strings.set(true);
        self.inner.deserialize_bytes(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let visitor = self.wrap(visitor);
        self.inner.deserialize_option(visitor)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.decoding.shape.product(0);
        self.inner.deserialize_unit(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.decoding.shape.product(0);
        self.inner.deserialize_unit_struct(name, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        match name {
            handover::FD => self
                .decoding
                .read_fd(|| self.inner.deserialize_newtype_struct(name, visitor)),
            handover::BYTES => self
                .decoding
                .read_bytes(|| self.inner.deserialize_newtype_struct(name, visitor)),
            _ => {
                let visitor = self.wrap(visitor);
                self.inner.deserialize_newtype_struct(name, visitor)
            }
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.decoding.shape.add(Kind::Seq);
        let (visitor, decoding) = (self.wrap(visitor), self.decoding);
        let value = self.inner.deserialize_seq(visitor)?;
        decoding.shape.add(Kind::End);
        Ok(value)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.decoding.shape.add(Kind::Map);
        let (visitor, decoding) = (self.wrap(visitor), self.decoding);
        let value = self.inner.deserialize_map(visitor)?;
        decoding.shape.add(Kind::End);
        Ok(value)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.decoding.shape.product(len);
        let visitor = self.wrap(visitor);
        self.inner.deserialize_tuple(len, visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.decoding.shape.product(len);
        let visitor = self.wrap(visitor);
        self.inner.deserialize_tuple_struct(name, len, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.decoding.shape.product(fields.len());
        let visitor = self.wrap(visitor);
        self.inner.deserialize_struct(name, fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = TypedVisitor {
            visitor,
            decoding: self.decoding,
            variants,
        };
        self.inner.deserialize_enum(name, variants, visitor)
    }
}

/// The visitor of a value that has parts.
struct TypedVisitor<'a, V> {
    visitor: V,
    decoding: &'a Decoding<'a>,
    /// The names of the variants, for an enum.
    variants: &'static [&'static str],
}

impl<'a, V> TypedVisitor<'a, V> {
    /// Visits what lies one level deeper.
    fn nested<R, E: Error>(
        self,
        visit: impl FnOnce(V, &'a Decoding<'a>) -> Result<R, E>,
    ) -> Result<R, E> {
        self.decoding.descend()?;
        let value = visit(self.visitor, self.decoding)?;
        self.decoding.depth.set(self.decoding.depth.get() - 1);
        Ok(value)
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for TypedVisitor<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.decoding.shape.add(Kind::None);
        self.visitor.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.decoding.shape.add(Kind::Some);
        self.nested(|visitor, decoding| visitor.visit_some(TypedDeserializer { inner, decoding }))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.nested(|visitor, decoding| {
            visitor.visit_newtype_struct(TypedDeserializer { inner, decoding })
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.decoding.expect(inner.size_hint().unwrap_or(0))?;
        self.nested(|visitor, decoding| visitor.visit_seq(Parts { inner, decoding }))
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.decoding.expect(inner.size_hint().unwrap_or(0))?;
        self.nested(|visitor, decoding| visitor.visit_map(Parts { inner, decoding }))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let variants = self.variants;
        self.nested(|visitor, decoding| {
            visitor.visit_enum(TypedEnum {
                inner,
                decoding,
                variants,
            })
        })
    }
}

/// Access to the elements of a sequence, or to the keys and values of a map.
struct Parts<'a, A> {
    inner: A,
    decoding: &'a Decoding<'a>,
}

impl<'a, A> Parts<'a, A> {
    fn part<S>(&self, seed: S) -> Part<'a, S> {
        Part {
            seed,
            decoding: self.decoding,
        }
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Parts<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let element = self.inner.next_element_seed(self.part(seed))?;
        if element.is_some() {
            self.decoding.count(size_of::<S::Value>())?;
        }
        Ok(element)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Parts<'_, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let key = self.inner.next_key_seed(self.part(seed))?;
        if key.is_some() {
            self.decoding.count(size_of::<S::Value>())?;
        }
        Ok(key)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.decoding.charge(size_of::<S::Value>())?;
        self.inner.next_value_seed(self.part(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

/// Access to an enum: first which variant, then its content.
struct TypedEnum<'a, A> {
    inner: A,
    decoding: &'a Decoding<'a>,
    variants: &'static [&'static str],
}

impl<'a, 'de, A: EnumAccess<'de>> EnumAccess<'de> for TypedEnum<'a, A> {
    type Error = A::Error;
    type Variant = Parts<'a, A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let index = Cell::new(None);
        let (value, inner) = self.inner.variant_seed(Overhear {
            inner: seed,
            index: &index,
        })?;
        let name = index
            .get()
            .and_then(|index| self.variants.get(index as usize));
        self.decoding
            .shape
            .variant(name.copied().unwrap_or_default());
        Ok((
            value,
            Parts {
                inner,
                decoding: self.decoding,
            },
        ))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Parts<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.decoding.shape.product(0);
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        let part = self.part(seed);
        self.inner.newtype_variant_seed(part)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.decoding.shape.product(len);
        self.inner.tuple_variant(
            len,
            TypedVisitor {
                visitor,
                decoding: self.decoding,
                variants: &[],
            },
        )
    }

    fn struct_variant<V>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error>
    where
        V: Visitor<'de>,
    {
        self.decoding.shape.product(fields.len());
        self.inner.struct_variant(
            fields,
            TypedVisitor {
                visitor,
                decoding: self.decoding,
                variants: &[],
            },
        )
    }
}

/// Passes a variant's index on to the user's type, and remembers it: its name is to be hashed.
struct Overhear<'a, T> {
    inner: T,
    index: &'a Cell<Option<u32>>,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Overhear<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Overhear {
            inner: deserializer,
            index: self.index,
        })
    }
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Overhear<'_, D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_u32(Overhear {
            inner: visitor,
            index: self.index,
        })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Overhear<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_u32<E: Error>(self, index: u32) -> Result<V::Value, E> {
        self.index.set(Some(index));
        self.inner.visit_u32(index)
    }
}
