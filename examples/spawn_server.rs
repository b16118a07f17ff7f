//! A spawn server: it is forked while the program is small, and starts processes for it when it is large and has threads.
//!
//! Run it with `cargo run --example spawn_server`.

use forkserver::spawn::{Command, Spawner, Stdio};
use forkserver::{Resource, Signal};
use std::io::{Read, Write};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let spawner = Spawner::start()?; // first thing, before there are threads

    // From now on the program may be as large as it likes.
    let ballast = vec![1_u8; 64 << 20];
    let sums: Vec<String> = std::thread::scope(|scope| {
        let sort = |text: &'static str| sort(&spawner, text).expect("a sorted text");
        let threads = ["pear\napple\n", "two\none\n"].map(|text| scope.spawn(move || sort(text)));
        threads
            .map(|thread| thread.join().expect("no panic"))
            .into()
    });
    println!("sorted at the same time: {sums:?}");

    let mut limited = spawner.spawn(
        Command::new("sh")
            .args(["-c", "ulimit -n; exit 7"])
            .rlimit(Resource::RLIMIT_NOFILE, 32, 32)
            .no_new_privileges()
            .stdout(Stdio::Piped),
    )?;
    let mut text = String::new();
    limited
        .stdout
        .take()
        .expect("it is piped")
        .read_to_string(&mut text)?;
    println!(
        "with a limit of {} descriptors: {}",
        text.trim_end(),
        limited.wait()?
    );

    let mut sleeper = spawner.spawn(Command::new("sleep").arg("1000").tied(true))?;
    sleeper.signal(Signal::SIGTERM)?;
    println!("the sleeper: {}", sleeper.wait()?);

    let err = spawner.spawn(&mut Command::new("no-such-program"));
    println!("{}", err.err().map_or(String::new(), |err| err.to_string()));
    println!(
        "the spawner ended with {}, and {} MiB stayed here",
        spawner.stop()?,
        ballast.len() >> 20
    );
    Ok(())
}

/// Has a text sorted by another process.
fn sort(spawner: &Spawner, text: &str) -> Result<String, Box<dyn std::error::Error>> {
    let mut command = Command::new("sort");
    command.stdin(Stdio::Piped).stdout(Stdio::Piped);
    let mut process = spawner.spawn(&mut command)?;
    process
        .stdin
        .take()
        .expect("it is piped")
        .write_all(text.as_bytes())?;
    let mut sorted = String::new();
    process
        .stdout
        .take()
        .expect("it is piped")
        .read_to_string(&mut sorted)?;
    process.wait()?;
    Ok(sorted)
}
