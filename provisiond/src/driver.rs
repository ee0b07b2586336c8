//! One life of the daemon: what is done in which order, and what ends it.
//!
//! ```text
//! state directory -> personality -> node record -> netd's part -> host name -> bus -> READY -> serve until SIGTERM
//! ```
//! Everything before READY happens once and in order, because each step stands on the one before being durable; there is
//! nothing to run beside it. READY is told also when the configuration is refused: the daemon is up and says why, and
//! netd names the missing part.

use crate::bus::View;
use crate::options::Options;
use crate::parts::{self, PartError};
use crate::personality::{self, Found};
use crate::{init, machine, node_record};
use bus::{BindError, Interfaces, Server};
use daemon::Readiness;
use proto::text::one_line;
use std::io;
use std::path::PathBuf;
use store::StoreError;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
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
        // Kept to the end: it holds the lock of the records.
        let (state, _remembered) = start(options)?;
        let server = Server::bind(&options.bus).map_err(DriverError::Bind)?;
        Readiness::from_environment().tell();
        let interfaces = Interfaces { provision: Some(state.subscribe()), ..Interfaces::default() };
        tokio::select! {
            served = server.serve(interfaces) => match served {
                Ok(never) => match never {},
                Err(source) => Err(DriverError::Kernel { what: "serve the bus", source }),
            },
            _ = terminate.recv() => {
                info!("told to stop");
                Ok(())
            }
        }
    })
}

type Started = (watch::Sender<bus::provision1::ProvisionState>, Option<node_record::Remembered>);

/// Everything that happens once. The errors that do not end the daemon are in the state it returns.
fn start(options: &Options) -> Result<Started, DriverError> {
    store::create_dir_durably(&options.state)
        .map_err(|source| DriverError::StateDirectory { path: options.state.clone(), source })?;
    let mut errors = Vec::new();
    let found = personality::load(&options.state, &options.smbios).map_err(DriverError::Persist)?;
    let (found, configuration) = match found {
        Ok(Found { source, personality, configuration }) => {
            let configuration = configuration.map_err(|e| errors.push(one_line(&e))).ok();
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

    // Peers tell netd's lives apart by the number of the boot: without it a part would do harm.
    let boot = remembered.as_ref().filter(|_| !boot_id.is_empty()).map(|r| r.get().boot_count);
    if let (Some(configuration), Some(boot)) = (&configuration, boot) {
        for node in &configuration.without_key {
            warn!("the roster has no key for {node}: it will not be heard");
        }
        parts::write_netd(&options.parts, &configuration.netd(boot)).map_err(DriverError::Part)?;
        info!("handed netd its part: {} of cluster {}", configuration.node, configuration.cluster.cluster);
    }
    if let Some((_, personality)) = &found
        && let Err(e) = init::set_hostname(&options.init, &personality.node.0)
    {
        warn!("the host name is not set: {}", one_line(&e));
    }
    // The log has one line per event; a cluster file's problems have several, with carets below the text.
    for line in errors.iter().flat_map(|text| text.lines()) {
        error!("{line}");
    }
    let view = View {
        personality: found.as_ref().map(|(source, personality)| (*source, personality)),
        configuration: configuration.as_ref(),
        record: remembered.as_ref().map(|r| r.get()),
        boot_id: &boot_id,
        version: &version,
        errors: &errors,
    };
    Ok((watch::Sender::new(view.state()), remembered))
}
