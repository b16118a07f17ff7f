//! A stream: a server follows a log file and sends each new line, until its client has seen enough.
//!
//! Run it with `cargo run --example stream`.

use forkserver::{Channel, Client, Server, StreamError};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::temp_dir().join(format!("stream.{}.log", std::process::id()));
    let mut log = File::create(&path)?;
    let server = Server::new()
        .handle("lines", |_, path: PathBuf| {
            Ok(BufReader::new(File::open(path)?).lines().count())
        })
        .handle_stream("follow", |_, path: PathBuf, channel: Channel| {
            follow(BufReader::new(File::open(path)?), channel)
        })
        .start()?;

    let mut channel = server.connect()?.open("follow", &path)?;
    for line in ["cold start", "all is well", "good night"] {
        writeln!(log, "{line}")?;
        let seen: Option<String> = channel.recv()?;
        println!("the server saw: {}", seen.unwrap_or_default());
    }
    // The connection is there for calls again.
    let mut client: Client = channel.into_client()?;
    let count: usize = client.call("lines", &path)?;
    println!("after the stream, a call: {count} lines");

    // A stream that is open when the server stops is told so.
    let mut channel = client.open("follow", &path)?;
    for _ in 0..count {
        channel.recv::<String>()?;
    }
    server.stop()?;
    let last: Option<String> = channel.recv()?;
    println!("its last words: {}", last.unwrap_or_default());
    std::fs::remove_file(&path)?;
    Ok(())
}

/// Sends each line of `log`, also those that are still to be written.
fn follow(mut log: BufReader<File>, mut channel: Channel) -> Result<(), forkserver::Fault> {
    channel.set_timeout(Some(Duration::from_millis(10)));
    let mut line = String::new();
    loop {
        while log.read_line(&mut line)? > 0 {
            channel.send(line.trim_end())?;
            line.clear();
        }
        // Until it is time to look at the file again, or the client has finished, or the server stops.
        match channel.recv::<()>() {
            Ok(Some(())) | Err(StreamError::TimedOut(_)) => {}
            Ok(None) => return Ok(()),
            Err(StreamError::Stopped(reason)) => return Ok(channel.send(&reason.to_string())?),
            Err(err) => return Err(err.into()),
        }
    }
}
