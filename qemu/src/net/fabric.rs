//! The thread that carries the lab's frames: one poll over all sockets, one clock reading a turn, everything that
//! decides in the pure parts.
//!
//! ```text
//! turn: poll ── calls of the handle ── frames of the machines ── delayed frames ── TCP host, forwards ── probing host
//!                                            └────────────── switch ──────────────┘ (what a host says is a frame, too)
//! ```
//! Frames come before questions: what has already arrived must not look like silence. Nothing in a turn blocks but
//! writing the capture to a disk.

use super::capture::Capture;
use super::config::{FabricConfig, HostConfig, PROBE_PREFIXES, probe_port, tcp_port};
use super::error::FabricError;
use super::forward::{Forwarder, Interest};
use super::frames::FRAME_MAX;
use super::handle::{FabricHandle, Job};
use super::link::{self, Link};
use super::mac::Mac;
use super::monotonic;
use super::probe::{ProbeHost, ProbeOut};
use super::report::{FabricStats, LinkCounters, NetEvent, PortStats};
use super::switch::{Entry, PortKey, Switch};
use super::tcp::TcpHost;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use proto::cluster::PortId;
use proto::time::{Duration, Time};
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

/// Most subscribers to events.
pub const SUBSCRIBERS_MAX: usize = 16;
/// Events that wait for a slow subscriber; beyond it they are lost and counted.
pub const EVENTS_MAX: usize = 1024;
/// Frames taken from one machine in a turn, so that no machine keeps the others waiting.
const FRAMES_PER_TURN: usize = 32;
/// Frames the lab's own hosts may cause in a turn, in case they ever answer each other for ever.
const OWN_FRAMES_PER_TURN: usize = 1024;
/// Calls taken in a turn.
const CALLS_PER_TURN: usize = 64;
/// The thread looks around at least this often, and hands the capture to its reader.
const IDLE_TURN: Duration = Duration::from_secs(1);

/// What a switch port leads to.
#[derive(Debug)]
enum End {
    Machine(Box<Link>),
    Probe,
    Tcp,
}

/// The lab's network. Start it with [`Fabric::start`]; it lives in its own thread.
pub struct Fabric {
    pub(super) switch: Switch,
    /// By [`PortKey::index`].
    ends: Vec<End>,
    pub(super) probe: Option<(PortKey, ProbeHost)>,
    pub(super) tcp: Option<(PortKey, TcpHost)>,
    pub(super) forwarder: Forwarder,
    capture: Option<Capture>,
    capture_stopped: bool,
    subscribers: Vec<SyncSender<NetEvent>>,
    events_lost: u64,
    /// Frames of the lab's own hosts that are not in the switch yet.
    own_frames: VecDeque<(PortKey, Vec<u8>)>,
    probe_out: ProbeOut,
    flushed: Time,
}

impl Fabric {
    /// Makes the sockets, starts the thread and hands out what controls it.
    ///
    /// # Errors
    /// When a socket or the capture cannot be made; what was made until then is removed again.
    pub fn start(config: FabricConfig) -> Result<FabricHandle, FabricError> {
        let fabric = Fabric::new(&config)?;
        let wake = EventFd::from_flags(
            nix::sys::eventfd::EfdFlags::EFD_NONBLOCK | nix::sys::eventfd::EfdFlags::EFD_CLOEXEC,
        )
        .map_err(|e| FabricError::Thread { source: e.into() })?;
        FabricHandle::spawn(fabric, Arc::new(wake))
    }

    fn new(config: &FabricConfig) -> Result<Fabric, FabricError> {
        let now = monotonic();
        let mut switch = Switch::new(config.seed);
        let mut ends = Vec::new();
        for port in &config.ports {
            switch.add_port(port.id.clone(), &port.segment)?;
            ends.push(End::Machine(Box::new(Link::bind(&port.switch_path, &port.machine_path)?)));
        }
        // Marks this fabric's echoes and connections: two labs may share a seed.
        let nonce = config.seed ^ now.as_nanos() ^ (u64::from(std::process::id()) << 40);
        let mut host = |id: PortId, host: &HostConfig, end: End, mac: Mac| {
            let key = switch.add_port(id, &host.segment)?;
            ends.push(end);
            Ok::<_, FabricError>((key, mac))
        };
        let probe = match &config.probe {
            Some(c) => Some((
                host(probe_port(), c, End::Probe, Mac::PROBE)?.0,
                ProbeHost::new(c, config.timing, nonce),
            )),
            None => None,
        };
        let tcp = match &config.tcp {
            Some(c) => Some((host(tcp_port(), c, End::Tcp, Mac::TCP)?.0, TcpHost::new(now, c, nonce))),
            None => None,
        };
        if let Some((key, _)) = &probe {
            PROBE_PREFIXES.iter().for_each(|prefix| switch.pin(*prefix, *key));
        }
        let capture = match &config.capture {
            Some(path) => Some(
                Capture::create(path, now)
                    .map_err(|source| FabricError::Capture { path: path.clone(), source })?,
            ),
            None => None,
        };
        Ok(Fabric {
            switch,
            ends,
            probe,
            tcp,
            forwarder: Forwarder::default(),
            capture,
            capture_stopped: false,
            subscribers: Vec::new(),
            events_lost: 0,
            own_frames: VecDeque::new(),
            probe_out: ProbeOut::default(),
            flushed: now,
        })
    }

    /// Turns until it is told to stop. Dropping the fabric afterwards removes its files.
    pub(super) fn run(mut self, calls: &Receiver<Job>, wake: &EventFd, stopping: &AtomicBool) {
        let mut buffer = vec![0; FRAME_MAX + 1];
        let mut readable = Vec::new();
        while !stopping.load(Ordering::Acquire) {
            let now = monotonic();
            let timeout = self.next_wakeup(now).since(now);
            if self.wait(timeout, wake, &mut readable).is_err() {
                // poll fails for want of memory only. Without it there is no way to wait but to try again soon.
                std::thread::yield_now();
            }
            for _ in 0..CALLS_PER_TURN {
                let Ok(call) = calls.try_recv() else { break };
                call(&mut self, monotonic());
            }
            self.turn(&readable, &mut buffer);
        }
        if let Some(capture) = &mut self.capture {
            capture.flush();
        }
    }

    /// Waits until something can be done; fills in the machines that have sent something.
    fn wait(&mut self, timeout: Duration, wake: &EventFd, readable: &mut Vec<usize>) -> nix::Result<()> {
        readable.clear();
        let mut interests = Vec::new();
        if let Some((_, tcp)) = &mut self.tcp {
            self.forwarder.interests(tcp, &mut interests);
        }
        let machines: Vec<(usize, &Link)> = self.ends.iter().enumerate().filter_map(machine).collect();
        let mut fds = vec![PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(machines.iter().map(|(_, link)| PollFd::new(link.as_fd(), PollFlags::POLLIN)));
        fds.extend(interests.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)));
        match ppoll(&mut fds, Some(TimeSpec::from_duration(timeout)), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
        let found = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
        if !found(&fds[0]).is_empty() {
            let _ = wake.read(); // only its being set matters
        }
        let (links, others) = fds[1..].split_at(machines.len());
        readable
            .extend(machines.iter().zip(links).filter(|(_, fd)| !found(fd).is_empty()).map(|((i, _), _)| *i));
        let polled: Vec<(Interest, PollFlags)> = interests
            .iter()
            .zip(others)
            .map(|((interest, ..), fd)| (*interest, found(fd)))
            .filter(|(_, found)| !found.is_empty())
            .collect();
        polled.into_iter().for_each(|(interest, found)| self.forwarder.polled(interest, found));
        Ok(())
    }

    fn turn(&mut self, readable: &[usize], buffer: &mut [u8]) {
        for &port in readable {
            for _ in 0..FRAMES_PER_TURN {
                let Some(End::Machine(link)) = self.ends.get_mut(port) else { break };
                let Some(frame) = link.receive(buffer) else { break };
                let length = frame.len();
                if length > 0 {
                    self.ingress(monotonic(), PortKey::at(port), &buffer[..length]);
                }
            }
        }
        let now = monotonic();
        let mut late = Vec::new();
        self.switch.due(now, &mut late);
        late.into_iter().for_each(|(to, frame)| self.deliver(now, to, &frame));
        self.drain_own(now);
        self.turn_tcp(now);
        if let Some((port, probe)) = &mut self.probe {
            probe.handle_timeout(now, &mut self.probe_out);
            let port = *port;
            self.own_frames.extend(self.probe_out.frames.drain(..).map(|frame| (port, frame)));
        }
        self.drain_own(now);
        for end in &mut self.ends {
            if let End::Machine(link) = end {
                link.retry(now);
            }
        }
        self.watch_capture(now);
        let events = std::mem::take(&mut self.probe_out.events);
        events.iter().for_each(|event| self.publish(event));
    }

    /// smoltcp first, so that what arrived can be relayed; and again, so that what was relayed leaves.
    fn turn_tcp(&mut self, now: Time) {
        let Some((port, tcp)) = &mut self.tcp else { return };
        let (port, mut frames) = (*port, Vec::new());
        tcp.poll(now, &mut frames);
        self.forwarder.pump(now, tcp);
        tcp.poll(now, &mut frames);
        self.own_frames.extend(frames.into_iter().map(|frame| (port, frame)));
        self.drain_own(now);
    }

    /// A frame enters the switch, and what gets it at once has it.
    fn ingress(&mut self, now: Time, from: PortKey, frame: &[u8]) {
        let mut out = Vec::new();
        if self.switch.ingress(now, from, frame, &mut out) == Entry::Taken
            && let Some(capture) = &mut self.capture
        {
            capture.frame(now, frame);
        }
        out.into_iter().for_each(|to| self.deliver(now, to, frame));
    }

    fn deliver(&mut self, now: Time, to: PortKey, frame: &[u8]) {
        match (&mut self.ends[to.index()], &mut self.probe, &mut self.tcp) {
            (End::Machine(link), ..) => link.send(now, frame),
            (End::Probe, Some((port, probe)), _) => {
                probe.handle(now, frame, &mut self.probe_out);
                let port = *port;
                self.own_frames.extend(self.probe_out.frames.drain(..).map(|frame| (port, frame)));
            }
            (End::Tcp, _, Some((_, tcp))) => tcp.ingest(frame),
            (End::Probe | End::Tcp, ..) => {}
        }
    }

    fn drain_own(&mut self, now: Time) {
        for _ in 0..OWN_FRAMES_PER_TURN {
            let Some((from, frame)) = self.own_frames.pop_front() else { return };
            self.ingress(now, from, &frame);
        }
        self.own_frames.clear();
    }

    fn watch_capture(&mut self, now: Time) {
        let Some(capture) = &mut self.capture else { return };
        if now.since(self.flushed) >= IDLE_TURN {
            self.flushed = now;
            capture.flush();
        }
        if let (false, Some(reason)) = (self.capture_stopped, capture.status().stopped.clone()) {
            self.capture_stopped = true;
            self.publish(&NetEvent::CaptureStopped { reason, at: now });
        }
    }

    fn next_wakeup(&mut self, now: Time) -> Time {
        let waiting = self.ends.iter().enumerate().filter_map(machine).any(|(_, link)| link.is_waiting());
        let times = [
            Some(now + IDLE_TURN),
            self.probe.as_ref().and_then(|(_, probe)| probe.next_wakeup()),
            self.switch.next_wakeup(),
            waiting.then(|| now + link::RETRY_INTERVAL),
            self.tcp.as_mut().and_then(|(_, tcp)| tcp.next_wakeup(now)),
            self.forwarder.next_wakeup(),
            self.tcp.as_ref().is_some_and(|(_, tcp)| tcp.has_inbound()).then_some(now),
        ];
        times.into_iter().flatten().min().unwrap_or(now)
    }

    /// Adds a subscriber to events.
    pub(super) fn subscribe(&mut self) -> Receiver<NetEvent> {
        let (sender, receiver) = sync_channel(EVENTS_MAX);
        if self.subscribers.len() >= SUBSCRIBERS_MAX {
            self.subscribers.remove(0); // the oldest sees its channel end
        }
        self.subscribers.push(sender);
        receiver
    }

    fn publish(&mut self, event: &NetEvent) {
        let lost = &mut self.events_lost;
        self.subscribers.retain(|subscriber| match subscriber.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                *lost += 1;
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        });
    }

    /// The switch port of this name.
    pub(super) fn port(&self, id: &PortId) -> Result<PortKey, FabricError> {
        self.switch.find(id).ok_or_else(|| FabricError::UnknownPort { port: id.clone() })
    }

    /// The probing host.
    pub(super) fn probe(&mut self) -> Result<&mut ProbeHost, FabricError> {
        self.probe.as_mut().map(|(_, probe)| probe).ok_or(FabricError::NoProbe)
    }

    /// Its own state.
    pub(super) fn stats(&self) -> FabricStats {
        let ports = self.switch.ports().map(|(key, id)| PortStats {
            port: id.clone(),
            switch: self.switch.counters(key),
            link: match &self.ends[key.index()] {
                End::Machine(link) => link.counters(),
                End::Probe | End::Tcp => LinkCounters::default(),
            },
        });
        FabricStats {
            ports: ports.collect(),
            learned: self.switch.table_len(),
            delayed: self.switch.held_len(),
            events_lost: self.events_lost,
            connections: self.tcp.as_ref().map_or(0, |(_, tcp)| tcp.len()),
            capture: self.capture.as_ref().map(|c| c.status().clone()),
        }
    }
}

fn machine((index, end): (usize, &End)) -> Option<(usize, &Link)> {
    match end {
        End::Machine(link) => Some((index, link)),
        End::Probe | End::Tcp => None,
    }
}
