//! Serves `org.evenkeel.Init1`: PID 1 knows no D-Bus, so a service asks it and tells those who do.
//!
//! ```text
//! init.sock <--asked every LOOK_EVERY-- thread --watch--> bus::Server -- /run/evenkeel/bus/init --> clients
//! ```
//! It changes nothing and decides nothing. What init does not answer stays as it was, and the system row says why.

use crate::control::{self, ControlError};
use bus::init1::{InitState, ServiceRow, SystemRow};
use bus::{Interfaces, Server};
use daemon::Readiness;
use proto::control::{Reply, Request, SystemInfo};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;

/// How old what is shown may be. A question costs init some 50 us.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long init may take to answer.
const ASK_LIMIT: Duration = Duration::from_secs(1);

/// Why the service ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitBusError {
    /// The socket cannot be made.
    #[error("{0}")]
    Bind(#[from] bus::BindError),
    /// The kernel refuses what serving needs.
    #[error("cannot serve: {0}")]
    Io(#[from] std::io::Error),
}

/// Serves on `socket` what the init at `init` says. Returns only when that is not possible.
pub(crate) fn run(init: &Path, socket: &Path) -> Result<Infallible, InitBusError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = Server::bind(socket)?;
        let (sender, seen) = watch::channel(InitState::default());
        look(init, &sender);
        Readiness::from_environment().tell();
        let interfaces = Interfaces { init: Some(seen), ..Interfaces::default() };
        let init: PathBuf = init.to_owned();
        let looking = async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                // A few bytes over a local socket; who asks meanwhile waits for ASK_LIMIT at most.
                look(&init, &sender);
            }
        };
        tokio::select! {
            result = server.serve(interfaces) => Ok(result?),
            never = looking => never,
        }
    })
}

/// Asks init and publishes what is new.
fn look(init: &Path, state: &watch::Sender<InitState>) {
    let answers = ask(init);
    let now_ms = crate::session::boottime_ms();
    state.send_if_modified(|current| match answers {
        Ok((rows, system)) => {
            let services: Vec<_> =
                rows.into_iter().map(|row| service(row, &current.services, now_ms)).collect();
            let news = services != current.services || !current.system.error.is_empty();
            *current = InitState { services, system: self::system(system) };
            news
        }
        Err(error) => {
            let news = current.system.error.is_empty();
            current.system.error = error.to_string();
            news
        }
    });
}

type Answers = (Vec<proto::control::ServiceRow>, SystemInfo);

fn ask(init: &Path) -> Result<Answers, ControlError> {
    match (
        control::ask(init, &Request::Services, ASK_LIMIT)?,
        control::ask(init, &Request::System, ASK_LIMIT)?,
    ) {
        (Reply::Services(rows), Reply::System(system)) => Ok((rows, system)),
        _ => Err(ControlError::Mismatch),
    }
}

/// The row of a service. init tells ages in whole seconds: an instant computed anew would change all the time, so
/// the one of the last row counts as long as the service is where it was.
fn service(row: proto::control::ServiceRow, before: &[ServiceRow], now_ms: u64) -> ServiceRow {
    let mut new = ServiceRow {
        state: row.state.to_string(),
        // Left out while a deadline counts down in it, for the same reason.
        detail: if counts_down(row.state) { String::new() } else { row.detail },
        pid: row.pid.unwrap_or(0),
        restarts: row.restarts,
        since_ms: now_ms.saturating_sub(row.since_s.saturating_mul(1000)),
        last_exit: row.last_exit.map(|e| e.to_string()).unwrap_or_default(),
        name: row.name,
    };
    if let Some(old) = before.iter().find(|old| old.name == new.name) {
        let here = |r: &ServiceRow| (r.state.clone(), r.pid, r.restarts);
        if here(old) == here(&new) {
            new.since_ms = old.since_ms;
        }
    }
    new
}

fn counts_down(state: proto::control::ServiceState) -> bool {
    use proto::control::ServiceState::{Backoff, Starting, Stopping};
    matches!(state, Backoff | Starting | Stopping)
}

fn system(info: SystemInfo) -> SystemRow {
    let (watchdog, watchdog_timeout_s) = info.watchdog.map(|w| (w.identity, w.timeout_s)).unwrap_or_default();
    let (state_device, state_size) = info.state.map(|s| (s.device, s.size_bytes)).unwrap_or_default();
    SystemRow {
        hostname: info.hostname,
        kernel: info.kernel,
        boot_id: info.boot_id,
        release: info.release,
        watchdog,
        watchdog_timeout_s,
        state_device,
        error: String::new(),
        memory_total: info.memory.total_bytes,
        state_size,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::tests::fake_init;
    use crate::testing::Dir;
    use proto::control::{LastExit, MemoryInfo, ServiceState};
    use proto::envelope::encode;

    fn row(state: ServiceState, since_s: u64) -> proto::control::ServiceRow {
        proto::control::ServiceRow {
            name: "netd".into(),
            state,
            detail: "has 3 s left".into(),
            pid: Some(7),
            restarts: 1,
            since_s,
            last_exit: Some(LastExit::Signal(9)),
        }
    }

    #[test]
    fn an_instant_stays_while_the_state_stays() {
        let first = service(row(ServiceState::Ready, 5), &[], 10_400);
        assert_eq!((first.since_ms, first.last_exit.as_str()), (5400, "signal 9"));
        assert_eq!(first.detail, "has 3 s left");
        let later = service(row(ServiceState::Ready, 6), std::slice::from_ref(&first), 11_900);
        assert_eq!(later, first);
        let moved = service(row(ServiceState::Backoff, 0), &[first], 12_000);
        assert_eq!((moved.since_ms, moved.state.as_str(), moved.detail.as_str()), (12_000, "back-off", ""));
    }

    #[test]
    fn what_init_says_is_published_once_and_its_silence_is_said() {
        let dir = Dir::new();
        let info = SystemInfo {
            uptime_ms: 1,
            boot_id: "b".into(),
            hostname: "a1".into(),
            kernel: "6".into(),
            release: String::new(),
            watchdog: None,
            state: None,
            memory: MemoryInfo::default(),
        };
        let services = || Some(encode(&Reply::Services(vec![row(ServiceState::Ready, 5)])));
        let system = || Some(encode(&Reply::System(info.clone())));
        let path = dir.path("init.sock");
        let init = fake_init(&path, vec![services(), system(), services(), system()]);
        let (sender, mut seen) = watch::channel(InitState::default());
        look(&path, &sender);
        assert!(seen.has_changed().unwrap());
        assert_eq!(seen.borrow_and_update().system.hostname, "a1");
        look(&path, &sender);
        assert!(!seen.has_changed().unwrap(), "nothing is new");
        init.join().unwrap();
        look(&path, &sender);
        let now = seen.borrow_and_update().clone();
        assert!(now.system.error.contains("init does not answer"), "{}", now.system.error);
        assert_eq!(now.services.len(), 1, "the last answer stays");
    }
}
