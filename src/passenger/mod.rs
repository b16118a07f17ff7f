//! The format of Phusion Passenger's `AbstractServer` and `MessageChannel`: for programs that have the one or the
//! other already, in Ruby for example, and shall not be rewritten.
//!
//! Invariant: every byte is the original's, or nothing is sent; nobody waits longer than was said.
//!
//! [`Client`] calls an original server. [`MessageChannel`] is a conversation, at either end of it: arrays of byte
//! strings, scalars and descriptors. There are no type tags: both sides know from the context which comes next.
//!
//! ```no_run
//! use forkserver::passenger::Client;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let password = std::fs::read("/run/spawner/password")?;
//! let client = Client::new("/run/spawner/socket", password.trim_ascii());
//! let answer = client.call("echo", &["a", "", "b"])?; // one array back
//!
//! let mut channel = client.open("send_file", &["report.txt"])?; // whatever the two sides have agreed on
//! let _status = channel.read()?;
//! let file = std::fs::File::from(channel.recv_io()?);
//! # Ok(()) }
//! ```

mod channel;
mod client;
mod error;
mod passing;

pub use self::channel::{Hash, MessageChannel};
pub use self::client::Client;
pub use self::error::Error;

#[cfg(test)]
mod tests;
