//! Golden values: what is written, and what its types hash to. PROTOCOL.md has the same table.

use super::*;
use crate::protocol::frame::{HEADER_LEN, Kind};
use bytes::Bytes as Payload;
use serde::Deserialize;

fn encoded<T: Serialize + ?Sized>(value: &T) -> (Vec<u8>, u64) {
    let mut frame = Outgoing::new(Kind::Reply, 1);
    let hash = encode(value, &mut frame, &Limits::default()).unwrap();
    let mut bytes = frame.buf.split_off(HEADER_LEN);
    for (place, piece) in frame.pieces.drain(..).rev() {
        bytes.splice(place - HEADER_LEN..place - HEADER_LEN, piece);
    }
    (bytes, hash)
}

fn received(bytes: &[u8], hash: Option<u64>) -> Value<'_> {
    Value {
        hash,
        ..Value::new(bytes)
    }
}

/// FNV-1a as the books have it, over the letters that PROTOCOL.md gives.
fn fnv(letters: &[u8]) -> u64 {
    letters.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[derive(Serialize, Deserialize)]
enum Shape {
    Point,
    Circle(f64),
    Box { width: u8, height: u8 },
}

#[test]
fn bytes_and_hashes_are_those_of_the_specification() {
    fn golden<T: Serialize + ?Sized>(value: &T, bytes: &[u8], letters: &[u8]) {
        let (written, hash) = encoded(value);
        assert_eq!(written, bytes);
        assert_eq!(hash, fnv(letters), "{:?}", String::from_utf8_lossy(letters));
    }
    golden(&(), b"", b"(\0\0");
    golden(&true, b"\x01", b"b");
    golden(&-2_i32, b"\x03", b"4");
    golden(&300_u64, b"\xfb\x2c\x01", b"H");
    golden(&300_usize, b"\xfb\x2c\x01", b"H");
    golden(&70_000_u32, b"\xfc\x70\x11\x01\0", b"D");
    golden(&200_u8, b"\xc8", b"A");
    golden(&1.0_f32, b"\0\0\x80\x3f", b"f");
    golden(&'\u{e9}', b"\xc3\xa9", b"c");
    golden("hi", b"\x02hi", b"s");
    golden(&crate::Bytes::from(b"\x01\x02"), b"\x02\x01\x02", b"y");
    golden(&vec![1_u8, 2], b"\x02\x01\x02", b"[AA]");
    golden(&[1_u8, 2], b"\x01\x02", b"(\x02\0AA");
    golden(&Some(5_u16), b"\x01\x05", b"oB");
    golden(&None::<u16>, b"\0", b"n");
    golden(&("Joe", 1_u8), b"\x03Joe\x01", b"(\x02\0sA");
    golden(
        &std::collections::BTreeMap::from([(1_u8, false)]),
        b"\x01\x01\0",
        b"{Ab]",
    );
    golden(&Shape::Point, b"\0", b"|Point\0(\0\0");
    golden(&Shape::Circle(0.0), b"\x01\0\0\0\0\0\0\0\0", b"|Circle\0F");
    golden(
        &Shape::Box {
            width: 1,
            height: 2,
        },
        b"\x02\x01\x02",
        b"|Box\0(\x02\0AA",
    );
    assert_eq!(fnv(b"(\x02\0sA"), 0x73c2_32cc_b8c7_30d1);
}

#[test]
fn a_long_byte_string_is_the_same_uncopied() {
    let content: Vec<u8> = (0..10_000).map(|i| i as u8).collect();
    let (uncopied, hash) = encoded(&(1_u8, crate::Bytes::from(content.clone()), "end"));
    let (copied, same) = encoded(&(1_u8, serde_bytes_like(&content), "end"));
    assert_eq!((uncopied.clone(), hash), (copied, same));
    let (whole, mut fds) = (Payload::from(uncopied), Vec::new());
    let value = Value {
        hash: Some(hash),
        ..Value::shared(&whole, &mut fds)
    };
    let payload = value.bytes.as_ptr_range();
    let (one, bytes, end) =
        decode::<(u8, crate::Bytes, String)>(value, &Limits::default()).unwrap();
    assert!((one, end.as_str()) == (1, "end") && bytes[..] == content[..]);
    assert!(payload.contains(&bytes.as_ptr()), "received without a copy");
}

fn serde_bytes_like(bytes: &[u8]) -> impl Serialize + '_ {
    struct Plain<'a>(&'a [u8]);
    impl Serialize for Plain<'_> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(self.0)
        }
    }
    Plain(bytes)
}

#[test]
fn everything_must_be_used_and_of_the_right_shape() {
    let limits = Limits::default();
    assert_eq!(decode::<u8>(received(b"\x05", None), &limits), Ok(5));
    assert!(
        decode::<u8>(received(b"\x05\x06", None), &limits)
            .unwrap_err()
            .contains("1 bytes are left")
    );
    assert!(decode::<u8>(received(b"", None), &limits).is_err());
    let (_, hash) = encoded(&5_u8);
    assert_eq!(decode::<u8>(received(b"\x05", Some(hash)), &limits), Ok(5));
    assert!(
        decode::<u8>(received(b"\x05", Some(hash + 1)), &limits)
            .unwrap_err()
            .contains("another shape")
    );
    assert!(decode::<i8>(received(b"\x05", Some(hash)), &limits).is_err());
}

#[test]
fn a_descriptor_can_be_taken_once_and_must_be() {
    let limits = Limits::default();
    let fd = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let decoded = |bytes: &[u8], count: usize| {
        let mut fds = (0..count).map(|_| fd().into()).collect();
        let value = Value {
            fds: Some(&mut fds),
            ..Value::new(bytes)
        };
        decode::<Vec<crate::Fd>>(value, &limits)
    };
    use std::os::fd::OwnedFd;
    assert_eq!(decoded(b"\x02\x01\x00", 2).unwrap().len(), 2);
    let refused = |bytes: &[u8], count, reason: &str| {
        let err = decoded(bytes, count).unwrap_err();
        assert!(err.contains(reason), "{err}");
    };
    refused(b"\x02\0\0", 2, "used twice");
    refused(b"\x01\x02", 2, "missing");
    refused(b"\x01\xfc\xff\xff\xff\xff", 2, "missing");
    refused(b"\x01\0", 2, "1 descriptors came");
    refused(b"\0", 2, "2 descriptors came");
}
