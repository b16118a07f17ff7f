//! What waits to be sent while further calls are taken: so the answers to a batch leave together.
//!
//! Invariant: it stays within `max_in_flight`, `high_watermark` and `max_queued`.

use super::{ServerSession, State};
use crate::protocol::frame::HEADER_LEN;
use crate::protocol::outbox::Outbox;

impl ServerSession {
    /// The answer that was given last leaves before the next call is taken.
    pub(crate) fn hurry(&mut self) {
        self.is_urgent = true;
    }

    /// Whether so much is queued that no call is taken until most of it has left.
    pub(crate) fn is_pressed(&self) -> bool {
        self.is_pressed
    }

    /// Whether something is queued that the client might need before the call is answered that has just arrived. One that
    /// will send nothing more does not need the welcome alone.
    pub(crate) fn has_to_lend(&self) -> bool {
        let is_last = matches!(&self.state, State::Calling(call) if call.last);
        self.outbox.queued() > 0 && !(self.holds_welcome && is_last)
    }

    /// Exchanges what is queued for an empty outbox while a call is being answered: somebody else may send of it.
    pub(crate) fn lend_outbox(&mut self, empty: &mut Box<Outbox>) {
        std::mem::swap(&mut self.outbox, empty);
    }

    /// Exchanges the empty outbox for what is left of what was lent.
    pub(crate) fn take_back(&mut self, lent: &mut Box<Outbox>) {
        std::mem::swap(&mut self.outbox, lent);
        self.has_left();
    }

    /// Whether the next call can be taken before what is queued has left: so the answers to a batch leave together.
    pub(super) fn may_hold(&self) -> bool {
        let room = self.limits.max_queued.saturating_sub(self.outbox.queued());
        !self.is_pressed
            && !self.is_urgent
            && (self.held as usize) < self.limits.max_in_flight
            && room >= self.limits.max_frame.saturating_add(HEADER_LEN)
    }

    /// Some of what was queued may have left. `true`: all of it.
    pub(super) fn has_left(&mut self) -> bool {
        let queued = self.outbox.queued();
        self.is_pressed &= queued > self.limits.low_watermark;
        if queued == 0 {
            (self.held, self.is_urgent) = (0, false);
        }
        queued == 0
    }
}

#[cfg(test)]
mod tests {
    use crate::limits::{Bounds, Limits};
    use crate::protocol::Step;
    use crate::protocol::frame::ProtocolError;
    use crate::protocol::greeting::Welcome;
    use crate::protocol::message::write_reply;
    use crate::protocol::outbox::Outbox;
    use crate::protocol::server::{Happening, ServerSession};
    use crate::protocol::tests::{carry, client, send, server_with};
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use std::time::Instant;

    /// A session that has received a batch of calls, whose answers have `len` bytes each.
    fn answered(limits: &Limits, calls: u32, len: usize) -> ServerSession {
        let now = Instant::now();
        let mut client = client();
        let mut server = server_with(limits.clone(), now);
        (1..=calls).for_each(|id| send(&mut client, id, "double", &1_u64));
        carry(&mut client.outbox, &mut server.inbox, 1 << 20);
        loop {
            match server.poll(|| now) {
                Step::Event(Happening::Authenticated { fds, .. }) => server.welcome(Welcome {
                    fds,
                    worker: (0, 0),
                }),
                Step::Event(Happening::Call) => {
                    let (mut frame, slot) = write_reply(server.call_id());
                    slot.give_up(&mut frame);
                    frame.buf.resize(len, 0);
                    server.finish(frame);
                }
                _ => return server,
            }
        }
    }

    #[test]
    fn a_batch_may_have_frames_without_limit() {
        let limits = Limits {
            max_frame: usize::MAX,
            ..Limits::default()
        };
        // There is never room for another one, so that each answer leaves by itself.
        assert_eq!(answered(&limits, 3, 100).outbox.queued(), 124);
    }

    #[test]
    fn the_answers_to_a_batch_leave_together_up_to_the_limits() {
        let welcome = 24;
        let mut limits = Limits::default();
        assert_eq!(answered(&limits, 64, 100).outbox.queued(), welcome + 6400);
        assert_eq!(
            answered(&limits, 200, 100).outbox.queued(),
            welcome + 12_800
        );
        limits.max_in_flight = 3;
        assert_eq!(answered(&limits, 64, 100).outbox.queued(), welcome + 300);
        limits.max_in_flight = 0;
        assert_eq!(answered(&limits, 64, 100).outbox.queued(), welcome + 100);

        limits = Limits::default();
        (limits.high_watermark, limits.low_watermark) = (welcome + 500, 100);
        let mut pressed = answered(&limits, 64, 100);
        assert_eq!(pressed.outbox.queued(), welcome + 600, "one above the mark");
        assert!(pressed.is_pressed());
        let now = Instant::now();
        pressed.transmitted(welcome + 499, || now);
        assert!(pressed.is_pressed());
        assert!(matches!(pressed.poll(|| now), Step::Transmit));
        pressed.transmitted(1, || now);
        assert!(!pressed.is_pressed(), "no more than the lower mark is left");
        assert!(matches!(pressed.poll(|| now), Step::Event(Happening::Call)));

        limits = Limits::default();
        limits.max_queued = limits.max_frame;
        assert_eq!(
            answered(&limits, 64, 100).outbox.queued(),
            welcome + 100,
            "another answer might not have room"
        );
    }

    /// The watermarks, in as few words as they take.
    struct Marks {
        high: usize,
        low: usize,
        queued: usize,
        is_pressed: bool,
    }

    impl Marks {
        fn become_queued(&mut self, queued: usize) {
            self.queued = queued;
            self.is_pressed = match self.is_pressed {
                false => queued > self.high,
                true => queued > self.low,
            };
        }
    }

    /// Plays with a session at random, and looks whether it is pressed when the model is. Returns how often that has
    /// changed.
    fn play(random: &mut StdRng) -> usize {
        let now = Instant::now();
        let mut limits = Limits::default();
        limits.low_watermark = random.random_range(0..300);
        limits.high_watermark = limits.low_watermark + random.random_range(0..600);
        limits.max_in_flight = random.random_range(1..20);
        let mut marks = Marks {
            high: limits.high_watermark,
            low: limits.low_watermark,
            queued: 0,
            is_pressed: false,
        };
        let mut server = answered(&limits, 0, 0);
        let mut client = client();
        carry(&mut client.outbox, &mut server.inbox, 1 << 20);
        let mut events = Vec::new();
        for id in 1..200 {
            if random.random() {
                send(&mut client, id, "double", &1_u64);
                while carry(&mut client.outbox, &mut server.inbox, 1 << 20) > 0 {}
            }
            match server.poll(|| now) {
                Step::Event(Happening::Authenticated { fds, .. }) => server.welcome(Welcome {
                    fds,
                    worker: (0, 0),
                }),
                Step::Event(Happening::Call) => {
                    assert!(!marks.is_pressed, "no call is taken above the marks");
                    let (mut frame, slot) = write_reply(server.call_id());
                    slot.give_up(&mut frame);
                    frame.buf.resize(random.random_range(20..300), 0);
                    server.finish(frame);
                    // As a driver tells it: the high event, and below the low one.
                    events.extend(server.is_pressed().then_some("high"));
                }
                Step::Transmit => {
                    let len = random.random_range(1..=server.outbox.queued());
                    let was_pressed = server.is_pressed();
                    server.transmitted(len, || now);
                    events.extend((was_pressed && !server.is_pressed()).then_some("low"));
                }
                Step::Receive => {}
                Step::Closed => panic!("nothing ends it"),
            }
            marks.become_queued(server.outbox.queued());
            assert_eq!(
                server.is_pressed(),
                marks.is_pressed,
                "{} bytes",
                marks.queued
            );
        }
        for (place, event) in events.iter().enumerate() {
            assert_eq!(*event, ["high", "low"][place % 2], "{events:?}");
        }
        events.len()
    }

    #[test]
    fn a_session_is_pressed_above_the_high_mark_and_until_the_low_one() {
        let told: usize = (0..300)
            .map(|seed| play(&mut StdRng::seed_from_u64(seed)))
            .sum();
        assert!(told > 1000, "{told}");
    }

    #[test]
    fn as_much_may_be_queued_as_the_limit_and_not_one_byte_more() {
        let limit = 1000;
        let mut outbox = Outbox::new(Bounds::new(1 << 20, 0, limit));
        let frame = |len| {
            let (mut frame, slot) = write_reply(1);
            slot.give_up(&mut frame);
            frame.buf.resize(len, 0);
            frame
        };
        outbox.send(frame(600)).unwrap();
        let refused = ProtocolError::TooMuchQueued { size: 1001, limit };
        assert_eq!(outbox.send(frame(401)), Err(refused));
        outbox.send(frame(400)).unwrap();
        outbox.transmitted(1000);
        outbox.send(frame(1000)).unwrap();
    }
}
