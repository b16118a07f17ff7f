//! How far a connection has come, and what ends the server: what each client sees in each case.
//!
//! Invariant: a state says what its client must see, a cause says how the server must end, and neither knows of
//! the other: whatever ends a server, the drain is the same.

use crate::hostile::{Raw, call_frame, frame, hello_frame_to};
use crate::processes::{Helper, Watched, readable};
use forkserver::{
    Address, Bytes, CallError, Channel, Client, Delivery, Engine, Pending, Server, ServerHandle,
    StreamError,
};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

crate::tests![
    a_stop_by_the_owner_is_seen_in_each_state,
    a_dropped_handle_is_seen_in_each_state,
    a_stop_by_a_handler_is_seen_in_each_state,
    a_signal_is_seen_in_each_state,
    the_owners_death_is_seen_in_each_state,
    a_stop_by_the_owner_cuts_off_what_is_not_finished_in_time,
    a_dropped_handle_cuts_off_what_is_not_finished_in_time,
    a_stop_by_a_handler_cuts_off_what_is_not_finished_in_time,
    a_signal_cuts_off_what_is_not_finished_in_time,
    the_owners_death_cuts_off_what_is_not_finished_in_time,
];

/// More than a socket's buffers take.
const LARGE: usize = 4 << 20;
/// The welcome, and the header of the answer with its hash and the length of its bytes.
const IN_FRONT: usize = 24 + 12 + 8 + 5;
/// What stands for "at once" on a machine with much else to do.
const SOON: Duration = Duration::from_secs(3);
/// For those that shall not finish in time.
const SHORT: Duration = Duration::from_millis(400);

/// What ends the server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// `ServerHandle::stop`.
    Stop,
    /// The handle is dropped.
    Drop,
    /// `Control::stop`, in a handler.
    Handler,
    /// SIGTERM.
    Signal,
    /// The end of the lifeline, because the owner is killed.
    Death,
}

/// Whether a state's client, and the handler it waits for, do what lets it finish.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Course {
    Finishes,
    IsCutOff,
}

/// Says what a client must see, once the server stops.
type Sees = Box<dyn FnOnce(&mut Cell, Course)>;
/// A state that a client can be in.
type State = fn(&mut Cell) -> Sees;

const STATES: [(&str, State); 8] = [
    ("silent", silent),
    ("half a hello", half_a_hello),
    ("idle", idle),
    ("idle without a call", idle_without_a_call),
    ("receiving", receiving),
    ("sending", sending),
    ("a stream waits", stream_waiting),
    ("a stream sends", stream_sending),
];

/// As above; their handlers wait for the test, which with one thread nobody else would survive.
const WAITING_STATES: [(&str, State); 3] = [
    ("calling", calling),
    ("a batch", batch),
    ("a stream is asked for behind a call", stream_behind_a_call),
];

fn states() -> Vec<(&'static str, State)> {
    match crate::harness::engine() {
        Engine::Evented => STATES.to_vec(),
        _ => [&STATES[..], &WAITING_STATES].concat(),
    }
}

/// A server in an owner of its own, and the test's ends of its pipes.
struct Cell {
    cause: Cause,
    owner: Option<Helper>,
    server: Watched,
    address: Address,
    entered: PipeReader,
    leave: PipeWriter,
}

/// Written by `finalize`.
fn witness() -> PathBuf {
    std::env::temp_dir().join("finalized")
}

impl Cell {
    fn start(cause: Cause, patience: Duration) -> Cell {
        let (entered, enter) = std::io::pipe().unwrap();
        let (wait, leave) = std::io::pipe().unwrap();
        let saved = std::env::temp_dir().join("address");
        let mut owner = Helper::start(|test| {
            let server = definition(enter, wait).grace(patience).start().unwrap();
            server.address().save(&saved).unwrap();
            test.say(server.pid());
            test.wait_for_go();
            test.say(end(cause, server, patience));
        });
        let server = owner.hear_pid();
        let address = Address::load(&saved).unwrap();
        std::fs::remove_file(saved).unwrap();
        Cell {
            cause,
            owner: Some(owner),
            server,
            address,
            entered,
            leave,
        }
    }

    fn client(&self) -> Client {
        Client::connect(&self.address).unwrap()
    }

    fn raw(&self) -> Raw {
        Raw::connect_to(&self.address)
    }

    fn hello(&self) -> Vec<u8> {
        hello_frame_to(&self.address)
    }

    /// A call of `gate`, whose handler has been entered.
    fn enter_gate(&mut self, client: &mut Client) -> Pending<String> {
        let pending = client.begin("gate", &()).unwrap();
        client.flush().unwrap();
        self.entered.read_exact(&mut [0]).unwrap();
        pending
    }

    fn leave_gate(&mut self) {
        self.leave.write_all(b"x").unwrap();
    }

    /// Has the cause come about; returns when the server has begun to stop, which shows in its socket's file.
    fn stop(&mut self) {
        let owner = self.owner.as_mut().expect("not killed yet");
        match self.cause {
            Cause::Death => self.owner.take().expect("as above").kill(),
            Cause::Stop | Cause::Drop => owner.go(),
            Cause::Signal => {
                kill(self.server.pid, Signal::SIGTERM).unwrap();
                owner.go();
            }
            Cause::Handler => {
                owner.go();
                let mut client = Client::connect(&self.address).unwrap();
                let said: String = client.call("stop", &()).unwrap();
                assert_eq!(said, "stopping", "who asks is answered");
            }
        }
        let begun = Instant::now();
        while self.address.path().exists() {
            assert!(begun.elapsed() < SOON, "the server does not stop");
            std::thread::yield_now();
        }
    }

    /// The server ends in time, says how, and leaves nothing but what `finalize` has written, if that ran.
    fn ends(self, limit: Duration, course: Course) {
        self.server.ends_within(limit);
        let how = match self.owner {
            Some(mut owner) => {
                let how = owner.hear();
                owner.finish();
                how
            }
            None => match self.server.reap() {
                WaitStatus::Exited(_, code) => format!("exit status {code}"),
                WaitStatus::Signaled(_, signal, _) => format!("ended by signal {}", signal as i32),
                other => panic!("{other:?}"),
            },
        };
        let expected: &[&str] = match (self.cause, course) {
            (Cause::Drop, _) => &["dropped"],
            (Cause::Signal, _) => &["ended by signal 15"],
            (_, Course::Finishes) => &["exit status 0"],
            (Cause::Handler, _) => &["exit status 1"],
            (Cause::Stop, _) => &["ended by signal 9"],
            // The server itself and the dead-man switch have the same time.
            (Cause::Death, _) => &["exit status 1", "ended by signal 9"],
        };
        assert!(expected.contains(&how.as_str()), "{how}");
        let has_finalized = std::fs::remove_file(witness()).is_ok();
        assert_eq!(has_finalized, course == Course::Finishes, "finalize");
        let left: Vec<_> = std::fs::read_dir(std::env::temp_dir()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// What the owner does when it may go on, and what it has learnt then.
fn end(cause: Cause, server: ServerHandle, patience: Duration) -> String {
    match cause {
        Cause::Stop => server.stop_within(patience).unwrap().to_string(),
        Cause::Drop => {
            drop(server);
            "dropped".into()
        }
        _ => server.wait().to_string(),
    }
}

fn definition(enter: PipeWriter, wait: PipeReader) -> Server {
    crate::server()
        .keep_fd(&enter)
        .keep_fd(&wait)
        .handle("echo", |_, text: String| Ok(text))
        .handle("large", |_, (): ()| Ok(Bytes::from(vec![1; LARGE])))
        .handle("stop", |context, (): ()| {
            context.control().stop();
            Ok("stopping")
        })
        .handle("gate", move |_, (): ()| {
            (&enter).write_all(b"!")?;
            (&wait).read_exact(&mut [0])?;
            Ok("through")
        })
        .handle_stream("wait", |_, size: usize, mut channel: Channel| {
            channel.send(&Bytes::from(vec![1; size]))?;
            match channel.recv::<String>() {
                Err(StreamError::Stopped(reason)) => Ok(channel.send(&reason.to_string())?),
                other => Err(forkserver::Fault::new(format!("{other:?}"))),
            }
        })
        .finalize(|_| std::fs::write(witness(), "").unwrap())
}

/// The connection ends, and with it a call that was sent.
fn is_disconnected<T: std::fmt::Debug>(result: Result<T, CallError>, expected: Delivery) {
    let err = result.unwrap_err();
    assert!(matches!(err, CallError::Disconnected { .. }), "{err}");
    assert_eq!(err.delivery(), expected);
}

fn is_stopping<T: std::fmt::Debug>(result: Result<T, CallError>) {
    let err = result.unwrap_err();
    assert!(matches!(err, CallError::Stopping), "{err}");
    assert_eq!(err.delivery(), Delivery::NotSent);
}

/// The answer to whoever has not shown the password.
fn is_denied(mut raw: Raw) {
    assert_eq!(raw.read_to_end(), frame(3, 0, 0, 0, &[4]));
}

fn silent(cell: &mut Cell) -> Sees {
    let raw = cell.raw();
    Box::new(|_, _| is_denied(raw))
}

fn half_a_hello(cell: &mut Cell) -> Sees {
    let mut raw = cell.raw();
    let hello = cell.hello();
    raw.write(&hello[..hello.len() / 2]);
    Box::new(|_, _| is_denied(raw))
}

fn idle(cell: &mut Cell) -> Sees {
    let mut client = cell.client();
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    Box::new(move |_, _| {
        is_disconnected(client.call::<_, String>("echo", "y"), Delivery::NotSent);
    })
}

fn idle_without_a_call(cell: &mut Cell) -> Sees {
    let mut client = cell.client();
    client.authenticate().unwrap();
    Box::new(move |_, _| {
        is_disconnected(client.call::<_, String>("echo", "y"), Delivery::NotSent);
    })
}

fn receiving(cell: &mut Cell) -> Sees {
    let mut raw = cell.raw();
    let call = call_frame(1, "echo", b"\x01x");
    raw.write(&[&cell.hello()[..], &call, &call[..call.len() - 1]].concat());
    raw.stream().read_exact(&mut [0; 24 + 22]).unwrap();
    Box::new(move |_, _| assert_eq!(raw.read_to_end(), b"", "closed, without a word"))
}

fn calling(cell: &mut Cell) -> Sees {
    let mut client = cell.client();
    let pending = cell.enter_gate(&mut client);
    Box::new(move |cell, course| match course {
        Course::Finishes => {
            cell.leave_gate();
            assert_eq!(client.finish(pending).unwrap(), "through");
            is_disconnected(client.call::<_, String>("echo", "y"), Delivery::NotSent);
        }
        Course::IsCutOff => is_disconnected(client.finish(pending), Delivery::MaybeExecuted),
    })
}

fn batch(cell: &mut Cell) -> Sees {
    let mut client = cell.client();
    let first = client.begin::<_, String>("echo", "first").unwrap();
    let gate = cell.enter_gate(&mut client);
    let behind: Vec<Pending<String>> = (0..3)
        .map(|n| client.begin("echo", &n.to_string()).unwrap())
        .collect();
    client.flush().unwrap();
    Box::new(move |cell, course| {
        assert_eq!(client.finish(first).unwrap(), "first");
        if course == Course::Finishes {
            cell.leave_gate();
            assert_eq!(client.finish(gate).unwrap(), "through");
            behind
                .into_iter()
                .for_each(|pending| is_stopping(client.finish(pending)));
        } else {
            is_disconnected(client.finish(gate), Delivery::MaybeExecuted);
        }
    })
}

fn sending(cell: &mut Cell) -> Sees {
    let mut raw = cell.raw();
    let calls = [call_frame(1, "large", b""), call_frame(2, "echo", b"\x01x")];
    raw.write(&[cell.hello(), calls.concat()].concat());
    assert!(readable(raw.stream(), SOON));
    Box::new(move |_, course| {
        let said = raw.read_to_end();
        if course == Course::Finishes {
            assert_eq!(said.len(), IN_FRONT + LARGE + 12 + 6);
            let stopping = frame(6, 0, 0, 2, &[4, 0, 0, 0, 0, 0]);
            assert!(said.ends_with(&stopping), "the call behind it");
        } else {
            assert!(said.len() < IN_FRONT + LARGE);
        }
    })
}

fn stream_behind_a_call(cell: &mut Cell) -> Sees {
    let mut raw = cell.raw();
    let calls = [call_frame(1, "gate", b""), frame(4, 0, 8, 2, b"\x04wait\0")];
    raw.write(&[cell.hello(), calls.concat()].concat());
    cell.entered.read_exact(&mut [0]).unwrap();
    Box::new(move |cell, course| {
        if course == Course::Finishes {
            cell.leave_gate();
            let said = raw.read_to_end();
            let stopping = frame(6, 0, 0, 2, &[4, 0, 0, 0, 0, 0]);
            assert!(said.ends_with(&stopping), "nothing is opened: {said:?}");
            // The welcome, and the answer of the gate.
            assert_eq!(said.len(), 24 + 12 + 8 + 8 + stopping.len());
        } else {
            assert_eq!(raw.read_to_end().len(), 24, "the welcome only");
        }
    })
}

fn stream_waiting(cell: &mut Cell) -> Sees {
    let mut channel = cell.client().open("wait", &0_usize).unwrap();
    assert_eq!(channel.recv::<Bytes>().unwrap().unwrap().len(), 0);
    Box::new(move |_, _| is_told(channel))
}

fn stream_sending(cell: &mut Cell) -> Sees {
    let mut channel = cell.client().open("wait", &LARGE).unwrap();
    assert!(readable(&channel, SOON));
    Box::new(move |_, course| match course {
        Course::Finishes => {
            assert_eq!(channel.recv::<Bytes>().unwrap().unwrap().len(), LARGE);
            is_told(channel);
        }
        Course::IsCutOff => {
            let err = channel.recv::<Bytes>().unwrap_err();
            assert!(matches!(err, StreamError::Disconnected), "{err}");
        }
    })
}

/// The handler has been told, has said so, and has returned.
fn is_told(mut channel: Channel<Client>) {
    let told: Option<String> = channel.recv().unwrap();
    assert_eq!(told.as_deref(), Some("the server is stopping"));
    assert!(channel.recv::<String>().unwrap().is_none());
}

/// Each state in a server of its own.
fn each_finishes(cause: Cause) {
    for (name, state) in states() {
        eprintln!("{name}");
        let mut cell = Cell::start(cause, Duration::from_secs(20));
        let sees = state(&mut cell);
        cell.stop();
        sees(&mut cell, Course::Finishes);
        cell.ends(SOON, Course::Finishes);
    }
}

/// All states in one server; those that wait for their client or their handler do so in vain, and the others do not
/// suffer from it.
fn all_are_cut_off(cause: Cause, patience: Duration) {
    let mut cell = Cell::start(cause, patience);
    let states = states().into_iter();
    let clients: Vec<_> = states
        .map(|(name, state)| (name, state(&mut cell)))
        .collect();
    cell.stop();
    let begun = Instant::now();
    cell.server.ends_within(patience + SOON);
    // The path goes a moment after the time has begun.
    assert!(
        begun.elapsed() + SHORT / 4 >= patience,
        "{:?}",
        begun.elapsed()
    );
    for (name, sees) in clients {
        eprintln!("{name}");
        sees(&mut cell, Course::IsCutOff);
    }
    cell.ends(SOON, Course::IsCutOff);
}

fn a_stop_by_the_owner_is_seen_in_each_state() {
    each_finishes(Cause::Stop);
}

fn a_dropped_handle_is_seen_in_each_state() {
    each_finishes(Cause::Drop);
}

fn a_stop_by_a_handler_is_seen_in_each_state() {
    each_finishes(Cause::Handler);
}

fn a_signal_is_seen_in_each_state() {
    each_finishes(Cause::Signal);
}

fn the_owners_death_is_seen_in_each_state() {
    each_finishes(Cause::Death);
}

fn a_stop_by_the_owner_cuts_off_what_is_not_finished_in_time() {
    all_are_cut_off(Cause::Stop, SHORT);
}

fn a_dropped_handle_cuts_off_what_is_not_finished_in_time() {
    // Whoever drops a handle has no say in how long that takes.
    all_are_cut_off(Cause::Drop, Duration::from_secs(4));
}

fn a_stop_by_a_handler_cuts_off_what_is_not_finished_in_time() {
    all_are_cut_off(Cause::Handler, SHORT);
}

fn a_signal_cuts_off_what_is_not_finished_in_time() {
    all_are_cut_off(Cause::Signal, SHORT);
}

fn the_owners_death_cuts_off_what_is_not_finished_in_time() {
    all_are_cut_off(Cause::Death, SHORT);
}
