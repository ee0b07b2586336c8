//! Reads a TOML tree piece by piece and reports every piece that has the wrong shape, with its place.
//!
//! A derived `Deserialize` stops at its first error and knows no key path; this walks the tree that `toml` builds
//! with spans, so that one reading tells all problems of a file.

use super::diagnostic::{At, Place, Sink, listed, quoted};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A table whose keys have been checked against the ones it may have.
pub(super) struct TableReader<'d, 't> {
    table: &'d DeTable<'t>,
    pub(super) place: Place,
    keys: &'static [&'static str],
}

/// A value with its place, not yet looked at.
pub(super) type Node<'d, 't> = At<&'d DeValue<'t>>;

impl<'d, 't> TableReader<'d, 't> {
    /// `table` with every key outside `keys` reported.
    pub(super) fn new(
        table: &'d DeTable<'t>,
        place: Place,
        keys: &'static [&'static str],
        sink: &mut Sink<'_>,
    ) -> Self {
        for key in table.keys().filter(|k| !keys.contains(&k.get_ref().as_ref())) {
            let at = Place { path: join(&place.path, key.get_ref()), span: key.span() };
            let help = match closest(key.get_ref(), keys) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("keys here are: {}", listed(keys)),
            };
            sink.report_help(&at, format!("unknown key {}", quoted(key.get_ref())), help);
        }
        Self { table, place, keys }
    }

    /// `node` as a table with the keys `keys`.
    pub(super) fn of(
        node: &Node<'d, 't>,
        keys: &'static [&'static str],
        sink: &mut Sink<'_>,
    ) -> Option<Self> {
        match node.value {
            DeValue::Table(table) => Some(Self::new(table, node.place.clone(), keys, sink)),
            other => {
                wrong_type(&node.place, "a table", other, format!("its keys are: {}", listed(keys)), sink);
                None
            }
        }
    }

    /// The value of `key`, if the table has it.
    pub(super) fn get(&self, key: &'static str) -> Option<Node<'d, 't>> {
        debug_assert!(self.keys.contains(&key));
        let value = self.table.get(key)?;
        Some(At {
            value: value.get_ref(),
            place: Place { path: join(&self.place.path, key), span: value.span() },
        })
    }

    /// The value of `key`; its absence is reported with `example` as the help.
    pub(super) fn require(
        &self,
        key: &'static str,
        example: &str,
        sink: &mut Sink<'_>,
    ) -> Option<Node<'d, 't>> {
        let found = self.get(key);
        if found.is_none() {
            sink.report_help(&self.place, format!("key {key:?} is missing"), format!("add {example}"));
        }
        found
    }
}

/// `node` as a string.
pub(super) fn string(node: &Node<'_, '_>, help: &str, sink: &mut Sink<'_>) -> Option<At<String>> {
    match node.value {
        DeValue::String(s) => Some(At { value: s.clone().into_owned(), place: node.place.clone() }),
        other => {
            wrong_type(&node.place, "a string", other, help.to_owned(), sink);
            None
        }
    }
}

/// `node` as an integer that fits `u64`.
pub(super) fn integer(node: &Node<'_, '_>, sink: &mut Sink<'_>) -> Option<At<u64>> {
    match node.value {
        DeValue::Integer(i) => match u64::from_str_radix(i.as_str(), i.radix()) {
            Ok(value) => Some(At { value, place: node.place.clone() }),
            Err(_) => {
                sink.report(
                    &node.place,
                    format!("{} is not a number from 0 to {}", quoted(i.as_str()), u64::MAX),
                );
                None
            }
        },
        other => {
            wrong_type(&node.place, "a whole number", other, "write it without quotes".to_owned(), sink);
            None
        }
    }
}

/// The elements of `node` as an array, each with its own path; more than `max` are reported and not read.
pub(super) fn array<'d, 't>(
    node: &Node<'d, 't>,
    max: usize,
    what: &str,
    help: &str,
    sink: &mut Sink<'_>,
) -> Vec<Node<'d, 't>> {
    let DeValue::Array(items) = node.value else {
        wrong_type(&node.place, "a list", node.value, help.to_owned(), sink);
        return Vec::new();
    };
    let element = |i: usize, item: &'d Spanned<DeValue<'t>>| At {
        value: item.get_ref(),
        place: Place { path: format!("{}[{i}]", node.place.path), span: item.span() },
    };
    if let Some(extra) = items.get(max) {
        let message = format!("{} {what}, at most {max} are supported", items.len());
        sink.report(&element(max, extra).place, message);
    }
    items.iter().take(max).enumerate().map(|(i, item)| element(i, item)).collect()
}

/// The entries of `node` as a table with free keys.
pub(super) fn entries<'d, 't>(
    node: &Node<'d, 't>,
    help: &str,
    sink: &mut Sink<'_>,
) -> Vec<(At<String>, Node<'d, 't>)> {
    let DeValue::Table(table) = node.value else {
        wrong_type(&node.place, "a table", node.value, help.to_owned(), sink);
        return Vec::new();
    };
    let entry = |(key, value): (&Spanned<_>, &'d Spanned<DeValue<'t>>)| {
        let key: (&std::borrow::Cow<'_, str>, _) = (key.get_ref(), key.span());
        let path = join(&node.place.path, key.0);
        let name = At { value: key.0.to_string(), place: Place { path: path.clone(), span: key.1 } };
        (name, At { value: value.get_ref(), place: Place { path, span: value.span() } })
    };
    table.iter().map(entry).collect()
}

/// Reports that `place` holds another type than the one expected.
pub(super) fn wrong_type(
    place: &Place,
    expected: &str,
    found: &DeValue<'_>,
    help: String,
    sink: &mut Sink<'_>,
) {
    let found = match found {
        DeValue::String(s) => format!("the string {}", quoted(s)),
        DeValue::Integer(i) => format!("the number {}", quoted(i.as_str()).trim_matches('"')),
        DeValue::Float(x) => format!("the number {}", quoted(x.as_str()).trim_matches('"')),
        DeValue::Boolean(b) => b.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    };
    sink.report_help(place, format!("expected {expected}, found {found}"), help);
}

/// `key` below `path`, quoted where TOML would need it.
fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty()
        && key.len() <= 40
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    let key = if bare { key.to_owned() } else { quoted(key) };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// The key of `keys` that `key` is most likely a slip of.
fn closest(key: &str, keys: &'static [&'static str]) -> Option<&'static str> {
    // The distance costs length times length: nothing longer than the longest key and some is worth comparing.
    if key.chars().count() > 24 {
        return None;
    }
    let (near, distance) = keys.iter().map(|k| (*k, edits(key, k))).min_by_key(|(_, d)| *d)?;
    (distance <= 1 + near.len() / 4).then_some(near)
}

/// Insertions, deletions, changes and swaps of neighbours that turn `a` into `b`.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_key_and_a_stranger_finds_none() {
        let keys: &[&str] = &["name", "network", "address", "home", "group"];
        let table = [
            ("adress", Some("address")),
            ("netwrok", Some("network")),
            ("Name", Some("name")),
            ("groups", Some("group")),
            ("mtu", None),
            ("", None),
            ("a-very-long-key-that-nobody-meant", None),
        ];
        for (key, expected) in table {
            assert_eq!(closest(key, keys), expected, "{key}");
        }
    }
}
