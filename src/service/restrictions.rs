//! What one handler grants, beside what its server does: how often at a time, how much, how long, and to whom.
//!
//! Invariant: a slot is a guard, so that none is lost by a panic or a stream; a call that is refused here has not been
//! decoded.

use super::{Outcome, Run, StreamTask};
use crate::context::{Context, Peer};
use crate::panics;
use crate::protocol::message::{Class, ErrorBody};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Bounds on the calls of one handler: see [`Server::restrict`](crate::Server::restrict). Without any, there are
/// none but the server's [`Limits`](crate::Limits).
///
/// ```
/// use forkserver::{Restrictions, Server};
/// use std::time::Duration;
///
/// let few = Restrictions::new().max_concurrent(2).max_payload(1 << 10).deadline(Duration::from_secs(1)).users([0]);
/// let server = Server::new().handle("rebuild", |_, what: String| Ok(what)).restrict("rebuild", few);
/// ```
#[derive(Clone, Default)]
#[must_use = "restrictions are given to `Server::restrict`"]
pub struct Restrictions {
    max_concurrent: Option<usize>,
    max_payload: Option<usize>,
    deadline: Option<Duration>,
    peers: Vec<Allows>,
}

type Allows = Arc<dyn Fn(&Peer) -> bool + Send + Sync>;

impl Restrictions {
    /// None yet.
    pub fn new() -> Restrictions {
        Restrictions::default()
    }

    /// How many calls of the handler may run at a time, over all connections; a stream's runs until its handler has
    /// returned, or is dropped if it is made of callbacks. Further ones are answered [`CallError::Busy`](crate::CallError::Busy). Default: no limit.
    pub fn max_concurrent(mut self, count: usize) -> Restrictions {
        self.max_concurrent = Some(count);
        self
    }

    /// How many bytes the encoded arguments may have, without the name; descriptors have none. Further ones are answered
    /// [`CallError::Refused`](crate::CallError::Refused). Default: what [`Limits::max_frame`](crate::Limits::max_frame)
    /// leaves.
    pub fn max_payload(mut self, bytes: usize) -> Restrictions {
        self.max_payload = Some(bytes);
        self
    }

    /// How long a call may take, from when it is begun. [`Context::deadline`] is no later, and an answer that comes
    /// later is replaced by [`CallError::TimedOut`](crate::CallError::TimedOut), which says that the handler has run.
    /// Nothing interrupts the handler. The answer of a stream is not replaced: its items have left. Default: no limit.
    pub fn deadline(mut self, after: Duration) -> Restrictions {
        self.deadline = Some(after);
        self
    }

    /// The only users whose processes may call the handler, root among them only if it is listed. Others are answered
    /// [`CallError::Refused`](crate::CallError::Refused). Given more than once, a user must be in each list.
    pub fn users(self, uids: impl IntoIterator<Item = u32>) -> Restrictions {
        let uids: Vec<u32> = uids.into_iter().collect();
        self.peers(move |peer| uids.contains(&peer.uid))
    }

    /// As [`Restrictions::users`], for any rule: whoever it says `false` of is refused. If it panics, that is a refusal
    /// and [`Event::Panicked`](crate::Event::Panicked).
    pub fn peers(mut self, allows: impl Fn(&Peer) -> bool + Send + Sync + 'static) -> Restrictions {
        self.peers.push(Arc::new(allows));
        self
    }
}

impl std::fmt::Debug for Restrictions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Restrictions")
            .field("max_concurrent", &self.max_concurrent)
            .field("max_payload", &self.max_payload)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// The restrictions of one handler of a server that runs.
pub(super) struct Ward {
    restrictions: Restrictions,
    running: Arc<AtomicUsize>,
}

/// What a call that was let through holds until its handler has returned.
pub(super) struct Pass {
    slot: Option<Slot>,
    /// How long it may take, and when that is over.
    deadline: Option<(Duration, Instant)>,
}

/// One of the calls that may run at a time.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Ward {
    pub(super) fn new(restrictions: &Restrictions) -> Ward {
        Ward {
            restrictions: restrictions.clone(),
            running: Arc::default(),
        }
    }

    /// Lets a call of the handler through whose arguments have `len` bytes, or says why not.
    pub(super) fn admit(
        &self,
        name: &str,
        context: &mut Context,
        len: usize,
    ) -> Result<Pass, ErrorBody> {
        let refused = |reason: String| ErrorBody::new(Class::Refused, vec![reason]);
        let peer = context.peer();
        if !self.allows(name, context, &peer) {
            return Err(refused(format!("user {} may not call it", peer.uid)));
        }
        match self.restrictions.max_payload {
            Some(most) if len > most => {
                return Err(refused(format!(
                    "the arguments have {len} bytes, more than max_payload, {most}"
                )));
            }
            _ => {}
        }
        let slot =
            match self.restrictions.max_concurrent {
                Some(most) => Some(self.take_slot(most).ok_or_else(|| {
                    ErrorBody::busy(&format!("max_concurrent of {name:?}, {most},"))
                })?),
                None => None,
            };
        let deadline = self.restrictions.deadline.and_then(|after| {
            let at = Instant::now().checked_add(after)?;
            context.limit_deadline(at);
            Some((after, at))
        });
        Ok(Pass { slot, deadline })
    }

    fn allows(&self, name: &str, context: &Context, peer: &Peer) -> bool {
        let all = || self.restrictions.peers.iter().all(|allows| allows(peer));
        panics::catch(all).unwrap_or_else(|panicked| {
            let (session, control) = (Some(context.session_id()), context.control());
            let what = format!("the restrictions of {name:?}");
            control.observer().panicked(session, &what, &panicked);
            false
        })
    }

    fn take_slot(&self, most: usize) -> Option<Slot> {
        let one_more = |running| (running < most).then_some(running + 1);
        let taken = self
            .running
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more);
        taken.ok().map(|_| Slot(Arc::clone(&self.running)))
    }
}

impl Pass {
    /// The handler has returned, or its stream is to be opened, which takes the slot along.
    pub(super) fn settle(self, outcome: Outcome, id: u32, context: &mut Context) -> Outcome {
        match outcome {
            Outcome::Answer(_) if self.is_late() => {
                let after = self.deadline.map(|(after, _)| after);
                Outcome::Answer(ErrorBody::too_late(after).write(id))
            }
            Outcome::Answer(answer) => Outcome::Answer(answer),
            Outcome::Stream(task) => Outcome::Stream(Box::new(self.hand_on(*task))),
            Outcome::Events(events) => {
                context.hold(Box::new(self.slot));
                Outcome::Events(events)
            }
        }
    }

    /// Whether the handler has taken longer than it may.
    pub(super) fn is_late(&self) -> bool {
        self.deadline.is_some_and(|(_, at)| Instant::now() >= at)
    }

    /// The slot goes with whoever has the connection.
    pub(super) fn hand_on(self, task: StreamTask) -> StreamTask {
        let StreamTask { name, run } = task;
        let slot = self.slot;
        let run = match run {
            Run::Stream(run) => Run::Stream(Box::new(move |context: &mut Context, channel| {
                let _slot = slot;
                run(context, channel)
            })),
            Run::Messages(run) => Run::Messages(Box::new(move |context: &mut Context, channel| {
                let _slot = slot;
                run(context, channel)
            })),
        };
        StreamTask { name, run }
    }
}
