//! Reading enums: which variant it is, by name, and then its content.
//!
//! Invariant: a variant is hashed by its name, which the reader's type tells from the index in the message.

use super::decoding::Decoding;
use super::deserializer::{Parts, TypedVisitor};
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, VariantAccess, Visitor};
use std::cell::Cell;
use std::fmt;

/// Access to an enum: first which variant, then its content.
pub(super) struct TypedEnum<'a, A> {
    pub(super) inner: A,
    pub(super) decoding: &'a Decoding<'a>,
    pub(super) variants: &'static [&'static str],
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
                counted: false,
                entries: 0,
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
        self.inner
            .tuple_variant(len, TypedVisitor::new(visitor, self.decoding))
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
        self.inner
            .struct_variant(fields, TypedVisitor::new(visitor, self.decoding))
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
