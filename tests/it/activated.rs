//! Sockets that a service manager hands in, to a program that is really executed.

use forkserver::{Address, Client, Listener, Server};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::io::{BufRead, BufReader, Lines, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

crate::tests![
    sockets_that_are_handed_in_are_served_by_name,
    names_that_are_missing_are_made_up,
    a_bound_socket_need_not_listen,
    what_was_meant_for_another_process_is_left_alone,
    what_is_no_listener_is_refused_with_the_reason,
    variables_that_are_malformed_are_refused,
];

/// Says what the program that is executed shall do.
const TASK: &str = "FORKSERVER_ACTIVATED";

/// The program that is executed.
pub fn run_if_activated() {
    if std::env::var_os(TASK).is_none() {
        return;
    }
    nix::unistd::alarm::set(50);
    let listeners = match Listener::activated() {
        Ok(listeners) => listeners,
        Err(err) => {
            println!("{err}");
            std::process::exit(0);
        }
    };
    let again = Listener::activated().map(|again| again.len());
    println!("{} {}", listeners.len(), again.unwrap_or(99));
    for fd in 3..3 + listeners.len() as i32 {
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        println!("{}", fcntl(fd, FcntlArg::F_GETFD).unwrap());
    }
    if !listeners.is_empty() {
        let definition = listeners.into_iter().fold(Server::new(), Server::listen);
        let server = definition
            .handle("where", |ctx, (): ()| {
                let again = Listener::activated()?.len();
                Ok((ctx.listener().to_owned(), again))
            })
            .start()
            .unwrap();
        for status in server.status().unwrap().listeners {
            let address = server.address_of(&status.name).unwrap();
            address.save(saved(&status.name)).unwrap();
            println!("{}", status.name);
        }
        println!("ready");
        let _ = std::io::stdin().read(&mut [0]);
        server.stop().unwrap();
    }
    std::process::exit(0);
}

fn saved(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{name}.address"))
}

/// The program, as the test sees it.
struct Activated {
    pid: Pid,
    said: Lines<BufReader<PipeReader>>,
    end: Option<PipeWriter>,
}

impl Activated {
    /// Executes it with these descriptors from number 3 on, and these variables; `{pid}` stands for its own.
    fn start(fds: &[&dyn AsFd], variables: &[(&str, &str)]) -> Activated {
        let (input, end) = std::io::pipe().unwrap();
        let (said, output) = std::io::pipe().unwrap();
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                // Out of the way of those that are to be made.
                let away = |fd: &dyn AsFd| {
                    let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(200)).unwrap();
                    unsafe { OwnedFd::from_raw_fd(number) }
                };
                let moved: Vec<_> = fds.iter().map(|fd| away(*fd)).collect();
                let mut command = Command::new("/proc/self/exe");
                command
                    .stdin(away(&input))
                    .stdout(away(&output))
                    .env(TASK, "1");
                for (name, value) in variables {
                    let own = std::process::id().to_string();
                    command.env(name, value.replace("{pid}", &own));
                }
                for (number, fd) in (3..).zip(&moved) {
                    assert!(unsafe { nix::libc::dup2(fd.as_raw_fd(), number) } == number);
                }
                let err = command.exec();
                eprintln!("{err}");
                unsafe { nix::libc::_exit(1) }
            }
            ForkResult::Parent { child } => Activated {
                pid: child,
                said: BufReader::new(said).lines(),
                end: Some(end),
            },
        }
    }

    fn hear(&mut self) -> String {
        self.said.next().expect("it says something").unwrap()
    }

    fn says(&mut self, expected: &[&str]) {
        for expected in expected {
            assert_eq!(self.hear(), *expected);
        }
    }
}

impl Drop for Activated {
    fn drop(&mut self) {
        drop(self.end.take());
        let ended = waitpid(self.pid, None).unwrap();
        if !std::thread::panicking() {
            assert_eq!(ended, WaitStatus::Exited(self.pid, 0));
        }
    }
}

/// A listener at a path, which the test removes.
struct Bound(UnixListener, PathBuf);

impl Bound {
    fn new(name: &str) -> Bound {
        let path = std::env::temp_dir().join(name);
        Bound(UnixListener::bind(&path).unwrap(), path)
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // The server leaves it.
        std::fs::remove_file(&self.1).unwrap();
    }
}

fn is_served(name: &str) {
    let address = Address::load(saved(name)).unwrap();
    let mut client = Client::connect(&address).unwrap();
    let (place, again): (String, usize) = client.call("where", &()).unwrap();
    assert_eq!((place.as_str(), again), (name, 0));
    std::fs::remove_file(saved(name)).unwrap();
}

fn sockets_that_are_handed_in_are_served_by_name() {
    let (a, b) = (Bound::new("a"), Bound::new("b"));
    let variables = [
        ("LISTEN_PID", "{pid}"),
        ("LISTEN_FDS", "2"),
        ("LISTEN_FDNAMES", "one:two"),
    ];
    let mut program = Activated::start(&[&a, &b], &variables);
    // Two, and none the second time; both CLOEXEC.
    program.says(&["2 0", "1", "1", "one", "two", "ready"]);
    ["one", "two"].into_iter().for_each(is_served);
    drop(program);
    assert!(a.1.exists() && b.1.exists());
}

fn names_that_are_missing_are_made_up() {
    let (a, b) = (Bound::new("a"), Bound::new("b"));
    let variables = [("LISTEN_PID", "{pid}"), ("LISTEN_FDS", "1")];
    let mut program = Activated::start(&[&a], &variables);
    program.says(&["1 0", "1", "default", "ready"]);
    is_served("default");
    drop(program);
    let variables = [
        ("LISTEN_PID", "{pid}"),
        ("LISTEN_FDS", "2"),
        ("LISTEN_FDNAMES", ":two"),
    ];
    let mut program = Activated::start(&[&a, &b], &variables);
    program.says(&["2 0", "1", "1", "fd3", "two", "ready"]);
    ["fd3", "two"].into_iter().for_each(is_served);
}

fn a_bound_socket_need_not_listen() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};
    let path = std::env::temp_dir().join("bound");
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    bind(fd.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    let variables = [("LISTEN_PID", "{pid}"), ("LISTEN_FDS", "1")];
    let mut program = Activated::start(&[&fd], &variables);
    program.says(&["1 0", "1", "default", "ready"]);
    is_served("default");
    drop(program);
    std::fs::remove_file(path).unwrap();
}

fn what_was_meant_for_another_process_is_left_alone() {
    let a = Bound::new("a");
    for variables in [
        &[("LISTEN_PID", "1"), ("LISTEN_FDS", "1")][..],
        &[("LISTEN_PID", "none"), ("LISTEN_FDS", "1")],
        &[("LISTEN_FDS", "1")],
        &[],
    ] {
        Activated::start(&[&a], variables).says(&["0 0"]);
    }
}

fn what_is_no_listener_is_refused_with_the_reason() {
    let (pipe, _writer) = std::io::pipe().unwrap();
    let (connected, _other) = UnixStream::pair().unwrap();
    let datagram = UnixDatagram::unbound().unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let unbound = {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap()
    };
    let good = Bound::new("good");
    let cases: [(&dyn AsFd, &str); 5] = [
        (&pipe, "it is no Unix socket"),
        (&connected, "it is connected"),
        (&datagram, "it is no stream socket"),
        (&tcp, "it is no Unix socket"),
        (&unbound, "it is not bound to a path"),
    ];
    let two = [("LISTEN_PID", "{pid}"), ("LISTEN_FDS", "2")];
    for (bad, reason) in cases {
        let refused = format!("descriptor 4, which was handed in, cannot be listened on: {reason}");
        Activated::start(&[&good, bad], &two).says(&[&refused]);
    }
    let many = [("LISTEN_PID", "{pid}"), ("LISTEN_FDS", "50")];
    let mut program = Activated::start(&[&good], &many);
    let refused = program.hear();
    assert!(refused.ends_with("it is not open"), "{refused}");
}

fn variables_that_are_malformed_are_refused() {
    let good = Bound::new("good");
    for count in ["", "-1", "two", "4294967297"] {
        let variables = [("LISTEN_PID", "{pid}"), ("LISTEN_FDS", count)];
        let refused = format!("the environment variable LISTEN_FDS is malformed: {count:?}");
        Activated::start(&[&good], &variables).says(&[&refused]);
    }
}
