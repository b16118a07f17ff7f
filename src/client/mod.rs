//! A client that blocks: one authenticated connection.
//!
//! Invariant: the password goes to nobody but the process that the address names. An answer belongs to the call
//! whose id it carries, or to nobody; a late one is dropped with everything that came with it.

mod connect;
mod errors;
mod pending;
mod pipelined;
mod stream;
mod turn;
mod workers;

pub use self::pending::Pending;

use self::pending::{Answered, BegunCalls, Kept};

use crate::address::Address;
use crate::connection::Connection;
use crate::error::{CallError, ConnectError, Delivery};
use crate::limits::Limits;
use crate::password::Password;
use crate::protocol::client::ClientSession;
use crate::protocol::codec;
use crate::protocol::message::{ErrorBody, Form, write_call};
use crate::service::MAX_NAME;
use crate::sys::process;
use crate::wait::Wait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A connection that is older than this when the first call leaves is made anew: half of a server's usual patience.
const STALE: Duration = Duration::from_secs(1);

/// A connection to a server.
///
/// It can be sent to another thread but is used by one at a time; make one for each thread.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    /// Where the connection came from and when, until the first call leaves.
    fresh: Option<Box<(Address, Instant)>>,
    /// Where other workers are, if the server has any.
    home: Option<Box<Address>>,
    /// What the connection is called, so that they can be asked what became of it.
    tag: u64,
    session: ClientSession,
    limits: Limits,
    timeout: Option<Duration>,
    wait: Wait,
    generation: u32,
    last_id: u32,
    /// Calls that have been sent and not been answered.
    in_flight: usize,
    begun: BegunCalls,
    /// The stream that the server has opened.
    opened: Option<u32>,
    /// The server does not read any more; what it has still to say can be received.
    deaf: bool,
    broken: bool,
}

impl Client {
    /// Connects to a server. The kernel is asked who listens there first: the password goes to nobody else. It
    /// leaves with the first call, whose answer is the answer to it; see [`Client::authenticate`]. If more than a
    /// second passes before that, the connection is made anew, because a server does not wait long for strangers.
    ///
    /// # Errors
    /// Nobody listens there, or somebody else; there are no descriptors left.
    pub fn connect(address: &Address) -> Result<Client, ConnectError> {
        Client::connect_within(address, connect::PATIENCE)
    }

    fn connect_within(address: &Address, patience: Duration) -> Result<Client, ConnectError> {
        let connection = connect::connect_to(address, patience)?;
        let mut client = Client::over(connection, address.password.clone());
        client.fresh = Some(Box::new((address.clone(), Instant::now())));
        client.is_at(address);
        Ok(client)
    }

    /// The server's address is this.
    pub(crate) fn is_at(&mut self, address: &Address) {
        if address.has_workers {
            self.home = Some(Box::new(address.clone()));
            self.tag = workers::new_tag();
            self.session.set_tag(self.tag);
        }
    }

    /// A client over a connection whose other end is known to be the server's.
    pub(crate) fn over(connection: OwnedFd, password: Password) -> Client {
        let limits = Limits::default();
        Client {
            connection: Connection::new(Arc::new(connection.into())),
            fresh: None,
            home: None,
            tag: 0,
            session: ClientSession::new(password, limits.bounds()),
            limits,
            timeout: None,
            wait: Wait::Sleep,
            generation: process::generation(),
            last_id: 0,
            in_flight: 0,
            begun: BegunCalls::default(),
            opened: None,
            deaf: false,
            broken: false,
        }
    }

    /// How long each call may take. Default: for ever. The connection survives a call that took too long: its
    /// answer is dropped when it comes.
    pub fn with_timeout(mut self, timeout: Duration) -> Client {
        self.timeout = Some(timeout);
        self
    }

    /// How it waits for answers. Default: [`Wait::Sleep`].
    ///
    /// ```no_run
    /// # use forkserver::{Client, Server, Wait};
    /// # use std::time::Duration;
    /// # fn main() -> forkserver::Result<()> {
    /// # let server = Server::new().start()?;
    /// let client = server.connect()?.with_wait(Wait::Spin(Duration::from_micros(20)));
    /// # Ok(()) }
    /// ```
    pub fn with_wait(mut self, wait: Wait) -> Client {
        self.wait = wait;
        self.connection.set_wait(wait);
        self
    }

    /// Bounds on what the server may send, and on what is sent to it: `max_frame`, `max_fds`, `max_depth`,
    /// `max_elements`, `max_memory`, `max_in_flight`, `max_queued` and, in streams, `high_watermark` apply. To be said before the first call.
    pub fn with_limits(mut self, limits: Limits) -> Client {
        self.session.set_bounds(limits.bounds());
        self.limits = limits;
        self
    }

    /// Says hello now and waits for the welcome, instead of leaving both to the first call.
    ///
    /// # Errors
    /// The server refuses the connection, or is gone.
    pub fn authenticate(&mut self) -> Result<(), ConnectError> {
        if self.generation != process::generation() {
            return Err(ConnectError::WrongProcess);
        }
        self.freshen().map_err(|err| ConnectError::Io {
            action: "connect again",
            source: io::Error::other(err),
        })?;
        let deadline = self.deadline();
        // A hello is far below every limit.
        let _ = self.session.say_hello(true);
        while !self.session.is_welcome() {
            match self.step(deadline) {
                Ok(Some(answered)) => self.keep(answered),
                Ok(None) => {}
                Err(CallError::Denied(reason)) => return Err(ConnectError::Denied(reason)),
                Err(CallError::Stopping) => return Err(ConnectError::Stopping),
                Err(CallError::Busy { .. }) => return Err(ConnectError::Busy),
                Err(CallError::TimedOut { after, .. }) => {
                    return Err(ConnectError::TimedOut(after));
                }
                Err(CallError::Io { action, source }) => {
                    return Err(ConnectError::Io { action, source });
                }
                Err(err) => {
                    return Err(ConnectError::Io {
                        action: "authenticate",
                        source: io::Error::other(err),
                    });
                }
            }
        }
        Ok(())
    }

    /// Calls the handler `name` and waits for its result.
    ///
    /// # Errors
    /// See [`CallError`]; [`CallError::delivery`] tells whether the handler may have run.
    pub fn call<A, R>(&mut self, name: &str, args: &A) -> Result<R, CallError>
    where
        A: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        self.call_in_form(name, args, Form::Call)
    }

    /// A call, once more with another worker if the one that was asked leaves without having begun it.
    fn call_in_form<A, R>(&mut self, name: &str, args: &A, form: Form) -> Result<R, CallError>
    where
        A: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let mut turns = 0;
        // All turns together have no more time than one.
        let deadline = self.deadline();
        loop {
            let sent = self.send(name, args, form);
            let failure = match sent.and_then(|id| self.wait(id, deadline)) {
                Err(err) if self.turns_elsewhere(&err, &mut turns) => continue,
                answered => answered?,
            };
            match self.result(name, failure) {
                Err(err) if self.turns_elsewhere(&err, &mut turns) => {}
                result => return result,
            }
        }
    }

    /// As [`Client::call`], for a connection that is not needed any more: the server need not wait for what would
    /// come next, which makes connecting for a single call cheaper.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn call_last<A, R>(mut self, name: &str, args: &A) -> Result<R, CallError>
    where
        A: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        self.call_in_form(name, args, Form::LastCall)
    }

    /// Goes on over another connection.
    fn use_connection(&mut self, connection: OwnedFd) {
        self.connection = Connection::new(Arc::new(connection.into()));
        self.connection.set_wait(self.wait);
    }

    fn check(&self) -> Result<(), CallError> {
        if self.generation != process::generation() {
            return Err(CallError::WrongProcess);
        }
        if self.broken {
            return Err(CallError::Disconnected {
                delivery: Delivery::NotSent,
            });
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        let timeout = self.timeout?;
        Instant::now().checked_add(timeout)
    }

    /// The first call is about to leave. A server does not wait long for a client to say hello: a connection that
    /// was made some time ago is made anew.
    fn freshen(&mut self) -> Result<(), CallError> {
        let Some(fresh) = self.fresh.take() else {
            return Ok(());
        };
        let (address, since) = *fresh;
        if since.elapsed() < STALE {
            return Ok(());
        }
        match connect::connect_to(&address, connect::PATIENCE) {
            Ok(connection) => {
                self.use_connection(connection);
                Ok(())
            }
            Err(ConnectError::Impostor { .. }) => {
                Err(CallError::Denied("another process listens there now"))
            }
            Err(_) => Err(CallError::Disconnected {
                delivery: Delivery::NotSent,
            }),
        }
    }

    /// Queues a call.
    fn send<A: Serialize + ?Sized>(
        &mut self,
        name: &str,
        args: &A,
        form: Form,
    ) -> Result<u32, CallError> {
        self.check()?;
        if name.len() > MAX_NAME {
            return Err(CallError::UnknownName {
                name: name.into(),
                similar: None,
            });
        }
        if self.fresh.is_some() {
            self.freshen()?;
        }
        if self.in_flight >= self.limits.max_in_flight.max(1) {
            self.wait_for_place()?;
        }
        let id = self.next_id();
        let (mut frame, slot) = write_call(id, name, self.timeout, form);
        let hash = codec::encode(args, &mut frame, &self.limits).map_err(CallError::Encode)?;
        slot.fill(&mut frame, hash);
        self.session.send(id, frame).map_err(CallError::TooLarge)?;
        self.last_id = id;
        self.in_flight += 1;
        Ok(id)
    }

    fn next_id(&self) -> u32 {
        let mut id = self.last_id;
        loop {
            // 0 is for frames that belong to no call.
            id = id.checked_add(1).unwrap_or(1);
            if !self.begun.has_kept(id) {
                return id;
            }
        }
    }

    /// Waits for the answer to a call, which has a value, or says why it has none.
    fn wait(
        &mut self,
        id: u32,
        deadline: Option<Instant>,
    ) -> Result<Option<Box<ErrorBody>>, CallError> {
        loop {
            match self.step(deadline) {
                Ok(Some(answered)) if answered.id == id => return Ok(answered.failure),
                Ok(Some(other)) => self.keep(other),
                Ok(None) => {}
                Err(err) => {
                    let err = self.with_delivery(err, id);
                    if is_answered_late(&err) {
                        self.begun.give_up(id);
                    }
                    return Err(err);
                }
            }
        }
    }

    /// Says of a failed call whether it may have been executed. One that has not left completely has not been;
    /// on a connection that lives on, that holds only if it can be taken back.
    fn with_delivery(&mut self, err: CallError, id: u32) -> CallError {
        let unsent = !self.session.has_left(id);
        match err {
            CallError::TimedOut { after, .. } if unsent && self.session.retract(id) => {
                self.in_flight = self.in_flight.saturating_sub(1);
                CallError::TimedOut {
                    after,
                    delivery: Delivery::NotSent,
                }
            }
            CallError::Disconnected { .. } | CallError::Io { .. } if unsent => {
                CallError::Disconnected {
                    delivery: Delivery::NotSent,
                }
            }
            err => self.ask_about(err, id),
        }
    }

    /// Keeps the answer that has just come for whoever will ask for it.
    fn keep(&mut self, answered: Answered) {
        let answer = match answered.failure {
            None => Ok(self.session.value().into_owned()),
            Some(body) => Err(body),
        };
        self.begun.keep(answered.id, answer);
    }

    /// The answer that has just come.
    fn result<R: DeserializeOwned>(
        &mut self,
        name: &str,
        failure: Option<Box<ErrorBody>>,
    ) -> Result<R, CallError> {
        if let Some(body) = failure {
            return Err(errors::not_a_value(name, *body, self.timeout));
        }
        let result = codec::decode(self.session.value(), &self.limits);
        self.session.inbox.close();
        result.map_err(|reason| errors::mismatch::<R>(name, &reason))
    }

    /// An answer that came earlier.
    fn kept_result<R: DeserializeOwned>(&self, name: &str, kept: Kept) -> Result<R, CallError> {
        let mut value = kept.map_err(|body| errors::not_a_value(name, *body, self.timeout))?;
        codec::decode(&mut value, &self.limits)
            .map_err(|reason| errors::mismatch::<R>(name, &reason))
    }
}

/// Whether a call that failed so may still be answered.
fn is_answered_late(err: &CallError) -> bool {
    let delivery = Delivery::MaybeExecuted;
    matches!(err, CallError::TimedOut { delivery: known, .. } if *known == delivery)
}
