//! Connecting to a daemon and calling it, always within a deadline.

use crate::{sasl, wire};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::poll_fn;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;
use zbus::DBusError as _;
use zbus::export::futures_core::Stream;

/// Messages that wait for a subscriber. `Changed` says no more when it is told twice.
const QUEUE: NonZeroUsize = NonZeroUsize::new(8).expect("8 is not zero");

/// Why a daemon did not answer. Only a call that hands something in changes a daemon's state; after a deadline it may have.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// There is no socket, nobody listens on it, or the connection broke.
    #[error("{daemon} does not answer on {path}: {what}")]
    Unreachable {
        /// The daemon's name.
        daemon: &'static str,
        /// Its socket.
        path: PathBuf,
        /// What went wrong, in the kernel's or the library's words.
        what: String,
    },
    /// The deadline passed.
    #[error("{daemon} does not answer on {path}: no answer within {deadline:?}")]
    Deadline {
        /// The daemon's name.
        daemon: &'static str,
        /// Its socket.
        path: PathBuf,
        /// How long was waited.
        deadline: Duration,
    },
    /// The daemon answered with an error.
    #[error("{daemon} refused {method}: {what}")]
    Refused {
        /// The daemon's name.
        daemon: &'static str,
        /// The method that was called.
        method: &'static str,
        /// The daemon's words.
        what: String,
    },
    /// The daemon's answer is not of the expected form: it is of another release.
    #[error("{daemon} answered {method} in a form this program does not know; are both of one release?")]
    Form {
        /// The daemon's name.
        daemon: &'static str,
        /// The method that was called.
        method: &'static str,
    },
}

/// A connection to one daemon.
#[derive(Debug)]
pub(crate) struct Caller {
    daemon: &'static str,
    path: PathBuf,
    deadline: Duration,
    connection: zbus::Connection,
}

impl Caller {
    /// Connects to `daemon`'s socket at `path`.
    pub(crate) async fn connect(
        daemon: &'static str,
        path: &Path,
        deadline: Duration,
    ) -> Result<Caller, CallError> {
        let unreachable = |what: String| CallError::Unreachable { daemon, path: path.to_owned(), what };
        let connecting = async {
            let mut stream = UnixStream::connect(path).await.map_err(|e| unreachable(plain(&e)))?;
            // Server and client run on one machine and in one user name space: this uid is the own one.
            let uid = own_uid().map_err(|e| unreachable(plain(&e)))?;
            let guid = sasl::initiate(&mut stream, uid).await.map_err(|e| match e {
                // A server that has no room for a client closes without a word.
                sasl::SaslError::Io(e) => unreachable(format!("closed in the handshake ({})", plain(&e))),
                other => unreachable(other.to_string()),
            })?;
            let socket = wire::Guarded::new(stream, wire::REPLY_MAX);
            let builder = zbus::connection::Builder::authenticated_socket(socket, guid.as_str()).p2p();
            builder.max_queued(QUEUE).build().await.map_err(|e| unreachable(e.to_string()))
        };
        let late = |_| CallError::Deadline { daemon, path: path.to_owned(), deadline };
        let connection = timeout(deadline, connecting).await.map_err(late)??;
        Ok(Caller { daemon, path: path.to_owned(), deadline, connection })
    }

    /// Calls a method without arguments.
    pub(crate) async fn call<R>(
        &self,
        object: &'static str,
        interface: &'static str,
        method: &'static str,
    ) -> Result<R, CallError>
    where
        R: DeserializeOwned + zbus::Type,
    {
        self.call_with(object, interface, method, &()).await
    }

    /// Calls a method with arguments.
    pub(crate) async fn call_with<A, R>(
        &self,
        object: &'static str,
        interface: &'static str,
        method: &'static str,
        arguments: &A,
    ) -> Result<R, CallError>
    where
        A: Serialize + zbus::DynamicType,
        R: DeserializeOwned + zbus::Type,
    {
        let daemon = self.daemon;
        let call = self.connection.call_method(None::<&str>, object, Some(interface), method, arguments);
        let reply = match timeout(self.deadline, call).await {
            Err(_) => return Err(self.late()),
            Ok(Err(zbus::Error::MethodError(name, text, _))) => {
                let what = text.unwrap_or_else(|| name.to_string());
                return Err(CallError::Refused { daemon, method, what });
            }
            // The library turns the errors that D-Bus itself names into this variant.
            Ok(Err(zbus::Error::FDO(error))) => {
                let what = error.description().map_or_else(|| error.to_string(), str::to_owned);
                return Err(CallError::Refused { daemon, method, what });
            }
            Ok(Err(e)) => {
                return Err(CallError::Unreachable { daemon, path: self.path.clone(), what: e.to_string() });
            }
            Ok(Ok(reply)) => reply,
        };
        reply.body().deserialize().map_err(|_| CallError::Form { daemon, method })
    }

    /// Follows a signal.
    pub(crate) async fn changes(
        &self,
        object: &'static str,
        interface: &'static str,
        signal: &'static str,
    ) -> Result<Changes, CallError> {
        let rule = zbus::MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .path(object)
            .interface(interface)
            .member(signal)
            .build()
            .expect("names of this crate are well formed");
        let following = zbus::MessageStream::for_match_rule(rule, &self.connection, Some(QUEUE));
        match timeout(self.deadline, following).await {
            Err(_) => Err(self.late()),
            Ok(Err(e)) => {
                let (daemon, path) = (self.daemon, self.path.clone());
                Err(CallError::Unreachable { daemon, path, what: e.to_string() })
            }
            Ok(Ok(stream)) => Ok(Changes(stream)),
        }
    }

    fn late(&self) -> CallError {
        CallError::Deadline { daemon: self.daemon, path: self.path.clone(), deadline: self.deadline }
    }
}

/// A followed signal.
#[derive(Debug)]
pub struct Changes(zbus::MessageStream);

impl Changes {
    /// Waits for the next signal; `None` once the connection has ended. The caller sets the deadline.
    pub async fn next(&mut self) -> Option<()> {
        let message = poll_fn(|context| Pin::new(&mut self.0).poll_next(context)).await;
        matches!(message, Some(Ok(_))).then_some(())
    }
}

/// The kernel's words without `(os error 2)`.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// The uid this process runs as: the owner of its own directory in /proc.
pub(crate) fn own_uid() -> io::Result<u32> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata("/proc/self")?.uid())
}
