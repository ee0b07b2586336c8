//! The parser as a whole: the demonstration cluster, what a technician reads, and texts made to do harm.

use super::*;

mod rules;

const DEMO: &str = include_str!("../../testdata/demo.toml");

#[test]
fn the_demonstration_cluster_is_read_in_full() {
    let file = ClusterFile::parse("demo.toml", DEMO).unwrap();
    assert_eq!((file.schema, file.cluster.as_str(), file.timing), (1, "demo", Timing::LAB));
    assert_eq!((file.networks.len(), file.nodes.len(), file.vips.len()), (2, 4, 6));
    let a2 = &file.nodes[&"a2".into()];
    assert_eq!((a2.group.0.as_str(), a2.pair.as_ref()), ("west", Some(&"a".into())));
    assert_eq!(a2.ports[&"m".into()].v4, Some("10.8.0.13".parse().unwrap()));
    assert_eq!(a2.ports[&"p2".into()].matcher, PortMatch::Pci { bus: 0, device: 0x11, function: 0 });
    let shop = &file.vips[&"shop-6".into()];
    assert_eq!(
        (shop.home.to_string(), shop.guard, shop.failback),
        ("b2:p2".into(), Guard::Available, Failback::Never)
    );
    assert_eq!(shop.address, "fd09::113".parse::<core::net::IpAddr>().unwrap());
    assert_eq!(file.partner(&"a1".into()), Some(&"a2".into()));
    assert_eq!(file.management_address(&"b2".into()), Some("10.8.0.14".parse().unwrap()));
}

/// The demonstration cluster with the first `from` replaced by `to`.
fn changed(from: &str, to: &str) -> String {
    assert!(DEMO.contains(from), "the demonstration cluster has no {from:?}");
    DEMO.replacen(from, to, 1)
}

fn problems(text: &str) -> Diagnostics {
    ClusterFile::parse("cluster.toml", text).expect_err("the file is refused")
}

/// What the technician reads, to the letter.
#[test]
fn printed_refusals() {
    let table = [
        (
            "broken TOML",
            changed(r#"cluster = "demo""#, r#"cluster = "demo"#),
            r#"
cluster.toml:4:16: invalid basic string, expected `"`
    4 | cluster = "demo
      |                ^"#,
        ),
        (
            "VIP outside every network",
            changed(r#"address = "10.9.0.101""#, r#"address = "10.7.0.101""#),
            r#"
cluster.toml:55:11: vip[0].address: VIP 10.7.0.101 is outside every network
   55 | address = "10.7.0.101"
      |           ^^^^^^^^^^^^
   help: network data is 10.9.0.0/24, fd09::/64"#,
        ),
        (
            "two nodes of one pair in one group",
            changed(r#"group = "west""#, r#"group = "east""#)
                .replacen(r#"group = "west""#, r#"group = "east""#, 1)
                .replace(r#"group = "west""#, r#"group = "east""#),
            r#"
cluster.toml:34:9: node[2].group: pair a has a1 in group east already
   34 | group = "east"
      |         ^^^^^^
   help: two nodes of a pair never share a group: put them into different ones
cluster.toml:44:9: node[3].group: pair b has b1 in group east already
   44 | group = "east"
      |         ^^^^^^
   help: two nodes of a pair never share a group: put them into different ones"#,
        ),
        (
            "unknown port",
            changed(r#"home = "a1:p1""#, r#"home = "a1:p9""#),
            r#"
cluster.toml:56:8: vip[0].home: unknown port "a1:p9"
   56 | home = "a1:p9"
      |        ^^^^^^^
   help: ports of a1 are: p1, p2, m"#,
        ),
        (
            "unknown key",
            changed("pair = \"a\"\n", "pear = \"a\"\n"),
            r#"
cluster.toml:13:1: node[0].pear: unknown key "pear"
   13 | pear = "a"
      | ^^^^
   help: did you mean "pair"?"#,
        ),
        (
            "unknown network",
            changed(r#"network = "data" },"#, "\n  network = \"dta\" },"),
            r#"
cluster.toml:17:13: node[0].port[0].network: unknown network "dta"
   17 |   network = "dta" },
      |             ^^^^^
   help: networks are: data, mgmt"#,
        ),
    ];
    for (what, text, expected) in table {
        assert_eq!(format!("\n{}", problems(&text)), expected, "{what}");
    }
}

#[test]
fn the_file_cannot_drive_the_terminal() {
    let text = changed(r#"cluster = "demo""#, "\"\\u001b[2J\" = 1\nclu\u{1b}[31mster = 1");
    let shown = problems(&text).to_string();
    assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{shown:?}");
    let text = changed(r#"cluster = "demo""#, &format!("cluster = \"{}\"", "\u{202e}é".repeat(4000)));
    let shown = problems(&text).to_string();
    assert!(shown.len() < 1000 && !shown.contains('\u{202e}'), "{shown:?}");
    let text = changed(r#"cluster = "demo""#, &format!("{}cluster = 5", " ".repeat(500)));
    let shown = problems(&text).to_string();
    assert!(shown.contains(":4:511:") && shown.lines().all(|l| l.len() < 130), "{shown}");
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[1].find('5').map(|_| lines[1].rfind('5')), Some(lines[2].find('^')), "{shown}");
}

mod mutations {
    use super::*;
    use proptest::prelude::*;

    /// A file after some of what editors, disks and people do to one.
    fn mutated(mut text: Vec<u8>, edits: &[(usize, usize, u8, String)]) -> String {
        for (at, len, kind, insert) in edits {
            let at = at % (text.len() + 1);
            let end = (at + len).min(text.len());
            match kind % 4 {
                0 => drop(text.splice(at..end, insert.bytes())),
                1 => drop(text.splice(at..at, insert.bytes())),
                2 => text.truncate(at),
                _ => {
                    let part = text[at..end].to_vec();
                    text.splice(at..at, part);
                }
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

        #[test]
        fn never_panic_and_every_refusal_says_why(
            edits in prop::collection::vec(
                (0usize..4000, 0usize..60, any::<u8>(),
                 prop_oneof!["[\\[\\]{}=\",.\n a-z0-9:]{0,12}", Just("\"10.9.0.0/0\"".into()), Just("[[vip]]\n".into()), ".{0,6}"]),
                1..5,
            )
        ) {
            let text = mutated(DEMO.as_bytes().to_vec(), &edits);
            if let Err(found) = ClusterFile::parse("cluster.toml", &text) {
                prop_assert!(found.iter().count() > 0);
                for problem in found.iter() {
                    prop_assert!(problem.line >= 1 && problem.line <= text.split('\n').count());
                    prop_assert!(!problem.message.is_empty() && !problem.message.contains('\n'));
                }
                let shown = found.to_string();
                prop_assert!(shown.chars().all(|c| c == '\n' || !c.is_control()));
            }
        }
    }
}
