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
use crate::service::supervisor;
use crate::sys;
use crate::sys::memfd;

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
    pub(crate) listener: Option<RawFd>,
    pub(crate) keeper: Option<Keeper>,
    pub(crate) watchdog: Option<Watchdog>,
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
}

impl Message for State {
    const KIND: u16 = envelope::kind::INIT_STATE;
    const VERSION: u16 = 2;
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

    /// Every descriptor it names, each once and open.
    fn check(&self) -> Result<(), String> {
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
        let of_service = |s: &Service| {
            let process = s.process.as_ref().map(|p| [Some(p.pidfd), p.report, p.notify]);
            let output = s.output.as_ref().map(|o| [Some(o.reader), Some(o.writer), None]);
            [process, output].into_iter().flatten().flatten()
        };
        let sockets = self.services.iter().flat_map(|s| &s.sockets).map(|fd| Some(*fd));
        let others = [
            self.listener,
            self.keeper.as_ref().and_then(|k| k.socket),
            self.watchdog.as_ref().map(|w| w.device),
            self.crash_file,
        ];
        self.services.iter().flat_map(of_service).chain(sockets).chain(others).flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            run: "/run/x".into(),
            services_directory: "/etc/x".into(),
            logs: None,
            cgroup_mount: None,
            machine: true,
            state_device: None,
            services: vec![Service {
                name: "a".into(),
                life: supervisor::Life::default(),
                process: Some(Process { pid: 7, pidfd: 10, report: None, notify: Some(11) }),
                output: Some(Output { reader: 12, writer: 13, open: b"tw".to_vec(), ring: Vec::new() }),
                sockets: vec![15],
            }],
            listener: Some(14),
            keeper: None,
            watchdog: None,
            memory: Memory::default(),
            crash_file: Some(16),
            log: Vec::new(),
        }
    }

    #[test]
    fn the_state_survives_its_memfd() {
        let back = State::read(state().seal().unwrap()).unwrap();
        assert_eq!(format!("{back:?}"), format!("{:?}", state()));
        assert_eq!(back.descriptors(), [10, 11, 12, 13, 15, 14, 16]);
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let sealed = |bytes: &[u8]| memfd::sealed(c"test", bytes).unwrap();
        let whole = envelope::encode(&state());
        let mut other_version = whole.clone();
        other_version[2] = 9;
        for (fd, why) in [
            (sealed(b""), "cut short"),
            (sealed(&whole[..whole.len() - 1]), "cut short"),
            (sealed(&other_version), "version 9"),
            (File::open("/dev/null").unwrap().into(), "sealed memfd"),
        ] {
            let error = State::read(fd).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        for (listener, why) in [(13, "twice"), (2, "descriptor 2")] {
            let state = State { listener: Some(listener), ..state() };
            let error = State::read(state.seal().unwrap()).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
