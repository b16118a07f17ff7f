//! What a server answers when it has no value to send, as the caller's errors.
//!
//! Invariant: every class of error has one place here, so that [`CallError::delivery`] can be trusted.

use crate::Fd;
use crate::error::{CallError, Delivery};
use crate::fault::RemoteFault;
use crate::protocol::message::{Class, Denied, ErrorBody};
use std::time::Duration;

/// A refusal of the connection, in the caller's words.
pub(super) fn denied(reason: Denied) -> CallError {
    match reason {
        Denied::Password => CallError::Denied("the password is wrong"),
        Denied::Version => CallError::Denied("it speaks another version of the protocol"),
        Denied::Codec => CallError::Denied("it does not know the codec"),
        Denied::Stopping => CallError::Stopping,
    }
}

/// An answer that is no value, in the caller's words.
pub(super) fn not_a_value(name: &str, body: ErrorBody, timeout: Option<Duration>) -> CallError {
    let ErrorBody {
        class,
        code,
        texts,
        fds,
    } = body;
    let mut texts = texts.into_iter();
    match class {
        Class::Fault => CallError::Fault(RemoteFault::new(
            code,
            texts.collect(),
            fds.into_iter().map(Fd::from_shared).collect(),
        )),
        Class::UnknownName => CallError::UnknownName {
            name: name.into(),
            similar: texts.next(),
        },
        Class::TypeMismatch => CallError::TypeMismatch {
            what: format!("the arguments of {name:?}"),
            reason: texts.next().unwrap_or_default(),
            delivery: Delivery::NotSent,
        },
        Class::Panicked => CallError::Panicked {
            message: texts.next().unwrap_or_default(),
            location: texts.next().unwrap_or_default(),
        },
        Class::Stopping => CallError::Stopping,
        Class::TooLate => CallError::TimedOut {
            after: timeout.unwrap_or_default(),
            delivery: Delivery::NotSent,
        },
        Class::BadReply => CallError::BadReply(texts.next().unwrap_or_default()),
        Class::Protocol => CallError::Protocol(texts.collect::<Vec<_>>().join(": ")),
    }
}
