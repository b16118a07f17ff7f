//! The spawner: processes as they were asked for, errors with their numbers, and nobody left behind.

use crate::auth::{drop_rights, is_root};
use crate::harness::leave_descriptors_free;
use crate::processes::{Helper, Watched, with_thread};
use forkserver::spawn::{Command, SpawnError, Spawned, Spawner, Stdio, service};
use forkserver::{Exit, Fd, Listener, Resource, Signal};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

crate::tests![
    a_process_has_what_was_asked_for,
    a_relative_directory_is_the_callers,
    what_found_a_streams_number_free_is_not_inherited,
    streams_are_pipes_files_or_nothing,
    both_streams_are_read_at_once,
    a_working_directory_that_has_been_removed_is_an_error,
    an_end_is_told_truly_and_to_whoever_asks_late,
    what_keeps_a_program_from_running_is_told_with_its_number,
    descriptors_have_their_numbers_and_there_are_no_others,
    descriptors_are_placed_whatever_their_limit,
    limits_groups_and_rights_are_set,
    a_caller_without_rights_gets_no_other_user,
    a_full_descriptor_table_is_an_error,
    without_room_for_a_process_there_is_none,
    sixty_four_threads_spawn_at_once,
    processes_that_nobody_waits_for_are_reaped,
    a_process_outlives_its_request_and_its_spawner,
    a_tied_process_ends_with_the_spawner,
    a_tied_process_ends_with_the_owner,
    a_spawner_that_is_killed_is_a_typed_error,
    a_spawner_is_launched_from_a_program_with_threads,
    a_forked_copy_cannot_spawn,
];

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// What a shell says on its standard output.
fn output(spawner: &Spawner, command: &mut Command) -> String {
    let process = spawner.spawn(command.stdout(Stdio::Piped)).unwrap();
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.exit, Exit::Code(0));
    String::from_utf8(output.stdout).unwrap()
}

fn a_process_has_what_was_asked_for() {
    let spawner = Spawner::start().unwrap();
    std::env::set_current_dir("/usr").unwrap();
    let text = output(
        &spawner,
        shell("echo $0 $1 $HERE; pwd")
            .args(["a b", "c"])
            .env("HERE", "yes"),
    );
    assert_eq!(text, "a b c yes\n/usr\n");
    let text = output(&spawner, shell("pwd; umask").current_dir("/").umask(0o077));
    assert_eq!(text, "/\n0077\n");
    // SAFETY: this process has one thread.
    unsafe { std::env::set_var("LATER", "after the start of the spawner") };
    let text = output(&spawner, &mut shell("echo $LATER"));
    assert_eq!(text, "after the start of the spawner\n");
    let text = output(&spawner, shell("echo .$LATER.$HOME.").env_remove("LATER"));
    assert!(text.starts_with("..") && text.len() > 5, "{text}");
    let text = output(
        &spawner,
        Command::new("/usr/bin/env").env_clear().env("ONLY", "this"),
    );
    assert_eq!(text, "ONLY=this\n");
    let status = output(
        &spawner,
        &mut shell("grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status"),
    );
    let sets = status
        .lines()
        .map(|line| u64::from_str_radix(&line[8..], 16).unwrap());
    // Two signals belong to the C library, and nobody else can reset them.
    let sets: Vec<_> = sets.map(|set| set & !0x1_8000_0000).collect();
    assert_eq!(sets[..2], [0, 0], "nothing is blocked or ignored");
}

fn a_relative_directory_is_the_callers() {
    let spawner = Spawner::start().unwrap();
    let below = std::env::temp_dir().join("below");
    std::fs::create_dir(&below).unwrap();
    std::env::set_current_dir(std::env::temp_dir()).unwrap();
    let text = output(&spawner, shell("pwd -P").current_dir("below"));
    assert_eq!(
        text.trim_end(),
        below.canonicalize().unwrap().to_str().unwrap()
    );
    let text = output(&spawner, shell("pwd").current_dir("/usr"));
    assert_eq!(text, "/usr\n");
    std::fs::remove_dir(below).unwrap();
}

fn what_found_a_streams_number_free_is_not_inherited() {
    Helper::start(|_| {
        let spawner = Spawner::start().unwrap();
        nix::unistd::close(0).unwrap();
        let file = std::fs::File::open("/etc/passwd").unwrap();
        assert_eq!(std::os::fd::AsRawFd::as_raw_fd(&file), 0);
        let text = output(&spawner, &mut shell("readlink /proc/self/fd/0; cat"));
        assert_eq!(text, "/dev/null\n");
        spawner.stop().unwrap();
    })
    .finish();
}

fn streams_are_pipes_files_or_nothing() {
    let spawner = Spawner::start().unwrap();
    let mut cat = spawner
        .spawn(Command::new("cat").stdin(Stdio::Piped).stdout(Stdio::Piped))
        .unwrap();
    cat.stdin
        .take()
        .unwrap()
        .write_all(b"there and back")
        .unwrap();
    let mut text = String::new();
    cat.stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(
        (text.as_str(), cat.wait().unwrap()),
        ("there and back", Exit::Code(0))
    );
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = shell("cat; echo out; echo err >&2");
    command
        .stdin(Stdio::Null)
        .stdout(OwnedFd::from(writer.try_clone().unwrap()));
    command.stderr(OwnedFd::from(writer));
    let mut process = spawner.spawn(&mut command).unwrap();
    drop(command);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(
        (text.as_str(), process.wait().unwrap()),
        ("out\nerr\n", Exit::Code(0))
    );
    // A pipe that is full of what nobody reads does not keep `wait` from closing the other.
    let mut reads = spawner
        .spawn(Command::new("cat").stdin(Stdio::Piped).stdout(Stdio::Null))
        .unwrap();
    assert_eq!(reads.wait().unwrap(), Exit::Code(0));
}

fn both_streams_are_read_at_once() {
    let spawner = Spawner::start().unwrap();
    let script =
        "for n in 1 2; do head -c 200000 /dev/zero; head -c 300000 /dev/zero >&2; done; exit 9";
    let mut command = shell(script);
    command
        .stdin(Stdio::Piped)
        .stdout(Stdio::Piped)
        .stderr(Stdio::Piped);
    let output = spawner
        .spawn(&mut command)
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert_eq!(output.exit, Exit::Code(9));
    assert_eq!(
        (output.stdout.len(), output.stderr.len()),
        (400_000, 600_000)
    );
    let quiet = spawner.spawn(&mut Command::new("true")).unwrap();
    assert!(quiet.wait_with_output().unwrap().stdout.is_empty());
}

fn a_working_directory_that_has_been_removed_is_an_error() {
    let spawner = Spawner::start().unwrap();
    let directory = std::env::temp_dir().join("gone");
    std::fs::create_dir(&directory).unwrap();
    std::env::set_current_dir(&directory).unwrap();
    std::fs::remove_dir(&directory).unwrap();
    let err = spawner.spawn(&mut Command::new("true")).unwrap_err();
    assert!(
        err.to_string().starts_with("find the working directory: "),
        "{err}"
    );
    let mut process = spawner
        .spawn(Command::new("true").current_dir("/"))
        .unwrap();
    assert_eq!(process.wait().unwrap(), Exit::Code(0));
    std::env::set_current_dir("/").unwrap();
}

fn an_end_is_told_truly_and_to_whoever_asks_late() {
    let spawner = Spawner::start().unwrap();
    let mut codes: Vec<Spawned> = [0, 1, 7, 255]
        .iter()
        .map(|code| spawner.spawn(&mut shell(&format!("exit {code}"))).unwrap())
        .collect();
    let mut killed = spawner.spawn(Command::new("sleep").arg("100")).unwrap();
    assert!(killed.try_wait().unwrap().is_none());
    assert!(
        killed
            .wait_timeout(Duration::from_millis(20))
            .unwrap()
            .is_none()
    );
    killed.signal(Signal::SIGTERM).unwrap();
    assert_eq!(killed.wait().unwrap(), Exit::Signal(15));
    assert_eq!(
        killed.wait().unwrap(),
        Exit::Signal(15),
        "as often as one likes"
    );
    let mut killed = spawner.spawn(Command::new("sleep").arg("100")).unwrap();
    killed.kill().unwrap();
    assert_eq!(killed.wait().unwrap(), Exit::Signal(9));
    for (process, code) in codes.iter_mut().zip([0, 1, 7, 255]) {
        assert_eq!(process.wait().unwrap(), Exit::Code(code));
    }
    assert!(codes[0].kill().is_err(), "it is gone");
}

fn what_keeps_a_program_from_running_is_told_with_its_number() {
    let spawner = Spawner::start().unwrap();
    let plain = std::env::temp_dir().join("plain");
    std::fs::write(&plain, "#!/bin/sh\n").unwrap();
    let broken = std::env::temp_dir().join("broken");
    std::fs::write(&broken, "no program").unwrap();
    std::fs::set_permissions(&broken, PermissionsExt::from_mode(0o755)).unwrap();
    let cases: [(Command, i32, &str); 6] = [
        (Command::new("no-such-program"), 2, "execute the program"),
        (Command::new("/no/such/program"), 2, "execute the program"),
        (Command::new(&plain), 13, "execute the program"),
        (Command::new(&broken), 8, "execute the program"),
        (Command::new(""), 2, "execute the program"),
        (Command::new("true\0"), 22, "execute the program"),
    ];
    for (mut command, errno, expected) in cases {
        // Where nobody may look, `PATH` may lead to another number.
        command.env("PATH", "/bin:/usr/bin");
        let err = spawner.spawn(&mut command).unwrap_err();
        let SpawnError::Failed { action, source, .. } = &err else {
            panic!("{err}")
        };
        assert_eq!(
            (action.as_str(), source.raw_os_error()),
            (expected, Some(errno)),
            "{err}"
        );
    }
    for (directory, errno) in [("/no/such", 2), ("/etc/passwd", 20)] {
        let err = spawner
            .spawn(Command::new("true").current_dir(directory))
            .unwrap_err();
        let text = err.to_string();
        assert!(
            text.starts_with("cannot change the directory for true: "),
            "{text}"
        );
        assert!(text.ends_with(&format!("(os error {errno})")), "{text}");
    }
    let err = spawner
        .spawn(shell("").rlimit(Resource::RLIMIT_NOFILE, 10, 5))
        .unwrap_err();
    assert!(err.to_string().contains("set the limits"), "{err}");
    assert_eq!(
        spawner
            .spawn(&mut Command::new("true"))
            .unwrap()
            .wait()
            .unwrap(),
        Exit::Code(0)
    );
    std::fs::remove_file(plain).unwrap();
    std::fs::remove_file(broken).unwrap();
}

fn descriptors_have_their_numbers_and_there_are_no_others() {
    let spawner = Spawner::start().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let fd = || Fd::from(OwnedFd::from(writer.try_clone().unwrap()));
    let null = || Fd::from(std::fs::File::open("/dev/null").unwrap());
    let mut command = shell("echo five >&5; echo nine >&9; ls /proc/self/fd");
    command.fd(fd(), 5).fd(null(), 9).fd(fd(), 9).fd(null(), 30);
    let text = output(&spawner, &mut command);
    let numbers: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
    // 3 is the directory that is being listed.
    assert_eq!(numbers, [0, 1, 2, 3, 30, 5, 9]);
    drop((command, writer));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "five\nnine\n");
    // Numbers that the spawner uses itself, and each other's.
    for number in 3..10 {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut command = shell(&format!("echo x >&{number}"));
        command.fd(OwnedFd::from(writer), number);
        let mut process = spawner.spawn(&mut command).unwrap();
        drop(command);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(
            (text.as_str(), process.wait().unwrap()),
            ("x\n", Exit::Code(0)),
            "{number}"
        );
    }
}

/// The way to their places must not take more room than the places.
fn descriptors_are_placed_whatever_their_limit() {
    if !is_root() {
        // The kernel counts descriptors on their way by users, against limits as low as these; other tests of the
        // same user have some.
        return;
    }
    let spawner = Spawner::start().unwrap();
    let null = || Fd::from(std::fs::File::open("/dev/null").unwrap());
    // The shell needs a few of its own.
    let mut few = shell("ulimit -n");
    few.rlimit(Resource::RLIMIT_NOFILE, 11, 11);
    assert_eq!(output(&spawner, &mut few), "11\n");
    let leave = |_: &mut forkserver::Context, free: usize| Ok(leave_descriptors_free(free)?);
    let server = service(crate::server().handle("leave", leave))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("leave", &50_usize).unwrap();
    let with_more = Spawner::over(server);
    let mut more = shell("test -e /proc/self/fd/500");
    more.fd(null(), 500)
        .rlimit(Resource::RLIMIT_NOFILE, 600, 600);
    assert_eq!(output(&with_more, &mut more), "");
    drop(client);
    for number in [-1, i32::MIN, i32::MAX - 1, i32::MAX] {
        let err = spawner.spawn(Command::new("true").fd(null(), number));
        let err = err.unwrap_err().to_string();
        let expected = "cannot place the descriptors for true: ";
        assert!(err.starts_with(expected), "{number}: {err}");
    }
}

fn limits_groups_and_rights_are_set() {
    let spawner = Spawner::start().unwrap();
    let status = "cat /proc/self/status; ulimit -n; cut -d' ' -f1,5,6 /proc/self/stat";
    let mut command = shell(status);
    command
        .rlimit(Resource::RLIMIT_NOFILE, 77, 88)
        .no_new_privileges()
        .new_session();
    if is_root() {
        command.user(65_534, 65_533, &[7, 8]);
    }
    let mut process = spawner.spawn(command.stdout(Stdio::Piped)).unwrap();
    let mut text = String::new();
    process
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    let has = |line: &str| {
        assert!(
            text.lines().any(|known| known.trim_end() == line),
            "{line}: {text}"
        )
    };
    has("NoNewPrivs:\t1");
    has("77");
    let leader = process.pid();
    assert!(
        text.contains(&format!(" {leader} {leader}\n")),
        "session and group: {text}"
    );
    assert_eq!(process.wait().unwrap(), Exit::Code(0));
    if is_root() {
        has("Uid:\t65534\t65534\t65534\t65534");
        has("Gid:\t65533\t65533\t65533\t65533");
        has("Groups:\t7 8");
    }
    let mut own_group = spawner
        .spawn(shell(status).process_group(0).stdout(Stdio::Piped))
        .unwrap();
    let mut text = String::new();
    own_group
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert!(text.contains(&format!(" {} ", own_group.pid())), "{text}");
    assert_eq!(own_group.wait().unwrap(), Exit::Code(0));
}

fn a_caller_without_rights_gets_no_other_user() {
    if !is_root() {
        return;
    }
    std::fs::set_permissions(std::env::temp_dir(), PermissionsExt::from_mode(0o755)).unwrap();
    let definition = service(crate::server().listen(Listener::private().for_user(65_534, 65_534)));
    let server = definition.start().unwrap();
    Helper::start(|_| {
        drop_rights();
        // A spawner's handle is of its owner's process; this one asks as any client may.
        let mut client = forkserver::Client::connect(server.address()).unwrap();
        let answer: Result<(), _> = client.call("status", &1_u64);
        assert!(answer.is_err(), "types are checked here as well");
    })
    .finish();
    let spawner = Spawner::over(server);
    drop_effective_rights();
    let err = spawner
        .spawn(Command::new("true").user(0, 0, &[]))
        .unwrap_err();
    let SpawnError::Failed { action, source, .. } = &err else {
        panic!("{err}")
    };
    assert_eq!(
        (action.as_str(), source.raw_os_error()),
        ("change the user", Some(1))
    );
    let text = output(&spawner, &mut shell("id -u; id -G"));
    assert_eq!(
        text, "65534\n65534\n",
        "its own rights, and not the spawner's"
    );
    let text = output(&spawner, shell("id -u").user(65_534, 65_534, &[]));
    assert_eq!(text, "65534\n");
    nix::unistd::seteuid(nix::unistd::Uid::from_raw(0)).unwrap();
    nix::unistd::setegid(nix::unistd::Gid::from_raw(0)).unwrap();
}

/// As somebody else, until somebody takes the rights back.
fn drop_effective_rights() {
    nix::unistd::setegid(nix::unistd::Gid::from_raw(65_534)).unwrap();
    nix::unistd::seteuid(nix::unistd::Uid::from_raw(65_534)).unwrap();
}

fn a_full_descriptor_table_is_an_error() {
    if !is_root() {
        // The kernel counts descriptors on their way by users, against limits as low as these; other tests of the
        // same user have some.
        return;
    }
    let definition = service(
        crate::server().handle("leave", |_, free: usize| Ok(leave_descriptors_free(free)?)),
    );
    let server = definition.start().unwrap();
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("leave", &1000_usize).unwrap();
    let spawner = Spawner::over(server);
    let mark = std::env::temp_dir().join("mark");
    let spawn = || spawner.spawn(Command::new("touch").arg(&mark));
    // Its connection is there.
    assert_eq!(spawn().unwrap().wait().unwrap(), Exit::Code(0));
    std::fs::remove_file(&mark).unwrap();
    let mut refused = 0;
    for free in 3..10_usize {
        client.call::<_, ()>("leave", &free).unwrap();
        let before = refused;
        match spawn() {
            Ok(mut process) => assert_eq!(process.wait().unwrap(), Exit::Code(0)),
            Err(SpawnError::Failed { source, .. }) => {
                assert_eq!(source.raw_os_error(), Some(24));
                refused += 1;
                has_no_children(&spawner);
            }
            Err(SpawnError::Call(_) | SpawnError::SpawnerGone) => refused += 1,
            Err(err) => panic!("{err}"),
        }
        let is_refused = refused > before;
        assert_ne!(std::fs::remove_file(&mark).is_ok(), is_refused, "{free}");
        client.call::<_, ()>("leave", &1000_usize).unwrap();
    }
    assert!(refused > 0);
    assert_eq!(spawn().unwrap().wait().unwrap(), Exit::Code(0));
    std::fs::remove_file(&mark).unwrap();
    drop(client);
}

fn without_room_for_a_process_there_is_none() {
    if !is_root() {
        // The kernel counts descriptors on their way by users, against limits as low as these; other tests of the
        // same user have some.
        return;
    }
    let spawner = Spawner::start().unwrap();
    let mark = std::env::temp_dir().join("mark");
    let null = || std::fs::File::open("/dev/null").unwrap();
    let mut inheriting = Command::new("touch");
    inheriting.arg(&mark);
    let mut given = Command::new("touch");
    given.arg(&mark).stdin(null()).stdout(null()).stderr(null());
    // The connection is there.
    assert_eq!(
        spawner.spawn(&mut given).unwrap().wait().unwrap(),
        Exit::Code(0)
    );
    std::fs::remove_file(&mark).unwrap();
    let limit = nix::sys::resource::getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    for command in [&mut inheriting, &mut given] {
        let mut started = 0;
        for free in 0..8 {
            leave_descriptors_free(free).unwrap();
            let process = spawner.spawn(command);
            nix::sys::resource::setrlimit(Resource::RLIMIT_NOFILE, limit.0, limit.1).unwrap();
            if let Ok(mut process) = process {
                assert_eq!(process.wait().unwrap(), Exit::Code(0));
                std::fs::remove_file(&mark).unwrap();
                started += 1;
            }
            has_no_children(&spawner);
            assert!(!mark.exists(), "nobody knows of it, with {free} free");
        }
        assert!(started > 2);
    }
}

fn sixty_four_threads_spawn_at_once() {
    let spawner = Spawner::start().unwrap();
    std::thread::scope(|scope| {
        for n in 0..64 {
            let spawner = &spawner;
            scope.spawn(move || {
                for round in 0..4 {
                    let code = (n * 4 + round) % 256;
                    let mut process = spawner.spawn(&mut shell(&format!("exit {code}"))).unwrap();
                    assert_eq!(process.wait().unwrap(), Exit::Code(code));
                }
            });
        }
    });
    has_no_children(&spawner);
    drop(spawner);
    while std::fs::read_dir("/proc/self/task").unwrap().count() > 1 {
        std::thread::yield_now();
    }
}

/// Waits until a spawner has no children, not even dead ones.
fn has_no_children(spawner: &Spawner) {
    let tasks = format!("/proc/{}/task", spawner.pid().unwrap());
    let children = || {
        let tasks = std::fs::read_dir(&tasks).unwrap().flatten();
        let lists =
            tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        lists.collect::<String>()
    };
    while !children().trim().is_empty() {
        std::thread::yield_now();
    }
}

fn processes_that_nobody_waits_for_are_reaped() {
    let spawner = Spawner::start().unwrap();
    for _ in 0..20 {
        drop(spawner.spawn(&mut Command::new("true")).unwrap());
    }
    let kept: Vec<_> = (0..20)
        .map(|_| spawner.spawn(&mut Command::new("true")).unwrap())
        .collect();
    has_no_children(&spawner);
    for mut process in kept {
        assert_eq!(process.wait().unwrap(), Exit::Code(0), "it is remembered");
    }
    let before = crate::harness::descriptors(&spawner.pid().unwrap().to_string()).len();
    for _ in 0..20 {
        spawner
            .spawn(&mut Command::new("true"))
            .unwrap()
            .wait()
            .unwrap();
    }
    let after = crate::harness::descriptors(&spawner.pid().unwrap().to_string()).len();
    assert!(after <= before, "{before} descriptors, and then {after}");
}

fn a_process_outlives_its_request_and_its_spawner() {
    let spawner = Spawner::start().unwrap();
    let process = spawner.spawn(Command::new("sleep").arg("100")).unwrap();
    let watched = Watched::open(process.pid() as i32);
    drop(process);
    assert_eq!(spawner.stop().unwrap(), Exit::Code(0));
    assert!(watched.is_alive());
    nix::sys::signal::kill(watched.pid, Signal::SIGKILL).unwrap();
    watched.ends_within(Duration::from_secs(5));
    watched.reap();
}

fn a_tied_process_ends_with_the_spawner() {
    let spawner = Spawner::start().unwrap();
    let process = spawner
        .spawn(Command::new("sleep").arg("100").tied(true))
        .unwrap();
    let watched = Watched::open(process.pid() as i32);
    assert_eq!(spawner.stop().unwrap(), Exit::Code(0));
    assert!(
        !watched.is_alive(),
        "it is dead, and reaped, before the spawner is"
    );

    let spawner = Spawner::start().unwrap();
    let process = spawner
        .spawn(Command::new("sleep").arg("100").tied(true))
        .unwrap();
    let watched = Watched::open(process.pid() as i32);
    let pid = nix::unistd::Pid::from_raw(spawner.pid().unwrap() as i32);
    let spawners = Watched::open(pid.as_raw());
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    watched.ends_within(Duration::from_secs(5));
    // It is ours to be reaped when all threads of its parent are gone.
    spawners.ends_within(Duration::from_secs(5));
    watched.reap();
}

fn a_tied_process_ends_with_the_owner() {
    let mut owner = Helper::start(|test| {
        let spawner = Spawner::start().unwrap();
        let tied = spawner
            .spawn(Command::new("sleep").arg("100").tied(true))
            .unwrap();
        let free = spawner.spawn(Command::new("sleep").arg("100")).unwrap();
        test.say(spawner.pid().unwrap());
        test.say(tied.pid());
        test.say(free.pid());
        test.wait();
    });
    let [spawner, tied, free] = [owner.hear_pid(), owner.hear_pid(), owner.hear_pid()];
    owner.kill();
    tied.ends_within(Duration::from_secs(2));
    spawner.ends_within(Duration::from_secs(2));
    spawner.reap();
    assert!(free.is_alive());
    nix::sys::signal::kill(free.pid, Signal::SIGKILL).unwrap();
    free.ends_within(Duration::from_secs(5));
    free.reap();
}

fn a_spawner_that_is_killed_is_a_typed_error() {
    let spawner = Spawner::start().unwrap();
    let mut process = spawner.spawn(Command::new("sleep").arg("100")).unwrap();
    let pid = nix::unistd::Pid::from_raw(spawner.pid().unwrap() as i32);
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    Watched::open(pid.as_raw()).ends_within(Duration::from_secs(5));
    let err = spawner.spawn(&mut Command::new("true")).unwrap_err();
    assert!(matches!(err, SpawnError::SpawnerGone), "{err}");
    process.kill().expect("the pidfd is ours");
    let err = process.wait().unwrap_err();
    assert!(matches!(err, SpawnError::SpawnerGone), "{err}");
    Watched::open(process.pid() as i32).reap();
}

fn a_spawner_is_launched_from_a_program_with_threads() {
    with_thread(|| {
        let spawner = Spawner::launch().unwrap();
        assert_eq!(output(&spawner, &mut shell("echo launched")), "launched\n");
        let text = output(&spawner, &mut shell("ls /proc/self/fd; env"));
        assert!(
            text.starts_with("0\n1\n2\n3\n") && !text.contains("\n4\n"),
            "{text}"
        );
        assert!(!text.contains("FORKSERVER_LAUNCHED"), "{text}");
        assert_eq!(spawner.stop().unwrap(), Exit::Code(0));
    });
}

fn a_forked_copy_cannot_spawn() {
    let spawner = Spawner::start().unwrap();
    let mut process = spawner.spawn(Command::new("sleep").arg("100")).unwrap();
    Helper::start(|_| {
        let err = spawner.spawn(&mut Command::new("true")).unwrap_err();
        assert!(matches!(err, SpawnError::WrongProcess), "{err}");
        process.kill().expect("a pidfd is of use everywhere");
        let err = process.wait().unwrap_err();
        assert!(matches!(err, SpawnError::WrongProcess), "{err}");
    })
    .finish();
    assert_eq!(process.wait().unwrap(), Exit::Signal(9));
    assert_eq!(output(&spawner, &mut shell("echo still")), "still\n");
}
