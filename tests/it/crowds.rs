//! Many clients, greedy ones and slow ones: what they cost others, whatever the engine.

use crate::engine::{room_for, within};
use crate::hostile::{Raw, call_frame, hello_frame, resident, still_answers};
use crate::lifecycle::echo;
use crate::processes::{Helper, readable};
use forkserver::{Bytes, Client, Limits, Server, ServerHandle};
use std::io::Read;
use std::time::{Duration, Instant};

crate::tests![
    a_thousand_calls_of_one_client_delay_anothers_no_more_than_twofold,
    calls_that_come_faster_than_they_are_answered_cost_no_memory,
    an_idle_client_costs_two_kilobytes_at_most,
    slow_senders_are_served_in_every_state_and_delay_nobody,
    slow_readers_have_their_answers_and_delay_nobody,
];

fn roomy() -> Server {
    let mut limits = Limits::default();
    limits.max_connections = 20_000;
    echo().limits(limits)
}

/// A process that has a thousand calls under way, again and again, until the test goes on.
fn flood(server: &ServerHandle) -> Helper {
    let mut flood = Helper::start(|test| {
        let mut raw = Raw::welcomed(server);
        raw.write(&call_frame(1, "echo", b"\x01x"));
        let mut buffer = vec![0; 1 << 16];
        let answer = raw.stream().read(&mut buffer).unwrap();
        let calls: Vec<u8> = (1..=1000)
            .flat_map(|id| call_frame(id, "echo", b"\x01x"))
            .collect();
        let mut pending = 0;
        while !test.may_go(Duration::ZERO) {
            // The next thousand is there before the last has been answered.
            while pending <= 1000 * answer {
                raw.write(&calls);
                if pending == 0 {
                    test.say("flooding");
                }
                pending += 1000 * answer;
            }
            pending -= raw.stream().read(&mut buffer).unwrap();
        }
    });
    assert_eq!(flood.hear(), "flooding");
    flood
}

/// Keeps this process on one core, if the machine has as many.
fn pin(core: usize) {
    let mut set = nix::sched::CpuSet::new();
    set.set(core).unwrap();
    let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set);
}

/// How long a call takes, as a rule.
fn usual_latency(client: &mut Client) -> Duration {
    let mut latencies: Vec<_> = (0..300)
        .map(|_| {
            let begun = Instant::now();
            assert_eq!(client.call::<_, String>("echo", "y").unwrap(), "y");
            begun.elapsed()
        })
        .collect();
    latencies.sort();
    latencies[latencies.len() / 2]
}

fn a_thousand_calls_of_one_client_delay_anothers_no_more_than_twofold() {
    within(2.0, || {
        // Or else the kernel would have them share a core, with much less delay, as long as the server has little to do.
        pin(1);
        let server = echo().start().unwrap();
        pin(0);
        let mut client = server.connect().unwrap();
        let alone = usual_latency(&mut client);
        let flood = flood(&server);
        let beside = usual_latency(&mut client);
        flood.finish();
        beside.as_secs_f64() / alone.as_secs_f64()
    });
}

fn calls_that_come_faster_than_they_are_answered_cost_no_memory() {
    let server = echo().start().unwrap();
    let mut other = server.connect().unwrap();
    let flood = flood(&server);
    usual_latency(&mut other);
    let before = resident(&server);
    for _ in 0..10 {
        usual_latency(&mut other);
    }
    let grown = resident(&server).saturating_sub(before);
    assert!(grown < 512 << 10, "{} KiB", grown >> 10);
    flood.finish();
}

fn an_idle_client_costs_two_kilobytes_at_most() {
    let count = room_for(3000);
    let server = roomy().start().unwrap();
    still_answers(&server);
    let before = resident(&server);
    let clients: Vec<_> = (0..count)
        .map(|_| {
            let mut client = Client::connect(server.address()).unwrap();
            assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
            client
        })
        .collect();
    let each = (resident(&server) - before) / count;
    assert!(each <= 2048, "{each} bytes");
    drop(clients);
}

/// Connections each of which sends these bytes one by one, in turns with calls of somebody who has no time.
fn send_slowly(server: &ServerHandle, slow: &mut [(Raw, Vec<u8>)]) {
    let mut quick = server.connect().unwrap();
    let longest = slow.iter().map(|(_, bytes)| bytes.len()).max().unwrap();
    for place in 0..longest {
        for (raw, bytes) in &mut *slow {
            if let Some(byte) = bytes.get(place) {
                raw.write(&[*byte]);
            }
        }
        let begun = Instant::now();
        assert_eq!(quick.call::<_, String>("echo", "quick").unwrap(), "quick");
        assert!(begun.elapsed() < Duration::from_secs(1));
    }
}

fn slow_senders_are_served_in_every_state_and_delay_nobody() {
    let server = echo().start().unwrap();
    let (hello, call) = (hello_frame(&server), call_frame(1, "echo", b"\x01x"));
    let last = call_frame(2, "echo", b"\x01x");
    // What comes at once, and what comes byte by byte behind it.
    let cases: [(Vec<u8>, Vec<u8>); 5] = [
        // From the first byte on.
        (vec![], [&hello[..], &call].concat()),
        // The call is late.
        (hello.clone(), call.clone()),
        // The call begins with the hello.
        ([&hello[..], &call[..5]].concat(), call[5..].to_vec()),
        // Behind a call that is answered at once.
        ([&hello[..], &call].concat(), last.clone()),
        // In the middle of the second call.
        (
            [&hello[..], &call, &last[..13]].concat(),
            last[13..].to_vec(),
        ),
    ];
    let mut slow: Vec<_> = cases
        .iter()
        .map(|(first, rest)| {
            let mut raw = Raw::connect(&server);
            raw.write(first);
            (raw, rest.clone())
        })
        .collect();
    send_slowly(&server, &mut slow);
    for (case, (mut raw, _)) in slow.into_iter().enumerate() {
        raw.finish_writing();
        let calls = if case < 3 { 1 } else { 2 };
        // The welcome, and an answer to each.
        let answers = raw.read_to_end();
        assert_eq!(answers.len(), 24 + calls * 22, "{case}: {answers:?}");
        assert_eq!(answers[24], 5, "{case}");
    }
}

fn slow_readers_have_their_answers_and_delay_nobody() {
    let mut limits = Limits::default();
    limits.write_timeout = Duration::from_secs(2);
    let definition = echo().limits(limits).handle("large", |_, size: u32| {
        Ok(Bytes::from(vec![1; size as usize]))
    });
    let server = definition.start().unwrap();
    let mut raw = Raw::connect(&server);
    raw.write(&hello_frame(&server));
    // 4 MiB, in the codec's words: more than the kernel holds.
    raw.write(&call_frame(1, "large", &[252, 0, 0, 64, 0]));
    let mut quick = server.connect().unwrap();
    let mut left = (4 << 20) + 24 + 12 + 8 + 5;
    let mut buffer = vec![0; 64 << 10];
    while left > 0 {
        assert!(readable(raw.stream(), Duration::from_secs(5)));
        left -= raw.stream().read(&mut buffer).unwrap();
        assert_eq!(quick.call::<_, String>("echo", "quick").unwrap(), "quick");
    }
    raw.finish_writing();
    assert!(raw.read_to_end().is_empty());
}
