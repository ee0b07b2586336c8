//! `demo-web`: the service behind the demo cluster's VIPs. It names the node that answered, so that a failover can be
//! watched with `curl`.
//!
//! It binds the unspecified address: a VIP that arrives later is served without a restart.

mod http;
mod server;

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::process::ExitCode;

/// Where it listens when no other port is given.
const TCP_PORT: u16 = 80;

fn main() -> ExitCode {
    let tcp_port = match std::env::args().nth(1).map(|text| text.parse::<u16>()) {
        None => TCP_PORT,
        Some(Ok(tcp_port)) => tcp_port,
        Some(Err(_)) => {
            eprintln!("usage: demo-web [TCP-PORT]");
            return ExitCode::from(2);
        }
    };
    // An IPv6 socket takes IPv4 clients too, as long as net.ipv6.bindv6only is 0, the kernel's default.
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, tcp_port));
    let outcome = TcpListener::bind(address)
        .map_err(|e| format!("cannot listen on {address}: {e}"))
        .and_then(|listener| server::serve(&listener, &server::Kernel::default()).map_err(|e| e.to_string()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
