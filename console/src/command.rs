//! The commands of `keel`: one parser for arguments, the shell's lines and the agent's requests.
//!
//! Pure: words in, a [`Command`] or one line of explanation out.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};

/// Bytes of the longest line that is looked at; the agent's requests and a serial line's bursts end here.
pub(crate) const LINE_MAX: usize = 4096;

/// Lines of a log that are shown when no number is given: what fits a serial screen.
const LOG_LINES: u16 = 20;

/// What `keel help` prints. Fits 20 lines of 78 columns.
pub(crate) const HELP: &str = "\
show [state]           this node at a glance
show ports             network ports and why one is not usable
show vips              virtual addresses: who holds them, where they would go
show peers             the other nodes
show fence             addresses that init deletes when netd hangs
show services          programs on this node
show boot              this boot and how the ones before it ended
show log [SERVICE]     last lines of its output, or of init's own (-n LINES)
restart SERVICE        stop a service and start it again
roster, cluster init   who belongs to the cluster; \"roster ?\" lists more
reboot, power-off      stop everything in order (asks first; --yes does not)
init re-exec [FILE]    init becomes FILE, or itself anew; services run on
version                the release
help, ?                this list; \"show ?\" lists what can be shown
";

/// What `show ?` prints.
pub(crate) const HELP_SHOW: &str =
    "show state|boot|ports|vips|peers|fence|services|log [SERVICE] [-n LINES]\n";

/// What `roster ?` and `cluster ?` print.
pub(crate) const HELP_ROSTER: &str = "\
roster show [FOLDER] [--entry]  who belongs here, or in the admin's folder
roster apply ENTRIES            hand entries in here: hex, a file or a folder
cluster init FOLDER DOMAIN NAME:KEY...  new keys, first entry (--recovery K/N)
roster add FOLDER NAME KEY      sign an entry (--role ROLE, --vote)
roster remove FOLDER NAME       sign one without NAME, which is cut off by it
roster rotate FOLDER NAME KEY   sign one with another key
";

/// Words offered by Tab at the first and the second place.
const VERBS: [&str; 11] =
    ["cluster", "exit", "help", "init", "power-off", "reboot", "restart", "roster", "show", "version", "?"];
const SUBJECTS: [&str; 8] = ["boot", "fence", "log", "peers", "ports", "services", "state", "vips"];

/// Reads the state of this node and changes what may be changed by hand.
#[derive(Debug, Parser)]
#[command(name = "keel", disable_help_subcommand = true, disable_help_flag = true)]
#[command(no_binary_name = true, subcommand_required = true)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

/// A command of `keel`.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
#[command(disable_help_subcommand = true)]
pub(crate) enum Command {
    /// Print something.
    Show {
        /// What; the state when nothing is named.
        #[command(subcommand)]
        what: Option<Show>,
    },
    /// Stop a service and start it again.
    Restart {
        /// The service's name.
        service: String,
    },
    /// Stop everything in order and restart the machine.
    Reboot {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Stop everything in order and switch the machine off.
    PowerOff {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// What concerns the node's first process.
    Init {
        #[command(subcommand)]
        what: Init,
    },
    /// Found a cluster.
    Cluster {
        #[command(subcommand)]
        what: Cluster,
    },
    /// Who belongs to the cluster.
    Roster {
        #[command(subcommand)]
        what: Roster,
    },
    /// The release.
    Version,
    /// List the commands.
    #[command(alias = "?")]
    Help,
    /// What can be shown; typed as `show ?`.
    #[command(skip)]
    HelpShow,
    /// What can be done about the roster; typed as `roster ?`.
    #[command(skip)]
    HelpRoster,
    /// The shell on the serial console.
    #[command(hide = true)]
    Shell,
    /// Serve commands on the virtio port of this name.
    #[command(hide = true)]
    Agent {
        /// The port's name, as the machine's command line gave it.
        port: String,
    },
    /// Serve what init says over D-Bus.
    #[command(hide = true)]
    InitBus,
    /// Leave the shell.
    #[command(hide = true, alias = "quit", alias = "logout")]
    Exit,
}

/// What `init` can be told.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
#[command(disable_help_subcommand = true)]
pub(crate) enum Init {
    /// Let another program take over as the first process while services run.
    ReExec {
        /// Its absolute path; the running one when left out.
        file: Option<String>,
    },
}

/// What `cluster` can do.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
#[command(disable_help_subcommand = true)]
pub(crate) enum Cluster {
    /// Make the admin's folder: keys and the first signed roster.
    Init {
        /// The folder, which is not there yet.
        folder: String,
        /// The trust domain.
        domain: String,
        /// Members with their keys, `name:key`.
        members: Vec<String>,
        /// How many of how many recovery keys can take the admin key's place.
        #[arg(long, default_value = "2/3")]
        recovery: String,
    },
}

/// What `roster` can do.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
#[command(disable_help_subcommand = true)]
pub(crate) enum Roster {
    /// Print who belongs.
    Show {
        /// The admin's folder; the node's own roster when left out.
        folder: Option<String>,
        /// Print the newest entry as it is handed in.
        #[arg(long)]
        entry: bool,
    },
    /// Hand entries in to this node.
    Apply {
        /// Hex text, a file with it, or the admin's folder.
        entries: String,
    },
    /// Sign an entry that takes somebody in.
    Add {
        folder: String,
        name: String,
        key: String,
        #[arg(long, value_enum, default_value_t)]
        role: Role,
        /// Its vote counts.
        #[arg(long)]
        vote: bool,
    },
    /// Sign an entry that takes somebody out.
    Remove { folder: String, name: String },
    /// Sign an entry that gives somebody another key.
    Rotate { folder: String, name: String, key: String },
}

/// What somebody of the roster is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    /// An appliance.
    #[default]
    Member,
    /// A machine that only votes.
    Witness,
    /// May change things.
    Operator,
    /// May look.
    Viewer,
}

/// What `show` can print. A beginning of the word is enough.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
#[command(disable_help_subcommand = true, infer_subcommands = true)]
pub(crate) enum Show {
    /// This node at a glance.
    State,
    /// This boot and the ones before it.
    Boot,
    /// Ports.
    Ports,
    /// Virtual addresses.
    Vips,
    /// The other nodes.
    Peers,
    /// Addresses that init deletes when netd hangs.
    Fence,
    /// Services.
    Services,
    /// The last lines of a service's output, or of init's.
    Log {
        /// The service; init itself when left out.
        service: Option<String>,
        /// How many lines.
        #[arg(short = 'n', default_value_t = LOG_LINES, value_parser = clap::value_parser!(u16).range(1..=200))]
        lines: u16,
    },
}

/// Splits a line at blanks. Nothing that `keel` knows has blanks inside, so there is no quoting.
pub(crate) fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// The command that `words` say, or one line that says what is wrong and what to type. `None` for no words.
///
/// A leading `keel` is skipped: messages quote commands the way a script would call them.
pub(crate) fn parse<W: AsRef<str>>(words: &[W]) -> Option<Result<Command, String>> {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    let words = match words.as_slice() {
        ["keel", rest @ ..] if !rest.is_empty() => rest,
        all => all,
    };
    match words {
        [] => None,
        ["show", .., "?" | "-h" | "--help"] => Some(Ok(Command::HelpShow)),
        ["roster" | "cluster", .., "?" | "-h" | "--help"] => Some(Ok(Command::HelpRoster)),
        [.., "?" | "-h" | "--help"] => Some(Ok(Command::Help)),
        ["-V" | "--version"] => Some(Ok(Command::Version)),
        _ => Some(Line::try_parse_from(words).map(|line| line.command).map_err(|e| explain(&e))),
    }
}

/// One line for what the parser takes several for.
fn explain(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => printable(text),
        Some(ContextValue::Strings(texts)) => {
            texts.iter().map(|t| format!("\"{}\"", printable(t))).collect::<Vec<_>>().join(" or ")
        }
        _ => String::new(),
    };
    let text = match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let typed = context(ContextKind::InvalidSubcommand);
            let known = context(ContextKind::SuggestedSubcommand);
            match known.as_str() {
                "" => format!("unknown command \"{typed}\"; \"help\" lists what there is"),
                known => format!("unknown command \"{typed}\"; did you mean {known}?"),
            }
        }
        ErrorKind::UnknownArgument => {
            format!("unexpected \"{}\"; \"help\" lists the commands", context(ContextKind::InvalidArg))
        }
        ErrorKind::MissingRequiredArgument => {
            format!(
                "{} is missing; \"help\" lists the commands",
                context(ContextKind::InvalidArg).replace('"', "")
            )
        }
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            printable(line.strip_prefix("error: ").unwrap_or(line))
        }
    };
    crate::render::text::clip(&text, 200)
}

/// What a user typed may not steer the terminal when it is quoted.
fn printable(text: &str) -> String {
    crate::render::text::printable(text)
}

/// Where the word under the cursor begins and what it can become. `line` ends at the cursor.
pub(crate) fn complete(line: &str) -> (usize, Vec<&'static str>) {
    let start = line.rfind(char::is_whitespace).map_or(0, |at| at + 1);
    let before = words(&line[..start]);
    let choices: &[&'static str] = match before.as_slice() {
        [] => &VERBS,
        ["show"] => &SUBJECTS,
        ["init"] => &["re-exec"],
        ["cluster"] => &["init"],
        ["roster"] => &["add", "apply", "remove", "rotate", "show"],
        _ => &[],
    };
    (start, choices.iter().filter(|c| c.starts_with(&line[start..])).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(&words(line)).expect("there are words")
    }

    fn show(what: Show) -> Result<Command, String> {
        Ok(Command::Show { what: Some(what) })
    }

    #[test]
    fn lines_and_what_they_mean() {
        let log =
            |service: Option<&str>, lines| show(Show::Log { service: service.map(str::to_owned), lines });
        let table = [
            ("show", Ok(Command::Show { what: None })),
            ("show state", show(Show::State)),
            ("show boot", show(Show::Boot)),
            ("keel show vips", show(Show::Vips)),
            ("  show\t ports  ", show(Show::Ports)),
            ("show v", show(Show::Vips)),
            ("show serv", show(Show::Services)),
            ("show peers", show(Show::Peers)),
            ("show fence", show(Show::Fence)),
            ("show log", log(None, 20)),
            ("show log netd", log(Some("netd"), 20)),
            ("show log netd -n 200", log(Some("netd"), 200)),
            ("show log -n5", log(None, 5)),
            ("restart netd", Ok(Command::Restart { service: "netd".into() })),
            ("reboot", Ok(Command::Reboot { yes: false })),
            ("power-off --yes", Ok(Command::PowerOff { yes: true })),
            ("init re-exec", Ok(Command::Init { what: Init::ReExec { file: None } })),
            ("init re-exec /i", Ok(Command::Init { what: Init::ReExec { file: Some("/i".into()) } })),
            ("roster ?", Ok(Command::HelpRoster)),
            ("cluster init ?", Ok(Command::HelpRoster)),
            ("roster show", Ok(Command::Roster { what: Roster::Show { folder: None, entry: false } })),
            ("roster apply 00", Ok(Command::Roster { what: Roster::Apply { entries: "00".into() } })),
            ("version", Ok(Command::Version)),
            ("--version", Ok(Command::Version)),
            ("help", Ok(Command::Help)),
            ("?", Ok(Command::Help)),
            ("reboot ?", Ok(Command::Help)),
            ("--help", Ok(Command::Help)),
            ("show ?", Ok(Command::HelpShow)),
            ("shell", Ok(Command::Shell)),
            ("agent org.evenkeel.keel", Ok(Command::Agent { port: "org.evenkeel.keel".into() })),
            ("init-bus", Ok(Command::InitBus)),
            ("quit", Ok(Command::Exit)),
        ];
        for (line, expected) in table {
            assert_eq!(parsed(line), expected, "{line}");
        }
        assert!(parse(&words("  \t ")).is_none());
    }

    #[test]
    fn mistakes_are_explained_in_one_line() {
        let table = [
            ("shwo", "unknown command \"shwo\"; did you mean \"show\"?"),
            ("xyzzy", "unknown command \"xyzzy\"; \"help\" lists what there is"),
            ("show vipz", "unknown command \"vipz\"; did you mean \"vips\"?"),
            ("sh", "unknown command \"sh\"; did you mean"),
            ("reb", "unknown command \"reb\"; did you mean \"reboot\"?"),
            ("init reexec", "unknown command \"reexec\"; did you mean \"re-exec\"?"),
            ("restart", "<SERVICE> is missing; \"help\" lists the commands"),
            ("reboot now", "unexpected \"now\"; \"help\" lists the commands"),
            ("show log netd -n 201", "invalid value '201' for '-n <LINES>': 201 is not in 1..=200"),
            ("show log netd -n x", "invalid value 'x' for '-n <LINES>': invalid digit found in string"),
            ("--frob", "unexpected \"--frob\"; \"help\" lists the commands"),
            ("\u{1b}[31m", "unknown command \"?[31m\"; \"help\" lists what there is"),
        ];
        for (line, expected) in table {
            let message = parsed(line).expect_err(line);
            assert!(message.starts_with(expected), "{line}: {message}");
            assert!(!message.contains('\n') && message.chars().all(|c| !c.is_control()), "{message:?}");
        }
        assert!(
            parsed(&"x".repeat(LINE_MAX)).expect_err("nonsense").len() < 300,
            "a long word is not echoed whole"
        );
    }

    #[test]
    fn completion() {
        let table: [(&str, usize, &[&str]); 8] = [
            ("sh", 0, &["show"]),
            ("re", 0, &["reboot", "restart"]),
            ("roster r", 7, &["remove", "rotate"]),
            ("show ", 5, &SUBJECTS),
            ("show  p", 6, &["peers", "ports"]),
            ("show ports x", 11, &[]),
            ("zz", 0, &[]),
            ("schön", 0, &[]),
        ];
        for (line, start, expected) in table {
            assert_eq!(complete(line), (start, expected.to_vec()), "{line:?}");
        }
    }

    #[test]
    fn every_offered_word_is_a_command() {
        for verb in VERBS {
            let line = match verb {
                "restart" => "restart x",
                "init" => "init re-exec",
                "cluster" => "cluster init f demo.lan a1:00",
                "roster" => "roster show",
                verb => verb,
            };
            assert!(parsed(line).is_ok(), "{verb}");
        }
        for subject in SUBJECTS {
            assert!(parsed(&format!("show {subject}")).is_ok(), "{subject}");
            assert!(HELP_SHOW.contains(subject));
        }
    }

    #[test]
    fn help_fits_a_serial_screen() {
        assert!(HELP.lines().count() <= 20 && HELP.len() <= 1000, "{}", HELP.len());
        for line in HELP.lines().chain(HELP_SHOW.lines()).chain(HELP_ROSTER.lines()) {
            assert!(line.chars().count() <= 78, "{line}");
        }
    }
}
