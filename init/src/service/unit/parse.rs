//! One file: text to a unit, or the first breach with its line and key.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::control::SERVICE_NAME_MAX;
use serde::Deserialize;
use toml::Spanned;

use super::place::{LIST_MAX, Source, WORD_MAX, Words, shorten};
use super::{
    FILE_MAX, Readiness, Refusal, Restart, StopSignal, Unit, limits, privileges, sandbox, service_name,
    socket,
};

/// What `toml::Spanned` adds to a key's path.
const SPANNED_FIELD: &str = ".$__serde_spanned_private_value";
/// Longest deadline in a file: an hour.
const SECONDS_MAX: u64 = 3600;
/// Variables that init sets itself.
const OWN_VARIABLES: [&str; 4] = ["NOTIFY_FD", "STORE_FD", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// A unit with the places of its references, for the rules that need all files.
#[derive(Clone, Debug)]
pub(crate) struct Parsed {
    pub(crate) unit: Unit,
    pub(super) file: String,
    /// The line of each socket.
    pub(super) socket_lines: Vec<usize>,
    pub(super) command_line: usize,
    pub(super) after_line: usize,
    pub(super) requires_line: usize,
}
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    command: Words,
    after: Option<Words>,
    requires: Option<Words>,
    #[serde(default)]
    ready: Readiness,
    ready_timeout_s: Option<Spanned<u64>>,
    #[serde(default)]
    restart: Restart,
    #[serde(default)]
    stop_signal: StopSignal,
    stop_timeout_s: Option<Spanned<u64>>,
    tty: Option<Spanned<String>>,
    watchdog_s: Option<Spanned<u64>>,
    #[serde(default)]
    fence: bool,
    #[serde(default)]
    keeps_memory: bool,
    #[serde(default)]
    environment: BTreeMap<Spanned<String>, Spanned<String>>,
    user: Option<Spanned<u32>>,
    group: Option<Spanned<u32>>,
    capabilities: Option<Words>,
    no_new_privs: Option<Spanned<bool>>,
    sandbox: Option<sandbox::Raw>,
    limits: Option<limits::Raw>,
    #[serde(default)]
    socket: Vec<Spanned<socket::Raw>>,
}

/// Parses the file `name.toml` and checks what can be checked without the other files.
pub(crate) fn parse(name: &str, text: &str) -> Result<Parsed, Refusal> {
    let source = Source { name, text };
    let refuse = |span, key: &str, message: String| source.refuse(span, key, message);
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

    let command = source.words(&raw.command, "command")?;
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
    let names = |value: &Option<Words>, key: &str| {
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
        source.words(list, key)
    };
    let watchdog = match &raw.watchdog_s {
        None => None,
        Some(s) if raw.ready != Readiness::Notify => {
            let rule = "its lines come on the readiness descriptor: add ready = \"notify\"".to_owned();
            return Err(refuse(Some(s.span()), "watchdog_s", rule));
        }
        some => Some(seconds(some, "watchdog_s", 0)?),
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
        if OWN_VARIABLES.contains(&key.as_str()) {
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
    let sandbox = sandbox::parse(raw.sandbox.as_ref(), &source)?;
    let privileges = privileges::Raw {
        user: &raw.user,
        group: &raw.group,
        capabilities: &raw.capabilities,
        no_new_privs: &raw.no_new_privs,
        implied: sandbox.system_calls.is_some() || sandbox.paths.is_some(),
    };
    let (sockets, socket_lines) = socket::parse(&raw.socket, &source)?.into_iter().unzip();
    let line_of = |list: &Option<Words>| list.as_ref().map_or(0, |l| source.line(&l.span()));
    Ok(Parsed {
        command_line: source.line(&raw.command.span()),
        after_line: line_of(&raw.after),
        requires_line: line_of(&raw.requires),
        socket_lines,
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
            watchdog,
            fence: raw.fence,
            keeps_memory: raw.keeps_memory,
            environment,
            command,
            privileges: privileges::parse(&privileges, &source)?,
            sandbox,
            limits: limits::parse(raw.limits.as_ref(), &source)?,
            sockets,
        },
        file: shorten(&format!("{name}.toml")),
    })
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
        assert_eq!((u.watchdog, u.fence, u.keeps_memory), (None, false, false));
    }

    #[test]
    fn every_key_is_read() {
        let text = "command = ['/bin/a']\nafter = ['b']\nrequires = ['c']\nready = 'notify'\n\
            ready_timeout_s = 7\nrestart = 'on-failure'\nstop_signal = 'INT'\nstop_timeout_s = 9\n\
            tty = 'ttyS0'\nwatchdog_s = 3\nfence = true\nkeeps_memory = true\n[environment]\nK_1 = 'v'\n";
        let u = unit("a", text).unit;
        assert_eq!((u.after, u.requires), (vec!["b".to_owned()], vec!["c".to_owned()]));
        assert_eq!(
            (u.ready, u.restart, u.stop_signal),
            (Readiness::Notify, Restart::OnFailure, StopSignal::Int)
        );
        assert_eq!((u.ready_timeout.as_secs(), u.stop_timeout.as_secs()), (7, 9));
        assert_eq!((u.watchdog, u.fence, u.keeps_memory), (Some(Duration::from_secs(3)), true, true));
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
            ("a", format!("{c}[environment]\nSTORE_FD = '3'\n"), 3, "environment.STORE_FD", "set by init"),
            ("a", format!("{c}watchdog_s = 3\n"), 2, "watchdog_s", "notify"),
            ("a", format!("{c}ready = 'notify'\nwatchdog_s = 0\n"), 3, "watchdog_s", "1 to 3600"),
            ("a", format!("{c}fence = 1\n"), 2, "fence", "invalid type"),
            (
                "a",
                format!("{c}[environment]\nLISTEN_FDS = '3'\n"),
                3,
                "environment.LISTEN_FDS",
                "set by init",
            ),
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
}
