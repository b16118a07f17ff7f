//! What a server answers when it has no value to send, as the caller's errors.
//!
//! Invariant: every class of error has one place here, so that [`CallError::delivery`] can be trusted.

use crate::error::{CallError, Delivery};
use crate::fault::RemoteFault;
use crate::protocol::greeting::Denied;
use crate::protocol::message::{Class, ErrorBody};
use std::time::Duration;

/// A refusal of the connection, in the caller's words.
pub(super) fn denied(reason: Denied) -> CallError {
    match reason {
        Denied::Password => CallError::Denied("the password is wrong"),
        Denied::Version => CallError::Denied("it speaks another version of the protocol"),
        Denied::Codec => CallError::Denied("it does not know the codec"),
        Denied::Stopping => CallError::Stopping,
        Denied::NoRoom => CallError::Busy {
            limit: "the number of descriptors that the system allows".into(),
        },
    }
}

/// What ended a wait before a call was sent, as that call's error.
pub(super) fn not_sent(err: CallError) -> CallError {
    let delivery = Delivery::NotSent;
    match err {
        CallError::TimedOut { after, .. } => CallError::TimedOut { after, delivery },
        _ => CallError::Disconnected { delivery },
    }
}

/// A result that is not of the caller's types.
#[cold]
pub(super) fn mismatch<R>(name: &str, reason: &str) -> CallError {
    let expected = std::any::type_name::<R>();
    CallError::TypeMismatch {
        what: format!("the results of {name:?}"),
        reason: format!("{reason} (the caller expects {expected})"),
        delivery: Delivery::Executed,
    }
}

/// An answer that is no value, in the caller's words.
pub(super) fn not_a_value(name: &str, body: ErrorBody, timeout: Option<Duration>) -> CallError {
    if body.class == Class::Fault {
        return CallError::Fault(RemoteFault::from(body));
    }
    let mut texts = body.texts.into_iter();
    match body.class {
        Class::Fault | Class::Protocol => CallError::Protocol(texts.collect::<Vec<_>>().join(": ")),
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
        Class::Closing => CallError::Closing,
        Class::TooLate if body.code != 0 => CallError::TimedOut {
            after: Duration::from_millis(body.code.unsigned_abs().into()),
            delivery: Delivery::Executed,
        },
        Class::TooLate => CallError::TimedOut {
            after: timeout.unwrap_or_default(),
            delivery: Delivery::NotSent,
        },
        Class::Refused => CallError::Refused {
            name: name.into(),
            reason: texts.next().unwrap_or_default(),
        },
        Class::BadReply => CallError::BadReply(texts.next().unwrap_or_default()),
        Class::WrongForm => CallError::WrongForm {
            name: name.into(),
            is_stream: body.code != 0,
        },
        Class::Busy => CallError::Busy {
            limit: texts.next().unwrap_or_default(),
        },
    }
}
