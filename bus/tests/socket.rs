//! The bus over real sockets: what clients see, and what a bad client can do.

// Helpers here are as much a test as the functions that call them.
#![allow(clippy::unwrap_used)]

use bus::net1::{self, NetState, PeerRow, PortRow, VipRow};
use bus::provision1::{self, ProvisionState, StateRow};
use bus::server::{HANDSHAKE_DEADLINE, MAX_CLIENTS};
use bus::{BindError, CallError, Interfaces, Server};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(5);

/// A directory of one test's own, removed at its end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("evenkeel-bus-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Dir(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("bus/netd")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn state() -> NetState {
    let text = |t: &str| t.to_owned();
    NetState {
        ports: vec![PortRow {
            name: text("p1"),
            interface: text("eth0"),
            mac: text("52:54:00:09:00:0a"),
            network: text("data"),
            operative: false,
            reason: text("no carrier"),
            carrier: false,
            address: text("10.9.0.11/24 fd09::b/64"),
        }],
        vips: vec![VipRow {
            name: text("web"),
            address: text("10.9.0.100"),
            group: text("east"),
            network: text("data"),
            state: text("active"),
            holder: text("a1:p1"),
            epoch: u64::MAX,
            since_ms: 12,
            home: text("a1:p1"),
            next: text("a1:p2"),
            note: text("ünïcode too"),
        }],
        peers: vec![PeerRow { node: text("b1"), alive: true, last_heard_ms: 7, address: text("10.8.0.12") }],
    }
}

struct World {
    dir: Dir,
    net: watch::Sender<NetState>,
    provision: watch::Sender<ProvisionState>,
    calls: tokio::sync::mpsc::Receiver<provision1::ApplyRoster>,
}

/// Runs `test` beside a server.
fn beside_server<F: Future<Output = ()>>(test: impl FnOnce(World) -> F) {
    let dir = Dir::new();
    let (net, net_seen) = watch::channel(state());
    let (provision, provision_seen) = watch::channel(ProvisionState::default());
    let (apply, calls) = provision1::calls();
    let interfaces = Interfaces {
        net: Some(net_seen),
        provision: Some(provision_seen),
        apply_roster: Some(apply),
        ..Interfaces::default()
    };
    let server = Server::bind(&dir.socket()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let test = timeout(Duration::from_secs(30), test(World { dir, net, provision, calls }));
        tokio::select! {
            ended = server.serve(interfaces) => panic!("the server ended: {ended:?}"),
            outcome = test => outcome.expect("the test ends in time"),
        }
    });
}

async fn client(path: &Path) -> net1::Client {
    net1::Client::connect(path, DEADLINE).await.unwrap()
}

#[test]
fn rows_make_the_round_trip() {
    beside_server(|world| async move {
        let path = world.dir.socket();
        let client = client(&path).await;
        assert_eq!(client.ports().await.unwrap(), state().ports);
        assert_eq!(client.vips().await.unwrap(), state().vips);
        assert_eq!(client.peers().await.unwrap(), state().peers);

        let row = StateRow {
            node: "a1".into(),
            pair: "a".into(),
            boot_count: 3,
            error: "no personality".into(),
            ..StateRow::default()
        };
        let member = provision1::MemberRow { name: "a1".into(), votes: true, ..Default::default() };
        let roster = provision1::RosterRow {
            cluster_id: "09".repeat(16),
            number: u64::MAX,
            members: vec![member],
            entry: vec![0, 255],
            ..Default::default()
        };
        world.provision.send_replace(ProvisionState { row: row.clone(), roster: roster.clone() });
        let client = provision1::Client::connect(&path, DEADLINE).await.unwrap();
        assert_eq!(client.state().await.unwrap(), row);
        assert_eq!(client.roster().await.unwrap(), roster);
    });
}

#[test]
fn entries_are_handed_in_and_answered() {
    beside_server(|mut world| async move {
        let client = provision1::Client::connect(&world.dir.socket(), DEADLINE).await.unwrap();
        let longest = vec![7; 63 * 1024];
        let daemon = async {
            for answer in [Ok("entry 3 is in force".to_owned()), Err("entry 3 is old".to_owned())] {
                let call = world.calls.recv().await.unwrap();
                assert_eq!(call.entries, vec![7; 63 * 1024]);
                call.answer.send(answer).unwrap();
            }
            drop(world.calls.recv().await); // ends without an answer
        };
        let calls = async {
            assert_eq!(client.apply_roster(&longest).await.unwrap(), "entry 3 is in force");
            let refused = client.apply_roster(&longest).await.unwrap_err();
            assert_eq!(refused.to_string(), "provisiond refused ApplyRoster: entry 3 is old");
            let ended = client.apply_roster(&[]).await.unwrap_err();
            assert!(ended.to_string().contains("provisiond is ending"), "{ended}");
        };
        tokio::join!(daemon, calls);
    });
}

#[test]
fn a_thousand_vips_fit_into_one_answer() {
    beside_server(|world| async move {
        let vips = vec![state().vips[0].clone(); 1000];
        world.net.send_modify(|net| net.vips = vips.clone());
        assert_eq!(client(&world.dir.socket()).await.vips().await.unwrap(), vips);
    });
}

#[test]
fn changes_are_told_to_every_client_and_silent_updates_to_none() {
    beside_server(|world| async move {
        let path = world.dir.socket();
        let (one, two) = (client(&path).await, client(&path).await);
        let (mut of_one, mut of_two) = (one.changes().await.unwrap(), two.changes().await.unwrap());
        // An answered call proves that the server has finished setting the connection up.
        one.ports().await.unwrap();
        two.ports().await.unwrap();

        world.net.send_if_modified(|net| {
            net.peers[0].last_heard_ms += 250;
            false
        });
        assert!(timeout(Duration::from_millis(200), of_one.next()).await.is_err(), "nothing to tell");
        assert_eq!(one.peers().await.unwrap()[0].last_heard_ms, 257, "but it can be read");

        world.net.send_modify(|net| net.ports[0].carrier = true);
        assert_eq!(timeout(DEADLINE, of_one.next()).await.unwrap(), Some(()));
        assert_eq!(timeout(DEADLINE, of_two.next()).await.unwrap(), Some(()));
        assert!(one.ports().await.unwrap()[0].carrier);
    });
}

#[test]
fn a_storm_of_changes_becomes_few_signals() {
    beside_server(|world| async move {
        let client = client(&world.dir.socket()).await;
        let mut changes = client.changes().await.unwrap();
        client.ports().await.unwrap();
        for epoch in 0..2000 {
            world.net.send_modify(|net| net.vips[0].epoch = epoch);
            tokio::task::yield_now().await;
        }
        let mut signals = 0;
        while let Ok(Some(())) = timeout(Duration::from_millis(400), changes.next()).await {
            signals += 1;
        }
        assert!((1..20).contains(&signals), "{signals} signals for 2000 changes");
        assert_eq!(client.vips().await.unwrap()[0].epoch, 1999, "the newest state is what a client reads");
    });
}

#[test]
fn a_client_that_vanishes_or_sends_garbage_harms_nobody() {
    beside_server(|world| async move {
        let path = world.dir.socket();
        let hello = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n".as_slice();
        let announces_a_gigabyte = [hello, b"l\x01\0\x01\0\0\0\x40\x01\0\0\0\0\0\0\0"].concat();
        let nonsense_message = [hello, b"lXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX".as_slice()].concat();
        let garbage: [&[u8]; 8] = [
            b"",
            b"\n",
            b"\0\n",
            b"GET / HTTP/1.0\r\n\r\n",
            &[0xff; 5000],
            b"\0AUTH EXTERNAL 39\r\n",
            &announces_a_gigabyte,
            &nonsense_message,
        ];
        for bytes in garbage {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            // The server may have hung up already.
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("the server hangs up");
        }
        drop(client(&path).await);
        assert_eq!(client(&path).await.ports().await.unwrap(), state().ports);
    });
}

#[test]
fn an_oversized_message_ends_its_connection_while_both_ends_are_open() {
    beside_server(|world| async move {
        let mut stream = UnixStream::connect(world.dir.socket()).await.unwrap();
        stream.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n").await.unwrap();
        stream.write_all(b"l\x01\0\x01\0\0\0\x40\x01\0\0\0\0\0\0\0").await.unwrap();
        let mut answer = Vec::new();
        timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("the server hangs up").unwrap();
        assert!(String::from_utf8(answer).unwrap().starts_with("DATA\r\nOK "), "the handshake was well");
    });
}

#[test]
fn clients_are_bounded_and_a_place_is_given_again() {
    beside_server(|world| async move {
        let path = world.dir.socket();
        let mut inside = Vec::new();
        for _ in 0..MAX_CLIENTS {
            inside.push(client(&path).await);
        }
        let refused = net1::Client::connect(&path, DEADLINE).await.unwrap_err();
        assert!(matches!(refused, CallError::Unreachable { .. }), "{refused}");
        inside.pop();
        let patience = Instant::now() + DEADLINE;
        while net1::Client::connect(&path, DEADLINE).await.is_err() {
            assert!(Instant::now() < patience, "the place of a client that left is free");
            tokio::task::yield_now().await;
        }
        assert_eq!(inside[0].ports().await.unwrap(), state().ports, "those inside are served on");
    });
}

#[test]
fn a_silent_client_loses_its_place() {
    beside_server(|world| async move {
        let mut silent = UnixStream::connect(world.dir.socket()).await.unwrap();
        let began = Instant::now();
        let read = timeout(2 * HANDSHAKE_DEADLINE, silent.read_u8()).await.expect("the server hangs up");
        assert!(read.is_err());
        assert!(began.elapsed() >= HANDSHAKE_DEADLINE / 2, "not before it had its time");
    });
}

#[test]
fn calls_that_do_not_exist_are_refused_by_name() {
    beside_server(|world| async move {
        let path = world.dir.socket();
        world.net.send_modify(|net| net.ports.clear());
        assert_eq!(client(&path).await.ports().await.unwrap(), []);
    });
    // A daemon that serves the other interface only.
    let dir = Dir::new();
    let server = Server::bind(&dir.socket()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let test = async {
            let refused = client(&dir.socket()).await.ports().await.unwrap_err();
            assert!(refused.to_string().starts_with("netd refused Ports: Unknown object"), "{refused}");
        };
        tokio::select! {
            ended = server.serve(Interfaces::default()) => panic!("the server ended: {ended:?}"),
            () = test => {}
        }
    });
}

#[test]
fn a_dead_or_stuck_daemon_is_named() {
    let dir = Dir::new();
    let path = dir.0.join("netd");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connect = || runtime.block_on(net1::Client::connect(&path, Duration::from_millis(200))).unwrap_err();
    let expected = |what| format!("netd does not answer on {}: {what}", path.display());
    assert_eq!(connect().to_string(), expected("no such file or directory"));
    // Bound, never served: the kernel accepts for it.
    let server = Server::bind(&path).unwrap();
    assert_eq!(connect().to_string(), expected("no answer within 200ms"));
    drop(server);
    assert!(!path.exists(), "a server takes its socket away");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert_eq!(connect().to_string(), expected("connection refused"));
}

#[test]
fn binding() {
    let dir = Dir::new();
    let path = dir.socket();
    let server = Server::bind(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(Server::bind(&path), Err(BindError::InUse { .. })));
    drop(server);
    // What a killed daemon leaves.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let server = Server::bind(&path).unwrap();
    drop(server);
    std::fs::write(&path, "x").unwrap();
    assert!(matches!(Server::bind(&path), Err(BindError::NotASocket { .. })));
    let long = dir.0.join("x".repeat(100));
    assert!(matches!(Server::bind(&long), Err(BindError::PathTooLong { .. })));
}

#[test]
fn a_stock_client_understands() {
    let busctl = Path::new("/usr/bin/busctl");
    if !busctl.exists() {
        eprintln!("skipped: no busctl on this machine");
        return;
    }
    beside_server(|world| async move {
        let address = format!("--address=unix:path={}", world.dir.socket().display());
        let run = |arguments: &'static [&'static str]| {
            let address = address.clone();
            tokio::task::spawn_blocking(move || {
                let out = std::process::Command::new(busctl).arg(address).args(arguments).output().unwrap();
                (
                    out.status.success(),
                    String::from_utf8(out.stdout).unwrap(),
                    String::from_utf8(out.stderr).unwrap(),
                )
            })
        };
        let (ok, out, err) =
            run(&["call", "org.evenkeel.Net1", "/org/evenkeel/net", "org.evenkeel.Net1", "Peers"])
                .await
                .unwrap();
        assert!(ok, "{err}");
        assert_eq!(out.trim(), r#"a(sbts) 1 "b1" true 7 "10.8.0.12""#);
        let (ok, out, err) = run(&["introspect", "org.evenkeel.Net1", "/org/evenkeel/net"]).await.unwrap();
        assert!(ok, "{err}");
        assert!(out.contains(".Vips") && out.contains("a(ssssssttsss)"), "{out}");
        let (ok, out, err) =
            run(&["call", "x.y", "/org/evenkeel/provision", "org.evenkeel.Provision1", "State"])
                .await
                .unwrap();
        assert!(ok, "{err}");
        assert!(out.starts_with("(sssssstsssss) "), "{out}");
    });
}
