//! The runner: runs this program once more for each test, and looks at what the test leaves behind.

use forkserver::Engine;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A test and its name, which is a sentence.
pub type Test = (&'static str, fn());

/// A table of tests, each named after its function, with the module in front.
#[macro_export]
macro_rules! tests {
    ($($test:ident),* $(,)?) => {
        pub const TESTS: &[$crate::harness::Test] =
            &[$((concat!(module_path!(), "::", stringify!($test)), $test as fn())),*];
    };
}

/// Which test this process is to run.
const NAME: &str = "FORKSERVER_TEST";
/// No test takes longer, on a machine with much else to do.
const ALARM: u32 = 60;

/// Which engine the servers of this process's test have.
const ENGINE: &str = "FORKSERVER_TEST_ENGINE";

/// Which engine the servers of this test have.
pub fn engine() -> Engine {
    match std::env::var(ENGINE).as_deref() {
        Ok("evented") => Engine::Evented,
        _ => Engine::Threaded,
    }
}

/// Tests whose handlers, hooks or observers wait for the test, which with one thread keeps everybody else waiting: they
/// say something about threads.
const OF_THREADS: &[&str] = &[
    "abuse::a_stop_does_not_wait_for_a_thread_whose_connection_has_ended",
    "abuse::handlers_that_drop_lingering_sockets_stall_nobody",
    "auth::a_server_that_keeps_its_rights_serves_an_owner_that_has_none",
    "batches::an_answer_does_not_wait_for_a_call_that_waits_for_it",
    "calls::eight_clients_are_served_at_once",
    // The one exception of a server that outlives its owner: its only thread takes no signals.
    "death::a_handler_that_blocks_all_signals_ends_with_the_grace",
    "death::a_blocked_handler_ends_with_the_grace",
    "death::a_spinning_handler_ends_with_the_grace",
    "engine::slow_handlers_do_not_keep_others_waiting",
    "lifecycle::a_call_in_progress_is_answered_before_the_stop",
    "lifecycle::calls_behind_it_are_told_that_the_server_stops",
    "restrictions::as_many_calls_of_a_handler_run_as_the_limit_and_not_one_more",
    "signals::a_second_signal_ends_at_once",
    "signals::a_server_started_by_an_ending_server_is_not_ending",
    "signals::int_and_term_drain_and_then_kill",
    "streams::a_stop_tells_streams_in_time_even_if_a_call_hangs",
];

/// Runs one test, if this process was started for that, or else all that the command line asks for.
pub fn main(with_both_engines: &[Test], with_one: &[Test]) {
    if let Ok(name) = std::env::var(NAME) {
        let mut tests = with_both_engines.iter().chain(with_one);
        let (_, test) = tests
            .find(|(known, _)| *known == name)
            .expect("a test of that name");
        return run(*test);
    }
    let short = |name: &'static str| name.strip_prefix("it::").unwrap_or(name);
    let has_python = has_program("python3");
    // What cannot be tested here is reported as ignored, and not as passed.
    let trial = |title: String, name: &'static str, engine: &'static str| {
        Trial::test(title, move || run_alone(name, engine))
            .with_ignored_flag(name.contains("::python_") && !has_python)
    };
    let all = with_both_engines.iter().chain(with_one);
    let threaded = all.map(|&(name, _)| trial(short(name).into(), name, "threaded"));
    let evented = with_both_engines
        .iter()
        .filter(|(name, _)| !OF_THREADS.contains(&short(name)))
        .map(|&(name, _)| trial(format!("evented::{}", short(name)), name, "evented"));
    libtest_mimic::run(&Arguments::from_args(), threaded.chain(evented).collect()).exit();
}

fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}

/// Runs a test in a process of its own.
fn run_alone(name: &str, engine: &str) -> Result<(), Failed> {
    let directory = scratch();
    let output = Command::new("/proc/self/exe")
        .env(NAME, name)
        .env(ENGINE, engine)
        .env("TMPDIR", &directory)
        .env_remove("XDG_RUNTIME_DIR")
        .output()?;
    let left: Vec<_> = std::fs::read_dir(&directory)?
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .collect();
    std::fs::remove_dir_all(&directory)?;
    if !output.status.success() {
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        return Err(format!("{}\n{out}{err}", output.status).into());
    }
    if !left.is_empty() {
        return Err(format!("files are left: {left:?}").into());
    }
    Ok(())
}

/// An empty directory that only we can use.
fn scratch() -> PathBuf {
    nix::unistd::mkdtemp(&std::env::temp_dir().join("fs-XXXXXX")).expect("a scratch directory")
}

fn run(test: fn()) {
    nix::unistd::alarm::set(ALARM);
    // Signals to the group are the test's own affair.
    nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0))
        .expect("a group");
    // What loses its parent becomes our child, so that nothing escapes the look at the end.
    nix::sys::prctl::set_child_subreaper(true).expect("a subreaper");
    let before = Snapshot::take();
    test();
    let after = Snapshot::take();
    assert_eq!(
        before, after,
        "descriptors, children or threads differ after the test"
    );
}

/// What a test must leave as it was.
#[derive(Debug, PartialEq, Eq)]
struct Snapshot {
    descriptors: BTreeSet<(String, PathBuf)>,
    children: Vec<String>,
    threads: usize,
}

impl Snapshot {
    fn take() -> Snapshot {
        let children = std::fs::read_to_string("/proc/thread-self/children")
            .expect("a kernel that lists children");
        Snapshot {
            descriptors: descriptors("self"),
            children: children.split_whitespace().map(String::from).collect(),
            threads: std::fs::read_dir("/proc/self/task")
                .expect("threads")
                .count(),
        }
    }
}

/// Lowers the limit of descriptors, so that this process can have so many more.
pub fn leave_descriptors_free(free: usize) -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let used: BTreeSet<u64> = descriptors("self")
        .iter()
        .map(|(n, _)| n.parse().expect("a number"))
        .collect();
    let mut unused = (0..).filter(|n| !used.contains(n));
    let limit = unused.nth(free).expect("there is always another number");
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard)
}

/// Numbers and targets of a process's descriptors, without the one that is open in order to look.
pub fn descriptors(process: &str) -> BTreeSet<(String, PathBuf)> {
    descriptors_if_there(process).expect("a process")
}

/// An error: the process is gone.
fn descriptors_if_there(process: &str) -> std::io::Result<BTreeSet<(String, PathBuf)>> {
    let directory = Path::new("/proc").join(process).join("fd");
    let numbers: Vec<_> = std::fs::read_dir(&directory)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<std::io::Result<_>>()?;
    let target = |number: &std::ffi::OsString| std::fs::read_link(directory.join(number)).ok();
    Ok(numbers
        .iter()
        .filter_map(|n| Some((n.to_string_lossy().into_owned(), target(n)?)))
        .collect())
}

/// What kind of descriptor has this target. What has no name of its own has its kind's, as `anon_inode:[pidfd]`.
pub fn kind(target: &Path) -> String {
    let target = target.to_string_lossy();
    match target.starts_with("anon_inode") {
        true => target.into_owned(),
        false => target.split([':', '[']).next().unwrap_or_default().into(),
    }
}

/// How many descriptors of each kind a process has; none if it is gone.
pub fn kinds(process: impl ToString) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (_, target) in descriptors_if_there(&process.to_string()).unwrap_or_default() {
        *counts.entry(kind(&target)).or_default() += 1;
    }
    counts
}
