//! Calls that keep a processor busy: what a second worker adds to the first, each with one thread.

use super::{client, definition, serve};
use crate::contestant::{Connect, Contestant, Kind, timed};
use crate::task::{Task, WORK};
use forkserver::{Engine, Prefork};
use std::time::Instant;

pub struct Busy {
    pub name: &'static str,
    pub workers: usize,
}

impl Contestant for Busy {
    fn name(&self) -> &'static str {
        self.name
    }

    fn kind(&self) -> Kind {
        Kind::Forkserver
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        if !matches!(task, Task::Work { .. }) {
            return None;
        }
        let definition = definition()
            .engine(Engine::Evented)
            .handle("work", |_, (): ()| {
                let begun = Instant::now();
                while begun.elapsed() < WORK {
                    std::hint::spin_loop();
                }
                Ok(())
            })
            .prefork(Prefork::new(self.workers));
        Some(serve(&definition, |server| {
            let mut client = client(server.address());
            timed(move || client.call("work", &()).expect("an end"))
        }))
    }
}
