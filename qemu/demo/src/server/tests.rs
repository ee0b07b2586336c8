//! The server over loopback.

use super::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Serves `clients` connections one after the other on a port of its own, with `limit` for each.
fn server(bind: IpAddr, clients: usize, limit: Duration) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind((bind, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        for _ in 0..clients {
            let (stream, _) = listener.accept().unwrap();
            let _ = attend(stream, &Kernel::default(), limit);
        }
    });
    (address, thread)
}

fn connect(address: impl Into<SocketAddr>) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address.into(), Duration::from_secs(5)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

fn exchange(mut stream: TcpStream, request: &[u8]) -> String {
    // The server may have answered and hung up before it has read everything.
    let _ = stream.write_all(request);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_client_learns_who_answered_on_which_address() {
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let (address, thread) = server(Ipv4Addr::LOCALHOST.into(), 2, CLIENT_LIMIT);
    let answer = exchange(connect(address), b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    let expected = format!("\r\n\r\nnode {}\naddress 127.0.0.1\nclient 127.0.0.1\nuptime ", hostname.trim());
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(&expected), "{answer}");
    let uptime = answer.split("uptime ").nth(1).and_then(|t| t.split(' ').next()).unwrap();
    assert!(uptime.parse::<u64>().unwrap() > 0, "{answer}");
    assert!(exchange(connect(address), b"DELETE / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    thread.join().unwrap();
}

#[test]
fn one_socket_serves_both_families() {
    // A machine without IPv6 has no loopback for it; there the second half has nothing to prove.
    let Ok(listener) = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)) else { return };
    let tcp_port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        for _ in 0..2 {
            let (stream, _) = listener.accept().unwrap();
            attend(stream, &Kernel::default(), CLIENT_LIMIT).unwrap();
        }
    });
    for (address, shown) in [
        (IpAddr::from(Ipv4Addr::LOCALHOST), "address 127.0.0.1\n"),
        (IpAddr::from(Ipv6Addr::LOCALHOST), "address ::1\n"),
    ] {
        let answer = exchange(connect((address, tcp_port)), b"GET / HTTP/1.1\r\n\r\n");
        assert!(answer.contains(shown), "{answer}");
    }
    thread.join().unwrap();
}

#[test]
fn bad_clients_get_their_time_and_no_more() {
    let limit = Duration::from_millis(200);
    let (address, thread) = server(Ipv4Addr::LOCALHOST.into(), 6, limit);
    // Says nothing.
    assert_eq!(exchange(connect(address), b""), "");
    // Stops in the middle.
    assert_eq!(exchange(connect(address), b"GET / HT"), "");
    // Closes its side in the middle.
    let half = connect(address);
    (&half).write_all(b"GET / HT").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    assert!(exchange(half, b"").starts_with("HTTP/1.1 400 "));
    // Talks without end.
    let answer = exchange(connect(address), &vec![b'x'; 1 << 20]);
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    // Vanishes.
    drop(connect(address));
    let began = Instant::now();
    // The server is well.
    assert!(exchange(connect(address), b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "));
    assert!(began.elapsed() < Duration::from_secs(5));
    thread.join().unwrap();
}

#[test]
fn drip_feeding_does_not_buy_time() {
    let limit = Duration::from_millis(300);
    let (address, thread) = server(Ipv4Addr::LOCALHOST.into(), 1, limit);
    let mut stream = connect(address);
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let began = Instant::now();
    let mut byte = [0];
    // Each read times out after 20 ms, then another byte goes out, until the server has hung up.
    loop {
        if stream.write_all(b"x").is_err() {
            break;
        }
        match stream.read(&mut byte) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            _ => break,
        }
        assert!(began.elapsed() < 10 * limit, "the server hangs up");
    }
    thread.join().unwrap();
}

#[test]
fn what_the_kernel_does_not_say_is_left_out() {
    let kernel = Kernel { hostname: "/nonexistent".into(), uptime: "/nonexistent".into() };
    assert_eq!((kernel.node().as_str(), kernel.uptime()), ("(none)", Duration::ZERO));
}
