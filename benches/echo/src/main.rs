//! A bare tonic server that responds to every check at once: the limit. Built like the service,
//! with the same allocator.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

use self::pb::{
    CheckRequest, CheckResponse,
    echo_server::{Echo, EchoServer},
};

mod pb {
    tonic::include_proto!("bench.echo");
}

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Yes;

#[tonic::async_trait]
impl Echo for Yes {
    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        Ok(Response::new(CheckResponse {
            is_member: true,
            role: 3,
            satisfied: true,
            source: 1,
        }))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    println!("serving on {}", listener.local_addr()?);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder().add_service(EchoServer::new(Yes));
    server.serve_with_incoming(incoming).await?;
    Ok(())
}
