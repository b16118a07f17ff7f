//! The runner: runs this program once more for each test, and looks at what the test leaves behind.

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::BTreeSet;
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

/// Runs one test, if this process was started for that, or else all that the command line asks for.
pub fn main(tests: &[Test]) {
    if let Ok(name) = std::env::var(NAME) {
        let (_, test) = tests
            .iter()
            .find(|(known, _)| *known == name)
            .expect("a test of that name");
        return run(*test);
    }
    let trials = tests.iter().map(|&(name, _)| {
        let short = name.strip_prefix("it::").unwrap_or(name);
        Trial::test(short, move || run_alone(name))
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// Runs a test in a process of its own.
fn run_alone(name: &str) -> Result<(), Failed> {
    let directory = scratch();
    let output = Command::new("/proc/self/exe")
        .env(NAME, name)
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
    let used: Vec<u64> = descriptors("self")
        .iter()
        .map(|(n, _)| n.parse().expect("a number"))
        .collect();
    let mut unused = (0..).filter(|n| !used.contains(n));
    let limit = unused.nth(free).expect("there is always another number");
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard)
}

/// Numbers and targets of a process's descriptors, without the one that is open in order to look.
pub fn descriptors(process: &str) -> BTreeSet<(String, PathBuf)> {
    let directory = Path::new("/proc").join(process).join("fd");
    let entries = std::fs::read_dir(&directory).expect("a process");
    let numbers: Vec<_> = entries
        .map(|entry| entry.expect("a descriptor").file_name())
        .collect();
    let target = |number: &std::ffi::OsString| std::fs::read_link(directory.join(number)).ok();
    numbers
        .iter()
        .filter_map(|n| Some((n.to_string_lossy().into_owned(), target(n)?)))
        .collect()
}
