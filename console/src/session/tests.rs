//! Commands against daemons of our own making.

use super::*;
use crate::control::tests::fake_init;
use crate::testing::Dir;
use bus::net1::{PeerRow, VipRow};
use bus::provision1::ProvisionState;
use bus::{Interfaces, Server};
use proto::control::{
    FenceInfo, FenceState, LogLine, MemoryInfo, ServiceRow, ServiceState, SystemInfo, WatchInfo, WatchState,
};
use proto::envelope::encode;
use tokio::sync::{oneshot, watch};

fn places(dir: &Dir) -> Places {
    Places {
        netd: dir.path("netd"),
        provisiond: dir.path("provisiond"),
        init: dir.path("init.sock"),
        release: dir.path("release"),
        hostname: dir.path("hostname"),
    }
}

/// Runs `line` without anybody to ask; output, then what the failure says.
fn run(session: &Session, line: &str) -> (String, Option<String>) {
    let command = command::parse(&command::words(line)).expect("there are words").expect("it parses");
    let mut out = Vec::new();
    let outcome = session.run(&command, None, &mut out);
    (String::from_utf8(out).unwrap(), outcome.err().map(|e| e.to_string()))
}

/// netd and provisiond in a thread of their own, until dropped.
struct Daemons {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Daemons {
    fn start(places: &Places) -> Daemons {
        let netd = Server::bind(&places.netd).unwrap();
        let provisiond = Server::bind(&places.provisiond).unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let vip = VipRow { name: "web".into(), state: "down".into(), ..VipRow::default() };
            let peer = PeerRow { node: "b1".into(), ..PeerRow::default() };
            let state = NetState { vips: vec![vip], peers: vec![peer], ports: Vec::new() };
            let (_net, seen) = watch::channel(state);
            let net = Interfaces { net: Some(seen), ..Interfaces::default() };
            let row = StateRow { node: "a1".into(), ..StateRow::default() };
            let (_provision, seen) = watch::channel(ProvisionState { row, ..ProvisionState::default() });
            let provision = Interfaces { provision: Some(seen), ..Interfaces::default() };
            runtime.block_on(async {
                tokio::select! {
                    ended = netd.serve(net) => panic!("{ended:?}"),
                    ended = provisiond.serve(provision) => panic!("{ended:?}"),
                    _ = stopped => {}
                }
            });
        });
        Daemons { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the daemons' thread panicked");
        }
    }
}

#[test]
fn the_state_is_put_together_from_all_daemons() {
    let dir = Dir::new();
    let session = Session::new(places(&dir)).unwrap();
    let _daemons = Daemons::start(&session.places);
    let row = ServiceRow {
        name: "netd".into(),
        state: ServiceState::Ready,
        detail: String::new(),
        pid: None,
        restarts: 0,
        since_s: 1,
        last_exit: None,
    };
    let refused = Reply::Refused { reason: "not now".into() };
    let init = fake_init(
        &session.places.init,
        vec![
            Some(encode(&refused)),
            Some(encode(&Reply::Services(vec![row.clone()]))),
            Some(encode(&refused)),
        ],
    );
    let (out, failure) = run(&session, "show");
    assert_eq!(failure.as_deref(), Some("not now"));
    assert!(out.starts_with("node a1\npeers b1 never heard\nVIP"), "{out}");
    assert!(run(&session, "show services").0.contains("netd     ready"));
    assert_eq!(run(&session, "show vips").1, None);
    assert_eq!(run(&session, "show peers").0, "NODE  STATE\nb1    never heard\n");
    assert_eq!(run(&session, "show ports").0, "no ports are configured\n");
    assert_eq!(run(&session, "show log nope").1.as_deref(), Some("not now"));
    init.join().unwrap();
}

#[test]
fn the_state_tells_that_the_watchdog_is_withheld() {
    let dir = Dir::new();
    let session = Session::new(places(&dir)).unwrap();
    let system = SystemInfo {
        uptime_ms: 1,
        boot_id: String::new(),
        hostname: String::new(),
        kernel: String::new(),
        release: String::new(),
        watchdog: None,
        state: None,
        memory: MemoryInfo::default(),
    };
    let withheld =
        WatchInfo { state: WatchState::Withheld, reason: "netd is silent".into(), rows: Vec::new() };
    let replies = [Reply::System(system), Reply::Services(Vec::new()), Reply::Watch(withheld)];
    let init = fake_init(&session.places.init, replies.iter().map(|r| Some(encode(r))).collect());
    let (out, _daemons_are_missing) = run(&session, "show state");
    assert!(out.contains("watchdog withheld, the machine will be reset: netd is silent\n"), "{out}");
    assert_eq!(init.join().unwrap(), [Request::System, Request::Services, Request::Watch]);
}

#[test]
fn a_dead_daemon_is_named_with_the_next_step() {
    let dir = Dir::new();
    let session = Session::new(places(&dir)).unwrap();
    let at = session.places.netd.display();
    let (out, failure) = run(&session, "show vips");
    let expected =
        format!("netd does not answer on {at}: no such file or directory; see \"keel show services\"");
    assert_eq!((out.as_str(), failure), ("", Some(expected)));
    let (out, failure) = run(&session, "show state");
    let failure = failure.expect("everything is missing");
    assert_eq!((out.as_str(), failure.lines().count()), ("", 3), "{failure}");
}

#[test]
fn a_stuck_daemon_does_not_hold_a_command() {
    let dir = Dir::new();
    let session = Session::new(places(&dir)).unwrap();
    let _bound_but_not_served = Server::bind(&session.places.netd).unwrap();
    let began = std::time::Instant::now();
    let (_, failure) = run(&session, "show state");
    assert!(failure.expect("netd is missing").contains("no answer within 2s"));
    assert!(began.elapsed() < COMMAND_LIMIT);
}

#[test]
fn changes_are_asked_for_once_confirmed() {
    let dir = Dir::new();
    let session = Session::new(places(&dir)).unwrap();
    let accepted = || Some(encode(&Reply::Accepted));
    let init = fake_init(&session.places.init, vec![accepted(), accepted(), accepted()]);
    let mut answers = vec!["yes", "y", "no"];
    let mut asked = 0;
    let mut question = |text: &str| {
        assert_eq!(text, "really? (yes/no) ");
        asked += 1;
        answers.pop().map(str::to_owned)
    };
    for expected in [false, false, true, false] {
        let outcome = session.run(&Command::Reboot { yes: false }, Some(&mut question), &mut Vec::new());
        assert_eq!(outcome.is_ok(), expected, "{outcome:?}");
        assert!(expected || matches!(outcome, Err(Failure::Declined)));
    }
    // Nobody to ask, or told not to ask.
    assert_eq!(run(&session, "reboot").1, None);
    let told = session.run(&Command::PowerOff { yes: true }, Some(&mut question), &mut Vec::new());
    assert!(told.is_ok(), "{told:?}");
    assert_eq!(asked, 4, "--yes does not ask");
    assert_eq!(init.join().unwrap(), [Request::Reboot, Request::Reboot, Request::PowerOff]);
}

#[test]
fn logs_and_restarts() {
    let dir = Dir::new();
    let session = Session::new(places(&dir)).unwrap();
    let lines = vec![LogLine { at_ms: 1, text: "hello".into() }];
    let fence = FenceInfo {
        state: FenceState::Idle,
        service: None,
        left_ms: None,
        feeds: 3,
        interfaces: Vec::new(),
        rows: Vec::new(),
        last: None,
    };
    let replies = vec![
        Some(encode(&Reply::Log(lines))),
        Some(encode(&Reply::Accepted)),
        Some(encode(&Reply::Accepted)),
        Some(encode(&Reply::Fence(fence))),
    ];
    let init = fake_init(&session.places.init, replies);
    assert_eq!(run(&session, "show log netd -n 3"), ("[     0.001] hello\n".into(), None));
    assert_eq!(run(&session, "restart netd"), ("netd is restarted\n".into(), None));
    assert!(run(&session, "show log").1.expect("an answer to another question").contains("something else"));
    let fence = "no addresses are registered\nfed 3 times since boot\n";
    assert_eq!(run(&session, "show fence"), (fence.into(), None));
    let expected = [
        Request::Log { service: Some("netd".into()), lines: 3 },
        Request::Restart { service: "netd".into() },
        Request::Log { service: None, lines: 20 },
        Request::FenceState,
    ];
    assert_eq!(init.join().unwrap(), expected);
}

#[test]
fn names_versions_and_what_is_not_typed_here() {
    let dir = Dir::new();
    let session = Session::new(places(&dir)).unwrap();
    assert_eq!(session.node_name(), "");
    for (text, expected) in [("a1\n", "a1"), ("(none)\n", ""), ("a\u{1b}1", "a?1")] {
        dir.write("hostname", text);
        assert_eq!(session.node_name(), expected);
    }
    dir.write("release", "version = \"0.1.0\"\n");
    assert!(run(&session, "version").0.starts_with("Evenkeel 0.1.0\n"));
    assert_eq!(run(&session, "help"), (command::HELP.into(), None));
    assert_eq!(run(&session, "shell").1.as_deref(), Some("\"shell\" is started by init, not typed here"));
}

#[test]
fn a_cluster_is_founded_and_its_roster_changed_by_hand() {
    let dir = Dir::new();
    let session = Session::new(places(&dir)).unwrap();
    let key = |seed: u8| proto::text::hex(peer_core::key::SecretKey::from_seed([seed; 32]).public());
    let folder = dir.path("admin").display().to_string();
    let (out, failure) = run(&session, &format!("cluster init {folder} demo.lan a1:{}", key(1)));
    assert_eq!(failure, None);
    assert!(out.contains("roster apply 0203") && out.contains("off every node"), "{out}");
    let (out, failure) = run(&session, &format!("roster add {folder} b1 {} --vote", key(2)));
    assert_eq!(failure, None);
    let signed = out.lines().last().unwrap().strip_prefix("roster apply ").unwrap().to_owned();
    let (out, _) = run(&session, &format!("roster show {folder}"));
    for expected in ["domain demo.lan", "entry 1, hash ", "b1    member  votes  "] {
        assert!(out.contains(expected), "{out}");
    }
    assert_eq!(run(&session, &format!("roster show {folder} --entry")).0, format!("{signed}\n"));
    let (_, failure) = run(&session, &format!("roster add {folder} b1 {}", key(3)));
    let failure = failure.unwrap();
    assert!(failure.contains("b1 is in the roster already"), "{failure}");
    let _daemons = Daemons::start(&session.places);
    assert!(run(&session, "roster show").0.starts_with("no signed roster is kept here"));
    let (_, failure) = run(&session, &format!("roster apply {signed}"));
    let failure = failure.unwrap();
    assert!(failure.contains("provisiond refused ApplyRoster: no roster is kept here"), "{failure}");
}
