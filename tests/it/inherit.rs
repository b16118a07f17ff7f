//! What a server inherits from its owner, and what it does not.

use crate::harness::descriptors;
use crate::lifecycle::echo;
use crate::processes::Helper;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;

crate::tests![
    descriptors_are_poisoned_and_objects_can_be_dropped,
    what_was_opened_last_is_poisoned_whoever_looks,
    a_kept_descriptor_is_kept_and_no_other,
    a_port_of_the_owner_is_free_when_the_owner_closes_it,
    a_server_works_where_the_standard_streams_are_closed,
    a_user_that_is_given_up_does_not_come_back,
    ten_thousand_descriptors_are_no_burden,
];

fn descriptors_are_poisoned_and_objects_can_be_dropped() {
    let path = std::env::temp_dir().join("file");
    std::fs::write(&path, "content").unwrap();
    let mut writer = std::io::BufWriter::new(File::options().append(true).open(&path).unwrap());
    writer.write_all(b"buffered").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let objects = (
        File::open(&path).unwrap(),
        std::fs::read_dir(std::env::temp_dir()).unwrap(),
        writer,
        (listener, stream),
        std::os::unix::net::UnixStream::pair().unwrap(),
    );
    let objects = std::sync::Arc::new(Mutex::new(Some(objects)));
    let inherited = std::sync::Arc::clone(&objects);
    let server = echo()
        .handle("drop", move |_, (): ()| {
            let (mut file, mut directory, mut writer, (listener, mut stream), (mut left, _right)) =
                inherited.lock().unwrap().take().unwrap();
            // Bad file descriptor, each of them.
            let ebadf = |err: std::io::Error| err.raw_os_error() == Some(nix::libc::EBADF);
            let refused = [
                ebadf(file.read(&mut [0]).unwrap_err()),
                directory
                    .next()
                    .is_some_and(|entry| entry.is_err_and(ebadf)),
                ebadf(writer.flush().unwrap_err()),
                listener.accept().is_err(),
                ebadf(stream.write(b"x").unwrap_err()),
                ebadf(left.read(&mut [0]).unwrap_err()),
            ];
            drop((file, directory, listener, stream, left));
            // Its buffer goes nowhere.
            drop(writer);
            Ok(refused)
        })
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    assert_eq!(client.call::<_, [bool; 6]>("drop", &()).unwrap(), [true; 6]);
    assert_eq!(client.call::<_, String>("echo", "alive").unwrap(), "alive");
    drop(server);
    // The owner's objects are as they were.
    let (_, _, writer, _, _) = objects.lock().unwrap().take().unwrap();
    drop(writer);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "contentbuffered");
    std::fs::remove_file(&path).unwrap();
}

fn what_was_opened_last_is_poisoned_whoever_looks() {
    for unchecked in [false, true] {
        let (last, high) = (Mutex::new(None), 200);
        let file = File::open("/dev/zero").unwrap();
        let last = std::sync::Arc::new(last);
        let opened = std::sync::Arc::clone(&last);
        let definition = echo()
            .before_fork(move || {
                let (file, copy) = (File::open("/dev/zero")?, file.try_clone()?);
                // SAFETY: nobody else knows the number, which is closed below.
                assert_eq!(unsafe { nix::libc::dup2(copy.as_raw_fd(), high) }, high);
                *opened.lock().unwrap() = Some(file);
                Ok(())
            })
            .handle("read", move |_, fd: i32| {
                let mut byte = [0_u8];
                // SAFETY: one byte of room, and any number may be tried.
                let read = unsafe { nix::libc::read(fd, byte.as_mut_ptr().cast(), 1) };
                let error = std::io::Error::last_os_error().raw_os_error();
                Ok((read, error == Some(nix::libc::EBADF)))
            });
        // A server started before may have made the kernel remember other descriptors.
        drop(definition.start().unwrap());
        let server = match unchecked {
            // SAFETY: the test has one thread.
            true => unsafe { definition.start_unchecked() }.unwrap(),
            false => definition.start().unwrap(),
        };
        let last = last.lock().unwrap().take().unwrap();
        let mut client = server.connect().unwrap();
        for fd in [last.as_raw_fd(), high] {
            let refused: (isize, bool) = client.call("read", &fd).unwrap();
            assert_eq!(refused, (-1, true), "{fd}");
        }
        // SAFETY: it was made above, and is nobody's.
        unsafe { nix::libc::close(high) };
    }
}

fn a_kept_descriptor_is_kept_and_no_other() {
    let (mut read, write) = std::io::pipe().unwrap();
    let other = File::open("/dev/zero").unwrap();
    let (kept, lost) = (write.as_raw_fd(), other.as_raw_fd());
    let server = echo()
        .keep_fd(&write)
        .handle("write", move |_, (): ()| Ok((&write).write_all(b"kept")?))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("write", &()).unwrap();
    let mut text = [0; 4];
    read.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"kept");
    let theirs = descriptors(&server.pid().to_string());
    let target = |fd: i32| {
        theirs
            .iter()
            .find(|(number, _)| *number == fd.to_string())
            .unwrap()
            .1
            .to_string_lossy()
            .into_owned()
    };
    assert!(target(kept).starts_with("pipe:"));
    assert_eq!(target(lost), "/dev/null");
    let real = theirs.iter().filter(|(number, to)| {
        number.parse::<u32>().unwrap() > 2 && to.to_str() != Some("/dev/null")
    });
    let kinds: Vec<String> = real
        .map(|(_, to)| to.to_string_lossy().split(':').next().unwrap().to_owned())
        .collect();
    // Lifeline, two for signals, the kept one; control, listener and the connection; lock and directory; two
    // wakers and the reserve, the stop of the server's and of the listener's streams, the event sets of the engine and
    // of the control thread.
    let number = |kind: &str| kinds.iter().filter(|known| *known == kind).count();
    assert_eq!(
        (number("pipe"), number("socket"), number("anon_inode")),
        (4, 3, 7),
        "{kinds:?}"
    );
    assert_eq!(kinds.len(), 4 + 3 + 7 + 2, "{kinds:?}");
}

fn a_port_of_the_owner_is_free_when_the_owner_closes_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = echo().start().unwrap();
    drop(listener);
    TcpListener::bind(address).expect("the server does not hold the port");
    drop(server);
}

fn a_server_works_where_the_standard_streams_are_closed() {
    for closed in [vec![0], vec![1], vec![0, 1, 2], vec![1, 2]] {
        Helper::start(|_| {
            for fd in &closed {
                // SAFETY: nobody in this process uses the standard streams.
                unsafe { nix::libc::close(*fd) };
            }
            let before = descriptors("self");
            let server = crate::server()
                .handle("say", |_, (): ()| {
                    println!("this must not reach a socket");
                    std::io::stdout().flush()?;
                    Ok(descriptors("self")
                        .into_iter()
                        .filter(|(n, _)| n.parse::<u32>().unwrap() < 3)
                        .count())
                })
                .start()
                .unwrap();
            let mut client = server.connect().unwrap();
            for _ in 0..3 {
                assert_eq!(client.call::<_, usize>("say", &()).unwrap(), 3);
            }
            drop(client);
            server.stop().unwrap();
            assert_eq!(descriptors("self"), before);
        })
        .finish();
    }
}

fn a_user_that_is_given_up_does_not_come_back() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    std::fs::set_permissions(
        std::env::temp_dir(),
        std::os::unix::fs::PermissionsExt::from_mode(0o1777),
    )
    .unwrap();
    let server = crate::server()
        .user(65_534, 65_534)
        .handle("status", |_, (): ()| {
            Ok(std::fs::read_to_string("/proc/thread-self/status")?)
        })
        .handle("back", |_, (): ()| {
            Ok(nix::unistd::setuid(nix::unistd::Uid::from_raw(0)).is_ok())
        })
        .start()
        .unwrap();
    let mut client = forkserver::Client::connect(server.address()).unwrap();
    let status: String = client.call("status", &()).unwrap();
    for line in [
        "Uid:\t65534\t65534\t65534\t65534",
        "Gid:\t65534\t65534\t65534\t65534",
        "Groups:\t65534",
    ] {
        assert!(status.contains(line), "{status}");
    }
    assert!(!client.call::<_, bool>("back", &()).unwrap());
    let path = server.address().path().to_owned();
    assert_eq!(server.stop().unwrap(), forkserver::Exit::Code(0));
    assert!(!path.exists());
    Helper::start(|_| {
        let nobody = nix::unistd::Uid::from_raw(65_534);
        nix::unistd::setresuid(nobody, nobody, nobody).unwrap();
        let err = echo().user(0, 0).start().unwrap_err();
        assert!(
            matches!(
                &err,
                forkserver::StartError::Io { .. } | forkserver::StartError::Child { .. }
            ),
            "{err}"
        );
    })
    .finish();
    std::fs::set_permissions(
        std::env::temp_dir(),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();
}

fn ten_thousand_descriptors_are_no_burden() {
    let (_, hard) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let null = File::open("/dev/null").unwrap();
    let many: Vec<OwnedFd> = (0..10_000.min(hard - 100))
        .map(|_| null.try_clone().unwrap().into())
        .collect();
    let server = echo().start().unwrap();
    crate::lifecycle::call_echo(&server);
    drop((server, many));
}
