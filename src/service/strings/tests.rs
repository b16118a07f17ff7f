use super::*;
use crate::{Bytes, Fault, Fd};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

fn list<E: AsRef<[u8]>>(parts: &[E]) -> Vec<Vec<u8>> {
    parts.iter().map(|part| part.as_ref().to_vec()).collect()
}

/// What a handler that takes a `T` is given, and how often it was tried.
fn given<T: DeserializeOwned>(args: &[&[u8]]) -> Result<T, String> {
    let limits = Limits::default();
    let handler = |mut value| codec::decode(&mut value, &limits).map_err(Failure::Mismatch);
    match call_with(&list(args), &limits, handler) {
        Ok(value) => Ok(value),
        Err(Failure::Mismatch(reason)) => Err(reason),
        Err(_) => unreachable!(),
    }
}

fn returned<T: Serialize>(value: &T) -> Result<Option<Vec<Vec<u8>>>, String> {
    let (limits, (mut reply, slot)) = (Limits::default(), write_reply(7));
    let hash = codec::encode(value, &mut reply, &limits)?;
    slot.fill(&mut reply, hash);
    strings_of(reply, &limits)
}

#[derive(Debug, PartialEq, Deserialize, Serialize)]
struct Named {
    first: String,
    last: String,
}

#[test]
fn a_handler_of_strings_gets_them_in_whatever_form_it_takes() {
    assert_eq!(given::<()>(&[]), Ok(()));
    assert_eq!(given::<Vec<String>>(&[]), Ok(vec![]));
    assert_eq!(given::<String>(&[b"a"]), Ok("a".into()));
    assert_eq!(given::<(String,)>(&[b"a"]), Ok(("a".into(),)));
    assert_eq!(given::<Vec<String>>(&[b"a"]), Ok(vec!["a".into()]));
    assert_eq!(given::<Bytes>(&[b"a"]), Ok("a".into()));
    let both = ("Joe".to_string(), "Dalton".to_string());
    assert_eq!(given::<(String, String)>(&[b"Joe", b"Dalton"]), Ok(both));
    let named = given::<Named>(&[b"Joe", b"Dalton"]).unwrap();
    assert_eq!((&named.first[..], &named.last[..]), ("Joe", "Dalton"));
    let five = [&b"1"[..], b"2", b"3", b"4", b""];
    assert_eq!(
        given::<[String; 5]>(&five).unwrap()[..4],
        ["1", "2", "3", "4"]
    );
    assert_eq!(given::<Vec<String>>(&five).unwrap().len(), 5);
    assert_eq!(given::<[Bytes; 5]>(&five).unwrap()[3], "4".into());
    assert_eq!(given::<Vec<Bytes>>(&five).unwrap().len(), 5);
}

#[test]
fn text_and_bytes_may_stand_side_by_side() {
    let mixed = given::<(String, Bytes)>(&[b"name", b"\xff"]).unwrap();
    assert_eq!(mixed, ("name".into(), Bytes::from(b"\xff")));
    let mixed = given::<(Bytes, String, Bytes, String)>(&[b"\xff", b"b", b"c", b"d"]);
    assert_eq!(mixed.unwrap().1, "b");
}

#[test]
fn what_is_no_utf8_is_no_text() {
    let wrong = &[&b"a\xff"[..]];
    assert!(given::<String>(wrong).is_err());
    assert!(given::<(String,)>(wrong).is_err());
    assert!(given::<Vec<String>>(wrong).is_err());
    assert_eq!(given::<Bytes>(wrong), Ok(Bytes::from(b"a\xff")));
    assert_eq!(given::<Vec<Bytes>>(wrong).unwrap().len(), 1);
    assert!(given::<(String, String)>(&[b"a", b"\xff"]).is_err());
}

#[test]
fn no_other_type_is_ever_given_strings() {
    // The bytes of these would be read as such.
    assert!(given::<u64>(&[b"a"]).is_err());
    assert!(given::<(u8, u8)>(&[b"a"]).is_err());
    assert!(given::<Vec<u8>>(&[b"a"]).is_err());
    assert!(given::<Vec<Vec<u8>>>(&[b"a", b"b"]).is_err());
    assert!(given::<Option<String>>(&[b"a"]).is_err());
    assert!(given::<HashMap<String, String>>(&[b"a", b"b"]).is_err());
    assert!(given::<(String, String)>(&[b"a"]).is_err());
    assert!(given::<(String, String)>(&[b"a", b"b", b"c"]).is_err());
    assert!(given::<()>(&[b"a"]).is_err());
    assert!(given::<String>(&[]).is_err());
    assert!(given::<((String, String), String)>(&[b"a", b"b", b"c"]).is_err());
}

#[test]
fn an_error_tells_what_the_likeliest_form_lacks() {
    let reason = given::<(String, u64)>(&[b"a", b"5"]).unwrap_err();
    assert!(
        reason.contains("shape") || reason.contains("left over"),
        "{reason}"
    );
}

#[test]
fn a_handler_that_has_run_is_not_tried_again() {
    let (mut runs, limits) = (0, Limits::default());
    let result = call_with(&list(&["a"]), &limits, |_| {
        runs += 1;
        Err::<(), _>(Failure::Fault(Fault::new("it has run")))
    });
    assert!(matches!(result, Err(Failure::Fault(_))));
    assert_eq!(runs, 1);
}

#[test]
fn strings_come_back_from_whatever_form_they_have() {
    let some = |parts: &[&str]| Ok(Some(list(parts)));
    assert_eq!(returned(&()), Ok(None));
    assert_eq!(returned(&"a"), some(&["a"]));
    assert_eq!(returned(&""), some(&[""]));
    assert_eq!(returned(&("a",)), some(&["a"]));
    assert_eq!(returned(&("ok", "6".to_string())), some(&["ok", "6"]));
    assert_eq!(returned(&["a"; 16]), some(&["a"; 16]));
    assert_eq!(returned(&vec!["a"; 100]), some(&["a"; 100]));
    assert_eq!(returned(&Vec::<String>::new()), some(&[]));
    assert_eq!(returned(&Bytes::from("a")), some(&["a"]));
    assert_eq!(returned(&vec![Bytes::from("a")]), some(&["a"]));
    assert_eq!(returned(&("ok", Bytes::from("b"))), some(&["ok", "b"]));
    assert_eq!(returned(&[(); 0]), Ok(None));
    let bytes = Bytes::from(vec![0xff; 100_000]);
    let back = returned(&("ok", &bytes, &bytes)).unwrap().unwrap();
    assert!(back[0] == b"ok" && back[1] == *bytes && back[2] == *bytes);
    let named = Named {
        first: "Joe".into(),
        last: "Dalton".into(),
    };
    assert_eq!(returned(&named), some(&["Joe", "Dalton"]));
}

#[test]
fn what_is_not_made_of_strings_alone_does_not_come_back() {
    assert!(returned(&5_u64).is_err());
    assert!(returned(&(0_u8, 0_u8)).is_err());
    assert!(returned(&("a", 5)).is_err());
    assert!(returned(&vec![1_u8, 2]).is_err());
    assert!(returned(&Some("a")).is_err());
    assert!(returned(&'a').is_err());
    assert!(returned(&(("a", "b"), "c")).is_err());
    assert!(returned(&vec![vec!["a"]]).is_err());
    assert!(returned(&HashMap::from([("a", "b")])).is_err());
    assert!(returned(&["a"; 17]).is_err());
    let fd = Fd::from(std::fs::File::open("/dev/null").unwrap());
    let refused = returned(&("ok", fd)).unwrap_err();
    assert!(refused.contains("descriptors"), "{refused}");
}
