//! Servers for programs that have threads: the program's own image is started once more, and serves from there.
//!
//! Invariant: nothing is launched that would not find its way to its entry, because the image is the same and
//! [`init`] has listed the entry here.

use crate::child::{Child, Ties};
use crate::control::{ArgumentsFile, Failure, Launch};
use crate::error::Context as _;
use crate::limits::Limits;
use crate::panics::{self, Panicked};
use crate::protocol::codec;
use crate::protocol::message::EncodedValue;
use crate::server::Server;
use crate::sys::{deadman, process};
use crate::{Fault, ServerHandle, StartError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a launched server may take to be ready, unless something else is said.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a process that is not a server yet may outlive its owner.
const GRACE: Duration = Duration::from_secs(1);

/// The names that [`init`] has listed.
static LISTED: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

/// A server that is started by executing this program once more, which works in a program with threads and costs
/// the same however large it is.
///
/// Declare it once, list it with [`init`] first thing in `main`, and start it from anywhere:
///
/// ```no_run
/// use forkserver::{Entry, Server};
///
/// static GREETER: Entry<String> = Entry::new("greeter", |greeting| {
///     Ok(Server::new().handle("hello", move |_, name: String| Ok(format!("{greeting} {name}"))))
/// });
///
/// fn main() -> forkserver::Result<()> {
///     forkserver::init(&[&GREETER]); // before anything starts threads: in the server, it does not return
///     std::thread::spawn(|| {
///         let server = GREETER.start(&"Hello".into())?;
///         let reply: String = server.connect()?.call("hello", "Joe")?;
///         assert_eq!(reply, "Hello Joe");
///         forkserver::Result::Ok(())
///     })
///     .join()
///     .expect("no panic")
/// }
/// ```
///
/// In a program with an async runtime, `main` is a plain function that calls `init` and then builds the runtime.
/// In tests, see [`init_before_main!`](crate::init_before_main).
#[derive(Debug)]
pub struct Entry<A> {
    name: &'static str,
    make: fn(A) -> Result<Server, Fault>,
    arguments: PhantomData<fn(A)>,
}

impl<A: Serialize + DeserializeOwned> Entry<A> {
    /// An entry with a name of its own, and what makes its server of the arguments that it is started with. That
    /// runs in the new process, as does a [`before_fork`](Server::before_fork) hook of the definition.
    pub const fn new(name: &'static str, make: fn(A) -> Result<Server, Fault>) -> Entry<A> {
        Entry {
            name,
            make,
            arguments: PhantomData,
        }
    }

    /// Launches the server, and returns when clients can connect. It has every guarantee of one that was forked;
    /// arguments may hold descriptors. It inherits standard input, output and error, the environment, the working
    /// directory and the command line, and nothing else.
    ///
    /// # Errors
    /// [`StartError::NotInitialised`] before anything is launched, if [`init`] has not been called or does not
    /// list this entry; what [`Server::start`] can return, but for the threads.
    pub fn start(&self, args: &A) -> Result<ServerHandle, StartError> {
        self.start_within(args, START_TIMEOUT)
    }

    /// As [`Entry::start`], with another time than 30 s within which the server must be ready. One that is not has up to
    /// a second more to be gone.
    ///
    /// # Errors
    /// As [`Entry::start`].
    pub fn start_within(&self, args: &A, timeout: Duration) -> Result<ServerHandle, StartError> {
        if !listed().contains(&self.name) {
            return Err(StartError::NotInitialised { entry: self.name });
        }
        let deadline = Instant::now().checked_add(timeout);
        let arguments = ArgumentsFile::encode(args).start("write the arguments down")?;
        let child = Child::launch().map_err(|err| StartError::Io {
            action: "execute this program once more",
            source: err.source,
        })?;
        let order = Launch {
            entry: self.name.into(),
            arguments,
        };
        // Whatever keeps it from arriving shows in the answer.
        let _ = child.control.send(&order, deadline);
        ServerHandle::of_launched(child, timeout, deadline)
    }
}

/// An [`Entry`] over arguments of any type.
pub trait AnyEntry: sealed::AnyEntry + Sync {}

impl<A: DeserializeOwned> AnyEntry for Entry<A> {}

pub(crate) mod sealed {
    use super::{EncodedValue, Failure, Server};

    pub trait AnyEntry {
        #[doc(hidden)]
        fn name(&self) -> &'static str;
        #[doc(hidden)]
        fn make(&self, launch: Arguments) -> Result<Server, Refused>;
    }

    /// Arguments as they came.
    #[derive(Debug)]
    pub struct Arguments(pub(super) EncodedValue);

    /// Why there is no server.
    #[derive(Debug)]
    pub struct Refused(pub(super) Failure);
}

impl<A: DeserializeOwned> sealed::AnyEntry for Entry<A> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn make(&self, arguments: sealed::Arguments) -> Result<Server, sealed::Refused> {
        let refused = |text: String, in_hook| {
            sealed::Refused(Failure::new(format!("entry {}", self.name), text, in_hook))
        };
        let mut arguments = arguments.0;
        let args = codec::decode(&mut arguments, &Limits::default())
            .map_err(|reason| refused(format!("its arguments: {reason}"), false))?;
        match panics::catch(|| (self.make)(args)) {
            Ok(Ok(server)) => Ok(server),
            Ok(Err(fault)) => Err(refused(fault.text(), true)),
            Err(panicked) => {
                let Panicked { message, location } = *panicked;
                Err(refused(format!("panicked at {location}: {message}"), true))
            }
        }
    }
}

/// To be called first thing in `main`, with all entries of the program, before anything starts threads. It returns at
/// once, unless this process was launched to be the server of one of them: then it serves, and ends the process.
///
/// Call it once: a process that was launched finds its entry in the first list, or not at all.
///
/// # Panics
/// Two entries have the same name.
pub fn init(entries: &[&dyn AnyEntry]) {
    {
        let mut listed = listed();
        for entry in entries {
            let name = sealed::AnyEntry::name(*entry);
            assert!(!listed.contains(&name), "there are two entries {name:?}");
            listed.push(name);
        }
    }
    if let Some(ties) = Ties::inherited_at_launch() {
        // A panic that gets here is a defect of ours; the process must not go on as the program that it looks like.
        let status = panics::catch(|| serve(entries, ties)).unwrap_or(process::PANICKED);
        process::leave(status);
    }
}

/// What a launched process does instead of the program's work.
fn serve(entries: &[&dyn AnyEntry], ties: Ties) -> i32 {
    process::take_name_from_command_line();
    let Ok(Some(launch)) = ties.control.receive::<Launch>(None) else {
        // Whoever launched us is gone.
        return 1;
    };
    // Until the definition is there, which says for how long its server may outlive its owner.
    if let Err(err) = deadman::arm(ties.lifeline(), GRACE) {
        ties.report_failure(Failure::new("dead-man switch", err, false));
        return 1;
    }
    let wanted = entries
        .iter()
        .find(|entry| sealed::AnyEntry::name(**entry) == launch.entry);
    let unknown = || {
        let text = format!("it is not listed where `init` is called ({})", launch.entry);
        sealed::Refused(Failure::new("entry", text, false))
    };
    let server = wanted.ok_or_else(unknown).and_then(|entry| {
        let arguments = launch
            .arguments
            .read()
            .map_err(|err| sealed::Refused(Failure::new("read the arguments", err, false)))?;
        sealed::AnyEntry::make(*entry, sealed::Arguments(arguments))
    });
    match server {
        Ok(server) => server.serve_launched(ties),
        Err(sealed::Refused(failure)) => {
            ties.report_failure(failure);
            1
        }
    }
}

fn listed() -> std::sync::MutexGuard<'static, Vec<&'static str>> {
    LISTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls [`init`] with these entries before `main`, for test binaries whose `main` is the harness's:
///
/// ```
/// use forkserver::{Entry, Server};
///
/// static ECHO: Entry<()> = Entry::new("echo", |()| Ok(Server::new().handle("echo", |_, text: String| Ok(text))));
/// forkserver::init_before_main!(ECHO);
///
/// # fn main() {
/// // in a #[test]
/// let server = ECHO.start(&()).unwrap();
/// assert_eq!(server.connect().unwrap().call::<_, String>("echo", "x").unwrap(), "x");
/// # }
/// ```
///
/// Works under `cargo test` and cargo-nextest. Its limits: once in a program; what Rust's runtime sets up before `main`
/// is missing in the server (a stack overflow ends it without a message); it needs glibc or another C library that
/// passes the command line to initialisers; and a crate that forbids unsafe code cannot use it, because the
/// compiler counts a linker section as unsafe.
#[macro_export]
macro_rules! init_before_main {
    ($($entry:expr),+ $(,)?) => {
        const _: () = {
            extern "C" fn initialise() {
                $crate::init(&[$(&$entry),+]);
            }
            #[used]
            #[unsafe(link_section = ".init_array")]
            static INITIALISE: extern "C" fn() = initialise;
        };
    };
}
