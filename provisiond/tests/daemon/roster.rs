//! The roster chain: handed in, kept over restarts, and refused when it is not what was kept.

use super::*;
use peer_core::roster::{Draft, Entry, Recovery, Role, RosterChain, RosterRecord};
use proto::record::RosterMark;

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed([seed; 32])
}

fn recovery() -> Recovery {
    Recovery { threshold: 1, keys: vec![*key(201).public()] }
}

/// The chain of a cluster whose admin has key `admin`, with these members.
fn found(admin: u8, salt: u8, members: &[(&str, u8)]) -> RosterChain {
    let mut draft = Draft::first([salt; 32], "demo.lan", *key(admin).public(), recovery());
    for (name, seed) in members {
        draft.add((*name).into(), *key(*seed).public(), Role::Member).unwrap();
        draft.vote(&(*name).into(), true).unwrap();
    }
    RosterChain::found(draft.sign(&[&key(admin)]).unwrap()).unwrap()
}

fn demo() -> RosterChain {
    found(200, 9, &[("a1", 1), ("b1", 2)])
}

fn step(chain: &RosterChain, change: impl FnOnce(&mut Draft) -> &mut Draft) -> Entry {
    let mut draft = Draft::after(chain);
    change(&mut draft);
    draft.sign(&[&key(200)]).unwrap()
}

fn add(chain: &RosterChain, name: &str, seed: u8) -> RosterChain {
    let entry = step(chain, |d| d.add(name.into(), *key(seed).public(), Role::Member).unwrap());
    chain.apply(entry).unwrap().chain
}

impl Machine {
    fn call<T, F: Future<Output = Result<T, bus::CallError>>>(
        &self,
        call: impl FnOnce(Client) -> F,
    ) -> Result<T, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let path = self.path("run/bus");
        let called = async { call(Client::connect(&path, DEADLINE).await.unwrap()).await };
        runtime.block_on(called).map_err(|e| e.to_string())
    }

    fn apply(&self, entries: &[&Entry]) -> Result<String, String> {
        let bytes: Vec<u8> = entries.iter().flat_map(|e| e.bytes().to_vec()).collect();
        self.call(|client| async move { client.apply_roster(&bytes).await })
    }

    fn roster(&self) -> bus::provision1::RosterRow {
        self.call(|client| async move { client.roster().await }).unwrap()
    }

    /// What is on the disk; the daemon must not run.
    fn kept(&self) -> (RosterRecord, RosterMark) {
        let path = self.path("var/state/roster");
        let record = Record::<RosterRecord>::open(&path).unwrap().unwrap().get().clone();
        (
            record,
            Record::<RosterMark>::open(&path.with_file_name("roster-mark")).unwrap().unwrap().get().clone(),
        )
    }

    fn put_back(&self, record: RosterRecord) {
        let path = self.path("var/state/roster");
        fs::remove_file(&path).unwrap();
        Record::create(&path, record).unwrap();
    }

    /// One start: what it says is wrong, and whether it hands a part out.
    fn complaint(&self) -> (String, bool) {
        let _ = fs::remove_dir_all(self.path("run"));
        let (row, log) = self.run();
        assert!(row.error.is_empty() || log.contains(&format!("error {}", row.error)), "{log}");
        (row.error, self.part().is_some())
    }
}

#[test]
fn a_roster_is_kept_before_it_counts_and_counts_after_a_restart() {
    let machine = Machine::new();
    let daemon = machine.start();
    daemon.ready();
    let unsigned = machine.part().unwrap();
    assert_eq!(unsigned.cluster_id, peer_core::id::named_cluster("demo"));
    assert_eq!(machine.roster(), Default::default());

    let first = demo();
    let told = machine.apply(&[first.newest()]).unwrap();
    assert_eq!(told, format!("cluster {}, entry 0 is in force", first.cluster()));
    let part = machine.part().unwrap();
    assert_eq!((part.cluster_id, part.roster), (first.cluster(), first.machines()));
    assert_eq!(machine.apply(&[first.newest()]).unwrap(), "entry 0 was in force already");
    let second = add(&first, "a2", 3);
    assert_eq!(machine.apply(&[first.newest(), second.newest()]).unwrap(), "entry 1 is in force, added a2");
    let row = machine.roster();
    assert_eq!(
        (row.number, row.domain.as_str(), row.entry.as_slice()),
        (1, "demo.lan", second.newest().bytes())
    );
    let members: Vec<_> = row.members.iter().map(|m| (m.name.as_str(), m.role.as_str(), m.votes)).collect();
    assert_eq!(members, [("a1", "member", true), ("a2", "member", false), ("b1", "member", true)]);
    daemon.terminate();

    assert_eq!(machine.kept(), (second.record(), mark(&second)));
    assert_eq!(machine.complaint(), (String::new(), true));
    assert_eq!(machine.part().unwrap().roster, second.machines());
    // A cut between the two puts: the chain is a step ahead of its mark.
    let third = add(&second, "b2", 4);
    machine.put_back(third.record());
    assert_eq!(machine.complaint(), (String::new(), true));
    assert_eq!(machine.kept().1, mark(&third));
    // And between the first two.
    fs::remove_file(machine.path("var/state/roster-mark")).unwrap();
    assert_eq!(machine.complaint(), (String::new(), true));
    assert_eq!(machine.kept().1, mark(&third));
}

fn mark(chain: &RosterChain) -> RosterMark {
    RosterMark { cluster: chain.cluster(), number: chain.newest().number(), hash: *chain.newest().hash() }
}

#[test]
fn what_is_not_the_next_entry_is_refused_and_changes_nothing() {
    let machine = Machine::new();
    let daemon = machine.start();
    daemon.ready();
    let shut_out = machine.apply(&[found(200, 9, &[("b1", 2)]).newest()]).unwrap_err();
    let expected = format!("no key or another one for a1, which this machine is; expected a1:{}", public(1));
    assert!(shut_out.contains(&expected), "{shut_out}");
    assert!(!machine.path("var/state/roster").exists());

    let first = demo();
    let second = add(&first, "a2", 3);
    machine.apply(&[first.newest(), second.newest()]).unwrap();
    let before = (machine.part().unwrap(), machine.roster());

    let older = first.newest().clone();
    let forked = add(&first, "x9", 77).newest().clone();
    let gap = add(&add(&second, "b2", 4), "c1", 5).newest().clone();
    let elsewhere = add(&found(200, 8, &[("a1", 1), ("b1", 2)]), "a2", 3).newest().clone();
    let by_another_admin = {
        let mut draft = Draft::after(&second);
        draft.remove(&"a2".into()).unwrap();
        draft.sign(&[&key(100)]).unwrap()
    };
    let domain = step(&second, |d| d.move_domain("other.lan"));
    let renamed = format!("cluster {}, this node is of {}", elsewhere.cluster(), first.cluster());
    let table = [
        (&older, "roster entry 0 is old: this node is at 1"),
        (&forked, "the roster is forked at 1: here "),
        (&gap, "roster entry 3 does not follow 1; fetch 2 first"),
        (&elsewhere, renamed.as_str()),
        (&by_another_admin, "which is neither the admin's nor a recovery key"),
        (&domain, "the roster entry changes the trust domain: 1 recovery keys have to sign it, it has 0"),
    ];
    for (entry, expected) in table {
        let refused = machine.apply(&[entry]).unwrap_err();
        assert!(refused.contains(expected), "{refused}");
        assert_eq!((machine.part().unwrap(), machine.roster()), before, "{expected}");
    }
    // A bit of the signature, which is the last there is.
    let mut bytes = add(&second, "b2", 4).newest().bytes().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let call = |bytes: Vec<u8>| machine.call(|client| async move { client.apply_roster(&bytes).await });
    assert!(call(bytes.clone()).unwrap_err().contains("signature of key"));
    bytes.pop();
    for none in [bytes, Vec::new(), b"noise".to_vec()] {
        let refused = call(none).unwrap_err();
        assert!(refused.contains("expected whole roster entries"), "{refused}");
    }
    assert_eq!((machine.part().unwrap(), machine.roster()), before);
    daemon.terminate();
    assert_eq!(machine.kept(), (second.record(), mark(&second)));
}

#[test]
fn a_node_that_is_taken_out_tells_netd_and_is_not_let_in_again() {
    let machine = Machine::new();
    let daemon = machine.start();
    daemon.ready();
    let first = demo();
    let out = step(&first, |d| d.remove(&"a1".into()).unwrap());
    let told = machine.apply(&[first.newest(), &out]).unwrap_err();
    assert!(told.contains("no key or another one for a1"), "a beginning without this node is none: {told}");
    machine.apply(&[first.newest()]).unwrap();
    assert_eq!(machine.apply(&[&out]).unwrap(), "entry 1 is in force, removed a1");
    let part = machine.part().unwrap();
    assert!(part.roster.key_of(&"a1".into()).is_none() && part.roster.len() == 1);
    assert!(machine.state().error.starts_with("the roster has no key for a1"), "{}", machine.state().error);
    daemon.terminate();
    let (error, part) = machine.complaint();
    assert!(error.starts_with("the roster has no key for a1") && !part, "{error}");
}

/// Each time: nothing is handed out, and the entry that was kept, and no other one, takes the lost one's place.
#[test]
fn a_lost_an_older_and_a_forked_roster_are_refused_at_the_start() {
    let first = demo();
    let second = add(&first, "a2", 3);
    let forked = add(&first, "x9", 77);
    let foreign = found(200, 8, &[("a1", 1)]);
    type Damage<'a> = Box<dyn Fn(&Machine) + 'a>;
    let table: [(&str, Damage<'_>); 5] = [
        (
            "the roster is lost: this node kept entry 1, STATE has none; fetch entry 1 with",
            Box::new(|m| fs::remove_file(m.path("var/state/roster")).unwrap()),
        ),
        (
            "the roster on STATE is older than it was: it ends at entry 0, this node kept 1; fetch entry 1 with",
            Box::new(|m| m.put_back(first.record())),
        ),
        ("the roster on STATE is forked at entry 1: found ", Box::new(|m| m.put_back(forked.record()))),
        ("the roster on STATE is of cluster ", Box::new(|m| m.put_back(foreign.record()))),
        (
            "the roster on STATE cannot be read: record ",
            Box::new(|m| {
                let half = fs::metadata(m.path("var/state/roster")).unwrap().len() as usize / 2;
                m.damage("roster", 30);
                m.damage("roster", half + 30);
            }),
        ),
    ];
    for (expected, damage) in table {
        let machine = Machine::new();
        let daemon = machine.start();
        daemon.ready();
        machine.apply(&[first.newest(), second.newest()]).unwrap();
        daemon.terminate();
        damage(&machine);
        let (error, part) = machine.complaint();
        assert!(error.starts_with(expected) && !part, "{error}");

        let daemon = machine.start();
        daemon.ready();
        assert!(machine.roster().error.starts_with(expected));
        for other in [first.newest(), forked.newest()] {
            let refused = machine.apply(&[other]).unwrap_err();
            assert!(
                refused.contains("cannot take the place of the one on STATE, expected entry 1"),
                "{refused}"
            );
        }
        assert!(machine.part().is_none());
        assert_eq!(
            machine.apply(&[second.newest()]).unwrap(),
            format!("cluster {}, entry 1 is in force", first.cluster())
        );
        assert_eq!(machine.part().unwrap().roster, second.machines());
        assert_eq!(machine.state().error, "");
        daemon.terminate();
        assert_eq!(machine.complaint(), (String::new(), true), "{expected}");
    }
}
