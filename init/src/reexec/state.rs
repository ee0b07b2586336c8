//! What one program hands to the next, in a sealed memfd: descriptors by number, everything else by value.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::PathBuf;

use proto::control::WatchdogInfo;
use proto::envelope::{self, Message};
use proto::time::Time;
use serde::{Deserialize, Serialize};

use crate::boot::memory::Memory;
use crate::fence::state as fence;
use crate::service::supervisor;
use crate::sys;
use crate::sys::memfd;
use crate::watch::rules;
use crate::watchdog::Search;

/// All that one program hands to the next.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) run: PathBuf,
    pub(crate) services_directory: PathBuf,
    pub(crate) logs: Option<PathBuf>,
    pub(crate) cgroup_mount: Option<PathBuf>,
    pub(crate) machine: bool,
    pub(crate) state_device: Option<String>,
    pub(crate) services: Vec<Service>,
    pub(crate) control: Option<Control>,
    pub(crate) keeper: Option<Keeper>,
    pub(crate) fence: fence::Saved,
    pub(crate) netlink: Option<Netlink>,
    pub(crate) watch: rules::Saved,
    /// The child that records why a trial has failed.
    pub(crate) recording: Option<Recording>,
    pub(crate) watchdog: Option<Watchdog>,
    pub(crate) watchdog_search: Option<Search>,
    /// What is remembered of the boots.
    pub(crate) memory: Memory,
    /// Where a crash is written.
    pub(crate) crash_file: Option<RawFd>,
    /// init's own log.
    pub(crate) log: Vec<u8>,
}

/// A service, by name: numbers may differ in the next program.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) life: supervisor::Life,
    pub(crate) process: Option<Process>,
    pub(crate) output: Option<Output>,
    /// Its listening sockets, in the order of its file.
    pub(crate) sockets: Vec<RawFd>,
    /// What is kept for its next life.
    pub(crate) memory: Option<RawFd>,
}

impl Service {
    fn descriptors(&self) -> impl Iterator<Item = Option<RawFd>> {
        let process = self.process.as_ref().map(|p| [Some(p.pidfd), p.report, p.notify]);
        let output = self.output.as_ref().map(|o| [Some(o.reader), Some(o.writer), None]);
        let sockets = self.sockets.iter().map(|fd| Some(*fd));
        [process, output].into_iter().flatten().flatten().chain(sockets).chain([self.memory])
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) pidfd: RawFd,
    pub(crate) report: Option<RawFd>,
    pub(crate) notify: Option<RawFd>,
}

/// A service's pipe and what was read from it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Output {
    pub(crate) reader: RawFd,
    pub(crate) writer: RawFd,
    /// The unfinished line.
    pub(crate) open: Vec<u8>,
    pub(crate) ring: Vec<u8>,
}

/// The control socket.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Control {
    pub(crate) listener: RawFd,
    /// The number of the next client: none is given twice, or a client could feed the fence for another.
    pub(crate) next: u32,
    pub(crate) clients: Vec<Client>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Client {
    pub(crate) number: u32,
    pub(crate) socket: RawFd,
    pub(crate) pid: u32,
    pub(crate) until: Time,
}

/// The fence's socket: it was opened ahead, and there may be no descriptor left for another one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Netlink {
    pub(crate) socket: RawFd,
    pub(crate) sequence: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Recording {
    pub(crate) reader: RawFd,
    pub(crate) pid: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Keeper {
    pub(crate) socket: Option<RawFd>,
    pub(crate) pid: Option<u32>,
    pub(crate) started: Time,
    pub(crate) lost: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Watchdog {
    pub(crate) device: RawFd,
    pub(crate) info: WatchdogInfo,
    pub(crate) due: Time,
    pub(crate) withheld: bool,
}

impl Message for State {
    const KIND: u16 = envelope::kind::INIT_STATE;
    const VERSION: u16 = 3;
    /// 128 rings of 64 KiB and everything else.
    const MAX_LEN: usize = 16 << 20;
}

impl State {
    /// Puts it into a sealed memfd.
    ///
    /// # Errors
    /// The kernel's reason.
    pub(crate) fn seal(&self) -> std::io::Result<OwnedFd> {
        memfd::sealed(c"evenkeel-init-state", &envelope::encode(self))
    }

    /// Reads it from a sealed memfd.
    ///
    /// # Errors
    /// What is wrong with it; nothing else was touched.
    pub(crate) fn read(fd: OwnedFd) -> Result<State, String> {
        if !memfd::is_sealed(fd.as_fd()) {
            return Err("it is not a sealed memfd".to_owned());
        }
        let mut bytes = Vec::new();
        let mut file = File::from(fd);
        file.rewind()
            .and_then(|()| file.take(State::MAX_LEN as u64 + 64).read_to_end(&mut bytes))
            .map_err(|e| sys::errno_text(&e))?;
        let state: State = envelope::decode(&bytes).map_err(|e| e.to_string())?;
        state.check()?;
        Ok(state)
    }

    /// Every descriptor it names, each once and none of the standard ones; a fence that can do its work.
    fn check(&self) -> Result<(), String> {
        self.fence.check()?;
        if !self.fence.is_idle() && self.netlink.is_none() {
            return Err("its fence has addresses and no netlink socket to delete them".to_owned());
        }
        let mut fds = self.descriptors();
        fds.sort_unstable();
        if fds.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err("it names a descriptor twice".to_owned());
        }
        match fds.iter().find(|fd| **fd < 3) {
            Some(fd) => Err(format!("it names descriptor {fd}")),
            None => Ok(()),
        }
    }

    /// The numbers of the descriptors that go along.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        let clients = self.control.iter().flat_map(|c| &c.clients).map(|c| Some(c.socket));
        let others = [
            self.control.as_ref().map(|c| c.listener),
            self.keeper.as_ref().and_then(|k| k.socket),
            self.netlink.as_ref().map(|n| n.socket),
            self.recording.as_ref().map(|r| r.reader),
            self.watchdog.as_ref().map(|w| w.device),
            self.crash_file,
        ];
        self.services.iter().flat_map(Service::descriptors).chain(clients).chain(others).flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With nothing in it.
    fn empty() -> State {
        State {
            run: "/run/x".into(),
            services_directory: "/etc/x".into(),
            logs: None,
            cgroup_mount: None,
            machine: false,
            state_device: None,
            services: Vec::new(),
            control: None,
            keeper: None,
            fence: fence::Saved::default(),
            netlink: None,
            watch: rules::Saved::default(),
            recording: None,
            watchdog: None,
            watchdog_search: None,
            memory: Memory::default(),
            crash_file: None,
            log: Vec::new(),
        }
    }

    /// With something in every field.
    fn full() -> State {
        let service = |(i, life): (RawFd, supervisor::Life)| Service {
            name: format!("s{i}"),
            life,
            process: None,
            output: None,
            sockets: Vec::new(),
            memory: None,
        };
        let mut services: Vec<_> = (0..).zip(supervisor::all_lives()).map(service).collect();
        services[0].process = Some(Process { pid: 7, pidfd: 10, report: Some(11), notify: Some(12) });
        services[0].output =
            Some(Output { reader: 13, writer: 14, open: b"tw".to_vec(), ring: b"r".to_vec() });
        services[0].sockets = vec![15, 16];
        services[0].memory = Some(17);
        let at = Time::from_nanos;
        let client = |number: u32, socket| Client { number, socket, pid: 8, until: at(300) };
        let info = WatchdogInfo { identity: "w".into(), timeout_s: 30, boot_status: 32 };
        State {
            logs: Some("/l".into()),
            cgroup_mount: Some("/c".into()),
            machine: true,
            state_device: Some("/dev/x".into()),
            services,
            control: Some(Control { listener: 18, next: 5, clients: vec![client(1, 19), client(4, 20)] }),
            keeper: Some(Keeper { socket: Some(21), pid: Some(9), started: at(4), lost: 300 }),
            fence: fence::testing::all_saved().remove(1),
            netlink: Some(Netlink { socket: 22, sequence: 300 }),
            watch: rules::testing::all_saved().remove(2),
            recording: Some(Recording { reader: 23, pid: 6 }),
            watchdog: Some(Watchdog { device: 24, info, due: at(7), withheld: true }),
            watchdog_search: Some(Search::new(at(0), 30)),
            memory: Memory::full(),
            crash_file: Some(25),
            log: b"l".to_vec(),
            ..empty()
        }
    }

    /// Between them they have every variant of everything.
    fn all() -> Vec<(&'static str, State)> {
        let netlink = || Some(Netlink { socket: 3, sequence: 1 });
        let mut all = vec![("empty", empty()), ("full", full())];
        let names = ["fence-idle", "fence-armed", "fence-orphaned", "fence-killing", "fence-deleting"];
        let fences = names.into_iter().zip(fence::testing::all_saved());
        all.extend(fences.map(|(name, fence)| (name, State { fence, netlink: netlink(), ..empty() })));
        let names = ["watch-committed", "watch-trial", "watch-recording", "watch-withheld", "watch-degraded"];
        let watches = names.into_iter().zip(rules::testing::all_saved());
        all.extend(watches.map(|(name, watch)| (name, State { watch, ..empty() })));
        all
    }

    #[test]
    fn the_state_survives_its_memfd() {
        for (name, state) in all() {
            let back = State::read(state.seal().unwrap()).unwrap();
            assert_eq!(format!("{back:?}"), format!("{state:?}"), "{name}");
        }
        let mut descriptors = full().descriptors();
        descriptors.sort_unstable();
        assert_eq!(descriptors, (10..=25).collect::<Vec<_>>(), "every one that goes along, and once");
        assert_eq!(empty().descriptors(), []);
    }

    /// A change of these bytes is a new version: the program of another release then refuses the state, and nothing
    /// changes. What `proto` brings along (ends of boots above all) is pinned there.
    #[test]
    fn golden_bytes() {
        let golden = include_str!("../../testdata/init-state-3.hex");
        let lines: Vec<(&str, String)> = golden
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, bytes)| (name, bytes.to_owned()))
            .collect();
        let now: Vec<_> =
            all().iter().map(|(name, state)| (*name, proto::text::hex(&envelope::encode(state)))).collect();
        let text: String = now.iter().map(|(name, bytes)| format!("{name} {bytes}\n")).collect();
        assert_eq!(lines, now, "the file would be\n{text}");
        assert_eq!((State::VERSION, &now[0].1[..8]), (3, "03020300"), "kind and version");
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let sealed = |bytes: &[u8]| memfd::sealed(c"test", bytes).unwrap();
        let whole = envelope::encode(&full());
        let mut last_version = whole.clone();
        last_version[2] = 2;
        for (fd, why) in [
            (sealed(b""), "cut short"),
            (sealed(&whole[..whole.len() - 1]), "cut short"),
            (sealed(&last_version), "version 2"),
            (File::open("/dev/null").unwrap().into(), "sealed memfd"),
        ] {
            let error = State::read(fd).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let listening = |listener| Some(Control { listener, next: 0, clients: Vec::new() });
        for (state, why) in [
            (State { control: listening(13), ..full() }, "twice"),
            (State { crash_file: Some(17), ..full() }, "twice"),
            (State { control: listening(2), ..full() }, "descriptor 2"),
            (State { netlink: None, ..full() }, "no netlink socket"),
        ] {
            let error = State::read(state.seal().unwrap()).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
