//! The peers, each as its own documentation has it, in the configuration that is best for it.

use crate::contestant::Contestant;

/// In a server that is this program executed once more, does not return.
pub fn init() {}

pub fn all() -> Vec<Box<dyn Contestant>> {
    Vec::new()
}
