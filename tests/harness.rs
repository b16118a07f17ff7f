//! Servers in tests under the ordinary harness, which runs them in threads.

use forkserver::{Entry, Exit, Server, StartError};

static COUNTER: Entry<u64> = Entry::new("counter", |start| {
    let count = std::sync::atomic::AtomicU64::new(start);
    let next = move || count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    Ok(Server::new().handle("next", move |_, (): ()| Ok(next())))
});
forkserver::init_before_main!(COUNTER);

fn counts_from(start: u64) {
    let server = COUNTER.start(&start).unwrap();
    let mut client = server.connect().unwrap();
    for expected in start..start + 10 {
        assert_eq!(client.call::<_, u64>("next", &()).unwrap(), expected);
    }
    assert_eq!(server.stop().unwrap(), Exit::Code(0));
}

#[test]
fn a_server_is_started_in_a_test() {
    counts_from(0);
}

#[test]
fn and_another_in_another() {
    counts_from(100);
}

#[test]
fn forking_is_refused_here() {
    let refused = Server::new().start();
    assert!(matches!(refused, Err(StartError::MultiThreaded { .. })));
}
