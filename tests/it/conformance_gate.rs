//! How many are let in, and what is left of those who have gone: the part of POE's `Server::TCP` that concerns its limit. The
//! list is at the head of `conformance_poe`.

use crate::conformance_order::{Trace, becomes_empty};
use crate::conformance_poe::{Echo, SOON, path};
use crate::harness::{descriptors, leave_descriptors_free};
use crate::hostile::{Raw, call_frame, hello_frame, still_answers};
use crate::lifecycle::echo;
use crate::processes::readable;
use forkserver::{Client, Limits, Lines, Listener, ServerHandle};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

crate::tests![
    no_more_than_the_limit_are_served_at_once_and_all_are,
    who_is_let_in_is_what_the_model_says,
    a_full_table_is_not_told_without_end,
    a_thousand_connections_leave_no_descriptor,
];

/// So many clients at once; each says when it is served, and still is. Returns how many were at most.
fn at_most<C>(
    count: usize,
    connect: impl Fn() -> C + Sync,
    exchange: impl Fn(&mut C) + Sync,
) -> usize {
    let (served, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| {
                let mut client = connect();
                exchange(&mut client);
                let now = served.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                (0..3).for_each(|_| exchange(&mut client));
                // As it must be before the server can know that it goes.
                served.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    most.into_inner()
}

fn talk(stream: &mut UnixStream) {
    stream.write_all(b"hello\n").unwrap();
    let mut seen = [0; 6];
    stream.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"hello\n");
}

fn no_more_than_the_limit_are_served_at_once_and_all_are() {
    for limit in [1, 4] {
        let mut limits = Limits::default();
        limits.max_connections = limit;
        let calls = Listener::private().limits(limits.clone());
        let lines = Listener::at(path("lines"))
            .name("lines")
            .limits(limits.clone());
        let bare = Listener::at(path("bare")).name("bare").limits(limits);
        let server = echo()
            .listen(calls)
            .listen(lines.handle_events(Lines::default, |_| Ok(Echo)))
            .listen(bare.accept_with(|accepted, permit| {
                let mut stream = accepted.into_stream();
                std::thread::spawn(move || {
                    let mut seen = [0; 6];
                    while stream.read_exact(&mut seen).is_ok() {
                        stream.write_all(&seen).unwrap();
                    }
                    drop((stream, permit));
                });
            }))
            .start()
            .unwrap();
        for count in [1, 2, 4, 64, 200] {
            let connect = || Client::connect(server.address()).unwrap();
            let most = at_most(count, connect, |client| {
                assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
            });
            assert!(most <= limit, "{most} of {count} with {limit}");
        }
        for name in ["lines", "bare"] {
            let most = at_most(9, || UnixStream::connect(path(name)).unwrap(), talk);
            assert!(most <= limit, "{name}: {most} with {limit}");
        }
        becomes_empty(&server);
        server.stop().unwrap();
    }
}

/// Numbers that are the same in each run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        let (factor, term) = (6_364_136_223_846_793_005, 1_442_695_040_888_963_407);
        self.0 = self.0.wrapping_mul(factor).wrapping_add(term);
        (self.0 >> 33) as usize % limit
    }
}

/// What a server with a limit and a pause does, said in a few lines.
struct Model {
    limit: Option<usize>,
    is_paused: bool,
    served: Vec<Raw>,
    /// In the order in which they came.
    waiting: VecDeque<Raw>,
}

impl Model {
    fn has_room(&self) -> bool {
        !self.is_paused && self.limit.is_none_or(|limit| self.served.len() < limit)
    }

    fn step(&mut self, server: &ServerHandle, random: &mut Random) {
        match random.below(8) {
            0..=2 if self.waiting.len() < 5 => {
                let mut raw = Raw::connect(server);
                raw.write(&[hello_frame(server), call_frame(1, "echo", b"\x01x")].concat());
                self.waiting.push_back(raw);
            }
            3 | 4 if !self.served.is_empty() => {
                drop(self.served.swap_remove(random.below(self.served.len())));
            }
            5 => {
                self.limit = [None, Some(0), Some(1), Some(2), Some(3)][random.below(5)];
                server.set_max_connections(self.limit).unwrap();
            }
            6 => {
                self.is_paused = !self.is_paused;
                match self.is_paused {
                    true => server.pause().unwrap(),
                    false => server.resume().unwrap(),
                }
            }
            _ => {}
        }
    }

    fn holds(&mut self, server: &ServerHandle) {
        while self.has_room() {
            let Some(next) = self.waiting.pop_front() else {
                break;
            };
            assert!(readable(next.stream(), SOON), "the next one is let in");
            self.served.push(next);
        }
        let begun = Instant::now();
        while server.status().unwrap().connections != self.served.len() {
            assert!(begun.elapsed() < SOON);
            std::thread::yield_now();
        }
        for waiting in &self.waiting {
            assert!(
                !readable(waiting.stream(), Duration::ZERO),
                "let in too early"
            );
        }
        for served in &self.served {
            let mut end = [0; 100];
            served.stream().set_nonblocking(true).unwrap();
            let read = served.stream().read(&mut end);
            assert!(!matches!(read, Ok(0)), "nobody is cut off");
        }
    }
}

fn who_is_let_in_is_what_the_model_says() {
    // None from the very start: the hook runs before anybody can connect.
    let definition = echo().initialize(|control| {
        control.set_max_connections(Some(0));
        Ok(())
    });
    for seed in 0..8 {
        let server = definition.start().unwrap();
        let mut random = Random(seed);
        let mut model = Model {
            limit: Some(0),
            is_paused: false,
            served: Vec::new(),
            waiting: VecDeque::new(),
        };
        for _ in 0..100 {
            model.step(&server, &mut random);
            model.holds(&server);
        }
        server.set_max_connections(None).unwrap();
        server.resume().unwrap();
        (model.limit, model.is_paused) = (None, false);
        model.holds(&server);
        assert!(model.waiting.is_empty());
    }
}

fn a_full_table_is_not_told_without_end() {
    let (definition, trace) = Trace::of(|_| {
        echo()
            .handle("fill", |_, free: usize| Ok(leave_descriptors_free(free)?))
            .handle("relieve", |_, (): ()| {
                let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
                Ok(setrlimit(Resource::RLIMIT_NOFILE, 1000.min(hard), hard)?)
            })
    });
    let server = definition.start().unwrap();
    drop(definition);
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("fill", &0_usize).unwrap();
    let waiting = Raw::connect(&server);
    // However long it lasts.
    readable(waiting.stream(), Duration::from_millis(400));
    client.call::<_, ()>("relieve", &()).unwrap();
    let mut late = Client::connect(server.address()).unwrap();
    assert_eq!(late.call::<_, String>("echo", "in").unwrap(), "in");
    let told = trace.rest(server);
    let failed = told.iter().filter(|line| line.starts_with("failed"));
    assert!((1..=10).contains(&failed.count()), "{told:?}");
}

fn a_thousand_connections_leave_no_descriptor() {
    let server = echo().start().unwrap();
    let pid = server.pid().to_string();
    let (hello, call) = (hello_frame(&server), call_frame(1, "echo", b"\x01x"));
    let visit = |number: usize| {
        let mut raw = Raw::connect(&server);
        match number % 4 {
            0 => {}
            1 => raw.write(&hello),
            2 => raw.write(&[&hello[..], &call[..9]].concat()),
            _ => {
                raw.write(&[&hello[..], &call].concat());
                assert!(readable(raw.stream(), SOON));
            }
        }
    };
    // Threads that it needs are there then.
    (0..100).for_each(visit);
    still_answers(&server);
    becomes_empty(&server);
    let before = descriptors(&pid).len();
    (0..1000).for_each(visit);
    becomes_empty(&server);
    let begun = Instant::now();
    while descriptors(&pid).len() > before {
        assert!(begun.elapsed() < SOON, "{:?}", descriptors(&pid));
        std::thread::yield_now();
    }
}
