//! Listeners behind which something else is spoken than our own protocol.
//!
//! Invariant: these are wishes; what becomes of a connection is up to the engine, which is the same for all.

use super::Listener;
use super::wire::{AcceptedConn, Acceptor, Permit, Records, Wire};
use crate::context::Context;
use crate::fault::Fault;
use crate::protocol::framing::Framing;
use crate::session::EventHandler;
use std::sync::Arc;

/// What is spoken.
impl Listener {
    /// Speaks the format of Phusion Passenger's `AbstractServer`: password, one request, and then whatever its handler
    /// says. See [`passenger`](crate::passenger) for what can be called.
    ///
    /// The format has no greeting: a client cannot tell who listens before it sends the password. Where the path is safe,
    /// as it is by default, that is no loss.
    pub fn passenger(mut self) -> Listener {
        self.wire = Wire::Passenger;
        self
    }

    /// Speaks a protocol of your own, in records, with a handler for each client whose callbacks the engine calls. There is
    /// no password: those are let in whom the kernel says to run as this user, as root, or as the one given to
    /// [`Listener::for_user`]. `make` is called for each connection; an error of its refuses the client.
    ///
    /// ```
    /// # use forkserver::{EventHandler, Fault, Item, Lines, Listener, Server, Session};
    /// #[derive(Default)]
    /// struct Shout;
    ///
    /// impl EventHandler for Shout {
    ///     fn connected(&mut self, session: &mut Session) -> Result<(), Fault> {
    ///         Ok(session.write("say something")?)
    ///     }
    ///
    ///     fn received(&mut self, session: &mut Session, line: Item) -> Result<(), Fault> {
    ///         Ok(session.write(line.as_slice().to_ascii_uppercase())?)
    ///     }
    /// }
    ///
    /// let listener = Listener::at("/run/user/1000/shout").handle_events(Lines::default, |_| Ok(Shout));
    /// let server = Server::new().listen(listener);
    /// ```
    pub fn handle_events<F: Framing, H: EventHandler>(
        mut self,
        framing: impl Fn() -> F + Send + Sync + 'static,
        make: impl Fn(&mut Context) -> Result<H, Fault> + Send + Sync + 'static,
    ) -> Listener {
        let make = move |context: &mut Context| {
            let handler: Box<dyn EventHandler> = Box::new(make(context)?);
            let framing: Box<dyn Framing> = Box::new(framing());
            Ok((handler, framing))
        };
        self.wire = Wire::Records(Arc::new(Records {
            make: Box::new(make),
        }));
        self
    }

    /// Gives each connection that is admitted to `take`, which has it from its first byte: no password, no protocol. The
    /// [`Permit`] counts it for as long as it is kept.
    ///
    /// `take` runs on the thread that accepts: others wait for it, so that it starts a thread, or hands the connection to
    /// one. A panic drops both. Who may connect is as for [`Listener::handle_events`].
    ///
    /// ```
    /// # use forkserver::{Listener, Server};
    /// use std::io::{Read, Write};
    /// let listener = Listener::private().accept_with(|accepted, permit| {
    ///     std::thread::spawn(move || {
    ///         let _permit = permit; // until the thread ends
    ///         let mut stream = accepted.into_stream();
    ///         let mut first = [0];
    ///         while let Ok(1) = stream.read(&mut first) {
    ///             let _ = stream.write_all(&first);
    ///         }
    ///     });
    /// });
    /// let server = Server::new().listen(listener);
    /// ```
    pub fn accept_with(
        mut self,
        take: impl Fn(AcceptedConn, Permit) + Send + Sync + 'static,
    ) -> Listener {
        self.wire = Wire::Raw(Arc::new(Acceptor {
            take: Box::new(take),
        }));
        self
    }
}
