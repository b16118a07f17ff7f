//! A client's connection turned into a stream, and back.
//!
//! Invariant: a stream is opened by one call, and what is left of the client goes with it.

use super::Client;
use crate::Channel;
use crate::channel::{Parts, ReceiveHalf, SendHalf, StopToken, sealed};
use crate::connection::Connection;
use crate::error::{CallError, StreamError};
use crate::protocol::message::Form;
use serde::Serialize;
use std::sync::Arc;

impl sealed::End for Client {
    fn stop_token(&self) -> Option<&StopToken> {
        None
    }
}

impl Client {
    /// Opens the stream `name`: from now on the connection belongs to its handler, and both sides send items.
    /// [`Channel::into_client`] gives the client back. The client's timeout is how long the opening may take, and
    /// then how long each `recv` and `send` of the channel may wait.
    ///
    /// # Errors
    /// As [`Client::call`]; the handler has not begun then, unless [`CallError::delivery`] says otherwise.
    pub fn open<A: Serialize + ?Sized>(
        mut self,
        name: &str,
        args: &A,
    ) -> Result<Channel<Client>, CallError> {
        let mut turns = 0;
        let id = loop {
            match self.open_once(name, args) {
                Err(err) if self.turns_elsewhere(&err, &mut turns) => {}
                opened => break opened?,
            }
        };
        self.in_flight = self.in_flight.saturating_sub(1);
        Ok(self.into_channel(id))
    }

    fn open_once<A: Serialize + ?Sized>(&mut self, name: &str, args: &A) -> Result<u32, CallError> {
        let id = self.send(name, args, Form::Stream)?;
        let deadline = self.deadline();
        while self.opened != Some(id) {
            match self.step(deadline) {
                Ok(Some(answered)) if answered.id == id => {
                    return Err(match answered.failure {
                        Some(body) => super::errors::not_a_value(name, *body, self.timeout),
                        None => CallError::Protocol("a stream was answered unopened".into()),
                    });
                }
                Ok(Some(other)) => self.keep(other),
                Ok(None) => {}
                Err(err) => return Err(self.with_delivery(err, id)),
            }
        }
        Ok(id)
    }

    fn into_channel(mut self, id: u32) -> Channel<Client> {
        let (input, output) = self.session.open_stream(id);
        let (timeout, limits) = (self.timeout, Arc::new(self.limits.clone()));
        let socket = self.connection.share();
        let send = SendHalf::new(output, &self.connection, &limits, None);
        let parts = Parts {
            input,
            // With what it knows about the socket's timeouts.
            connection: std::mem::replace(&mut self.connection, Connection::new(socket)),
            end: self,
        };
        let mut channel = Channel::from_halves(send, ReceiveHalf::new(parts, &limits, None));
        channel.set_timeout(timeout);
        channel
    }
}

impl Channel<Client> {
    /// Ends the stream and gives the client back, for further calls: finishes, if that has not been done, and waits
    /// until the handler has returned. Items that it still sends are dropped.
    ///
    /// # Errors
    /// The handler's own error or panic, or see [`StreamError`]. The connection is closed then.
    pub fn into_client(mut self) -> Result<Client, StreamError> {
        let finished = self.finish();
        let (send, mut receive) = self.into_halves();
        match finished {
            // It may have said why before it closed.
            Ok(()) | Err(StreamError::Disconnected) => receive.answer()?,
            Err(_) => {}
        }
        finished?;
        let output = send.into_output();
        let Parts {
            input,
            connection,
            end: mut client,
        } = receive.into_parts();
        client.connection = connection;
        client.session.close_stream(input, output);
        Ok(client)
    }
}
