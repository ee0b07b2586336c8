//! The fence and kept memory, with addresses on the loopback interface of a network namespace.
//!
//! The service is this very program: [`service`] does what `ROLE` says, and nothing when it runs as a test.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Init, NOTIFY, PATIENCE, exchange};
use daemon::fence::Fence;
use nix::sys::signal::{Signal, raise};
use nix::time::{ClockId, clock_gettime};
use proto::control::{FenceAddress, FenceInfo, FenceState, InterfaceRef, Reply, Request};
use proto::envelope;
use proto::time::Time;
use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, Ipv6Addr};

const V4: u32 = 900;
const V6: u16 = 100;
/// As in the preset for a LAN.
const LEASE: Duration = Duration::from_millis(150);
const BEAT: Duration = Duration::from_millis(20);
/// Long enough for a restart on a busy machine.
const LONG_LEASE: Duration = Duration::from_secs(5);
/// Long enough for another init to take over on a busy machine.
const LONGEST_LEASE: Duration = Duration::from_secs(10);
/// What is in the kept memory.
const KEPT: &[u8] = b"leases of the first life";

fn lo() -> InterfaceRef {
    InterfaceRef { index: 1, name: "lo".into() }
}

fn addresses() -> Vec<FenceAddress> {
    let v4 = (1..=V4).map(|n| (Ipv4Addr::from(0x0a09_0000 + n).into(), 32));
    let v6 = (1..=V6).map(|n| (Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, n).into(), 128));
    v4.chain(v6).map(|(address, prefix)| FenceAddress { address, prefix }).collect()
}

fn after(time: Duration) -> Time {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap();
    Time::ZERO + Duration::from(now) + time
}

/// Adds addresses to lo, which is all that netd does here.
fn add(addresses: &[FenceAddress]) {
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut orders = "link set lo up\n".to_owned();
    for FenceAddress { address, prefix } in addresses {
        orders.push_str(&format!("addr add {address}/{prefix} dev lo\n"));
    }
    ip.stdin.take().unwrap().write_all(orders.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success());
}

/// Not a test: the service of the tests below.
#[test]
fn service() {
    let Ok(role) = std::env::var("ROLE") else { return };
    let directory = PathBuf::from(std::env::var("D").unwrap());
    let socket = directory.join("run/init.sock");
    let first = !directory.join("lived").exists();
    fs::write(directory.join("lived"), "").unwrap();
    let fence = Fence::connect(&socket).unwrap();
    let progress = daemon::Readiness::from_environment();
    // Nobody wakes it: this is how it waits.
    let beat = || std::thread::park_timeout(BEAT);
    match (role.as_str(), first) {
        ("hangs", true) => {
            fence.register(after(LONG_LEASE), &lo(), &addresses()).unwrap();
            add(&addresses());
            let _progress = progress.tell();
            while !directory.join("hang").exists() {
                fence.feed(after(LEASE)).unwrap();
                beat();
            }
            raise(Signal::SIGSTOP).unwrap();
        }
        ("falls-silent", true) => {
            fence.register(after(LONGEST_LEASE), &lo(), &addresses()).unwrap();
            add(&addresses());
            let _progress = progress.tell();
            while !directory.join("hang").exists() {
                fence.feed(after(LONGEST_LEASE)).unwrap();
                beat();
            }
            let until = after(LONGEST_LEASE);
            fence.feed(until).unwrap();
            fs::write(directory.join("until"), format!("{}\n", until.as_nanos())).unwrap();
            raise(Signal::SIGSTOP).unwrap();
        }
        ("crashes" | "keeps", true) => {
            fence.register(after(LONG_LEASE), &lo(), &addresses()).unwrap();
            add(&addresses());
            assert!(daemon::memory::inherited().is_none());
            let mut memory = daemon::memory::new(4096).unwrap();
            memory.write_all(KEPT).unwrap();
            daemon::memory::keep(&socket, &memory).unwrap();
            if role == "crashes" {
                raise(Signal::SIGKILL).unwrap();
            }
            let _progress = progress.tell();
            loop {
                fence.feed(after(LONG_LEASE)).unwrap();
                beat();
            }
        }
        ("crashes" | "keeps", false) => {
            let found = fence.state().unwrap();
            assert_eq!((found.state, found.rows.len()), (FenceState::Orphaned, addresses().len()));
            fence.adopt(after(LEASE)).unwrap();
            let mut memory = daemon::memory::inherited().unwrap();
            let mut text = vec![0; KEPT.len()];
            memory.rewind().unwrap();
            memory.read_exact(&mut text).unwrap();
            assert_eq!(text, KEPT);
            let until = Instant::now() + 4 * LEASE;
            while Instant::now() < until {
                fence.feed(after(LEASE)).unwrap();
                beat();
            }
            // One that it gives up, and then silence.
            fence.release(1, &addresses()[..1]).unwrap();
            let _progress = progress.tell();
            loop {
                beat();
            }
        }
        _ => {
            let _progress = progress.tell();
            loop {
                beat();
            }
        }
    }
}

fn start(role: &str) -> Init {
    let program = std::env::current_exe().unwrap();
    let script = format!("ROLE={role} exec {} service --exact --nocapture 2>&1", program.display());
    let keys = format!("{NOTIFY}\nfence = true\nkeeps_memory = true");
    Init::start_alone(&format!("fence-{role}"), "netd", &keys, &script)
}

impl Init {
    /// How many of [`addresses`] the kernel of the namespace answers for.
    fn answered(&self) -> usize {
        let net = format!("/proc/{}/net", self.pid());
        let v4 = fs::read_to_string(format!("{net}/fib_trie")).unwrap();
        let mut local = std::collections::BTreeSet::new();
        let mut last = "";
        for line in v4.lines().map(str::trim) {
            if line.ends_with("/32 host LOCAL") && last.contains("10.9.") {
                local.insert(last);
            }
            last = line;
        }
        let v6 = fs::read_to_string(format!("{net}/if_inet6")).unwrap_or_default();
        local.len() + v6.lines().filter(|l| l.starts_with("fd09")).count()
    }

    /// Nanoseconds of processor time that init has used.
    fn processor_ns(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", self.pid())).unwrap();
        text.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Waits until more than `feeds` were heard; how many were.
    fn fed_beyond(&self, feeds: u64) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let heard = self.fence().feeds;
            if heard > feeds {
                return heard;
            }
            assert!(Instant::now() < deadline, "no feed is heard: {heard}");
            std::thread::park_timeout(BEAT);
        }
    }

    fn fence(&self) -> FenceInfo {
        match self.ask(&Request::FenceState) {
            Reply::Fence(info) => info,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_hanging_netd_is_killed_and_its_addresses_are_gone() {
    let mut init = start("hangs");
    init.wait_for("netd: ready");
    let all = addresses().len();
    let info = init.fence();
    assert_eq!((info.state, info.service.as_deref()), (FenceState::Armed, Some("netd")));
    assert_eq!((info.rows.len(), init.answered()), (all, all));
    let first = init.row("netd").pid;
    let used = init.processor_ns();
    // The figure is for feeds alone: nobody asks meanwhile.
    std::thread::park_timeout(100 * BEAT);
    let used = init.processor_ns() - used;
    let feeds = init.fence().feeds - info.feeds;
    assert!(feeds > 0);
    eprintln!("init: {} us for {feeds} feeds", used / 1000);
    let used = init.processor_ns();
    fs::write(init.directory.join("hang"), "").unwrap();
    init.wait_for("netd: has missed its fence deadline");
    init.wait_for(&format!("fence: {all} addresses deleted, 0 were not there"));
    eprintln!("init: {} us from the last feeds to the last deletion", (init.processor_ns() - used) / 1000);
    assert_eq!(init.answered(), 0);
    init.wait_for("netd: ended (signal 9), starting again at once");
    let info = init.fence();
    let report = info.last.unwrap();
    eprintln!("fence: {} us from the deadline to the last deletion", report.took_us);
    assert_eq!((info.state, info.rows.len(), report.deleted as usize), (FenceState::Idle, 0, all));
    if init.seen.iter().filter(|l| l.contains("netd: ready")).count() < 2 {
        init.seen.clear();
        init.wait_for("netd: ready");
    }
    assert_ne!(init.row("netd").pid, first);
}

#[test]
fn a_crashed_netd_finds_its_addresses_and_its_memory() {
    let mut init = start("crashes");
    init.wait_for("netd: 4096 bytes of memory are kept for its next life");
    init.wait_for("netd: ended (signal 9), starting again at once");
    // Told by the second life after it has fed for several leases.
    init.wait_for("netd: ready");
    assert!(!init.seen.iter().any(|l| l.contains("fence")), "{}", init.seen.join("\n"));
    // Then it falls silent: what it has released is no concern of init's.
    let left = addresses().len() - 1;
    init.wait_for(&format!("fence: {left} addresses deleted, 0 were not there"));
    assert_eq!(init.answered(), 1);
}

/// The service feeds over one connection all the time, and its last deadline runs out in another program.
#[test]
fn a_deadline_runs_out_at_its_instant_after_another_init_took_over() {
    let mut init = start("falls-silent");
    init.wait_for("netd: ready");
    let all = addresses().len();
    let (pid, mut feeds) = (init.row("netd").pid, 0);
    for _ in 0..3 {
        init.hand_over();
        let before = feeds;
        feeds = init.fed_beyond(before);
    }
    let info = init.fence();
    assert_eq!((info.state, info.rows.len(), init.answered()), (FenceState::Armed, all, all));
    assert_eq!((init.row("netd").pid, init.row("netd").restarts), (pid, 0));
    assert!(!init.seen.iter().any(|l| l.contains("fence")), "{}", init.seen.join("\n"));

    fs::write(init.directory.join("hang"), "").unwrap();
    let until: u64 = init.wait_for_file("until", |text| text.strip_suffix('\n')?.parse().ok());
    init.hand_over();
    let info = init.fence();
    assert_eq!((info.state, info.rows.len()), (FenceState::Armed, all), "its deadline runs");
    init.wait_for("netd: has missed its fence deadline");
    init.wait_for(&format!("fence: {all} addresses deleted, 0 were not there"));
    assert_eq!(init.answered(), 0);
    let report = init.fence().last.unwrap();
    // Both are cut to their unit.
    let deadline = report.at_ms * 1000 - report.took_us;
    assert!(deadline.abs_diff(until / 1000) <= 1000, "{deadline} us, and not {} us", until / 1000);
    init.wait_for("netd: ended (signal 9), starting again at once");
}

#[test]
fn kept_memory_is_found_after_another_init_took_over() {
    let mut init = start("keeps");
    init.wait_for("netd: ready");
    // One connection for everything: others would come and go in the list.
    let client = init.connect();
    let ask = |request| exchange(&client, &envelope::encode(&request));
    let fence = || match ask(Request::FenceState) {
        Reply::Fence(info) => (info.state, info.rows.len()),
        other => panic!("{other:?}"),
    };
    assert_eq!(fence(), (FenceState::Armed, addresses().len()));
    let open = init.open_files();
    assert!(open.keys().any(|name| name.contains("memfd:kept")), "{open:?}");
    for _ in 0..2 {
        init.hand_over_as(&client);
        assert_eq!(fence(), (FenceState::Armed, addresses().len()), "over the same connection");
        assert_eq!(init.open_files(), open, "nothing closed, nothing left behind");
    }
    assert_eq!(ask(Request::Restart { service: "netd".into() }), Reply::Accepted);
    init.wait_for("netd: ended (signal 15), starting again as asked");
    // Told by the second life, which has found both and has fed for several leases.
    init.seen.clear();
    init.wait_for("netd: ready");
    let left = addresses().len() - 1;
    init.wait_for(&format!("fence: {left} addresses deleted, 0 were not there"));
    assert_eq!(init.answered(), 1);
}

#[test]
fn only_the_service_may_register_and_keep() {
    let mut init = start("idle");
    init.wait_for("netd: ready");
    let addresses = proto::control::FenceAddresses::batches(&addresses()).next().unwrap();
    let until_ns = after(LEASE).as_nanos();
    let requests = [
        (Request::FenceRegister { until_ns, interface: lo(), addresses: addresses.clone() }, "fence = true"),
        (Request::FenceAdopt { until_ns }, "fence = true"),
        (Request::FenceRelease { index: 1, addresses }, "fence = true"),
        (Request::KeepMemory, "keeps_memory = true"),
        (Request::EndTrial, "main process of provisiond"),
    ];
    for (request, words) in requests {
        let reply = init.ask(&request);
        assert!(matches!(&reply, Reply::Refused { reason } if reason.contains(words)), "{reply:?}");
    }
    assert_eq!(init.fence().state, FenceState::Idle);
}

#[test]
fn a_service_without_signs_of_life_is_killed_and_started_again() {
    let mut init = Init::start(
        "silent",
        &[
            ("silent", &format!("{NOTIFY}\nwatchdog_s = 1"), "echo >&$NOTIFY_FD; exec sleep 100"),
            ("lively", &format!("{NOTIFY}\nwatchdog_s = 1"), "while echo >&$NOTIFY_FD; do sleep 0.1; done"),
        ],
    );
    init.wait_for("silent: no sign of life for 1 s, killing it");
    init.wait_for("silent: ended (signal 9), starting again at once");
    init.seen.clear();
    init.wait_for("silent: ready");
    assert_eq!(init.row("lively").restarts, 0);
    let Reply::Watch(info) = init.ask(&Request::Watch) else { panic!("no answer") };
    let limits: Vec<_> = info.rows.iter().map(|r| (r.service.as_str(), r.limit_ms)).collect();
    assert_eq!(limits, [("lively", Some(1000)), ("silent", Some(1000))]);
}
