//! What a technician sees, as tables.

use super::*;
use proto::control::{
    FenceAddress, FenceReport, FenceRow, FilesystemInfo, InterfaceRef, LastExit, MemoryInfo, WatchdogInfo,
};

const NOW: u64 = 3_725_000;

fn vip(name: &str, address: &str, group: &str, holder: &str, next: &str) -> VipRow {
    VipRow {
        name: name.into(),
        address: address.into(),
        group: group.into(),
        network: "data".into(),
        state: if holder.is_empty() { "down" } else { "active" }.into(),
        holder: holder.into(),
        epoch: 3,
        since_ms: 60_000,
        home: "a1:p1".into(),
        next: next.into(),
        note: String::new(),
    }
}

fn port(name: &str, operative: bool, reason: &str) -> PortRow {
    PortRow {
        name: name.into(),
        interface: "eth0".into(),
        mac: "52:54:00:09:00:0a".into(),
        network: "data".into(),
        operative,
        reason: reason.into(),
        carrier: operative,
        address: String::new(),
    }
}

fn peer(node: &str, alive: bool, last_heard_ms: u64) -> PeerRow {
    PeerRow { node: node.into(), alive, last_heard_ms, address: "10.8.0.12".into() }
}

fn service(name: &str, state: ServiceState) -> ServiceRow {
    ServiceRow {
        name: name.into(),
        state,
        detail: String::new(),
        pid: Some(77),
        restarts: 0,
        since_s: 3700,
        last_exit: None,
    }
}

fn system() -> SystemInfo {
    SystemInfo {
        uptime_ms: NOW,
        boot_id: "3d0a5a0e-0000-4000-8000-000000000000".into(),
        hostname: "a1".into(),
        kernel: "6.12.48".into(),
        release: "product = \"Evenkeel\"\nversion = \"0.1.0\"\nflavour = \"cloud\"\nkernel = \"6.12\"\n"
            .into(),
        watchdog: Some(WatchdogInfo { identity: "i6300ESB".into(), timeout_s: 30, boot_status: 0 }),
        state: Some(FilesystemInfo {
            device: "/dev/vda7".into(),
            size_bytes: 512 << 20,
            used_bytes: 17 << 20,
        }),
        memory: MemoryInfo { total_bytes: 256 << 20, available_bytes: 128 << 20 },
    }
}

fn watch(state: WatchState, reason: &str) -> WatchInfo {
    WatchInfo { state, reason: reason.into(), rows: Vec::new() }
}

/// The demo cluster as its widest member sees it: four nodes, six VIPs, a silent peer.
fn demo() -> Overview {
    Overview {
        provision: Some(StateRow {
            node: "a1".into(),
            cluster: "demo".into(),
            group: "east".into(),
            pair: "a".into(),
            public_key: "ab".repeat(32),
            config_digest: "1f2e3d4c".repeat(8),
            boot_count: 12,
            boot_id: "3d0a5a0e".into(),
            previous_boot_id: String::new(),
            personality_source: "state".into(),
            version: "0.1.0".into(),
            error: String::new(),
        }),
        net: Some(NetState {
            ports: vec![port("m", true, ""), port("p1", true, ""), port("p2", false, "no carrier")],
            vips: vec![
                vip("data6", "fd09::100", "east", "a1:p1", "b1:p1"),
                vip("files", "10.9.0.103", "west", "b2:p2", "a2:p1"),
                vip("mail", "10.9.0.102", "west", "a2:p1", "a2:p2"),
                vip("ntp", "10.9.0.104", "east", "", ""),
                vip("web", "10.9.0.100", "east", "a1:p1", "a1:p2"),
                vip("web2", "10.9.0.101", "east", "b1:p1", "b1:p2"),
            ],
            peers: vec![peer("a2", true, NOW), peer("b1", true, NOW), peer("b2", false, NOW - 12_000)],
        }),
        system: Some(system()),
        services: Some(
            ["agent", "console", "netd", "provisiond"]
                .map(|name| service(name, ServiceState::Ready))
                .into_iter()
                .chain([service("web", ServiceState::Backoff)])
                .collect(),
        ),
        watch: Some(watch(WatchState::Committed, "")),
    }
}

fn assert_fits(text: &str) {
    assert!(text.lines().count() <= 20, "{} lines\n{text}", text.lines().count());
    assert!(text.len() <= 1000, "{} bytes\n{text}", text.len());
    for line in text.lines() {
        assert!(line.chars().count() <= 78, "{line}");
    }
}

#[test]
fn the_demo_cluster_fits_a_serial_screen() {
    let text = state(&demo(), NOW);
    assert_fits(&text);
    let expected = "\
node a1  cluster demo, group east, pair a
boot 12, configuration 1f2e3d4c
release 0.1.0 (cloud), up 1h02m, watchdog 30s
used: STATE 17 MiB of 512 MiB, memory 128 MiB of 256 MiB
ports m up, p1 up, p2 no carrier
peers b2 silent 12s, a2 up, b1 up
VIP    ADDRESS     STATE   HOLDER  NEXT   SINCE
data6  fd09::100   active  a1:p1   b1:p1  1h01m
files  10.9.0.103  active  b2:p2   a2:p1  1h01m
mail   10.9.0.102  active  a2:p1   a2:p2  1h01m
ntp    10.9.0.104  down    -              1h01m
web    10.9.0.100  active  a1:p1   a1:p2  1h01m
web2   10.9.0.101  active  b1:p1   b1:p2  1h01m
services 4 ready, web back-off
";
    assert_eq!(text, expected);
}

#[test]
fn a_node_that_will_not_serve_says_why() {
    let reset = "the watchdog has reset the machine 3 times within ten running minutes: netd and provisiond are \
                 not started; look at the log, then run \"reboot\"";
    let cases = [
        (WatchState::Committed, "", ""),
        (WatchState::Trial, "", ""),
        (
            WatchState::Withheld,
            "netd made no progress for 2 s of the trial",
            "watchdog withheld, the machine will be reset: netd made no progress for 2 s of
  the trial
",
        ),
        (
            WatchState::Degraded,
            reset,
            "degraded: the watchdog has reset the machine 3 times within ten running
  minutes: netd and provisiond are not started; look at the log, then run
  \"reboot\"
",
        ),
    ];
    for (state_of_it, reason, expected) in cases {
        let alone = Overview { watch: Some(watch(state_of_it, reason)), ..Overview::default() };
        assert_eq!(state(&alone, NOW), expected);
        assert_fits(&state(&Overview { system: Some(system()), ..alone }, NOW));
    }
}

#[test]
fn a_large_cluster_stays_within_the_screen_and_shows_what_is_wrong() {
    let mut overview = demo();
    let net = overview.net.as_mut().expect("the demo has netd");
    net.vips = (0..300)
        .map(|i| vip(&format!("vip-{i:03}"), "2001:db8:ffff::1234", "g", "n31:p1", "n30:p1"))
        .collect();
    net.vips[250].note = "10.9.0.104 is also answered by 52:54:00:ff:ff:ff".into();
    net.vips[280].holder.clear();
    net.peers = (0..31).map(|i| peer(&format!("node-{i:02}"), i != 17, 5)).collect();
    net.ports = (0..40).map(|i| port(&format!("p{i}"), true, "")).collect();
    let text = state(&overview, NOW);
    assert!(text.lines().count() <= 20, "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 78), "{text}");
    for needle in ["vip-250", "vip-280", "node-17 silent", "291 more; \"show vips\" lists all", " more\n"] {
        assert!(text.contains(needle), "{needle} in\n{text}");
    }
}

#[test]
fn a_node_without_anything_says_what_it_knows() {
    assert_eq!(state(&Overview::default(), NOW), "");
    let bare = Overview {
        provision: Some(StateRow {
            error: "no personality: no SMBIOS strings".into(),
            ..StateRow::default()
        }),
        system: Some(SystemInfo { release: String::new(), watchdog: None, state: None, ..system() }),
        net: Some(NetState::default()),
        services: Some(Vec::new()),
        watch: None,
    };
    let expected = "\
node (no name)
error: no personality: no SMBIOS strings
release unknown, up 1h02m, no watchdog
used: no STATE, memory 128 MiB of 256 MiB
services 0 ready
";
    assert_eq!(state(&bare, NOW), expected);
}

#[test]
fn ports_tell_why() {
    let mut own = port("m", true, "");
    own.address = "10.8.0.11/24".into();
    let mut missing = port("p2", false, "no interface at pci:00:11.0");
    (missing.interface, missing.mac) = (String::new(), String::new());
    let expected = "\
PORT  LINK  NETWORK  CARRIER  STATE                            MAC                ADDRESS
m     eth0  data     yes      operative                        52:54:00:09:00:0a  10.8.0.11/24
p2    -     data     no       no: no interface at pci:00:11.0
";
    assert_eq!(ports(&[own, missing]), expected);
    assert_eq!(ports(&[]), "no ports are configured\n");
}

#[test]
fn vips_tell_where_they_would_go() {
    let mut noted = vip("web", "10.9.0.100", "east", "", "");
    noted.note = "waits for a claim".into();
    let expected = "\
VIP  ADDRESS     GROUP  STATE   HOLDER  NEXT   HOME   MOVES  SINCE  NOTE
ntp  10.9.0.101  east   active  a1:p1   b1:p1  a1:p1  3      1h01m
web  10.9.0.100  east   down    -       -      a1:p1  3      1h01m  waits for a claim
";
    assert_eq!(vips(&[vip("ntp", "10.9.0.101", "east", "a1:p1", "b1:p1"), noted], NOW), expected);
}

#[test]
fn peers_tell_when_they_were_heard() {
    let expected = "\
NODE  STATE         ADDRESS
a2    up            10.8.0.12
b1    silent 1h02m  10.8.0.12
b2    never heard   10.8.0.12
";
    assert_eq!(peers(&[peer("a2", true, 3), peer("b1", false, 1), peer("b2", false, 0)], NOW), expected);
}

#[test]
fn services_tell_how_they_ended() {
    let mut web = service("web", ServiceState::Backoff);
    web.pid = None;
    web.restarts = 4;
    web.last_exit = Some(LastExit::Signal(9));
    web.detail = "next start in 8 s".into();
    let expected = "\
SERVICE  STATE     SINCE  PID  RESTARTS  LAST END  DETAIL
netd     ready     1h01m  77   0
web      back-off  1h01m       4         signal 9  next start in 8 s
";
    assert_eq!(services(&[service("netd", ServiceState::Ready), web]), expected);
}

#[test]
fn logs_cannot_steer_the_terminal() {
    let lines = [(1_500, "up\tagain"), (3_600_123, "\u{1b}[2Jgone\u{7}")]
        .map(|(at_ms, text)| LogLine { at_ms, text: text.into() });
    assert_eq!(log(&lines), "[     1.500] up again\n[  3600.123] ?[2Jgone?\n");
    assert_eq!(log(&[]), "nothing was written so far\n");
}

#[test]
fn versions_and_banners() {
    let release = Release::parse(&system().release);
    let own = env!("CARGO_PKG_VERSION");
    assert_eq!(version(&release), format!("Evenkeel 0.1.0 (cloud)\nkernel 6.12\nkeel {own}\n"));
    assert_eq!(banner("a1", &release), "Evenkeel 0.1.0 (cloud), a1. Type \"help\".\n");
    let none = Release::parse("[table]\nversion = \"9\"\n");
    assert_eq!(version(&none), format!("Evenkeel unknown\nkeel {own}\n"));
    assert_eq!(banner("", &none), "Evenkeel unknown, a node without a name. Type \"help\".\n");
    assert_eq!(banner("a\u{1b}c", &none), "Evenkeel unknown, a?c. Type \"help\".\n");
}

#[test]
fn boots_the_latest_first_and_the_unknown_said() {
    use proto::boot::{Action, BootEnd, BootEntry, Fault};
    use proto::control::BootInfo;
    let entry = |count, ended| BootEntry { count, slot: "SLOT-A".into(), ran_s: 60, ended };
    let by = "the power\u{1b}button".to_owned();
    let info = BootInfo {
        count: 3,
        boot_id: "b".into(),
        slot: "SLOT-A".into(),
        history: vec![
            entry(1, BootEnd::Orderly { action: Action::PowerOff, by }),
            entry(2, BootEnd::Watchdog),
        ],
        watchdog_resets: 1,
        machine_id: "ab".into(),
        machine_id_from: "SMBIOS".into(),
        seed: "credited".into(),
        clock: "plausible".into(),
        last_fault: Some(Fault { count: 1, text: "SIGSEGV".into() }),
        not_recorded: String::new(),
    };
    let text = "boot      number 3 from slot SLOT-A, id b\n\
        before    2 ran 60 s: watchdog\n\
        before    1 ran 60 s: power-off, asked for by the power?button\n\
        resets    1 by the watchdog in the last 10 running minutes\n\
        fault     in boot 1: SIGSEGV\n\
        machine   ab from SMBIOS\n\
        seed      credited\n\
        clock     plausible\n";
    assert_eq!(boot(&info), text);
    let nothing = BootInfo { not_recorded: "no answer".into(), ..BootInfo::default() };
    let text = boot(&nothing);
    assert!(
        text.starts_with(
            "boot      number unknown from slot unknown, id unknown\nrecord    not kept on STATE: no answer\n"
        ),
        "{text}"
    );
}

#[test]
fn fenced_addresses_have_a_line_each() {
    let interface = |name: &str| InterfaceRef { index: 2, name: name.into() };
    let row = |interface, address: &str, prefix| {
        let address = FenceAddress { address: address.parse().expect("a literal"), prefix };
        FenceRow { interface, address }
    };
    let mut info = FenceInfo {
        state: FenceState::Armed,
        service: Some("netd".into()),
        left_ms: Some(1987),
        feeds: 4711,
        interfaces: vec![interface("eth0"), interface("eth1")],
        rows: vec![row(0, "10.9.0.100", 32), row(1, "fd09::100", 128)],
        last: None,
    };
    assert_eq!(
        fence(&info, NOW),
        "ADDRESS        LINK  LEFT   STATE  SERVICE\n\
         10.9.0.100/32  eth0  1.9 s  armed  netd\n\
         fd09::100/128  eth1  1.9 s  armed  netd\n\
         fed 4711 times since boot\n"
    );
    let widest = row(0, "2001:db8:1111:2222:3333:4444:5555:6666", 128);
    info.interfaces[0].name = "fifteen-letters".into();
    info.service = Some("s".repeat(32));
    info.rows = vec![widest];
    info.last = Some(FenceReport { at_ms: NOW - 61_000, deleted: u32::MAX, absent: 1, took_us: u64::MAX });
    for line in fence(&info, NOW).lines() {
        assert!(line.chars().count() <= 78, "{line}");
    }
    info.state = FenceState::Idle;
    info.rows.clear();
    info.last = Some(FenceReport { at_ms: NOW - 61_000, deleted: 2, absent: 1, took_us: 4200 });
    assert_eq!(
        fence(&info, NOW),
        "no addresses are registered\nfed 4711 times since boot\n\
         1m01s ago: 2 deleted, 1 were not there, 5 ms after the deadline\n"
    );
}
