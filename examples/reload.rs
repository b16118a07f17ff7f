//! Replaces all workers while a client calls in a loop, and counts the errors that it sees: none.
//!
//! Run it with `cargo run --release --example reload [file]`: the workers greet with what the file says when they are started.

use forkserver::{Client, Prefork, Server};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let given = std::env::args_os().nth(1).map(PathBuf::from);
    let own = std::env::temp_dir().join(format!("forkserver-greeting-{}", std::process::id()));
    let file = given.clone().unwrap_or_else(|| own.clone());
    if given.is_none() {
        std::fs::write(&own, "Hello")?;
    }

    let read = file.clone();
    let server = Server::new()
        .worker_started(move |_| Ok(std::fs::read_to_string(&read)?.trim().to_owned()))
        .handle("greet", |ctx, name: String| {
            Ok(format!("{} {name}", ctx.worker_state::<String>()))
        })
        .prefork(Prefork::new(2))
        .start()?;
    let mut client = Client::connect(server.address())?;
    println!("before: {}", client.call::<_, String>("greet", "Joe")?);

    if given.is_none() {
        std::fs::write(&own, "Good evening")?;
    }
    let done = AtomicBool::new(false);
    let (calls, errors, workers) = std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            let (mut calls, mut errors, mut workers) = (0, 0, BTreeSet::new());
            while !done.load(Ordering::SeqCst) {
                calls += 1;
                match client.call::<_, String>("greet", "Joe") {
                    Ok(_) => workers.extend(client.worker().map(|worker| worker.generation)),
                    Err(_) => errors += 1,
                }
            }
            (calls, errors, workers.len())
        });
        let reloaded = (0..3).try_for_each(|_| server.reload());
        done.store(true, Ordering::SeqCst);
        reloaded.map(|()| caller.join().expect("the caller does not panic"))
    })?;
    println!(
        "three reloads: the client had several workers: {}",
        workers > 1
    );
    println!("errors in its calls: {errors}; it made some: {}", calls > 0);

    let mut client = Client::connect(server.address())?;
    println!("after: {}", client.call::<_, String>("greet", "Joe")?);
    if given.is_none() {
        std::fs::remove_file(&own)?;
    }
    println!("server stopped: {}", server.stop()?);
    Ok(())
}
