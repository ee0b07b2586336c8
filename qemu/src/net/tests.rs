//! The fabric as a whole, with simulated machines on real sockets. Time is real: bounds are generous, and every
//! wait is for a condition.

use super::config::{FabricConfig, HostConfig, PortConfig, ProbeTiming, probe_port};
use super::error::FabricError;
use super::fault::Fault;
use super::handle::FabricHandle;
use super::mac::Mac;
use super::report::NetEvent;
use super::tcp::TcpError;
use super::testing::{Responder, TempDir, Vm, read_capture};
use super::{Fabric, probe::WatchError};
use core::net::{IpAddr, SocketAddr};
use proto::cluster::PortId;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(20);

fn vip() -> IpAddr {
    "10.9.0.100".parse().unwrap()
}

fn vip6() -> IpAddr {
    "fd09::100".parse().unwrap()
}

fn mac(n: u8) -> Mac {
    Mac([0x52, 0x54, 0, 9, 0, n])
}

fn id(node: &str) -> PortId {
    PortId { node: node.into(), port: "p1".into() }
}

/// A fabric with a port for each name, all on `data`.
struct World {
    dir: TempDir,
    config: FabricConfig,
    fabric: FabricHandle,
}

impl World {
    fn new(nodes: &[&str]) -> World {
        let dir = TempDir::new("fabric");
        let ports = nodes.iter().map(|node| PortConfig {
            id: id(node),
            segment: "data".into(),
            switch_path: dir.path().join(format!("{node}.sw")),
            machine_path: dir.path().join(format!("{node}.vm")),
        });
        let host = |n: u8| HostConfig {
            segment: "data".into(),
            v4: Some(format!("10.9.0.{n}/24").parse().unwrap()),
            v6: Some(format!("fd09::{n}/64").parse().unwrap()),
        };
        let config = FabricConfig {
            ports: ports.collect(),
            probe: Some(host(250)),
            timing: ProbeTiming::default(),
            tcp: Some(host(251)),
            capture: Some(dir.path().join("all.pcap")),
            seed: 1,
        };
        let fabric = Fabric::start(config.clone()).unwrap();
        World { dir, config, fabric }
    }

    fn port(&self, node: &str) -> &PortConfig {
        self.config.ports.iter().find(|p| p.id == id(node)).unwrap()
    }

    fn vm(&self, node: &str, n: u8, vips: &[IpAddr]) -> Vm {
        Vm::start(self.port(node), Responder::new(mac(n), vips), None)
    }

    /// A machine with TCP servers at the VIP; smoltcp answers for the address by itself.
    fn server(&self, node: &str, n: u8, net: &str) -> Vm {
        Vm::start(self.port(node), Responder::new(mac(n), &[]), Some(net.parse().unwrap()))
    }

    /// A machine's bare socket.
    fn socket(&self, node: &str) -> Bare {
        let port = self.port(node);
        let socket = UnixDatagram::bind(&port.machine_path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Bare { socket, switch: port.switch_path.clone() }
    }
}

struct Bare {
    socket: UnixDatagram,
    switch: std::path::PathBuf,
}

impl Bare {
    fn send(&self, from: Mac, to: Mac, text: &str) {
        let mut frame = [to.0, from.0].concat();
        frame.extend_from_slice(&[0x88, 0xb5]);
        frame.extend_from_slice(text.as_bytes());
        self.socket.send_to(&frame, &self.switch).unwrap();
    }

    /// The next text frame; the lab's own questions are not looked at.
    fn next(&self) -> String {
        let mut buffer = [0; 2000];
        loop {
            let n = self.socket.recv(&mut buffer).unwrap();
            if buffer[12..14] == [0x88, 0xb5] {
                return String::from_utf8(buffer[14..n].to_vec()).unwrap();
            }
        }
    }
}

/// The next event that `pick` accepts.
fn event<T>(events: &std::sync::mpsc::Receiver<NetEvent>, pick: impl Fn(&NetEvent) -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        let left = DEADLINE.checked_sub(started.elapsed()).expect("the event came in time");
        if let Some(found) = pick(&events.recv_timeout(left).unwrap()) {
            return found;
        }
    }
}

#[test]
fn frames_are_switched_flooded_and_cut() {
    let w = World::new(&["a", "b", "c"]);
    let (a, b, c) = (w.socket("a"), w.socket("b"), w.socket("c"));
    a.send(mac(1), mac(2), "flooded");
    assert_eq!((b.next(), c.next()), ("flooded".into(), "flooded".into()));
    b.send(mac(2), mac(1), "known");
    assert_eq!(a.next(), "known");
    // Silence is shown by what comes next: frames of one sender stay in order.
    a.send(mac(1), mac(2), "for b only");
    a.send(mac(1), Mac::BROADCAST, "for all");
    assert_eq!((b.next(), b.next(), c.next()), ("for b only".into(), "for all".into(), "for all".into()));

    w.fabric.set_fault(&id("b"), Fault::DEAF).unwrap();
    a.send(mac(1), Mac::BROADCAST, "b is deaf");
    assert_eq!(c.next(), "b is deaf");
    b.send(mac(2), Mac::BROADCAST, "but not mute");
    assert_eq!((a.next(), c.next()), ("but not mute".into(), "but not mute".into()));
    assert_eq!(w.fabric.fault(&id("b")).unwrap(), Fault::DEAF);

    w.fabric.heal().unwrap();
    w.fabric.partition(&[vec![id("a")], vec![id("b"), id("c")]]).unwrap();
    b.send(mac(2), Mac::BROADCAST, "behind the wall");
    assert_eq!(c.next(), "behind the wall");
    let stats = w.fabric.stats().unwrap();
    assert!(stats.ports.iter().find(|p| p.port == id("a")).unwrap().switch.lost_to_partition >= 1);
    w.fabric.heal().unwrap();
    b.send(mac(2), Mac::BROADCAST, "healed");
    assert_eq!((a.next(), c.next()), ("healed".into(), "healed".into()));

    w.fabric.set_fault(&id("a"), Fault::delay(Duration::from_millis(80))).unwrap();
    let started = Instant::now();
    a.send(mac(1), mac(2), "late");
    assert_eq!(b.next(), "late");
    assert!(started.elapsed() >= Duration::from_millis(80));

    let unknown = PortId { node: "x".into(), port: "p1".into() };
    assert!(matches!(w.fabric.set_fault(&unknown, Fault::CUT), Err(FabricError::UnknownPort { .. })));
    assert!(matches!(w.fabric.partition(&[vec![unknown]]), Err(FabricError::UnknownPort { .. })));
}

#[test]
fn holders_moves_and_silence_are_told() {
    let w = World::new(&["a", "b"]);
    let (a, b) = (w.vm("a", 1, &[vip(), vip6()]), w.vm("b", 2, &[]));
    let events = w.fabric.events().unwrap();
    for vip in [vip(), vip6()] {
        w.fabric.watch(vip, false).unwrap();
        let first = event(&events, |e| match e {
            NetEvent::VipAnswered { ip, mac, .. } if *ip == vip => Some(*mac),
            _ => None,
        });
        assert_eq!((first, w.fabric.holder(vip).unwrap()), (mac(1), Some(mac(1))));
        a.drop_vip(vip);
        b.take(vip);
        let moved = event(&events, |e| match e {
            NetEvent::VipMoved { ip, from, to, .. } if *ip == vip => Some((*from, *to)),
            _ => None,
        });
        assert_eq!(moved, (mac(1), mac(2)));
        let report = w.fabric.await_report(vip, DEADLINE, "five samples", |r| r.samples >= 5).unwrap();
        assert_eq!(report.double_owners_seen, 0, "{report:?}");
        b.drop_vip(vip);
        event(&events, |e| matches!(e, NetEvent::VipSilent { ip, .. } if *ip == vip).then_some(()));
        assert_eq!(w.fabric.holder(vip).unwrap(), None);
        w.fabric.unwatch(vip).unwrap();
        let gone = w.fabric.holder(vip);
        assert!(matches!(gone, Err(FabricError::Watch(WatchError::NotWatched { .. }))), "{gone:?}");
    }
}

#[test]
fn two_owners_are_told() {
    let w = World::new(&["a", "b"]);
    let (_a, _b) = (w.vm("a", 1, &[vip(), vip6()]), w.vm("b", 2, &[vip(), vip6()]));
    let events = w.fabric.events().unwrap();
    for vip in [vip(), vip6()] {
        w.fabric.watch(vip, false).unwrap();
        let mut macs = event(&events, |e| match e {
            NetEvent::DoubleOwner { ip, macs, .. } if *ip == vip => Some(macs.clone()),
            _ => None,
        });
        macs.sort();
        assert_eq!(macs, [mac(1), mac(2)]);
        let seen = |r: &super::VipReport| r.double_owner_samples.len() >= 3;
        w.fabric.await_report(vip, DEADLINE, "three double samples", seen).unwrap();
        w.fabric.mark(vip).unwrap();
        assert_eq!(w.fabric.report(vip).unwrap().double_owners_seen, 0);
    }
    assert_eq!(w.fabric.reports().unwrap().len(), 2);
}

#[test]
fn an_outage_is_as_long_as_the_cut() {
    let w = World::new(&["a"]);
    let _a = w.vm("a", 1, &[vip()]);
    w.fabric.watch(vip(), true).unwrap();
    let answered = |r: &super::VipReport| r.reach.as_ref().is_some_and(|r| r.answered >= 20);
    w.fabric.await_report(vip(), DEADLINE, "echoes answered", answered).unwrap();
    w.fabric.mark(vip()).unwrap();
    let before = Instant::now();
    w.fabric.set_fault(&id("a"), Fault::CUT).unwrap();
    let cut = Instant::now();
    let long = |r: &super::VipReport| {
        r.reach.as_ref().is_some_and(|r| r.ongoing && r.longest.length >= Duration::from_millis(300))
    };
    w.fabric.await_report(vip(), DEADLINE, "an outage of 300 ms", long).unwrap();
    let healing = Instant::now();
    w.fabric.heal().unwrap();
    let over = |r: &super::VipReport| r.reach.as_ref().is_some_and(|r| !r.ongoing && r.outages_seen > 0);
    let report = w.fabric.await_report(vip(), DEADLINE, "the end of the outage", over).unwrap();
    let done = before.elapsed();
    let longest = report.reach.unwrap().longest.length;
    // From below: the cut was there, less an interval. From above: everything since the mark.
    assert!(longest + Duration::from_millis(6) >= healing - cut, "{longest:?}");
    assert!(longest <= done + Duration::from_millis(10), "{longest:?} of {done:?}");
}

#[test]
fn the_capture_holds_what_was_sent() {
    let w = World::new(&["a", "b"]);
    let (a, b) = (w.socket("a"), w.socket("b"));
    a.send(mac(1), mac(2), "to be captured");
    assert_eq!(b.next(), "to be captured");
    w.fabric.watch(vip(), false).unwrap();
    w.fabric.await_report(vip(), DEADLINE, "a question", |r| r.questions >= 2).unwrap();
    w.fabric.stop().unwrap();
    let frames = read_capture(&w.dir.path().join("all.pcap"));
    assert!(frames.iter().any(|(_, f)| f.ends_with(b"to be captured")));
    // The probing host's questions are in it as well, and times do not go back.
    assert!(frames.iter().any(|(_, f)| f[6..9] == Mac::QUESTION_V4_PREFIX));
    assert!(frames.windows(2).all(|w| w[0].0 <= w[1].0));
}

#[test]
fn machines_come_and_go() {
    let w = World::new(&["a", "b"]);
    w.fabric.watch(vip(), false).unwrap();
    let a = w.vm("a", 1, &[vip()]);
    w.fabric.await_report(vip(), DEADLINE, "an answer", |r| r.holder == Some(mac(1))).unwrap();
    drop(a);
    w.fabric.await_report(vip(), DEADLINE, "silence", |r| r.holder.is_none()).unwrap();
    let _a = w.vm("a", 3, &[vip()]);
    w.fabric.await_report(vip(), DEADLINE, "an answer", |r| r.holder == Some(mac(3))).unwrap();
    let stats = w.fabric.stats().unwrap();
    assert!(stats.ports.iter().find(|p| p.port == id("b")).unwrap().link.absent > 0);
}

#[test]
fn stopping_leaves_nothing_behind() {
    let w = World::new(&["a", "b"]);
    let (a, b) = (w.port("a").switch_path.clone(), w.port("b").switch_path.clone());
    let _vm = w.server("a", 1, "10.9.0.100/24");
    let bound = w.fabric.forward(localhost(), SocketAddr::new(vip(), 7)).unwrap();
    assert!(a.exists() && b.exists() && TcpStream::connect(bound).is_ok());
    w.fabric.stop().unwrap();
    assert!(!a.exists() && !b.exists());
    assert_eq!(TcpStream::connect(bound).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(matches!(w.fabric.stats(), Err(FabricError::Stopped)));
    w.fabric.stop().unwrap();
    // Dropping does the same, and so does a start that fails half-way.
    let again = Fabric::start(w.config.clone()).unwrap();
    assert!(matches!(Fabric::start(w.config.clone()), Err(FabricError::InUse { .. })));
    assert!(a.exists() && b.exists());
    drop(again);
    assert!(!a.exists() && !b.exists());
    let mut broken = w.config.clone();
    broken.ports[1].id = broken.ports[0].id.clone();
    assert!(matches!(Fabric::start(broken), Err(FabricError::Switch(_))));
    let broken = FabricConfig { capture: Some(w.dir.path().join("no/such.pcap")), ..w.config.clone() };
    assert!(matches!(Fabric::start(broken), Err(FabricError::Capture { .. })));
    assert!(!a.exists() && !b.exists());
}

fn localhost() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[test]
fn http_reaches_machines_of_both_families() {
    let w = World::new(&["a", "b"]);
    let (_a, _b) = (w.server("a", 1, "10.9.0.100/24"), w.server("b", 2, "fd09::100/64"));
    for (ip, expected) in [(vip(), "a /x?y=1"), (vip6(), "b /x?y=1")] {
        let response = w.fabric.http_get(SocketAddr::new(ip, 80), "/x?y=1", DEADLINE).unwrap();
        assert_eq!((response.status, response.text()), (200, expected.to_owned()));
    }
    let error = |ip: &str, port, deadline| {
        let target = SocketAddr::new(ip.parse().unwrap(), port);
        match w.fabric.http_get(target, "/", deadline) {
            Err(FabricError::Tcp(e)) => e,
            other => panic!("{other:?}"),
        }
    };
    let short = Duration::from_millis(1500);
    assert!(matches!(error("10.9.0.100", 81, DEADLINE), TcpError::Refused { .. }));
    assert!(matches!(error("10.9.0.99", 80, short), TcpError::NoConnection { .. }));
    assert!(matches!(error("10.9.0.100", 9, short), TcpError::TooSlow { received: 0, .. }));
    assert!(matches!(error("192.0.2.1", 80, short), TcpError::OffLink { .. }));
    assert!(matches!(error("10.9.0.100", 0, short), TcpError::BadTarget { .. }));
}

#[test]
fn forwards_carry_bytes_both_ways() {
    let w = World::new(&["a"]);
    let _a = w.server("a", 1, "10.9.0.100/24");
    let bound = w.fabric.forward(localhost(), SocketAddr::new(vip(), 7)).unwrap();
    let mut client = TcpStream::connect(bound).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.set_write_timeout(Some(DEADLINE)).unwrap();
    // More than all buffers together: both directions must flow at once.
    let sent: Vec<u8> = (0..600_000u32).map(|n| (n % 251) as u8).collect();
    let mut writer = client.try_clone().unwrap();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&copy).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    writing.join().unwrap();
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    await_connections(&w, 0);

    // Nothing listens there: the client is told by a reset, not by an end.
    let dead = w.fabric.forward(localhost(), SocketAddr::new(vip(), 8)).unwrap();
    let mut client = TcpStream::connect(dead).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(client.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);

    let outside = w.fabric.forward("0.0.0.0:0".parse().unwrap(), SocketAddr::new(vip(), 7));
    assert!(matches!(outside, Err(FabricError::NotLoopback { .. })));
    let taken = w.fabric.forward(bound, SocketAddr::new(vip(), 7));
    assert!(matches!(taken, Err(FabricError::Listen { .. })));
}

fn await_connections(w: &World, expected: usize) {
    let started = Instant::now();
    while w.fabric.stats().unwrap().connections != expected {
        assert!(started.elapsed() < DEADLINE, "{:?}", w.fabric.stats());
        std::thread::yield_now();
    }
}

/// A client that goes away is no stream for ever.
#[test]
fn a_vanished_client_frees_its_stream() {
    let w = World::new(&["a"]);
    let _a = w.server("a", 1, "10.9.0.100/24");
    let bound = w.fabric.forward(localhost(), SocketAddr::new(vip(), 7)).unwrap();
    for _ in 0..10 {
        let mut client = TcpStream::connect(bound).unwrap();
        client.write_all(b"hello").unwrap();
        drop(client);
    }
    await_connections(&w, 0);
}

/// The TCP host hears announcements: a new connection goes to the new holder at once.
#[test]
fn tcp_follows_a_vip() {
    for (net, vip) in [("10.9.0.100/24", vip()), ("fd09::100/64", vip6())] {
        let w = World::new(&["a", "b"]);
        let target = SocketAddr::new(vip, 80);
        let a = w.server("a", 1, net);
        let keep = w.fabric.forward(localhost(), SocketAddr::new(vip, 9)).unwrap();
        let _open = TcpStream::connect(keep).unwrap();
        assert_eq!(w.fabric.http_get(target, "/", DEADLINE).unwrap().text(), "a /");
        drop(a);
        let b = w.server("b", 2, net);
        b.announce(vip);
        let started = Instant::now();
        assert_eq!(w.fabric.http_get(target, "/", DEADLINE).unwrap().text(), "b /");
        assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    }
}

#[test]
fn the_probing_host_can_be_cut_off_too() {
    let w = World::new(&["a"]);
    let _a = w.vm("a", 1, &[vip()]);
    w.fabric.watch(vip(), false).unwrap();
    w.fabric.await_report(vip(), DEADLINE, "an answer", |r| r.holder.is_some()).unwrap();
    w.fabric.set_fault(&probe_port(), Fault::CUT).unwrap();
    w.fabric.await_report(vip(), DEADLINE, "silence", |r| r.holder.is_none()).unwrap();
}

/// 10 000 frames a second are far below what it carries; here only that nothing is lost and nothing piles up, since
/// the host may be busy.
#[test]
fn many_frames_pass_without_piling_up() {
    const FRAMES: u32 = 20_000;
    const WINDOW: usize = 3;
    let w = World::new(&["a", "b"]);
    let (a, b) = (w.socket("a"), w.socket("b"));
    b.send(mac(2), mac(1), "here I am");
    assert_eq!(a.next(), "here I am");
    // Every 32 frames the receiver lets the sender go on.
    let (room, go) = std::sync::mpsc::sync_channel(WINDOW);
    let started = Instant::now();
    let receiving = std::thread::spawn(move || {
        for n in 0..FRAMES {
            assert_eq!(b.next(), format!("{n:1400}"));
            if n % 32 == 31 {
                let _ = room.send(());
            }
        }
        b
    });
    for n in 0..FRAMES {
        if n % 32 == 0 && n >= 32 * WINDOW as u32 {
            go.recv_timeout(DEADLINE).unwrap();
        }
        a.send(mac(1), mac(2), &format!("{n:1400}"));
    }
    drop(go);
    let _b = receiving.join().unwrap();
    let rate = f64::from(FRAMES) / started.elapsed().as_secs_f64();
    println!("{rate:.0} frames/s");
    assert!(rate > 2_000.0, "{rate:.0} frames/s");
    let port = w.fabric.stats().unwrap().ports.into_iter().find(|p| p.port == id("b")).unwrap();
    assert_eq!((port.link.waiting, port.link.full), (0, 0));
}
