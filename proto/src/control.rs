//! init's control protocol: what `keel` and provisiond ask of PID 1 over `/run/evenkeel/init.sock`.
//!
//! The socket is `SOCK_SEQPACKET`: one packet holds one [`Request`], the answer is one packet with one [`Reply`].
//! A client may send several requests over one connection, one after the other; init closes a connection that
//! stays silent. Only uid 0 is served. Requests that change something are answered *before* the change happens,
//! so that the answer to a reboot still reaches its client.
//!
//! Every string is bounded by a constant of this module; init cuts what it sends and refuses what it gets.

use serde::{Deserialize, Serialize};

use crate::boot::{BootEntry, Fault};
use crate::envelope::Message;

/// Where init listens.
pub const SOCKET_PATH: &str = "/run/evenkeel/init.sock";
/// Bytes of the longest packet either side sends; a receive buffer of this size never truncates. A UNIX packet must
/// fit the default send buffer (208 KiB), and a whole log ring (64 KiB) must fit a packet.
pub const PACKET_MAX: usize = 128 * 1024;
/// Most log lines one request may ask for.
pub const LOG_LINES_MAX: u16 = 200;
/// Bytes of the longest log line; longer ones are split when they are captured.
pub const LOG_LINE_MAX: usize = 4096;
/// Bytes of the longest service name.
pub const SERVICE_NAME_MAX: usize = 32;
/// Bytes of the longest host name: one DNS label, which is also what a node name may be.
pub const HOSTNAME_MAX: usize = 63;
/// Bytes of the longest explanation in a row or a refusal.
pub const DETAIL_MAX: usize = 400;
/// Bytes of the release file that a reply carries at most.
pub const RELEASE_MAX: usize = 4096;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// All services, in name order. Answered by [`Reply::Services`].
    Services,
    /// The last `lines` (at most [`LOG_LINES_MAX`]) lines of a service's output, or of init's own log when `service`
    /// is `None`. Answered by [`Reply::Log`].
    Log { service: Option<String>, lines: u16 },
    /// Stop everything in order and restart the machine. Answered by [`Reply::Accepted`].
    Reboot,
    /// Stop everything in order and switch the machine off. Answered by [`Reply::Accepted`].
    PowerOff,
    /// Stop one service and start it again at once, whatever its back-off. Answered by [`Reply::Accepted`].
    Restart { service: String },
    /// Set the kernel's host name. Answered by [`Reply::Accepted`].
    SetHostname { name: String },
    /// The machine as init sees it. Answered by [`Reply::System`].
    System,
    /// Let the program at this absolute path take over as PID 1 while services run; `None` is the running one. Answered
    /// by [`Reply::Accepted`] when the program has shown that it can.
    ReExec { path: Option<String> },
    /// What init remembers of this boot and the ones before it. Answered by [`Reply::Boot`].
    Boot,
}

impl Message for Request {
    const KIND: u16 = crate::envelope::kind::CONTROL_REQUEST;
    const VERSION: u16 = 1;
    const MAX_LEN: usize = 512;
}

/// What init answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Every service, those with a refused file included.
    Services(Vec<ServiceRow>),
    /// Log lines, oldest first.
    Log(Vec<LogLine>),
    /// It will be done.
    Accepted,
    /// The machine.
    System(SystemInfo),
    /// Nothing was changed; `reason` names the object, the rule and the next step.
    Refused { reason: String },
    /// This boot and the ones before it.
    Boot(BootInfo),
}

impl Message for Reply {
    const KIND: u16 = crate::envelope::kind::CONTROL_REPLY;
    const VERSION: u16 = 1;
    const MAX_LEN: usize = PACKET_MAX - crate::envelope::HEADER_LEN;
}

/// One service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// The file's name without `.toml`.
    pub name: String,
    /// Where it is in its life.
    pub state: ServiceState,
    /// What it waits for, why it is not running or why its file was refused; empty when there is nothing to say.
    pub detail: String,
    /// The main process while there is one.
    pub pid: Option<u32>,
    /// How often it was started again since boot.
    pub restarts: u32,
    /// Seconds in this state.
    pub since_s: u64,
    /// How its last process ended; `None` before the first end.
    pub last_exit: Option<LastExit>,
}

/// A service's place in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceState {
    /// Waits for the services named in `detail`.
    Waiting,
    /// Its process runs and has not told readiness yet.
    Starting,
    /// Running and ready.
    Ready,
    /// Told to stop; its process is still there.
    Stopping,
    /// Ended; the next start waits for its back-off.
    Backoff,
    /// Ended by itself and its restart policy leaves it there.
    Finished,
    /// Stopped on the way to power-off or reboot.
    Stopped,
    /// Its file was refused; `detail` says where and why.
    Refused,
}

impl core::fmt::Display for ServiceState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(match self {
            ServiceState::Waiting => "waiting",
            ServiceState::Starting => "starting",
            ServiceState::Ready => "ready",
            ServiceState::Stopping => "stopping",
            ServiceState::Backoff => "back-off",
            ServiceState::Finished => "finished",
            ServiceState::Stopped => "stopped",
            ServiceState::Refused => "refused",
        })
    }
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LastExit {
    /// It exited with this code.
    Code(i32),
    /// A signal of this number ended it.
    Signal(i32),
    /// The program could not be started at all; the text says which step failed and why.
    NotStarted(String),
}

impl core::fmt::Display for LastExit {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            LastExit::Code(code) => write!(f, "exit code {code}"),
            LastExit::Signal(number) => write!(f, "signal {number}"),
            LastExit::NotStarted(why) => write!(f, "not started: {why}"),
        }
    }
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Milliseconds since the kernel started (`CLOCK_BOOTTIME`).
    pub at_ms: u64,
    /// The text, without its line end; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// The machine as init sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemInfo {
    /// Milliseconds since the kernel started.
    pub uptime_ms: u64,
    /// The kernel's random id of this boot.
    pub boot_id: String,
    /// Host name as it is set now.
    pub hostname: String,
    /// Kernel release, as `uname -r`.
    pub kernel: String,
    /// Text of `/etc/evenkeel/release`; empty when there is none.
    pub release: String,
    /// The watchdog init feeds; `None` when there is none, and `detail` in the log says why.
    pub watchdog: Option<WatchdogInfo>,
    /// STATE's file system; `None` when the system runs without one.
    pub state: Option<FilesystemInfo>,
    /// Memory in bytes.
    pub memory: MemoryInfo,
}

/// This boot and the ones before it, as far as init knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootInfo {
    /// Boots so far, this one included; 0 when it is not known.
    pub count: u64,
    /// The kernel's random id of this boot.
    pub boot_id: String,
    /// The slot it runs from; empty when unknown.
    pub slot: String,
    /// The boots before this one, the oldest first.
    pub history: Vec<BootEntry>,
    /// Watchdog resets within the last ten minutes of running time.
    pub watchdog_resets: u32,
    /// The machine's id, 32 hex digits, and in `machine_id_from` where it comes from.
    pub machine_id: String,
    pub machine_id_from: String,
    /// What became of the random seed of the last boot.
    pub seed: String,
    /// What became of the wall clock.
    pub clock: String,
    /// The last crash of init or panic of the kernel there was.
    pub last_fault: Option<Fault>,
    /// Why this boot is not recorded on STATE; empty when it is.
    pub not_recorded: String,
}

/// The hardware watchdog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchdogInfo {
    /// The driver's name for it.
    pub identity: String,
    /// Seconds without feeding after which the machine is reset.
    pub timeout_s: u32,
    /// The driver's boot status flags; bit 5 (32) = the last reset came from this watchdog.
    pub boot_status: u32,
}

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesystemInfo {
    /// The device node or the kind of file system.
    pub device: String,
    /// Bytes that files could take in all.
    pub size_bytes: u64,
    /// Bytes that are taken.
    pub used_bytes: u64,
}

/// Memory as `/proc/meminfo` tells it, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryInfo {
    /// `MemTotal`.
    pub total_bytes: u64,
    /// `MemAvailable`.
    pub available_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::BootEnd;
    use crate::envelope::{decode, encode};

    /// The bytes of release 1, kept for ever: a change here is a change of the wire.
    #[test]
    fn requests_keep_their_bytes() {
        let cases: [(Request, &[u8]); 10] = [
            (Request::Services, b"\x01\x02\x01\0\x01\0\0\0\x00"),
            (Request::Log { service: None, lines: 200 }, b"\x01\x02\x01\0\x04\0\0\0\x01\x00\xc8\x01"),
            (
                Request::Log { service: Some("netd".into()), lines: 5 },
                b"\x01\x02\x01\0\x08\0\0\0\x01\x01\x04netd\x05",
            ),
            (Request::Reboot, b"\x01\x02\x01\0\x01\0\0\0\x02"),
            (Request::PowerOff, b"\x01\x02\x01\0\x01\0\0\0\x03"),
            (Request::Restart { service: "netd".into() }, b"\x01\x02\x01\0\x06\0\0\0\x04\x04netd"),
            (Request::SetHostname { name: "a1".into() }, b"\x01\x02\x01\0\x04\0\0\0\x05\x02a1"),
            (Request::System, b"\x01\x02\x01\0\x01\0\0\0\x06"),
            (Request::ReExec { path: Some("/i".into()) }, b"\x01\x02\x01\0\x05\0\0\0\x07\x01\x02/i"),
            (Request::Boot, b"\x01\x02\x01\0\x01\0\0\0\x08"),
        ];
        for (message, bytes) in cases {
            assert_eq!(encode(&message), bytes, "{message:?}");
            assert_eq!(decode::<Request>(bytes).as_ref(), Ok(&message));
        }
    }

    fn row(state: ServiceState, last_exit: Option<LastExit>) -> ServiceRow {
        ServiceRow {
            name: "netd".into(),
            state,
            detail: "w".into(),
            pid: Some(7),
            restarts: 1,
            since_s: 300,
            last_exit,
        }
    }

    #[test]
    fn replies_keep_their_bytes() {
        let system = SystemInfo {
            uptime_ms: 1,
            boot_id: "b".into(),
            hostname: "a1".into(),
            kernel: "6".into(),
            release: "r".into(),
            watchdog: Some(WatchdogInfo { identity: "i".into(), timeout_s: 30, boot_status: 32 }),
            state: Some(FilesystemInfo { device: "d".into(), size_bytes: 2, used_bytes: 1 }),
            memory: MemoryInfo { total_bytes: 4, available_bytes: 3 },
        };
        let boot = BootInfo {
            count: 9,
            boot_id: "b".into(),
            slot: "A".into(),
            history: vec![BootEntry { count: 8, slot: "B".into(), ran_s: 60, ended: BootEnd::Panic }],
            watchdog_resets: 1,
            machine_id: "m".into(),
            machine_id_from: "f".into(),
            seed: "s".into(),
            clock: "c".into(),
            last_fault: Some(Fault { count: 8, text: "x".into() }),
            not_recorded: String::new(),
        };
        let cases: [(Reply, &[u8]); 7] = [
            (
                Reply::Services(vec![row(ServiceState::Ready, None)]),
                b"\x02\x02\x01\0\x10\0\0\0\x00\x01\x04netd\x02\x01w\x01\x07\x01\xac\x02\x00",
            ),
            (
                Reply::Services(vec![
                    row(ServiceState::Backoff, Some(LastExit::Code(-1))),
                    row(ServiceState::Refused, Some(LastExit::NotStarted("x".into()))),
                ]),
                b"\x02\x02\x01\0\x23\0\0\0\x00\x02\
                  \x04netd\x04\x01w\x01\x07\x01\xac\x02\x01\x00\x01\
                  \x04netd\x07\x01w\x01\x07\x01\xac\x02\x01\x02\x01x",
            ),
            (
                Reply::Log(vec![LogLine { at_ms: 1500, text: "up".into() }]),
                b"\x02\x02\x01\0\x07\0\0\0\x01\x01\xdc\x0b\x02up",
            ),
            (Reply::Accepted, b"\x02\x02\x01\0\x01\0\0\0\x02"),
            (
                Reply::System(system),
                b"\x02\x02\x01\0\x17\0\0\0\x03\x01\x01b\x02a1\x016\x01r\x01\x01i\x1e\x20\x01\x01d\x02\x01\x04\x03",
            ),
            (Reply::Refused { reason: "no".into() }, b"\x02\x02\x01\0\x04\0\0\0\x04\x02no"),
            (
                Reply::Boot(boot),
                b"\x02\x02\x01\0\x1a\0\0\0\x05\x09\x01b\x01A\x01\x08\x01B\x3c\x03\x01\x01m\x01f\x01s\x01c\
                  \x01\x08\x01x\x00",
            ),
        ];
        for (message, bytes) in cases {
            assert_eq!(encode(&message), bytes, "{message:?}");
            assert_eq!(decode::<Reply>(bytes).as_ref(), Ok(&message));
        }
    }

    #[test]
    fn the_largest_replies_fit_a_packet() {
        let line = LogLine { at_ms: u64::MAX, text: String::new() };
        // A whole ring of 64 KiB in the most lines a request may ask for.
        let mut lines = vec![line; LOG_LINES_MAX.into()];
        lines[0].text = "x".repeat(64 * 1024);
        assert!(encode(&Reply::Log(lines)).len() <= PACKET_MAX);
        let mut widest = row(ServiceState::Refused, Some(LastExit::NotStarted("x".repeat(DETAIL_MAX))));
        widest.name = "n".repeat(SERVICE_NAME_MAX);
        widest.detail = "d".repeat(DETAIL_MAX);
        assert!(encode(&Reply::Services(vec![widest; 128])).len() <= PACKET_MAX);
    }
}
