//! init's control protocol: what `keel` and provisiond ask of PID 1 over `/run/evenkeel/init.sock`.
//!
//! The socket is `SOCK_SEQPACKET`: one packet holds one [`Request`], the answer is one packet with one [`Reply`].
//! A client may send several requests over one connection, one after the other; init closes a connection that
//! stays silent. Only uid 0 is served. Requests that change something are answered *before* the change happens,
//! so that the answer to a reboot still reaches its client.
//!
//! Two requests differ. [`Request::FenceFeed`] has no answer: it is sent every beat, over the connection that
//! registered (`docs/decisions/0007-fence-protocol.md`). [`Request::KeepMemory`] carries one descriptor; a packet with
//! a descriptor that is anything else is refused and ends the connection.
//!
//! Every string is bounded by a constant of this module; init cuts what it sends and refuses what it gets.

use core::net::IpAddr;

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
/// Most addresses one fence request carries: they fit a request, and more go into further requests.
pub const FENCE_BATCH_MAX: usize = 128;
/// Most addresses registered at one time; as rows they fit one packet.
pub const FENCE_ADDRESSES_MAX: usize = 4096;
/// Most interfaces with registered addresses at one time.
pub const FENCE_INTERFACES_MAX: usize = 64;
/// Bytes of the longest interface name: the kernel's `IFNAMSIZ` without its NUL.
pub const INTERFACE_NAME_MAX: usize = 15;
/// How far ahead a fence deadline may lie, in nanoseconds: a lease is far shorter.
pub const FENCE_AHEAD_NS_MAX: u64 = 60_000_000_000;
/// Bytes of the largest memory that init keeps for a service: 4,096 grants and votes with room to spare.
pub const MEMORY_MAX: u64 = 1 << 20;

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
    /// by [`Reply::Accepted`] when the program has shown that it can. Connections, this one included, go along.
    ReExec { path: Option<String> },
    /// What init remembers of this boot and the ones before it. Answered by [`Reply::Boot`].
    Boot,
    /// Before adding addresses to an interface: should the caller not feed until `until_ns` (`CLOCK_BOOTTIME`), init
    /// kills it and deletes everything registered. Does what [`Request::FenceAdopt`] does as well. Registering an
    /// address again changes nothing. Only for the main process of a service with `fence = true`. Answered by
    /// [`Reply::Accepted`].
    FenceRegister { until_ns: u64, interface: InterfaceRef, addresses: FenceAddresses },
    /// The caller answers for what its former life registered, until `until_ns`, and feeds over this connection from
    /// now on. Callers and answer as for [`Request::FenceRegister`].
    FenceAdopt { until_ns: u64 },
    /// The caller answers for its addresses until `until_ns` (`CLOCK_BOOTTIME`), at most [`FENCE_AHEAD_NS_MAX`] from
    /// now. The last feed counts, also when it shortens the time. **Not answered**; over the connection that
    /// registered last, from any other it is nothing.
    FenceFeed { until_ns: u64 },
    /// After deleting addresses: they are no longer init's concern. Unknown ones are passed over. Answered by
    /// [`Reply::Accepted`].
    FenceRelease { index: u32, addresses: FenceAddresses },
    /// What is registered. Answered by [`Reply::Fence`].
    FenceState,
    /// Keep the memory whose descriptor comes with this packet, and pass it to the caller's next life as the
    /// descriptor named in `STORE_FD`; it replaces the one kept before. A memfd of at most [`MEMORY_MAX`] bytes with
    /// the seals `F_SEAL_SHRINK` and `F_SEAL_GROW`. Only for the main process of a service with
    /// `keeps_memory = true`. Answered by [`Reply::Accepted`].
    KeepMemory,
    /// What the watchdog's feeding depends on. Answered by [`Reply::Watch`].
    Watch,
    /// This boot is no trial any more: its slot is committed. Only for the main process of provisiond. Answered by
    /// [`Reply::Accepted`].
    EndTrial,
}

impl Message for Request {
    const KIND: u16 = crate::envelope::kind::CONTROL_REQUEST;
    const VERSION: u16 = 1;
    const MAX_LEN: usize = 4096;
}

/// An interface by both of its names: the index says which one is meant, the name finds it again when it was made
/// anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceRef {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name, at most [`INTERFACE_NAME_MAX`] bytes.
    pub name: String,
}

/// An address as it is on an interface. IPv6 deletes by address and prefix length, IPv4 by address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FenceAddress {
    /// The address.
    pub address: IpAddr,
    /// Its prefix length: at most 32 or 128.
    pub prefix: u8,
}

/// At most [`FENCE_BATCH_MAX`] addresses; a longer list does not decode, before memory is set aside for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FenceAddresses(Vec<FenceAddress>);

impl FenceAddresses {
    /// `addresses` in as many lists as their number takes.
    pub fn batches(addresses: &[FenceAddress]) -> impl Iterator<Item = FenceAddresses> {
        addresses.chunks(FENCE_BATCH_MAX).map(|c| FenceAddresses(c.to_vec()))
    }

    /// The addresses.
    pub fn as_slice(&self) -> &[FenceAddress] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for FenceAddresses {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<FenceAddresses, D::Error> {
        struct Bounded;
        impl<'de> serde::de::Visitor<'de> for Bounded {
            type Value = FenceAddresses;

            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "at most {FENCE_BATCH_MAX} addresses")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<FenceAddresses, A::Error> {
                let announced = seq.size_hint().unwrap_or(0);
                if announced > FENCE_BATCH_MAX {
                    return Err(serde::de::Error::invalid_length(announced, &self));
                }
                let mut addresses = Vec::with_capacity(announced);
                while let Some(address) = seq.next_element()? {
                    if addresses.len() == FENCE_BATCH_MAX {
                        return Err(serde::de::Error::invalid_length(FENCE_BATCH_MAX + 1, &self));
                    }
                    addresses.push(address);
                }
                Ok(FenceAddresses(addresses))
            }
        }
        from.deserialize_seq(Bounded)
    }
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
    /// The fence.
    Fence(FenceInfo),
    /// The watchdog's rules.
    Watch(WatchInfo),
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

/// The fence as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceInfo {
    /// What it is doing.
    pub state: FenceState,
    /// The service whose addresses these are.
    pub service: Option<String>,
    /// Milliseconds until the deadline, in the states that have one.
    pub left_ms: Option<u64>,
    /// Feeds heard since boot.
    pub feeds: u64,
    /// Interfaces the rows refer to by their place in this list.
    pub interfaces: Vec<InterfaceRef>,
    /// Registered addresses, by interface and address.
    pub rows: Vec<FenceRow>,
    /// The last time addresses were deleted.
    pub last: Option<FenceReport>,
}

/// What the fence is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FenceState {
    /// Nothing is registered.
    Idle,
    /// Addresses are registered and somebody feeds.
    Armed,
    /// Addresses are registered and their service's process is gone: its next life may adopt them until the deadline.
    Orphaned,
    /// The deadline was missed: the service was killed, its end is awaited.
    Killing,
    /// Addresses are being deleted; new ones are refused meanwhile.
    Deleting,
}

impl core::fmt::Display for FenceState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(match self {
            FenceState::Idle => "idle",
            FenceState::Armed => "armed",
            FenceState::Orphaned => "orphaned",
            FenceState::Killing => "killing",
            FenceState::Deleting => "deleting",
        })
    }
}

/// One registered address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceRow {
    /// The place of its interface in [`FenceInfo::interfaces`].
    pub interface: u8,
    /// The address.
    pub address: FenceAddress,
}

/// How addresses were deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceReport {
    /// Milliseconds since the kernel started, at the end.
    pub at_ms: u64,
    /// Addresses that were on an interface.
    pub deleted: u32,
    /// Addresses that were on none.
    pub absent: u32,
    /// Microseconds from the deadline to the last deletion.
    pub took_us: u64,
}

/// What the watchdog's feeding depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchInfo {
    /// What init does about the watchdog.
    pub state: WatchState,
    /// Why, in the states that have a reason; empty otherwise.
    pub reason: String,
    /// The watched services, in name order.
    pub rows: Vec<WatchRow>,
}

/// What init does about the watchdog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchState {
    /// It is fed whatever the services do: the slot is committed.
    Committed,
    /// It is fed while netd and provisiond make progress.
    Trial,
    /// It is not fed any more: the trial has failed and the machine will be reset.
    Withheld,
    /// It is fed; netd and provisiond are not started after too many resets.
    Degraded,
}

impl core::fmt::Display for WatchState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(match self {
            WatchState::Committed => "committed",
            WatchState::Trial => "trial",
            WatchState::Withheld => "withheld",
            WatchState::Degraded => "degraded",
        })
    }
}

/// One watched service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchRow {
    /// Its name.
    pub service: String,
    /// Milliseconds since its last progress: readiness, or a line after it.
    pub silent_ms: u64,
    /// Milliseconds it may be silent now; `None` when nothing is asked of it.
    pub limit_ms: Option<u64>,
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

    fn address(text: &str, prefix: u8) -> FenceAddress {
        FenceAddress { address: text.parse().unwrap(), prefix }
    }

    fn eth0() -> InterfaceRef {
        InterfaceRef { index: 300, name: "eth0".into() }
    }

    #[test]
    fn fence_requests_keep_their_bytes() {
        let addresses = FenceAddresses(vec![address("10.9.0.1", 32), address("fd09::1", 128)]);
        let cases: [(Request, &[u8]); 8] = [
            (
                Request::FenceRegister { until_ns: 300, interface: eth0(), addresses: addresses.clone() },
                b"\x01\x02\x01\0\x23\0\0\0\x09\xac\x02\xac\x02\x04eth0\x02\
                  \x00\x0a\x09\x00\x01\x20\x01\xfd\x09\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x80",
            ),
            (Request::FenceAdopt { until_ns: 300 }, b"\x01\x02\x01\0\x03\0\0\0\x0a\xac\x02"),
            (Request::FenceFeed { until_ns: 300 }, b"\x01\x02\x01\0\x03\0\0\0\x0b\xac\x02"),
            (
                Request::FenceRelease { index: 300, addresses },
                b"\x01\x02\x01\0\x1c\0\0\0\x0c\xac\x02\x02\
                  \x00\x0a\x09\x00\x01\x20\x01\xfd\x09\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x80",
            ),
            (Request::FenceState, b"\x01\x02\x01\0\x01\0\0\0\x0d"),
            (Request::KeepMemory, b"\x01\x02\x01\0\x01\0\0\0\x0e"),
            (Request::Watch, b"\x01\x02\x01\0\x01\0\0\0\x0f"),
            (Request::EndTrial, b"\x01\x02\x01\0\x01\0\0\0\x10"),
        ];
        for (message, bytes) in cases {
            assert_eq!(encode(&message), bytes, "{message:?}");
            assert_eq!(decode::<Request>(bytes).as_ref(), Ok(&message));
        }
    }

    #[test]
    fn fence_replies_keep_their_bytes() {
        let fence = FenceInfo {
            state: FenceState::Killing,
            service: Some("netd".into()),
            left_ms: Some(150),
            feeds: 2,
            interfaces: vec![eth0()],
            rows: vec![FenceRow { interface: 0, address: address("10.9.0.1", 32) }],
            last: Some(FenceReport { at_ms: 1, deleted: 2, absent: 3, took_us: 4 }),
        };
        let watch = WatchInfo {
            state: WatchState::Withheld,
            reason: "r".into(),
            rows: vec![WatchRow { service: "netd".into(), silent_ms: 5, limit_ms: Some(4) }],
        };
        let cases: [(Reply, &[u8]); 2] = [
            (
                Reply::Fence(fence),
                b"\x02\x02\x01\0\x21\0\0\0\x06\x03\x01\x04netd\x01\x96\x01\x02\x01\xac\x02\x04eth0\
                  \x01\x00\x00\x0a\x09\x00\x01\x20\x01\x01\x02\x03\x04",
            ),
            (Reply::Watch(watch), b"\x02\x02\x01\0\x0d\0\0\0\x07\x02\x01r\x01\x04netd\x05\x01\x04"),
        ];
        for (message, bytes) in cases {
            assert_eq!(encode(&message), bytes, "{message:?}");
            assert_eq!(decode::<Reply>(bytes).as_ref(), Ok(&message));
        }
    }

    #[test]
    fn a_fence_request_has_its_bounds() {
        let widest = address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 128);
        let request = |count| Request::FenceRegister {
            until_ns: u64::MAX,
            interface: InterfaceRef { index: u32::MAX, name: "n".repeat(INTERFACE_NAME_MAX) },
            addresses: FenceAddresses(vec![widest; count]),
        };
        let full = encode(&request(FENCE_BATCH_MAX));
        assert_eq!(decode::<Request>(&full), Ok(request(FENCE_BATCH_MAX)));
        assert!(decode::<Request>(&encode(&request(FENCE_BATCH_MAX + 1))).is_err());
        let lists: Vec<_> = FenceAddresses::batches(&[widest; FENCE_BATCH_MAX + 1]).collect();
        assert_eq!(lists.iter().map(|l| l.as_slice().len()).collect::<Vec<_>>(), [FENCE_BATCH_MAX, 1]);
        assert_eq!(FenceAddresses::batches(&[]).count(), 0);
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
        let address = address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 128);
        let name = "n".repeat(INTERFACE_NAME_MAX);
        let fence = FenceInfo {
            state: FenceState::Deleting,
            service: Some("n".repeat(SERVICE_NAME_MAX)),
            left_ms: Some(u64::MAX),
            feeds: u64::MAX,
            interfaces: vec![InterfaceRef { index: u32::MAX, name }; FENCE_INTERFACES_MAX],
            rows: vec![FenceRow { interface: 63, address }; FENCE_ADDRESSES_MAX],
            last: Some(FenceReport {
                at_ms: u64::MAX,
                deleted: u32::MAX,
                absent: u32::MAX,
                took_us: u64::MAX,
            }),
        };
        assert!(encode(&Reply::Fence(fence)).len() <= PACKET_MAX);
    }
}
