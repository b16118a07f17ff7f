//! tarpc over a Unix socket with bincode, its fastest codec.
//!
//! Fairness: as in its README, each request is a task on the server. Byte strings go as `ByteBuf`, which spares serde
//! element by element. Deadlines are tarpc's default and cannot be turned off.

use super::asynchronous::Peer;
use super::served::ready;
use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_bytes::ByteBuf;
use std::path::Path;
use tarpc::context::{self, Context};
use tarpc::server::{BaseChannel, Channel};
use tarpc::tokio_serde::formats::Bincode;
use tarpc::{client, serde_transport::unix};

#[tarpc::service]
pub trait Calls {
    async fn hello(first: String, last: String) -> String;
    async fn add(a: u32, b: u32) -> u32;
    async fn echo(bytes: ByteBuf) -> ByteBuf;
}

#[derive(Clone)]
struct Answers;

impl Calls for Answers {
    async fn hello(self, _: Context, first: String, last: String) -> String {
        format!("{first} {last}")
    }

    async fn add(self, _: Context, a: u32, b: u32) -> u32 {
        a + b
    }

    async fn echo(self, _: Context, bytes: ByteBuf) -> ByteBuf {
        bytes
    }
}

pub struct Tarpc;

impl Peer for Tarpc {
    const NAME: &'static str = "tarpc";
    type Client = CallsClient;

    async fn serve(path: &Path) {
        let mut incoming = unix::listen(path, Bincode::default)
            .await
            .expect("a listener");
        ready();
        while let Some(Ok(transport)) = incoming.next().await {
            let requests = BaseChannel::with_defaults(transport).execute(Answers.serve());
            tokio::spawn(requests.for_each(|response| async {
                tokio::spawn(response);
            }));
        }
    }

    async fn connect(path: &Path) -> CallsClient {
        let transport = unix::connect(path, Bincode::default).await;
        CallsClient::new(client::Config::default(), transport.expect("a connection")).spawn()
    }

    async fn hello(client: &mut CallsClient) -> String {
        let call = client.hello(context::current(), "Joe".into(), "Dalton".into());
        call.await.expect("a reply")
    }

    async fn add(client: &mut CallsClient, a: u32, b: u32) -> u32 {
        let call = client.add(context::current(), a, b);
        call.await.expect("a sum")
    }

    async fn echo(client: &mut CallsClient, bytes: &[u8]) -> usize {
        let call = client.echo(context::current(), ByteBuf::from(bytes));
        call.await.expect("an echo").len()
    }

    async fn batch(client: &mut CallsClient, count: u32) -> u32 {
        let calls = (0..count).map(|n| client.add(context::current(), n, 1));
        let sums = join_all(calls).await;
        sums.into_iter().map(|sum| sum.expect("a sum")).sum()
    }
}
