//! The rules that need all files: programs that exist, no cycles, nothing required that is not there, no socket twice.

use std::collections::{BTreeMap, BTreeSet};

use super::{Parsed, Refusal, Unit};

/// Applies the rules that need all files; `missing(program)` says why a program cannot be run, if it cannot.
///
/// Returns the units in name order and a refusal for every other file.
pub(crate) fn check(
    parsed: Vec<Parsed>,
    refused: &mut Vec<Refusal>,
    missing: impl Fn(&str) -> Option<String>,
) -> Vec<Unit> {
    let mut good: BTreeMap<String, Parsed> = BTreeMap::new();
    for p in parsed {
        let program = p.unit.command.first().map_or("", String::as_str);
        if let Some(why) = missing(program) {
            refused.push(p.refusal(p.command_line, "command", format!("{program} cannot be run: {why}")));
        } else {
            good.insert(p.unit.name.clone(), p);
        }
    }
    for name in on_cycles(&good) {
        if let (Some(path), Some(p)) = (cycle_through(&good, &name), good.get(&name)) {
            let next = path.get(1).map_or("", String::as_str);
            let by_requires = p.unit.requires.iter().any(|r| r == next);
            let (line, key) =
                if by_requires { (p.requires_line, "requires") } else { (p.after_line, "after") };
            refused.push(p.refusal(line, key, format!("waits for itself: {}", path.join(" -> "))));
        }
    }
    good.retain(|name, _| !refused.iter().any(|r| r.name == *name));
    let clashes: Vec<_> = good.values().filter_map(|p| clash(&good, p)).collect();
    good.retain(|name, _| !clashes.iter().any(|r| r.name == *name));
    refused.extend(clashes);
    // What requires a refused or absent service goes too, until nothing changes: at most once per service.
    loop {
        let lost = good.values().find_map(|p| {
            let absent = p.unit.requires.iter().find(|r| !good.contains_key(*r))?;
            let why =
                if refused.iter().any(|r| r.name == *absent) { "was refused" } else { "does not exist" };
            Some(p.refusal(p.requires_line, "requires", format!("service {absent} {why}")))
        });
        let Some(refusal) = lost else { break };
        good.remove(&refusal.name);
        refused.push(refusal);
    }
    good.into_values().map(|p| p.unit).collect()
}

impl Parsed {
    fn refusal(&self, line: usize, key: &str, message: String) -> Refusal {
        Refusal { name: self.unit.name.clone(), file: self.file.clone(), line, key: key.to_owned(), message }
    }

    fn references(&self) -> impl Iterator<Item = &String> {
        self.unit.requires.iter().chain(&self.unit.after)
    }
}

/// The refusal of `p` when a service before it, in name order, has one of its sockets.
fn clash(units: &BTreeMap<String, Parsed>, p: &Parsed) -> Option<Refusal> {
    p.unit.sockets.iter().zip(&p.socket_lines).enumerate().find_map(|(i, (socket, line))| {
        let before = units.range(..p.unit.name.clone());
        let (owner, _) =
            before.into_iter().find(|(_, o)| o.unit.sockets.iter().any(|s| s.clashes(socket)))?;
        let message = format!("{} is a socket of service {owner}", socket.address);
        Some(p.refusal(*line, &format!("socket[{i}]"), message))
    })
}

/// Every service that lies on a cycle of `after` and `requires`.
fn on_cycles(units: &BTreeMap<String, Parsed>) -> Vec<String> {
    units.keys().filter(|name| cycle_through(units, name).is_some()).cloned().collect()
}

/// The shortest way from `name` back to itself, both ends included.
fn cycle_through(units: &BTreeMap<String, Parsed>, name: &str) -> Option<Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut paths = vec![vec![name.to_owned()]];
    while !paths.is_empty() {
        let mut longer = Vec::new();
        for path in paths {
            let Some(parsed) = path.last().and_then(|last| units.get(last)) else { continue };
            for next in parsed.references() {
                let mut way = path.clone();
                way.push(next.clone());
                if next == name {
                    return Some(way);
                }
                if seen.insert(next.clone()) {
                    longer.push(way);
                }
            }
        }
        paths = longer;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::unit::parse;

    fn set(files: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let parsed = files
            .iter()
            .map(|(name, rest)| parse(name, &format!("command = ['/bin/{name}']\n{rest}\n")).unwrap())
            .collect();
        let mut refused = Vec::new();
        let missing = |p: &str| (p == "/bin/gone").then(|| "no such file".to_owned());
        let good = check(parsed, &mut refused, missing);
        (good.into_iter().map(|u| u.name).collect(), refused.into_iter().map(|r| r.to_string()).collect())
    }

    #[test]
    fn a_cycle_refuses_its_members_only() {
        let (good, refused) = set(&[
            ("a", "after = ['b']"),
            ("b", "requires = ['c']"),
            ("c", "after = ['a']"),
            ("d", "after = ['a']"),
            ("e", ""),
        ]);
        assert_eq!(good, ["d", "e"]);
        assert_eq!(refused[0], "a.toml:2: after: waits for itself: a -> b -> c -> a");
        assert_eq!(refused[1], "b.toml:2: requires: waits for itself: b -> c -> a -> b");
        assert_eq!(refused.len(), 3);
    }

    #[test]
    fn what_requires_a_refused_service_is_refused_with_it() {
        let (good, refused) = set(&[
            ("gone", ""),
            ("x", "requires = ['gone']"),
            ("y", "requires = ['x']"),
            ("z", "after = ['gone', 'nobody']"),
            ("w", "requires = ['nobody']"),
        ]);
        assert_eq!(good, ["z"]);
        assert_eq!(
            refused,
            [
                "gone.toml:1: command: /bin/gone cannot be run: no such file",
                "w.toml:2: requires: service nobody does not exist",
                "x.toml:2: requires: service gone was refused",
                "y.toml:2: requires: service x was refused",
            ]
        );
    }

    #[test]
    fn a_socket_has_one_owner() {
        let (good, refused) = set(&[
            ("a", "[[socket]]\nstream = '/run/a'\n[[socket]]\nstream = '[::]:80'"),
            ("b", "[[socket]]\ndatagram = '[::]:80'\n[[socket]]\nseqpacket = '/run/a'"),
            ("c", "[[socket]]\nstream = '[::]:80'"),
            ("d", "requires = ['c']"),
        ]);
        assert_eq!(good, ["a"]);
        assert_eq!(
            refused,
            [
                "b.toml:5: socket[1]: /run/a is a socket of service a",
                "c.toml:3: socket[0]: [::]:80 is a socket of service a",
                "d.toml:2: requires: service c was refused",
            ]
        );
    }
}
