//! What a server answers, and with what.
//!
//! Invariant: these only add to a definition; whether it is a sensible one is found out at the start.

use super::Server;
use crate::channel::Channel;
use crate::context::{Context, Control};
use crate::passenger::MessageChannel;
use crate::service::Raw;
use crate::session::EventHandler;
use crate::{Fault, Signal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// What it answers.
impl Server {
    /// A server without handlers, with a private listener and default limits.
    pub fn new() -> Server {
        Server::default()
    }

    /// Answers calls of `name`, of 255 bytes at most.
    ///
    /// Handlers run at the same time in several threads, for different clients. A panic is the caller's
    /// [`CallError::Panicked`](crate::CallError::Panicked), and nothing else.
    pub fn handle<A, R>(
        mut self,
        name: impl Into<String>,
        handler: impl Fn(&mut Context, A) -> Result<R, Fault> + Send + Sync + 'static,
    ) -> Server
    where
        A: DeserializeOwned,
        R: Serialize,
    {
        self.service.add(name.into(), handler);
        self
    }

    /// Answers [`Client::open`](crate::Client::open) of `name`: the handler has the connection for itself, with a
    /// thread of its own, until it returns and both halves of its [`Channel`] are dropped. Then the connection
    /// serves further calls.
    ///
    /// An error that it returns is what its client receives last. When the server stops, it is told so: see
    /// [`Channel::stop_token`].
    ///
    /// ```
    /// # use forkserver::{Channel, Server};
    /// let server = Server::new().handle_stream("upper", |_, (): (), mut channel: Channel| {
    ///     while let Some(line) = channel.recv::<String>()? {
    ///         channel.send(&line.to_uppercase())?;
    ///     }
    ///     Ok(())
    /// });
    /// ```
    pub fn handle_stream<A>(
        mut self,
        name: impl Into<String>,
        handler: impl Fn(&mut Context, A, Channel) -> Result<(), Fault> + Send + Sync + 'static,
    ) -> Server
    where
        A: DeserializeOwned + Send + 'static,
    {
        self.service.add_stream(name.into(), handler);
        self
    }

    /// Answers [`Client::open`](crate::Client::open) of `name` by callbacks: `make` makes a handler for the stream, which is
    /// called when something has come, has left, or was posted, and has no thread of its own. See [`EventHandler`].
    ///
    /// When the handler [closes](crate::Session::close) the session, the client's stream ends and its connection serves
    /// further calls.
    ///
    /// ```
    /// # use forkserver::{EventHandler, Fault, Item, Server, Session};
    /// struct Sum(u64);
    ///
    /// impl EventHandler for Sum {
    ///     fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
    ///         self.0 += item.decode::<u64>()?;
    ///         Ok(session.send(&self.0)?)
    ///     }
    /// }
    ///
    /// let server = Server::new().handle_events("sum", |_, start: u64| Ok(Sum(start)));
    /// ```
    pub fn handle_events<A, H>(
        mut self,
        name: impl Into<String>,
        make: impl Fn(&mut Context, A) -> Result<H, Fault> + Send + Sync + 'static,
    ) -> Server
    where
        A: DeserializeOwned,
        H: EventHandler,
    {
        self.service.add_events(name.into(), make);
        self
    }

    /// Answers requests of `name` on [listeners](crate::Listener::passenger) that speak Passenger's format: the handler
    /// gets the byte strings behind the name, and the connection, which it has for itself, with a thread of its own, until
    /// it returns. An error that it returns is told to the [observer](Server::observe): the format has none.
    ///
    /// Handlers of [`Server::handle`] can be called there as well if their arguments and results are made of strings alone:
    /// tuples, sequences and single ones of `String` or [`Bytes`](crate::Bytes). The result comes as an array; a unit is
    /// not answered.
    ///
    /// ```
    /// # use forkserver::{Listener, Server};
    /// let server = Server::new()
    ///     .listen(Listener::private().passenger())
    ///     .handle_messages("count", |_, args, mut channel| {
    ///         channel.write(&[args.len().to_string()])?;
    ///         while let Some(more) = channel.read()? {
    ///             channel.write(&[more.len().to_string()])?;
    ///         }
    ///         Ok(())
    ///     });
    /// ```
    pub fn handle_messages(
        mut self,
        name: impl Into<String>,
        handler: impl Fn(&mut Context, Vec<Vec<u8>>, MessageChannel) -> Result<(), Fault>
        + Send
        + Sync
        + 'static,
    ) -> Server {
        self.service.add_messages(name.into(), Arc::new(handler));
        self
    }

    /// Answers calls of any name that has no handler.
    pub fn fallback(
        mut self,
        handler: impl Fn(&mut Context, &str, Raw) -> Result<Raw, Fault> + Send + Sync + 'static,
    ) -> Server {
        self.service.set_fallback(Arc::new(handler));
        self
    }

    /// Runs `handler` in the server, in normal context on its control thread, soon after `signal` has come. With
    /// a handler, INT and TERM do not stop the server any more; the handler may.
    ///
    /// Orders, other signals and the engine's watchdog wait for it: be quick, or start a thread.
    ///
    /// KILL, STOP, ILL, FPE, SEGV, BUS and IO cannot be handled: a start error.
    pub fn handle_signal(
        mut self,
        signal: Signal,
        handler: impl Fn(&Control) + Send + Sync + 'static,
    ) -> Server {
        self.signals.push((signal, Arc::new(handler)));
        self
    }
}
