//! Processes for a large program with threads, and processes that share what was loaded once.

use crate::contestant::{Connect, Contestant, Kind, Rounds, counted, timed};
use crate::process::served_mib;
use crate::task::{Task, WORKERS, table};
use forkserver::spawn::{self, Command, Job, Spawner};
use forkserver::{AnyEntry, Entry, Fault, Server, ServerHandle};

/// What this program is when it is executed once more.
pub const ENTRIES: &[&dyn AnyEntry] = &[&SMALL, &LOADING];

static SMALL: Entry<()> = Entry::new("small", |()| Ok(answering()));
static LOADING: Entry<()> = Entry::new("loading", |()| {
    Ok(Server::new()
        .initialize(|_| Ok(table()))
        .handle("sum", |ctx, words: usize| {
            Ok(sum(&ctx.state::<Vec<u64>>()[..words]))
        }))
});

fn answering() -> Server {
    Server::new().handle("sum", |_, _: usize| Ok(7_u64))
}

fn sum(words: &[u64]) -> u64 {
    words.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}

/// A spawner, which was forked while the program was small; it has loaded the table, where there is one.
pub struct Jobs;
/// The program's own image, executed once more.
pub struct Launched;
/// A server that is forked from the large program in spite of its threads.
pub struct ForkedUnchecked;

impl Contestant for Jobs {
    fn name(&self) -> &'static str {
        "forkserver spawner"
    }

    fn kind(&self) -> Kind {
        Kind::Forkserver
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        match task {
            Task::Spawn => {
                let spawner = std::sync::Arc::new(Spawner::start().expect("a spawner"));
                Some(Box::new(move |_| spawn_true(spawner.clone())))
            }
            Task::Table => Some(Box::new(|_| {
                let spawner = with_table();
                timed(move || drop(answered(&spawner, 1)))
            })),
            Task::Memory => Some(Box::new(|_| {
                let spawner = with_table();
                let jobs: Vec<_> = (0..WORKERS)
                    .map(|_| answered(&spawner, usize::MAX))
                    .collect();
                counted(move || {
                    let _keep = (&spawner, &jobs);
                    served_mib()
                })
            })),
            _ => None,
        }
    }
}

fn spawn_true(spawner: std::sync::Arc<Spawner>) -> Rounds {
    timed(move || {
        let process = spawner.spawn(&mut Command::new("/bin/true"));
        process.expect("a process").wait().expect("the end");
    })
}

fn with_table() -> Spawner {
    spawn::Jobs::preload(|| Ok::<_, Fault>(table()))
        .job("sum", |table: &Vec<u64>, words: usize, mut channel| {
            channel.send(&sum(&table[..words.min(table.len())]))?;
            // Stays until the requester goes.
            let _ = channel.recv::<()>();
            Ok(())
        })
        .start()
        .expect("a spawner with a table")
}

/// A job that has added so many words of the table.
fn answered(spawner: &Spawner, words: usize) -> Job {
    let mut job = spawner.job("sum", &words).expect("a job");
    let _: u64 = job.channel.recv().expect("an answer").expect("a sum");
    job
}

impl Contestant for Launched {
    fn name(&self) -> &'static str {
        "forkserver launched"
    }

    fn kind(&self) -> Kind {
        Kind::Forkserver
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        match task {
            Task::Start => Some(Box::new(|_| {
                timed(|| drop(SMALL.start(&()).expect("a server").kill()))
            })),
            Task::Table => Some(Box::new(|_| timed(|| assert!(loaded(1).kill().is_ok())))),
            Task::Memory => Some(Box::new(|_| {
                let servers: Vec<_> = (0..WORKERS)
                    .map(|_| loaded(crate::task::TABLE / 8))
                    .collect();
                counted(move || {
                    let _keep = &servers;
                    served_mib()
                })
            })),
            _ => None,
        }
    }
}

fn loaded(words: usize) -> ServerHandle {
    let server = LOADING.start(&()).expect("a server");
    let mut client = server.connect().expect("a client");
    let _: u64 = client.call("sum", &words).expect("a sum");
    server
}

impl Contestant for ForkedUnchecked {
    fn name(&self) -> &'static str {
        "forkserver forked"
    }

    fn kind(&self) -> Kind {
        Kind::Forkserver
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        (task == Task::Start).then(|| {
            Box::new(|_| {
                timed(|| {
                    // SAFETY: the other threads of this process only sleep, and hold no locks.
                    let server = unsafe { answering().start_unchecked() };
                    drop(server.expect("a server").kill());
                })
            }) as Connect
        })
    }
}
