//! Runs a command: asks those who know, prints what they say. The same for arguments, shell and agent.
//!
//! Every command ends within [`COMMAND_LIMIT`], the time a user takes to answer a question excepted. What a dead daemon
//! would have told is missing from the output and named in the failure.

use crate::command::{self, Cluster, Command, Init, Role, Roster, Show};
use crate::control::{self, ControlError};
use crate::founder::{self, Folder, FounderError};
use crate::render::{self, Overview, Release};
use bus::net1::NetState;
use bus::provision1::StateRow;
use bus::{CallError, net1, provision1};
use nix::time::{ClockId, clock_gettime};
use proto::control::{Reply, Request};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// The longest a command waits for the programs it asks.
pub(crate) const COMMAND_LIMIT: Duration = Duration::from_secs(5);

/// The part of it that the state gives to the daemons; init had its own before.
const PART_LIMIT: Duration = Duration::from_secs(2);

/// Bytes of the release file that are read.
const RELEASE_MAX: usize = proto::control::RELEASE_MAX;

/// Where the programs of a node are reached.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) netd: PathBuf,
    pub(crate) provisiond: PathBuf,
    pub(crate) init: PathBuf,
    pub(crate) release: PathBuf,
    pub(crate) hostname: PathBuf,
}

impl Default for Places {
    fn default() -> Places {
        Places {
            netd: bus::NETD_SOCKET.into(),
            provisiond: bus::PROVISIOND_SOCKET.into(),
            init: proto::control::SOCKET_PATH.into(),
            release: "/etc/evenkeel/release".into(),
            hostname: "/proc/sys/kernel/hostname".into(),
        }
    }
}

/// Why a command did not do all it should. Its message is what the user reads.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A daemon did not answer.
    #[error("{0}; see \"keel show services\"")]
    Daemon(CallError),
    /// init did not answer or refused.
    #[error("{0}")]
    Init(#[from] ControlError),
    /// The admin's folder, or what was to be signed or handed in.
    #[error("{0}")]
    Founder(#[from] FounderError),
    /// The roster on STATE is not used.
    #[error("{0}")]
    Roster(String),
    /// Several parts are missing; one line each.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Parts(Vec<Failure>),
    /// The user did not say yes. Nothing was done.
    #[error("nothing was done")]
    Declined,
    /// A command that makes no sense where it was typed. Nothing was done.
    #[error("\"{0}\" is started by init, not typed here")]
    NotHere(&'static str),
    /// Nobody takes the output.
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Failure {
        Failure::Daemon(error)
    }
}

/// Asks the user a question and returns the answer; `None` when nobody sits there, then nothing is asked.
pub(crate) type Question<'a> = Option<&'a mut dyn FnMut(&str) -> Option<String>>;

/// Runs commands.
#[derive(Debug)]
pub(crate) struct Session {
    places: Places,
    runtime: Runtime,
}

impl Session {
    /// A session with the programs at `places`.
    pub(crate) fn new(places: Places) -> io::Result<Session> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Session { places, runtime })
    }

    /// The node's name as the kernel knows it, empty before it has one.
    pub(crate) fn node_name(&self) -> String {
        let name = read_short(&self.places.hostname, 64);
        let name = name.trim();
        if matches!(name, "(none)" | "localhost") { String::new() } else { render::text::printable(name) }
    }

    /// The running release.
    pub(crate) fn release(&self) -> Release {
        Release::parse(&read_short(&self.places.release, RELEASE_MAX))
    }

    /// Runs `command` and prints what it gives to `out`.
    pub(crate) fn run(
        &self,
        command: &Command,
        question: Question<'_>,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        let text = match command {
            Command::Help => command::HELP.to_owned(),
            Command::HelpShow => command::HELP_SHOW.to_owned(),
            Command::HelpRoster => command::HELP_ROSTER.to_owned(),
            Command::Cluster { what: Cluster::Init { folder, domain, members, recovery } } => {
                render::founded(folder, &Folder::found(folder.as_ref(), domain, recovery, members)?)
            }
            Command::Roster { what } => self.roster(what)?,
            Command::Version => render::version(&self.release()),
            Command::Show { what: None | Some(Show::State) } => return self.state(out),
            Command::Show { what: Some(what) } => self.show(what)?,
            Command::Restart { service } => {
                self.change(&Request::Restart { service: service.clone() })?;
                format!("{} is restarted\n", render::text::printable(service))
            }
            Command::Reboot { yes } => {
                confirm(*yes, question)?;
                self.change(&Request::Reboot)?;
                "the node stops its services and reboots\n".to_owned()
            }
            Command::PowerOff { yes } => {
                confirm(*yes, question)?;
                self.change(&Request::PowerOff)?;
                "the node stops its services and switches off\n".to_owned()
            }
            Command::Init { what: Init::ReExec { file } } => {
                self.change(&Request::ReExec { path: file.clone() })?;
                "init has handed over\n".to_owned()
            }
            Command::Shell => return Err(Failure::NotHere("shell")),
            Command::Agent { .. } => return Err(Failure::NotHere("agent")),
            Command::InitBus => return Err(Failure::NotHere("init-bus")),
            // Outside a shell there is nothing to leave.
            Command::Exit => String::new(),
        };
        out.write_all(text.as_bytes())?;
        Ok(())
    }

    fn show(&self, what: &Show) -> Result<String, Failure> {
        Ok(match what {
            Show::Ports => render::ports(&self.net(|net| async move { net.ports().await })?),
            Show::Vips => render::vips(&self.net(|net| async move { net.vips().await })?, boottime_ms()),
            Show::Peers => render::peers(&self.net(|net| async move { net.peers().await })?, boottime_ms()),
            Show::Services => match control::ask(&self.places.init, &Request::Services, COMMAND_LIMIT)? {
                Reply::Services(rows) => render::services(&rows),
                _ => return Err(ControlError::Mismatch.into()),
            },
            Show::Fence => match control::ask(&self.places.init, &Request::FenceState, COMMAND_LIMIT)? {
                Reply::Fence(fence) => render::fence(&fence, boottime_ms()),
                _ => return Err(ControlError::Mismatch.into()),
            },
            Show::Boot => match control::ask(&self.places.init, &Request::Boot, COMMAND_LIMIT)? {
                Reply::Boot(boot) => render::boot(&boot),
                _ => return Err(ControlError::Mismatch.into()),
            },
            Show::Log { service, lines } => {
                let request = Request::Log { service: service.clone(), lines: *lines };
                match control::ask(&self.places.init, &request, COMMAND_LIMIT)? {
                    Reply::Log(lines) => render::log(&lines),
                    _ => return Err(ControlError::Mismatch.into()),
                }
            }
            Show::State => unreachable!("the state is made of several answers and has its own function"),
        })
    }

    fn roster(&self, what: &Roster) -> Result<String, Failure> {
        let open = |folder: &str| Folder::open(folder.as_ref());
        let (folder, change) = match what {
            Roster::Show { folder: None, entry } => {
                let row = self.provision(|client| async move { client.roster().await })?;
                if !row.error.is_empty() {
                    return Err(Failure::Roster(row.error));
                }
                return Ok(if *entry { render::entry(&row.entry) } else { render::roster(&row) });
            }
            Roster::Show { folder: Some(folder), entry } => {
                let folder = open(folder)?;
                let newest = folder.chain().newest();
                return Ok(match entry {
                    true => render::entry(newest.bytes()),
                    false => render::roster(&render::roster_row(folder.chain())),
                });
            }
            Roster::Apply { entries } => {
                let entries = founder::entries(entries)?;
                let told = self.provision(|client| async move { client.apply_roster(&entries).await })?;
                return Ok(render::text::printable(&told) + "\n");
            }
            Roster::Add { folder, name, key, role, vote } => {
                let (name, key) = founder::member(name, key)?;
                let mut opened = open(folder)?;
                let change = opened.step(|d| d.add(name.clone(), key, role_of(*role))?.vote(&name, *vote))?;
                (opened, change)
            }
            Roster::Remove { folder, name } => {
                let mut opened = open(folder)?;
                let change = opened.step(|d| d.remove(&name.as_str().into()))?;
                (opened, change)
            }
            Roster::Rotate { folder, name, key } => {
                let (name, key) = founder::member(name, key)?;
                let mut opened = open(folder)?;
                let change = opened.step(|d| d.rotate(&name, key))?;
                (opened, change)
            }
        };
        Ok(render::signed(change.number, folder.chain().newest().bytes()))
    }

    /// One question to provisiond within the command's limit.
    fn provision<T, F>(&self, question: impl FnOnce(provision1::Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let path = &self.places.provisiond;
        let asking = async { question(provision1::Client::connect(path, COMMAND_LIMIT).await?).await };
        Ok(self.runtime.block_on(within(COMMAND_LIMIT, "provisiond", path, asking))?)
    }

    /// One question to netd within the command's limit.
    fn net<T, F>(&self, question: impl FnOnce(net1::Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let path = &self.places.netd;
        let asking = async { question(net1::Client::connect(path, COMMAND_LIMIT).await?).await };
        Ok(self.runtime.block_on(within(COMMAND_LIMIT, "netd", path, asking))?)
    }

    /// A request that changes something.
    fn change(&self, request: &Request) -> Result<(), Failure> {
        match control::ask(&self.places.init, request, COMMAND_LIMIT)? {
            Reply::Accepted => Ok(()),
            _ => Err(ControlError::Mismatch.into()),
        }
    }

    /// Prints what can be learned; what is missing makes the failure.
    fn state(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let mut overview = Overview::default();
        let mut missing = Vec::new();
        match control::ask(&self.places.init, &Request::System, PART_LIMIT / 3) {
            Ok(Reply::System(system)) => overview.system = Some(system),
            Ok(_) => missing.push(ControlError::Mismatch.into()),
            Err(e) => missing.push(e.into()),
        }
        // An init that gave no answer is not asked again: it would take the daemons' time.
        if missing.is_empty() {
            match control::ask(&self.places.init, &Request::Services, PART_LIMIT / 3) {
                Ok(Reply::Services(rows)) => overview.services = Some(rows),
                Ok(_) => missing.push(ControlError::Mismatch.into()),
                Err(e) => missing.push(e.into()),
            }
        }
        if missing.is_empty() {
            match control::ask(&self.places.init, &Request::Watch, PART_LIMIT / 3) {
                Ok(Reply::Watch(watch)) => overview.watch = Some(watch),
                Ok(_) => missing.push(ControlError::Mismatch.into()),
                Err(e) => missing.push(e.into()),
            }
        }
        let (provision, net) = self.runtime.block_on(async {
            tokio::join!(provision_state(&self.places.provisiond), net_state(&self.places.netd))
        });
        match provision {
            Ok(row) => overview.provision = Some(row),
            Err(e) => missing.push(e.into()),
        }
        match net {
            Ok(state) => overview.net = Some(state),
            Err(e) => missing.push(e.into()),
        }
        out.write_all(render::state(&overview, boottime_ms()).as_bytes())?;
        match missing.len() {
            0 => Ok(()),
            1 => Err(missing.remove(0)),
            _ => Err(Failure::Parts(missing)),
        }
    }
}

fn role_of(role: Role) -> peer_core::roster::Role {
    match role {
        Role::Member => peer_core::roster::Role::Member,
        Role::Witness => peer_core::roster::Role::Witness,
        Role::Operator => peer_core::roster::Role::Operator,
        Role::Viewer => peer_core::roster::Role::Viewer,
    }
}

/// Asks before something that cannot be taken back, when there is somebody to ask.
fn confirm(yes: bool, question: Question<'_>) -> Result<(), Failure> {
    let Some(ask) = question.filter(|_| !yes) else { return Ok(()) };
    match ask("really? (yes/no) ") {
        Some(answer) if answer.trim().eq_ignore_ascii_case("yes") => Ok(()),
        _ => Err(Failure::Declined),
    }
}

async fn provision_state(path: &Path) -> Result<StateRow, CallError> {
    let asking = async { provision1::Client::connect(path, PART_LIMIT).await?.state().await };
    within(PART_LIMIT, "provisiond", path, asking).await
}

async fn net_state(path: &Path) -> Result<NetState, CallError> {
    let asking = async {
        let netd = net1::Client::connect(path, PART_LIMIT).await?;
        Ok(NetState { ports: netd.ports().await?, vips: netd.vips().await?, peers: netd.peers().await? })
    };
    within(PART_LIMIT, "netd", path, asking).await
}

/// Bounds several calls together; each is bounded alone already.
async fn within<T>(
    limit: Duration,
    daemon: &'static str,
    path: &Path,
    asking: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    let late = |_| CallError::Deadline { daemon, path: path.to_owned(), deadline: limit };
    timeout(limit, asking).await.map_err(late)?
}

/// Milliseconds of `CLOCK_BOOTTIME`, the clock of the daemons' rows.
pub(crate) fn boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("the kernel has this clock since 2.6.39");
    u64::try_from(Duration::from(now).as_millis()).unwrap_or(u64::MAX)
}

/// The first `max` bytes of a small text file; empty when it cannot be read.
fn read_short(path: &Path, max: usize) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    let Ok(file) = std::fs::File::open(path) else { return String::new() };
    // What was read before an error is as good as a short file.
    let _ = file.take(max as u64).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests;
