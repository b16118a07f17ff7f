//! Signals of a server: HUP reloads, TERM drains and ends it.
//!
//! Run it with `cargo run --example signals`.

use forkserver::{Server, Signal};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let reloads = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&reloads);
    let server = Server::new()
        // Runs on the server's control thread, where it may do what it likes: no signal handler's rules apply.
        .handle_signal(Signal::SIGHUP, move |control| {
            count.fetch_add(1, Ordering::SeqCst);
            println!(
                "the server at {} reloads",
                control.address().path().display()
            );
        })
        .handle("reloads", move |_, (): ()| {
            Ok(reloads.load(Ordering::SeqCst))
        })
        .finalize(|_| println!("the server says good-bye"))
        .start()?;
    let pid = Pid::from_raw(server.pid() as i32);
    let mut client = server.connect()?;

    for wanted in 1..=2 {
        kill(pid, Signal::SIGHUP)?;
        while client.call::<_, u32>("reloads", &())? < wanted {
            std::thread::yield_now();
        }
    }
    println!("reloaded {} times", client.call::<_, u32>("reloads", &())?);

    // Calls in progress would be answered first. The status tells the truth about how it ended.
    kill(pid, Signal::SIGTERM)?;
    println!("the server ended: {}", server.wait());
    Ok(())
}
