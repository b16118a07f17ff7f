//! Every kind of value between two processes, and every kind of disagreement.

use forkserver::{Bytes, CallError, Fd};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;

crate::tests![
    a_zoo_of_values_comes_back,
    types_of_the_same_shape_are_the_same,
    mismatched_pairs_are_refused,
    what_bincode_cannot_do_is_an_error_and_not_a_wrong_value,
    borrowed_arguments_can_be_sent,
    a_descriptor_is_never_a_number,
];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Unit;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Newtype(u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pair(i8, String);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Named {
    left: i8,
    right: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Kinds {
    Nothing,
    One(Newtype),
    Two(u8, f64),
    Fields {
        list: Vec<Kinds>,
        text: Option<String>,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct List {
    value: u64,
    next: Option<Box<List>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Zoo {
    integers: (
        i8,
        i16,
        i32,
        i64,
        i128,
        u8,
        u16,
        u32,
        u64,
        u128,
        isize,
        usize,
    ),
    floats: (f32, f64),
    flag: bool,
    letter: char,
    text: String,
    bytes: Bytes,
    buffer: serde_bytes::ByteBuf,
    nothing: (),
    unit: Unit,
    newtype: Newtype,
    pair: Pair,
    named: Named,
    some: Option<Option<u8>>,
    none: Option<String>,
    array: [u16; 3],
    list: Vec<Vec<u8>>,
    map: BTreeMap<String, HashMap<u8, char>>,
    set: HashSet<i64>,
    kinds: Vec<Kinds>,
    recursion: List,
    result: Result<u8, String>,
    duration: std::time::Duration,
    path: std::path::PathBuf,
    address: std::net::IpAddr,
}

fn zoo() -> Zoo {
    let list = (0..20).fold(
        List {
            value: 0,
            next: None,
        },
        |next, value| List {
            value,
            next: Some(Box::new(next)),
        },
    );
    Zoo {
        integers: (
            -1,
            -300,
            -70_000,
            i64::MIN,
            i128::MIN,
            255,
            65_535,
            u32::MAX,
            u64::MAX,
            u128::MAX,
            -5,
            usize::MAX,
        ),
        floats: (1.5, f64::MIN_POSITIVE),
        flag: true,
        letter: '\u{1f980}',
        text: "grüße\0".into(),
        bytes: Bytes::from(vec![9; 5000]),
        buffer: serde_bytes::ByteBuf::from(vec![1, 2, 3]),
        nothing: (),
        unit: Unit,
        newtype: Newtype(7),
        pair: Pair(-3, "pair".into()),
        named: Named {
            left: 4,
            right: String::new(),
        },
        some: Some(None),
        none: None,
        array: [1, 2, 3],
        list: vec![vec![], vec![1], vec![2, 3]],
        map: BTreeMap::from([
            ("a".into(), HashMap::from([(1, 'x')])),
            ("b".into(), HashMap::new()),
        ]),
        set: HashSet::from([1, -1]),
        kinds: vec![
            Kinds::Nothing,
            Kinds::One(Newtype(1)),
            Kinds::Two(2, -0.0),
            Kinds::Fields {
                list: vec![Kinds::Nothing],
                text: Some("t".into()),
            },
        ],
        recursion: list,
        result: Err("no".into()),
        duration: std::time::Duration::from_nanos(123_456_789_012),
        path: "/tmp/x".into(),
        address: "::1".parse().unwrap(),
    }
}

fn a_zoo_of_values_comes_back() {
    let server = crate::server()
        .handle("echo", |_, zoo: Zoo| Ok(zoo))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    for _ in 0..3 {
        assert_eq!(client.call::<_, Zoo>("echo", &zoo()).unwrap(), zoo());
    }
}

/// Asks a server that takes and returns `H` with a value of another type.
fn exchange<H, A, R>(args: &A) -> Result<R, CallError>
where
    H: Serialize + DeserializeOwned + 'static,
    A: Serialize,
    R: DeserializeOwned,
{
    let server = crate::server()
        .handle("echo", |_, value: H| Ok(value))
        .start()
        .unwrap();
    server.connect().unwrap().call("echo", args)
}

fn types_of_the_same_shape_are_the_same() {
    let named: Named = exchange::<Pair, _, _>(&(-3_i8, "x")).unwrap();
    assert_eq!(
        named,
        Named {
            left: -3,
            right: "x".into()
        }
    );
    assert_eq!(exchange::<u32, _, u32>(&Newtype(5)).unwrap(), 5);
    assert_eq!(exchange::<u64, _, usize>(&5_usize).unwrap(), 5);
    assert_eq!(
        exchange::<[u8; 2], _, (u8, u8)>(&(1_u8, 2_u8)).unwrap(),
        (1, 2)
    );
    assert_eq!(exchange::<(), _, Unit>(&Unit).unwrap(), Unit);
    let set: HashSet<u8> = exchange::<Vec<u8>, _, _>(&[3_u8, 3].as_slice()).unwrap();
    assert_eq!(set, HashSet::from([3]));
    let bytes: serde_bytes::ByteBuf =
        exchange::<Bytes, _, _>(&serde_bytes::Bytes::new(b"x")).unwrap();
    assert_eq!(bytes.as_ref(), b"x");
}

mod other {
    use serde::{Deserialize, Serialize};

    /// The same variants in another order.
    #[derive(Debug, Serialize, Deserialize)]
    pub enum Kinds {
        One(super::Newtype),
        Nothing,
    }

    #[derive(Debug, Serialize, Deserialize)]
    pub enum Renamed {
        Nought,
    }
}

fn refused<H, A>(args: A)
where
    H: Serialize + DeserializeOwned + 'static,
    A: Serialize + DeserializeOwned + Debug,
{
    match exchange::<H, A, A>(&args) {
        Err(CallError::TypeMismatch { .. }) => {}
        other => panic!("{args:?} as {}: {other:?}", std::any::type_name::<H>()),
    }
}

fn mismatched_pairs_are_refused() {
    refused::<(u64, u64), _>((2_i32, 3_i32));
    refused::<u64, _>(2_u32);
    refused::<i64, _>(2_u64);
    refused::<u64, _>(2.0_f64);
    refused::<f32, _>(2.0_f64);
    refused::<u8, _>(true);
    refused::<u32, _>('x');
    refused::<String, _>(Bytes::from("text"));
    refused::<Bytes, _>(vec![1_u8, 2]);
    refused::<Vec<u8>, _>(Bytes::from("xy"));
    refused::<Vec<u8>, _>([1_u8, 2]);
    refused::<(u8, u8), _>((1_u8, 2_u8, 3_u8));
    refused::<(u8, (u8, u8)), _>(((1_u8, 2_u8), 3_u8));
    refused::<(u8,), _>(1_u8);
    refused::<Option<u8>, _>(5_u8);
    refused::<u8, _>(Some(5_u8));
    refused::<Option<u8>, _>(Some(5_i8));
    refused::<(), _>(5_u8);
    refused::<u8, _>(());
    refused::<Vec<u32>, _>(vec![1_u16]);
    refused::<Vec<(u8, u8)>, _>(BTreeMap::from([(1_u8, 2_u8)]));
    refused::<other::Kinds, _>(Kinds::Nothing);
    refused::<other::Renamed, _>(Kinds::Nothing);
    refused::<Kinds, _>(other::Kinds::One(Newtype(1)));
    refused::<Result<u8, u8>, _>(Some(1_u8));
    refused::<BTreeMap<String, u8>, _>(BTreeMap::from([("a".to_owned(), 1_i8)]));
    refused::<Named, _>(Pair(1, "x".into()).0);
    refused::<u128, _>(1_u64);
    let hint = exchange::<Bytes, _, ()>(&vec![1_u8])
        .unwrap_err()
        .to_string();
    assert!(hint.contains("use `Bytes` on both sides"), "{hint}");
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u8),
    Text(String),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    A { x: u8 },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Flat {
    x: u8,
    #[serde(flatten)]
    rest: BTreeMap<String, u8>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Skipping {
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<u8>,
    second: Option<u8>,
}

fn what_bincode_cannot_do_is_an_error_and_not_a_wrong_value() {
    assert!(exchange::<Untagged, _, Untagged>(&Untagged::Number(1)).is_err());
    assert!(exchange::<Tagged, _, Tagged>(&Tagged::A { x: 1 }).is_err());
    let flat = Flat {
        x: 1,
        rest: BTreeMap::from([("y".into(), 2)]),
    };
    assert!(matches!(
        exchange::<Flat, _, Flat>(&flat),
        Err(CallError::Encode(_))
    ));
    let skipping = Skipping {
        first: None,
        second: Some(5),
    };
    assert!(matches!(
        exchange::<Skipping, _, Skipping>(&skipping),
        Err(CallError::TypeMismatch { .. })
    ));
    let whole = Skipping {
        first: Some(1),
        second: Some(5),
    };
    assert_eq!(exchange::<Skipping, _, Skipping>(&whole).unwrap(), whole);
}

fn borrowed_arguments_can_be_sent() {
    #[derive(Serialize)]
    struct Borrowed<'a> {
        left: &'a i8,
        right: std::borrow::Cow<'a, str>,
    }
    let borrowed = Borrowed {
        left: &1,
        right: "x".into(),
    };
    let back: Named = exchange::<Named, _, _>(&borrowed).unwrap();
    assert_eq!(
        back,
        Named {
            left: 1,
            right: "x".into()
        }
    );
    assert_eq!(
        exchange::<Vec<String>, _, Vec<String>>(&["a", "b"].as_slice()).unwrap(),
        ["a", "b"]
    );
}

fn a_descriptor_is_never_a_number() {
    let fd = Fd::from(std::fs::File::open("/dev/null").unwrap());
    let limits = bincode::config::standard();
    let err = bincode::serde::encode_to_vec(&fd, limits)
        .unwrap_err()
        .to_string();
    assert!(err.contains("forkserver's own codec"), "{err}");
    let err = bincode::serde::decode_from_slice::<Fd, _>(&[0], limits)
        .unwrap_err()
        .to_string();
    assert!(err.contains("forkserver's own codec"), "{err}");

    /// A type that writes a descriptor with another serializer while it is being sent.
    struct Sneaky(Fd);
    impl Serialize for Sneaky {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let written = bincode::serde::encode_to_vec(&self.0, bincode::config::standard());
            serializer.serialize_bool(written.is_err())
        }
    }
    assert!(exchange::<bool, _, bool>(&Sneaky(fd)).unwrap());
}
