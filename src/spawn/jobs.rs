//! Forked jobs: functions that run in processes of their own, which begin with what a preload has made.
//!
//! Invariant: the spawner asks the mold for one job at a time, and hears of ends in between; what it has heard is
//! remembered until it has been told, or nobody can ask for it any more.

use super::wire::{Answer, Started, Status};
use super::{Line, SpawnError, Spawned, Spawner, mold, service};
use crate::channel::{Channel, Parts, ReceiveHalf, SendHalf, StopToken, sealed};
use crate::child::Child;
use crate::connection::Connection;
use crate::control::{ArgumentsFile, Failure};
use crate::fault::Fault;
use crate::limits::Limits;
use crate::panics;
use crate::protocol::codec;
use crate::protocol::inbox::Inbox;
use crate::protocol::outbox::Outbox;
use crate::protocol::stream::{Side, StreamIn, StreamOut};
use crate::server::Server;
use crate::sys::pidfd::PidFd;
use crate::sys::{fdtable, file, linger, process, socket};
use crate::{Fd, Signal, StartError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the mold may take to fork a job.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take to tell how a job has ended that has, before whoever asks has to ask again.
const TELLING: Duration = Duration::from_millis(100);
/// How long a thread of the preload that has been joined may take to be gone.
const THREAD_PATIENCE: Duration = Duration::from_millis(20);

type Function<S> = dyn Fn(&S, ArgumentsFile, Channel) -> Result<(), Fault> + Send + Sync;
pub(super) type JobTable<S> = HashMap<String, Arc<Function<S>>>;
type Preload<S> = dyn Fn() -> Result<S, Fault> + Send + Sync;

/// Functions to be run in processes that a [`Spawner`] forks from a mold: a process that has run the preload, and shares
/// what that has made with all jobs, until one writes to it.
///
/// ```
/// use forkserver::spawn::Jobs;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let spawner = Jobs::preload(|| Ok(vec!["a table", "that took long to load"]))
///     .job("line", |table, number: usize, mut channel| Ok(channel.send(table[number])?))
///     .start()?; // forks, and preloads
/// let mut job = spawner.job("line", &1_usize)?;
/// let line: Option<String> = job.channel.recv()?;
/// assert_eq!(line.as_deref(), Some("that took long to load"));
/// assert!(job.process.wait()?.is_clean());
/// # Ok(()) }
/// ```
pub struct Jobs<S> {
    preload: Arc<Preload<S>>,
    table: JobTable<S>,
}

impl<S: Send + Sync + 'static> Jobs<S> {
    /// What is to be made before the first job, in the spawner's process. It must leave no threads behind; descriptors
    /// that it opens are there in all jobs.
    pub fn preload(preload: impl Fn() -> Result<S, Fault> + Send + Sync + 'static) -> Jobs<S> {
        Jobs {
            preload: Arc::new(preload),
            table: JobTable::new(),
        }
    }

    /// Adds a job: a function over what was preloaded, arguments, and a channel to whoever asked for it. When it
    /// returns its process ends, with status 0, 1 for an error, or 101 for a panic, and the requester receives the
    /// end, the error or the panic. A job ends with its spawner, whatever it is doing.
    pub fn job<A: DeserializeOwned>(
        mut self,
        name: impl Into<String>,
        function: impl Fn(&S, A, Channel) -> Result<(), Fault> + Send + Sync + 'static,
    ) -> Jobs<S> {
        let erased = move |state: &S, arguments: ArgumentsFile, channel: Channel| {
            let args = codec::decode(&mut arguments.read()?, &Limits::default())
                .map_err(|reason| Fault::new(format!("the job's arguments: {reason}")))?;
            function(state, args, channel)
        };
        self.table.insert(name.into(), Arc::new(erased));
        self
    }

    /// Forks a spawner that has these jobs.
    ///
    /// # Errors
    /// As [`Server::start`]; [`StartError::MultiThreaded`] also if the preload leaves threads behind.
    pub fn start(self) -> Result<Spawner, StartError> {
        Ok(Spawner::over(self.serve(Server::new()).start()?))
    }

    /// Makes a server a [spawner](super::service()) with these jobs: for an [`Entry`](crate::Entry), or one that does
    /// other things as well.
    pub fn serve(self, server: Server) -> Server {
        let (preload, table) = (self.preload, Arc::new(self.table));
        service(server)
            .prepare(move |_| {
                let before = fdtable::open_descriptors().map_err(refused)?;
                let state = Arc::new(run_preload(&*preload)?);
                if let Some(threads) = process::other_threads(THREAD_PATIENCE) {
                    return Err(Failure::of_threads(threads));
                }
                let mold = mold::fork(state, Arc::clone(&table), &before).map_err(refused)?;
                Ok(Box::new(Yard::new(mold)))
            })
            .handle("job", |ctx, request: JobRequest| {
                ctx.state::<Yard>().start(request)
            })
            .handle("job status", |ctx, number: u64| {
                Ok(ctx.state::<Yard>().tell(number))
            })
            .handle("job forget", |ctx, number: u64| {
                ctx.state::<Yard>().forget(number);
                Ok(())
            })
            .finalize(|control| {
                control.state::<Yard>().map(Yard::end);
            })
    }
}

impl<S> std::fmt::Debug for Jobs<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Jobs").field(&self.table.keys()).finish()
    }
}

fn run_preload<S>(preload: &Preload<S>) -> Result<S, Failure> {
    let hook = |text: String| Failure::new("preload", text, true);
    match panics::catch(preload) {
        Ok(Ok(state)) => Ok(state),
        Ok(Err(fault)) => Err(hook(fault.text())),
        Err(panicked) => Err(hook(format!(
            "panicked at {}: {}",
            panicked.location, panicked.message
        ))),
    }
}

fn refused(err: io::Error) -> Failure {
    Failure::new("mold", err, false)
}

/// What a spawner is asked for.
#[derive(Debug, Serialize, Deserialize)]
struct JobRequest {
    name: String,
    arguments: ArgumentsFile,
    channel: Fd,
}

/// What the mold is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Fork {
    pub(super) number: u64,
    pub(super) name: String,
    pub(super) arguments: ArgumentsFile,
    pub(super) channel: Fd,
}

/// What the mold says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Said {
    Forked(Forked),
    Refused {
        number: u64,
        errno: Option<i32>,
        text: String,
    },
    Ended(Ended),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Forked {
    pub(super) number: u64,
    pub(super) pid: u32,
    pub(super) pidfd: Fd,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Ended {
    pub(super) number: u64,
    pub(super) exit: Status,
}

/// The spawner's side of the mold.
struct Yard(Mutex<State>);

struct State {
    /// Taken out at the end.
    mold: Option<Child>,
    last: u64,
    /// Jobs that run and that somebody will ask for.
    running: HashSet<u64>,
    ended: HashMap<u64, Status>,
}

impl Yard {
    fn new(mold: Child) -> Yard {
        Yard(Mutex::new(State {
            mold: Some(mold),
            last: 0,
            running: HashSet::new(),
            ended: HashMap::new(),
        }))
    }

    fn start(&self, request: JobRequest) -> Result<Answer, Fault> {
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        let deadline = Some(Instant::now() + PATIENCE);
        let order = Fork {
            number,
            name: request.name,
            arguments: request.arguments,
            channel: request.channel,
        };
        state.line()?.control.send(&order, deadline)?;
        loop {
            match state.hear(deadline)? {
                Said::Forked(forked) if forked.number == number => {
                    state.running.insert(number);
                    return Ok(Answer::Started(Started {
                        pid: forked.pid,
                        pidfd: forked.pidfd,
                        number,
                    }));
                }
                Said::Refused {
                    number: refused,
                    errno,
                    text,
                } if refused == number => {
                    return match errno {
                        Some(errno) => Ok(Answer::Failed {
                            action: "fork the job".into(),
                            errno,
                        }),
                        None => Err(Fault::new(text)),
                    };
                }
                said => state.note(said),
            }
        }
    }

    /// How a job ended that has, as whoever asks knows.
    fn tell(&self, number: u64) -> Status {
        let mut state = self.lock();
        let deadline = Some(Instant::now() + TELLING);
        loop {
            if let Some(status) = state.ended.remove(&number) {
                return status;
            }
            if !state.running.contains(&number) {
                // It has been told, or forgotten.
                return Status::Unknown;
            }
            match state.hear(deadline) {
                Ok(said) => state.note(said),
                // The mold is slow, or stopped, and will tell.
                Err(err) if err.kind() == io::ErrorKind::TimedOut => return Status::Runs,
                // The mold is gone, and with it whoever knew.
                Err(_) => return Status::Unknown,
            }
        }
    }

    fn forget(&self, number: u64) {
        let mut state = self.lock();
        state.running.remove(&number);
        state.ended.remove(&number);
        // What has been said meanwhile, so that it does not pile up.
        while let Ok(said) = state.hear(Some(Instant::now())) {
            state.note(said);
        }
    }

    /// Ends the mold, which ends its jobs first.
    fn end(&self) {
        if let Some(mold) = self.lock().mold.take() {
            // One that does not end is killed; its jobs end with it.
            let _ = mold.end_by_closing(PATIENCE / 10);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn line(&self) -> io::Result<&Child> {
        self.mold.as_ref().ok_or(io::ErrorKind::BrokenPipe.into())
    }

    fn hear(&self, deadline: Option<Instant>) -> io::Result<Said> {
        let said = self.line()?.control.receive(deadline)?;
        said.ok_or_else(|| io::Error::new(io::ErrorKind::BrokenPipe, "the mold is gone"))
    }

    fn note(&mut self, said: Said) {
        match said {
            Said::Ended(Ended { number, exit }) => {
                if self.running.remove(&number) {
                    self.ended.insert(number, exit);
                }
            }
            Said::Refused { .. } => {}
            // Whoever asked for it has been told that it takes too long, and sees to it no more.
            Said::Forked(late) => {
                let process = late.pidfd.into_owned().map(PidFd::from_fd);
                // One that has ended needs no end.
                let _ = process.and_then(|process| process.signal(Signal::SIGKILL as i32));
            }
        }
    }
}

/// A job, in the hands of whoever asked for it.
#[derive(Debug)]
pub struct Job {
    /// Its process.
    pub process: Spawned,
    /// The stream between it and us. When the job ends, that is received here: the end, an error or a panic.
    pub channel: Channel<Requester>,
}

/// The end of a channel that the requester of a [`Job`] has.
#[derive(Debug)]
pub struct Requester(());

impl sealed::End for Requester {
    fn stop_token(&self) -> Option<&StopToken> {
        None
    }
}

impl Spawner {
    /// Has a job run: a function that the spawner was given by [`Jobs`].
    ///
    /// # Errors
    /// The spawner has no such job, or cannot fork; it is gone.
    pub fn job<A: Serialize>(&self, name: &str, args: &A) -> Result<Job, SpawnError> {
        let arguments =
            ArgumentsFile::encode(args).map_err(SpawnError::io("encode the arguments"))?;
        let (ours, theirs) =
            socket::stream_pair().map_err(SpawnError::io("make a pair of sockets"))?;
        let request = JobRequest {
            name: name.into(),
            arguments,
            channel: Fd::from(theirs),
        };
        let place =
            file::memory_file(c"place").map_err(SpawnError::io("keep a place for the process"))?;
        match self.line.start("job", request, place)? {
            Answer::Started(started) => Ok(Job {
                process: Spawned::of_job(started, Arc::clone(&self.line))?,
                channel: channel(ours),
            }),
            Answer::Failed { action, errno } => Err(SpawnError::Failed {
                action,
                program: name.into(),
                source: io::Error::from_raw_os_error(errno),
            }),
        }
    }
}

/// The requester's end of a stream that began with the connection.
fn channel(socket: std::os::fd::OwnedFd) -> Channel<Requester> {
    let limits = Arc::new(Limits::default());
    let connection = Connection::new(Arc::new(linger::Socket::from(socket)));
    let input = StreamIn::new(Inbox::new(limits.bounds()), mold::STREAM, Side::Client);
    let output = StreamOut::new(Outbox::new(limits.bounds()), mold::STREAM, true);
    let send = SendHalf::new(output, &connection, &limits, None);
    let parts = Parts {
        input,
        connection,
        end: Requester(()),
    };
    Channel::from_halves(send, ReceiveHalf::new(parts, &limits, None))
}

impl Line {
    /// What a process that was started by this line is asked about, by the way in which it was.
    pub(super) const PROCESS: [&'static str; 2] = ["status", "forget"];
    pub(super) const JOB: [&'static str; 2] = ["job status", "job forget"];
}
