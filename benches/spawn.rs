//! What starting processes costs a program of a GiB with threads, and what a preload saves: ratios of things measured
//! in turns, in one run.
//!
//! `cargo bench --bench spawn`; `ROUNDS=31` for more rounds than the usual 15. Placement: free.

#![allow(missing_docs, unreachable_pub, unsafe_code, clippy::incompatible_msrv)]

use forkserver::spawn::{Command, Jobs, Spawner};
use forkserver::{Entry, Fault, Server};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const GIB: usize = 1 << 30;
/// Words in a table of 100 MiB.
const WORDS: usize = (100 << 20) / 8;

static SMALL: Entry<()> = Entry::new("small", |()| Ok(answering(7)));
static LOADING: Entry<()> = Entry::new("loading", |()| {
    Ok(Server::new()
        .initialize(|_| Ok(table()))
        .handle("word", |ctx, n: usize| Ok(ctx.state::<Vec<u64>>()[n])))
});

fn answering(number: u64) -> Server {
    Server::new().handle("word", move |_, _: usize| Ok(number))
}

/// What takes long to load: here, to compute.
fn table() -> Vec<u64> {
    let next = |word: &u64| Some(word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    std::iter::successors(Some(1_u64), next)
        .take(WORDS)
        .collect()
}

type Work<'a> = Box<dyn FnMut() + 'a>;

fn main() {
    forkserver::init(&[&SMALL, &LOADING]);
    let rounds = std::env::var("ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(15);
    // Forked while this process is small and has one thread.
    let mut tiny = Tiny::start();
    let spawner = Spawner::start().expect("a spawner");
    let jobs = Jobs::preload(|| Ok::<_, Fault>(table()))
        .job("word", |table: &Vec<u64>, n: usize, mut channel| {
            Ok(channel.send(&(table[n], private_memory()))?)
        })
        .start()
        .expect("a spawner with a table");

    println!("{:<52} {:>10}   ratio to the first", "", "us");
    report(
        "100 MiB of table, first answer",
        rounds,
        vec![
            (
                "a job forked from the mold",
                Box::new(|| {
                    let mut job = jobs.job("word", &1_usize).expect("a job");
                    let _: (u64, u64) = job.channel.recv().expect("an answer").expect("a word");
                }) as Work<'_>,
            ),
            (
                "a launched process that loads it",
                Box::new(|| {
                    let server = LOADING.start(&()).expect("a server");
                    let mut client = server.connect().expect("a client");
                    let _: u64 = client.call("word", &1_usize).expect("a word");
                    server.kill().expect("the end");
                }),
            ),
        ],
    );
    let mut job = jobs.job("word", &1_usize).expect("a job");
    let (_, private): (u64, u64) = job.channel.recv().expect("an answer").expect("a word");
    println!(
        "memory of a job that it does not share: {} KiB, {:.1} % of the table\n",
        private,
        private as f64 / 1024.0
    );

    // Most heaps consist of small pages; with huge ones there would be next to nothing to copy.
    // SAFETY: numbers, as prctl(2) wants them.
    unsafe { nix::libc::prctl(nix::libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    let ballast = std::hint::black_box(vec![1_u8; GIB]);
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::thread::park_timeout(Duration::from_millis(50));
                }
            })
        })
        .collect();
    report(
        "/bin/true, from start to end",
        rounds,
        vec![
            (
                "std's Command in a tiny process",
                Box::new(move || tiny.once()) as Work<'_>,
            ),
            (
                "the spawner, for a process of 1 GiB with threads",
                Box::new(|| {
                    spawner
                        .spawn(&mut Command::new("/bin/true"))
                        .expect("a process")
                        .wait()
                        .expect("the end");
                }),
            ),
            (
                "fork and exec in the process of 1 GiB",
                Box::new(|| {
                    let mut command = std::process::Command::new("/bin/true");
                    // SAFETY: the hook does nothing; having one makes std fork.
                    unsafe { command.pre_exec(|| Ok(())) };
                    assert!(command.status().expect("a process").success());
                }),
            ),
        ],
    );
    report(
        "a server in a process of 1 GiB, until it is ready",
        rounds,
        vec![
            (
                "launched",
                Box::new(|| drop(SMALL.start(&()).expect("a server").kill())) as Work<'_>,
            ),
            (
                "forked",
                Box::new(|| {
                    // SAFETY: the other threads of this process only sleep, and hold no locks.
                    let server = unsafe { answering(7).start_unchecked() };
                    drop(server.expect("a server").kill());
                }),
            ),
        ],
    );
    stop.store(true, Ordering::Relaxed);
    threads
        .into_iter()
        .for_each(|thread| thread.join().expect("no panic"));
    drop(ballast);
}

/// Measures several works in turns, and prints medians of times, and of ratios to the first.
fn report(title: &str, rounds: usize, mut works: Vec<(&str, Work<'_>)>) {
    println!("{title}");
    works.iter_mut().for_each(|(_, work)| work());
    let mut times = vec![Vec::new(); works.len()];
    for _ in 0..rounds {
        for ((_, work), times) in works.iter_mut().zip(&mut times) {
            let begun = Instant::now();
            work();
            times.push(begun.elapsed().as_secs_f64());
        }
    }
    for ((name, _), own) in works.iter().zip(&times) {
        let ratios: Vec<f64> = own
            .iter()
            .zip(&times[0])
            .map(|(own, first)| own / first)
            .collect();
        let [low, middle, high] = [0.25, 0.5, 0.75].map(|q| quantile(&ratios, q));
        let time = quantile(own, 0.5) * 1e6;
        println!("  {name:<50} {time:>10.1}   {middle:.2} [{low:.2}-{high:.2}]");
    }
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * q).round() as usize]
}

/// KiB that this process shares with nobody.
fn private_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let private = text.lines().filter(|line| line.starts_with("Private_"));
    private
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

/// A process that stays small, and starts others in the usual way when it is told to.
struct Tiny(UnixStream);

impl Tiny {
    fn start() -> Tiny {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        // SAFETY: this process has one thread.
        match unsafe { nix::unistd::fork() }.expect("a process") {
            nix::unistd::ForkResult::Child => {
                drop(ours);
                let mut byte = [0];
                while theirs.read_exact(&mut byte).is_ok() {
                    let status = std::process::Command::new("/bin/true").status();
                    assert!(status.expect("a process").success());
                    let _ = theirs.write_all(&byte);
                }
                // SAFETY: leaves without the parent's destructors.
                unsafe { nix::libc::_exit(0) }
            }
            nix::unistd::ForkResult::Parent { .. } => Tiny(ours),
        }
    }

    fn once(&mut self) {
        self.0.write_all(b"!").expect("it listens");
        self.0.read_exact(&mut [0]).expect("it answers");
    }
}
