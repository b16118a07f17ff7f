//! The password, and who is at the other end.

use crate::hostile::{Raw, call_frame, frame, hello, hello_frame};
use crate::lifecycle::echo;
use crate::processes::Helper;
use forkserver::{
    Address, CallError, Client, ConnectError, Error, Listener, Password, Server, ServerHandle,
};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

crate::tests![
    only_the_right_password_opens,
    a_wrong_password_is_a_typed_error,
    another_version_or_codec_is_refused,
    nothing_is_decoded_before_the_password,
    a_squatter_gets_nothing,
    a_relay_gets_nothing,
    a_restarted_server_is_not_the_old_one,
    the_password_is_nowhere_to_be_read,
    a_password_of_ones_own,
    another_user_is_turned_away,
    a_server_that_keeps_its_rights_serves_an_owner_that_has_none,
];

/// What a server answers to a hello with this password and a call.
fn answer(server: &ServerHandle, password: &[u8]) -> Vec<u8> {
    let mut raw = Raw::connect(server);
    raw.write(&[hello(password), call_frame(1, "echo", b"\x01x")].concat());
    raw.finish_writing();
    raw.read_to_end()
}

fn only_the_right_password_opens() {
    let server = echo().start().unwrap();
    let password = server.address().password().as_bytes().to_vec();
    let good = answer(&server, &password);
    assert_eq!(
        (good[0], good[24], &good[good.len() - 2..]),
        (2, 5, &b"\x01x"[..])
    );
    let denied = frame(3, 0, 0, 0, &[1]);
    let flipped = (0..password.len() * 8).map(|bit| {
        let mut wrong = password.clone();
        wrong[bit / 8] ^= 1 << (bit % 8);
        wrong
    });
    let prefixes = (0..password.len()).map(|len| password[..len].to_vec());
    let suffixes = (1..password.len()).map(|start| password[start..].to_vec());
    let longer = [&password[..], b"\0"].concat();
    let twice = [&password[..], &password].concat();
    let shifted = [b"\0", &password[..]].concat();
    let fixed = [longer, twice, shifted, vec![0; 32], vec![], vec![0; 96]];
    for wrong in flipped.chain(prefixes).chain(suffixes).chain(fixed) {
        assert_eq!(answer(&server, &wrong), denied, "{wrong:?}");
    }
    assert_eq!(answer(&server, &password), good);
}

pub fn with_password(server: &ServerHandle, password: Password) -> Address {
    with_password_at(server.address(), &password)
}

pub fn with_password_at(known: &Address, password: &Password) -> Address {
    // An address with another password, by way of its written form.
    let mut text = String::new();
    std::fs::File::from(known.to_fd().unwrap())
        .read_to_string(&mut text)
        .unwrap();
    let hex: String = password
        .as_bytes()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let text = text.lines().map(|line| match line.split_once(' ') {
        Some(("password", _)) => format!("password {hex}\n"),
        _ => format!("{line}\n"),
    });
    address(&text.collect::<String>())
}

fn address(text: &str) -> Address {
    let (read, mut write) = std::io::pipe().unwrap();
    write.write_all(text.as_bytes()).unwrap();
    drop(write);
    Address::from_fd(read).unwrap()
}

fn a_wrong_password_is_a_typed_error() {
    let server = echo().start().unwrap();
    let wrong = with_password(&server, Password::new([7; 32]).unwrap());
    let mut client = Client::connect(&wrong).expect("the password leaves with the first call");
    let err = client.call::<_, String>("echo", "x").unwrap_err();
    assert!(matches!(err, CallError::Denied(_)), "{err}");
    assert_eq!(err.delivery(), forkserver::Delivery::NotSent);
    assert!(matches!(
        client.call::<_, String>("echo", "x"),
        Err(CallError::Disconnected { .. })
    ));
    let mut client = Client::connect(&wrong).unwrap();
    assert!(matches!(
        client.authenticate(),
        Err(ConnectError::Denied(_))
    ));
}

fn another_version_or_codec_is_refused() {
    let server = echo().start().unwrap();
    let denied = |place: usize, reason: u8| {
        let mut wrong = hello_frame(&server);
        wrong[place] = 77;
        let mut raw = Raw::connect(&server);
        raw.write(&wrong);
        assert_eq!(raw.read_to_end(), frame(3, 0, 0, 0, &[reason]));
    };
    denied(16, 2);
    denied(17, 3);
}

fn nothing_is_decoded_before_the_password() {
    // The handler's argument would tell if it was ever decoded.
    let (mut told, tell) = std::io::pipe().unwrap();
    static TELL: std::sync::OnceLock<std::io::PipeWriter> = std::sync::OnceLock::new();
    let tell = TELL.get_or_init(|| tell);
    struct Telling;
    impl<'de> serde::Deserialize<'de> for Telling {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Telling, D::Error> {
            let _ = TELL.get().unwrap().write_all(b"!");
            u8::deserialize(deserializer).map(|_| Telling)
        }
    }
    let server = crate::server()
        .keep_fd(tell)
        .handle("echo", |_, _: Telling| Ok(()))
        .start()
        .unwrap();
    let mut raw = Raw::connect(&server);
    raw.write(&[hello(&[1; 32]), call_frame(1, "echo", b"\x01")].concat());
    raw.read_to_end();
    assert!(!crate::processes::readable(
        &told,
        std::time::Duration::ZERO
    ));
    server
        .connect()
        .unwrap()
        .call::<_, ()>("echo", &1_u8)
        .unwrap();
    told.read_exact(&mut [0]).unwrap();
    server.stop().unwrap();
    // The static is not dropped at the end of the test.
    // SAFETY: nobody uses it any more.
    unsafe { nix::libc::close(std::os::fd::AsRawFd::as_raw_fd(tell)) };
}

/// Somebody else listens at the server's path, and says what came.
fn impostor(path: &std::path::Path, relay_to: Option<&std::path::Path>) -> Helper {
    let mut impostor = Helper::start(|test| {
        let listener = UnixListener::bind(path).unwrap();
        test.say("listening");
        let (mut client, _) = listener.accept().unwrap();
        let _real = relay_to.map(|path| UnixStream::connect(path).unwrap());
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).unwrap();
        test.say(bytes.len());
    });
    assert_eq!(impostor.hear(), "listening");
    impostor
}

fn a_squatter_gets_nothing() {
    let server = echo().start().unwrap();
    let path = server.address().path().to_owned();
    std::fs::remove_file(&path).unwrap();
    let mut squatter = impostor(&path, None);
    assert!(matches!(
        Client::connect(server.address()),
        Err(ConnectError::Impostor { .. })
    ));
    assert_eq!(squatter.hear(), "0");
    squatter.finish();
    // The owner's own way does not need the path.
    crate::lifecycle::call_echo(&server);
    server.stop().unwrap();
    assert!(path.exists(), "what is not ours is not removed");
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

fn a_relay_gets_nothing() {
    let server = echo().start().unwrap();
    let path = server.address().path().to_owned();
    let moved = path.with_file_name("moved");
    std::fs::rename(&path, &moved).unwrap();
    let mut relay = impostor(&path, Some(&moved));
    assert!(matches!(
        Client::connect(server.address()),
        Err(ConnectError::Impostor { .. })
    ));
    assert_eq!(relay.hear(), "0");
    relay.finish();
    std::fs::remove_file(&path).unwrap();
    std::fs::rename(&moved, &path).unwrap();
    assert_eq!(
        Client::connect(server.address())
            .unwrap()
            .call::<_, String>("echo", "x")
            .unwrap(),
        "x"
    );
}

fn a_restarted_server_is_not_the_old_one() {
    let path = std::env::temp_dir().join("s");
    let listener = Listener::at(&path).password(Password::new([1; 16]).unwrap());
    let definition = echo().listen(listener);
    let old = definition.start().unwrap();
    let address = old.address().clone();
    old.stop().unwrap();
    let _new = definition.start().unwrap();
    assert!(matches!(
        Client::connect(&address),
        Err(ConnectError::Impostor { .. })
    ));
}

fn the_password_is_nowhere_to_be_read() {
    let mark = *b"PASSWORD-THAT-NOBODY-MUST-SEE-00";
    let definition = echo().listen(Listener::private().password(Password::new(mark).unwrap()));
    let server = definition.start().unwrap();
    let client = server.connect().unwrap();
    let shown = format!(
        "{definition:?} {server:?} {:?} {client:?} {:#?}",
        server.address(),
        server.address().password()
    );
    let mut places = vec![shown.into_bytes()];
    for process in ["self".to_owned(), server.pid().to_string()] {
        for file in ["cmdline", "environ", "comm", "status", "maps"] {
            places.push(std::fs::read(format!("/proc/{process}/{file}")).unwrap());
        }
    }
    for place in places {
        for window in mark.windows(8) {
            assert!(
                !place.windows(8).any(|bytes| bytes == window),
                "{:?}",
                String::from_utf8_lossy(&place)
            );
            let hex: String = window.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(!String::from_utf8_lossy(&place).contains(&hex));
        }
    }
}

fn a_password_of_ones_own() {
    let password = Password::new("correct horse battery staple").unwrap();
    let server = echo()
        .listen(Listener::private().password(password.clone()))
        .start()
        .unwrap();
    assert_eq!(server.address().password().as_bytes(), password.as_bytes());
    assert_eq!(
        Client::connect(server.address())
            .unwrap()
            .call::<_, String>("echo", "x")
            .unwrap(),
        "x"
    );
    fn short() -> Result<Server, Error> {
        Ok(echo().listen(Listener::private().password(Password::new("short")?)))
    }
    assert!(matches!(short(), Err(Error::Password(_))));
}

const NOBODY: u32 = 65_534;

pub fn drop_rights() {
    let (user, group) = (
        nix::unistd::Uid::from_raw(NOBODY),
        nix::unistd::Gid::from_raw(NOBODY),
    );
    nix::unistd::setgroups(&[group]).unwrap();
    nix::unistd::setresgid(group, group, group).unwrap();
    nix::unistd::setresuid(user, user, user).unwrap();
}

/// Tests about several users need root, as the gate has. Elsewhere they would have nobody to test with.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn another_user_is_turned_away() {
    use std::os::unix::fs::PermissionsExt;
    if !is_root() {
        return;
    }
    let server = echo().start().unwrap();
    let path = server.address().path().to_owned();
    let everybody = |path: &std::path::Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap()
    };
    everybody(&std::env::temp_dir());
    let hello = [hello_frame(&server), call_frame(1, "echo", b"\x01x")].concat();
    Helper::start(|_| {
        drop_rights();
        assert!(
            UnixStream::connect(&path).is_err(),
            "the directory keeps others out"
        );
    })
    .finish();
    everybody(path.parent().unwrap());
    everybody(&path);
    Helper::start(|_| {
        drop_rights();
        let mut stream = UnixStream::connect(&path).unwrap();
        let _ = stream.write_all(&hello);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "the right password of the wrong user");
    })
    .finish();
    crate::lifecycle::call_echo(&server);
}

fn a_server_that_keeps_its_rights_serves_an_owner_that_has_none() {
    use std::os::unix::fs::PermissionsExt;
    if !is_root() {
        return;
    }
    std::fs::set_permissions(std::env::temp_dir(), std::fs::Permissions::from_mode(0o711)).unwrap();
    for stubborn in [false, true] {
        let mut owner = Helper::start(|test| {
            let (mut entered, enter) = std::io::pipe().unwrap();
            let server = crate::server()
                .grace(std::time::Duration::from_millis(200))
                .keep_fd(&enter)
                .listen(Listener::private().for_user(NOBODY, NOBODY))
                .handle("uid", |_, (): ()| Ok(nix::unistd::geteuid().as_raw()))
                .handle("spin", move |_, (): ()| -> Result<(), forkserver::Fault> {
                    (&enter).write_all(b"!")?;
                    loop {
                        std::hint::spin_loop();
                    }
                })
                .start()
                .unwrap();
            test.say(server.address().path().display());
            drop_rights();
            let mut client =
                Client::connect(server.address()).expect("the socket was given to this user");
            assert_eq!(client.call::<_, u32>("uid", &()).unwrap(), 0);
            let mut client = server.connect().expect("a way without a path");
            assert_eq!(client.call::<_, u32>("uid", &()).unwrap(), 0);
            assert!(server.is_running());
            if stubborn {
                // Nobody may kill root: the dead-man switch does.
                let _pending = client.begin::<_, ()>("spin", &()).unwrap();
                entered.read_exact(&mut [0]).unwrap();
                let exit = server
                    .stop_within(std::time::Duration::from_millis(50))
                    .unwrap();
                assert_eq!(exit, forkserver::Exit::Signal(9));
            } else {
                assert_eq!(server.stop().unwrap(), forkserver::Exit::Code(0));
            }
        });
        let path = std::path::PathBuf::from(owner.hear());
        owner.finish();
        assert!(!path.exists() && !path.parent().unwrap().exists());
    }
    std::fs::set_permissions(std::env::temp_dir(), std::fs::Permissions::from_mode(0o700)).unwrap();
}
