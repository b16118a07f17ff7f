//! Forks a server, calls it, gets a descriptor from it, stops it, and says what happened.
//!
//! Run it with `cargo run --release --example hello [first name] [last name]`.

use forkserver::{Fd, Server};
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicU32, Ordering};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut names = std::env::args().skip(1);
    let first = names.next().unwrap_or_else(|| "Joe".into());
    let last = names.next().unwrap_or_else(|| "Dalton".into());

    let greeted = AtomicU32::new(0);
    let server = Server::new()
        .process_name("greeter")
        .handle("hello", move |_, (first, last): (String, String)| {
            let number = greeted.fetch_add(1, Ordering::Relaxed) + 1;
            Ok((format!("Hello {first} {last}, how are you?"), number))
        })
        .handle("open", |_, path: String| Ok(Fd::from(File::open(path)?)))
        .start()?;
    println!(
        "owner {} has started server {}",
        std::process::id(),
        server.pid()
    );

    let mut client = server.connect()?;
    let (greeting, number): (String, u32) = client.call("hello", &(first, last))?;
    println!("server says: {greeting} (greeting number {number})");

    let comm: Fd = client.call("open", "/proc/self/comm")?;
    let mut text = String::new();
    File::from(comm).read_to_string(&mut text)?;
    println!("the descriptor it opened and sent reads: {}", text.trim());

    let missing = client.call::<_, Fd>("open", "/does/not/exist").unwrap_err();
    println!("a fault comes back as an error: {missing}");
    let unknown = client.call::<_, ()>("helo", &()).unwrap_err();
    println!("and so does a mistake: {unknown}");

    drop(client);
    let exit = server.stop()?;
    println!("server stopped: {exit}");
    Ok(())
}
