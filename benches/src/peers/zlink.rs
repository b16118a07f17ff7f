//! Varlink by zlink: JSON over a Unix socket.
//!
//! Fairness: JSON has no byte strings, so the echo is of text that needs no escapes, the least that it can be. A batch is
//! a chain, as its README has it. An echo of 1 MiB takes it seconds, and is left out.

use super::asynchronous::Peer;
use super::served::ready;
use futures_util::{StreamExt, pin_mut};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use zlink::tokio::unix::{self, Connection};
use zlink::{ReplyError, introspect, proxy, service};

#[derive(Debug, Serialize, Deserialize, introspect::Type)]
struct Text {
    text: String,
}

#[derive(Debug, Serialize, Deserialize, introspect::Type)]
struct Sum {
    sum: u32,
}

/// Where a descriptor is among those that came along.
#[derive(Debug, Serialize, Deserialize, introspect::Type)]
struct Place {
    place: u32,
}

#[derive(Debug, ReplyError, introspect::ReplyError)]
#[zlink(interface = "org.example.Calls")]
enum Refused {
    Never,
}

#[proxy("org.example.Calls")]
trait Calls {
    async fn hello(&mut self, first: &str, last: &str) -> zlink::Result<Result<Text, Refused>>;
    async fn add(&mut self, a: u32, b: u32) -> zlink::Result<Result<Sum, Refused>>;
    async fn echo(&mut self, text: &str) -> zlink::Result<Result<Text, Refused>>;
    #[zlink(return_fds)]
    async fn open(&mut self) -> zlink::Result<(Result<Place, Refused>, Vec<OwnedFd>)>;
}

struct Answers {
    null: File,
}

#[service(interface = "org.example.Calls")]
impl Answers {
    async fn hello(&self, first: String, last: String) -> Text {
        Text {
            text: format!("{first} {last}"),
        }
    }

    async fn add(&self, a: u32, b: u32) -> Sum {
        Sum { sum: a + b }
    }

    async fn echo(&self, text: String) -> Text {
        Text { text }
    }

    #[zlink(return_fds)]
    async fn open(&self) -> (Place, Vec<OwnedFd>) {
        let fd = self.null.try_clone().expect("a descriptor");
        (Place { place: 0 }, vec![fd.into()])
    }
}

pub struct Zlink;

impl Peer for Zlink {
    const NAME: &'static str = "zlink";
    const LARGEST: usize = 64 << 10;
    const PASSES_DESCRIPTORS: bool = true;
    type Client = Connection;

    async fn serve(path: &Path) {
        let listener = unix::bind(path).expect("a listener");
        ready();
        let null = File::open("/dev/null").expect("a file");
        let server = zlink::Server::new(listener, Answers { null });
        server.run().await.expect("it serves");
    }

    async fn connect(path: &Path) -> Connection {
        unix::connect(path).await.expect("a connection")
    }

    async fn hello(client: &mut Connection) -> String {
        let reply = client.hello("Joe", "Dalton").await;
        reply.expect("a reply").expect("a greeting").text
    }

    async fn add(client: &mut Connection, a: u32, b: u32) -> u32 {
        let reply = client.add(a, b).await;
        reply.expect("a reply").expect("a sum").sum
    }

    async fn echo(client: &mut Connection, bytes: &[u8]) -> usize {
        let text = std::str::from_utf8(bytes).expect("it is text");
        let reply = client.echo(text).await;
        reply.expect("a reply").expect("an echo").text.len()
    }

    async fn batch(client: &mut Connection, count: u32) -> u32 {
        let mut chain = client.chain_add(0, 1).expect("room");
        for n in 1..count {
            chain = chain.add(n, 1).expect("room");
        }
        let replies = chain.send::<Sum, Refused>().await.expect("sent");
        pin_mut!(replies);
        let mut total = 0;
        while let Some(reply) = replies.next().await {
            let (reply, _) = reply.expect("a reply");
            total += reply.expect("a sum").into_parameters().expect("a sum").sum;
        }
        total
    }

    async fn descriptor(client: &mut Connection) -> OwnedFd {
        let (_, mut fds) = client.open().await.expect("a reply");
        fds.remove(0)
    }
}
