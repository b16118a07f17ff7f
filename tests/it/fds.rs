//! Descriptors: both ways, everywhere, never too many, never leaked.

use crate::harness::{descriptors, leave_descriptors_free};
use crate::hostile::{Raw, frame, hello_frame};
use crate::lifecycle::echo;
use forkserver::{Bytes, CallError, Client, Fault, Fd, Limits, Server, ServerHandle};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;

crate::tests![
    descriptors_travel_both_ways_in_every_number,
    one_more_than_the_limit_is_refused,
    descriptors_stand_anywhere_in_a_value,
    a_fault_carries_descriptors,
    a_received_descriptor_is_close_on_exec,
    an_fd_becomes_what_std_has,
    a_sent_descriptor_stays_ours,
    descriptors_in_refused_arguments_are_closed,
    descriptors_in_unwanted_replies_are_closed,
    large_messages_carry_descriptors_once,
    descriptors_before_the_password_are_refused,
    near_the_limit_of_descriptors_nothing_is_lost,
    an_unfinished_frame_brings_no_more_descriptors,
    a_flush_sends_a_first_call_that_has_descriptors,
];

/// How many descriptors the server has. A call goes first: what was closed before it is closed.
pub fn count(server: &ServerHandle, client: &mut Client) -> usize {
    client
        .call::<_, String>("echo", "x")
        .expect("the server answers");
    descriptors(&server.pid().to_string()).len()
}

/// Waits until the server has as many descriptors as before: a session that ended badly has told its client so a
/// moment before it closes.
pub fn settles(server: &ServerHandle, client: &mut Client, before: usize) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while count(server, client) != before {
        assert!(
            std::time::Instant::now() < deadline,
            "{:?}",
            descriptors(&server.pid().to_string())
        );
    }
}

pub fn null() -> Fd {
    File::open("/dev/null").unwrap().into()
}

fn inode(fd: &Fd) -> u64 {
    nix::sys::stat::fstat(fd).unwrap().st_ino
}

pub fn server() -> Server {
    echo()
        .handle("fds", |_, fds: Vec<Fd>| Ok(fds))
        .handle("make", |_, count: usize| {
            (0..count)
                .map(|_| Ok(File::open("/dev/null")?.into()))
                .collect::<Result<Vec<Fd>, Fault>>()
        })
        .handle("swallow", |_, fds: Vec<Fd>| Ok(fds.len()))
        .handle("number", |_, number: u32| Ok(number))
}

fn descriptors_travel_both_ways_in_every_number() {
    let server = server().start().unwrap();
    let mut client = server.connect().unwrap();
    let before = count(&server, &mut client);
    for number in [0, 1, 2, 16, 64, 252, 253] {
        let sent: Vec<Fd> = (0..number).map(|_| null()).collect();
        let back: Vec<Fd> = client.call("fds", &sent).unwrap();
        assert_eq!(back.len(), number);
        assert!(back.iter().all(|fd| inode(fd) == inode(&null())));
        assert_eq!(
            client.call::<_, Vec<Fd>>("make", &number).unwrap().len(),
            number
        );
        assert_eq!(client.call::<_, usize>("swallow", &sent).unwrap(), number);
    }
    settles(&server, &mut client, before);
}

fn one_more_than_the_limit_is_refused() {
    let mut limits = Limits::default();
    limits.max_fds = 5;
    let server = server().limits(limits.clone()).start().unwrap();
    let mut client = server.connect().unwrap().with_limits(limits);
    let before = count(&server, &mut client);
    let five: Vec<Fd> = (0..5).map(|_| null()).collect();
    let six: Vec<Fd> = (0..6).map(|_| null()).collect();
    assert_eq!(client.call::<_, usize>("swallow", &five).unwrap(), 5);
    let err = client.call::<_, usize>("swallow", &six).unwrap_err();
    assert!(
        matches!(err, CallError::TooLarge(_)) && err.to_string().contains("max_fds, 5"),
        "{err}"
    );
    let err = client.call::<_, Vec<Fd>>("make", &6_usize).unwrap_err();
    assert!(
        matches!(err, CallError::BadReply(_)) && err.to_string().contains("max_fds, 5"),
        "{err}"
    );
    let mut bold = server.connect().unwrap();
    let err = bold.call::<_, usize>("swallow", &six).unwrap_err();
    assert!(
        matches!(err, CallError::Protocol(_)) && err.to_string().contains("max_fds, 5"),
        "{err}"
    );
    drop(bold);
    assert_eq!(
        client.call::<_, Vec<Fd>>("make", &5_usize).unwrap().len(),
        5
    );
    settles(&server, &mut client, before);
    let mut generous = server.connect().unwrap();
    let too_many: Vec<Fd> = (0..254).map(|_| null()).collect();
    assert!(matches!(
        generous.call::<_, usize>("swallow", &too_many),
        Err(CallError::TooLarge(_))
    ));
}

#[derive(Serialize, Deserialize)]
enum Request {
    Plain(u8),
    Open {
        log: Option<Fd>,
        files: std::collections::BTreeMap<String, Fd>,
    },
}

fn descriptors_stand_anywhere_in_a_value() {
    let server = crate::server()
        .handle("request", |_, request: Request| Ok(request))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    let files = [
        ("null", "/dev/null"),
        ("zero", "/dev/zero"),
        ("full", "/dev/full"),
    ];
    let open = |path| Fd::from(File::open(path).unwrap());
    let request = Request::Open {
        log: Some(open("/dev/zero")),
        files: files
            .iter()
            .map(|(name, path)| ((*name).to_owned(), open(path)))
            .collect(),
    };
    let Request::Open { log, files: back } = client.call("request", &request).unwrap() else {
        panic!()
    };
    assert_eq!(
        inode(&log.unwrap()),
        std::fs::metadata("/dev/zero").unwrap().ino()
    );
    for (name, path) in files {
        assert_eq!(
            inode(&back[name]),
            std::fs::metadata(path).unwrap().ino(),
            "{name}"
        );
    }
    assert!(matches!(
        client.call("request", &Request::Plain(1)).unwrap(),
        Request::Plain(1)
    ));
}

fn a_fault_carries_descriptors() {
    let server = server()
        .handle("fail", |_, (): ()| {
            Err::<(), _>(Fault::new("see the log").with_fd(File::open("/dev/zero")?))
        })
        .handle("fail with", |_, number: usize| {
            let fault = (0..number).fold(Fault::new("many"), |fault, _| fault.with_fd(null()));
            Err::<(), _>(fault)
        })
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    let before = count(&server, &mut client);
    let CallError::Fault(mut fault) = client.call::<_, ()>("fail", &()).unwrap_err() else {
        panic!()
    };
    let mut byte = [1];
    File::from(fault.take_fds().remove(0))
        .read_exact(&mut byte)
        .unwrap();
    assert_eq!(byte, [0]);
    drop(client.call::<_, ()>("fail", &()).unwrap_err());
    for number in [0, 1, 253] {
        match client.call::<_, ()>("fail with", &number).unwrap_err() {
            CallError::Fault(mut fault) => assert_eq!(fault.take_fds().len(), number),
            err => panic!("{err}"),
        }
    }
    settles(&server, &mut client, before);
}

fn a_received_descriptor_is_close_on_exec() {
    let close_on_exec = |fd: RawFd| {
        let flags = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
        let line = flags
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .unwrap()
            .trim()
            .to_owned();
        u32::from_str_radix(&line, 8).unwrap() & nix::libc::O_CLOEXEC as u32 != 0
    };
    let server = server()
        .handle("flags", move |_, fd: Fd| Ok(close_on_exec(fd.as_raw_fd())))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    assert!(client.call::<_, bool>("flags", &null()).unwrap());
    let back: Vec<Fd> = client.call("make", &3_usize).unwrap();
    assert!(back.iter().all(|fd| close_on_exec(fd.as_raw_fd())));
}

fn an_fd_becomes_what_std_has() {
    use std::os::unix::net::UnixStream;
    let server = crate::server()
        .handle("greet", |_, stream: Fd| {
            Ok(UnixStream::from(stream).write_all(b"hello")?)
        })
        .start()
        .unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    server
        .connect()
        .unwrap()
        .call::<_, ()>("greet", &Fd::from(theirs))
        .unwrap();
    let mut text = String::new();
    ours.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
}

fn a_sent_descriptor_stays_ours() {
    let server = server().start().unwrap();
    let mut client = server.connect().unwrap();
    let fd = null();
    let number = fd.as_raw_fd();
    for _ in 0..3 {
        assert_eq!(
            client
                .call::<_, usize>("swallow", std::slice::from_ref(&fd))
                .unwrap(),
            1
        );
    }
    let file = File::from(fd);
    assert_eq!(file.as_raw_fd(), number, "no duplicate was needed");
    assert!(file.metadata().is_ok());
}

fn descriptors_in_refused_arguments_are_closed() {
    let server = server().start().unwrap();
    let mut client = server.connect().unwrap();
    let before = count(&server, &mut client);
    for _ in 0..20 {
        let fds = || vec![null(), null(), null()];
        assert!(matches!(
            client.call::<_, u32>("number", &fds()),
            Err(CallError::TypeMismatch { .. })
        ));
        assert!(matches!(
            client.call::<_, ()>("fds", &(fds(), 1)),
            Err(CallError::TypeMismatch { .. })
        ));
        assert!(matches!(
            client.call::<_, ()>("nothing", &fds()),
            Err(CallError::UnknownName { .. })
        ));
    }
    settles(&server, &mut client, before);
}

fn descriptors_in_unwanted_replies_are_closed() {
    let server = server().start().unwrap();
    let mut client = server.connect().unwrap();
    let before = (count(&server, &mut client), descriptors("self").len());
    for _ in 0..20 {
        assert!(matches!(
            client.call::<_, u32>("make", &7_usize),
            Err(CallError::TypeMismatch { .. })
        ));
        drop(client.begin::<_, Vec<Fd>>("make", &7_usize).unwrap());
    }
    assert_eq!(
        (count(&server, &mut client), descriptors("self").len()),
        before
    );
}

fn large_messages_carry_descriptors_once() {
    let server = server()
        .handle("both", |_, (b, fds): (Bytes, Vec<Fd>)| Ok((fds, b)))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    let before = count(&server, &mut client);
    // Far more than the socket's buffer holds: written in parts, the descriptors with the first of them.
    let bytes = Bytes::from(vec![5; 4 << 20]);
    for _ in 0..3 {
        let (fds, back): (Vec<Fd>, Bytes) = client
            .call(
                "both",
                &(bytes.clone(), (0..16).map(|_| null()).collect::<Vec<_>>()),
            )
            .unwrap();
        assert!(fds.len() == 16 && back == bytes);
    }
    settles(&server, &mut client, before);
}

/// Sends bytes with descriptors as nobody should.
pub fn send(raw: &Raw, bytes: &[u8], fds: &[RawFd]) -> nix::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let rights: &[ControlMessage] = if fds.is_empty() { &[] } else { &rights };
    let socket = raw.stream().as_fd().as_raw_fd();
    sendmsg::<()>(
        socket,
        &[IoSlice::new(bytes)],
        rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
}

fn descriptors_before_the_password_are_refused() {
    let server = server().start().unwrap();
    let mut client = server.connect().unwrap();
    let before = count(&server, &mut client);
    let (read, write) = std::io::pipe().unwrap();
    let raw = Raw::connect(&server);
    let sent = send(&raw, &hello_frame(&server), &[write.as_raw_fd()]);
    drop(write);
    if sent.is_ok() {
        // A kernel before 6.16: discarded on arrival, and the frame announced none.
        assert!(crate::processes::readable(
            &read,
            std::time::Duration::from_secs(5)
        ));
    } else {
        assert_eq!(sent, Err(nix::errno::Errno::EPERM));
    }
    drop(raw);
    let mut raw = Raw::connect(&server);
    raw.write(
        &[
            hello_frame(&server),
            frame(4, 1, 0, 1, b"\x07swallow\x01\x00"),
        ]
        .concat(),
    );
    let answer = raw.read_to_end();
    assert_eq!(
        (answer[24], answer[36]),
        (6, 7),
        "a frame announces a descriptor that did not come"
    );
    settles(&server, &mut client, before);
}

fn near_the_limit_of_descriptors_nothing_is_lost() {
    // For connections, and a few descriptors.
    let definition = server().initialize(|_| Ok(leave_descriptors_free(8)?));
    let server = definition.start().unwrap();
    let mut client = Client::connect(server.address()).unwrap();
    let before = count(&server, &mut client);
    for _ in 0..10 {
        let mut other = Client::connect(server.address()).unwrap();
        assert_eq!(
            other
                .call::<_, usize>("swallow", &[null()].as_slice())
                .unwrap(),
            1
        );
        // More than fit: the connection ends, because nobody knows which are missing.
        let many: Vec<Fd> = (0..40).map(|_| null()).collect();
        let err = other.call::<_, usize>("swallow", &many).unwrap_err();
        assert!(
            matches!(err, CallError::Protocol(_) | CallError::Disconnected { .. }),
            "{err}"
        );
        drop(other);
        settles(&server, &mut client, before);
    }
}

fn an_unfinished_frame_brings_no_more_descriptors() {
    let server = server().start().unwrap();
    let mut client = server.connect().unwrap();
    let before = count(&server, &mut client);
    let null = null();
    let mut raw = Raw::welcomed(&server);
    let many = vec![null.as_raw_fd(); 253];
    let mut bytes = frame(4, 253, 0, 1, &[7; 1000]);
    bytes.truncate(12);
    let _ = send(&raw, &bytes, &many);
    for _ in 0..20 {
        let _ = send(&raw, &[7], &many);
        assert!(count(&server, &mut client) <= before + 2 * 253 + 1);
    }
    assert!(!raw.read_to_end().is_empty(), "it is told why");
    drop(raw);
    settles(&server, &mut client, before);
}

fn a_flush_sends_a_first_call_that_has_descriptors() {
    let (entered, enter) = std::io::pipe().unwrap();
    let server = crate::server()
        .keep_fd(&enter)
        .handle("tell", move |_, _: Fd| Ok((&enter).write_all(b"!")?))
        .start()
        .unwrap();
    let mut client = Client::connect(server.address()).unwrap();
    let pending = client.begin::<_, ()>("tell", &null()).unwrap();
    client.flush().unwrap();
    let has_come = crate::processes::readable(&entered, std::time::Duration::from_secs(5));
    assert!(has_come, "the call waits for a welcome that nobody reads");
    client.finish(pending).unwrap();
}
