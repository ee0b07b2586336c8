//! One core, driven by hand: each rule by itself, at the instant it applies.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

#[path = "../src/testing.rs"]
mod cluster;

use cluster::cluster;
use netd_core::{
    DropCause, Event, Failover, Hindrance, Input, Liveness, Mac, Operation, Outbox, Output, PortStatus,
    VipState,
};
use proto::cluster::{ClusterFile, NodeName};
use proto::status::{Holding, Participation, PortReport, PortState, Seen, Status, VipEpoch};
use proto::time::{Duration, Time};

const BEAT: u64 = 250;
const LEASE: u64 = 3000;
const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

/// Node `b1` of the group a1, b1, c1, with its peers' last words.
struct Rig {
    core: Failover,
    now: u64,
    sequence: u64,
    /// The last status told.
    told: Option<Status>,
}

impl Rig {
    fn with(file: &ClusterFile) -> Rig {
        let core = Failover::new(file, "b1".into(), 7, at(0)).unwrap();
        Rig { core, now: 0, sequence: 0, told: None }
    }

    fn new(vips: &[&str]) -> Rig {
        Rig::with(&cluster(&["a1 east p1 p2", "b1 east p1 p2", "c1 east p1", "a2 west p1"], vips))
    }

    /// Past its start, both peers heard.
    fn ready(vips: &[&str]) -> Rig {
        let mut rig = Rig::new(vips);
        rig.ports(true, true);
        rig.input(Input::Addresses(vec![]));
        rig.hear("a1", |_| ());
        rig.hear("c1", |_| ());
        rig
    }

    /// Ready, and holding `web`.
    fn holding() -> Rig {
        let mut rig = Rig::ready(&["web b1:p1"]);
        rig.pass(20); // the claim is told
        rig.acknowledge();
        rig.unanswered(1);
        rig.pass(20); // the holding is told
        rig.acknowledge();
        assert_eq!(rig.vip("web").state, VipState::Held);
        rig
    }

    fn collect(&mut self, mut out: Outbox) -> Vec<Output> {
        let outputs: Vec<Output> = out.drain().collect();
        for output in &outputs {
            if let Output::Broadcast(status) = output {
                self.told = Some(status.clone());
            }
        }
        outputs
    }

    fn input(&mut self, input: Input) -> Vec<Output> {
        let mut out = Outbox::new();
        self.core.handle(at(self.now), input, &mut out);
        self.collect(out)
    }

    /// Jumps from wakeup to wakeup until `ms` have passed.
    fn pass(&mut self, ms: u64) -> Vec<Output> {
        let end = self.now + ms;
        let mut all = Vec::new();
        loop {
            let due = self.core.next_wakeup().map_or(u64::MAX, |t| t.as_nanos().div_ceil(1_000_000));
            if due > end {
                break;
            }
            self.now = self.now.max(due);
            let mut out = Outbox::new();
            self.core.handle_timeout(at(self.now), &mut out);
            assert!(self.core.next_wakeup().is_none_or(|due| at(self.now) < due), "no end of wakeups");
            all.extend(self.collect(out));
        }
        self.now = end;
        all
    }

    /// As [`pass`](Self::pass), while both peers go on beating.
    fn pass_heard(&mut self, ms: u64) -> Vec<Output> {
        let mut all = Vec::new();
        for _ in 0..ms / BEAT {
            all.extend(self.pass(BEAT));
            all.extend(self.hear("a1", |_| ()));
            all.extend(self.hear("c1", |_| ()));
        }
        all
    }

    /// A status of a peer that is up, takes part and has seen everything, changed by `change`.
    fn hear(&mut self, node: &str, change: impl FnOnce(&mut Status)) -> Vec<Output> {
        self.sequence += 1;
        let ports = vec![PortReport { port: "p1".into(), state: PortState::Operative { for_ms: 60_000 } }];
        let mut status = Status {
            node: node.into(),
            incarnation: 1,
            sequence: self.sequence,
            participation: Participation::Ready,
            ports,
            holds: vec![],
            claims: vec![],
            epochs: vec![],
            refused: vec![],
            seen: vec![],
        };
        change(&mut status);
        self.input(Input::Peer { status })
    }

    fn seen(&self) -> Vec<Seen> {
        let sequence = self.told.as_ref().unwrap().sequence;
        vec![Seen { node: "b1".into(), incarnation: 7, sequence }]
    }

    /// Both peers say that they have seen the last status.
    fn acknowledge(&mut self) -> Vec<Output> {
        let seen = self.seen();
        let mut all = self.hear("a1", |s| s.seen.clone_from(&seen));
        all.extend(self.hear("c1", |s| s.seen = seen));
        all
    }

    fn unanswered(&mut self, attempt: u32) -> Vec<Output> {
        self.probed(attempt, None)
    }

    fn probed(&mut self, attempt: u32, answered: Option<Mac>) -> Vec<Output> {
        self.input(Input::ProbeDone { vip: "web".into(), port: "p1".into(), attempt, answered })
    }

    fn ports(&mut self, p1: bool, p2: bool) -> Vec<Output> {
        let port = |name: &str, carrier| PortStatus { port: name.into(), present: true, carrier };
        self.input(Input::Ports(vec![port("p1", p1), port("p2", p2)]))
    }

    fn vip(&self, name: &str) -> netd_core::VipRow {
        let rows = self.core.snapshot(at(self.now)).vips;
        rows.into_iter().find(|row| row.vip.0 == name).unwrap()
    }

    fn participation(&self) -> Participation {
        self.core.snapshot(at(self.now)).participation
    }
}

fn at(ms: u64) -> Time {
    Time::ZERO + Duration::from_millis(ms)
}

/// What makes an ordinary status a particular one.
type Change = Box<dyn Fn(&mut Status)>;

/// Outputs in short: what is done, without the statuses.
fn short(outputs: &[Output]) -> Vec<String> {
    let text = |output: &Output| match output {
        Output::Broadcast(_) => None,
        Output::Add { vip, port } => Some(format!("add {vip} {port}")),
        Output::Remove { vip, port } => Some(format!("remove {vip} {port}")),
        Output::Announce { vip, port } => Some(format!("announce {vip} {port}")),
        Output::Probe { vip, port, attempt } => Some(format!("probe {vip} {port} {attempt}")),
        Output::Event(event) => Some(event.name().to_owned()),
    };
    outputs.iter().filter_map(text).collect()
}

fn holds(node: &str, epoch: u64) -> impl Fn(&mut Status) {
    let node = NodeName::from(node);
    move |status| {
        assert_eq!(status.node, node);
        status.holds = vec![Holding { vip: "web".into(), port: "p1".into(), epoch }];
    }
}

fn statuses(outputs: &[Output]) -> usize {
    outputs.iter().filter(|o| matches!(o, Output::Broadcast(_))).count()
}

#[test]
fn an_unknown_node_is_refused() {
    let file = cluster(&["a1 east p1"], &[]);
    let error = Failover::new(&file, "zz".into(), 1, at(0)).unwrap_err();
    assert!(error.to_string().contains("zz"));
}

#[test]
fn nothing_is_told_before_the_node_knows_its_ports_and_addresses() {
    let mut rig = Rig::new(&["web b1:p1"]);
    assert_eq!(statuses(&rig.pass(2 * LEASE)), 0);
    rig.ports(true, true);
    assert_eq!(statuses(&rig.pass(LEASE)), 0);
    let out = rig.input(Input::Addresses(vec![]));
    assert_eq!(statuses(&out), 1);
}

#[test]
fn quarantine_ends_when_all_peers_are_heard_or_a_lease_has_passed() {
    let mut rig = Rig::new(&["web b1:p1"]);
    rig.ports(true, true);
    rig.input(Input::Addresses(vec![]));
    rig.hear("a1", |_| ());
    assert_eq!(rig.participation(), Participation::Starting);
    let out = short(&rig.hear("c1", |_| ()));
    assert_eq!(out, ["peer-up", "node-ready", "probe web p1 1"]);

    let mut rig = Rig::new(&["web b1:p1"]);
    rig.ports(true, true);
    rig.input(Input::Addresses(vec![]));
    assert_eq!(short(&rig.pass(LEASE - 1)), [""; 0]);
    assert_eq!(short(&rig.pass(1)), ["node-ready", "probe web p1 1"]);
}

#[test]
fn a_vip_is_taken_when_nobody_answers_and_every_live_peer_knows() {
    let mut rig = Rig::ready(&["web b1:p1"]);
    assert_eq!(
        rig.told.as_ref().unwrap().claims.len(),
        0,
        "the change waits for the gap between two statuses"
    );
    rig.pass(20);
    assert_eq!(rig.told.as_ref().unwrap().claims.len(), 1);
    let seen = rig.seen();
    rig.hear("a1", |s| s.seen = seen);
    assert_eq!(short(&rig.unanswered(1)), [""; 0], "c1 may not know");
    let VipState::Claiming { unseen_by } = rig.vip("web").state else { panic!() };
    assert_eq!(unseen_by, ["c1".into()]);
    let seen = rig.seen();
    let out = rig.hear("c1", |s| s.seen = seen);
    assert_eq!(short(&out), ["add web p1", "announce web p1", "vip-taken"]);
    rig.pass(20);
    assert_eq!(rig.told.unwrap().holds, [Holding { vip: "web".into(), port: "p1".into(), epoch: 1 }]);
}

#[test]
fn an_old_silence_of_the_lan_is_not_enough() {
    let mut rig = Rig::ready(&["web b1:p1"]);
    rig.pass(50);
    rig.unanswered(1);
    rig.pass(11);
    assert_eq!(short(&rig.acknowledge()), ["probe web p1 2"]);
    assert_eq!(short(&rig.unanswered(1)), [""; 0], "a late answer to an earlier question");
    assert_eq!(short(&rig.unanswered(2)), ["add web p1", "announce web p1", "vip-taken"]);
}

#[test]
fn a_peer_that_does_not_acknowledge_is_waited_for_two_beats() {
    let mut rig = Rig::ready(&["web b1:p1"]);
    rig.pass(50);
    rig.unanswered(1);
    assert_eq!(short(&rig.pass(2 * BEAT - 50)), [""; 0]);
    assert_eq!(short(&rig.pass(20)), ["probe web p1 2"]);
    assert_eq!(short(&rig.unanswered(2)), ["add web p1", "announce web p1", "vip-taken"]);
}

#[test]
fn a_claim_is_given_up_for_a_holder_and_for_a_better_claim_only() {
    let claim = |epoch: u64| {
        move |s: &mut Status| {
            s.claims = vec![Holding { vip: "web".into(), port: "p1".into(), epoch }];
        }
    };
    let cases: [(&str, &str, Change, bool); 5] = [
        ("a holder", "c1", Box::new(holds("c1", 0)), true),
        ("same epoch, lower name", "a1", Box::new(claim(1)), true),
        ("same epoch, higher name", "c1", Box::new(claim(1)), false),
        ("higher epoch, higher name", "c1", Box::new(claim(2)), true),
        ("lower epoch, lower name", "a1", Box::new(claim(0)), false),
    ];
    for (what, node, change, given_up) in cases {
        let mut rig = Rig::ready(&["web b1:p1"]);
        rig.pass(50);
        rig.hear(node, |s| change(s));
        assert_eq!(rig.vip("web").state == VipState::Probing, !given_up, "{what}");
    }
}

#[test]
fn an_answered_probe_makes_wait_longer_and_longer_up_to_a_lease() {
    let mut rig = Rig::ready(&["web b1:p1"]);
    let mut waits = Vec::new();
    for attempt in 1..=7 {
        let out = rig.probed(attempt, Some(MAC));
        let wait = out.iter().find_map(|o| match o {
            Output::Event(Event::VipWaiting {
                cause: Hindrance::ProbeAnswered { mac: MAC },
                retry_in,
                ..
            }) => Some(*retry_in),
            _ => None,
        });
        let wait = u64::try_from(wait.unwrap().as_millis()).unwrap();
        waits.push(wait);
        assert!(matches!(rig.vip("web").state, VipState::Waiting { .. }));
        let mut out = Vec::new();
        for _ in 0..wait.div_ceil(BEAT) {
            rig.hear("a1", |_| ());
            rig.hear("c1", |_| ());
            out.extend(rig.pass(wait.min(BEAT)));
        }
        assert!(short(&out).contains(&format!("probe web p1 {}", attempt + 1)), "{:?}", short(&out));
    }
    // b1 is the second of its group: 120 ms apart from the first.
    assert_eq!(waits, [370, 620, 1120, 2120, 3120, 3120, 3120]);
}

#[test]
fn a_probe_without_result_is_named() {
    let mut rig = Rig::ready(&["web b1:p1"]);
    rig.pass(501);
    assert!(matches!(rig.vip("web").state, VipState::Waiting { cause: Hindrance::ProbeLost, .. }));
}

#[test]
fn of_two_holders_the_lesser_removes_and_the_better_announces() {
    for (node, epoch, stays) in [("a1", 1, false), ("c1", 1, true), ("c1", 2, false), ("a1", 0, true)] {
        let mut rig = Rig::holding();
        let out = short(&rig.hear(node, holds(node, epoch)));
        let expected: &[&str] =
            if stays { &["announce web p1", "vip-conflict"] } else { &["remove web p1", "vip-dropped"] };
        assert_eq!(out, expected, "{node} with epoch {epoch}");
    }
}

#[test]
fn the_better_holder_announces_again_when_the_lesser_is_gone() {
    let mut rig = Rig::holding();
    rig.hear("c1", holds("c1", 1));
    assert_eq!(short(&rig.hear("c1", holds("c1", 1))), [""; 0], "not with every beat");
    assert_eq!(short(&rig.hear("c1", |_| ())), ["announce web p1"]);
}

#[test]
fn a_conflict_on_the_lan_is_answered_but_not_with_a_storm() {
    let mut rig = Rig::holding();
    let conflict = || Input::Conflict { vip: "web".into(), mac: MAC };
    assert_eq!(short(&rig.input(conflict())), ["announce web p1", "vip-conflict"]);
    for _ in 0..100 {
        assert_eq!(short(&rig.input(conflict())), [""; 0]);
    }
    let row = rig.vip("web").conflict.unwrap();
    assert_eq!((row.mac, row.times), (MAC, 101));
    rig.pass_heard(LEASE / 3);
    assert_eq!(short(&rig.input(conflict())), ["announce web p1", "vip-conflict"]);
}

#[test]
fn a_lost_port_is_left_at_once_delete_add_announce() {
    let mut rig = Rig::holding();
    let out = rig.ports(false, true);
    let expected = ["port-down", "remove web p1", "add web p2", "announce web p2", "vip-moved"];
    assert_eq!(short(&out), expected);
    let out = rig.ports(false, false);
    assert_eq!(short(&out), ["port-down", "remove web p2", "vip-dropped"]);
    rig.pass(13);
    assert_eq!(rig.told.unwrap().holds, [], "told at once");
}

#[test]
fn after_a_standstill_everything_is_removed_before_anything_else() {
    let mut rig = Rig::holding();
    rig.now += LEASE + 1;
    let out = rig.hear("a1", |_| ());
    assert_eq!(out[0], Output::Remove { vip: "web".into(), port: "p1".into() });
    assert_eq!(short(&out), ["remove web p1", "node-late", "vip-dropped"]);
    assert_eq!(rig.participation(), Participation::Late);
    let out = rig.pass(LEASE / 2 - 1);
    assert_eq!(short(&out), [""; 0]);
    assert_eq!(short(&rig.pass(1)), ["node-ready", "probe web p1 2"]);

    let mut rig = Rig::holding();
    rig.now += LEASE;
    assert!(
        !short(&rig.hear("a1", |_| ())).contains(&"remove web p1".to_owned()),
        "a lease is still in time"
    );
}

#[test]
fn leaving_gives_everything_up_and_says_so() {
    let mut rig = Rig::holding();
    let out = rig.input(Input::Leave);
    assert_eq!(short(&out), ["remove web p1", "vip-dropped"]);
    let Some(Output::Broadcast(last)) = out.last() else { panic!("{out:?}") };
    assert_eq!((last.participation, last.holds.len()), (Participation::Leaving, 0));
    assert!(!short(&rig.pass_heard(2 * LEASE)).iter().any(|line| line.starts_with("probe")));
}

#[test]
fn addresses_are_kept_as_they_should_be() {
    let mut rig = Rig::holding();
    let list = |entries: &[(&str, &str)]| {
        Input::Addresses(entries.iter().map(|(v, p)| ((*v).into(), (*p).into())).collect())
    };
    assert_eq!(short(&rig.input(list(&[("web", "p1")]))), [""; 0]);
    assert_eq!(short(&rig.input(list(&[]))), [""; 0], "the kernel has not answered the Add yet");
    let applied =
        Input::Applied { vip: "web".into(), port: "p1".into(), operation: Operation::Add, result: Ok(()) };
    rig.input(applied);
    let out = rig.input(list(&[]));
    assert_eq!(short(&out), ["add web p1", "announce web p1", "address-repaired"]);
    let out = rig.input(list(&[("web", "p1"), ("web", "p2")]));
    assert_eq!(short(&out), ["remove web p2", "address-foreign"]);
}

#[test]
fn leftovers_are_adopted_below_any_right_and_confirmed_at_the_end_of_the_quarantine() {
    let mut rig = Rig::new(&["web b1:p1", "far a2:p1"]);
    // Addresses may come first; without ports nothing can be judged.
    let leftovers =
        vec![("web".into(), "p2".into()), ("far".into(), "p1".into()), ("zz".into(), "p1".into())];
    assert_eq!(short(&rig.input(Input::Addresses(leftovers))), [""; 0]);
    let out = rig.ports(true, true);
    let expected = [
        "port-up",
        "port-up",
        "remove far p1",
        "address-foreign",
        "add web p2",
        "announce web p2",
        "vip-taken",
    ];
    assert_eq!(short(&out), expected);
    assert_eq!(rig.told.as_ref().unwrap().holds[0].epoch, 0);
    rig.hear("a1", |s| s.epochs = vec![VipEpoch { vip: "web".into(), epoch: 8 }]);
    rig.hear("c1", |_| ());
    rig.pass(20);
    assert_eq!(rig.told.as_ref().unwrap().holds[0].epoch, 9, "above what peers remember");

    let mut rig = Rig::new(&["web b1:p1"]);
    rig.ports(true, true);
    rig.input(Input::Addresses(vec![("web".into(), "p1".into())]));
    assert_eq!(short(&rig.hear("c1", holds("c1", 0))), ["peer-up", "announce web p1", "vip-conflict"]);
    assert_eq!(short(&rig.hear("c1", holds("c1", 1))), ["remove web p1", "vip-dropped"]);
}

#[test]
fn a_refused_address_is_tried_elsewhere_and_peers_are_told() {
    let mut rig = Rig::holding();
    let refused = |port: &str, operation| Input::Applied {
        vip: "web".into(),
        port: port.into(),
        operation,
        result: Err("no such device".to_owned()),
    };
    let out = rig.input(refused("p1", Operation::Add));
    let expected = ["address-refused", "remove web p1", "add web p2", "announce web p2", "vip-moved"];
    assert_eq!(short(&out), expected);
    let out = rig.input(refused("p2", Operation::Add));
    assert!(
        out.iter().any(|o| matches!(o, Output::Event(Event::VipDropped { cause: DropCause::Refused, .. })))
    );
    rig.pass(20);
    assert_eq!(rig.told.as_ref().unwrap().refused.len(), 2);
    let out = rig.pass_heard(31_000);
    assert!(short(&out).contains(&"probe web p1 2".to_owned()), "after a while it is tried again");
    // A refused removal is asked for again, now and then.
    let mut rig = Rig::holding();
    rig.input(refused("p2", Operation::Remove));
    let again = |out: &[Output]| short(out).iter().filter(|line| *line == "remove web p2").count();
    assert_eq!(again(&rig.pass_heard(LEASE - BEAT)), 0);
    assert_eq!(again(&rig.pass_heard(3 * LEASE)), 3);
}

#[test]
fn beats_are_regular_and_changes_are_told_at_once_but_not_without_end() {
    let mut rig = Rig::ready(&["web c1:p1"]);
    rig.pass(BEAT);
    assert_eq!(statuses(&rig.pass(10 * BEAT)), 10);
    let mut sent = 0;
    for _ in 0..100 {
        sent += statuses(&rig.ports(false, true));
        sent += statuses(&rig.ports(true, true));
        sent += statuses(&rig.pass(1));
    }
    assert!((2..=9).contains(&sent), "{sent} in 100 ms");
}

#[test]
fn a_new_claim_is_acknowledged_at_once() {
    let mut rig = Rig::ready(&["web c1:p1"]);
    let claim = |s: &mut Status| s.claims = vec![Holding { vip: "web".into(), port: "p1".into(), epoch: 1 }];
    // The second time the claim says nothing new; its sender waits for an answer all the same.
    for _ in 0..2 {
        rig.pass(100);
        let out = rig.hear("c1", claim);
        let Some(Output::Broadcast(status)) = out.last() else { panic!("{out:?}") };
        let seen = status.seen.iter().find(|seen| seen.node.0 == "c1").unwrap();
        assert_eq!(seen.sequence, rig.sequence);
        rig.pass(100);
        rig.hear("c1", |_| ());
    }
}

#[test]
fn a_take_begun_before_a_standstill_begins_anew() {
    let mut rig = Rig::ready(&["web b1:p1"]);
    rig.pass(20);
    let seen = rig.seen();
    rig.now += 2 * BEAT + 1; // longer than any ordinary pause, shorter than a lease
    let out = rig.hear("a1", |s| s.seen.clone_from(&seen));
    assert_eq!(short(&out), ["probe web p1 2"]);
    rig.hear("c1", |s| s.seen = seen);
    assert_eq!(
        short(&rig.unanswered(1)),
        [""; 0],
        "what peers and LAN said of the first attempt is outdated"
    );
}

#[test]
fn a_remote_home_gets_its_vip_back_when_it_is_ready_for_it() {
    let home = |for_ms: u64, participation, seen: Vec<Seen>| {
        move |s: &mut Status| {
            s.ports[0].state = PortState::Operative { for_ms };
            s.participation = participation;
            s.seen.clone_from(&seen);
        }
    };
    let dropped = |change: &dyn Fn(&Rig) -> Change| {
        let mut rig = Rig::new(&["web a1:p1 10"]);
        rig.ports(true, true);
        rig.input(Input::Addresses(vec![]));
        rig.hear("c1", |s| s.ports.clear());
        rig.pass(LEASE);
        rig.hear("c1", |s| s.ports.clear());
        rig.probed(1, None);
        rig.pass(2 * BEAT);
        rig.probed(2, None);
        assert_eq!(rig.vip("web").holder.unwrap().to_string(), "b1:p1");
        rig.hear("a1", |_| ());
        rig.pass(20);
        let change = change(&rig);
        rig.hear("a1", change);
        let out = rig.pass(BEAT);
        short(&out).contains(&"vip-dropped".to_owned())
    };
    use Participation::{Ready, Starting};
    assert!(dropped(&|rig| Box::new(home(10_000, Ready, rig.seen()))));
    assert!(!dropped(&|rig| Box::new(home(9_999, Ready, rig.seen()))), "not long enough");
    assert!(!dropped(&|rig| Box::new(home(10_000, Starting, rig.seen()))), "does not take part yet");
    assert!(!dropped(&|_| Box::new(home(10_000, Ready, vec![]))), "does not hear us");
}

#[test]
fn what_does_not_concern_us_is_counted() {
    let mut rig = Rig::ready(&["web b1:p1"]);
    rig.hear("a2", |_| ());
    rig.hear("nobody", |_| ());
    rig.hear("b1", |_| ());
    rig.hear("a1", |s| s.sequence = 1);
    rig.hear("a1", |s| s.holds = vec![Holding { vip: "zz".into(), port: "p1".into(), epoch: 1 }]);
    rig.input(Input::Addresses(vec![("zz".into(), "p1".into()), ("web".into(), "zz".into())]));
    let ignored = rig.core.snapshot(at(rig.now)).ignored;
    assert_eq!((ignored.strangers, ignored.stale, ignored.entries, ignored.inputs), (3, 1, 1, 2));
}

#[test]
fn the_snapshot_says_what_is_and_what_would_be() {
    let mut rig = Rig::holding();
    rig.input(Input::PeerLost("c1".into()));
    let snapshot = rig.core.snapshot(at(rig.now));
    let web = &snapshot.vips[0];
    assert_eq!(web.next.as_ref().unwrap().to_string(), "b1:p2");
    assert_eq!(web.epoch, 1);
    let peers: Vec<_> = snapshot.peers.iter().map(|p| (p.node.0.as_str(), p.liveness, p.hears_us)).collect();
    assert_eq!(peers, [("a1", Liveness::Alive, true), ("c1", Liveness::Suspect, true)]);
    let ports: Vec<_> =
        snapshot.ports.iter().map(|p| (p.port.to_string(), p.state.is_some(), p.vips)).collect();
    let expected =
        [("a1:p1", true, 0), ("a1:p2", false, 0), ("b1:p1", true, 1), ("b1:p2", true, 0), ("c1:p1", true, 0)];
    assert_eq!(ports, expected.map(|(port, known, vips)| (port.to_owned(), known, vips)));
    rig.ports(true, false);
    assert_eq!(rig.vip("web").next.unwrap().to_string(), "a1:p1");
    rig.pass(LEASE);
    assert!(rig.vip("web").next.unwrap_err().contains("network data"));
    let liveness: Vec<_> = rig.core.snapshot(at(rig.now)).peers.iter().map(|p| p.liveness).collect();
    assert_eq!(liveness, [Liveness::Down, Liveness::Down]);
}
