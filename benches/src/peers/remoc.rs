//! remoc: a trait that is called from afar, over a Unix socket.
//!
//! Fairness: its default codec, its server that lets calls run in parallel, and the short names that its documentation
//! recommends for small messages.

use super::asynchronous::Peer;
use super::served::ready;
use futures_util::future::join_all;
use remoc::prelude::*;
use remoc::rtc::CallError;
use serde_bytes::ByteBuf;
use std::path::Path;
use std::sync::Arc;
use tokio::net::{UnixListener, UnixStream};

#[rtc::remote]
pub trait Calls {
    #[serde(rename = "_0")]
    async fn hello(
        &self,
        #[serde(rename = "_0")] first: String,
        #[serde(rename = "_1")] last: String,
    ) -> Result<String, CallError>;

    #[serde(rename = "_1")]
    async fn add(
        &self,
        #[serde(rename = "_0")] a: u32,
        #[serde(rename = "_1")] b: u32,
    ) -> Result<u32, CallError>;

    #[serde(rename = "_2")]
    async fn echo(&self, #[serde(rename = "_0")] bytes: ByteBuf) -> Result<ByteBuf, CallError>;
}

struct Answers;

impl Calls for Answers {
    async fn hello(&self, first: String, last: String) -> Result<String, CallError> {
        Ok(format!("{first} {last}"))
    }

    async fn add(&self, a: u32, b: u32) -> Result<u32, CallError> {
        Ok(a + b)
    }

    async fn echo(&self, bytes: ByteBuf) -> Result<ByteBuf, CallError> {
        Ok(bytes)
    }
}

pub struct Remoc;

impl Peer for Remoc {
    const NAME: &'static str = "remoc";
    // Each client has several tasks and buffers on either side: that is not what it is made for.
    const BEARS_CROWDS: bool = false;
    type Client = CallsClient;

    async fn serve(path: &Path) {
        let listener = UnixListener::bind(path).expect("a listener");
        ready();
        let answers = Arc::new(Answers);
        while let Ok((socket, _)) = listener.accept().await {
            let answers = answers.clone();
            tokio::spawn(async move {
                let (receive, send) = socket.into_split();
                let (server, client) = CallsServerShared::<_, remoc::codec::Default>::new(answers);
                let connect = remoc::Connect::io(remoc::Cfg::default(), receive, send);
                if connect.provide(client).await.is_ok() {
                    let _ = server.serve().await;
                }
            });
        }
    }

    async fn connect(path: &Path) -> CallsClient {
        let socket = UnixStream::connect(path).await.expect("a connection");
        let (receive, send) = socket.into_split();
        let connect = remoc::Connect::io(remoc::Cfg::default(), receive, send);
        connect.consume().await.expect("a client")
    }

    async fn hello(client: &mut CallsClient) -> String {
        let call = client.hello("Joe".into(), "Dalton".into());
        call.await.expect("a reply")
    }

    async fn add(client: &mut CallsClient, a: u32, b: u32) -> u32 {
        client.add(a, b).await.expect("a sum")
    }

    async fn echo(client: &mut CallsClient, bytes: &[u8]) -> usize {
        client
            .echo(ByteBuf::from(bytes))
            .await
            .expect("an echo")
            .len()
    }

    async fn batch(client: &mut CallsClient, count: u32) -> u32 {
        let sums = join_all((0..count).map(|n| client.add(n, 1))).await;
        sums.into_iter().map(|sum| sum.expect("a sum")).sum()
    }
}
