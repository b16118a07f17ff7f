//! The secret that a client must know.
//!
//! Invariant: it is compared in constant time, erased when dropped, and never shown.

use rand::TryRng;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// How many bytes a generated password has.
const GENERATED: usize = 32;

/// A password between 16 and 96 bytes. Its `Debug` form is redacted, and it cannot be compared or displayed. Clones
/// share the one copy in memory.
///
/// ```
/// let password = forkserver::Password::generate()?;
/// assert_eq!(format!("{password:?}"), "Password(..)");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Password(Arc<Zeroizing<Vec<u8>>>);

impl Password {
    /// The fewest bytes a given password may have: 16, that is 128 bits if they are random.
    pub const MIN: usize = 16;
    /// The most bytes it may have: 96, so that a hello fits into 128 bytes.
    pub const MAX: usize = 96;

    /// 32 bytes from the operating system's generator. Never from a generator in this process, because a fork
    /// would copy its state.
    ///
    /// # Errors
    /// The operating system has no random numbers for us.
    pub fn generate() -> std::io::Result<Password> {
        let mut bytes = Zeroizing::new(vec![0; GENERATED]);
        SysRng
            .try_fill_bytes(&mut bytes)
            .map_err(std::io::Error::other)?;
        Ok(Password(Arc::new(bytes)))
    }

    /// A password of your own.
    ///
    /// # Errors
    /// It is shorter than [`Password::MIN`] or longer than [`Password::MAX`].
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Password, PasswordError> {
        let bytes = bytes.as_ref();
        match bytes.len() {
            Password::MIN..=Password::MAX => Ok(Password(Arc::new(Zeroizing::new(bytes.to_vec())))),
            length => Err(PasswordError { length }),
        }
    }

    /// The bytes, to hand them to a client by some way of your own.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether `given` is the password, in a time that depends on its length alone.
    pub(crate) fn matches(&self, given: &[u8]) -> bool {
        self.0.as_slice().ct_eq(given).into()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// A password is too short or too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a password of {length} bytes is not between {} and {}",
    Password::MIN,
    Password::MAX
)]
pub struct PasswordError {
    /// How many bytes were given.
    pub length: usize,
}

/// A password on its way from an owner to its server. Users send theirs as bytes, and knowingly.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub(crate) struct Secret(pub(crate) Password);

impl TryFrom<Vec<u8>> for Secret {
    type Error = PasswordError;

    fn try_from(bytes: Vec<u8>) -> Result<Secret, PasswordError> {
        Password::new(Zeroizing::new(bytes)).map(Secret)
    }
}

impl From<Secret> for Vec<u8> {
    fn from(Secret(password): Secret) -> Vec<u8> {
        password.as_bytes().to_vec()
    }
}

/// Makes `rand`'s generator, of which a child then needs a new seed only: what the processor can do is found out
/// once, and not in each child anew.
pub(crate) fn prepare_to_reseed() {
    let _ = rand::rng();
}

/// Makes `rand`'s generator in this process differ from that of the process it was forked from.
pub(crate) fn reseed_after_fork() {
    // A failure leaves the generator as it is and shows again at its next use, which reports it.
    let _ = rand::rng().reseed();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_password_itself_matches() {
        let password = Password::generate().expect("random bytes");
        let bytes = password.as_bytes().to_vec();
        assert!(password.matches(&bytes));
        for len in 0..bytes.len() {
            assert!(!password.matches(&bytes[..len]), "a prefix of {len} bytes");
        }
        for bit in 0..bytes.len() * 8 {
            let mut wrong = bytes.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert!(!password.matches(&wrong), "bit {bit} flipped");
        }
        assert!(!password.matches(&[bytes.as_slice(), &[0]].concat()));
    }

    #[test]
    fn lengths_at_the_limits_pass_and_one_beyond_does_not() {
        assert!(Password::new([7; 16]).is_ok());
        assert!(Password::new([7; 96]).is_ok());
        assert_eq!(
            Password::new([7; 15]).unwrap_err(),
            PasswordError { length: 15 }
        );
        assert_eq!(
            Password::new([7; 97]).unwrap_err(),
            PasswordError { length: 97 }
        );
        assert_eq!(Password::new("").unwrap_err(), PasswordError { length: 0 });
    }
}
