//! What a handler answers when it cannot answer: a code, a message, and what caused it.
//!
//! Invariant: a `Fault` is made by `?` from any error, and therefore is none itself; what arrives at the caller,
//! [`RemoteFault`], is an error like any other.

use crate::Fd;
use crate::protocol::message::ErrorBody;
use std::error::Error;
use std::fmt;

/// The error of a handler.
///
/// ```
/// use forkserver::{Fault, Server};
/// let server = Server::new()
///     .handle("parse", |_, text: String| Ok(text.parse::<i32>()?))
///     .handle("refuse", |_, (): ()| Err::<(), _>(Fault::new("not today").with_code(7)));
/// ```
#[derive(Debug)]
pub struct Fault {
    pub(crate) code: i32,
    /// The message, and behind it what caused it, outermost first.
    pub(crate) texts: Vec<String>,
    pub(crate) fds: Vec<Fd>,
}

impl Fault {
    /// A fault with a message of your own, with code 0.
    pub fn new(message: impl Into<String>) -> Fault {
        Fault {
            code: 0,
            texts: vec![message.into()],
            fds: Vec::new(),
        }
    }

    /// Sets the code, whose meaning is between handler and caller. It is 0 without this.
    pub fn with_code(mut self, code: i32) -> Fault {
        self.code = code;
        self
    }

    /// Sends a descriptor along, for example of a log.
    pub fn with_fd(mut self, fd: impl Into<Fd>) -> Fault {
        self.fds.push(fd.into());
        self
    }

    /// From a boxed error, and so from whatever turns into one (`anyhow::Error`, for example).
    pub fn from_boxed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Fault {
        Fault::from_dyn(error.into().as_ref())
    }

    /// The message with its causes, for where there is room for one text only.
    pub(crate) fn text(&self) -> String {
        self.texts.join(": ")
    }

    fn from_dyn(error: &(dyn Error + 'static)) -> Fault {
        let mut texts = Vec::new();
        let mut next = Some(error);
        while let Some(error) = next {
            texts.push(error.to_string());
            next = error.source();
        }
        Fault {
            code: 0,
            texts,
            fds: Vec::new(),
        }
    }
}

impl<E: Error + 'static> From<E> for Fault {
    fn from(error: E) -> Fault {
        Fault::from_dyn(&error)
    }
}

/// A handler's [`Fault`], as its caller sees it. Its `source()` is what caused it.
#[derive(Debug)]
pub struct RemoteFault {
    code: i32,
    message: String,
    cause: Option<Cause>,
    fds: Vec<Fd>,
}

#[derive(Debug)]
struct Cause {
    message: String,
    cause: Option<Box<Cause>>,
}

impl From<ErrorBody> for RemoteFault {
    fn from(body: ErrorBody) -> RemoteFault {
        let fds = body.fds.into_iter().map(Fd::from_shared).collect();
        RemoteFault::new(body.code, body.texts, fds)
    }
}

impl RemoteFault {
    fn new(code: i32, texts: Vec<String>, fds: Vec<Fd>) -> RemoteFault {
        let mut texts = texts.into_iter();
        let message = texts.next().unwrap_or_default();
        let cause = texts.rev().fold(None, |cause, message| {
            Some(Cause {
                message,
                cause: cause.map(Box::new),
            })
        });
        RemoteFault {
            code,
            message,
            cause,
            fds,
        }
    }

    /// The code that the handler gave, 0 if it gave none.
    pub fn code(&self) -> i32 {
        self.code
    }

    /// The message, without its causes.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The descriptors that came along.
    pub fn take_fds(&mut self) -> Vec<Fd> {
        std::mem::take(&mut self.fds)
    }
}

impl fmt::Display for RemoteFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for RemoteFault {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(|cause| cause as _)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_survive_in_order() {
        let fault = RemoteFault::new(
            3,
            vec!["outer".into(), "middle".into(), "inner".into()],
            Vec::new(),
        );
        let middle = fault.source().expect("a cause");
        let inner = middle.source().expect("its cause");
        assert_eq!(
            (fault.to_string(), middle.to_string(), inner.to_string()),
            ("outer".into(), "middle".into(), "inner".into())
        );
        assert!(inner.source().is_none());
        assert_eq!(fault.code(), 3);
    }

    #[test]
    fn any_error_becomes_a_fault() {
        let fault = Fault::from("x".parse::<i32>().unwrap_err());
        assert_eq!(fault.texts, ["invalid digit found in string"]);
        let fault = Fault::from_boxed("just text");
        assert_eq!(fault.texts, ["just text"]);
    }
}
