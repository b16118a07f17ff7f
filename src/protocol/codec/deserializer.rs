//! Reading values: serde's deserializer of bincode, wrapped to hash types, to keep accounts of depth, elements and
//! memory, and to hand out descriptors and shared byte strings.
//!
//! Invariant: strings are always read as parts of the payload, whose length bounds them; everything else that
//! serde builds is accounted for by [`Decoding`] as it is built.

use super::decoding::Decoding;
use super::handover;
use super::shape::Kind;
use super::variants::TypedEnum;
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// serde's seed of a value or of a part of one, wrapped.
pub(super) struct Part<'a, S> {
    pub(super) seed: S,
    pub(super) decoding: &'a Decoding<'a>,
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
pub(super) struct TypedDeserializer<'a, D> {
    pub(super) inner: D,
    pub(super) decoding: &'a Decoding<'a>,
}

impl<'a, D> TypedDeserializer<'a, D> {
    fn wrap<V>(&self, visitor: V) -> TypedVisitor<'a, V> {
        TypedVisitor::new(visitor, self.decoding)
    }

    /// For a value whose number of parts is told by the message.
    fn wrap_counted<V>(&self, visitor: V) -> TypedVisitor<'a, V> {
        TypedVisitor {
            counted: true,
            ..self.wrap(visitor)
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
        self.decoding.note_byte_string();
        self.inner.deserialize_u8(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.decoding.shape.add(Kind::Bytes);
        self.decoding.note_byte_string();
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
        let (visitor, decoding) = (self.wrap_counted(visitor), self.decoding);
        let value = self.inner.deserialize_seq(visitor)?;
        decoding.shape.add(Kind::End);
        Ok(value)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.decoding.shape.add(Kind::Map);
        let (visitor, decoding) = (self.wrap_counted(visitor), self.decoding);
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
            variants,
            ..self.wrap(visitor)
        };
        self.inner.deserialize_enum(name, variants, visitor)
    }
}

/// The visitor of a value that has parts.
pub(super) struct TypedVisitor<'a, V> {
    visitor: V,
    decoding: &'a Decoding<'a>,
    /// The number of parts is the message's and not the type's.
    counted: bool,
    /// The names of the variants, for an enum.
    variants: &'static [&'static str],
}

impl<'a, V> TypedVisitor<'a, V> {
    pub(super) fn new(visitor: V, decoding: &'a Decoding<'a>) -> TypedVisitor<'a, V> {
        TypedVisitor {
            visitor,
            decoding,
            counted: false,
            variants: &[],
        }
    }

    /// Visits what lies one level deeper.
    fn nested<'de, E: Error>(
        self,
        visit: impl FnOnce(V, &'a Decoding<'a>) -> Result<V::Value, E>,
    ) -> Result<V::Value, E>
    where
        V: Visitor<'de>,
    {
        self.decoding.charge(size_of::<V::Value>())?;
        self.decoding.descend()?;
        let value = visit(self.visitor, self.decoding)?;
        self.decoding.ascend();
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
        self.decoding.charge(size_of::<V::Value>())?;
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
        let counted = self.counted;
        if counted {
            self.decoding.expect(inner.size_hint().unwrap_or(0))?;
        }
        self.nested(|visitor, decoding| {
            visitor.visit_seq(Parts {
                inner,
                decoding,
                counted,
                entries: 0,
            })
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.decoding.expect(inner.size_hint().unwrap_or(0))?;
        self.nested(|visitor, decoding| {
            visitor.visit_map(Parts {
                inner,
                decoding,
                counted: true,
                entries: 0,
            })
        })
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
pub(super) struct Parts<'a, A> {
    pub(super) inner: A,
    pub(super) decoding: &'a Decoding<'a>,
    /// As in [`TypedVisitor`].
    pub(super) counted: bool,
    /// Elements or entries that have been read.
    pub(super) entries: usize,
}

impl<'a, A> Parts<'a, A> {
    /// For how many entries a map sets memory aside when it gets one more: a `BTreeMap` makes nodes of eleven and
    /// keeps them half full; a `HashMap` is kinder.
    fn places_in_map(&self) -> usize {
        if self.entries == 1 { 11 } else { 2 }
    }

    /// The same for a sequence: a vector begins with four, and what it adds later is not touched before it is used.
    fn places_in_seq(&self) -> usize {
        if self.entries == 1 { 4 } else { 1 }
    }

    pub(super) fn part<S>(&self, seed: S) -> Part<'a, S> {
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
        let before = self.decoding.memory();
        let element = self.inner.next_element_seed(self.part(seed))?;
        if self.counted && element.is_some() {
            self.decoding.count_element()?;
            self.entries += 1;
            self.decoding
                .charge_rest(before, self.places_in_seq() * size_of::<S::Value>())?;
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
        let before = self.decoding.memory();
        let key = self.inner.next_key_seed(self.part(seed))?;
        if key.is_some() {
            self.decoding.count_element()?;
            self.entries += 1;
            self.decoding
                .charge_rest(before, self.places_in_map() * size_of::<S::Value>())?;
        }
        Ok(key)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let before = self.decoding.memory();
        let value = self.inner.next_value_seed(self.part(seed))?;
        self.decoding
            .charge_rest(before, self.places_in_map() * size_of::<S::Value>())?;
        Ok(value)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}
