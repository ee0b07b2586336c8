//! Answers to the control socket's requests.

use std::fs;
use std::os::fd::OwnedFd;

use nix::unistd::{gethostname, sethostname};
use proto::control::{
    DETAIL_MAX, HOSTNAME_MAX, LOG_LINES_MAX, MemoryInfo, RELEASE_MAX, Reply, Request, ServiceRow,
    ServiceState, SystemInfo,
};

use crate::boot::state;
use crate::clock;
use crate::fence::state::Caller;
use crate::manager::Manager;
use crate::ring::shorten;
use crate::service::unit::Unit;
use crate::shutdown::End;

/// The image's description.
const RELEASE_FILE: &str = "/etc/evenkeel/release";

/// The service that commits slots.
const PROVISIOND: &str = "provisiond";

impl Manager {
    /// Answers the next request of client `id`; false when there was none. The answer goes out before what was asked
    /// for begins.
    pub(crate) fn serve(&mut self, id: u32) -> bool {
        let events = &self.events;
        let received = self.control.as_mut().and_then(|server| server.receive(clock::now(), id, events));
        let Some((request, descriptor)) = received else { return false };
        if let Request::FenceFeed { until_ns } = request {
            // Every beat: without an answer.
            self.fence.feed(id, until_ns);
            return true;
        }
        let mut end = None;
        let answer = match request {
            Request::Services => Ok(Reply::Services(self.rows())),
            Request::Log { service, lines } => self.log(service.as_deref(), lines),
            Request::Reboot => self.may_end().map(|()| {
                end = Some(End::Reboot);
                Reply::Accepted
            }),
            Request::PowerOff => self.may_end().map(|()| {
                end = Some(End::PowerOff);
                Reply::Accepted
            }),
            Request::Restart { service } => {
                self.supervisor.restart(clock::now(), &service, &mut self.orders).map(|()| {
                    self.host.log.info(format_args!("{service}: restart asked for on the control socket"));
                    Reply::Accepted
                })
            }
            Request::SetHostname { name } => self.set_hostname(&name),
            Request::System => Ok(Reply::System(self.system())),
            Request::FenceRegister { until_ns, interface, addresses } => self
                .fencing(id)
                .and_then(|caller| self.fence.register(caller, until_ns, &interface, addresses.as_slice())),
            Request::FenceAdopt { until_ns } => {
                self.fencing(id).and_then(|caller| self.fence.adopt(caller, until_ns))
            }
            Request::FenceFeed { .. } => return true,
            Request::FenceRelease { index, addresses } => {
                self.fencing(id).and_then(|caller| self.fence.release(caller, index, addresses.as_slice()))
            }
            Request::FenceState => Ok(Reply::Fence(self.fence_info())),
            Request::KeepMemory => self.keep_memory(id, descriptor),
            Request::Watch => Ok(Reply::Watch(self.watch.info(clock::now()))),
            Request::EndTrial => self.end_trial(id),
            Request::ReExec { path } => match self.begin_reexec(path.as_deref(), id) {
                // Answered when the program has been tried.
                Ok(()) => return true,
                Err(reason) => Err(reason),
            },
            Request::Boot => Ok(Reply::Boot(self.host.memory.info())),
        };
        let reply = answer.unwrap_or_else(|mut reason| {
            shorten(&mut reason, DETAIL_MAX);
            Reply::Refused { reason }
        });
        if let Some(server) = &mut self.control {
            server.reply(id, &reply, &self.events);
        }
        self.perform();
        if let Some(end) = end {
            self.begin_shutdown(end, "the control socket");
        }
        true
    }

    /// The service whose main process client `id` is, when `may` says that it may ask; otherwise what it lacks.
    fn caller(&self, id: u32, may: impl Fn(&Unit) -> bool, lacks: &str) -> Result<Caller, String> {
        let pid = self.control.as_ref().and_then(|server| server.pid(id)).unwrap_or(0);
        let service = self.service_of(pid).filter(|s| self.supervisor.unit(*s).is_some_and(may));
        match service {
            Some(service) => Ok(Caller { service, pid, client: id }),
            None => Err(format!("process {pid} is not the main process of {lacks}")),
        }
    }

    fn fencing(&self, id: u32) -> Result<Caller, String> {
        self.caller(id, |unit| unit.fence, "a service with fence = true")
    }

    fn keep_memory(&mut self, id: u32, memory: Option<OwnedFd>) -> Result<Reply, String> {
        let may = |unit: &Unit| unit.keeps_memory;
        let caller = self.caller(id, may, "a service with keeps_memory = true")?;
        let memory = memory.ok_or("the packet has no descriptor: send the memory with it")?;
        let size = self.store.keep(caller.service, memory)?;
        let name = self.supervisor.unit(caller.service).map_or("", |u| u.name.as_str());
        self.host.log.info(format_args!("{name}: {size} bytes of memory are kept for its next life"));
        Ok(Reply::Accepted)
    }

    fn end_trial(&mut self, id: u32) -> Result<Reply, String> {
        self.caller(id, |unit| unit.name == PROVISIOND, PROVISIOND)?;
        self.watch.end_trial()?;
        self.host.log.info(format_args!("this boot is no trial any more"));
        Ok(Reply::Accepted)
    }

    fn rows(&self) -> Vec<ServiceRow> {
        let mut rows = self.supervisor.rows(clock::now());
        rows.extend(self.refused.iter().map(|refusal| ServiceRow {
            name: refusal.name.clone(),
            state: ServiceState::Refused,
            detail: refusal.to_string(),
            pid: None,
            restarts: 0,
            since_s: clock::now_ms() / 1000,
            last_exit: None,
        }));
        for row in &mut rows {
            shorten(&mut row.name, proto::control::SERVICE_NAME_MAX);
            shorten(&mut row.detail, DETAIL_MAX);
        }
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows
    }

    fn log(&self, service: Option<&str>, lines: u16) -> Result<Reply, String> {
        let count = usize::from(lines.min(LOG_LINES_MAX));
        let Some(name) = service else { return Ok(Reply::Log(self.host.log.ring.last(count))) };
        let Some(id) = self.supervisor.find(name) else {
            return Err(format!("there is no service {name:?}"));
        };
        match self.output_of(id) {
            Some(ring) => Ok(Reply::Log(ring.last(count))),
            None => Err(format!("{name} has a terminal of its own; its output is not kept")),
        }
    }

    fn may_end(&self) -> Result<(), String> {
        match self.shutdown {
            Some(_) => Err("the system is going down already".to_owned()),
            None => Ok(()),
        }
    }

    fn set_hostname(&mut self, name: &str) -> Result<Reply, String> {
        let legal = (1..=HOSTNAME_MAX).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !name.starts_with('-')
            && !name.ends_with('-');
        if !legal {
            return Err(format!(
                "a host name has 1 to {HOSTNAME_MAX} letters, digits and '-', not '-' at an end; found {name:?}"
            ));
        }
        sethostname(name).map_err(|e| format!("cannot set the host name: {}", e.desc()))?;
        self.host.log.info(format_args!("host name: {name}"));
        Ok(Reply::Accepted)
    }

    fn system(&self) -> SystemInfo {
        let word = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let mut release = fs::read_to_string(RELEASE_FILE).unwrap_or_default();
        shorten(&mut release, RELEASE_MAX);
        SystemInfo {
            uptime_ms: clock::now_ms(),
            boot_id: word("/proc/sys/kernel/random/boot_id"),
            hostname: gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
            kernel: word("/proc/sys/kernel/osrelease"),
            release,
            watchdog: self.host.watchdog.as_ref().map(|w| w.info().clone()),
            state: self.setup.state_device.as_deref().and_then(state::info),
            memory: memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        }
    }
}

/// Reads `/proc/meminfo`; what is missing counts as zero.
fn memory(meminfo: &str) -> MemoryInfo {
    let bytes = |key: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    MemoryInfo {
        total_bytes: bytes("MemTotal").unwrap_or(0),
        available_bytes: bytes("MemAvailable").unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        let text = "MemTotal:         237456 kB\nMemFree:  5 kB\nMemAvailable:     200000 kB\n";
        assert_eq!(memory(text), MemoryInfo { total_bytes: 237_456 << 10, available_bytes: 200_000 << 10 });
        assert_eq!(memory("MemTotal: x kB"), MemoryInfo::default());
    }
}
