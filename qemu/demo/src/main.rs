//! `demo-web`: the service behind the demo cluster's VIPs. It names the node that answered, so that a failover can be
//! watched with `curl`.
//!
//! It listens on the unspecified address: a VIP that arrives later is served without a restart. The sockets are init's where
//! the service file has some, otherwise one of its own.

mod http;
mod server;
mod sys;

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;

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
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, tcp_port));
    let mut listeners = sys::inherited();
    if listeners.is_empty() {
        // An IPv6 socket takes IPv4 clients too, as long as net.ipv6.bindv6only is 0, the kernel's default.
        match TcpListener::bind(address) {
            Ok(listener) => listeners.push(listener),
            Err(error) => return failed(&format!("cannot listen on {address}: {error}")),
        }
    }
    let (ended, end) = mpsc::channel();
    for listener in listeners {
        let ended = ended.clone();
        // The first one that ends ends the program, and init starts it again.
        thread::spawn(move || drop(ended.send(server::serve(&listener, &server::Kernel::default()))));
    }
    match end.recv() {
        Ok(Err(error)) => failed(&error.to_string()),
        Ok(Ok(())) | Err(mpsc::RecvError) => ExitCode::SUCCESS,
    }
}

fn failed(message: &str) -> ExitCode {
    eprintln!("{message}");
    ExitCode::FAILURE
}
