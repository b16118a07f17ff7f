//! Starting a program without copying this process, whatever its size and its threads.
//!
//! Invariant: the new process shares our memory until it executes the program, while the calling thread waits.
//! There it allocates nothing, takes no lock and makes bare system calls only; all else is prepared before.

use super::pidfd::PidFd;
use super::{check, signal};
use nix::libc;
use nix::unistd::Pid;
use std::cell::Cell;
use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::ptr::null;
use std::sync::atomic::{AtomicI32, Ordering};

/// Room for what the new process does before it executes the program.
const STACK: usize = 64 << 10;
/// Not set by an older libc: of the kernel's `include/uapi/linux/close_range.h`.
const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;

/// The numbers of errors that others find out.
pub(crate) const INVALID: i32 = libc::EINVAL;
pub(crate) const NOT_PERMITTED: i32 = libc::EPERM;
pub(crate) const UNKNOWN: i32 = libc::EIO;

/// A program, and what its process is to be.
#[derive(Debug, Default)]
pub(crate) struct Program {
    /// Where it may be; the first that can be executed is.
    pub(crate) paths: Vec<CString>,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    /// Descriptors of ours, and their numbers there. All others but 0, 1 and 2 are closed.
    pub(crate) descriptors: Vec<(RawFd, RawFd)>,
    pub(crate) directory: Option<CString>,
    pub(crate) user: Option<User>,
    pub(crate) umask: Option<u32>,
    /// Resources by their numbers, with soft and hard limit.
    pub(crate) limits: Vec<(u32, u64, u64)>,
    pub(crate) group: Group,
    pub(crate) no_new_privileges: bool,
    /// The signal that it gets when the thread that launches it ends.
    pub(crate) death_signal: Option<i32>,
}

/// Whose rights it has.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// Its process group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Group {
    /// The one of whoever launches it.
    #[default]
    Same,
    /// That of this number; 0: one of its own.
    Join(i32),
    /// A session of its own, and with it a group.
    Session,
}

/// What a new process does in turn, to say where it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Stage {
    Fork = 1,
    Signals,
    Group,
    Limits,
    Umask,
    User,
    Directory,
    Descriptors,
    Privileges,
    DeathSignal,
    Execute,
}

const STAGES: [Stage; 11] = [
    Stage::Fork,
    Stage::Signals,
    Stage::Group,
    Stage::Limits,
    Stage::Umask,
    Stage::User,
    Stage::Directory,
    Stage::Descriptors,
    Stage::Privileges,
    Stage::DeathSignal,
    Stage::Execute,
];

/// Why a program was not started.
#[derive(Debug)]
pub(crate) struct LaunchError {
    pub(crate) stage: Stage,
    pub(crate) source: io::Error,
}

/// A program with everything in the form in which the kernel takes it.
struct Plan<'a> {
    program: &'a Program,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    /// Where descriptors are kept until their places are free.
    aside: Vec<Cell<RawFd>>,
    lowest_aside: RawFd,
    parent: libc::pid_t,
    highest_fd: RawFd,
    /// What the new process says of its failure.
    stage: AtomicI32,
    errno: AtomicI32,
}

/// Starts the program. Returns when it runs, or with what the system said and what it was about.
pub(crate) fn launch(program: &Program) -> Result<(u32, PidFd), LaunchError> {
    let failed = |source| LaunchError {
        stage: Stage::Fork,
        source,
    };
    let plan = Plan::new(program);
    let mut stack = vec![0_u128; STACK / size_of::<u128>()];
    let top = stack.as_mut_ptr_range().end;
    // No handler of ours may run there: it would run in our memory.
    let mask = signal::block_all().map_err(failed)?;
    // The descriptor comes with the process: by its number it could be reaped, by whoever reaps all children of this
    // process, before it is opened. And without room for it there is no process.
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let mut pidfd: RawFd = -1;
    // SAFETY: the stack is large enough and ours until the call returns, which it does when the new process has
    // executed a program or ended; the plan lives as long, and `begin` keeps to what this module's head says.
    let pid = unsafe {
        libc::clone(
            begin,
            top.cast(),
            flags,
            (&raw const plan).cast_mut().cast(),
            &raw mut pidfd,
        )
    };
    let pid = check(pid);
    let restored = signal::restore_mask(&mask);
    let pid = pid.map_err(failed)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    let child = PidFd::from_fd(unsafe { OwnedFd::from_raw_fd(pidfd) });
    let stage = plan.stage.load(Ordering::SeqCst);
    if let Some(stage) = STAGES.into_iter().find(|known| *known as i32 == stage) {
        // It has ended; whoever reaps all children of this process may have been quicker.
        let _ = child.wait_and_reap(None);
        let source = io::Error::from_raw_os_error(plan.errno.load(Ordering::SeqCst));
        return Err(LaunchError { stage, source });
    }
    restored.map_err(failed)?;
    Ok((pid as u32, child))
}

impl<'a> Plan<'a> {
    fn new(program: &'a Program) -> Plan<'a> {
        let highest = program.descriptors.iter().map(|(_, place)| *place).max();
        Plan {
            program,
            arguments: pointers(&program.arguments),
            environment: pointers(&program.environment),
            aside: program.descriptors.iter().map(|_| Cell::new(-1)).collect(),
            lowest_aside: highest.unwrap_or(2).max(2).saturating_add(1),
            parent: Pid::this().as_raw(),
            highest_fd: super::fdtable::capacity()
                .ok()
                .and_then(|capacity| RawFd::try_from(capacity).ok())
                .unwrap_or(RawFd::MAX),
            stage: AtomicI32::new(0),
            errno: AtomicI32::new(0),
        }
    }
}

/// A list that ends with a null pointer.
fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    let texts = texts.iter().map(|text| text.as_ptr());
    texts.chain([null()]).collect()
}

/// The first thing that the new process does.
extern "C" fn begin(plan: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `launch` gave a plan, which it keeps until this process has its own memory or is gone.
    let plan = unsafe { &*plan.cast::<Plan<'_>>() };
    let (stage, errno) = become_program(plan);
    plan.errno.store(errno, Ordering::SeqCst);
    plan.stage.store(stage as i32, Ordering::SeqCst);
    // SAFETY: `_exit` has no preconditions and does not return.
    unsafe { libc::_exit(127) }
}

/// Returns only what went wrong, and its number.
fn become_program(plan: &Plan<'_>) -> (Stage, i32) {
    let program = plan.program;
    let steps = [
        (Stage::Signals, reset_signals as fn(&Plan<'_>) -> Outcome),
        (Stage::Group, set_group),
        // Descriptors come between: there are more of them on the way to their places than the program will have.
        (Stage::Limits, raise_file_limit),
        (Stage::Descriptors, place_descriptors),
        (Stage::Limits, set_limits),
        (Stage::Umask, set_umask),
        (Stage::User, set_user),
        (Stage::Directory, change_directory),
        (Stage::Privileges, renounce_privileges),
        // After the user, because a change of users takes it away.
        (Stage::DeathSignal, set_death_signal),
    ];
    for (stage, step) in steps {
        if let Err(errno) = step(plan) {
            return (stage, errno);
        }
    }
    let mut worst = libc::ENOENT;
    for path in &program.paths {
        // SAFETY: a C string, and two lists that end with a null pointer.
        unsafe {
            libc::execve(
                path.as_ptr(),
                plan.arguments.as_ptr(),
                plan.environment.as_ptr(),
            )
        };
        match nix::errno::Errno::last_raw() {
            libc::ENOENT | libc::ENOTDIR => {}
            // As a shell does: another place may have one that may be executed.
            libc::EACCES => worst = libc::EACCES,
            errno => return (Stage::Execute, errno),
        }
    }
    (Stage::Execute, worst)
}

/// Nothing, or the error's number.
type Outcome = Result<(), i32>;

fn outcome(result: libc::c_long) -> Outcome {
    match result {
        -1 => Err(nix::errno::Errno::last_raw()),
        _ => Ok(()),
    }
}

fn reset_signals(_: &Plan<'_>) -> Outcome {
    signal::reset_for_program();
    signal::clear_mask().map_err(|err| err.raw_os_error().unwrap_or(libc::EINVAL))
}

fn set_group(plan: &Plan<'_>) -> Outcome {
    let group = match plan.program.group {
        Group::Same => return Ok(()),
        Group::Join(group) => group,
        Group::Session => {
            // SAFETY: no arguments.
            return outcome(unsafe { libc::setsid() }.into());
        }
    };
    // SAFETY: two numbers.
    outcome(unsafe { libc::setpgid(0, group) }.into())
}

/// Numbers beyond the limit that there is may be asked for together with a higher one.
fn raise_file_limit(plan: &Plan<'_>) -> Outcome {
    let mut limits = plan.program.limits.iter();
    let is_higher = |(resource, soft, _): &&(u32, u64, u64)| {
        i64::from(*resource) == i64::from(libc::RLIMIT_NOFILE) && *soft > plan.highest_fd as u64
    };
    limits.rfind(is_higher).map_or(Ok(()), set_limit)
}

fn set_limits(plan: &Plan<'_>) -> Outcome {
    plan.program.limits.iter().try_for_each(set_limit)
}

fn set_limit((resource, soft, hard): &(u32, u64, u64)) -> Outcome {
    let limit = libc::rlimit64 {
        rlim_cur: *soft,
        rlim_max: *hard,
    };
    let old = null::<libc::rlimit64>();
    // SAFETY: a number that the kernel judges, a valid limit, and no place for the old one.
    let result = unsafe { libc::syscall(libc::SYS_prlimit64, 0, *resource, &raw const limit, old) };
    outcome(result)
}

fn set_umask(plan: &Plan<'_>) -> Outcome {
    if let Some(mode) = plan.program.umask {
        // SAFETY: a number; it cannot fail.
        unsafe { libc::umask(mode as libc::mode_t) };
    }
    Ok(())
}

/// By bare system calls: the C library's functions would change all threads of the process whose memory this is.
fn set_user(plan: &Plan<'_>) -> Outcome {
    let Some(User { uid, gid, groups }) = &plan.program.user else {
        return Ok(());
    };
    // SAFETY: a list of that length.
    outcome(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    // SAFETY: three numbers.
    outcome(unsafe { libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid) })?;
    // SAFETY: three numbers.
    outcome(unsafe { libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid) })
}

fn change_directory(plan: &Plan<'_>) -> Outcome {
    match &plan.program.directory {
        // SAFETY: a C string.
        Some(path) => outcome(unsafe { libc::chdir(path.as_ptr()) }.into()),
        None => Ok(()),
    }
}

fn place_descriptors(plan: &Plan<'_>) -> Outcome {
    let descriptors = || plan.program.descriptors.iter().zip(&plan.aside);
    for ((fd, _), aside) in descriptors() {
        // SAFETY: fcntl on any number; it is an error if that is not open.
        let copy = unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, plan.lowest_aside) };
        outcome(copy.into())?;
        aside.set(copy);
    }
    close_on_exec(plan)?;
    for ((_, place), aside) in descriptors() {
        // SAFETY: `aside` is open, and what had the number of `place` in this process is not needed any more.
        outcome(unsafe { libc::dup2(aside.get(), *place) }.into())?;
    }
    Ok(())
}

/// Every descriptor above 2 goes when the program is executed.
fn close_on_exec(plan: &Plan<'_>) -> Outcome {
    // SAFETY: three numbers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            CLOSE_RANGE_CLOEXEC,
        )
    };
    if outcome(result).is_ok() {
        return Ok(());
    }
    // A kernel before 5.11: one by one.
    for fd in 3..plan.highest_fd {
        // SAFETY: fcntl on any number; it is an error if that is not open.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

fn renounce_privileges(plan: &Plan<'_>) -> Outcome {
    match plan.program.no_new_privileges {
        // SAFETY: numbers, as prctl(2) wants them.
        true => outcome(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into()),
        false => Ok(()),
    }
}

fn set_death_signal(plan: &Plan<'_>) -> Outcome {
    let Some(signal) = plan.program.death_signal else {
        return Ok(());
    };
    // SAFETY: numbers, as prctl(2) wants them.
    outcome(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0) }.into())?;
    // SAFETY: no arguments.
    let parent = unsafe { libc::getppid() };
    // One that died before cannot be noticed later.
    match parent == plan.parent {
        true => Ok(()),
        false => Err(libc::ESRCH),
    }
}

/// The image that this process runs, even if its file has been replaced or removed.
const OWN_IMAGE: &CStr = c"/proc/self/exe";
/// Set in the environment of a copy of this program that finds its lines where they belong.
const MARKER: &str = "FORKSERVER_LAUNCHED";
/// The numbers of its lines.
const LIFELINE: RawFd = 3;
const CONTROL: RawFd = 4;

/// Executes this program once more, with the same command line and environment, and two lines. Everything else but
/// the standard streams stays behind.
pub(crate) fn launch_copy(
    lifeline: &OwnedFd,
    control: &impl AsFd,
) -> Result<(u32, PidFd), LaunchError> {
    let text = |text: OsString| CString::new(text.into_vec()).ok();
    let variable = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        text(name)
    };
    let marker = (OsString::from(MARKER), OsString::from("1"));
    launch(&Program {
        paths: vec![OWN_IMAGE.into()],
        arguments: std::env::args_os().filter_map(text).collect(),
        environment: std::env::vars_os()
            .filter(|(name, _)| name != MARKER)
            .chain([marker])
            .filter_map(variable)
            .collect(),
        descriptors: vec![
            (lifeline.as_raw_fd(), LIFELINE),
            (control.as_fd().as_raw_fd(), CONTROL),
        ],
        ..Program::default()
    })
}

/// The two lines, in a process that was launched as a copy, once. What it executes itself is not marked any more.
pub(crate) fn take_lines() -> Option<(OwnedFd, OwnedFd)> {
    std::env::var_os(MARKER)?;
    // SAFETY: a question without preconditions.
    if unsafe { libc::getauxval(libc::AT_SECURE) } != 0 {
        // Whoever executed this program has fewer rights than it, and may have made all this up.
        return None;
    }
    // SAFETY: this is for the beginning of `main`, where there is one thread.
    unsafe { std::env::remove_var(MARKER) };
    let kind = |fd| super::fdtable::kind(fd).unwrap_or(0);
    // Somebody may have copied our environment without our descriptors.
    if (kind(LIFELINE), kind(CONTROL)) != (libc::S_IFIFO, libc::S_IFSOCK) {
        return None;
    }
    // SAFETY: the one who launched us has put a pipe there for us, and nobody else in this process knows it.
    let lifeline = unsafe { OwnedFd::from_raw_fd(LIFELINE) };
    // SAFETY: as above, with a socket.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL) };
    for line in [&lifeline, &control] {
        // It fails only for descriptors that are not open.
        let _ = nix::fcntl::fcntl(
            line,
            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
        );
    }
    Some((lifeline, control))
}
