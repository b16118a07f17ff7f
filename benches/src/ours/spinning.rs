//! The same call with both sides looking again and again before they sleep: what that buys where each has a processor of its own,
//! and what it costs where they share one.

use super::{call_hello, definition, serve};
use crate::contestant::{Connect, Contestant, Kind, timed};
use crate::task::Task;
use forkserver::{Client, Wait};
use std::time::Duration;

/// About twice a call.
const SPIN: Wait = Wait::Spin(Duration::from_micros(20));

pub struct Spinning;

impl Contestant for Spinning {
    fn name(&self) -> &'static str {
        "forkserver, spinning"
    }

    fn kind(&self) -> Kind {
        Kind::Forkserver
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        let definition = definition().wait(SPIN);
        (task == Task::Hello).then(|| {
            serve(&definition, |server| {
                let client = Client::connect(server.address()).expect("a client");
                let mut client = client.with_wait(SPIN);
                timed(move || call_hello(&mut client))
            })
        })
    }
}
