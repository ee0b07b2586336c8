//! Helpers of this module's tests: a directory that goes away, and the wits of a machine that holds VIPs.

use super::config::PortConfig;
use super::frames::{self, Advertise, Arp, Echo, Packet, group_mac};
use super::mac::Mac;
use super::monotonic;
use super::tcp::{Queues, instant};
use core::net::IpAddr;
use ipnet::IpNet;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A directory of its own, removed with the value.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new(name: &str) -> TempDir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ek-net-{}-{number}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Reads a capture the way other programs do: nanoseconds since 1970 and bytes of each frame.
pub(crate) fn read_capture(path: &Path) -> Vec<(u64, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(4), word(20)), (0xa1b2_3c4d, 0x0004_0002, 1));
    let (mut frames, mut at) = (Vec::new(), 24);
    while at < bytes.len() {
        let (seconds, nanos, kept, full) = (word(at), word(at + 4), word(at + 8), word(at + 12));
        assert!(nanos < 1_000_000_000 && kept == full);
        at += 16;
        let frame = bytes[at..at + kept as usize].to_vec();
        frames.push((u64::from(seconds) * 1_000_000_000 + u64::from(nanos), frame));
        at += kept as usize;
    }
    frames
}

/// A machine's answers: what a Linux kernel says for addresses it has.
#[derive(Clone, Debug)]
pub(crate) struct Responder {
    pub(crate) mac: Mac,
    pub(crate) vips: Vec<IpAddr>,
}

impl Responder {
    pub(crate) fn new(mac: Mac, vips: &[IpAddr]) -> Responder {
        Responder { mac, vips: vips.to_vec() }
    }

    fn has(&self, ip: impl Into<IpAddr>) -> bool {
        self.vips.contains(&ip.into())
    }

    pub(crate) fn answer(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let frame = frames::parse(bytes)?;
        if !frame.destination.is_multicast() && frame.destination != self.mac {
            return None;
        }
        match frame.packet {
            Packet::Arp(ask) if !ask.reply && self.has(ask.target) => {
                let answer = Arp {
                    reply: true,
                    sender_mac: self.mac,
                    sender: ask.target,
                    target_mac: ask.sender_mac,
                    target: ask.sender,
                };
                Some(frames::arp(ask.sender_mac, &answer))
            }
            Packet::Echo(ping) if !ping.reply && self.has(ping.destination) => {
                let pong = Echo { reply: true, source: ping.destination, destination: ping.source, ..ping };
                frames::echo(self.mac, frame.source, &pong)
            }
            Packet::Solicit(ask) if self.has(ask.target) => {
                let nobody = ask.source.is_unspecified();
                let destination = if nobody { frames::ALL_NODES } else { ask.source };
                let to = if nobody { group_mac(destination) } else { ask.source_mac.unwrap_or(frame.source) };
                let answer = Advertise {
                    source: ask.target,
                    destination,
                    target: ask.target,
                    target_mac: Some(self.mac),
                    solicited: !nobody,
                    overrides: true,
                };
                Some(frames::advertise(self.mac, to, &answer))
            }
            _ => None,
        }
    }

    /// The announcement of an address this machine has taken.
    pub(crate) fn announce(&self, ip: IpAddr) -> Vec<u8> {
        match ip {
            IpAddr::V4(ip) => {
                let say =
                    Arp { reply: false, sender_mac: self.mac, sender: ip, target_mac: Mac::ZERO, target: ip };
                frames::arp(Mac::BROADCAST, &say)
            }
            IpAddr::V6(target) => {
                let say = Advertise {
                    source: target,
                    destination: frames::ALL_NODES,
                    target,
                    target_mac: Some(self.mac),
                    solicited: false,
                    overrides: true,
                };
                frames::advertise(self.mac, group_mac(frames::ALL_NODES), &say)
            }
        }
    }
}

/// A machine on the fabric: a thread that answers like [`Responder`], and like the TCP servers of [`TcpServers`].
pub(crate) struct Vm {
    pub(crate) wits: Arc<Mutex<Responder>>,
    socket: Arc<UnixDatagram>,
    switch_path: PathBuf,
    path: PathBuf,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Vm {
    /// Starts the machine behind this port. `tcp`: it has servers at this address, and answers with its name.
    pub(crate) fn start(port: &PortConfig, wits: Responder, tcp: Option<IpNet>) -> Vm {
        let _ = std::fs::remove_file(&port.machine_path);
        let socket = Arc::new(UnixDatagram::bind(&port.machine_path).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut servers = tcp.map(|net| TcpServers::new(wits.mac, net, &port.id.node.0));
        let wits = Arc::new(Mutex::new(wits));
        let stopping = Arc::new(AtomicBool::new(false));
        let (its_wits, its_socket, its_stopping) =
            (Arc::clone(&wits), Arc::clone(&socket), Arc::clone(&stopping));
        let switch_path = port.switch_path.clone();
        let body = move || {
            let mut buffer = vec![0; frames::FRAME_MAX];
            while !its_stopping.load(Ordering::Acquire) {
                let mut out = Vec::new();
                let frame = its_socket.recv(&mut buffer).ok().map(|n| &buffer[..n]);
                out.extend(frame.and_then(|f| its_wits.lock().unwrap().answer(f)));
                if let Some(servers) = &mut servers {
                    servers.turn(frame, &mut out);
                }
                for frame in out {
                    let _ = its_socket.send_to(&frame, &switch_path);
                }
            }
        };
        let thread = Some(std::thread::spawn(body));
        Vm {
            wits,
            socket,
            switch_path: port.switch_path.clone(),
            path: port.machine_path.clone(),
            stopping,
            thread,
        }
    }

    pub(crate) fn take(&self, vip: IpAddr) {
        self.wits.lock().unwrap().vips.push(vip);
    }

    pub(crate) fn drop_vip(&self, vip: IpAddr) {
        self.wits.lock().unwrap().vips.retain(|v| *v != vip);
    }

    pub(crate) fn announce(&self, vip: IpAddr) {
        let frame = self.wits.lock().unwrap().announce(vip);
        self.socket.send_to(&frame, &self.switch_path).unwrap();
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            eprintln!("a simulated machine has panicked: {panic:?}");
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The machine's TCP: an HTTP server on port 80 that says the machine's name, an echo server on port 7, and a sink
/// on port 9 that accepts and says nothing.
pub(crate) struct TcpServers {
    name: String,
    iface: Interface,
    device: Queues,
    sockets: SocketSet<'static>,
    servers: Vec<(u16, SocketHandle)>,
}

impl TcpServers {
    pub(crate) fn new(mac: Mac, net: IpNet, name: &str) -> TcpServers {
        let mut device = Queues::default();
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac.0)));
        let mut iface = Interface::new(config, &mut device, instant(monotonic()));
        iface.update_ip_addrs(|a| a.push(IpCidr::new(net.addr().into(), net.prefix_len())).unwrap());
        let mut sockets = SocketSet::new(Vec::new());
        let servers = [80, 80, 80, 7, 7, 9].map(|port| {
            let buffer = || tcp::SocketBuffer::new(vec![0; 16 * 1024]);
            (port, sockets.add(tcp::Socket::new(buffer(), buffer())))
        });
        TcpServers { name: name.to_owned(), iface, device, sockets, servers: servers.to_vec() }
    }

    pub(crate) fn turn(&mut self, frame: Option<&[u8]>, out: &mut Vec<Vec<u8>>) {
        self.device.inbound.extend(frame.map(<[u8]>::to_vec));
        self.iface.poll(instant(monotonic()), &mut self.device, &mut self.sockets);
        for (port, handle) in &self.servers {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(*handle);
            if !socket.is_open() {
                socket.listen(*port).unwrap();
            }
            match port {
                80 if socket.recv_queue() > 0 => {
                    let whole = socket.peek(4096).unwrap().windows(4).any(|w| w == b"\r\n\r\n");
                    if whole {
                        let path =
                            socket.recv(|b| (b.len(), b[4..].iter().map(|c| *c as char).collect::<String>()));
                        let path = path.unwrap().split(' ').next().unwrap().to_owned();
                        let answer = format!("HTTP/1.0 200 OK\r\n\r\n{} {path}", self.name);
                        socket.send_slice(answer.as_bytes()).unwrap();
                        socket.close();
                    }
                }
                7 => {
                    while socket.can_recv() && socket.can_send() {
                        let room = socket.send_capacity() - socket.send_queue();
                        let mut bytes = vec![0; room.min(4096)];
                        let got = socket.recv_slice(&mut bytes).unwrap();
                        assert_eq!(socket.send_slice(&bytes[..got]).unwrap(), got);
                    }
                    if !socket.may_recv() && socket.state() == tcp::State::CloseWait {
                        socket.close();
                    }
                }
                _ => {}
            }
        }
        self.iface.poll(instant(monotonic()), &mut self.device, &mut self.sockets);
        out.extend(self.device.outbound.drain(..));
    }
}
