//! ttrpc, with its server and client for tokio and with the blocking ones.
//!
//! Fairness: what its generator makes of a schema is written by hand here, with the same calls of the same library; the
//! messages are those of prost, which are as fast as the others. No call has a timeout.

use super::asynchronous::Peer;
use super::messages::{Blob, Names, Numbers, Sum, Text};
use super::served::ready;
use bytes::Bytes;
use futures_util::future::join_all;
use prost::Message;
use std::collections::HashMap;
use std::path::Path;
use ttrpc::proto::{Code, Request, RequestInit, Response, ResponseInit};
use ttrpc::{asynchronous, get_status, sync};

const SERVICE: &str = "bench.Calls";
const HELLO: &str = "Hello";
const ADD: &str = "Add";
const ECHO: &str = "Echo";

fn request(method: &str, message: &impl Message) -> Request {
    let mut request = Request::init_request(SERVICE.into(), method.into(), 0, Vec::new());
    request.set_payload(message.encode_to_vec());
    request
}

fn response(message: &impl Message) -> Response {
    let mut response = Response::init_status(get_status(Code::OK, ""));
    response.set_payload(message.encode_to_vec());
    response
}

fn decode<M: Message + Default>(payload: Vec<u8>) -> M {
    M::decode(Bytes::from(payload)).expect("a message of the schema")
}

/// One method: what it makes of a payload.
struct Method(fn(Vec<u8>) -> Response);

/// All of them, by name.
fn methods() -> [(&'static str, Method); 3] {
    [
        (
            HELLO,
            Method(|bytes| response(&decode::<Names>(bytes).greeting())),
        ),
        (
            ADD,
            Method(|bytes| response(&decode::<Numbers>(bytes).sum())),
        ),
        (ECHO, Method(|bytes| response(&decode::<Blob>(bytes)))),
    ]
}

#[async_trait::async_trait]
impl asynchronous::MethodHandler for Method {
    async fn handler(
        &self,
        _: asynchronous::TtrpcContext,
        request: Request,
    ) -> ttrpc::Result<Response> {
        Ok((self.0)(request.payload))
    }
}

impl sync::MethodHandler for Method {
    fn handler(&self, context: sync::TtrpcContext, request: Request) -> ttrpc::Result<()> {
        context.respond(context.mh.stream_id, (self.0)(request.payload))
    }
}

fn address(path: &Path) -> String {
    format!("unix://{}", path.display())
}

pub struct Ttrpc;

type Client = asynchronous::Client;

async fn call<R: Message + Default>(client: &Client, method: &str, message: &impl Message) -> R {
    let reply = client.request(request(method, message)).await;
    decode(reply.expect("a reply").payload)
}

impl Peer for Ttrpc {
    const NAME: &'static str = "ttrpc";
    type Client = Client;

    async fn serve(path: &Path) {
        let mut boxed: HashMap<String, Box<dyn asynchronous::MethodHandler + Send + Sync>> =
            HashMap::new();
        for (name, method) in methods() {
            boxed.insert(name.into(), Box::new(method));
        }
        let service = asynchronous::Service {
            methods: boxed,
            streams: HashMap::new(),
        };
        let mut server = asynchronous::Server::new()
            .bind(&address(path))
            .expect("a listener")
            .register_service(HashMap::from([(SERVICE.into(), service)]));
        server.start().await.expect("it serves");
        ready();
        std::future::pending().await
    }

    async fn connect(path: &Path) -> Client {
        Client::connect(&address(path)).await.expect("a connection")
    }

    async fn hello(client: &mut Client) -> String {
        call::<Text>(client, HELLO, &Names::joe()).await.text
    }

    async fn add(client: &mut Client, a: u32, b: u32) -> u32 {
        call::<Sum>(client, ADD, &Numbers { a, b }).await.sum
    }

    async fn echo(client: &mut Client, bytes: &[u8]) -> usize {
        let bytes = Bytes::copy_from_slice(bytes);
        call::<Blob>(client, ECHO, &Blob { bytes })
            .await
            .bytes
            .len()
    }

    async fn batch(client: &mut Client, count: u32) -> u32 {
        let add = |a| {
            let client = client.clone();
            async move { call::<Sum>(&client, ADD, &Numbers { a, b: 1 }).await.sum }
        };
        join_all((0..count).map(add)).await.into_iter().sum()
    }
}

/// With threads instead of a runtime: the futures never wait.
pub struct Blocking;

fn call_blocking<R: Message + Default>(
    client: &sync::Client,
    method: &str,
    message: &impl Message,
) -> R {
    let reply = client.request(request(method, message));
    decode(reply.expect("a reply").payload)
}

impl Peer for Blocking {
    const NAME: &'static str = "ttrpc, blocking";
    // Three threads for each connection.
    const BEARS_CROWDS: bool = false;
    const AT_ONCE: bool = false;
    type Client = sync::Client;

    async fn serve(path: &Path) {
        let mut boxed: HashMap<String, Box<dyn sync::MethodHandler + Send + Sync>> = HashMap::new();
        for (name, method) in methods() {
            boxed.insert(format!("/{SERVICE}/{name}"), Box::new(method));
        }
        let mut server = sync::Server::new()
            .bind(&address(path))
            .expect("a listener")
            .register_service(boxed);
        server.start().expect("it serves");
        ready();
        std::future::pending().await
    }

    async fn connect(path: &Path) -> sync::Client {
        sync::Client::connect(&address(path)).expect("a connection")
    }

    async fn hello(client: &mut sync::Client) -> String {
        call_blocking::<Text>(client, HELLO, &Names::joe()).text
    }

    async fn add(client: &mut sync::Client, a: u32, b: u32) -> u32 {
        call_blocking::<Sum>(client, ADD, &Numbers { a, b }).sum
    }

    async fn echo(client: &mut sync::Client, bytes: &[u8]) -> usize {
        let bytes = Bytes::copy_from_slice(bytes);
        call_blocking::<Blob>(client, ECHO, &Blob { bytes })
            .bytes
            .len()
    }

    async fn batch(_: &mut sync::Client, _: u32) -> u32 {
        unreachable!("its calls are made one by one")
    }
}
