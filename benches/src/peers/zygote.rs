//! zygote: functions that are called in a process which was forked early, and which forks others.
//!
//! Fairness: it is the only peer that forks, so that it may stand beside us where processes are started. One call at a time
//! is all that it can do; it has no connections.

use crate::contestant::{Connect, Contestant, Kind, Rounds, counted, timed};
use crate::process::served_mib;
use crate::task::{Task, WORKERS, table};
use serde_bytes::ByteBuf;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::rc::Rc;
use std::sync::OnceLock;
use zygote::{WireFd, Zygote};

pub struct Forker;

/// What is there in the zygote, and in all that it forks.
static TABLE: OnceLock<Vec<u64>> = OnceLock::new();
static NULL: OnceLock<File> = OnceLock::new();

fn hello((first, last): (String, String)) -> String {
    format!("{first} {last}")
}

fn echo(bytes: ByteBuf) -> ByteBuf {
    bytes
}

fn descriptor((): ()) -> WireFd<OwnedFd> {
    let null = NULL.get_or_init(|| File::open("/dev/null").expect("a file"));
    WireFd::new(null.try_clone().expect("a descriptor").into())
}

fn load((): ()) {
    TABLE.get_or_init(table);
}

fn sum(words: usize) -> u64 {
    let table = &TABLE.get().expect("it has been loaded")[..words];
    table.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}

fn run_true((): ()) -> bool {
    Command::new("/bin/true")
        .status()
        .is_ok_and(|status| status.success())
}

fn call_hello(zygote: &Zygote) {
    let names = ("Joe".to_string(), "Dalton".to_string());
    assert_eq!(zygote.run(hello, names).len(), 10);
}

impl Contestant for Forker {
    fn name(&self) -> &'static str {
        "zygote"
    }

    fn kind(&self) -> Kind {
        Kind::Peer
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        let operation: fn(Rc<Zygote>, Task) -> Rounds = match task {
            Task::Hello => |zygote, _| timed(move || call_hello(&zygote)),
            Task::Echo(_) => repeat_echo,
            Task::Descriptor => |zygote, _| timed(move || drop(zygote.run(descriptor, ()))),
            Task::Spawn => |zygote, _| timed(move || assert!(zygote.run(run_true, ()))),
            Task::Start => |zygote, _| timed(move || call_hello(&zygote.spawn())),
            Task::Table => |zygote, _| {
                zygote.run(load, ());
                timed(move || {
                    zygote.spawn().run(sum, 1_usize);
                })
            },
            Task::Memory => memory,
            Task::Lifetime => {
                return Some(Box::new(|_| timed(|| call_hello(&Zygote::new()))));
            }
            _ => return None,
        };
        let zygote = Rc::new(Zygote::new());
        Some(Box::new(move |_| operation(zygote.clone(), task)))
    }
}

fn repeat_echo(zygote: Rc<Zygote>, task: Task) -> Rounds {
    let Task::Echo(size) = task else {
        unreachable!("{task:?} is no echo")
    };
    let bytes = ByteBuf::from(vec![7; size]);
    timed(move || assert_eq!(zygote.run(echo, &bytes).len(), size))
}

fn memory(zygote: Rc<Zygote>, _: Task) -> Rounds {
    zygote.run(load, ());
    let workers: Vec<_> = (0..WORKERS).map(|_| zygote.spawn()).collect();
    for worker in &workers {
        worker.run(sum, crate::task::TABLE / 8);
    }
    counted(move || {
        let _keep = (&zygote, &workers);
        served_mib()
    })
}
