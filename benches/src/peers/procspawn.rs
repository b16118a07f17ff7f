//! procspawn: functions that are called in processes, which are this program executed once more.
//!
//! Fairness: a pool is its way of keeping processes, and has a process for each call that is under way; byte strings go as
//! `ByteBuf`. It has neither connections nor descriptors nor a preload.

use crate::contestant::{Connect, Contestant, Kind, after_silence, counted, timed};
use crate::task::{BATCH, CROWD, Task, table};
use procspawn::Pool;
use serde_bytes::ByteBuf;
use std::time::Instant;

pub struct Procspawn;

fn hello((first, last): (String, String)) -> String {
    format!("{first} {last}")
}

fn add((a, b): (u32, u32)) -> u32 {
    a + b
}

fn echo(bytes: ByteBuf) -> ByteBuf {
    bytes
}

fn word(n: usize) -> u64 {
    table()[n]
}

fn crash((): ()) -> u32 {
    crate::ours::crash()
}

fn names() -> (String, String) {
    ("Joe".into(), "Dalton".into())
}

/// So many processes, each of which has worked.
fn pool(size: usize) -> Pool {
    let pool = Pool::new(size).expect("a pool");
    add_at_once(&pool, size as u32);
    pool
}

/// So many calls that are all under way.
fn add_at_once(pool: &Pool, count: u32) {
    let calls: Vec<_> = (0..count).map(|n| pool.spawn((n, 1), add)).collect();
    for (n, call) in (0..).zip(calls) {
        assert_eq!(call.join().expect("a sum"), n + 1);
    }
}

impl Contestant for Procspawn {
    fn name(&self) -> &'static str {
        "procspawn"
    }

    fn kind(&self) -> Kind {
        Kind::Peer
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        let size = match task {
            Task::AddOnEight | Task::Burst | Task::Loss => CROWD,
            Task::Hello | Task::Echo(_) | Task::Batch | Task::Recovery => 1,
            // A process of its own for each call.
            Task::Lifetime | Task::Start => {
                return Some(Box::new(|_| {
                    timed(|| {
                        let call = procspawn::spawn(names(), hello);
                        assert_eq!(call.join().expect("a reply").len(), 10);
                    })
                }));
            }
            Task::Table => {
                return Some(Box::new(|_| {
                    timed(|| assert!(procspawn::spawn(1_usize, word).join().is_ok()))
                }));
            }
            _ => return None,
        };
        let pool = std::rc::Rc::new(pool(size));
        Some(Box::new(move |_| {
            let pool = pool.clone();
            match task {
                Task::AddOnEight => timed(move || add_at_once(&pool, CROWD as u32)),
                Task::Burst => after_silence(move || add_at_once(&pool, CROWD as u32)),
                Task::Batch => timed(move || add_at_once(&pool, BATCH)),
                Task::Recovery => counted(move || recover(&pool)),
                Task::Loss => counted(move || lose(&pool)),
                Task::Echo(size) => timed(move || {
                    let call = pool.spawn(ByteBuf::from(vec![7; size]), echo);
                    assert_eq!(call.join().expect("an echo").len(), size);
                }),
                _ => timed(move || {
                    let call = pool.spawn(names(), hello);
                    assert_eq!(call.join().expect("a reply").len(), 10);
                }),
            }
        }))
    }
}

/// The pool replaces a process that has crashed by itself.
fn recover(pool: &Pool) -> f64 {
    let begun = Instant::now();
    assert!(pool.spawn((), crash).join().is_err());
    assert!(pool.spawn(names(), hello).join().is_ok());
    begun.elapsed().as_secs_f64()
}

/// A hundred calls, eight at a time; one of them crashes.
fn lose(pool: &Pool) -> f64 {
    let mut failed = 0_u32;
    let all: Vec<u32> = (0..100).collect();
    for some in all.chunks(CROWD) {
        let call = |n: &u32| match n {
            50 => pool.spawn((), crash),
            n => pool.spawn((*n, 1), add),
        };
        let calls: Vec<_> = some.iter().map(call).collect();
        failed += calls
            .into_iter()
            .map(|call| u32::from(call.join().is_err()))
            .sum::<u32>();
    }
    f64::from(failed)
}
