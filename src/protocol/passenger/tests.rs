use super::*;

fn array<E: AsRef<[u8]>>(elements: &[E]) -> Result<Vec<u8>, Unsendable> {
    let mut out = Vec::new();
    write_array(elements, &mut out).map(|()| out)
}

/// The original's bytes.
const GOLDEN: [(&[&str], &[u8]); 6] = [
    (&["hello", "world"], b"\x00\x0chello\x00world\x00"),
    (&[""], b"\x00\x01\x00"),
    (&["echo", "a", "", "b"], b"\x00\x0aecho\x00a\x00\x00b\x00"),
    (&["ok", "6"], b"\x00\x05ok\x006\x00"),
    (&["pass IO"], b"\x00\x08pass IO\x00"),
    (&["got IO"], b"\x00\x07got IO\x00"),
];

#[test]
fn arrays_have_the_originals_bytes() {
    for (elements, bytes) in GOLDEN {
        assert_eq!(array(elements).unwrap(), bytes);
        assert_eq!(find_array(bytes, MAX_BODY), Ok(Front::Whole(bytes.len())));
        let mut buffer = BytesMut::from(bytes);
        assert_eq!(take_array(&mut buffer, bytes.len()), elements_of(elements));
        assert!(buffer.is_empty());
    }
    assert_eq!([PASS_IO, GOT_IO], ["pass IO", "got IO"]);
}

fn elements_of(elements: &[&str]) -> Vec<Vec<u8>> {
    elements.iter().map(|element| (*element).into()).collect()
}

#[test]
fn scalars_have_the_originals_bytes() {
    let bytes = b"\x00\x00\x00\x06secret";
    assert_eq!(scalar_head(6), Ok([0, 0, 0, 6]));
    assert_eq!(find_scalar(bytes, 6), Ok(Front::Whole(10)));
    let mut buffer = BytesMut::from(&b"\x00\x00\x00\x06secretrest"[..]);
    assert_eq!(take_scalar(&mut buffer, 10), b"secret");
    assert_eq!(&buffer[..], b"rest", "only its own bytes are taken");
    assert_eq!(scalar_head(1_234_567_890), Ok([0x49, 0x96, 0x02, 0xd2]));
    // An empty one is a message like any other.
    assert_eq!(find_scalar(&[0; 4], 0), Ok(Front::Whole(4)));
    assert_eq!(take_scalar(&mut BytesMut::from(&[0; 4][..]), 4), b"");
}

#[test]
fn every_prefix_is_a_part_and_says_how_much_is_missing() {
    for (_, bytes) in GOLDEN {
        for len in 0..bytes.len() {
            let least = if len < ARRAY_HEAD {
                ARRAY_HEAD
            } else {
                bytes.len()
            };
            let front = find_array(&bytes[..len], MAX_BODY);
            assert_eq!(front, Ok(Front::Partial(least)), "{len} bytes");
        }
    }
    let bytes = b"\x00\x00\x00\x06secret";
    for len in 0..bytes.len() {
        let least = if len < SCALAR_HEAD { SCALAR_HEAD } else { 10 };
        let front = find_scalar(&bytes[..len], 100);
        assert_eq!(front, Ok(Front::Partial(least)), "{len} bytes");
    }
}

#[test]
fn what_follows_a_message_is_left() {
    let mut buffer = BytesMut::from(&b"\x00\x03a\x00b\x00\x00\x01\x00"[..]);
    assert_eq!(find_array(&buffer, MAX_BODY), Ok(Front::Whole(5)));
    // The reader drops what the last zero byte does not end.
    assert_eq!(take_array(&mut buffer, 5), [b"a"]);
    assert_eq!(&buffer[..], b"\x00\x00\x01\x00");
    assert_eq!(find_array(&buffer, MAX_BODY), Ok(Front::Whole(2)));
    assert!(take_array(&mut buffer, 2).is_empty());
    assert_eq!(&buffer[..], b"\x01\x00");
}

#[test]
fn bytes_behind_the_last_zero_are_dropped() {
    assert!(elements(b"").is_empty());
    assert!(elements(b"no zero").is_empty());
    assert_eq!(elements(b"a\0b\0rest"), [b"a", b"b"]);
    assert_eq!(elements(b"\0\0"), [b"", b""]);
    assert_eq!(elements(b"\xff\xfe\0"), [b"\xff\xfe"]);
}

#[test]
fn an_array_at_the_limit_is_written_and_one_past_it_is_not() {
    let written = array(&[vec![7; MAX_BODY - 1]]).unwrap();
    assert_eq!(written[..3], [0xff, 0xff, 7]);
    assert_eq!(written.len(), ARRAY_HEAD + MAX_BODY);
    let refused = |size| {
        Err(Unsendable::TooLarge {
            size,
            limit: MAX_BODY,
        })
    };
    assert_eq!(array(&[vec![7; MAX_BODY]]), refused(MAX_BODY + 1));
    // The original writes a header of 3 for these, and both sides lose each other.
    let halves = [vec![7; 32_768], vec![7; 32_769]];
    assert_eq!(array(&halves), refused(65_539));
    assert_eq!(array(&vec![""; MAX_BODY]).unwrap().len(), 2 + MAX_BODY);
    assert_eq!(array(&vec![""; MAX_BODY + 1]), refused(MAX_BODY + 1));
}

#[test]
fn what_the_format_cannot_say_is_refused_and_writes_nothing() {
    let mut out = b"before".to_vec();
    let none: [&str; 0] = [];
    assert_eq!(write_array(&none, &mut out), Err(Unsendable::NoElements));
    assert_eq!(
        write_array(&["a", "b\0c"], &mut out),
        Err(Unsendable::ZeroByte { index: 1 })
    );
    assert!(write_array(&[vec![7; MAX_BODY]], &mut out).is_err());
    assert_eq!(out, b"before");
    assert!(scalar_head(u32::MAX as usize).is_ok());
    let refused = Unsendable::TooLarge {
        size: 1 << 32,
        limit: u32::MAX as usize,
    };
    assert_eq!(scalar_head(1 << 32), Err(refused));
}

#[test]
fn the_header_alone_is_held_against_the_limit() {
    // Seven bytes pass a limit of 7, and not one of 6; nothing of the body is there.
    assert_eq!(find_array(b"\x00\x07", 7), Ok(Front::Partial(9)));
    let too_long = |size, limit| Err(TooLong { size, limit });
    assert_eq!(find_array(b"\x00\x07", 6), too_long(7, 6));
    assert_eq!(find_array(b"\x00", 0), Ok(Front::Partial(2)));
    assert_eq!(find_scalar(b"\x00\x00\x00\x07", 7), Ok(Front::Partial(11)));
    assert_eq!(find_scalar(b"\x00\x00\x00\x07", 6), too_long(7, 6));
    assert_eq!(find_scalar(b"\xff\xff\xff", 0), Ok(Front::Partial(4)));
    let all = u32::MAX as usize;
    assert_eq!(find_scalar(b"\xff\xff\xff\xff", 99), too_long(all, 99));
}
