//! The TCP host: a station of its own on the segment (smoltcp) that opens connections to machines and VIPs. No
//! socket of the host, no clock: frames and time in, frames and bytes out.
//!
//! smoltcp learns neighbours only from packets aimed at itself. A client on a LAN also follows announcements, so
//! what is overheard about a peer of an open stream is handed to smoltcp as if it had been told. Only ARP, ND and
//! TCP for this host reach it, each checked by [`frames::parse`] first.

use super::config::HostConfig;
use super::fault::Dice;
use super::frames::{self, Advertise, Arp, FRAME_MAX, Packet};
use super::http::HttpError;
use super::mac::Mac;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use ipnet::IpNet;
use proto::time::{Duration, Time};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration as SmolDuration, Instant as SmolInstant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use std::collections::{BTreeMap, VecDeque};

/// Most streams at a time, forwards and checks together: 128 KiB of buffers each, 8 MiB in all.
pub const STREAMS_MAX: usize = 64;
/// A connection that is not made by then is given up.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// A stream that is given up may say its goodbye for this long.
pub const CLOSING_TIME: Duration = Duration::from_secs(2);
/// A peer that acknowledges nothing for this long is gone; idle streams are probed to find out.
const PEER_TIMEOUT: SmolDuration = SmolDuration::from_secs(30);
const KEEP_ALIVE: SmolDuration = SmolDuration::from_secs(10);
/// Bytes buffered in each direction of a stream: one unscaled TCP window.
const STREAM_BUFFER: usize = 64 * 1024;
/// Frames between smoltcp and the switch, each way.
const QUEUE_MAX: usize = 256;
/// What the lab's machines have as well.
const MTU: usize = 1500;
/// Own TCP ports are taken in turn from here up.
const FIRST_PORT: u16 = 49_152;

/// Why TCP into the segment failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TcpError {
    /// All streams are taken.
    #[error("cannot connect to {target}: {STREAMS_MAX} connections are open; close one")]
    TooMany {
        /// The peer.
        target: SocketAddr,
    },
    /// The TCP host cannot reach it.
    #[error("cannot connect to {target}: it is not in the TCP host's network")]
    OffLink {
        /// The peer.
        target: SocketAddr,
    },
    /// A port nobody can listen on.
    #[error("cannot connect to {target}: it is no address with a port of one station")]
    BadTarget {
        /// The peer.
        target: SocketAddr,
    },
    /// The peer said no.
    #[error("{target} refused the connection: nothing listens there")]
    Refused {
        /// The peer.
        target: SocketAddr,
    },
    /// The peer said nothing.
    #[error("no connection to {target} within {seconds:.1} s: nobody answers there")]
    NoConnection {
        /// The peer.
        target: SocketAddr,
        /// How long was waited.
        seconds: f64,
    },
    /// The peer broke the connection off.
    #[error("{target} reset the connection, or vanished")]
    Reset {
        /// The peer.
        target: SocketAddr,
    },
    /// The exchange took too long.
    #[error("no whole response from {target} within {seconds:.1} s, {received} bytes came")]
    TooSlow {
        /// The peer.
        target: SocketAddr,
        /// How long was waited.
        seconds: f64,
        /// Bytes received.
        received: usize,
    },
    /// The bytes are no HTTP response.
    #[error("{target} did not answer as expected")]
    Http {
        /// The peer.
        target: SocketAddr,
        /// In what way.
        source: HttpError,
    },
}

/// A stream of the TCP host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StreamKey(u64);

/// How a stream stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum StreamState {
    /// No answer yet.
    Connecting,
    /// Bytes may flow; an ended direction shows in [`TcpHost::receive`].
    Open,
    /// Both directions ended in good order.
    Finished,
    /// Broken.
    Failed(TcpError),
}

/// What [`TcpHost::receive`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// This many bytes were taken.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// The peer has sent all it will.
    End,
}

#[derive(Debug)]
struct Stream {
    handle: SocketHandle,
    target: SocketAddr,
    opened: Time,
    /// It was answered.
    was_open: bool,
    /// The peer has sent all it will.
    ended: bool,
    /// We have.
    finished: bool,
}

/// A stream that is no longer anybody's: it says its goodbye and goes.
#[derive(Debug)]
struct Closing {
    handle: SocketHandle,
    until: Time,
}

/// The host.
pub(super) struct TcpHost {
    device: Queues,
    iface: Interface,
    sockets: SocketSet<'static>,
    nets: Vec<IpNet>,
    streams: BTreeMap<StreamKey, Stream>,
    closing: Vec<Closing>,
    next_key: u64,
    next_port: u16,
}

impl TcpHost {
    /// A host without streams. The seed varies ports and sequence numbers between runs, so that a machine does not
    /// mistake a new connection for an old one.
    pub(super) fn new(now: Time, host: &HostConfig, seed: u64) -> TcpHost {
        let mut dice = Dice::seeded(seed);
        let mut device = Queues::default();
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(Mac::TCP.0)));
        config.random_seed = dice.next();
        let mut iface = Interface::new(config, &mut device, instant(now));
        let nets: Vec<IpNet> = host.v4.map(IpNet::V4).into_iter().chain(host.v6.map(IpNet::V6)).collect();
        iface.update_ip_addrs(|addresses| {
            for net in &nets {
                // Two addresses are the least smoltcp is built with.
                let _ = addresses.push(IpCidr::new(net.addr().into(), net.prefix_len()));
            }
        });
        TcpHost {
            device,
            iface,
            sockets: SocketSet::new(Vec::new()),
            nets,
            streams: BTreeMap::new(),
            closing: Vec::new(),
            next_key: 0,
            next_port: FIRST_PORT + (dice.next() % 16_000) as u16,
        }
    }

    /// Streams that are open, opening or closing.
    pub(super) fn len(&self) -> usize {
        self.streams.len() + self.closing.len()
    }

    /// Begins to connect. The stream stays until it is removed.
    pub(super) fn open(&mut self, now: Time, target: SocketAddr) -> Result<StreamKey, TcpError> {
        let source = self.check(target)?;
        if self.len() >= STREAMS_MAX {
            return Err(TcpError::TooMany { target });
        }
        let buffer = || tcp::SocketBuffer::new(vec![0; STREAM_BUFFER]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(PEER_TIMEOUT));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        let port = self.next_port;
        self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
        let remote = (smoltcp::wire::IpAddress::from(target.ip()), target.port());
        let local = (smoltcp::wire::IpAddress::from(source), port);
        if socket.connect(self.iface.context(), remote, local).is_err() {
            return Err(TcpError::BadTarget { target });
        }
        let handle = self.sockets.add(socket);
        let key = StreamKey(self.next_key);
        self.next_key += 1;
        let stream = Stream { handle, target, opened: now, was_open: false, ended: false, finished: false };
        self.streams.insert(key, stream);
        Ok(key)
    }

    /// Says whether `target` can be connected to, and from which own address.
    pub(super) fn check(&self, target: SocketAddr) -> Result<IpAddr, TcpError> {
        let ip = target.ip();
        if target.port() == 0 || ip.is_unspecified() || ip.is_multicast() || ip == Ipv4Addr::BROADCAST {
            return Err(TcpError::BadTarget { target });
        }
        let net = self.nets.iter().find(|net| net.contains(&ip));
        let net = net.ok_or(TcpError::OffLink { target })?;
        if ip == net.addr() || (ip.is_ipv4() && ip == net.broadcast()) {
            return Err(TcpError::BadTarget { target });
        }
        Ok(net.addr())
    }

    /// How a stream stands; call it after [`TcpHost::poll`]. A stream that nobody answers fails here.
    pub(super) fn state(&mut self, now: Time, key: StreamKey) -> StreamState {
        let Some(stream) = self.streams.get_mut(&key) else { return StreamState::Finished };
        let target = stream.target;
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(stream.handle);
        match socket.state() {
            tcp::State::SynSent | tcp::State::SynReceived => {
                let waited = now.since(stream.opened);
                if waited < CONNECT_DEADLINE {
                    return StreamState::Connecting;
                }
                socket.abort();
                StreamState::Failed(TcpError::NoConnection { target, seconds: waited.as_secs_f64() })
            }
            // All was received and acknowledged; smoltcp only waits for stray segments.
            tcp::State::TimeWait if !socket.can_recv() => StreamState::Finished,
            tcp::State::Closed if stream.ended && stream.finished => StreamState::Finished,
            tcp::State::Closed if socket.can_recv() => StreamState::Open,
            tcp::State::Closed if stream.was_open => StreamState::Failed(TcpError::Reset { target }),
            tcp::State::Closed => StreamState::Failed(TcpError::Refused { target }),
            _ => {
                stream.was_open = true;
                StreamState::Open
            }
        }
    }

    /// True when [`TcpHost::send_with`] has room.
    pub(super) fn has_room(&mut self, key: StreamKey) -> bool {
        self.socket(key).is_some_and(|socket| socket.can_send())
    }

    /// Lets `fill` write into the free room of the send buffer; it returns how much it wrote, and its own result.
    /// `None` when there is no room.
    pub(super) fn send_with<R>(
        &mut self,
        key: StreamKey,
        fill: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Option<R> {
        self.socket(key).filter(|socket| socket.can_send())?.send(fill).ok()
    }

    /// Lets `take` look at received bytes; it returns how many it took.
    pub(super) fn receive(&mut self, key: StreamKey, take: impl FnOnce(&[u8]) -> usize) -> Received {
        let Some(stream) = self.streams.get_mut(&key) else { return Received::End };
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(stream.handle);
        let taken = socket.recv(|bytes| {
            let taken = take(bytes).min(bytes.len());
            (taken, taken)
        });
        match taken {
            Ok(0) | Err(tcp::RecvError::InvalidState) => Received::Nothing,
            Ok(bytes) => Received::Bytes(bytes),
            Err(tcp::RecvError::Finished) => {
                stream.ended = true;
                Received::End
            }
        }
    }

    /// Sends what is buffered, then tells the peer that no more will come.
    pub(super) fn finish(&mut self, key: StreamKey) {
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.finished = true;
            self.sockets.get_mut::<tcp::Socket<'_>>(stream.handle).close();
        }
    }

    /// Breaks the stream off; [`TcpHost::poll`] tells the peer.
    pub(super) fn abort(&mut self, key: StreamKey) {
        if let Some(socket) = self.socket(key) {
            socket.abort();
        }
    }

    /// Gives a stream up. What it has to say yet is said by coming polls, for [`CLOSING_TIME`] at most.
    pub(super) fn remove(&mut self, now: Time, key: StreamKey) {
        if let Some(stream) = self.streams.remove(&key) {
            self.sockets.get_mut::<tcp::Socket<'_>>(stream.handle).close();
            self.closing.push(Closing { handle: stream.handle, until: now + CLOSING_TIME });
        }
    }

    /// Takes a frame from the segment. It takes effect at the next poll; when too many come, the rest is lost, and
    /// TCP sends it again.
    pub(super) fn ingest(&mut self, bytes: &[u8]) {
        if let Some(frame) = self.admitted(bytes)
            && self.device.inbound.len() < QUEUE_MAX
        {
            self.device.inbound.push_back(frame);
        }
    }

    /// True when frames wait for the next poll.
    pub(super) fn has_inbound(&self) -> bool {
        !self.device.inbound.is_empty()
    }

    /// Lets smoltcp work; frames for the segment are appended to `out`.
    pub(super) fn poll(&mut self, now: Time, out: &mut Vec<Vec<u8>>) {
        self.iface.poll(instant(now), &mut self.device, &mut self.sockets);
        out.extend(self.device.outbound.drain(..));
        let sockets = &mut self.sockets;
        self.closing.retain(|closing| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(closing.handle);
            let over = matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait);
            if over {
                sockets.remove(closing.handle);
            } else if closing.until <= now {
                socket.abort(); // the next poll says so, and removes it
            }
            !over
        });
    }

    /// When the next poll is due.
    pub(super) fn next_wakeup(&mut self, now: Time) -> Option<Time> {
        let delay = self.iface.poll_delay(instant(now), &self.sockets);
        let smoltcp = delay.map(|delay| now + Duration::from_micros(delay.total_micros()));
        let connecting = self.streams.values().filter(|s| !s.was_open).map(|s| s.opened + CONNECT_DEADLINE);
        smoltcp.into_iter().chain(connecting).chain(self.closing.iter().map(|c| c.until)).min()
    }

    /// What smoltcp may see of a frame: only well-formed packets that concern this host, and news of the peers of
    /// its streams, worded as an answer to itself.
    fn admitted(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let frame = frames::parse(bytes)?;
        let own = |ip: IpAddr| self.nets.iter().any(|net| net.addr() == ip);
        match frame.packet {
            Packet::Tcp { destination, .. } => {
                (frame.destination == Mac::TCP && own(destination)).then(|| bytes.to_vec())
            }
            Packet::Arp(arp) if !arp.sender_mac.is_station() => None,
            Packet::Arp(arp) if own(arp.target.into()) => Some(bytes.to_vec()),
            Packet::Arp(arp) if self.is_peer(arp.sender.into()) => {
                let told = Arp { reply: true, target_mac: Mac::TCP, target: self.own_v4()?, ..arp };
                Some(frames::arp(Mac::TCP, &told))
            }
            Packet::Solicit(ask) if own(ask.target.into()) && !ask.source.is_unspecified() => {
                ask.source_mac.is_none_or(Mac::is_station).then(|| bytes.to_vec())
            }
            Packet::Advertise(say) if own(say.destination.into()) || self.is_peer(say.target.into()) => {
                let target_mac = say.target_mac.or(Some(frame.source)).filter(|mac| mac.is_station())?;
                // smoltcp believes the packet's source, not its target.
                let told = Advertise {
                    source: say.target,
                    destination: self.own_v6()?,
                    target_mac: Some(target_mac),
                    ..say
                };
                (!say.target.is_unspecified()).then(|| frames::advertise(target_mac, Mac::TCP, &told))
            }
            Packet::Arp(_) | Packet::Solicit(_) | Packet::Advertise(_) | Packet::Echo(_) | Packet::Other => {
                None
            }
        }
    }

    fn is_peer(&self, ip: IpAddr) -> bool {
        self.streams.values().any(|stream| stream.target.ip() == ip)
    }

    fn own_v4(&self) -> Option<Ipv4Addr> {
        self.nets.iter().find_map(|net| match net {
            IpNet::V4(net) => Some(net.addr()),
            IpNet::V6(_) => None,
        })
    }

    fn own_v6(&self) -> Option<Ipv6Addr> {
        self.nets.iter().find_map(|net| match net {
            IpNet::V4(_) => None,
            IpNet::V6(net) => Some(net.addr()),
        })
    }

    fn socket(&mut self, key: StreamKey) -> Option<&mut tcp::Socket<'static>> {
        let handle = self.streams.get(&key)?.handle;
        Some(self.sockets.get_mut(handle))
    }
}

/// smoltcp counts microseconds.
pub(super) fn instant(now: Time) -> SmolInstant {
    SmolInstant::from_micros(i64::try_from(now.as_nanos() / 1000).unwrap_or(i64::MAX))
}

/// smoltcp's network card: two bounded queues.
#[derive(Debug, Default)]
pub(super) struct Queues {
    /// Frames for smoltcp.
    pub(super) inbound: VecDeque<Vec<u8>>,
    /// Frames from smoltcp.
    pub(super) outbound: VecDeque<Vec<u8>>,
}

/// A frame handed to smoltcp.
pub(super) struct InboundFrame(Vec<u8>);

/// Room for a frame from smoltcp.
pub(super) struct OutboundRoom<'a>(&'a mut VecDeque<Vec<u8>>);

impl Device for Queues {
    type RxToken<'a> = InboundFrame;
    type TxToken<'a> = OutboundRoom<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(InboundFrame, OutboundRoom<'_>)> {
        // An answer needs room as well: without it the frame waits.
        if self.outbound.len() >= QUEUE_MAX {
            return None;
        }
        let frame = self.inbound.pop_front()?;
        Some((InboundFrame(frame), OutboundRoom(&mut self.outbound)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<OutboundRoom<'_>> {
        (self.outbound.len() < QUEUE_MAX).then_some(OutboundRoom(&mut self.outbound))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MTU + frames::ETHERNET_HEADER;
        capabilities
    }
}

impl phy::RxToken for InboundFrame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for OutboundRoom<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length.min(FRAME_MAX)];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Responder, TcpServers};
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 0xa]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 0xb]);

    fn host() -> TcpHost {
        let config = HostConfig {
            segment: "data".into(),
            v4: Some("10.9.0.251/24".parse().unwrap()),
            v6: Some("fd09::251/64".parse().unwrap()),
        };
        TcpHost::new(Time::ZERO, &config, 3)
    }

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn targets() -> [SocketAddr; 2] {
        ["10.9.0.100:7", "[fd09::100]:7"].map(|t| t.parse().unwrap())
    }

    /// Carries frames between the host and a machine until nothing more is said.
    fn settle(now: Time, tcp: &mut TcpHost, servers: &mut TcpServers) {
        for _ in 0..20 {
            let (mut to_machine, mut to_host) = (Vec::new(), Vec::new());
            tcp.poll(now, &mut to_machine);
            servers.turn(None, &mut to_host);
            to_machine.iter().for_each(|frame| servers.turn(Some(frame), &mut to_host));
            to_host.iter().for_each(|frame| tcp.ingest(frame));
        }
    }

    #[test]
    fn a_stream_carries_bytes_and_ends_in_order() {
        for (target, net) in targets().into_iter().zip(["10.9.0.100/24", "fd09::100/64"]) {
            let mut tcp = host();
            let mut servers = TcpServers::new(A, net.parse().unwrap(), "a");
            let key = tcp.open(at(0), target).unwrap();
            assert_eq!(tcp.state(at(0), key), StreamState::Connecting);
            settle(at(1), &mut tcp, &mut servers);
            assert_eq!(tcp.state(at(1), key), StreamState::Open);
            let sent = tcp.send_with(key, |room| {
                room[..5].copy_from_slice(b"hello");
                (5, ())
            });
            assert_eq!(sent, Some(()));
            tcp.finish(key);
            settle(at(2), &mut tcp, &mut servers);
            let mut got = Vec::new();
            let mut take = |tcp: &mut TcpHost| {
                tcp.receive(key, |bytes| {
                    got.extend_from_slice(bytes);
                    bytes.len()
                })
            };
            assert_eq!((take(&mut tcp), take(&mut tcp)), (Received::Bytes(5), Received::End));
            assert_eq!(got, b"hello");
            settle(at(3), &mut tcp, &mut servers);
            assert_eq!(tcp.state(at(3), key), StreamState::Finished);
            tcp.remove(at(3), key);
            settle(at(4), &mut tcp, &mut servers);
            assert_eq!(tcp.len(), 0);
        }
    }

    #[test]
    fn refusal_silence_and_bounds_have_names() {
        let mut tcp = host();
        let mut servers = TcpServers::new(A, "10.9.0.100/24".parse().unwrap(), "a");
        let refused: SocketAddr = "10.9.0.100:1".parse().unwrap();
        let key = tcp.open(at(0), refused).unwrap();
        settle(at(1), &mut tcp, &mut servers);
        assert_eq!(tcp.state(at(1), key), StreamState::Failed(TcpError::Refused { target: refused }));
        let nobody: SocketAddr = "10.9.0.99:1".parse().unwrap();
        let key = tcp.open(at(2), nobody).unwrap();
        settle(at(9000), &mut tcp, &mut servers);
        assert_eq!(tcp.state(at(9000), key), StreamState::Connecting);
        assert!(tcp.next_wakeup(at(9000)).is_some_and(|next| next <= at(10_002)));
        let failed = TcpError::NoConnection { target: nobody, seconds: 10.0 };
        assert_eq!(tcp.state(at(10_002), key), StreamState::Failed(failed));
        for _ in 2..STREAMS_MAX {
            tcp.open(at(10_002), nobody).unwrap();
        }
        assert_eq!(tcp.open(at(10_002), nobody), Err(TcpError::TooMany { target: nobody }));
        for bad in ["10.9.0.251:1", "10.9.0.255:1", "0.0.0.0:1", "224.0.0.1:1", "[ff02::1]:1", "10.9.0.9:0"] {
            let target = bad.parse().unwrap();
            assert_eq!(tcp.check(target), Err(TcpError::BadTarget { target }));
        }
        for off in ["10.8.0.9:1", "[fe80::1]:1"] {
            let target = off.parse().unwrap();
            assert_eq!(tcp.check(target), Err(TcpError::OffLink { target }));
        }
    }

    /// A peer that takes the stream and vanishes does not keep it for ever.
    #[test]
    fn a_given_up_stream_goes_in_time() {
        let mut tcp = host();
        let mut servers = TcpServers::new(A, "10.9.0.100/24".parse().unwrap(), "a");
        let key = tcp.open(at(0), targets()[0]).unwrap();
        settle(at(1), &mut tcp, &mut servers);
        tcp.remove(at(1), key);
        let mut out = Vec::new();
        tcp.poll(at(2), &mut out);
        assert_eq!(tcp.len(), 1);
        for now in [2002, 2003] {
            tcp.poll(at(now), &mut out);
        }
        assert_eq!(tcp.len(), 0);
    }

    /// Neighbours are learned from announcements, but only of peers.
    #[test]
    fn announcements_of_peers_are_heard() {
        for target in targets() {
            let mut tcp = host();
            let b = Responder::new(B, &[target.ip()]);
            tcp.ingest(&b.announce(target.ip()));
            assert!(!tcp.has_inbound());
            tcp.open(at(0), target).unwrap();
            tcp.ingest(&b.announce(target.ip()));
            let mut out = Vec::new();
            tcp.poll(at(0), &mut out);
            // No question is asked: the connection's first segment goes there at once.
            assert_eq!(frames::stations(&out[0]), Some((Mac::TCP, B)), "{target}");
            assert!(matches!(frames::parse(&out[0]).unwrap().packet, Packet::Tcp { .. }));
        }
    }

    fn segment(
        v6: bool,
        ports: (u16, u16),
        numbers: (u32, u32),
        flags: u8,
        window: u16,
        data: &[u8],
    ) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(A.0, Mac::TCP.0);
        let ip = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        let step = match v6 {
            true => link.ipv6(ip("fd09::100"), ip("fd09::251"), 64),
            false => link.ipv4([10, 9, 0, 100], [10, 9, 0, 251], 64),
        };
        let mut step = step.tcp(ports.0, ports.1, numbers.0, window);
        for bit in (0..6).filter(|bit| flags & (1 << bit) != 0) {
            step = match bit {
                0 => step.fin(),
                1 => step.syn(),
                2 => step.rst(),
                3 => step.psh(),
                4 => step.ack(numbers.1),
                _ => step.urg(9),
            };
        }
        let mut out = Vec::new();
        step.write(&mut out, data).unwrap();
        out
    }

    proptest! {
        /// smoltcp checks its invariants by assertions; nothing that is let through may break one.
        #[test]
        fn any_frame_is_borne(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let mut tcp = host();
            let _ = targets().map(|t| tcp.open(at(0), t).unwrap());
            tcp.ingest(&bytes);
            tcp.poll(at(1), &mut Vec::new());
        }

        #[test]
        fn any_neighbour_talk_is_borne(
            which in 0..3usize,
            reply in any::<bool>(),
            stations in any::<[[u8; 6]; 2]>(),
            picks in any::<[u8; 3]>(),
        ) {
            let v4 = [[0, 0, 0, 0], [10, 9, 0, 100], [10, 9, 0, 251], [224, 0, 0, 1], [255; 4], [127, 0, 0, 1]];
            let v6 = ["::", "fd09::100", "fd09::251", "ff02::1", "::1", "ff02::1:ff00:251", "fe80::1"];
            let v4 = |n: u8| Ipv4Addr::from(v4[usize::from(n) % v4.len()]);
            let v6 = |n: u8| v6[usize::from(n) % v6.len()].parse::<Ipv6Addr>().unwrap();
            let [x, y, z] = picks;
            let [from, told] = stations.map(Mac);
            let frame = match which {
                0 => frames::arp(Mac::TCP, &Arp { reply, sender_mac: from, sender: v4(x), target_mac: told, target: v4(y) }),
                1 => frames::solicit(from, Mac::TCP, &frames::Solicit {
                    source: v6(x), destination: v6(y), target: v6(z), source_mac: reply.then_some(told),
                }),
                _ => frames::advertise(from, Mac::TCP, &Advertise {
                    source: v6(x), destination: v6(y), target: v6(z), target_mac: reply.then_some(told),
                    solicited: reply, overrides: x > 127,
                }),
            };
            let mut tcp = host();
            let _ = targets().map(|t| tcp.open(at(0), t).unwrap());
            for now in 0..3 {
                tcp.ingest(&frame);
                tcp.poll(at(now), &mut Vec::new());
            }
        }

        /// Segments with right checksums, in and around the windows of streams that are open.
        #[test]
        fn any_segments_are_borne(
            segments in proptest::collection::vec(
                (any::<bool>(), -50..200i32, -50..50i32, any::<u8>(), any::<u16>(), 0..40usize), 1..16,
            ),
        ) {
            let mut tcp = host();
            let keys = targets().map(|t| tcp.open(at(0), t).unwrap());
            let first = tcp.next_port - 2;
            let numbers = targets().map(|target| {
                tcp.ingest(&Responder::new(A, &[target.ip()]).announce(target.ip()));
                let mut out = Vec::new();
                tcp.poll(at(0), &mut out);
                let v6 = target.is_ipv6();
                let is_syn = |f: &&Vec<u8>| matches!(frames::parse(f).unwrap().packet, Packet::Tcp { .. });
                let syn = out.iter().find(is_syn).unwrap();
                let number = if v6 { 14 + 40 + 4 } else { 14 + 20 + 4 };
                let theirs = u32::from_be_bytes(syn[number..number + 4].try_into().unwrap());
                let ports = (7, first + u16::from(v6));
                tcp.ingest(&segment(v6, ports, (1000, theirs.wrapping_add(1)), 0b01_0010, 500, &[]));
                tcp.poll(at(0), &mut out);
                theirs.wrapping_add(1)
            });
            prop_assert_eq!(keys.map(|key| tcp.state(at(0), key)), [StreamState::Open, StreamState::Open]);
            for (n, (v6, sequence, ack, flags, window, length)) in segments.into_iter().enumerate() {
                let now = at(n as u64 * 50);
                let ports = (7, first + u16::from(v6));
                let both = (1001u32.wrapping_add_signed(sequence), numbers[usize::from(v6)].wrapping_add_signed(ack));
                // Bytes on their way make acknowledgements meaningful.
                tcp.send_with(keys[usize::from(v6)], |room| (room.len().min(10), ()));
                tcp.ingest(&segment(v6, ports, both, flags, window, &vec![1; length]));
                tcp.poll(now, &mut Vec::new());
                for key in keys {
                    tcp.receive(key, <[u8]>::len);
                    tcp.state(now, key);
                }
            }
        }
    }
}
