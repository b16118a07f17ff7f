//! Workers by bare `fork`: what a preloaded table costs those that share it, and how soon one that crashed is replaced.

use crate::contestant::{Connect, Contestant, Kind, counted, timed};
use crate::process::{Child, pair, served_mib};
use crate::task::{CROWD, Task, WORKERS, table};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// Forks of a process that has the table.
pub struct Forked;
/// A process for each connection, forked again when it crashes.
pub struct Reforked;

impl Contestant for Forked {
    fn name(&self) -> &'static str {
        "fork over a table"
    }

    fn kind(&self) -> Kind {
        Kind::Limit
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        match task {
            Task::Table => Some(Box::new(|_| {
                let table = table();
                timed(move || drop(Worker::start(&table[..1])))
            })),
            Task::Memory => {
                let (mut ours, mut theirs) = pair();
                let loader = Child::fork(move || {
                    let table = table();
                    let _workers: Vec<_> = (0..WORKERS).map(|_| Worker::start(&table)).collect();
                    theirs.write_all(&[0]).expect("somebody waits");
                    let _ = theirs.read(&mut [0]);
                });
                ours.read_exact(&mut [0]).expect("the workers");
                Some(Box::new(move |_| {
                    let _keep = (&loader, &ours);
                    counted(served_mib)
                }))
            }
            _ => None,
        }
    }
}

/// A process that has read a table which it did not load, and told so.
struct Worker {
    _line: UnixStream,
    _process: Child,
}

impl Worker {
    fn start(table: &[u64]) -> Worker {
        let (mut ours, mut theirs) = pair();
        let process = Child::fork(move || {
            let sum = table
                .iter()
                .fold(0_u64, |sum, word| sum.wrapping_add(*word));
            theirs
                .write_all(&sum.to_le_bytes())
                .expect("somebody waits");
            let _ = theirs.read(&mut [0]);
        });
        ours.read_exact(&mut [0; 8]).expect("the sum");
        Worker {
            _line: ours,
            _process: process,
        }
    }
}

impl Contestant for Reforked {
    fn name(&self) -> &'static str {
        "fork again"
    }

    fn kind(&self) -> Kind {
        Kind::Limit
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        match task {
            Task::Recovery => Some(Box::new(|_| {
                let mut echo = Fragile::start();
                counted(move || {
                    let begun = Instant::now();
                    assert!(!echo.call(CRASH));
                    echo = Fragile::start();
                    assert!(echo.call(0));
                    begun.elapsed().as_secs_f64()
                })
            })),
            Task::Loss => Some(Box::new(|_| counted(lose))),
            _ => None,
        }
    }
}

/// The message that crashes who receives it.
const CRASH: u8 = 1;

/// A process that answers bytes.
struct Fragile {
    line: UnixStream,
    _process: Child,
}

impl Fragile {
    fn start() -> Fragile {
        let (line, mut theirs) = pair();
        let process = Child::fork(move || {
            let mut byte = [0];
            while theirs.read_exact(&mut byte).is_ok() && byte != [CRASH] {
                let _ = theirs.write_all(&byte);
            }
        });
        Fragile {
            line,
            _process: process,
        }
    }

    fn call(&mut self, byte: u8) -> bool {
        self.line.write_all(&[byte]).is_ok() && self.line.read_exact(&mut [0]).is_ok()
    }
}

/// Eight connections with a process each: nobody else has the one that crashes.
fn lose() -> f64 {
    let mut echoes: Vec<_> = (0..CROWD).map(|_| Fragile::start()).collect();
    let mut failed = 0;
    for n in 0..100 {
        let echo = &mut echoes[n % CROWD];
        if !echo.call(u8::from(n == 50)) {
            failed += 1;
            *echo = Fragile::start();
        }
    }
    f64::from(failed)
}
