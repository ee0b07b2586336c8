//! Real netd processes in network namespaces of their own, joined by bridges.
//!
//! ```text
//!            bridge "data" 10.9.0.1/24 fd09::1/64      bridge "mgmt" 10.8.0.1/24
//!   n1  p1 ────┤  p2 ────┤                          m ────┤
//!   n2  p1 ────┤  p2 ────┤                          m ────┤     every node: one network namespace
//! ```
//! Each test runs itself again inside new user, network and PID namespaces (`unshare`), so that it needs no privilege,
//! touches nothing outside, and leaves no process behind: the PID namespace dies with its first process. Where the host
//! forbids user namespaces the tests say so and fail.

mod init;
mod lan;

use init::{Heard, Init, Mood, boottime};
use lan::{Lan, Node, patiently};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// VIP addresses of the test cluster: both start on n1's first port.
const WEB: &str = "10.9.0.100";
const WEB6: &str = "fd09::100";

/// Longest a move between nodes may take: lease 600 ms, beats, probes, and a machine that builds at the same time.
const TAKEOVER: Duration = Duration::from_secs(4);

/// Longest a move between two ports of a node may take. Tens of milliseconds on an idle machine; a busy one has stopped
/// netd for 766 ms in its midst.
const LOCAL_MOVE: Duration = Duration::from_secs(4);

fn up(lan: &Lan, names: &[&str]) -> Vec<Node> {
    let mut nodes: Vec<Node> = names.iter().map(|name| lan.node(name)).collect();
    nodes.iter_mut().for_each(Node::start);
    nodes.iter_mut().for_each(Node::ready);
    nodes
}

/// Waits until `node` has both VIPs on `port` and they answer from there.
fn serves(lan: &Lan, node: &Node, port: &str, within: Duration) {
    let begun = Instant::now();
    patiently(within, &format!("{} serves on {port}", node.name), || {
        (node.has(port, WEB) && node.has(port, WEB6) && lan.answers(WEB) && lan.answers(WEB6)).then_some(())
    });
    eprintln!("{} serves on {port} after {:?}", node.name, begun.elapsed());
}

#[test]
fn vip_follows_its_ports_and_then_its_nodes() {
    lan::inside("vip_follows_its_ports_and_then_its_nodes", || {
        let lan = Lan::new();
        let nodes = up(&lan, &["n1", "n2"]);
        let [n1, n2] = &nodes[..] else { unreachable!() };
        serves(&lan, n1, "p1", TAKEOVER);
        assert_eq!(n2.vips(), [] as [String; 0], "nobody else has them");
        n1.assert_rules();

        // Replies leave by the port that holds the VIP, with that port's hardware address.
        assert_eq!(lan.neighbour(WEB), n1.mac("p1"));
        assert_eq!(lan.neighbour(WEB6), n1.mac("p1"));

        lan.carrier(n1, "p1", false);
        serves(&lan, n1, "p2", LOCAL_MOVE);
        n1.assert_rules();
        assert_eq!(lan.neighbour(WEB), n1.mac("p2"), "announced: the neighbour's entry was changed");
        assert_eq!(lan.neighbour(WEB6), n1.mac("p2"));

        lan.carrier(n1, "p2", false);
        let moved = || n2.vips().len() == 2 && lan.answers(WEB) && lan.answers(WEB6);
        patiently(TAKEOVER, "n2 serves both", || moved().then_some(()));
        patiently(TAKEOVER, "n1 has no VIP", || n1.vips().is_empty().then_some(()));
        n1.assert_no_rules();
        n2.assert_rules();
        assert!([n2.mac("p1"), n2.mac("p2")].contains(&lan.neighbour(WEB)));

        // And back onto a port whose IPv4 routes the kernel had flushed.
        lan.carrier(n1, "p1", true);
        patiently(TAKEOVER, "n1 has its port back", || n1.port_is_operative("p1").then_some(()));
        // Failback is "never".
        assert!(moved() && n1.vips().is_empty(), "nothing moved back");
        lan.carrier(n2, "p1", false);
        lan.carrier(n2, "p2", false);
        serves(&lan, n1, "p1", TAKEOVER);
        n1.assert_rules();
    });
}

#[test]
fn killed_netd_adopts_what_its_last_life_left() {
    lan::inside("killed_netd_adopts_what_its_last_life_left", || {
        let lan = Lan::new();
        let mut nodes = up(&lan, &["n1", "n2"]);
        serves(&lan, &nodes[0], "p1", TAKEOVER);
        let [n1, n2] = &mut nodes[..] else { unreachable!() };

        n1.kill();
        // What an earlier life could have left besides: a rule of nobody, an address of nobody.
        n1.ip("rule add from 10.9.0.77 lookup 1077 priority 1000");
        n1.ip("address add 10.9.0.78/32 dev p1");
        n1.start();
        n1.ready();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            assert!(n1.has("p1", WEB) || !n2.vips().is_empty(), "somebody has the VIP");
            assert!(lan.answers(WEB), "served without a break");
        }
        serves(&lan, n1, "p1", LOCAL_MOVE);
        n1.assert_rules();
        assert!(!n1.has("p1", "10.9.0.78"), "the address of nobody is gone");
        assert_eq!(n2.vips(), [] as [String; 0]);
    });
}

#[test]
fn node_that_dies_or_leaves_is_replaced() {
    lan::inside("node_that_dies_or_leaves_is_replaced", || {
        let lan = Lan::new();
        let mut nodes = up(&lan, &["n1", "n2", "n3"]);
        serves(&lan, &nodes[0], "p1", TAKEOVER);

        // The whole node: its netd and its links.
        nodes[0].kill();
        for port in ["p1", "p2", "m"] {
            lan.carrier(&nodes[0], port, false);
        }
        let heirs = |nodes: &[Node]| nodes[1..].iter().map(|n| n.vips().len()).sum::<usize>();
        patiently(TAKEOVER, "the others have both VIPs", || {
            (heirs(&nodes) == 2 && lan.answers(WEB) && lan.answers(WEB6)).then_some(())
        });

        // n2 is asked to stop: n3 has both at once, without waiting for a lease.
        let status = nodes[1].terminate();
        assert_eq!(status.code(), Some(0), "{status:?}");
        assert_eq!(nodes[1].vips(), [] as [String; 0], "dropped before it ended");
        nodes[1].assert_no_rules();
        patiently(TAKEOVER, "n3 has both VIPs", || (nodes[2].vips().len() == 2).then_some(()));
        patiently(TAKEOVER, "both answer", || (lan.answers(WEB) && lan.answers(WEB6)).then_some(()));
    });
}

/// Nobody is started anew for it: the others cut the session, the node itself gives its VIPs up and ends.
#[test]
fn node_taken_out_of_the_roster_is_cut_off_and_gives_up() {
    lan::inside("node_taken_out_of_the_roster_is_cut_off_and_gives_up", || {
        let lan = Lan::new();
        let mut nodes = up(&lan, &["n1", "n2"]);
        serves(&lan, &nodes[0], "p1", TAKEOVER);
        patiently(TAKEOVER, "a session", || nodes[1].log().contains("session up").then_some(()));
        let begun = Instant::now();
        nodes[1].hand_out_roster(&[2, 3]);
        let cut = || nodes[1].log().contains("its key was taken out of the roster").then_some(());
        patiently(TAKEOVER, "n2 cuts n1 off", cut);
        eprintln!("cut after {:?}", begun.elapsed());

        nodes[0].hand_out_roster(&[2, 3]);
        assert_eq!(nodes[0].ended().code(), Some(1));
        let said = "node n1 was taken out of the roster";
        assert!(nodes[0].log().contains(said), "{}", nodes[0].log());
        assert_eq!(nodes[0].vips(), [] as [String; 0], "given up before it ended");
        patiently(TAKEOVER, "n2 has both VIPs", || (nodes[1].vips().len() == 2).then_some(()));
        // As it is told: not let in again with that key.
        nodes[0].start();
        assert_eq!(nodes[0].ended().code(), Some(1));
        assert!(nodes[0].log().contains("the roster has no key or another one for node n1"));
    });
}

#[test]
fn foreign_hands_are_repaired() {
    lan::inside("foreign_hands_are_repaired", || {
        let lan = Lan::new();
        let nodes = up(&lan, &["n1", "n2"]);
        let [n1, n2] = &nodes[..] else { unreachable!() };
        serves(&lan, n1, "p1", TAKEOVER);

        n1.ip("address del 10.9.0.100/32 dev p1");
        serves(&lan, n1, "p1", LOCAL_MOVE);
        n2.ip("address add 10.9.0.100/32 dev p2");
        patiently(LOCAL_MOVE, "n2's stray copy is gone", || n2.vips().is_empty().then_some(()));
        n1.ip("rule del priority 1000 from 10.9.0.100");
        n1.ip("address del fd09::100/128 dev p1"); // a report, so that it looks at once
        patiently(LOCAL_MOVE, "the rule is back", || n1.rules_fit().then_some(()));
        n1.ip("address del 10.8.0.11/24 dev m");
        patiently(LOCAL_MOVE, "the own address is back", || n1.has("m", "10.8.0.11").then_some(()));

        // Set down by hand: out of service, and in again with its routes when it is set up.
        n1.ip("link set p1 down");
        serves(&lan, n1, "p2", LOCAL_MOVE);
        n1.ip("link set p1 up");
        patiently(TAKEOVER, "p1's table is back", || n1.table_of("p1").contains("10.9.0.0/24").then_some(()));
    });
}

#[test]
fn another_station_with_the_address_is_noticed() {
    lan::inside("another_station_with_the_address_is_noticed", || {
        let lan = Lan::new();
        // A station that is no node answers for the VIP before anybody has it.
        let squatter = lan.station("squat", WEB);
        let nodes = up(&lan, &["n1", "n2"]);
        let [n1, n2] = &nodes[..] else { unreachable!() };
        patiently(TAKEOVER, "n1 has the VIP nobody else claims", || n1.has("p1", WEB6).then_some(()));
        patiently(TAKEOVER, "n1 waits and says why", || n1.log().contains("probe answered by").then_some(()));
        assert!(!n1.has("p1", WEB) && !n2.has("p1", WEB), "an address in use is not taken");
        drop(squatter);
        serves(&lan, n1, "p1", Duration::from_secs(20));

        // One that comes later does not get it: it is noticed, and the LAN is told whose the address is.
        let squatter = lan.station("late", WEB);
        squatter.speak();
        patiently(TAKEOVER, "n1 notices", || n1.log().contains("vip-conflict vip=web").then_some(()));
        patiently(TAKEOVER, "the LAN knows n1", || (lan.neighbour(WEB) == n1.mac("p1")).then_some(()));
        assert!(n1.has("p1", WEB));
    });
}

/// The fence's word lasts two thirds of the test cluster's lease, and comes at most twice a beat.
const WORD: Duration = Duration::from_millis(400);
const FEED_GAP: Duration = Duration::from_millis(25);

/// With a patience that bears a busy machine: what is awaited here has no deadline of its own.
const LONG: Duration = Duration::from_secs(30);

/// Whether an order was heard of an address that was there at the time.
fn present(heard: &Heard) -> bool {
    matches!(heard, Heard::Register { present: true, .. } | Heard::Release { present: true, .. })
}

/// Whether netd had the processor when it needed it. On a machine so busy that it stood still for a lease, or the stand-in
/// for a beat, it goes on by other rules, and says so.
fn calm(node: &Node) -> bool {
    let log = node.log();
    !log.contains("node-late") && !log.contains("does not answer in time")
}

/// Before it is added, after it is removed: nothing that netd orders is there.
fn in_order(init: &Init) -> bool {
    !init.orders().iter().any(present)
}

/// Waits until init knows both VIPs on `port`, and no other address.
fn guards(init: &Init, node: &Node, port: &str) {
    patiently(LONG, "init has registered both VIPs and nothing else", || {
        (init.registered() == [WEB, WEB6] && init.interfaces() == [node.index(port)].into()).then_some(())
    });
}

#[test]
fn vips_are_fenced_from_before_they_appear_until_after_they_are_gone() {
    lan::inside("vips_are_fenced_from_before_they_appear_until_after_they_are_gone", || {
        let lan = Lan::new();
        let mut n1 = lan.node("n1");
        let init = Init::of(&n1, Mood::Willing);
        n1.start();
        n1.ready();
        serves(&lan, &n1, "p1", LONG);
        guards(&init, &n1, "p1");
        lan.carrier(&n1, "p1", false);
        serves(&lan, &n1, "p2", LONG);
        guards(&init, &n1, "p2");
        let orders = init.orders();
        assert!(orders.len() >= 6, "registered, released and registered: {orders:?}");
        assert!(in_order(&init) || !calm(&n1), "{orders:?}");

        // One word for both, and not for every status.
        let before = init.feeds().len();
        patiently(LONG, "it is fed", || (init.feeds().len() >= before + 20).then_some(()));
        let feeds = init.feeds();
        assert!(feeds.windows(2).all(|pair| pair[1] - pair[0] >= FEED_GAP), "{feeds:?}");
        assert!(init.orders().len() == orders.len() || !calm(&n1), "without another registration");

        serves(&lan, &n1, "p2", LONG);
        let calm = calm(&n1);
        n1.signal("STOP");
        let stopped = boottime();
        patiently(LONG, "its word ends", || {
            init.feeds().last().filter(|word| **word < boottime()).map(|_| ())
        });
        assert!(init.feeds().last() <= Some(&(stopped + WORD)), "it gave none while it stood still");
        // The real init has killed it by now. This one has woken up too late: it drops everything by itself.
        patiently(LONG, "a lease passes", || (boottime() > stopped + 2 * WORD).then_some(()));
        let orders = init.orders().len();
        n1.signal("CONT");
        patiently(LONG, "it knows", || n1.log().contains("node-late").then_some(()));
        patiently(LONG, "both are released", || (init.orders().len() >= orders + 2).then_some(()));
        let timely = calm && !n1.log().contains("does not answer in time");
        assert!(in_order(&init) || !timely, "{:?}", init.orders());
        serves(&lan, &n1, "p2", LONG);
        guards(&init, &n1, "p2");

        assert_eq!(n1.terminate().code(), Some(0));
        patiently(LONG, "no connection is left", || (init.connections() == 0).then_some(()));
        let timely = timely && !n1.log().contains("does not answer in time");
        assert!((init.registered().is_empty() && in_order(&init)) || !timely, "{:?}", init.orders());
    });
}

#[test]
fn next_life_answers_for_what_the_last_one_registered() {
    lan::inside("next_life_answers_for_what_the_last_one_registered", || {
        let lan = Lan::new();
        let mut n1 = lan.node("n1");
        let init = Init::of(&n1, Mood::Willing);
        n1.start();
        n1.ready();
        serves(&lan, &n1, "p1", LONG);
        guards(&init, &n1, "p1");
        n1.kill();
        let orders = init.orders().len();
        // What was registered and never added.
        let never: IpAddr = [10, 9, 0, 99].into();
        init.plant(77, never);
        n1.start();
        n1.ready();
        guards(&init, &n1, "p1");
        let orders = init.orders().split_off(orders);
        let kept = |vip: &str| {
            let registered = |heard: &Heard| matches!(heard, Heard::Register { address, present: true, .. } if address.to_string() == vip);
            orders.iter().any(registered)
        };
        assert!((kept(WEB) && kept(WEB6)) || !calm(&n1), "registered while they were there: {orders:?}");
        let released: Vec<_> = orders.iter().filter(|o| matches!(o, Heard::Release { .. })).collect();
        let only = [&Heard::Release { index: 77, address: never, present: false }];
        assert!(released == only || !calm(&n1), "{orders:?}");
        let before = init.feeds().len();
        patiently(LONG, "the new life feeds", || (init.feeds().len() > before).then_some(()));
        assert!(lan.answers(WEB) && lan.answers(WEB6));
    });
}

#[test]
fn vips_are_served_without_a_fence() {
    lan::inside("vips_are_served_without_a_fence", || {
        let lan = Lan::new();
        let mut n1 = lan.node("n1");
        let init = Init::of(&n1, Mood::Refusing);
        n1.start();
        n1.ready();
        serves(&lan, &n1, "p1", LONG);
        let refused = || init.orders().iter().filter(|order| **order == Heard::Refused).count();
        patiently(LONG, "init is asked again", || (refused() >= 3).then_some(()));
        let said = |what: &str| n1.log().matches(what).count();
        assert_eq!(said("VIPs are not fenced"), 1, "said once: {}", n1.log());
        assert_eq!(said("VIPs are fenced"), 0);

        init.set(Mood::Willing);
        guards(&init, &n1, "p1");
        patiently(LONG, "that is said", || (said("VIPs are fenced") >= 1).then_some(()));

        // It hangs, for as long as it likes: nothing waits for it.
        let before = (said("VIPs are not fenced"), said("VIPs are fenced"));
        init.set(Mood::Hanging);
        lan.carrier(&n1, "p1", false);
        serves(&lan, &n1, "p2", LONG);
        patiently(LONG, "that is said", || (said("VIPs are not fenced") > before.0).then_some(()));
        init.set(Mood::Willing);
        guards(&init, &n1, "p2");
        patiently(LONG, "that is said", || (said("VIPs are fenced") > before.1).then_some(()));
        assert!(lan.answers(WEB) && lan.answers(WEB6));
        assert_eq!(init.connections(), 1);
    });
}
