//! The terms on which a server serves: where, by which threads, how much, and to whom.
//!
//! Invariant: as of any part of a definition, nothing happens before the start.

use super::Server;
use crate::arrival::Arrival;
use crate::engine::Engine;
use crate::event::Event;
use crate::listener::Listener;
use crate::prefork::{Prefork, memory};
use crate::service::{FATE, Restrictions, STATUS};
use crate::{Fault, Limits, Wait};
use std::sync::Arc;

/// How it serves.
impl Server {
    /// Where it listens, instead of the default: a private socket. Further calls add listeners, each with a
    /// [name](Listener::name) of its own.
    pub fn listen(mut self, listener: Listener) -> Server {
        self.listeners.push(listener);
        self
    }

    /// Which threads serve its clients. Default: [`Engine::Threaded`].
    pub fn engine(mut self, engine: Engine) -> Server {
        self.engine = engine;
        self
    }

    /// Has several processes serve its clients, each with this server's engine: a worker that crashes takes nothing with it but
    /// its own calls. The server is then their monitor, which forks them after `initialize`, so that what that made is in
    /// the memory of all and takes room once; that must not leave threads behind
    /// ([`StartError::MultiThreaded`]). Limits are each worker's own. A call of the same client may reach another worker,
    /// and another value of [`Context::session`](crate::Context::session), when the one that served it is replaced.
    ///
    /// A handler's call of `forkserver.status` from any client gives what [`ServerHandle::status`] says of the
    /// [pool](crate::PoolStatus). HUP reloads, TTIN adds a worker, TTOU takes one away, unless they have handlers; signals
    /// with handlers are passed on to all workers.
    ///
    /// ```
    /// # use forkserver::{Prefork, Server};
    /// let server = Server::new()
    ///     .initialize(|_| Ok(std::fs::read_to_string("/usr/share/dict/words").unwrap_or_default()))
    ///     .handle("knows", |ctx, word: String| Ok(ctx.state::<String>().lines().any(|line| line == word)))
    ///     .prefork(Prefork::new(4).max_calls(10_000));
    /// ```
    ///
    /// [`ServerHandle::status`]: crate::ServerHandle::status
    /// [`StartError::MultiThreaded`]: crate::StartError::MultiThreaded
    pub fn prefork(mut self, prefork: Prefork) -> Server {
        if self.prefork.replace(prefork).is_none() {
            self.service.add(STATUS.into(), |ctx, ()| {
                let mut status = ctx.control().status();
                let workers = status.pool.iter_mut().flat_map(|pool| &mut pool.workers);
                for worker in workers {
                    // If it is just ending, what it has said itself is as good.
                    if let Some((private, shared)) = memory::of_process(worker.pid) {
                        (worker.private_memory, worker.shared_memory) = (private, shared);
                    }
                }
                Ok(status)
            });
            self.service
                .add(FATE.into(), |ctx, (tag, generation): (u64, u32)| {
                    Ok(ctx.control().fate(tag, generation))
                });
        }
        self
    }

    /// How its threads wait for a client that calls all the time. Default: [`Wait::Sleep`]. With [`Engine::Evented`] the one
    /// thread waits so for everything.
    ///
    /// ```
    /// # use forkserver::{Server, Wait};
    /// # use std::time::Duration;
    /// let server = Server::new().wait(Wait::Spin(Duration::from_micros(20)));
    /// ```
    pub fn wait(mut self, wait: Wait) -> Server {
        self.wait = wait;
        self
    }

    /// Is told what happens, in the server, on the thread on which it happens: what is about one connection in order,
    /// and never two at a time. Be quick: what is told waits, and with `Paused` and `Resumed` acceptance and
    /// the server's end do. An observer that panics is not heard, and hurts nobody.
    ///
    /// ```
    /// # use forkserver::{Event, Server};
    /// let server = Server::new().observe(|event| {
    ///     if let Event::Disconnected { session, reason, .. } = event {
    ///         eprintln!("session {session}: {reason}");
    ///     }
    /// });
    /// ```
    pub fn observe(mut self, observer: impl Fn(&Event) + Send + Sync + 'static) -> Server {
        self.observer.add(Arc::new(observer));
        self
    }

    /// How much clients may take.
    pub fn limits(mut self, limits: Limits) -> Server {
        self.limits = Arc::new(limits);
        self
    }

    /// Asks `hook` about each connection that came through a listener, before anything is read from it, and of which the
    /// listener's users have been looked at already. An error refuses it: the client sees the end of the connection,
    /// observers [`Event::Refused`] with [`Ending::Rejected`](crate::Ending::Rejected). A panic is a refusal and
    /// [`Event::Panicked`]. The hook may put another socket in the connection's place: [`Arrival::replace`]. Several
    /// hooks are asked in the order in which they were given, up to the first that refuses.
    ///
    /// It runs on the thread that accepts: be quick, or nobody is accepted meanwhile. Connections that an owner makes by
    /// [`ServerHandle::connect`](crate::ServerHandle::connect) are not asked about.
    ///
    /// ```
    /// # use forkserver::{Fault, Server};
    /// let server = Server::new().admit(|arrival| match arrival.peer().uid {
    ///     0 => Err(Fault::new("root has nothing to do here")),
    ///     _ => Ok(()),
    /// });
    /// ```
    pub fn admit(
        mut self,
        hook: impl Fn(&mut Arrival) -> Result<(), Fault> + Send + Sync + 'static,
    ) -> Server {
        self.admit.push(Arc::new(hook));
        self
    }

    /// Whether a connection is closed when one of its calls has been answered with an error: an unknown name, arguments of
    /// other types, a fault, a panic, a limit. The answers leave, and calls that were sent behind it are refused as
    /// [`CallError::Closing`](crate::CallError::Closing): so a batch of calls stops at its first failure. Default:
    /// `false`, the connection goes on.
    ///
    /// ```
    /// # use forkserver::Server;
    /// let server = Server::new().handle("step", |_, number: u8| Ok(10_u8.checked_sub(number))).close_on_error(true);
    /// ```
    pub fn close_on_error(mut self, close: bool) -> Server {
        self.close_on_error = close;
        self
    }

    /// Bounds the calls of one handler: how many at a time, how large, how long, and whose. A later call for the same
    /// name replaces what an earlier one said. A name without a handler is an error at the start.
    pub fn restrict(mut self, name: impl Into<String>, restrictions: Restrictions) -> Server {
        self.service.restrict(name.into(), restrictions);
        self
    }
}
