//! What is said to somebody who may not be listening at the moment.
//!
//! Invariant: messages arrive in order, and sending one never waits. What has no room stays here until there is some, and
//! the set of events tells when; of whom so much waits has not been listening for very long, and hears no more.

use super::ControlLine;
use crate::sys::epoll::{EventSet, Interest};
use serde::Serialize;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

/// So many messages wait at most, beyond the hundreds for which the kernel has room.
const MOST: usize = 1024;

/// One side's messages, for a control line that is in a set of events.
#[derive(Debug)]
pub(crate) struct Post<T> {
    waiting: VecDeque<T>,
    /// The line's in the set.
    name: u64,
}

impl<T: Serialize> Post<T> {
    pub(crate) fn new(name: u64) -> Post<T> {
        let waiting = VecDeque::new();
        Post { waiting, name }
    }

    /// Whether there has been room for everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What there has been no room for.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &T> {
        self.waiting.iter()
    }

    /// Sends a message behind those that wait, now or as soon as there is room.
    ///
    /// # Errors
    /// The other side is gone, or too much waits already, `WouldBlock`: then this message is lost.
    pub(crate) fn send(
        &mut self,
        message: T,
        line: &ControlLine,
        events: &EventSet,
    ) -> io::Result<()> {
        if self.waiting.is_empty() {
            match line.send(&message, Some(Instant::now())) {
                Err(err) if err.kind() == io::ErrorKind::TimedOut => {}
                result => return result,
            }
            // From now on the set tells of room, too.
            events.keep(line.as_fd(), self.name, Interest::Both, true)?;
        }
        if self.waiting.len() >= MOST {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.waiting.push_back(message);
        Ok(())
    }

    /// Sends of what waits as much as there is room for. To be called at every event of the line.
    pub(crate) fn flush(&mut self, line: &ControlLine, events: &EventSet) {
        if !self.waiting.is_empty() && self.finish(line, Some(Instant::now())) {
            // It fails only if the line is not in the set any more.
            let _ = events.keep(line.as_fd(), self.name, Interest::Readable, true);
        }
    }

    /// Sends what waits, and does wait for room, until the deadline. `false`: there was not enough.
    pub(crate) fn finish(&mut self, line: &ControlLine, deadline: Option<Instant>) -> bool {
        while let Some(message) = self.waiting.front() {
            match line.send(message, deadline) {
                Err(err) if err.kind() == io::ErrorKind::TimedOut => return false,
                // If it could not be said it is as if nobody had listened.
                _ => drop(self.waiting.pop_front()),
            }
        }
        true
    }

    /// The end of the line: what waits is for nobody.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Order, Request};

    const NAME: u64 = 7;

    fn numbered(number: u64) -> Order {
        let request = Request::Pause;
        Order::Ask { number, request }
    }

    /// Numbers of what can be received now.
    fn received(line: &ControlLine) -> Vec<u64> {
        let next = || line.receive(Some(Instant::now())).ok().flatten();
        std::iter::from_fn(next)
            .map(|order: Order| match order {
                Order::Ask { number, .. } => number,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn watched() -> (ControlLine, ControlLine, EventSet) {
        let (ours, theirs) = ControlLine::pair().unwrap();
        let events = EventSet::new().unwrap();
        events.watch(ours.as_fd(), NAME).unwrap();
        (ours, theirs, events)
    }

    #[test]
    fn what_waits_leaves_in_order_when_there_is_room() {
        let (ours, theirs, events) = watched();
        let mut post = Post::new(NAME);
        let mut sent = 0;
        while post.waiting().count() < 500 {
            post.send(numbered(sent), &ours, &events).unwrap();
            sent += 1;
        }
        assert_eq!(events.next_now().unwrap(), None, "there is no room");
        let mut heard = received(&theirs);
        while !post.is_empty() {
            assert_eq!(events.next_now().unwrap(), Some(NAME));
            post.flush(&ours, &events);
            heard.extend(received(&theirs));
        }
        assert!(heard.into_iter().eq(0..sent));
        assert_eq!(events.next_now().unwrap(), None, "room is no news any more");
    }

    #[test]
    fn so_much_waits_and_no_more() {
        let (ours, theirs, events) = watched();
        let mut post = Post::new(NAME);
        let failed = (0..).find_map(|n| post.send(numbered(n), &ours, &events).err().zip(Some(n)));
        let (err, sent) = failed.unwrap();
        assert_eq!(err.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(post.waiting().count(), MOST);
        assert!(!post.finish(&ours, Some(Instant::now())));
        let mut heard = Vec::new();
        while !post.is_empty() {
            heard.extend(received(&theirs));
            post.finish(&ours, Some(Instant::now()));
        }
        heard.extend(received(&theirs));
        assert!(heard.into_iter().eq(0..sent));
    }

    #[test]
    fn nothing_waits_for_who_is_gone() {
        let (ours, theirs, events) = watched();
        let mut post = Post::new(NAME);
        while post.is_empty() {
            post.send(numbered(0), &ours, &events).unwrap();
        }
        drop(theirs);
        post.flush(&ours, &events);
        assert!(post.is_empty());
        post.send(numbered(0), &ours, &events).unwrap_err();
    }
}
