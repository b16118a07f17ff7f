//! Where processes may run: on one core a call costs less than half of what it costs across cores, so that a figure
//! without its placement says nothing.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Placement {
    /// Both sides on the first core.
    OneCore,
    /// The client on the first core, the server on the second.
    Across,
    /// Wherever the scheduler puts them: bimodal, and no gate.
    Free,
}

impl Placement {
    pub const ALL: [Placement; 3] = [Placement::OneCore, Placement::Across, Placement::Free];

    pub fn name(self) -> &'static str {
        match self {
            Placement::OneCore => "one core",
            Placement::Across => "across",
            Placement::Free => "free",
        }
    }

    pub fn named(name: &str) -> Option<Placement> {
        Placement::ALL.into_iter().find(|one| one.name() == name)
    }
}

/// The cores that this program was given when it began.
#[derive(Clone)]
pub struct Cores(Vec<usize>);

impl Cores {
    pub fn given() -> Cores {
        let set = sched_getaffinity(Pid::from_raw(0)).expect("an affinity");
        let is_ours = |core: &usize| set.is_set(*core).unwrap_or(false);
        Cores((0..CpuSet::count()).filter(is_ours).collect())
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether there are as many cores as the placement names.
    pub fn have(&self, placement: Placement) -> bool {
        placement != Placement::Across || self.0.len() > 1
    }

    /// Pins this process before it starts the server, which inherits it.
    pub fn pin_server(&self, placement: Placement) {
        match placement {
            Placement::OneCore => pin(&self.0[..1]),
            Placement::Across => pin(&self.0[1..2]),
            Placement::Free => pin(&self.0),
        }
    }

    /// Pins this process after it has started the server.
    pub fn pin_client(&self, placement: Placement) {
        match placement {
            Placement::OneCore | Placement::Across => pin(&self.0[..1]),
            Placement::Free => pin(&self.0),
        }
    }
}

fn pin(cores: &[usize]) {
    let mut set = CpuSet::new();
    cores
        .iter()
        .for_each(|core| set.set(*core).expect("a core that was given"));
    sched_setaffinity(Pid::from_raw(0), &set).expect("cores that were given");
}
