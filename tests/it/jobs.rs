//! Forked jobs: they begin with what was preloaded, and end with their spawner at the latest.

use crate::processes::{Helper, Watched, with_thread};
use forkserver::spawn::{Command, Job, Jobs, SpawnError, Spawner};
use forkserver::{AnyEntry, Bytes, Entry, Exit, Fault, Fd, Signal, StartError, StreamError};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

crate::tests![
    a_job_has_what_was_preloaded,
    items_go_both_ways_with_descriptors,
    a_job_says_how_it_failed,
    what_a_job_writes_is_its_own,
    a_job_that_is_killed_costs_nobody_else,
    a_preload_that_fails_or_leaves_threads_fails_the_start,
    a_job_has_no_descriptors_but_its_own,
    jobs_end_with_their_spawner,
    jobs_end_with_the_owner,
    a_job_that_hears_nothing_ends_with_its_spawner,
    without_its_mold_a_spawner_has_no_jobs,
    a_mold_that_is_slow_tells_the_truth_later,
    many_threads_ask_for_jobs,
    a_spawner_with_jobs_is_launched,
    jobs_and_programs_come_from_one_spawner,
];

/// A spawner with jobs, as an entry.
pub const ALL: &[&dyn AnyEntry] = &[&WITH_JOBS];

static WITH_JOBS: Entry<u32> = Entry::new("with jobs", |seed| {
    Ok(Jobs::preload(move || Ok(seed * 2))
        .job("seed", |seed, (): (), mut channel| Ok(channel.send(seed)?))
        .serve(crate::server()))
});

struct Table {
    lines: Vec<String>,
    count: AtomicU32,
    file: std::fs::File,
}

fn jobs() -> Jobs<Table> {
    Jobs::preload(|| {
        Ok(Table {
            lines: (0..1000).map(|n| format!("line {n}")).collect(),
            count: AtomicU32::new(0),
            file: std::fs::File::open("/etc/passwd")?,
        })
    })
    .job("line", |table, number: usize, mut channel| {
        channel.send(
            table
                .lines
                .get(number)
                .ok_or_else(|| Fault::new("there is no such line"))?,
        )?;
        Ok(())
    })
    .job("count", |table, (): (), mut channel| {
        channel.send(&table.count.fetch_add(1, Ordering::SeqCst))?;
        Ok(())
    })
    .job("echo", |_, (): (), mut channel| {
        while let Some((bytes, fds)) = channel.recv::<(Bytes, Vec<Fd>)>()? {
            channel.send(&(bytes, fds))?;
        }
        Ok(())
    })
    .job("panic", |_, text: String, _| panic!("{text}"))
    .job("spin", |_, (): (), mut channel| {
        channel.send("spinning")?;
        loop {
            std::hint::spin_loop();
        }
    })
    .job("deaf", |_, (): (), mut channel| {
        nix::sys::signal::SigSet::all().thread_block()?;
        channel.send("deaf")?;
        loop {
            std::thread::park();
        }
    })
    .job("closing", |_, (): (), mut channel| {
        channel.send("closing")?;
        unsafe { nix::libc::syscall(nix::libc::SYS_close_range, 3, u32::MAX, 0) };
        loop {
            std::thread::park();
        }
    })
    .job("look", |table, (): (), mut channel| {
        let open: Vec<_> = crate::harness::descriptors("self")
            .into_iter()
            .map(|(_, to)| to.to_string_lossy().into_owned())
            .collect();
        table.file.metadata()?;
        let status = std::fs::read_to_string("/proc/self/status")?;
        channel.send(&(open, status))?;
        Ok(())
    })
}

fn spinning(spawner: &Spawner) -> (Job, Watched) {
    let mut job = spawner.job("spin", &()).unwrap();
    assert_eq!(
        job.channel.recv::<String>().unwrap().as_deref(),
        Some("spinning")
    );
    let watched = Watched::open(job.process.pid() as i32);
    (job, watched)
}

fn a_job_has_what_was_preloaded() {
    let spawner = jobs().start().unwrap();
    for number in [0_usize, 999] {
        let mut job = spawner.job("line", &number).unwrap();
        let line: Option<String> = job.channel.recv().unwrap();
        assert_eq!(line, Some(format!("line {number}")));
        assert!(job.channel.recv::<String>().unwrap().is_none());
        assert_eq!(job.process.wait().unwrap(), Exit::Code(0));
    }
    spawner.stop().unwrap();
}

fn items_go_both_ways_with_descriptors() {
    let spawner = jobs().start().unwrap();
    let mut job = spawner.job("echo", &()).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let fd = Fd::from(OwnedFd::from(writer));
    for size in [0, 10_000, 1 << 20] {
        job.channel
            .send(&(Bytes::from(vec![5; size]), vec![clone(&fd), clone(&fd)]))
            .unwrap();
        let (bytes, fds) = job.channel.recv::<(Bytes, Vec<Fd>)>().unwrap().unwrap();
        assert_eq!((bytes.len(), fds.len()), (size, 2));
        for fd in fds {
            std::fs::File::from(fd).write_all(b"x").unwrap();
        }
    }
    job.channel.finish().unwrap();
    assert!(job.channel.recv::<u8>().unwrap().is_none());
    assert_eq!(job.process.wait().unwrap(), Exit::Code(0));
    drop((fd, job));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "xxxxxx");
}

fn clone(fd: &Fd) -> Fd {
    use std::os::fd::AsFd;
    Fd::from(fd.as_fd().try_clone_to_owned().unwrap())
}

fn a_job_says_how_it_failed() {
    let spawner = jobs().start().unwrap();
    let mut job = spawner.job("line", &5000_usize).unwrap();
    let err = job.channel.recv::<String>().unwrap_err();
    assert!(
        matches!(&err, StreamError::Fault(fault) if fault.message() == "there is no such line")
    );
    assert_eq!(job.process.wait().unwrap(), Exit::Code(1));
    let mut job = spawner.job("panic", &"as asked".to_owned()).unwrap();
    let err = job.channel.recv::<String>().unwrap_err();
    assert!(
        matches!(&err, StreamError::Panicked { message, location }
            if message == "as asked" && location.contains("jobs.rs")),
        "{err}"
    );
    assert_eq!(job.process.wait().unwrap(), Exit::Code(101));
    let mut job = spawner.job("line", &"no number".to_owned()).unwrap();
    let err = job.channel.recv::<String>().unwrap_err();
    assert!(err.to_string().contains("the job's arguments"), "{err}");
    assert_eq!(job.process.wait().unwrap(), Exit::Code(1));
    let err = spawner.job("unknown", &()).unwrap_err();
    assert!(
        err.to_string().contains("there is no job of that name"),
        "{err}"
    );
    let plain = Spawner::start().unwrap();
    let err = plain.job("line", &1_usize).unwrap_err();
    assert!(matches!(err, SpawnError::Call(_)), "{err}");
}

fn what_a_job_writes_is_its_own() {
    let spawner = jobs().start().unwrap();
    for _ in 0..3 {
        let mut job = spawner.job("count", &()).unwrap();
        assert_eq!(job.channel.recv::<u32>().unwrap(), Some(0));
        job.process.wait().unwrap();
    }
}

fn a_job_that_is_killed_costs_nobody_else() {
    let spawner = jobs().start().unwrap();
    let mut other = spawner.job("echo", &()).unwrap();
    let (mut job, _watched) = spinning(&spawner);
    job.process.kill().unwrap();
    assert!(matches!(
        job.channel.recv::<u8>(),
        Err(StreamError::Disconnected)
    ));
    assert_eq!(job.process.wait().unwrap(), Exit::Signal(9));
    let nothing = Vec::<Fd>::new();
    other
        .channel
        .send(&(Bytes::from(vec![1]), nothing))
        .unwrap();
    assert!(other.channel.recv::<(Bytes, Vec<Fd>)>().unwrap().is_some());
    drop(other.channel);
    // The function sees that its requester is gone, and returns that as its error.
    assert_eq!(other.process.wait().unwrap(), Exit::Code(1));
}

fn a_preload_that_fails_or_leaves_threads_fails_the_start() {
    let failing = Jobs::preload(|| Err::<(), _>(Fault::new("no table")));
    let err = failing.start().unwrap_err();
    assert!(
        matches!(&err, StartError::Hook { hook, message } if hook == "preload" && message == "no table"),
        "{err}"
    );
    let panicking = Jobs::preload(|| -> Result<(), Fault> { panic!("no table") });
    let err = panicking.start().unwrap_err();
    assert!(err.to_string().contains("no table"), "{err}");
    let threaded = Jobs::preload(|| {
        std::thread::spawn(std::thread::park);
        Ok(())
    });
    let err = threaded.start().unwrap_err();
    assert!(
        matches!(err, StartError::MultiThreaded { threads: 2 }),
        "{err}"
    );
    let joined = Jobs::preload(|| Ok(std::thread::spawn(|| 7).join().expect("no panic")));
    joined.start().unwrap().stop().unwrap();
}

fn a_job_has_no_descriptors_but_its_own() {
    let secret = std::fs::File::open("/etc/hostname").unwrap();
    let spawner = jobs().start().unwrap();
    let (_running, _watched) = spinning(&spawner);
    let mut job = spawner.job("look", &()).unwrap();
    let (open, status) = job
        .channel
        .recv::<(Vec<String>, String)>()
        .unwrap()
        .unwrap();
    let count = |kind: &str| open.iter().filter(|to| to.starts_with(kind)).count();
    // Control and the channel; lifeline, beside the standard streams; the stop token; what the preload opened.
    let standard = [1, 2].map(|n| std::fs::read_link(format!("/proc/self/fd/{n}")).unwrap());
    let piped = standard
        .iter()
        .filter(|to| to.to_string_lossy().starts_with("pipe:"))
        .count();
    assert_eq!(
        (
            count("socket:"),
            count("pipe:") - piped,
            count("anon_inode:")
        ),
        (2, 1, 1),
        "{open:?}"
    );
    assert_eq!(count("/etc/"), 1, "{open:?}");
    assert!(open.contains(&"/etc/passwd".into()), "{open:?}");
    for line in ["SigBlk:\t0000000000000000", "Threads:\t1", "Name:\tjob"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    drop(secret);
}

/// The processes that are children of one.
fn children(pid: u32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .map(|pid| pid.parse().unwrap())
                .collect::<Vec<_>>()
        })
        .collect()
}

fn jobs_end_with_their_spawner() {
    let spawner = jobs().start().unwrap();
    let (_first, first) = spinning(&spawner);
    let (_second, second) = spinning(&spawner);
    let mold = Watched::open(children(spawner.pid().unwrap())[0]);
    assert_eq!(spawner.stop().unwrap(), Exit::Code(0));
    for process in [first, second, mold] {
        assert!(
            !process.is_alive(),
            "{} is there after the stop",
            process.pid
        );
    }

    let spawner = jobs().start().unwrap();
    let (_job, job) = spinning(&spawner);
    let mold = Watched::open(children(spawner.pid().unwrap())[0]);
    let pid = nix::unistd::Pid::from_raw(spawner.pid().unwrap() as i32);
    let spawners = Watched::open(pid.as_raw());
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    job.ends_within(Duration::from_secs(2));
    mold.ends_within(Duration::from_secs(2));
    spawners.ends_within(Duration::from_secs(2));
    // What was not reaped by its parent has become ours. The mold may have had the time to reap the job.
    mold.reap();
    let _ = nix::sys::wait::waitpid(job.pid, None);
}

fn jobs_end_with_the_owner() {
    let mut owner = Helper::start(|test| {
        let spawner = jobs().start().unwrap();
        let (_job, job) = spinning(&spawner);
        test.say(spawner.pid().unwrap());
        test.say(children(spawner.pid().unwrap())[0]);
        test.say(job.pid);
        test.wait();
    });
    let [spawner, mold, job] = [owner.hear_pid(), owner.hear_pid(), owner.hear_pid()];
    owner.kill();
    job.ends_within(Duration::from_secs(2));
    mold.ends_within(Duration::from_secs(2));
    spawner.ends_within(Duration::from_secs(2));
    spawner.reap();
}

fn a_job_that_hears_nothing_ends_with_its_spawner() {
    let spawner = jobs().start().unwrap();
    let mold = Watched::open(children(spawner.pid().unwrap())[0]);
    let jobs = ["deaf", "closing", "spin", "spin"].map(|name| {
        let mut job = spawner.job(name, &()).unwrap();
        assert!(job.channel.recv::<String>().unwrap().is_some());
        job
    });
    let watched = jobs
        .each_ref()
        .map(|job| Watched::open(job.process.pid() as i32));
    // Stopped, as is the mold: nothing of theirs runs any more.
    jobs[3].process.signal(Signal::SIGSTOP).unwrap();
    nix::sys::signal::kill(mold.pid, Signal::SIGSTOP).unwrap();
    let pid = nix::unistd::Pid::from_raw(spawner.pid().unwrap() as i32);
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    mold.ends_within(Duration::from_secs(2));
    for process in &watched {
        process.ends_within(Duration::from_secs(2));
    }
    Watched::open(pid.as_raw()).ends_within(Duration::from_secs(2));
    mold.reap();
    for process in watched {
        process.reap();
    }
}

fn without_its_mold_a_spawner_has_no_jobs() {
    let spawner = jobs().start().unwrap();
    let (mut job, watched) = spinning(&spawner);
    let mold = children(spawner.pid().unwrap())[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(mold), Signal::SIGKILL).unwrap();
    watched.ends_within(Duration::from_secs(2));
    assert!(matches!(
        job.channel.recv::<u8>(),
        Err(StreamError::Disconnected)
    ));
    assert_eq!(
        job.process.wait().unwrap(),
        Exit::Unknown,
        "nobody is left who knows"
    );
    assert!(spawner.job("line", &1_usize).is_err());
    let mut process = spawner.spawn(&mut Command::new("true")).unwrap();
    assert_eq!(process.wait().unwrap(), Exit::Code(0), "the rest works");
    drop((job, process));
    spawner.stop().unwrap();
    // The job became ours when its parent died before it.
    watched.reap();
}

fn a_mold_that_is_slow_tells_the_truth_later() {
    let spawner = jobs().start().unwrap();
    let (mut job, _watched) = spinning(&spawner);
    let mold = nix::unistd::Pid::from_raw(children(spawner.pid().unwrap())[0]);
    nix::sys::signal::kill(mold, Signal::SIGSTOP).unwrap();
    job.process.kill().unwrap();
    let limit = Duration::from_millis(200);
    assert_eq!(job.process.wait_timeout(limit).unwrap(), None);
    let err = spawner.job("spin", &()).unwrap_err();
    assert!(err.to_string().contains("timed out"), "{err}");
    nix::sys::signal::kill(mold, Signal::SIGCONT).unwrap();
    assert_eq!(job.process.wait().unwrap(), Exit::Signal(9));
    // What was asked for in vain does not go on without anybody.
    let mut next = spawner.job("count", &()).unwrap();
    assert_eq!(next.process.wait().unwrap(), Exit::Code(0));
    while !children(mold.as_raw() as u32).is_empty() {
        std::thread::yield_now();
    }
}

fn many_threads_ask_for_jobs() {
    let spawner = jobs().start().unwrap();
    std::thread::scope(|scope| {
        for n in 0..16_usize {
            let spawner = &spawner;
            scope.spawn(move || {
                for round in 0..5 {
                    let mut job = spawner.job("line", &(n * 10 + round)).unwrap();
                    let line: Option<String> = job.channel.recv().unwrap();
                    assert_eq!(line, Some(format!("line {}", n * 10 + round)));
                    if round % 2 == 0 {
                        assert_eq!(job.process.wait().unwrap(), Exit::Code(0));
                    }
                }
            });
        }
    });
    let mold = children(spawner.pid().unwrap())[0] as u32;
    while !children(mold).is_empty() {
        std::thread::yield_now();
    }
    drop(spawner);
    while std::fs::read_dir("/proc/self/task").unwrap().count() > 1 {
        std::thread::yield_now();
    }
}

fn a_spawner_with_jobs_is_launched() {
    with_thread(|| {
        let spawner = Spawner::over(WITH_JOBS.start(&21).unwrap());
        let mut job = spawner.job("seed", &()).unwrap();
        assert_eq!(job.channel.recv::<u32>().unwrap(), Some(42));
        assert_eq!(job.process.wait().unwrap(), Exit::Code(0));
        drop(job);
        assert_eq!(spawner.stop().unwrap(), Exit::Code(0));
    });
}

fn jobs_and_programs_come_from_one_spawner() {
    let spawner = jobs().start().unwrap();
    let mut process = spawner
        .spawn(Command::new("sh").args(["-c", "exit 3"]))
        .unwrap();
    let mut job = spawner.job("count", &()).unwrap();
    assert_eq!(job.process.wait().unwrap(), Exit::Code(0));
    assert_eq!(process.wait().unwrap(), Exit::Code(3));
}
