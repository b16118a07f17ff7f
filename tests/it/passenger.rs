//! Passenger's format: against its description, byte by byte, and against a peer in another language that was
//! written from the description alone (`passenger_peer.py`).
//!
//! The original's own tests are here as far as they are about the format: of its catalogue, those of the Ruby
//! `MessageChannel` (17), the C++ `MessageChannel` (26), `MessageIO` (16) and the readers and writers (40; those are
//! beside `src/protocol/passenger.rs`). Not here, because they make no sense:
//!
//! * a scalar is read into a given buffer object: the caller gets a vector, whose memory is its own;
//! * a closed channel has the descriptor -1, also after a failed close: a closed channel does not exist;
//! * messages over pipes: channels that pass descriptors need sockets;
//! * elements that are nil, or numbers, are turned into text: they are byte strings here;
//! * an output buffer that is too small for the bytes of an array: it grows;
//! * a reader is reset, and used again: a channel has no state between two messages;
//! * raw integers of 16 and 32 bits: no session of `AbstractServer` has them;
//! * a budget of time is decremented from one operation to the next: a timeout is for each operation.

use crate::harness::{descriptors, leave_descriptors_free};
use crate::processes::Helper;
use forkserver::passenger::{Client, Error, MessageChannel};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};
use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

crate::tests![
    arrays_have_the_originals_bytes_and_arrive_as_they_were,
    scalars_have_the_originals_bytes_and_arrive_as_they_were,
    hashes_are_arrays_in_pairs,
    a_scalar_at_the_limit_is_read_and_one_past_it_is_left,
    the_end_between_messages_is_none_and_within_one_an_error,
    an_end_with_unread_input_is_an_end,
    what_the_format_cannot_say_is_refused_and_nothing_sent,
    a_message_may_come_byte_by_byte,
    an_array_goes_there_and_back_between_processes,
    binary_scalars_come_back_identical,
    a_thousand_arrays_arrive_in_order,
    the_end_of_a_passed_pipe_works_on_the_other_side,
    kinds_of_messages_can_be_mixed,
    passing_a_descriptor_has_the_originals_bytes,
    a_descriptor_without_negotiation_is_not_read_over,
    a_wrong_word_or_byte_instead_of_a_descriptor_is_an_error,
    descriptors_that_nobody_asked_for_are_closed,
    a_descriptor_without_room_for_it_is_an_error,
    a_read_ends_in_time_and_keeps_what_has_come,
    a_write_ends_in_time_and_a_part_of_it_ends_the_direction,
    a_forked_copy_does_not_use_the_channel,
    password_and_request_leave_in_one_write,
    a_request_that_cannot_be_said_connects_to_nobody,
    nobody_there_is_told_from_nobody_answering,
    a_client_does_not_show_its_password,
    a_client_waits_no_longer_than_it_was_told,
    python_server_answers_our_client,
    python_server_passes_descriptors_both_ways,
    python_server_closes_where_the_original_does,
    python_channel_understands_ours,
];

fn pair() -> (MessageChannel, MessageChannel) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ours.into(), theirs.into())
}

/// A channel, and the bare socket at its other end.
fn raw() -> (MessageChannel, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ours.into(), theirs)
}

/// All that lies in a socket.
fn arrived(stream: &UnixStream) -> Vec<u8> {
    stream.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    let end = (&mut &*stream).read_to_end(&mut bytes);
    stream.set_nonblocking(false).unwrap();
    assert!(end.is_ok() || end.unwrap_err().kind() == std::io::ErrorKind::WouldBlock);
    bytes
}

/// A child process with one end of a conversation, and the other end.
fn with_helper(body: impl FnOnce(MessageChannel)) -> (MessageChannel, Helper) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut theirs = Some(theirs);
    let ours_for_child = ours.as_raw_fd();
    let helper = Helper::start(|_| {
        // Otherwise the end of the stream never comes.
        nix::unistd::close(ours_for_child).unwrap();
        body(theirs.take().unwrap().into());
    });
    drop(theirs);
    (ours.into(), helper)
}

fn arrays_have_the_originals_bytes_and_arrive_as_they_were() {
    let ten: Vec<_> = (0..10).map(|n| n.to_string()).collect();
    let ten: Vec<_> = ten.iter().map(String::as_bytes).collect();
    let twelve = [&ten[..], &[b"ten", b""]].concat();
    let arrays: [(&[&[u8]], &[u8]); 10] = [
        (&[b"hello"], b"\x00\x06hello\x00"),
        (&[b"hello", b"world"], b"\x00\x0chello\x00world\x00"),
        (
            &[b"hello my", b" beautiful\nworld\t"],
            b"\x00\x1bhello my\x00 beautiful\nworld\t\x00",
        ),
        (&[b""], b"\x00\x01\x00"),
        (&[b"", b"a", b"b"], b"\x00\x05\x00a\x00b\x00"),
        (&[b"a", b"", b"", b"b"], b"\x00\x06a\x00\x00\x00b\x00"),
        (&[b"a", b""], b"\x00\x03a\x00\x00"),
        (
            &[b"\xff\xfe", "hé".as_bytes()],
            b"\x00\x07\xff\xfe\x00h\xc3\xa9\x00",
        ),
        (
            &ten,
            b"\x00\x140\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00",
        ),
        (
            &twelve,
            b"\x00\x190\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00ten\x00\x00",
        ),
    ];
    for (elements, bytes) in arrays {
        let (mut ours, stream) = raw();
        ours.write(elements).unwrap();
        assert_eq!(arrived(&stream), bytes);
        (&stream).write_all(bytes).unwrap();
        assert_eq!(ours.read().unwrap().unwrap(), elements);
    }
    // What no sender may send, and what a reader drops.
    for (bytes, elements) in [
        (&b"\x00\x00"[..], &[][..]),
        (b"\x00\x01a", &[]),
        (b"\x00\x03a\x00b", &[b"a"]),
    ] {
        let (mut ours, stream) = raw();
        (&stream).write_all(bytes).unwrap();
        (&stream).write_all(b"\x00\x05next\x00").unwrap();
        assert_eq!(ours.read().unwrap().unwrap(), elements);
        assert_eq!(ours.read().unwrap().unwrap(), [b"next"]);
    }
}

fn scalars_have_the_originals_bytes_and_arrive_as_they_were() {
    for (scalar, bytes) in [
        (&b"secret"[..], &b"\x00\x00\x00\x06secret"[..]),
        (b"", b"\x00\x00\x00\x00"),
        (b"\0\xff\0", b"\x00\x00\x00\x03\x00\xff\x00"),
    ] {
        let (mut ours, stream) = raw();
        ours.write_scalar(scalar).unwrap();
        assert_eq!(arrived(&stream), bytes);
        (&stream).write_all(bytes).unwrap();
        assert_eq!(ours.read_scalar(6).unwrap().unwrap(), scalar);
    }
    let (mut ours, mut theirs) = pair();
    ours.write_scalar(b"first").unwrap();
    ours.write_scalar(b"second").unwrap();
    assert_eq!(theirs.read_scalar(100).unwrap().unwrap(), b"first");
    assert_eq!(theirs.read_scalar(100).unwrap().unwrap(), b"second");
}

fn hashes_are_arrays_in_pairs() {
    let (mut ours, mut theirs) = pair();
    ours.write(&["hello", "world"]).unwrap();
    ours.write(&["hello", "world", "foo", "bar", "", "..."])
        .unwrap();
    ours.write(&["key", "first", "key", "last"]).unwrap();
    let mut hash = || theirs.read_hash().unwrap().unwrap();
    assert_eq!(hash()[&b"hello"[..]], b"world");
    let three = hash();
    assert_eq!((three.len(), &three[&b"foo"[..]][..]), (3, &b"bar"[..]));
    assert_eq!(three[&b""[..]], b"...");
    assert_eq!(hash()[&b"key"[..]], b"last");
    for odd in [&["foo"][..], &["foo", "bar", "baz"]] {
        ours.write(odd).unwrap();
        let count = odd.len();
        assert!(matches!(theirs.read_hash(), Err(Error::OddHash { count: n }) if n == count));
    }
    drop(ours);
    assert!(theirs.read_hash().unwrap().is_none());
}

fn a_scalar_at_the_limit_is_read_and_one_past_it_is_left() {
    let (mut ours, mut theirs) = pair();
    ours.write_scalar(&[7; 100]).unwrap();
    ours.write_scalar(&[7; 100]).unwrap();
    assert_eq!(theirs.read_scalar(100).unwrap().unwrap().len(), 100);
    for _ in 0..2 {
        let refused = theirs.read_scalar(99);
        assert!(matches!(
            refused,
            Err(Error::OverLimit {
                size: 100,
                limit: 99
            })
        ));
    }
    assert_eq!(theirs.read_scalar(100).unwrap().unwrap().len(), 100);
    // A header is enough, whatever it announces, and costs no memory.
    let (mut ours, stream) = raw();
    (&stream).write_all(&[0xff; 4]).unwrap();
    assert!(matches!(
        ours.read_scalar(1 << 20),
        Err(Error::OverLimit { .. })
    ));
    ours.set_timeout(Some(Duration::ZERO));
    assert!(matches!(
        ours.read_scalar(usize::MAX),
        Err(Error::TimedOut(_))
    ));
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = status.split(' ').next().unwrap().parse().unwrap();
    assert!(
        pages * 4096 < 1 << 30,
        "4 GiB were announced: {pages} pages"
    );
}

fn the_end_between_messages_is_none_and_within_one_an_error() {
    let (array, scalar) = (b"\x00\x06hello\x00", b"\x00\x00\x00\x06secret");
    for len in 0..array.len() {
        let (mut ours, stream) = raw();
        (&stream).write_all(&array[..len]).unwrap();
        drop(stream);
        for _ in 0..2 {
            match ours.read() {
                Ok(None) => assert_eq!(len, 0),
                Err(Error::EndOfStream) => assert!(len > 0),
                other => panic!("{len} bytes: {other:?}"),
            }
        }
    }
    for len in 0..scalar.len() {
        let (mut ours, stream) = raw();
        (&stream).write_all(&scalar[..len]).unwrap();
        drop(stream);
        match ours.read_scalar(100) {
            Ok(None) => assert_eq!(len, 0),
            Err(Error::EndOfStream) => assert!(len > 0),
            other => panic!("{len} bytes: {other:?}"),
        }
    }
    let (mut ours, _) = raw();
    assert!(matches!(ours.write(&["x"]), Err(Error::Disconnected)));
    assert!(matches!(ours.write_scalar(b"x"), Err(Error::Disconnected)));
    assert!(matches!(
        ours.send_io(std::io::stdin()),
        Err(Error::EndOfStream)
    ));
    let (mut ours, _) = raw();
    assert!(matches!(ours.recv_io(), Err(Error::Disconnected)));
    let (mut ours, _) = raw();
    let silent = ours.recv_io_without_negotiation();
    assert!(matches!(silent, Err(Error::EndOfStream)));
}

fn an_end_with_unread_input_is_an_end() {
    // The kernel makes ECONNRESET of it.
    for (sent, whole) in [(&b""[..], true), (b"\x00", false), (b"\x00\x05a", false)] {
        let (mut ours, stream) = raw();
        ours.write(&["nobody reads this"]).unwrap();
        (&stream).write_all(sent).unwrap();
        drop(stream);
        match ours.read() {
            Ok(None) => assert!(whole),
            Err(Error::EndOfStream) => assert!(!whole),
            other => panic!("{other:?}"),
        }
    }
    // What was sent before is received.
    let (mut ours, stream) = raw();
    ours.write(&["nobody reads this"]).unwrap();
    (&stream).write_all(b"\x00\x03ok\x00").unwrap();
    drop(stream);
    assert_eq!(ours.read().unwrap().unwrap(), [b"ok"]);
    assert!(ours.read().unwrap().is_none());
}

fn what_the_format_cannot_say_is_refused_and_nothing_sent() {
    let (mut ours, stream) = raw();
    let none: [&str; 0] = [];
    assert!(matches!(ours.write(&none), Err(Error::NoElements)));
    let refused = ours.write(&["a", "b", "c\0d"]);
    assert!(matches!(refused, Err(Error::ZeroByte { index: 2 })));
    let refused = ours.write(&[[7; 32_768], [8; 32_768]]);
    assert!(matches!(
        refused,
        Err(Error::TooLarge {
            size: 65_538,
            limit: 65_535
        })
    ));
    assert_eq!(arrived(&stream), b"");
    ours.write(&[[7; 65_534]]).unwrap();
    let bytes = arrived(&stream);
    assert_eq!((bytes.len(), &bytes[..3]), (65_537, &[0xff, 0xff, 7][..]));
}

fn a_message_may_come_byte_by_byte() {
    let (mut ours, stream) = raw();
    let helper = Helper::start(|_| {
        for byte in b"\x00\x05a\x00bc\x00\x00\x00\x00\x03xyz\x00\x01\x00" {
            (&stream).write_all(&[*byte]).unwrap();
        }
    });
    drop(stream);
    assert_eq!(ours.read().unwrap().unwrap(), [&b"a"[..], b"bc"]);
    assert_eq!(ours.read_scalar(3).unwrap().unwrap(), b"xyz");
    assert_eq!(ours.read().unwrap().unwrap(), [b""]);
    assert!(ours.read().unwrap().is_none());
    helper.finish();
}

fn an_array_goes_there_and_back_between_processes() {
    let (mut ours, helper) = with_helper(|mut channel| {
        let mut elements = channel.read().unwrap().unwrap();
        elements.push(b"!!".to_vec());
        channel.write(&elements).unwrap();
    });
    ours.write(&["hello", "my", "beautiful", "world"]).unwrap();
    let back = ours.read().unwrap().unwrap();
    assert_eq!(
        back,
        ["hello", "my", "beautiful", "world", "!!"].map(str::as_bytes)
    );
    assert!(ours.read().unwrap().is_none());
    helper.finish();
}

fn binary_scalars_come_back_identical() {
    let all: Vec<u8> = (0..=255).cycle().take(3 << 20).collect();
    let contents = [
        std::fs::read("/proc/self/cmdline").unwrap(),
        vec![0; 66_051],
        all,
    ];
    let (mut ours, helper) = with_helper(|mut channel| {
        while let Some(scalar) = channel.read_scalar(4 << 20).unwrap() {
            channel.write_scalar(&scalar).unwrap();
        }
    });
    for content in contents {
        ours.write_scalar(&content).unwrap();
        assert!(ours.read_scalar(4 << 20).unwrap().unwrap() == content);
    }
    drop(ours);
    helper.finish();
}

fn a_thousand_arrays_arrive_in_order() {
    let (mut ours, helper) = with_helper(|mut channel| {
        for number in 0..1000 {
            let text = vec![b'x'; 3060];
            channel
                .write(&[number.to_string().as_bytes(), &text])
                .unwrap();
        }
    });
    for number in 0..1000 {
        let elements = ours.read().unwrap().unwrap();
        assert_eq!(elements[0], number.to_string().as_bytes());
        assert_eq!(elements[1], [b'x'; 3060]);
    }
    assert!(ours.read().unwrap().is_none());
    helper.finish();
}

fn the_end_of_a_passed_pipe_works_on_the_other_side() {
    for negotiate in [true, false] {
        let (mut ours, helper) = with_helper(|mut channel| {
            let fd = match negotiate {
                true => channel.recv_io().unwrap(),
                false => channel.recv_io_without_negotiation().unwrap(),
            };
            let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
            assert_eq!(flags, nix::libc::FD_CLOEXEC);
            File::from(fd).write_all(b"it works").unwrap();
        });
        let (mut reader, writer) = std::io::pipe().unwrap();
        match negotiate {
            true => ours.send_io(&writer).unwrap(),
            false => send_rights(ours.as_fd().as_raw_fd(), b"\0", &[&writer]),
        }
        drop(writer);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "it works");
        helper.finish();
    }
}

fn kinds_of_messages_can_be_mixed() {
    let (mut ours, helper) = with_helper(|mut channel| {
        assert_eq!(channel.read().unwrap().unwrap(), [&b"hello"[..], b"world"]);
        assert_eq!(channel.read_scalar(100).unwrap().unwrap(), b"hello world");
        let mut file = File::from(channel.recv_io().unwrap());
        assert_eq!(channel.read_scalar(100).unwrap().unwrap(), b"good bye");
        file.write_all(b"written").unwrap();
        drop(file);
        channel.write_scalar(b"it worked").unwrap();
        channel.write(&["good", "", "bye"]).unwrap();
    });
    let (mut reader, writer) = std::io::pipe().unwrap();
    ours.write(&["hello", "world"]).unwrap();
    ours.write_scalar(b"hello world").unwrap();
    ours.send_io(writer).unwrap();
    ours.write_scalar(b"good bye").unwrap();
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert_eq!(said, "written");
    assert_eq!(ours.read_scalar(100).unwrap().unwrap(), b"it worked");
    assert_eq!(ours.read().unwrap().unwrap(), [&b"good"[..], b"", b"bye"]);
    helper.finish();
}

fn send_rights(socket: i32, bytes: &[u8], fds: &[&dyn AsRawFd]) {
    let numbers: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let bytes = [IoSlice::new(bytes)];
    sendmsg::<()>(socket, &bytes, &rights, MsgFlags::empty(), None).unwrap();
}

fn passing_a_descriptor_has_the_originals_bytes() {
    const ASKED: &[u8] = b"\x00\x08pass IO\x00";
    const THANKED: &[u8] = b"\x00\x07got IO\x00";
    let null = File::open("/dev/null").unwrap();
    // As the side that takes: what it says, and when.
    let (mut ours, stream) = raw();
    ours.set_timeout(Some(Duration::ZERO));
    assert!(matches!(ours.recv_io(), Err(Error::TimedOut(_))));
    assert_eq!(arrived(&stream), ASKED);
    assert!(
        matches!(ours.read(), Err(Error::OutOfStep)),
        "it may come yet"
    );
    let (mut ours, stream) = raw();
    send_rights(stream.as_raw_fd(), b"\0", &[&null]);
    let got = File::from(ours.recv_io().unwrap());
    assert_eq!(arrived(&stream), [ASKED, THANKED].concat());
    drop(got);

    // As the side that gives: one byte with one descriptor, and nothing before it was asked for.
    let (mut ours, stream) = raw();
    ours.set_timeout(Some(Duration::ZERO));
    assert!(matches!(ours.send_io(&null), Err(Error::TimedOut(_))));
    assert_eq!(arrived(&stream), b"");
    (&stream).write_all(&ASKED[..4]).unwrap();
    assert!(matches!(ours.send_io(&null), Err(Error::TimedOut(_))));
    (&stream).write_all(&ASKED[4..]).unwrap();
    (&stream).write_all(THANKED).unwrap();
    ours.send_io(&null).unwrap();
    let mut buffer = [7; 2];
    let mut room = nix::cmsg_space!([i32; 4]);
    let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message =
        nix::sys::socket::recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut room), flags);
    let message = message.unwrap();
    let mut rights = message.cmsgs().unwrap();
    let Some(nix::sys::socket::ControlMessageOwned::ScmRights(fds)) = rights.next() else {
        panic!("no descriptor");
    };
    assert!(rights.next().is_none());
    assert_eq!((message.bytes, fds.len()), (1, 1));
    nix::unistd::close(fds[0]).unwrap();
    assert_eq!(buffer[0], 0);
    // Both are where they were.
    ours.write(&["x"]).unwrap();
    assert_eq!(arrived(&stream), b"\x00\x02x\x00");
}

fn a_descriptor_without_negotiation_is_not_read_over() {
    // Everything lies in the socket already when the first message is read.
    let null = File::open("/dev/null").unwrap();
    let (mut ours, stream) = raw();
    for _ in 0..3 {
        (&stream)
            .write_all(b"\x00\x02x\x00\x00\x00\x00\x01y")
            .unwrap();
        send_rights(stream.as_raw_fd(), b"\0", &[&null]);
    }
    for _ in 0..3 {
        assert_eq!(ours.read().unwrap().unwrap(), [b"x"]);
        assert_eq!(ours.read_scalar(1).unwrap().unwrap(), b"y");
        drop(ours.recv_io_without_negotiation().unwrap());
    }
    // A wait that was given up has cost nothing.
    ours.set_timeout(Some(Duration::ZERO));
    let nothing = ours.recv_io_without_negotiation();
    assert!(matches!(nothing, Err(Error::TimedOut(_))));
    (&stream).write_all(b"\x00\x02x\x00").unwrap();
    assert_eq!(ours.read().unwrap().unwrap(), [b"x"]);
    assert_eq!(arrived(&stream), b"");
}

fn a_wrong_word_or_byte_instead_of_a_descriptor_is_an_error() {
    let null = File::open("/dev/null").unwrap();
    let before = descriptors("self");
    for wrong in [
        &b"\x00\x08pass io\x00"[..],
        b"\x00\x00",
        b"\x00\x09pass IO\x00\x00",
        b"\xff\xff",
        b"\x00\x07pass IO",
    ] {
        let (mut ours, stream) = raw();
        (&stream).write_all(wrong).unwrap();
        let refused = ours.send_io(&null);
        assert!(
            matches!(
                refused,
                Err(Error::NotNegotiated {
                    expected: "pass IO"
                })
            ),
            "{refused:?}"
        );
        assert_eq!(arrived(&stream), b"");
        assert!(matches!(ours.write(&["x"]), Err(Error::OutOfStep)));
        assert!(matches!(ours.read(), Err(Error::OutOfStep)));
        let (mut ours, stream) = raw();
        (&stream).write_all(b"\x00\x08pass IO\x00").unwrap();
        (&stream).write_all(wrong).unwrap();
        let refused = ours.send_io(&null);
        assert!(
            matches!(refused, Err(Error::NotNegotiated { expected: "got IO" })),
            "{refused:?}"
        );
    }
    let (mut ours, stream) = raw();
    (&stream).write_all(b"\0").unwrap();
    assert!(matches!(ours.recv_io(), Err(Error::NoDescriptor)));
    assert!(matches!(ours.recv_io(), Err(Error::OutOfStep)));
    drop((ours, stream));
    for count in [2, 253] {
        let (mut ours, stream) = raw();
        let fds: Vec<_> = (0..count).map(|_| &null as &dyn AsRawFd).collect();
        send_rights(stream.as_raw_fd(), b"\0", &fds);
        let refused = ours.recv_io();
        assert!(matches!(refused, Err(Error::TooManyDescriptors { count: n }) if n == count));
    }
    assert_eq!(descriptors("self"), before, "one is left open");
}

fn descriptors_that_nobody_asked_for_are_closed() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let before = descriptors("self").len();
    let (mut ours, stream) = raw();
    send_rights(stream.as_raw_fd(), b"\x00\x02", &[&writer, &writer]);
    send_rights(stream.as_raw_fd(), b"x", &[&writer]);
    send_rights(stream.as_raw_fd(), b"\x00\x00\x00\x00\x01y", &[&writer]);
    assert_eq!(ours.read().unwrap().unwrap(), [b"x"]);
    assert_eq!(ours.read_scalar(1).unwrap().unwrap(), b"y");
    assert_eq!(descriptors("self").len(), before + 2);
    drop(writer);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "nobody has it any more");
}

fn a_descriptor_without_room_for_it_is_an_error() {
    let (mut ours, stream) = raw();
    send_rights(stream.as_raw_fd(), b"\0", &[&stream]);
    leave_descriptors_free(0).unwrap();
    assert!(matches!(ours.recv_io(), Err(Error::LostDescriptor)));
    assert!(matches!(ours.read(), Err(Error::OutOfStep)));
}

fn a_read_ends_in_time_and_keeps_what_has_come() {
    const BUDGET: Duration = Duration::from_millis(30);
    let (array, scalar) = (&b"\x00\x06hello\x00"[..], &b"\x00\x00\x00\x06secret"[..]);
    let read = |ours: &mut MessageChannel, is_array| match is_array {
        true => ours.read().map(|array| array.unwrap().concat()),
        false => ours.read_scalar(6).map(Option::unwrap),
    };
    for (message, is_array, content) in [(array, true, "hello"), (scalar, false, "secret")] {
        for len in 0..message.len() {
            let (mut ours, stream) = raw();
            ours.set_timeout(Some(BUDGET));
            (&stream).write_all(&message[..len]).unwrap();
            let start = Instant::now();
            let late = read(&mut ours, is_array);
            assert!(matches!(late, Err(Error::TimedOut(BUDGET))), "{late:?}");
            assert!(start.elapsed() >= BUDGET && start.elapsed() < 100 * BUDGET);
            (&stream).write_all(&message[len..]).unwrap();
            assert_eq!(read(&mut ours, is_array).unwrap(), content.as_bytes());
        }
    }
    // The time counts from the beginning, however steadily the bytes come.
    let (mut ours, stream) = raw();
    ours.set_timeout(Some(5 * BUDGET));
    let trickling = Helper::start(|test| {
        (&stream).write_all(b"\x7f\xff").unwrap();
        while !test.may_go(Duration::from_millis(5)) {
            (&stream).write_all(b"x").unwrap();
        }
    });
    let start = Instant::now();
    assert!(matches!(ours.read(), Err(Error::TimedOut(_))));
    assert!(start.elapsed() >= 5 * BUDGET && start.elapsed() < 100 * BUDGET);
    trickling.finish();
    // What is there needs no time.
    let (mut ours, stream) = raw();
    ours.set_timeout(Some(Duration::ZERO));
    (&stream).write_all(array).unwrap();
    assert!(ours.read().is_ok());
}

fn a_write_ends_in_time_and_a_part_of_it_ends_the_direction() {
    const BUDGET: Duration = Duration::from_millis(30);
    let (ours, stream) = UnixStream::pair().unwrap();
    setsockopt(&ours, sockopt::SndBuf, &32_768).unwrap();
    let mut ours = MessageChannel::from(ours);
    ours.set_timeout(Some(BUDGET));
    let start = Instant::now();
    assert!(matches!(
        ours.write_scalar(&[7; 1 << 20]),
        Err(Error::TimedOut(BUDGET))
    ));
    assert!(start.elapsed() >= BUDGET && start.elapsed() < 100 * BUDGET);
    // The other side waits for the rest: whatever came next would be taken for it.
    assert!(matches!(ours.write(&["x"]), Err(Error::OutOfStep)));
    assert!(matches!(ours.write_scalar(b"x"), Err(Error::OutOfStep)));
    assert!(matches!(ours.send_io(&stream), Err(Error::OutOfStep)));
    // The other direction is not concerned.
    (&stream).write_all(b"\x00\x06hello\x00").unwrap();
    assert_eq!(ours.read().unwrap().unwrap(), [b"hello"]);

    // Where nothing of a message has left, the next one may.
    let (ours, mut stream) = UnixStream::pair().unwrap();
    let mut ours = MessageChannel::from(ours);
    ours.set_timeout(Some(Duration::ZERO));
    let mut count = 0;
    while ours.write(&["message"]).is_ok() {
        count += 1;
    }
    let mut bytes = vec![0; count * 10];
    stream.read_exact(&mut bytes).unwrap();
    ours.write(&["message"]).unwrap();
    stream.read_exact(&mut bytes[..10]).unwrap();
    assert!(
        bytes
            .chunks(10)
            .all(|chunk| chunk == b"\x00\x08message\x00")
    );
}

fn a_forked_copy_does_not_use_the_channel() {
    let (mut ours, mut theirs) = pair();
    theirs.write(&["for the parent"]).unwrap();
    Helper::start(|_| {
        let strange = |err| matches!(err, Error::WrongProcess);
        assert!(strange(ours.read().unwrap_err()));
        assert!(strange(ours.write(&["x"]).unwrap_err()));
        assert!(strange(ours.read_scalar(1).unwrap_err()));
        assert!(strange(ours.write_scalar(b"x").unwrap_err()));
        assert!(strange(ours.recv_io().unwrap_err()));
        assert!(strange(ours.send_io(std::io::stdin()).unwrap_err()));
    })
    .finish();
    assert_eq!(ours.read().unwrap().unwrap(), [b"for the parent"]);
}

fn socket_path() -> PathBuf {
    std::env::temp_dir().join("socket")
}

fn password_and_request_leave_in_one_write() {
    let listener = UnixListener::bind(socket_path()).unwrap();
    for password in [&b"secret"[..], b"", b"\0\xff any", &[b'A'; 86]] {
        let mut channel = Client::new(socket_path(), password)
            .open("echo", &["a", "", "b"])
            .unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = vec![0; 1000];
        let len = stream.read(&mut bytes).unwrap();
        let size = [0, 0, 0, password.len() as u8];
        assert_eq!(
            bytes[..len],
            [&size, password, b"\x00\x0aecho\x00a\x00\x00b\x00"].concat()
        );
        stream.write_all(b"\x00\x05ok\x006\x00").unwrap();
        assert_eq!(channel.read().unwrap().unwrap(), [b"ok".as_slice(), b"6"]);
    }
    std::fs::remove_file(socket_path()).unwrap();
}

fn a_request_that_cannot_be_said_connects_to_nobody() {
    let listener = UnixListener::bind(socket_path()).unwrap();
    let client = Client::new(socket_path(), "secret");
    assert!(matches!(
        client.call("na\0me", &["x"]),
        Err(Error::ZeroByte { index: 0 })
    ));
    assert!(matches!(
        client.call("name", &["x", "\0"]),
        Err(Error::ZeroByte { index: 2 })
    ));
    let refused = client.call("name", &[[7; 65_531]]);
    assert!(matches!(
        refused,
        Err(Error::TooLarge {
            size: 65_537,
            limit: 65_535
        })
    ));
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "somebody has connected");
    std::fs::remove_file(socket_path()).unwrap();
}

fn nobody_there_is_told_from_nobody_answering() {
    let client = Client::new(socket_path(), "secret");
    let none: [&str; 0] = [];
    let refused = client.call("name", &none);
    assert!(matches!(refused, Err(Error::NotRunning { path }) if path == socket_path()));
    let listener = UnixListener::bind(socket_path()).unwrap();
    let channel = client.open("name", &none).unwrap();
    drop(listener);
    drop(channel);
    let refused = client.open("name", &none);
    assert!(matches!(refused, Err(Error::NotRunning { .. })));
    std::fs::remove_file(socket_path()).unwrap();
    // Any length of path will do.
    let long = std::env::temp_dir().join("x".repeat(100));
    std::fs::create_dir(&long).unwrap();
    let path = long.join("socket");
    let refused = Client::new(&path, "").call("name", &none);
    assert!(matches!(refused, Err(Error::NotRunning { path: named }) if named == path));
    std::fs::remove_dir(long).unwrap();
}

fn a_client_does_not_show_its_password() {
    let shown = format!("{:?}", Client::new("/a/path", "hunter2"));
    assert!(
        shown.contains("/a/path") && !shown.contains("hunter2"),
        "{shown}"
    );
    assert!(!shown.contains("104, 117"), "{shown}");
}

fn a_client_waits_no_longer_than_it_was_told() {
    const BUDGET: Duration = Duration::from_millis(50);
    let listener = UnixListener::bind(socket_path()).unwrap();
    let client = Client::new(socket_path(), "secret").with_timeout(BUDGET);
    let start = Instant::now();
    assert!(matches!(
        client.call("name", &["x"]),
        Err(Error::TimedOut(BUDGET))
    ));
    // No place in the backlog.
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let mut waiting = Vec::new();
    let late = loop {
        match client.open("name", &["x"]) {
            Ok(channel) => waiting.push(channel),
            Err(err) => break err,
        }
    };
    assert!(matches!(late, Error::TimedOut(BUDGET)), "{late:?}");
    assert!(start.elapsed() >= 2 * BUDGET && start.elapsed() < 100 * BUDGET);
    std::fs::remove_file(socket_path()).unwrap();
}

/// A server in Python, written from the description of the format alone.
struct Peer {
    process: Child,
    client: Client,
    password: Vec<u8>,
}

fn python(arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/passenger_peer.py");
    command.args(["-B", script]).args(arguments);
    command
}

impl Peer {
    fn start(password: &[u8]) -> Peer {
        let hex: String = password.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = socket_path();
        let mut process = python(&["server", path.to_str().unwrap(), &hex])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(process.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let client = Client::new(path, password).with_timeout(Duration::from_secs(30));
        let password = password.to_vec();
        Peer {
            process,
            client,
            password,
        }
    }

    /// Without an exception on the way, it ends when its standard input does.
    fn finish(mut self) {
        drop(self.process.stdin.take());
        assert!(self.process.wait().unwrap().success());
    }
}

fn python_server_answers_our_client() {
    for password in [&b"secret"[..], b"", b"\0\xff\x80\n", &[b'A'; 86]] {
        let peer = Peer::start(password);
        let elements = [&b"a"[..], b"", b"b", b"\xff\xfe", "hé".as_bytes(), b""];
        assert_eq!(peer.client.call("echo", &elements).unwrap(), elements);
        assert_eq!(peer.client.call("echo", &[""]).unwrap(), [b""]);
        let largest = vec![b'x'; 65_535 - "count\0".len() - 1];
        let counted = peer.client.call("count", &[&largest]).unwrap();
        assert_eq!(counted, [b"1".to_vec(), largest.len().to_string().into()]);
        assert_eq!(
            peer.client.call("byte_by_byte", &[""]).unwrap(),
            [b"a", b"b"]
        );
        for scalar in [&b""[..], b"\0\0\0", &[0xff; 70_000], &vec![7; 3 << 20]] {
            let mut channel = peer.client.open("scalar", &[""]).unwrap();
            channel.write_scalar(scalar).unwrap();
            assert!(channel.read_scalar(4 << 20).unwrap().unwrap() == scalar);
            assert!(channel.read_scalar(0).unwrap().is_none());
        }
        peer.finish();
    }
}

fn python_server_passes_descriptors_both_ways() {
    let peer = Peer::start(b"secret");
    let path = std::env::temp_dir().join("t2.data");
    std::fs::write(&path, "descri").unwrap();
    let mut channel = peer
        .client
        .open("send_file", &[path.to_str().unwrap()])
        .unwrap();
    assert_eq!(channel.read().unwrap().unwrap(), [&b"ok"[..], b"6"]);
    let file = File::from(channel.recv_io().unwrap());
    assert_eq!(std::io::read_to_string(file).unwrap(), "descri");
    assert!(channel.read().unwrap().is_none());

    let mut channel = peer.client.open("read_file", &[""]).unwrap();
    channel.send_io(File::open(&path).unwrap()).unwrap();
    assert_eq!(channel.read_scalar(100).unwrap().unwrap(), b"descri");

    let channel = peer.client.open("mixed", &[""]).unwrap();
    mixed(channel);
    std::fs::remove_file(path).unwrap();
    peer.finish();
}

/// Our side of the peer's `mixed`.
fn mixed(mut channel: MessageChannel) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    channel.write(&["a", "", "b c"]).unwrap();
    channel.write_scalar(b"first ").unwrap();
    channel.send_io(OwnedFd::from(writer)).unwrap();
    channel.write_scalar(b"second\0").unwrap();
    assert_eq!(
        channel.read_scalar(100).unwrap().unwrap(),
        b"first second\0"
    );
    assert_eq!(channel.read().unwrap().unwrap(), [&b"b c"[..], b"", b"a"]);
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert_eq!(said, "it works");
    let file = File::from(channel.recv_io().unwrap());
    assert_eq!(std::io::read_to_string(file).unwrap(), "so does this");
}

fn python_server_closes_where_the_original_does() {
    let peer = Peer::start(b"secret");
    let none: [&str; 0] = [];
    assert!(matches!(
        peer.client.call("silent", &none),
        Err(Error::NoAnswer)
    ));
    let mut wrong = peer.password.clone();
    wrong[0] ^= 1;
    for wrong in [&wrong[..], b"", b"secre", b"secrets"] {
        // What was sent may have been refused, or not been looked at.
        let refused = Client::new(socket_path(), wrong).call("echo", &["x"]);
        assert!(
            matches!(refused, Err(Error::NoAnswer | Error::Disconnected)),
            "{refused:?}"
        );
    }
    assert_eq!(peer.client.call("echo", &["x"]).unwrap(), [b"x"]);
    peer.finish();
}

fn python_channel_understands_ours() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut process = python(&["channel"])
        .stdin(OwnedFd::from(theirs))
        .spawn()
        .unwrap();
    let mut ours = MessageChannel::from(ours);
    let hello = ours.read().unwrap().unwrap();
    assert_eq!(hello, [&b"hello"[..], b"my beautiful", b"", b"world"]);
    assert_eq!(ours.read().unwrap().unwrap(), [b"\xff\xfe"]);
    ours.write(&["you sent", "", "four elements"]).unwrap();
    ours.write(&[""]).unwrap();
    assert_eq!(ours.read_scalar(0).unwrap().unwrap(), b"");
    let all: Vec<u8> = (0..=255).collect();
    assert_eq!(ours.read_scalar(256).unwrap().unwrap(), all);
    ours.write_scalar(b"").unwrap();
    ours.write_scalar(&b"\0\xff".repeat(50_000)).unwrap();
    mixed(ours);
    assert!(process.wait().unwrap().success());
}
