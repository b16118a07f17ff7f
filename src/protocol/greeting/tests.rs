//! Hello and welcome where there are workers: golden bytes, and what is no hello.

use super::Welcome;
use crate::protocol::Step;
use crate::protocol::ending::Ending;
use crate::protocol::server::Happening;
use crate::protocol::tests::{client, feed, server};
use std::time::Instant;

#[test]
fn golden_bytes_of_a_greeting_with_workers() {
    let now = Instant::now();
    let (mut client, mut server) = (client(), server(now));
    client.set_tag(0x0102_0304_0506_0708);
    client.say_hello(true).unwrap();
    let sent = client.outbox.transmit().unwrap().slices()[0].to_vec();
    let hello = [
        &[1, 0, 0, 0, 0, 0, 0, 0, 48, 0, 0, 0][..],
        b"FKSV\x01\x00\x07\x00",
        &[8, 7, 6, 5, 4, 3, 2, 1],
        b"pppppppppppppppppppppppppppppppp",
    ];
    assert_eq!(sent, hello.concat(), "{sent:02x?}");
    feed(&mut server.inbox, &sent, Vec::new());
    let Step::Event(Happening::Authenticated { fds: true, tag }) = server.poll(|| now) else {
        panic!("the password is behind the tag")
    };
    assert_eq!(tag, 0x0102_0304_0506_0708);
    server.welcome(Welcome {
        fds: true,
        worker: (2, 300),
    });
    let sent = server.outbox.transmit().unwrap().slices()[0].to_vec();
    let welcome = [
        2, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, 1, 0, 1, 0, 2, 0, 0, 0, 44, 1, 0, 0,
    ];
    assert_eq!(sent, welcome, "{sent:02x?}");
    feed(&mut client.inbox, &sent, Vec::new());
    assert!(matches!(client.poll(), Ok(Step::Event(_))));
    assert_eq!(client.worker(), Some((2, 300)));
}

#[test]
fn a_hello_that_ends_within_its_tag_is_no_hello() {
    let now = Instant::now();
    for len in 0..8_u8 {
        let mut server = server(now);
        let head = [1, 0, 0, 0, 0, 0, 0, 0, 8 + len, 0, 0, 0];
        let hello = [&head[..], b"FKSV\x01\x00\x04\x00", &[9; 8][..len.into()]].concat();
        feed(&mut server.inbox, &hello, Vec::new());
        assert!(matches!(server.poll(|| now), Step::Closed), "{len}");
        assert_eq!(server.ending(), Some(&Ending::Denied));
    }
}
