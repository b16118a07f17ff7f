//! Each limit at the limit, where all is well, and one beyond it, where a typed error names it.

use crate::auth::with_password;
use crate::fds::server as with_fds;
use crate::hostile::{Raw, Tree, frame, hello, hello_frame, still_answers, tree};
use crate::lifecycle::echo;
use crate::processes::readable;
use forkserver::{
    Bytes, CallError, Client, Delivery, Fd, Limits, Listener, Password, ServerHandle, StartError,
};
use std::time::Duration;

crate::tests![
    replies_at_the_servers_limit_pass_and_beyond_it_do_not,
    replies_at_the_clients_limit_pass_and_beyond_it_do_not,
    results_within_the_clients_limits_pass_and_beyond_them_do_not,
    values_are_encoded_to_their_limit_of_depth_and_no_deeper,
    as_many_strangers_as_are_allowed_stay_and_one_more_costs_the_oldest,
    names_are_called_up_to_their_limit,
    passwords_of_both_extreme_lengths_open_and_no_others_can_be_written,
    a_hello_of_the_greatest_length_is_read_and_a_longer_one_is_not,
    watermarks_may_meet_and_not_cross,
];

/// Limits that differ from the usual ones as `change` says.
fn limits(change: impl FnOnce(&mut Limits)) -> Limits {
    let mut limits = Limits::default();
    change(&mut limits);
    limits
}

/// A server that returns as much of everything as it is asked for.
fn generous(limits: Limits) -> ServerHandle {
    let definition = with_fds()
        .limits(limits)
        .handle("large", |_, size: usize| Ok(Bytes::from(vec![1; size])))
        .handle("words", |_, count: usize| Ok(vec![0_u64; count]))
        .handle("tree", |_, depth: usize| Ok(tree(depth)))
        .handle("take tree", |_, _: Tree| Ok(()));
    definition.start().unwrap()
}

fn large(client: &mut Client, size: usize) -> Result<usize, CallError> {
    Ok(client.call::<_, Bytes>("large", &size)?.len())
}

/// A frame with a hash, a length of three bytes, and 4 000 bytes.
const FRAME: usize = 8 + 3 + 4000;

fn replies_at_the_servers_limit_pass_and_beyond_it_do_not() {
    let server = generous(limits(|limits| limits.max_frame = FRAME));
    let mut client = server.connect().unwrap();
    assert_eq!(large(&mut client, 4000).unwrap(), 4000);
    let err = large(&mut client, 4001).unwrap_err();
    assert!(
        matches!(&err, CallError::BadReply(text) if text.contains("max_frame, 4011")),
        "{err}"
    );
    assert_eq!(large(&mut client, 4000).unwrap(), 4000);
}

fn replies_at_the_clients_limit_pass_and_beyond_it_do_not() {
    let server = generous(Limits::default());
    let own = limits(|limits| (limits.max_frame, limits.max_fds) = (FRAME, 5));
    let connect = || server.connect().unwrap().with_limits(own.clone());
    let mut client = connect();
    assert_eq!(large(&mut client, 4000).unwrap(), 4000);
    let make = |client: &mut Client, count: usize| client.call::<_, Vec<Fd>>("make", &count);
    assert_eq!(make(&mut client, 5).unwrap().len(), 5);
    let refused = |result: Result<(), CallError>, limit: &str| {
        let err = result.unwrap_err();
        assert!(
            matches!(&err, CallError::Protocol(text) if text.contains(limit)),
            "{err}"
        );
        // Nobody knows what else the server would have said.
        assert_eq!(err.delivery(), Delivery::MaybeExecuted);
    };
    refused(large(&mut client, 4001).map(drop), "max_frame, 4011");
    assert!(matches!(
        large(&mut client, 1),
        Err(CallError::Disconnected { .. })
    ));
    refused(make(&mut connect(), 6).map(drop), "max_fds, 5");
    still_answers(&server);
}

fn results_within_the_clients_limits_pass_and_beyond_them_do_not() {
    let server = generous(Limits::default());
    let refused = |result: Result<(), CallError>, limit: &str| match result.unwrap_err() {
        CallError::TypeMismatch {
            reason, delivery, ..
        } => {
            assert!(reason.contains(limit), "{reason}");
            assert_eq!(delivery, Delivery::Executed);
        }
        err => panic!("{err}"),
    };
    let own = limits(|limits| (limits.max_elements, limits.max_depth) = (100, 10));
    let mut client = server.connect().unwrap().with_limits(own);
    let words = |client: &mut Client, count: usize| client.call::<_, Vec<u64>>("words", &count);
    assert_eq!(words(&mut client, 100).unwrap().len(), 100);
    refused(words(&mut client, 101).map(drop), "max_elements, 100");
    client.call::<_, Tree>("tree", &9_usize).unwrap();
    let deeper = client.call::<_, Tree>("tree", &10_usize);
    refused(deeper.map(drop), "max_depth, 10");
    // The vector itself, and a hundred words, the first of which brings room for four.
    let own = limits(|limits| limits.max_memory = 848);
    let mut client = server.connect().unwrap().with_limits(own);
    assert_eq!(words(&mut client, 100).unwrap().len(), 100);
    refused(words(&mut client, 101).map(drop), "max_memory allows, 848");
    assert_eq!(words(&mut client, 100).unwrap().len(), 100);
}

fn values_are_encoded_to_their_limit_of_depth_and_no_deeper() {
    let shallow = || limits(|limits| limits.max_depth = 10);
    let server = generous(Limits::default());
    let mut client = server.connect().unwrap().with_limits(shallow());
    client.call::<_, ()>("take tree", &tree(9)).unwrap();
    let err = client.call::<_, ()>("take tree", &tree(10)).unwrap_err();
    assert!(
        matches!(&err, CallError::Encode(text) if text.contains("max_depth, 10")),
        "{err}"
    );
    assert_eq!(err.delivery(), Delivery::NotSent);
    let server = generous(shallow());
    let mut client = server.connect().unwrap();
    client.call::<_, Tree>("tree", &9_usize).unwrap();
    let err = client.call::<_, Tree>("tree", &10_usize).unwrap_err();
    assert!(
        matches!(&err, CallError::BadReply(text) if text.contains("max_depth, 10")),
        "{err}"
    );
}

fn as_many_strangers_as_are_allowed_stay_and_one_more_costs_the_oldest() {
    let own = limits(|limits| {
        limits.max_unauthenticated = 10;
        limits.auth_timeout = Duration::from_secs(600);
    });
    let server = echo().limits(own).start().unwrap();
    let mut strangers: Vec<_> = (0..10).map(|_| Raw::connect(&server)).collect();
    // Connections are accepted in the order in which they were made: when the last says something, all are there.
    strangers[9].write(&hello_frame(&server));
    strangers[9].write(&crate::hostile::call_frame(1, "echo", b"\x01x"));
    assert!(readable(strangers[9].stream(), Duration::from_secs(5)));
    let mut more = [Raw::connect(&server), Raw::connect(&server)];
    // One has shown the password meanwhile, so that the first of these fits, and the second does not.
    assert!(strangers[0].read_to_end().is_empty());
    let others = strangers[1..9].iter().chain(&more);
    for other in others {
        assert!(!readable(other.stream(), Duration::ZERO));
    }
    more[1].write(&hello_frame(&server));
    more[1].write(&crate::hostile::call_frame(1, "echo", b"\x01x"));
    assert!(readable(more[1].stream(), Duration::from_secs(5)));
    assert!(!readable(strangers[1].stream(), Duration::ZERO));
}

fn names_are_called_up_to_their_limit() {
    let longest = "x".repeat(255);
    let server = crate::server()
        .handle(longest.clone(), |_, (): ()| Ok(5))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    assert_eq!(client.call::<_, i32>(&longest, &()).unwrap(), 5);
    for unknown in ["y".repeat(255), "x".repeat(256)] {
        let err = client.call::<_, i32>(&unknown, &()).unwrap_err();
        assert_eq!(err.delivery(), Delivery::NotSent);
        assert!(
            matches!(err, CallError::UnknownName { name, .. } if name == unknown),
            "{}",
            unknown.len()
        );
    }
    assert_eq!(client.call::<_, i32>(&longest, &()).unwrap(), 5);
}

fn passwords_of_both_extreme_lengths_open_and_no_others_can_be_written() {
    for length in [Password::MIN, Password::MAX] {
        let password = Password::new(vec![7; length]).unwrap();
        let listener = Listener::private().password(password);
        let server = echo().listen(listener).start().unwrap();
        let read_again = with_password(&server, server.address().password().clone());
        let mut client = Client::connect(&read_again).unwrap();
        assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    }
    for length in [Password::MIN - 1, Password::MAX + 1] {
        let err = Password::new(vec![7; length]).unwrap_err();
        assert_eq!(err.length, length);
        let text = err.to_string();
        assert!(text.contains("16") && text.contains("96"), "{text}");
    }
}

fn a_hello_of_the_greatest_length_is_read_and_a_longer_one_is_not() {
    let server = echo().start().unwrap();
    // A header, eight bytes, and a password: 128 bytes in all.
    let mut raw = Raw::connect(&server);
    raw.write(&hello(&[7; 108]));
    assert_eq!(raw.read_to_end(), frame(3, 0, 0, 0, &[1]), "it is denied");
    let mut raw = Raw::connect(&server);
    raw.write(&hello(&[7; 109]));
    assert!(raw.read_to_end().is_empty(), "it is not even read");
    still_answers(&server);
}

fn watermarks_may_meet_and_not_cross() {
    let marks =
        |low, high| limits(|limits| (limits.low_watermark, limits.high_watermark) = (low, high));
    let server = echo().limits(marks(100, 100)).start().unwrap();
    still_answers(&server);
    let of_a_listener = Listener::private().limits(marks(101, 100));
    for definition in [echo().limits(marks(101, 100)), echo().listen(of_a_listener)] {
        let err = definition.start().unwrap_err();
        assert!(matches!(err, StartError::Watermarks(101, 100)), "{err}");
    }
}
