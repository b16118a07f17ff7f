//! Who is measured: whatever can be asked to serve a task and to do its operation once. This list is the place where a
//! new one is entered.

use crate::task::{SILENCE, Task};
use crate::{bare, ours};

/// Does the operation so many times, and tells what one of them took: seconds, or the figure that its workload counts.
pub type Rounds = Box<dyn FnMut(u32) -> f64>;

/// Connects a client, and is told which one: they count from 0. Everything it needs of the server lives as long as it does.
pub type Connect = Box<dyn Fn(usize) -> Rounds>;

/// In which column it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bare system calls: what the kernel alone takes.
    Limit,
    Forkserver,
    Peer,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Limit => "limit",
            Kind::Forkserver => "forkserver",
            Kind::Peer => "peer",
        }
    }

    pub fn named(name: &str) -> Option<Kind> {
        [Kind::Limit, Kind::Forkserver, Kind::Peer]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

pub trait Contestant {
    fn name(&self) -> &'static str;

    fn kind(&self) -> Kind;

    /// Starts the server, which is a process of its own and ends with this one. It is called in a process that has one
    /// thread, and may be pinned. `None`: this is nothing that the contestant does.
    fn serve(&self, task: Task) -> Option<Connect>;
}

/// All of them, in the order of the tables.
pub fn all() -> Vec<Box<dyn Contestant>> {
    let mut all = bare::all();
    all.extend(ours::all());
    #[cfg(feature = "peers")]
    all.extend(crate::peers::all());
    all
}

/// An operation that is timed.
pub fn timed(mut operation: impl FnMut() + 'static) -> Rounds {
    Box::new(move |count| {
        let begun = std::time::Instant::now();
        (0..count).for_each(|_| operation());
        begun.elapsed().as_secs_f64() / f64::from(count)
    })
}

/// An operation that tells its figure itself.
pub fn counted(mut operation: impl FnMut() -> f64 + 'static) -> Rounds {
    Box::new(move |count| (0..count).map(|_| operation()).sum::<f64>() / f64::from(count))
}

/// An operation that is timed after a silence.
pub fn after_silence(mut operation: impl FnMut() + 'static) -> Rounds {
    counted(move || {
        std::thread::sleep(SILENCE);
        let begun = std::time::Instant::now();
        operation();
        begun.elapsed().as_secs_f64()
    })
}
