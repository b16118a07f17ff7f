//! A program with an async runtime that owns a server, and has processes started.
//!
//! Run it with `cargo run --example tokio_owner`. `main` is a plain function: it calls `init` before the runtime has
//! threads, because the server is this program, executed once more.

use forkserver::spawn::{Command, SPAWNER, Spawner, Stdio};
use forkserver::{Entry, Server};
use std::io::Read;
use std::sync::Arc;

type Error = Box<dyn std::error::Error + Send + Sync>;

static COUNTER: Entry<String> = Entry::new("counter", |what| {
    Ok(Server::new().handle("count", move |_, text: String| {
        Ok(format!("{} {what}", text.matches(&what).count()))
    }))
});

fn main() -> Result<(), Error> {
    forkserver::init(&[&COUNTER, &SPAWNER]);
    let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    runtime.block_on(work())
}

async fn work() -> Result<(), Error> {
    // What blocks is done where it may.
    let (server, spawner) = tokio::task::spawn_blocking(|| {
        let server = COUNTER.start(&"la".into())?;
        Ok::<_, Error>((Arc::new(server), Arc::new(Spawner::launch()?)))
    })
    .await??;
    println!(
        "the server is another process: {}",
        server.pid() != std::process::id()
    );

    let counts = ["la la land", "do re mi"].map(|text| {
        let server = Arc::clone(&server);
        tokio::task::spawn_blocking(move || {
            let mut client = server.connect()?;
            Ok::<String, Error>(client.call("count", text)?)
        })
    });
    for count in counts {
        println!("counted: {}", count.await??);
    }

    let said = tokio::task::spawn_blocking(move || {
        let mut process = spawner.spawn(
            Command::new("echo")
                .arg("hello from afar")
                .stdout(Stdio::Piped),
        )?;
        let mut text = String::new();
        process
            .stdout
            .take()
            .expect("it is piped")
            .read_to_string(&mut text)?;
        process.wait()?;
        Ok::<_, Error>(text)
    });
    println!("a process said: {}", said.await??.trim_end());
    let server = Arc::into_inner(server).ok_or("nobody else has the server")?;
    println!(
        "server stopped: {}",
        tokio::task::spawn_blocking(|| server.stop()).await??
    );
    Ok(())
}
