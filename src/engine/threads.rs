//! The threads that an engine has started, and those in which the handlers of streams run.
//!
//! Invariant: every thread is joined, or was given time to end in a process that ends itself.

use super::driver::Driver;
use super::living::Living;
use crate::channel::StopToken;
use crate::protocol::message::ErrorBody;
use crate::service::StreamTask;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long threads may take to end when all connections have.
const LEAVING: Duration = Duration::from_millis(250);

/// All threads of an engine.
#[derive(Default)]
pub(super) struct Threads {
    handles: Mutex<Vec<JoinHandle<()>>>,
    living: Living,
}

impl Threads {
    pub(super) fn start(&self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let life = self.living.begin();
        let body = move || {
            let _life = life;
            body();
        };
        let thread = thread::Builder::new().name(name.into()).spawn(body)?;
        // Those of streams come and go.
        self.join(JoinHandle::is_finished);
        self.handles().push(thread);
        Ok(())
    }

    /// Gives a connection a thread of its own, in which its stream's handler runs, and then to `back`. It goes there at
    /// once if there can be no thread.
    pub(super) fn dedicate(
        &self,
        driver: Box<Driver>,
        task: StreamTask,
        stop: &StopToken,
        back: impl Fn(Box<Driver>) + Clone + Send + 'static,
    ) {
        // The thread takes both out, unless there is none.
        let slot = Arc::new(Mutex::new(Some((driver, task))));
        let take =
            |slot: &Mutex<Option<_>>| slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        let theirs = Arc::clone(&slot);
        let give = back.clone();
        let started = stop.child().and_then(|stop| {
            self.start("stream", move || {
                if let Some((mut driver, task)) = take(&theirs) {
                    driver.run_stream(task, stop);
                    give(driver);
                }
            })
        });
        if started.is_err() {
            if let Some((mut driver, task)) = take(&slot) {
                let body = ErrorBody::busy("the number of threads that the system allows");
                driver.refuse(task, body);
                back(driver);
            }
        }
    }

    /// Whatever a thread still closes, nobody needs to wait for: it ends with the process, or when it is through.
    pub(super) fn end(&self) {
        let through = self.living.wait_until_none(Instant::now() + LEAVING);
        self.join(|thread| through || thread.is_finished());
    }

    /// Waits for threads that are about to end.
    fn join(&self, which: impl Fn(&JoinHandle<()>) -> bool) {
        let mut handles = self.handles();
        let (ending, others): (Vec<_>, _) =
            std::mem::take(&mut *handles).into_iter().partition(which);
        *handles = others;
        drop(handles);
        // A thread does not panic; handlers' panics are caught.
        ending.into_iter().for_each(|thread| drop(thread.join()));
    }

    fn handles(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
