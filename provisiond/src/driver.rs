//! One life of the daemon: what is done in which order, and what ends it.
//!
//! ```text
//! state directory -> roster -> personality -> node record -> netd's part -> host name -> bus -> READY
//!     -> serve until SIGTERM: entries handed in -> roster on STATE -> netd's part -> bus -> answer
//! ```
//! Everything before READY happens once and in order, because each step stands on the one before being durable; there is
//! nothing to run beside it. READY is told also when the configuration is refused: the daemon is up and says why, and
//! netd names the missing part.

use crate::bus::View;
use crate::config::{self, Configuration};
use crate::options::Options;
use crate::parts::{self, PartError};
use crate::personality::{self, Found, Source};
use crate::roster::{self, Keeper};
use crate::{init, machine, node_record};
use bus::provision1::ProvisionState;
use bus::{BindError, Interfaces, Server};
use daemon::{Readiness, SIGN_OF_LIFE_EVERY};
use proto::personality::Personality;
use proto::text::one_line;
use std::io;
use std::path::PathBuf;
use store::StoreError;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

/// Why the daemon ends with an error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    /// The records' directory cannot be made: STATE is missing, full or read-only.
    #[error("cannot make {path}; is STATE mounted, writable and not full?")]
    StateDirectory { path: PathBuf, source: io::Error },
    /// What must survive a reboot cannot be kept. Nothing that depends on it was handed out.
    #[error("STATE cannot keep what it must; is it writable and not full?")]
    Persist(#[source] StoreError),
    /// netd would wait in vain.
    #[error("the configuration cannot be handed out")]
    Part(#[source] PartError),
    /// Nobody could ask.
    #[error("the bus cannot be served")]
    Bind(#[source] BindError),
    /// The kernel refuses what a daemon needs.
    #[error("cannot {what}")]
    Kernel { what: &'static str, source: io::Error },
}

/// Runs until SIGTERM or an error.
pub(crate) fn run(options: &Options) -> Result<(), DriverError> {
    let kernel = |what| move |source| DriverError::Kernel { what, source };
    let runtime = Builder::new_current_thread().enable_all().build().map_err(kernel("make an event loop"))?;
    runtime.block_on(async {
        // From here on SIGTERM waits for the loop below: start-up is not left half done.
        let mut terminate = signal(SignalKind::terminate()).map_err(kernel("catch SIGTERM"))?;
        let mut node = Node::start(options)?;
        let server = Server::bind(&options.bus).map_err(DriverError::Bind)?;
        let mut progress = Readiness::from_environment().tell();
        let mut sign_of_life = tokio::time::interval(SIGN_OF_LIFE_EVERY);
        sign_of_life.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let state = watch::Sender::new(node.state());
        let (apply, mut calls) = bus::provision1::calls();
        let interfaces = Interfaces {
            provision: Some(state.subscribe()),
            apply_roster: Some(apply),
            ..Interfaces::default()
        };
        let serving = server.serve(interfaces);
        tokio::pin!(serving);
        loop {
            tokio::select! {
                served = &mut serving => match served {
                    Ok(never) => match never {},
                    Err(source) => return Err(DriverError::Kernel { what: "serve the bus", source }),
                },
                Some(call) = calls.recv() => {
                    let answer = node.apply(&call.entries)?;
                    state.send_replace(node.state());
                    // The client may have gone: what it handed in counts all the same.
                    drop(call.answer.send(answer));
                }
                // From the loop that would hang with the disk.
                _ = sign_of_life.tick() => progress.tell(),
                _ = terminate.recv() => {
                    info!("told to stop");
                    return Ok(());
                }
            }
        }
    })
}

/// What one life of the daemon knows.
struct Node<'a> {
    options: &'a Options,
    /// Open to the end: it holds the lock of the roster.
    keeper: Keeper,
    /// Open to the end: it holds the lock of the node's record.
    remembered: Option<node_record::Remembered>,
    personality: Option<(Source, Personality)>,
    configuration: Option<Configuration>,
    boot_id: String,
    version: String,
    /// What is wrong whatever the roster says.
    errors: Vec<String>,
    /// Why there is no configuration.
    refusal: Option<String>,
}

impl<'a> Node<'a> {
    /// Everything that happens once. The errors that do not end the daemon are in the node it returns.
    fn start(options: &'a Options) -> Result<Node<'a>, DriverError> {
        store::create_dir_durably(&options.state)
            .map_err(|source| DriverError::StateDirectory { path: options.state.clone(), source })?;
        let mut errors = Vec::new();
        let mut refusal = None;
        let keeper = Keeper::open(&options.state).map_err(DriverError::Persist)?;
        let configure = |personality: &Personality| config::configure(personality, keeper.chain());
        let found =
            personality::load(&options.state, &options.smbios, configure).map_err(DriverError::Persist)?;
        let (personality, configuration) = match found {
            Ok(Found { source, personality, configuration }) => {
                let configuration = configuration.map_err(|e| refusal = Some(one_line(&e))).ok();
                (Some((source, personality)), configuration)
            }
            Err(e) => {
                errors.push(one_line(&e));
                (None, None)
            }
        };

        let (boot_id, version) = (machine::boot_id(&options.boot_id), machine::version(&options.release));
        if boot_id.is_empty() {
            errors.push(format!(
                "no boot id in {}: this boot cannot be told from others",
                options.boot_id.display()
            ));
        }
        let mut remembered = match node_record::open(&options.state).map_err(DriverError::Persist)? {
            Ok(remembered) => Some(remembered),
            Err(e) => {
                errors.push(format!("boots cannot be counted: {}", one_line(&e)));
                None
            }
        };
        if let Some(remembered) = &mut remembered {
            let digest = configuration.as_ref().map(|c| c.digest);
            remembered.note(&boot_id, &version, digest).map_err(DriverError::Persist)?;
        }
        let node = Node {
            options,
            keeper,
            remembered,
            personality,
            configuration,
            boot_id,
            version,
            errors,
            refusal,
        };
        if let Some(configuration) = &node.configuration {
            node.hand_out(configuration)?;
        }
        if let Some((_, personality)) = &node.personality
            && let Err(e) = init::set_hostname(&options.init, &personality.node.0)
        {
            warn!("the host name is not set: {}", one_line(&e));
        }
        // The log has one line per event; a cluster file's problems have several, with carets below the text.
        for line in node.problems().iter().flat_map(|text| text.lines()) {
            error!("{line}");
        }
        Ok(node)
    }

    /// Writes netd's part. Peers tell netd's lives apart by the number of the boot: without it a part would do harm.
    fn hand_out(&self, configuration: &Configuration) -> Result<(), DriverError> {
        let boot = self.remembered.as_ref().filter(|_| !self.boot_id.is_empty()).map(|r| r.get().boot_count);
        let Some(boot) = boot else { return Ok(()) };
        for node in &configuration.without_key {
            warn!("the roster has no key for {node}: it will not be heard");
        }
        parts::write_netd(&self.options.parts, &configuration.netd(boot)).map_err(DriverError::Part)?;
        info!("handed netd its part: {} of cluster {}", configuration.node, configuration.cluster.cluster);
        Ok(())
    }

    /// Takes roster entries that were handed in: durable, then in netd's part, then answered.
    fn apply(&mut self, entries: &[u8]) -> Result<Result<String, String>, DriverError> {
        let Some((_, personality)) = &self.personality else {
            return Ok(Err("no roster is taken before this machine has a personality".to_owned()));
        };
        let own = config::public_key(personality);
        let before = self.keeper.chain().ok().flatten().map(roster::mark_of);
        let taken = self.keeper.apply(entries, (&personality.node, &own)).map_err(DriverError::Persist)?;
        let after = self.keeper.chain().ok().flatten().map(roster::mark_of);
        if before != after {
            self.follow()?;
        }
        Ok(match taken {
            Ok(taken) => {
                info!("roster: {taken}");
                Ok(taken.to_string())
            }
            Err(e) => {
                warn!("{}", one_line(&e));
                Err(one_line(&e))
            }
        })
    }

    /// Puts the roster that is kept now in force.
    fn follow(&mut self) -> Result<(), DriverError> {
        let Some((_, personality)) = &self.personality else { return Ok(()) };
        match config::configure(personality, self.keeper.chain()) {
            Ok(configuration) => {
                self.hand_out(&configuration)?;
                (self.configuration, self.refusal) = (Some(configuration), None);
            }
            Err(e) => {
                let reason = one_line(&e);
                error!("{reason}");
                // A netd that runs has to hear that it does not belong any more. Later ones wait for a part in vain.
                if let (Some(old), Ok(Some(chain))) = (self.configuration.take(), self.keeper.chain()) {
                    self.hand_out(&old.removed_by(chain))?;
                }
                self.refusal = Some(reason);
            }
        }
        Ok(())
    }

    fn problems(&self) -> Vec<String> {
        self.refusal.iter().chain(&self.errors).cloned().collect()
    }

    fn state(&self) -> ProvisionState {
        let errors = self.problems();
        let view = View {
            personality: self.personality.as_ref().map(|(source, personality)| (*source, personality)),
            configuration: self.configuration.as_ref(),
            record: self.remembered.as_ref().map(|r| r.get()),
            boot_id: &self.boot_id,
            version: &self.version,
            errors: &errors,
            roster: Some(&self.keeper),
        };
        view.state()
    }
}
