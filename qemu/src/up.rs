//! `cargo lab up`: prepares, starts a supervisor, tells what happens, shows the result, and ends it all on Ctrl-C.

use crate::control::{Client, LabStatus, NodeStatus, Phase, Reply, Request, VipStatus};
use crate::error::LabError;
use crate::lab::{self, LabSpec};
use crate::prepare;
use crate::progress::{Progress, Terminal, print};
use crate::variant::Variant;
use crate::{control, dir, signals, supervisor, table};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// Making disks and sockets.
const START_LIMIT: Duration = Duration::from_secs(60);
/// An answer from a lab whose host is busy.
pub const CALL_LIMIT: Duration = Duration::from_secs(30);
/// Ending all machines.
pub const END_LIMIT: Duration = Duration::from_secs(60);

/// What `up` was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The lab's name.
    pub name: String,
    /// The cluster file; the demo cluster's when none is given.
    pub cluster: Option<PathBuf>,
    /// Return once it runs; it goes on.
    pub detach: bool,
    /// Fetch nothing.
    pub offline: bool,
    /// Go on with the last lab's disks and keys.
    pub keep: bool,
    /// Words behind every node's kernel command line.
    pub append: String,
}

enum News {
    Lab(Reply),
    Ended,
    Interrupt,
}

/// Runs `up`; returns when the lab has ended, or, detached, when it runs.
pub fn run(options: &Options) -> Result<(), LabError> {
    let started = Instant::now();
    let root = dir::default_root();
    dir::check_name(&options.name)?;
    if let Some(pid) = dir::owner(&root, &options.name) {
        return Err(LabError::Refused(format!(
            "lab {name} is already up (process {pid}): use it, end it with `cargo lab --name {name} down`, or start another with --name",
            name = options.name
        )));
    }
    let file = options.cluster.clone().unwrap_or_else(lab::demo_file);
    let cluster = lab::check(&file)?;
    let mut progress = Terminal::default();
    let prepared = prepare::prepare(options.offline, &mut progress)?;
    let spec = LabSpec {
        name: options.name.clone(),
        keep: options.keep,
        throw_away: !options.keep,
        variants: cluster.nodes.keys().map(|n| (n.0.clone(), Variant::with_words(&options.append))).collect(),
        ..LabSpec::from_file(&file, &prepared)?
    };

    progress.begin("nodes");
    let (sender, news) = channel();
    listen_for_signals(sender.clone())?;
    let mut owner =
        Client::over(supervisor::spawn(create_supervisor_log(&root, &options.name)?)?, &options.name);
    owner.call(&Request::Start { spec }, START_LIMIT)?;
    let mut commands = Client::connect(&root, &options.name)?;
    owner.call(&Request::Events, CALL_LIMIT)?;
    // Detaching is said on the owner's connection, so that no end of ours can come between.
    let owner_socket = owner.stream().try_clone().map_err(LabError::io("share the connection"))?;
    std::thread::Builder::new()
        .name("events".into())
        .spawn(move || follow(owner, &sender))
        .map_err(LabError::io("start a thread"))?;

    // Events from before the subscription are not repeated: the phase may be reached already.
    let mut status = ask_status(&mut commands)?;
    while status.phase == Phase::Booting {
        match news.recv_timeout(Duration::from_secs(1)) {
            Ok(News::Lab(Reply::Event(event))) => progress.detail(&event.to_string()),
            Ok(News::Lab(_)) => {}
            Ok(News::Ended) => return Err(ended(&root, &options.name)),
            Ok(News::Interrupt) => return down(&mut commands, &mut progress),
            Err(_) => {}
        }
        status = ask_status(&mut commands)?;
    }
    progress.end(match &status.phase {
        Phase::Failed(_) => "not complete",
        _ => "every VIP answers",
    });
    progress.detail(&format!("up after {}", table::seconds(started.elapsed())));
    let _ = print(&format!("\n{}", render(&status)));
    let failed = match &status.phase {
        Phase::Failed(why) => {
            Some(LabError::Refused(format!("{why}\nthe nodes are left running to be looked at")))
        }
        _ => None,
    };
    if options.detach {
        control::write_line(&owner_socket, &Request::Detach).map_err(LabError::io("detach from the lab"))?;
        // The answer comes among the events: once it is here the lab stays.
        wait_detached(&news, &root, &options.name)?;
        eprintln!("\nthe lab goes on; end it with `cargo lab --name {} down`", options.name);
        return failed.map_or(Ok(()), Err);
    }
    if let Some(error) = &failed {
        eprintln!("\nerror: {error}");
    }
    eprintln!("\nlive events; Ctrl-C ends the lab");
    loop {
        match news.recv() {
            // Nobody looks any more: as good as Ctrl-C.
            Ok(News::Lab(Reply::Event(event))) if print(&format!("{event}\n")).is_err() => {
                return down(&mut commands, &mut progress);
            }
            Ok(News::Lab(_)) => {}
            Ok(News::Interrupt) => {
                down(&mut commands, &mut progress)?;
                return failed.map_or(Ok(()), Err);
            }
            // Whoever ends a lab removes its socket; one that was killed leaves it.
            Ok(News::Ended) | Err(_) if control::socket(&root.join(&options.name)).exists() => {
                return Err(ended(&root, &options.name));
            }
            Ok(News::Ended) | Err(_) => {
                eprintln!("the lab was ended by another command");
                return failed.map_or(Ok(()), Err);
            }
        }
    }
}

fn wait_detached(news: &std::sync::mpsc::Receiver<News>, root: &Path, name: &str) -> Result<(), LabError> {
    let until = Instant::now() + CALL_LIMIT;
    loop {
        match news.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(News::Lab(Reply::Done(word))) if word == "detached" => return Ok(()),
            Ok(News::Lab(_) | News::Interrupt) => {}
            Ok(News::Ended) => return Err(ended(root, name)),
            Err(_) => {
                let what = "an answer from the lab's supervisor".to_owned();
                return Err(LabError::Deadline { what, limit: CALL_LIMIT, seen: String::new() });
            }
        }
    }
}

/// Ends the lab and waits until it is gone.
pub fn down(commands: &mut Client, progress: &mut dyn Progress) -> Result<(), LabError> {
    progress.begin("ending the lab");
    commands.call(&Request::Down, CALL_LIMIT)?;
    commands.wait_end(END_LIMIT)?;
    progress.end("ended");
    Ok(())
}

fn follow(mut owner: Client, news: &Sender<News>) {
    while let Ok(Some(reply)) = owner.next_reply() {
        if news.send(News::Lab(reply)).is_err() {
            return;
        }
    }
    let _ = news.send(News::Ended);
}

/// Signals become news.
fn listen_for_signals(news: Sender<News>) -> Result<(), LabError> {
    let signals = signals::ending()?;
    let listen = move || {
        while let Ok(Some(_)) = signals.read_signal() {
            if news.send(News::Interrupt).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(listen)
        .map_err(LabError::io("start a thread"))?;
    Ok(())
}

fn create_supervisor_log(root: &Path, name: &str) -> Result<std::fs::File, LabError> {
    use std::os::unix::fs::DirBuilderExt;
    let doing = || format!("write {}", dir::supervisor_log(root, name).display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(LabError::io(doing()))?;
    std::fs::File::create(dir::supervisor_log(root, name)).map_err(LabError::io(doing()))
}

fn ended(root: &Path, name: &str) -> LabError {
    LabError::Refused(format!(
        "the lab ended; its last words are in {}",
        dir::supervisor_log(root, name).display()
    ))
}

/// Asks a lab how it is.
pub fn ask_status(commands: &mut Client) -> Result<LabStatus, LabError> {
    match commands.call(&Request::Status, CALL_LIMIT)? {
        Reply::Status(status) => Ok(status),
        other => Err(LabError::Refused(format!("the lab answered {other:?} to `status`"))),
    }
}

/// Nodes and VIPs as tables.
pub fn render(status: &LabStatus) -> String {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let node = |n: &NodeStatus| {
        [
            n.name.clone(),
            n.state.clone(),
            or_dash(&n.pair),
            n.group.clone(),
            n.ports.join(" "),
            or_dash(&n.vips.join(" ")),
            n.console.clone(),
        ]
    };
    let vip = |v: &VipStatus| [v.name.clone(), v.address.clone(), v.home.clone(), or_dash(&v.holder)];
    let nodes: Vec<_> = status.nodes.iter().map(node).collect();
    let vips: Vec<_> = status.vips.iter().map(vip).collect();
    let mut text = table::render(["NODE", "STATE", "PAIR", "GROUP", "PORTS", "VIPS", "CONSOLE"], &nodes);
    text.push('\n');
    text.push_str(&table::render(["VIP", "ADDRESS", "HOME", "ANSWERED BY"], &vips));
    for forward in &status.forwards {
        text.push_str(&format!("\nforward {forward}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_who_answers_and_what_is_unplugged() {
        let status = LabStatus {
            nodes: vec![NodeStatus {
                name: "a1".into(),
                group: "east".into(),
                state: "on".into(),
                ports: vec!["p1!".into(), "p2".into()],
                console: "/l/a1/con".into(),
                ..NodeStatus::default()
            }],
            vips: vec![VipStatus {
                name: "web-1".into(),
                address: "10.9.0.100".into(),
                home: "a1:p1".into(),
                holder: String::new(),
            }],
            forwards: vec!["127.0.0.1:8080 -> web-1:80".into()],
            ..LabStatus::default()
        };
        let expected = "\
NODE  STATE  PAIR  GROUP  PORTS   VIPS  CONSOLE
a1    on     -     east   p1! p2  -     /l/a1/con

VIP    ADDRESS     HOME   ANSWERED BY
web-1  10.9.0.100  a1:p1  -

forward 127.0.0.1:8080 -> web-1:80
";
        assert_eq!(render(&status), expected);
    }
}
