//! A listener that speaks the format of Passenger's `AbstractServer`: what the original answers, and what it died of.
//!
//! Of the catalogue of the original: a wrong password is not answered (2), neither is an unknown name; after `kill -9` a call
//! fails, and works again behind the next start (5, 6). Its starting twice is another type here; that random numbers differ
//! from start to start (1) is tested with the lives of servers.

use crate::processes::readable;
use forkserver::passenger::{Client, Error, MessageChannel};
use forkserver::{Bytes, Event, Fault, Limits, Listener, Password, Server, ServerHandle};
use std::io::{BufRead, BufReader, Lines, PipeReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

crate::tests![
    handlers_of_strings_answer_with_arrays,
    strings_that_are_no_text_are_for_handlers_of_bytes,
    a_handler_may_converse_in_arrays_scalars_and_descriptors,
    what_came_behind_the_request_is_the_handlers,
    nothing_is_said_without_the_password,
    a_request_that_cannot_be_answered_closes_its_connection_and_is_told,
    what_killed_the_original_is_survived,
    a_request_may_come_byte_by_byte,
    the_longest_request_passes_and_a_longer_one_cannot_be_said,
    a_result_that_is_too_long_for_an_array_is_not_sent,
    silence_and_slowness_are_ended_at_their_deadlines,
    a_hundred_silent_clients_keep_nobody_out,
    a_handler_that_waits_is_told_to_stop,
    the_owners_own_connections_speak_the_native_protocol,
    names_of_conversations_are_unknown_to_native_clients,
    a_killed_server_is_replaced_at_the_same_path,
    python_client_calls_our_server,
];

const PASSWORD: &[u8] = b"a password of the original's kind";

fn path() -> std::path::PathBuf {
    std::env::temp_dir().join("p")
}

fn definition() -> Server {
    let password = Password::new(PASSWORD).unwrap();
    crate::server()
        .listen(Listener::at(path()).password(password).passenger())
        .handle("hello", |_, (first, last): (String, String)| {
            Ok(format!("Hello {first} {last}"))
        })
        .handle("split", |_, text: String| {
            Ok(text.split(' ').map(String::from).collect::<Vec<_>>())
        })
        .handle("nothing", |_, (): ()| Ok(()))
        .handle("bytes", |_, bytes: Bytes| Ok((bytes.clone(), bytes)))
        .handle("add", |_, (a, b): (u32, u32)| Ok(a + b))
        .handle("length", |_, text: String| Ok(text.len()))
        .handle("fault", |_, (): ()| Err::<(), _>(Fault::new("a fault")))
        .handle("panic", |_, (): ()| -> Result<(), Fault> {
            panic!("a panic")
        })
        .handle("long", |_, (): ()| Ok("x".repeat(65_535)))
        .handle_messages("converse", |_, args, mut channel| {
            channel.write(&args)?;
            converse(&mut channel)
        })
        .handle_messages("rest", |_, _, mut channel| {
            while let Some(scalar) = channel.read_scalar(1 << 20)? {
                channel.write_scalar(&scalar)?;
            }
            Ok(())
        })
        .handle_messages("wait", |_, _, mut channel| {
            channel.write(&["waiting"])?;
            match channel.read() {
                Err(Error::Stopped(reason)) => Ok(channel.write(&[reason.to_string()])?),
                other => Err(Fault::new(format!("{other:?}"))),
            }
        })
}

/// The other side of `mixed` in `passenger_peer.py`.
fn converse(channel: &mut MessageChannel) -> Result<(), Fault> {
    channel.write(&["one", "", "three"])?;
    channel.write_scalar(b"first")?;
    let (mut reader, writer) = std::io::pipe()?;
    channel.send_io(&writer)?;
    drop(writer);
    channel.write_scalar(b"second")?;
    let ends: Option<Vec<u8>> = channel.read_scalar(100)?;
    assert_eq!(ends.as_deref(), Some(&b"firstsecond"[..]));
    assert_eq!(
        channel.read()?.unwrap(),
        [&b"three"[..], b"", b"one"].map(Vec::from)
    );
    let mut text = String::new();
    reader.read_to_string(&mut text)?;
    assert_eq!(text, "it works");
    text.clear();
    let mut file = std::fs::File::from(channel.recv_io()?.into_owned()?);
    file.read_to_string(&mut text)?;
    assert_eq!(text, "so does this");
    Ok(())
}

fn client() -> Client {
    Client::new(path(), PASSWORD).with_timeout(Duration::from_secs(10))
}

fn call(name: &str, args: &[&[u8]]) -> Option<Vec<Vec<u8>>> {
    client().open(name, args).unwrap().read().unwrap()
}

fn hello_works() {
    let said = call("hello", &[b"Joe", b"Dalton"]).unwrap();
    assert_eq!(said, [b"Hello Joe Dalton"]);
}

fn handlers_of_strings_answer_with_arrays() {
    let _server = definition().start().unwrap();
    hello_works();
    assert_eq!(call("split", &[b"a b c"]).unwrap(), [b"a", b"b", b"c"]);
    assert_eq!(call("nothing", &[]), None);
}

fn strings_that_are_no_text_are_for_handlers_of_bytes() {
    let _server = definition().start().unwrap();
    for bytes in [&b""[..], b"text", b"\xff\xfe"] {
        assert_eq!(call("bytes", &[bytes]).unwrap(), [bytes, bytes]);
    }
    assert_eq!(call("hello", &[b"\xff", b"Dalton"]), None);
    hello_works();
}

fn a_handler_may_converse_in_arrays_scalars_and_descriptors() {
    let server = definition().start().unwrap();
    for _ in 0..3 {
        let mut channel = client().open("converse", &["a", ""]).unwrap();
        assert_eq!(channel.read().unwrap().unwrap(), [&b"a"[..], b""]);
        let elements = channel.read().unwrap().unwrap();
        let first = channel.read_scalar(100).unwrap().unwrap();
        let mut file = std::fs::File::from(channel.recv_io().unwrap().into_owned().unwrap());
        let second = channel.read_scalar(100).unwrap().unwrap();
        channel.write_scalar(&[first, second].concat()).unwrap();
        let reversed: Vec<_> = elements.into_iter().rev().collect();
        channel.write(&reversed).unwrap();
        file.write_all(b"it works").unwrap();
        drop(file);
        let (reader, mut writer) = std::io::pipe().unwrap();
        channel.send_io(&reader).unwrap();
        writer.write_all(b"so does this").unwrap();
        drop(writer);
        assert_eq!(channel.read().unwrap(), None);
    }
    is_empty(&server);
}

fn is_empty(server: &ServerHandle) {
    let begun = Instant::now();
    while server.status().unwrap().connections > 0 {
        assert!(begun.elapsed() < Duration::from_secs(5));
        std::thread::yield_now();
    }
}

fn scalar(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

fn array(elements: &[&[u8]]) -> Vec<u8> {
    let body: Vec<u8> = elements
        .iter()
        .flat_map(|element| [element, &b"\0"[..]].concat())
        .collect();
    [&(body.len() as u16).to_be_bytes()[..], &body].concat()
}

/// Sends bytes, finishes, and says what came back.
fn raw(bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(path()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut seen = Vec::new();
    let _ = stream.read_to_end(&mut seen);
    seen
}

fn what_came_behind_the_request_is_the_handlers() {
    let _server = definition().start().unwrap();
    let request = [scalar(PASSWORD), array(&[b"rest"])].concat();
    for rest in [
        scalar(b"one"),
        [scalar(b""), scalar(&[7; 100_000])].concat(),
    ] {
        assert!(raw(&[&request[..], &rest].concat()) == rest);
    }
}

fn nothing_is_said_without_the_password() {
    let server = definition().start().unwrap();
    let request = array(&[b"hello", b"Joe", b"Dalton"]);
    for password in [
        &b""[..],
        b"a password of the original's kinD",
        &[b'x'; 128],
        &[b'x'; 129],
    ] {
        assert_eq!(raw(&[scalar(password), request.clone()].concat()), b"");
    }
    assert_eq!(raw(&[0xff; 4]), b"", "four gigabytes are announced");
    let mut channel = Client::new(path(), "wrong")
        .open("hello", &["a", "b"])
        .unwrap();
    assert_eq!(channel.read().unwrap(), None);
    is_empty(&server);
    hello_works();
}

/// A server that tells what is not answered.
fn telling() -> (ServerHandle, Lines<BufReader<PipeReader>>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let server = definition()
        .keep_fd(&writer)
        .observe(move |event| {
            let text = match event {
                Event::Unanswered { name, reason, .. } => format!("{name}: {reason}\n"),
                Event::Panicked { what, message, .. } => format!("{what} panicked: {message}\n"),
                _ => return,
            };
            (&writer).write_all(text.as_bytes()).unwrap();
        })
        .start()
        .unwrap();
    (server, BufReader::new(reader).lines())
}

fn a_request_that_cannot_be_answered_closes_its_connection_and_is_told() {
    let (_server, mut told) = telling();
    let mut told = || told.next().unwrap().unwrap();
    for (name, args, reason) in [
        ("unknown", &[][..], "unknown: unknown name"),
        ("fault", &[], "fault: a fault"),
        (
            "length",
            &[&b"x"[..]],
            "length: the result is not made of strings alone",
        ),
    ] {
        assert_eq!(call(name, args), None);
        assert_eq!(told(), reason);
    }
    for (name, args) in [("add", &[&b"1"[..], b"2"][..]), ("hello", &[b"alone"])] {
        assert_eq!(call(name, args), None);
        assert!(told().starts_with(&format!("{name}: ")));
    }
    assert_eq!(call("panic", &[]), None);
    assert_eq!(told(), "panic panicked: a panic");
    assert!(told().starts_with("panic: "));
    hello_works();
}

fn what_killed_the_original_is_survived() {
    let server = definition().start().unwrap();
    let good = [scalar(PASSWORD), array(&[b"hello", b"Joe", b"Dalton"])].concat();
    // Cut anywhere, and closed.
    for len in 0..good.len() {
        assert_eq!(raw(&good[..len]), b"", "{len} bytes");
    }
    // No elements; bytes behind the last one; a client that is gone before the answer.
    for body in [&b"\0\0"[..], b"\0\x01a", b"\0\x03a\0b"] {
        raw(&[&scalar(PASSWORD)[..], body].concat());
    }
    for _ in 0..100 {
        let mut stream = UnixStream::connect(path()).unwrap();
        stream.write_all(&good).unwrap();
    }
    is_empty(&server);
    hello_works();
}

fn a_request_may_come_byte_by_byte() {
    let _server = definition().start().unwrap();
    let mut stream = UnixStream::connect(path()).unwrap();
    for byte in [scalar(PASSWORD), array(&[b"hello", b"Joe", b"Dalton"])].concat() {
        stream.write_all(&[byte]).unwrap();
        std::thread::yield_now();
    }
    let mut seen = Vec::new();
    stream.read_to_end(&mut seen).unwrap();
    assert_eq!(seen, array(&[b"Hello Joe Dalton"]));
}

fn the_longest_request_passes_and_a_longer_one_cannot_be_said() {
    let _server = definition().start().unwrap();
    let longest = vec![b'x'; 65_535 - "split\0".len() - 1];
    assert_eq!(
        call("split", &[&longest]).unwrap(),
        std::slice::from_ref(&longest)
    );
    let longer = [&longest[..], b"x"].concat();
    let err = client().open("split", &[&longer]).unwrap_err();
    assert!(matches!(err, Error::TooLarge { .. }), "{err}");
}

fn a_result_that_is_too_long_for_an_array_is_not_sent() {
    let (_server, mut told) = telling();
    assert_eq!(call("long", &[]), None);
    assert!(told.next().unwrap().unwrap().starts_with("long: "));
    hello_works();
}

fn silence_and_slowness_are_ended_at_their_deadlines() {
    let mut limits = Limits::default();
    limits.auth_timeout = Duration::from_millis(200);
    limits.idle_timeout = Some(Duration::from_millis(300));
    limits.frame_timeout = Duration::from_millis(100);
    let _server = definition().limits(limits).start().unwrap();
    let half = [&scalar(PASSWORD)[..], &array(&[b"hello"])[..4]].concat();
    for (bytes, limit) in [
        (vec![], 200),
        (scalar(PASSWORD)[..7].to_vec(), 200),
        (scalar(PASSWORD), 300),
        (half, 100),
    ] {
        let mut stream = UnixStream::connect(path()).unwrap();
        let begun = Instant::now();
        stream.write_all(&bytes).unwrap();
        assert!(readable(&stream, Duration::from_secs(5)));
        let took = begun.elapsed().as_millis();
        assert!((limit - 10..limit * 5).contains(&took), "{took} of {limit}");
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    }
}

fn a_hundred_silent_clients_keep_nobody_out() {
    let server = definition().start().unwrap();
    let silent: Vec<_> = (0..100)
        .map(|_| UnixStream::connect(path()).unwrap())
        .collect();
    hello_works();
    drop(silent);
    is_empty(&server);
}

fn a_handler_that_waits_is_told_to_stop() {
    let server = definition().start().unwrap();
    let mut channel = client().open::<&str>("wait", &[]).unwrap();
    assert_eq!(channel.read().unwrap().unwrap(), [b"waiting"]);
    assert_eq!(server.status().unwrap().streams, 1);
    let begun = Instant::now();
    assert_eq!(server.stop().unwrap(), forkserver::Exit::Code(0));
    assert!(begun.elapsed() < Duration::from_secs(1));
    let said = channel.read().unwrap().unwrap();
    assert_eq!(said, [b"the server is stopping"]);
}

fn the_owners_own_connections_speak_the_native_protocol() {
    let server = definition().start().unwrap();
    let mut client = server.connect().unwrap();
    assert_eq!(client.call::<_, u32>("add", &(1_u32, 2_u32)).unwrap(), 3);
}

fn names_of_conversations_are_unknown_to_native_clients() {
    let server = definition()
        .listen(Listener::private().name("native"))
        .start()
        .unwrap();
    let address = server.address_of("native").unwrap();
    let mut client = forkserver::Client::connect(address).unwrap();
    let err = client.call::<_, ()>("converse", &()).unwrap_err();
    assert!(
        matches!(err, forkserver::CallError::UnknownName { .. }),
        "{err}"
    );
    assert_eq!(client.call::<_, u32>("add", &(1_u32, 2_u32)).unwrap(), 3);
    let err = definition()
        .handle_messages("add", |_, _, _| Ok(()))
        .start()
        .unwrap_err();
    assert!(
        matches!(err, forkserver::StartError::DuplicateHandler { .. }),
        "{err}"
    );
}

fn a_killed_server_is_replaced_at_the_same_path() {
    let server = definition().start().unwrap();
    hello_works();
    server.kill().unwrap();
    let err = client().open("hello", &["a", "b"]).unwrap_err();
    assert!(matches!(err, Error::NotRunning { .. }), "{err}");
    let _server = definition().start().unwrap();
    hello_works();
}

fn python_client_calls_our_server() {
    let _server = definition().start().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/passenger_peer.py");
    let hex: String = PASSWORD.iter().map(|byte| format!("{byte:02x}")).collect();
    let output = std::process::Command::new("python3")
        .args([script, "client"])
        .arg(path())
        .arg(hex)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.stdout == b"done\n", "{said}");
}
