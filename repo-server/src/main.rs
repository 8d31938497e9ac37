//! `cairn-server`: takes the address from the command line and serves on it until it is told to end.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use tokio::net::TcpListener;

/// Cairn's HTTP server. So far it answers /healthz and /version, and opens no repository.
#[derive(Parser)]
#[command(name = "cairn-server", version)]
struct Args {
    /// Address and port to listen on; there is no authentication and no TLS yet
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8480")]
    listen: SocketAddr,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Args { listen } = Args::parse();
    let served = async { repo_server::serve(TcpListener::bind(listen).await?, repo_server::termination()?).await };
    if let Err(error) = served.await {
        eprintln!("error: cannot serve on {listen}: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
