//! Several clients at once, each in a process of its own: clients of a Unix socket seldom share one.

use crate::contestant::{Connect, Rounds};
use crate::process::{Child, pair};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// So many clients that begin a round together; it is over when all are done.
pub fn crowd(clients: usize, connect: &Connect) -> Rounds {
    let mut members: Vec<_> = (0..clients)
        .map(|place| Member::start(place, connect))
        .collect();
    members.iter_mut().for_each(Member::wait);
    Box::new(move |count| {
        let begun = Instant::now();
        members.iter_mut().for_each(|member| member.go(count));
        members.iter_mut().for_each(Member::wait);
        begun.elapsed().as_secs_f64() / f64::from(count)
    })
}

struct Member {
    line: UnixStream,
    _process: Child,
}

impl Member {
    fn start(place: usize, connect: &Connect) -> Member {
        let (line, theirs) = pair();
        let process = Child::fork(|| play(theirs, connect(place)));
        Member {
            line,
            _process: process,
        }
    }

    fn go(&mut self, count: u32) {
        self.line.write_all(&count.to_le_bytes()).expect("it waits");
    }

    fn wait(&mut self) {
        self.line.read_exact(&mut [0]).expect("it is done");
    }
}

/// The member's side: does as many operations as it is told to, as often as it is told.
fn play(mut line: UnixStream, mut rounds: Rounds) {
    let mut count = [0; 4];
    loop {
        line.write_all(&[0]).expect("somebody waits");
        if line.read_exact(&mut count).is_err() {
            return;
        }
        rounds(u32::from_le_bytes(count));
    }
}
