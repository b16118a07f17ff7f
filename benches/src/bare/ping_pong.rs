//! A message there and one back, by a write and a read that blocks on each side: the fastest wait there is.

use crate::contestant::{Connect, Contestant, Kind, Rounds, after_silence, timed};
use crate::crowd::crowd;
use crate::process::{Child, pair};
use crate::task::{BATCH, CROWD, Task};
use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

pub struct Blocking;

impl Contestant for Blocking {
    fn name(&self) -> &'static str {
        "blocking ping-pong"
    }

    fn kind(&self) -> Kind {
        Kind::Limit
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        let (ask, answer) = sizes(task)?;
        let connect = |clients| serve(clients, ask, answer);
        Some(match task {
            Task::AddOnEight => {
                let connect = connect(CROWD);
                Box::new(move |_| crowd(CROWD, &connect))
            }
            Task::Burst => {
                let connect = connect(CROWD);
                Box::new(move |_| {
                    let mut rounds = crowd(CROWD, &connect);
                    after_silence(move || {
                        rounds(1);
                    })
                })
            }
            _ => connect(task.clients()),
        })
    }
}

/// How long forkserver's messages are: the limit moves the same bytes.
pub fn sizes(task: Task) -> Option<(usize, usize)> {
    match task {
        Task::Hello => Some((40, 31)),
        Task::Add { .. } | Task::AddOnEight | Task::Burst => Some((26, 21)),
        Task::Echo(size) => Some((size, size)),
        Task::Batch => Some((BATCH as usize * 32, BATCH as usize * 32)),
        _ => None,
    }
}

/// A process for each client.
fn serve(clients: usize, ask: usize, answer: usize) -> Connect {
    let start = || {
        let (ours, mut theirs) = pair();
        let child = Child::fork(move || {
            let (mut buffer, reply) = (vec![0; ask], vec![1; answer]);
            while theirs.read_exact(&mut buffer).is_ok() && theirs.write_all(&reply).is_ok() {}
        });
        (ours, child)
    };
    let (lines, children): (Vec<_>, Vec<_>) = (0..clients).map(|_| start()).unzip();
    connect_to(lines, children, ask, answer)
}

/// The clients' side.
pub fn connect_to(
    lines: Vec<UnixStream>,
    children: Vec<Child>,
    ask: usize,
    answer: usize,
) -> Connect {
    let lines = RefCell::new(lines.into_iter().map(Some).collect::<Vec<_>>());
    Box::new(move |place| {
        let _keep = &children;
        let line = lines.borrow_mut()[place].take().expect("one client each");
        exchange(line, ask, answer)
    })
}

pub fn exchange(mut stream: UnixStream, ask: usize, answer: usize) -> Rounds {
    let (message, mut buffer) = (vec![1; ask], vec![0; answer]);
    timed(move || {
        stream.write_all(&message).expect("a message");
        stream.read_exact(&mut buffer).expect("an answer");
    })
}
