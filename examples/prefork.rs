//! Loads a dictionary once, has four workers answer from it, and crashes one of them on purpose.
//!
//! Run it with `cargo run --release --example prefork [dictionary] [word]`.

use forkserver::{CallError, Client, Fault, PoolStatus, Prefork, Server, ServerHandle};
use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

type Words = HashSet<String>;

fn dictionary(path: Option<&str>) -> Result<Words, Fault> {
    let text = match path {
        Some(path) => std::fs::read_to_string(path)?,
        None => "knife fork spoon".into(),
    };
    Ok(text.split_whitespace().map(str::to_lowercase).collect())
}

fn pool(server: &ServerHandle) -> forkserver::Result<PoolStatus> {
    Ok(server.status()?.pool.expect("it has workers"))
}

fn main() -> forkserver::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next();
    let word = arguments.next().unwrap_or_else(|| "fork".into());

    let server = Server::new()
        .initialize(move |_| dictionary(path.as_deref())) // once, before the workers are forked
        .handle("knows", |ctx, word: String| {
            let known = ctx.state::<Words>().contains(&word.to_lowercase());
            Ok((known, std::process::id()))
        })
        .handle("crash", |_, (): ()| -> Result<(), Fault> {
            std::process::abort()
        })
        .prefork(Prefork::new(4).min_uptime(Duration::ZERO))
        .start()?;
    let workers = pool(&server)?.workers.len();
    println!("monitor {} has {workers} workers", server.pid());

    let mut seen = BTreeSet::new();
    for _ in 0..8 {
        let mut client = Client::connect(server.address())?;
        let (known, worker): (bool, u32) = client.call("knows", &word)?;
        if seen.insert(worker) {
            println!("worker {worker} is asked for {word:?}: {known}");
        }
    }

    let mut client = Client::connect(server.address())?;
    match client.call::<_, ()>("crash", &()) {
        Err(err @ CallError::WorkerDied { .. }) => println!("a crash costs its caller: {err}"),
        other => other?,
    }
    let (known, worker): (bool, u32) = client.call("knows", &word)?;
    println!("the same client goes on, and worker {worker} is asked for {word:?}: {known}");

    while pool(&server)?.workers.len() < 4 {
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("there are four workers again; what has happened:");
    for (ago, event) in pool(&server)?.events {
        println!("{:>5} ms ago: {event}", ago.as_millis());
    }
    println!("server stopped: {}", server.stop()?);
    Ok(())
}
