//! gRPC by tonic, over a Unix socket.
//!
//! Fairness: what its generator makes of a schema is written by hand here, with the same calls of the same library. The
//! windows of HTTP/2 are opened for the large echoes, which the defaults would cut into pieces.

use super::asynchronous::Peer;
use super::messages::{Blob, Names, Numbers, Sum, Text};
use super::served::ready;
use bytes::Bytes;
use futures_util::future::join_all;
use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

const HELLO: &str = "/bench.Calls/Hello";
const ADD: &str = "/bench.Calls/Add";
const ECHO: &str = "/bench.Calls/Echo";
const WINDOW: u32 = 4 << 20;

/// What `CallsServer` is in generated code.
#[derive(Clone)]
struct Answers;

impl NamedService for Answers {
    const NAME: &'static str = "bench.Calls";
}

type Answered = http::Response<tonic::body::Body>;

impl Service<http::Request<tonic::body::Body>> for Answers {
    type Response = Answered;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answered, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        match request.uri().path() {
            HELLO => unary(request, |names: Names| names.greeting()),
            ADD => unary(request, |numbers: Numbers| numbers.sum()),
            ECHO => unary(request, |blob: Blob| blob),
            other => panic!("{other} is not in the schema"),
        }
    }
}

/// One method, as generated code has it.
fn unary<A, R>(
    request: http::Request<tonic::body::Body>,
    answer: fn(A) -> R,
) -> Pin<Box<dyn Future<Output = Result<Answered, Infallible>> + Send>>
where
    A: prost::Message + Default + 'static,
    R: prost::Message + Default + 'static,
{
    let method = service_fn(move |request: Request<A>| async move {
        Ok::<_, Status>(Response::new(answer(request.into_inner())))
    });
    Box::pin(async move {
        let codec = ProstCodec::<R, A>::default();
        Ok(tonic::server::Grpc::new(codec).unary(method, request).await)
    })
}

pub struct Tonic;

async fn call<A, R>(mut client: Grpc<Channel>, path: &'static str, message: A) -> R
where
    A: prost::Message + 'static,
    R: prost::Message + Default + 'static,
{
    client.ready().await.expect("a connection");
    let path = PathAndQuery::from_static(path);
    let codec = ProstCodec::default();
    let reply = client.unary(Request::new(message), path, codec).await;
    reply.expect("a reply").into_inner()
}

impl Peer for Tonic {
    const NAME: &'static str = "tonic";
    type Client = Grpc<Channel>;

    async fn serve(path: &Path) {
        let listener = UnixListener::bind(path).expect("a listener");
        ready();
        let server = Server::builder()
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .add_service(Answers)
            .serve_with_incoming(UnixListenerStream::new(listener));
        server.await.expect("it serves");
    }

    async fn connect(path: &Path) -> Grpc<Channel> {
        let endpoint = Endpoint::try_from(format!("unix:{}", path.display()));
        let endpoint = endpoint
            .expect("an address")
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        Grpc::new(endpoint.connect().await.expect("a connection"))
    }

    async fn hello(client: &mut Grpc<Channel>) -> String {
        call::<_, Text>(client.clone(), HELLO, Names::joe())
            .await
            .text
    }

    async fn add(client: &mut Grpc<Channel>, a: u32, b: u32) -> u32 {
        call::<_, Sum>(client.clone(), ADD, Numbers { a, b })
            .await
            .sum
    }

    async fn echo(client: &mut Grpc<Channel>, bytes: &[u8]) -> usize {
        let bytes = Bytes::copy_from_slice(bytes);
        call::<_, Blob>(client.clone(), ECHO, Blob { bytes })
            .await
            .bytes
            .len()
    }

    async fn batch(client: &mut Grpc<Channel>, count: u32) -> u32 {
        let add = |a| call::<_, Sum>(client.clone(), ADD, Numbers { a, b: 1 });
        let sums = join_all((0..count).map(add)).await;
        sums.into_iter().map(|sum| sum.sum).sum()
    }
}
