//! The messages of those that speak Protocol Buffers, as their generators would make them of a schema: nothing but
//! derives, which spares the suite a compiler of schemas.

use bytes::Bytes;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Names {
    #[prost(string, tag = "1")]
    pub first: String,
    #[prost(string, tag = "2")]
    pub last: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Text {
    #[prost(string, tag = "1")]
    pub text: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Numbers {
    #[prost(uint32, tag = "1")]
    pub a: u32,
    #[prost(uint32, tag = "2")]
    pub b: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Sum {
    #[prost(uint32, tag = "1")]
    pub sum: u32,
}

/// With shared slices, which are copied less often than vectors.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Blob {
    #[prost(bytes = "bytes", tag = "1")]
    pub bytes: Bytes,
}

impl Names {
    pub fn joe() -> Names {
        Names {
            first: "Joe".into(),
            last: "Dalton".into(),
        }
    }

    pub fn greeting(&self) -> Text {
        Text {
            text: format!("{} {}", self.first, self.last),
        }
    }
}

impl Numbers {
    pub fn sum(&self) -> Sum {
        Sum {
            sum: self.a + self.b,
        }
    }
}
