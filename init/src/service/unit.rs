//! Service files: `/etc/evenkeel/services/NAME.toml`, parsed and checked. Pure: text in, units or refusals out.
//!
//! A file that breaks a rule is refused alone, with its line and key; what *requires* it is refused with it, since
//! it could never start; what only comes *after* it boots without it. `docs/formats/service.md` is the user's page.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use proto::control::SERVICE_NAME_MAX;
use serde::Deserialize;
use toml::Spanned;

/// Services of one image; the rows of all of them must fit one control packet.
pub(crate) const SERVICES_MAX: usize = 128;
/// Bytes of a service file; real ones have a few hundred.
pub(crate) const FILE_MAX: usize = 16 * 1024;
/// Words of a command, entries of an environment, names in `after` or `requires`.
const LIST_MAX: usize = 64;
/// Bytes of one word or value.
const WORD_MAX: usize = 4096;
/// What `toml::Spanned` adds to a key's path.
const SPANNED_FIELD: &str = ".$__serde_spanned_private_value";
/// Longest deadline in a file: an hour.
const SECONDS_MAX: u64 = 3600;

/// A service as init runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// The file's name without `.toml`.
    pub(crate) name: String,
    /// Program (absolute path) and arguments; never empty.
    pub(crate) command: Vec<String>,
    /// Started once these are ready or have failed to become ready once.
    pub(crate) after: Vec<String>,
    /// Not started for the first time before these are ready.
    pub(crate) requires: Vec<String>,
    /// What makes it ready.
    pub(crate) ready: Readiness,
    /// How long it may take to become ready.
    pub(crate) ready_timeout: Duration,
    /// Whether it is started again when it ends.
    pub(crate) restart: Restart,
    /// The signal that asks it to stop.
    pub(crate) stop_signal: StopSignal,
    /// How long it may take to stop before it is killed.
    pub(crate) stop_timeout: Duration,
    /// The terminal it gets as standard input, output and error; without one its output is kept by init.
    pub(crate) tty: Option<String>,
    /// Environment beside `PATH` and `TERM`.
    pub(crate) environment: BTreeMap<String, String>,
}

/// What makes a service ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Readiness {
    /// A line on the descriptor named by `NOTIFY_FD`.
    Notify,
    /// The program was executed.
    #[default]
    Exec,
}

/// Whether a service is started again when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Restart {
    /// However it ended.
    #[default]
    Always,
    /// Unless it exited with code 0.
    OnFailure,
    /// Not at all.
    Never,
}

/// The signals a file may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum StopSignal {
    #[default]
    Term,
    Int,
    Quit,
    Hup,
    Usr1,
    Usr2,
    Kill,
}

/// Why a file was refused. The other files are not affected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The service's name.
    pub(crate) name: String,
    /// The file's name.
    pub(crate) file: String,
    /// Line, from 1; 0 when the file as a whole is meant.
    pub(crate) line: usize,
    /// The key; empty when the file as a whole is meant.
    pub(crate) key: String,
    /// What is wrong and what to do.
    pub(crate) message: String,
}

impl Refusal {
    /// A file that could not be read at all.
    pub(crate) fn unreadable(name: &str, why: String) -> Refusal {
        let (name, file) = (shorten(name), shorten(&format!("{name}.toml")));
        Refusal { name, file, line: 0, key: String::new(), message: format!("cannot be read: {why}") }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// A unit with the places of its references, for the rules that need all files.
#[derive(Clone, Debug)]
pub(crate) struct Parsed {
    pub(crate) unit: Unit,
    file: String,
    command_line: usize,
    after_line: usize,
    requires_line: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    command: Spanned<Vec<Spanned<String>>>,
    after: Option<Spanned<Vec<Spanned<String>>>>,
    requires: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default)]
    ready: Readiness,
    ready_timeout_s: Option<Spanned<u64>>,
    #[serde(default)]
    restart: Restart,
    #[serde(default)]
    stop_signal: StopSignal,
    stop_timeout_s: Option<Spanned<u64>>,
    tty: Option<Spanned<String>>,
    #[serde(default)]
    environment: BTreeMap<Spanned<String>, Spanned<String>>,
}

/// Parses the file `name.toml` and checks what can be checked without the other files.
pub(crate) fn parse(name: &str, text: &str) -> Result<Parsed, Refusal> {
    let file = format!("{name}.toml");
    let refuse = |span: Option<Range<usize>>, key: &str, message: String| Refusal {
        name: shorten(name),
        file: shorten(&file),
        line: span.map_or(0, |s| line_of(text, s.start)),
        key: key.to_owned(),
        message,
    };
    if !service_name(name) {
        let rule =
            format!("the name must have 1 to {SERVICE_NAME_MAX} characters a-z, 0-9, '-', a letter first");
        return Err(refuse(None, "", rule));
    }
    if text.len() > FILE_MAX {
        return Err(refuse(None, "", format!("{} bytes, at most {FILE_MAX} are read", text.len())));
    }
    let deserializer =
        toml::Deserializer::parse(text).map_err(|e| refuse(e.span(), "", e.message().to_owned()))?;
    let raw: Raw = serde_path_to_error::deserialize(deserializer).map_err(|e| {
        let path = e.path().to_string().replace(SPANNED_FIELD, "");
        let key = if path == "." { String::new() } else { path };
        let cause = e.into_inner();
        refuse(cause.span(), &key, cause.message().to_owned())
    })?;

    let command = words(&raw.command, "command", &refuse)?;
    match command.first() {
        Some(program) if program.starts_with('/') => {}
        Some(program) => {
            let rule = format!("expected an absolute path like \"/bin/{name}\", found {program:?}");
            return Err(refuse(Some(raw.command.span()), "command", rule));
        }
        None => {
            let rule = "is empty: give the program's absolute path and its arguments".to_owned();
            return Err(refuse(Some(raw.command.span()), "command", rule));
        }
    }
    let seconds = |value: &Option<Spanned<u64>>, key: &str, default: u64| match value {
        None => Ok(Duration::from_secs(default)),
        Some(s) if (1..=SECONDS_MAX).contains(s.get_ref()) => Ok(Duration::from_secs(*s.get_ref())),
        Some(s) => {
            let rule = format!("expected 1 to {SECONDS_MAX} seconds, found {}", s.get_ref());
            Err(refuse(Some(s.span()), key, rule))
        }
    };
    let names = |value: &Option<Spanned<Vec<Spanned<String>>>>, key: &str| {
        let Some(list) = value else { return Ok(Vec::new()) };
        for other in list.get_ref() {
            if !service_name(other.get_ref()) {
                let rule = format!("{:?} is not a service name", shorten(other.get_ref()));
                return Err(refuse(Some(other.span()), key, rule));
            }
            if other.get_ref() == name {
                return Err(refuse(Some(other.span()), key, "names the service itself".to_owned()));
            }
        }
        words(list, key, &refuse)
    };
    let tty = match raw.tty {
        None => None,
        // A device directly below /dev: a path could leave it.
        Some(t) if !t.get_ref().is_empty() && t.get_ref().bytes().all(|b| b.is_ascii_alphanumeric()) => {
            Some(t.into_inner())
        }
        Some(t) => {
            let rule = format!("expected a terminal's name like \"ttyS0\", found {:?}", shorten(t.get_ref()));
            return Err(refuse(Some(t.span()), "tty", rule));
        }
    };
    if raw.environment.len() > LIST_MAX {
        return Err(refuse(None, "environment", format!("more than {LIST_MAX} entries")));
    }
    let mut environment = BTreeMap::new();
    for (key, value) in raw.environment {
        let path = format!("environment.{}", shorten(key.get_ref()));
        let (at, key) = (key.span(), key.into_inner());
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(refuse(Some(at), &path, "a variable's name has letters, digits and '_'".to_owned()));
        }
        if key == "NOTIFY_FD" {
            return Err(refuse(Some(at), &path, "is set by init".to_owned()));
        }
        if value.get_ref().len() > WORD_MAX || value.get_ref().contains('\0') {
            return Err(refuse(
                Some(value.span()),
                &path,
                format!("longer than {WORD_MAX} bytes or has a NUL"),
            ));
        }
        environment.insert(key, value.into_inner());
    }
    let line = |span: Option<Range<usize>>| span.map_or(0, |s| line_of(text, s.start));
    Ok(Parsed {
        command_line: line(Some(raw.command.span())),
        after_line: line(raw.after.as_ref().map(Spanned::span)),
        requires_line: line(raw.requires.as_ref().map(Spanned::span)),
        unit: Unit {
            name: name.to_owned(),
            after: names(&raw.after, "after")?,
            requires: names(&raw.requires, "requires")?,
            ready: raw.ready,
            ready_timeout: seconds(&raw.ready_timeout_s, "ready_timeout_s", 30)?,
            restart: raw.restart,
            stop_signal: raw.stop_signal,
            stop_timeout: seconds(&raw.stop_timeout_s, "stop_timeout_s", 5)?,
            tty,
            environment,
            command,
        },
        file,
    })
}

/// The strings of `list`, bounded in number and length and free of NUL (they become C strings).
fn words(
    list: &Spanned<Vec<Spanned<String>>>,
    key: &str,
    refuse: &impl Fn(Option<Range<usize>>, &str, String) -> Refusal,
) -> Result<Vec<String>, Refusal> {
    if list.get_ref().len() > LIST_MAX {
        return Err(refuse(Some(list.span()), key, format!("more than {LIST_MAX} entries")));
    }
    let mut out = Vec::new();
    for (i, word) in list.get_ref().iter().enumerate() {
        if word.get_ref().len() > WORD_MAX || word.get_ref().contains('\0') {
            let key = format!("{key}[{i}]");
            return Err(refuse(
                Some(word.span()),
                &key,
                format!("longer than {WORD_MAX} bytes or has a NUL"),
            ));
        }
        out.push(word.get_ref().clone());
    }
    Ok(out)
}

/// Whether `name` may name a service: it becomes a file name, a cgroup's name and a word on the console.
pub(crate) fn service_name(name: &str) -> bool {
    name.len() <= SERVICE_NAME_MAX
        && name.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

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

/// The line of byte `at`, from 1.
fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|b| *b == b'\n').count() + 1
}

/// A value from a file, cut to what a message may quote.
fn shorten(value: &str) -> String {
    value.chars().take(48).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str, text: &str) -> Parsed {
        parse(name, text).unwrap()
    }

    #[test]
    fn a_short_file_gets_the_defaults() {
        let u = unit("netd", "command = [\"/bin/netd\", \"-v\"]\n").unit;
        assert_eq!(u.command, ["/bin/netd", "-v"]);
        assert_eq!((u.ready, u.restart, u.stop_signal), (Readiness::Exec, Restart::Always, StopSignal::Term));
        assert_eq!((u.ready_timeout, u.stop_timeout), (Duration::from_secs(30), Duration::from_secs(5)));
        assert!(u.after.is_empty() && u.requires.is_empty() && u.tty.is_none() && u.environment.is_empty());
    }

    #[test]
    fn every_key_is_read() {
        let text = "command = ['/bin/a']\nafter = ['b']\nrequires = ['c']\nready = 'notify'\n\
            ready_timeout_s = 7\nrestart = 'on-failure'\nstop_signal = 'INT'\nstop_timeout_s = 9\n\
            tty = 'ttyS0'\n[environment]\nK_1 = 'v'\n";
        let u = unit("a", text).unit;
        assert_eq!((u.after, u.requires), (vec!["b".to_owned()], vec!["c".to_owned()]));
        assert_eq!(
            (u.ready, u.restart, u.stop_signal),
            (Readiness::Notify, Restart::OnFailure, StopSignal::Int)
        );
        assert_eq!((u.ready_timeout.as_secs(), u.stop_timeout.as_secs()), (7, 9));
        assert_eq!(
            (u.tty.as_deref(), u.environment.get("K_1").map(String::as_str)),
            (Some("ttyS0"), Some("v"))
        );
    }

    #[test]
    fn each_breach_names_line_and_key() {
        let c = "command = ['/bin/a']\n";
        let cases: &[(&str, String, usize, &str, &str)] = &[
            ("a", "comand = ['/bin/a']\n".into(), 1, "comand", "unknown field"),
            ("a", String::new(), 1, "", "missing field `command`"),
            ("a", "command = [".into(), 1, "", ""),
            ("a", "command = []\n".into(), 1, "command", "is empty"),
            ("a", "\ncommand = ['a']\n".into(), 2, "command", "absolute path"),
            ("a", "command = 'x'\n".into(), 1, "command", "invalid type"),
            ("a", "command = ['/bin/a', \"\\u0000\"]\n".into(), 1, "command[1]", "NUL"),
            ("a", format!("{c}ready = 'soon'\n"), 2, "ready", "unknown variant"),
            ("a", format!("{c}ready_timeout_s = 0\n"), 2, "ready_timeout_s", "1 to 3600"),
            ("a", format!("{c}stop_timeout_s = 3601\n"), 2, "stop_timeout_s", "found 3601"),
            ("a", format!("{c}restart = 'maybe'\n"), 2, "restart", "unknown variant"),
            ("a", format!("{c}stop_signal = 'STOP'\n"), 2, "stop_signal", "unknown variant"),
            ("a", format!("{c}tty = '../sda'\n"), 2, "tty", "terminal's name"),
            ("a", format!("{c}after = ['B']\n"), 2, "after", "not a service name"),
            ("a", format!("{c}\nrequires = [\n'a']\n"), 4, "requires", "itself"),
            ("a", format!("{c}[environment]\n'A B' = ''\n"), 3, "environment.A B", "letters"),
            ("a", format!("{c}[environment]\nNOTIFY_FD = '3'\n"), 3, "environment.NOTIFY_FD", "set by init"),
            ("A", c.into(), 0, "", "characters a-z"),
            ("a", format!("{c}#{}", "x".repeat(FILE_MAX)), 0, "", "at most"),
            ("a", format!("command = [{}]", "'/a',".repeat(65)), 1, "command", "more than 64"),
        ];
        for (name, text, line, key, message) in cases {
            let r = parse(name, text).expect_err(text);
            assert_eq!((r.line, r.key.as_str()), (*line, *key), "{text:?}: {r}");
            assert!(r.message.contains(message), "{text:?}: {r}");
        }
    }

    fn set(files: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let parsed = files
            .iter()
            .map(|(name, rest)| unit(name, &format!("command = ['/bin/{name}']\n{rest}\n")))
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
}
