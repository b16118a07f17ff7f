//! Turning clients away that have connected and will not be served.
//!
//! Invariant: nothing is read from them; they learn why as far as what is spoken has a word for it, and see the end.

use super::{Bound, Wire};
use crate::connection::Connection;
use crate::context::Peer;
use crate::event::{Event, Observer};
use crate::limits::Limits;
use crate::protocol::ending::Ending;
use crate::protocol::greeting::Denied;
use crate::protocol::outbox::Outbox;
use crate::sys::linger::Socket;
use crate::sys::socket;
use std::sync::Arc;

impl Bound {
    /// `native`: the client is one of ours, whatever is spoken behind the listener.
    pub(crate) fn turn_away(
        &self,
        socket: Arc<Socket>,
        denied: Denied,
        native: bool,
        observer: &Observer,
    ) {
        let reason = match denied {
            Denied::Stopping => Ending::Stopping,
            Denied::NoRoom => Ending::NoRoom,
            Denied::Password | Denied::Version | Denied::Codec => Ending::Denied,
        };
        let peer = socket::peer_credentials(&*socket).ok().map(Peer::from);
        observer.tell(|| Event::Refused {
            listener: Arc::clone(&self.name),
            peer,
            reason,
        });
        if !native && !matches!(self.wire, Wire::Native) {
            // In another protocol, the end is all that can be said.
            return;
        }
        let mut outbox = Outbox::new(Limits::default().bounds());
        if outbox.send(denied.write()).is_ok() {
            // A client that is gone needs no answer.
            let _ = Connection::new(socket).transmit_now(&outbox);
        }
    }
}
