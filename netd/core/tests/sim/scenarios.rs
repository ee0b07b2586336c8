//! Named situations, each with what must come of it. Every scenario runs with several seeds: clocks, delays and
//! the order of simultaneous happenings differ between them.

use crate::cluster::cluster;
use crate::seeds;
use crate::world::{Freeze, Weather, World, ms, secs};
use netd_core::{Event, Hindrance, VipState};
use proto::cluster::{ClusterFile, PortName, VipName};
use proto::time::Duration;

const BEAT: Duration = ms(250);
const LEASE: Duration = ms(3000);

/// Two groups of three nodes, in three pairs; two ports each on the data network.
fn file(vips: &[&str]) -> ClusterFile {
    let nodes = [
        "a1 east p1 p2",
        "b1 east p1 p2",
        "c1 east p1 p2",
        "a2 west p1 p2",
        "b2 west p1 p2",
        "c2 west p1 p2",
    ];
    cluster(&nodes, vips)
}

/// A settled world in which each VIP is at home.
fn settled(seed: u64, vips: &[&str]) -> World {
    let mut world = World::seeded(seed, file(vips));
    world.run_until("first holders", secs(5), World::settled);
    world.run(ms(world_phase(seed)));
    world
}

/// So that what a scenario does falls between beats differently in each world.
fn world_phase(seed: u64) -> u64 {
    1000 + seed * 37 % 250
}

#[test]
fn v16_all_at_once_every_vip_is_served_once_and_at_home() {
    seeds(20, |seed| {
        let mut world = World::seeded(seed, file(&["web a1:p1", "db b1:p1", "log b1:p2", "far c2:p1"]));
        let took = world.run_until("every VIP is served", secs(5), World::settled);
        assert!(took < LEASE, "all were heard, no need to wait for the lease: {took:?}");
        world.run(secs(10));
        for (vip, home) in [("web", "a1:p1"), ("db", "b1:p1"), ("log", "b1:p2"), ("far", "c2:p1")] {
            assert_eq!(world.holder(vip).as_deref(), Some(home));
        }
        assert_eq!(world.count("vip-taken", proto::time::Time::ZERO), 4);
        assert_eq!(world.count("vip-dropped", proto::time::Time::ZERO), 0);
    });
}

#[test]
fn a_lone_node_waits_a_lease_and_then_serves_what_it_may() {
    seeds(8, |seed| {
        let mut world = World::dark(seed, file(&["web a1:p1", "far a2:p1"]));
        world.restart("b1");
        world.run(LEASE - ms(20));
        assert_eq!(world.holder("web"), None);
        world.run(ms(200));
        assert_eq!(world.holder("web").as_deref(), Some("b1:p1"));
        assert_eq!(world.holder("far"), None, "another group's");
    });
}

#[test]
fn v01_port_pulled_the_other_port_of_the_node_takes_over() {
    seeds(8, |seed| {
        let mut world = settled(seed, &["web a1:p1", "db b1:p1"]);
        let start = world.now;
        world.unplug("a1:p1");
        let took = world.run_until("web on a1:p2", ms(100), |w| w.holder("web").as_deref() == Some("a1:p2"));
        assert!(took <= ms(25), "{took:?}");
        world.plug("a1:p1");
        world.run(secs(60));
        assert_eq!(world.holder("web").as_deref(), Some("a1:p2"), "failback is \"never\"");
        assert_eq!(world.count("vip-moved", start), 1);
        assert_eq!(world.count("vip-taken", start), 0);
        assert!(world.settled());
    });
}

#[test]
fn v02_all_ports_lost_the_group_takes_over_and_never_the_partner() {
    seeds(8, |seed| {
        let mut world = settled(seed, &["v1 a1:p1", "v2 a1:p1", "v3 a1:p2", "v4 a1:p2"]);
        world.expect_never("a VIP of a1 on its partner a2", |w| {
            !w.machines[&"a2".into()].addresses.is_empty()
        });
        world.unplug("a1:p1");
        world.unplug("a1:p2");
        let took = world.run_until("the others serve", ms(500), World::settled);
        assert!(took < BEAT, "told at once, not with the next beat: {took:?}");
        let mut places: Vec<String> = (1..=4).map(|n| world.holder(&format!("v{n}")).unwrap()).collect();
        places.sort();
        assert_eq!(places, ["b1:p1", "b1:p2", "c1:p1", "c1:p2"], "spread over nodes and ports");
    });
}

#[test]
fn a_dead_node_s_vips_are_taken_after_the_lease() {
    seeds(8, |seed| {
        let mut world = settled(seed, &["v1 a1:p1", "v2 a1:p1"]);
        world.crash("a1");
        world.run(LEASE - BEAT - ms(10));
        assert_eq!(world.holder("v1"), None);
        world.run_until("the others serve", BEAT + ms(200), World::settled);
    });
}

#[test]
fn a_node_that_leaves_hands_over_without_waiting() {
    seeds(8, |seed| {
        let mut world = settled(seed, &["v1 a1:p1", "v2 a1:p1"]);
        world.leave("a1");
        let took = world.run_until("the others serve", ms(300), World::settled);
        assert!(took < ms(100), "{took:?}");
    });
}

#[test]
fn v03_netd_restarted_adopts_what_it_left() {
    seeds(8, |seed| {
        let mut world = settled(seed, &["web a1:p1", "db b1:p1"]);
        world.expect_never("web unserved", |w| w.holder("web").as_deref() != Some("a1:p1"));
        world.kill("a1");
        world.run(ms(10 + seed * 1000)); // shorter and longer than the lease
        world.restart("a1");
        world.run(secs(10));
        assert!(world.settled(), "{:?}", world.unsettled());
        let row = world.snapshot("b1").vips.into_iter().find(|row| row.vip.0 == "web").unwrap();
        assert!(row.epoch > 1, "an adopted VIP gets a new epoch: {row:?}");
    });
}

#[test]
fn leftovers_that_others_hold_by_now_are_removed() {
    seeds(8, |seed| {
        let mut world = settled(seed, &["web a1:p1"]);
        world.kill("a1");
        world.unplug("a1:p1");
        world.unplug("a1:p2");
        world.run_until("b1 or c1 serves", secs(5), |w| w.holder("web").is_some());
        let holder = world.holder("web");
        world.plug("a1:p1"); // its address answers again: nobody is there to remove it
        world.restart("a1");
        world.run(ms(800));
        assert_eq!(world.holder("web"), holder);
        assert!(world.machines[&"a1".into()].addresses.is_empty());
    });
}

#[test]
fn leftovers_on_a_dead_port_are_removed() {
    seeds(8, |seed| {
        let mut world = settled(seed, &["web a1:p1"]);
        world.kill("a1");
        world.unplug("a1:p1");
        world.restart("a1");
        world.run(ms(100));
        let left = (VipName::from("web"), PortName::from("p1"));
        assert!(!world.machines[&"a1".into()].addresses.contains(&left));
        world.run(secs(5));
        assert!(world.settled(), "{:?}", world.unsettled());
    });
}

#[test]
fn v04_frozen_machine_others_take_over_and_after_the_thaw_there_is_one_holder() {
    seeds(16, |seed| {
        let mut world = settled(seed, &["web a1:p1", "db b1:p1"]);
        world.freeze("a1", Freeze::Machine);
        world.run_until("web elsewhere", LEASE + ms(300), |w| w.holder("web").is_some());
        world.run(secs(5));
        let holder = world.holder("web");
        assert_ne!(holder.as_deref(), Some("a1:p1"));
        world.thaw("a1");
        world.run(2 * BEAT + ms(20));
        assert_eq!(world.holder("web"), holder, "the higher epoch stays");
        world.run(secs(2));
        assert!(world.settled(), "{:?}", world.unsettled());
    });
}

#[test]
fn v04_stopped_netd_is_left_alone_while_its_kernel_answers_and_gives_up_first_when_it_comes_back() {
    seeds(16, |seed| {
        let mut world = settled(seed, &["web a1:p1"]);
        world.freeze("a1", Freeze::Process);
        world.run(secs(10));
        assert_eq!(world.holder("web").as_deref(), Some("a1:p1"));
        let waits = |node| {
            matches!(
                world.state(node, "web"),
                VipState::Waiting { cause: Hindrance::ProbeAnswered { .. }, .. }
            )
        };
        assert!(waits("b1") || waits("c1"), "the console says why nobody takes it");
        let start = world.now;
        world.thaw("a1");
        world.run_until("one of the others serves", secs(2), World::settled);
        let first = world.events.iter().find(|(at, node, _)| *at >= start && node.0 == "a1").unwrap();
        assert!(matches!(first.2, Event::NodeLate { dropped: 1, .. }), "{first:?}");
    });
}

#[test]
fn v05_no_messages_but_the_lan_lives_the_probe_keeps_the_holder() {
    seeds(16, |seed| {
        let mut world = settled(seed, &["web a1:p1", "db b1:p1"]);
        world.expect_never("a VIP left its holder", |w| {
            w.holder("web").as_deref() != Some("a1:p1") || w.holder("db").as_deref() != Some("b1:p1")
        });
        for node in ["a1", "b1", "c1"] {
            world.partition(&[node]);
        }
        world.run(secs(60));
        world.heal();
        world.run(secs(5));
        assert!(world.settled(), "{:?}", world.unsettled());
    });
}

#[test]
fn v05_a_holder_that_dies_in_a_partition_is_replaced_by_one() {
    seeds(16, |seed| {
        let mut world = settled(seed, &["web a1:p1"]);
        for node in ["a1", "b1", "c1"] {
            world.partition(&[node]);
        }
        world.run(secs(20));
        world.crash("a1");
        world.run_until("another serves", 2 * LEASE, |w| w.holder("web").is_some());
        world.run(secs(20));
        assert!(world.holder("web").is_some(), "and only one");
    });
}

#[test]
fn v06_a_minute_of_loss_repetition_and_delay_moves_at_most_once() {
    seeds(16, |seed| {
        let mut world = settled(seed, &["web a1:p1", "db b1:p1"]);
        let start = world.now;
        world.weather = Weather { loss_percent: 30, repeat_percent: 30, delay_max: ms(400) };
        world.cut_way("a1", "b1");
        world.run(secs(60));
        let moves = world.count("vip-taken", start) + world.count("vip-moved", start);
        assert!(moves <= 1, "{moves} moves");
        world.weather = Weather::FAIR;
        world.heal();
        world.run(secs(5));
        assert!(world.settled(), "{:?}", world.unsettled());
    });
}

#[test]
fn v07_partition_of_messages_and_lan_heals_to_one_holder_that_announces() {
    seeds(16, |seed| {
        let mut world = settled(seed, &["web a1:p1", "db b1:p1"]);
        world.partition(&["a1", "a2"]);
        world.split_lan(&["a1"]);
        world.run_until("web on both sides", secs(5), |w| w.answering(&"web".into()).len() == 2);
        world.run(secs(3));
        world.heal();
        world.join_lan();
        world.run_until("one holder", 2 * BEAT, |w| w.holder("web").is_some());
        let holder = world.holder("web");
        assert_ne!(holder.as_deref(), Some("a1:p1"), "the one with the higher epoch stays");
        world.run(ms(20));
        assert_eq!(
            world.believed[&"web".into()].to_string(),
            holder.unwrap(),
            "clients find it within 20 ms"
        );
        world.run(secs(5));
        assert!(world.settled(), "{:?}", world.unsettled());
        assert!(world.count("vip-conflict", proto::time::Time::ZERO) > 0);
    });
}

#[test]
fn v08_a_flapping_port_is_left_once_and_trusted_later_and_later() {
    seeds(8, |seed| {
        let vips = ["web a1:p1 0"]; // comes home as soon as the port is operative
        let mut world = settled(seed, &vips);
        let start = world.now;
        for _ in 0..50 {
            world.unplug("a1:p1");
            world.run(ms(50));
            world.plug("a1:p1");
            world.run(ms(50));
        }
        assert_eq!(world.count("vip-moved", start), 1, "one move away");
        assert_eq!(world.holder("web").as_deref(), Some("a1:p2"));
        world.run(secs(29));
        assert_eq!(world.holder("web").as_deref(), Some("a1:p2"), "the hold-down has grown");
        world.run(secs(3));
        assert_eq!(world.holder("web").as_deref(), Some("a1:p1"), "and ends");
    });
}

#[test]
fn v10_a_starved_process_gives_up_before_it_says_anything() {
    seeds(8, |seed| {
        let mut world = settled(seed, &["web a1:p1", "db a1:p2"]);
        world.freeze("a1", Freeze::Process);
        world.run(3 * LEASE);
        let start = world.now;
        world.thaw("a1");
        assert!(world.machines[&"a1".into()].addresses.is_empty(), "nothing is left after its first instant");
        assert_eq!(world.count("vip-dropped", start), 2);
        world.run_until("others serve", secs(3), World::settled);
    });
}

#[test]
fn v12_an_address_removed_or_added_behind_our_back_is_repaired() {
    seeds(8, |seed| {
        let mut world = settled(seed, &["web a1:p1", "db b1:p1"]);
        world.meddle("web", "a1:p1", false);
        world.run(ms(20));
        assert_eq!(world.holder("web").as_deref(), Some("a1:p1"));
        world.meddle("web", "c1:p1", true);
        world.run(ms(20));
        assert_eq!(world.holder("web").as_deref(), Some("a1:p1"));
        world.run(secs(2));
        assert!(world.settled(), "{:?}", world.unsettled());
        assert_eq!(world.count("address-repaired", proto::time::Time::ZERO), 1);
        assert_eq!(world.count("address-foreign", proto::time::Time::ZERO), 1);
    });
}

#[test]
fn a_refused_address_goes_where_it_is_accepted() {
    seeds(8, |seed| {
        let mut world = World::dark(seed, file(&["web a1:p1"]));
        world.refuse("web", "a1:p1");
        world.refuse("web", "a1:p2");
        for node in world.names() {
            world.restart(&node.0);
        }
        world.run_until("web served elsewhere", secs(5), World::settled);
        let start = world.now;
        world.run(secs(20));
        assert_eq!(world.count("vip-taken", start), 0, "and stays");
    });
}

#[test]
fn failback_waits_for_its_time_and_crosses_nodes() {
    seeds(8, |seed| {
        let mut world = settled(seed, &["web a1:p1 10"]);
        world.crash("a1");
        world.run_until("web elsewhere", secs(5), World::settled);
        world.restart("a1");
        world.run(ms(9900));
        assert_ne!(world.holder("web").as_deref(), Some("a1:p1"));
        world.run(ms(1200));
        assert_eq!(world.holder("web").as_deref(), Some("a1:p1"));
        assert!(world.settled(), "{:?}", world.unsettled());
    });
}

#[test]
fn without_failback_a_vip_stays_with_its_new_holder() {
    seeds(8, |seed| {
        let mut world = settled(seed, &["web a1:p1"]);
        world.crash("a1");
        world.run_until("web elsewhere", secs(5), World::settled);
        let holder = world.holder("web");
        world.restart("a1");
        world.run(secs(60));
        assert_eq!(world.holder("web"), holder);
    });
}
