//! Panics of handlers and hooks, caught with what they said and where.
//!
//! Invariant: the only place that catches a panic of a user's code. One that is caught here is not printed; any
//! other goes to the hook that was there before us.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::{Arc, Once};

/// What a panic said.
#[derive(Clone, Debug)]
pub(crate) struct Panicked {
    pub(crate) message: String,
    /// Source file, line and column.
    pub(crate) location: String,
}

thread_local! {
    /// How many calls of [`catch`] this thread is in, and the last panic in them.
    static WATCHED: RefCell<(usize, Option<Panicked>)> = const { RefCell::new((0, None)) };
}

/// Runs `code`, and says what it said if it panics.
// Inlined, so that what `code` gives is not copied once more.
#[inline]
pub(crate) fn catch<R>(code: impl FnOnce() -> R) -> Result<R, Box<Panicked>> {
    install();
    WATCHED.with_borrow_mut(|watched| watched.0 += 1);
    let result = catch_unwind(AssertUnwindSafe(code));
    let noted = WATCHED.with_borrow_mut(|watched| {
        watched.0 -= 1;
        watched.1.take()
    });
    result.map_err(|payload| {
        let message = text(payload.as_ref());
        // `code` may have caught another panic before this one, or this one went around the hook.
        let noted = noted.filter(|noted| noted.message == message);
        let location = noted.map_or_else(|| "(unknown)".into(), |noted| noted.location);
        // Dropping the payload runs the user's code once more, which may panic once more.
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(payload);
        }
        Box::new(Panicked { message, location })
    })
}

/// Puts our hook in front of the one there is, once in a process and all that are forked from it.
fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(stay_in_front);
}

/// Puts our hook in front of the one there is. If that is ours already, a panic is noted twice.
pub(crate) fn stay_in_front() {
    let previous: Arc<dyn Fn(&PanicHookInfo<'_>) + Send + Sync> = std::panic::take_hook().into();
    std::panic::set_hook(Box::new(move |info| {
        if !note(info) {
            previous(info);
        }
    }));
}

/// Remembers a panic if its thread is being watched.
fn note(info: &PanicHookInfo<'_>) -> bool {
    let noted = WATCHED.try_with(|watched| {
        let Ok(mut watched) = watched.try_borrow_mut() else {
            return false;
        };
        if watched.0 == 0 {
            return false;
        }
        let location = info
            .location()
            .map_or_else(|| "(unknown)".into(), ToString::to_string);
        watched.1 = Some(Panicked {
            message: text(info.payload()),
            location,
        });
        true
    });
    noted.unwrap_or(false)
}

fn text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref().map(String::as_str));
    text.unwrap_or("(a value that is no text)").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_and_place_are_kept() {
        let panicked = catch(|| panic!("number {}", 7)).unwrap_err();
        assert_eq!(panicked.message, "number 7");
        assert!(
            panicked.location.contains("panics.rs:"),
            "{}",
            panicked.location
        );
    }

    #[test]
    fn an_earlier_panic_is_not_taken_for_the_last() {
        let panicked = catch(|| {
            let _ = std::panic::catch_unwind(|| panic!("handled long ago"));
            std::panic::resume_unwind(Box::new("around the hook"));
        });
        let panicked = panicked.unwrap_err();
        assert_eq!(
            (panicked.message.as_str(), panicked.location.as_str()),
            ("around the hook", "(unknown)")
        );
    }

    #[test]
    fn a_payload_that_panics_when_dropped_is_survived() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        let panicked = catch(|| std::panic::panic_any(Bomb)).unwrap_err();
        assert_eq!(panicked.message, "(a value that is no text)");
        assert_eq!(catch(|| 5).unwrap(), 5);
    }
}
