//! Descriptors are values: a pipe goes to the server, an open file comes back.
//!
//! Run it with `cargo run --example pass_fd`.

use forkserver::{Fd, Server};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Seek, Write};

/// A descriptor may stand anywhere in a value.
#[derive(Serialize, Deserialize)]
struct Delivery {
    greeting: String,
    times: usize,
    into: Fd,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Server::new()
        .handle("deliver", |_, delivery: Delivery| {
            let mut pipe = File::from(delivery.into);
            let text = delivery.greeting.repeat(delivery.times);
            pipe.write_all(text.as_bytes())?;
            Ok(text.len())
        })
        .handle("secret", |_, (): ()| {
            // Nobody else can open this file: it has no name any more.
            let path = std::env::temp_dir().join(format!("secret.{}", std::process::id()));
            let mut file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            std::fs::remove_file(&path)?;
            file.write_all(b"secret of the server")?;
            file.rewind()?;
            Ok(Fd::from(file))
        })
        .start()?;
    let mut client = server.connect()?;

    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let delivery = Delivery {
        greeting: "hello ".into(),
        times: 7,
        into: theirs.into(),
    };
    let written: usize = client.call("deliver", &delivery)?;
    drop(delivery); // our copy of the other end
    let mut greetings = String::new();
    ours.read_to_string(&mut greetings)?;
    assert_eq!(greetings.len(), written);
    println!("the server wrote into our pipe: {written} bytes of greetings");

    let secret: Fd = client.call("secret", &())?;
    let mut text = String::new();
    File::from(secret).read_to_string(&mut text)?;
    println!("we read from the server's file: {text}");
    Ok(())
}
