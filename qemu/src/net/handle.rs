//! What the rest of the lab holds of the fabric: calls run in the fabric's thread, between two turns, and have
//! taken effect when they return. Every wait ends.

use super::error::FabricError;
use super::fabric::Fabric;
use super::fault::Fault;
use super::forward::{REQUEST_DEADLINE_MAX, Request};
use super::http::{self, HttpResponse};
use super::mac::Mac;
use super::monotonic;
use super::report::{FabricStats, NetEvent, VipReport};
use super::tcp::TcpError;
use core::net::{IpAddr, SocketAddr};
use nix::sys::eventfd::EventFd;
use proto::cluster::PortId;
use proto::time::{Duration, Time};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// Calls that may wait for the fabric.
const CALLS_MAX: usize = 256;
/// A call that is not answered by then is given up; a turn takes milliseconds.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// Conditions are looked at this often while no event comes.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Something to do in the fabric's thread.
pub(super) type Job = Box<dyn FnOnce(&mut Fabric, Time) + Send>;

/// Control of a running fabric. May be shared between threads. Dropping it stops the fabric.
pub struct FabricHandle {
    calls: SyncSender<Job>,
    wake: Arc<EventFd>,
    stopping: Arc<AtomicBool>,
    thread: Mutex<Option<Running>>,
}

struct Running {
    thread: JoinHandle<()>,
    /// Ends when the thread has.
    ended: Receiver<()>,
}

impl FabricHandle {
    pub(super) fn spawn(fabric: Fabric, wake: Arc<EventFd>) -> Result<FabricHandle, FabricError> {
        let (calls, receiver) = sync_channel(CALLS_MAX);
        let (ending, ended) = sync_channel::<()>(0);
        let stopping = Arc::new(AtomicBool::new(false));
        let (its_wake, its_stopping) = (Arc::clone(&wake), Arc::clone(&stopping));
        let body = move || {
            // Dropped last, also when the thread panics.
            let _ending = ending;
            fabric.run(&receiver, &its_wake, &its_stopping);
        };
        let thread = std::thread::Builder::new()
            .name("fabric".into())
            .spawn(body)
            .map_err(|source| FabricError::Thread { source })?;
        Ok(FabricHandle { calls, wake, stopping, thread: Mutex::new(Some(Running { thread, ended })) })
    }

    /// Watches who answers for `ip`, and with `measure` also how long it is out of reach.
    ///
    /// # Errors
    /// When there is no room, or no probing host that could. Nothing has changed then.
    pub fn watch(&self, ip: IpAddr, measure: bool) -> Result<(), FabricError> {
        self.call(move |f, now| Ok(f.probe()?.watch(now, ip, measure)?))?
    }

    /// Ends a watch.
    ///
    /// # Errors
    /// When `ip` is not watched.
    pub fn unwatch(&self, ip: IpAddr) -> Result<(), FabricError> {
        self.call(move |f, _| Ok(f.probe()?.unwatch(ip)?))?
    }

    /// The station that answers for `ip` now, if one does.
    ///
    /// # Errors
    /// When `ip` is not watched.
    pub fn holder(&self, ip: IpAddr) -> Result<Option<Mac>, FabricError> {
        self.call(move |f, _| Ok(f.probe()?.holder(ip)?))?
    }

    /// What was found out about `ip` since its mark.
    ///
    /// # Errors
    /// When `ip` is not watched.
    pub fn report(&self, ip: IpAddr) -> Result<VipReport, FabricError> {
        self.call(move |f, now| Ok(f.probe()?.report(now, ip)?))?
    }

    /// The reports of all watched addresses, in order of address.
    ///
    /// # Errors
    /// When there is no probing host.
    pub fn reports(&self) -> Result<Vec<VipReport>, FabricError> {
        self.call(|f, now| {
            let probe = f.probe()?;
            let watched: Vec<IpAddr> = probe.watched().collect();
            watched.into_iter().map(|ip| Ok(probe.report(now, ip)?)).collect()
        })?
    }

    /// Begins a new measurement of `ip`.
    ///
    /// # Errors
    /// When `ip` is not watched.
    pub fn mark(&self, ip: IpAddr) -> Result<(), FabricError> {
        self.call(move |f, now| Ok(f.probe()?.mark(now, ip)?))?
    }

    /// Waits until the report of `ip` satisfies `condition`; `what` names it in the error.
    ///
    /// # Errors
    /// When `ip` is not watched, or the condition has not come true within `deadline`.
    pub fn await_report(
        &self,
        ip: IpAddr,
        deadline: Duration,
        what: &str,
        condition: impl Fn(&VipReport) -> bool,
    ) -> Result<VipReport, FabricError> {
        let (events, started) = (self.events()?, Instant::now());
        loop {
            let report = self.report(ip)?;
            if condition(&report) {
                return Ok(report);
            }
            let waited = started.elapsed();
            if waited >= deadline {
                let what = format!("{what} ({ip}): holder {:?}, reach {:?}", report.holder, report.reach);
                return Err(FabricError::Waited { what, seconds: waited.as_secs_f64() });
            }
            // An event only makes the next look come sooner.
            let _ = events.recv_timeout(LOOK_INTERVAL.min(deadline - waited));
        }
    }

    /// Replaces the fault of a port.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn set_fault(&self, port: &PortId, fault: Fault) -> Result<(), FabricError> {
        let id = port.clone();
        self.call(move |f, _| {
            let key = f.port(&id)?;
            f.switch.set_fault(key, fault);
            Ok(())
        })?
    }

    /// The fault in force at a port.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn fault(&self, port: &PortId) -> Result<Fault, FabricError> {
        let id = port.clone();
        self.call(move |f, _| Ok(f.switch.fault(f.port(&id)?)))?
    }

    /// Divides the switch: ports of different sets do not hear each other; a port in no set, such as the probing
    /// host's, hears all. Replaces an earlier partition.
    ///
    /// # Errors
    /// When a port does not exist; nothing has changed then.
    pub fn partition(&self, sides: &[Vec<PortId>]) -> Result<(), FabricError> {
        let sides = sides.to_vec();
        self.call(move |f, _| {
            let keys = |side: &Vec<PortId>| side.iter().map(|id| f.port(id)).collect::<Result<Vec<_>, _>>();
            let sides = sides.iter().map(keys).collect::<Result<Vec<_>, _>>()?;
            f.switch.partition(&sides);
            Ok(())
        })?
    }

    /// Ends the partition and all faults.
    ///
    /// # Errors
    /// When the fabric has stopped.
    pub fn heal(&self) -> Result<(), FabricError> {
        self.call(|f, _| f.switch.heal())
    }

    /// Forgets the addresses learned on a port, as a switch does when a cable is pulled.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn flush(&self, port: &PortId) -> Result<(), FabricError> {
        let id = port.clone();
        self.call(move |f, _| {
            let key = f.port(&id)?;
            f.switch.flush(key);
            Ok(())
        })?
    }

    /// Asks `target` for `path` by HTTP, from the TCP host. Blocks the caller until the response is whole, at most
    /// for `deadline` (itself at most 5 minutes).
    ///
    /// # Errors
    /// What went wrong, by name.
    pub fn http_get(
        &self,
        target: SocketAddr,
        path: &str,
        deadline: Duration,
    ) -> Result<HttpResponse, FabricError> {
        let deadline = deadline.min(REQUEST_DEADLINE_MAX);
        let bytes = http::request(target, path).map_err(|source| TcpError::Http { target, source })?;
        let (reply, answer) = sync_channel(1);
        let started = monotonic();
        self.call(move |f, now| {
            let (_, tcp) = f.tcp.as_mut().ok_or(FabricError::NoTcp)?;
            let deadline = started + deadline;
            let request = Request { target, bytes, sent: 0, started, deadline, reply };
            f.forwarder.request(now, tcp, request);
            Ok::<_, FabricError>(())
        })??;
        Ok(receive(&answer, deadline + CALL_DEADLINE)??)
    }

    /// Opens a TCP listener on loopback whose connections go to `target`; port 0 takes any free one. It stays until
    /// the fabric stops. Gives the address it listens on.
    ///
    /// # Errors
    /// When it cannot listen there or could never connect to `target`. Whether anybody answers there shows only
    /// when somebody connects: the client's connection is then reset.
    pub fn forward(&self, listen: SocketAddr, target: SocketAddr) -> Result<SocketAddr, FabricError> {
        self.call(move |f, _| {
            let (_, tcp) = f.tcp.as_ref().ok_or(FabricError::NoTcp)?;
            f.forwarder.forward(tcp, listen, target)
        })?
    }

    /// A queue of all events from now on. A subscriber that does not read loses events, which is counted.
    ///
    /// # Errors
    /// When the fabric has stopped.
    pub fn events(&self) -> Result<Receiver<NetEvent>, FabricError> {
        self.call(|f, _| f.subscribe())
    }

    /// The fabric's own state.
    ///
    /// # Errors
    /// When the fabric has stopped.
    pub fn stats(&self) -> Result<FabricStats, FabricError> {
        self.call(|f, _| f.stats())
    }

    /// Stops the fabric: its thread has ended, its socket files and listeners are gone. Again is harmless.
    ///
    /// # Errors
    /// When the thread does not end in time; it ends and cleans up whenever it can.
    pub fn stop(&self) -> Result<(), FabricError> {
        self.stopping.store(true, Ordering::Release);
        self.wake();
        let running = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(running) = running else { return Ok(()) };
        match running.ended.recv_timeout(CALL_DEADLINE) {
            Err(RecvTimeoutError::Timeout) => {
                Err(FabricError::NotAnswering { seconds: CALL_DEADLINE.as_secs() })
            }
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                // A panic has been reported by then, and cleaned up after.
                let _ = running.thread.join();
                Ok(())
            }
        }
    }

    /// Runs `job` in the fabric's thread and waits for what it gives.
    fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Fabric, Time) -> T + Send + 'static,
    ) -> Result<T, FabricError> {
        let (reply, answer) = sync_channel(1);
        let boxed: Job = Box::new(move |fabric, now| {
            // Who asked may have given up.
            let _ = reply.try_send(job(fabric, now));
        });
        match self.calls.try_send(boxed) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(FabricError::Busy),
            Err(TrySendError::Disconnected(_)) => return Err(FabricError::Stopped),
        }
        self.wake();
        receive(&answer, CALL_DEADLINE)
    }

    fn wake(&self) {
        // It fails only when it is set already.
        let _ = self.wake.write(1);
    }
}

fn receive<T>(answer: &Receiver<T>, deadline: Duration) -> Result<T, FabricError> {
    answer.recv_timeout(deadline).map_err(|e| match e {
        RecvTimeoutError::Timeout => FabricError::NotAnswering { seconds: deadline.as_secs() },
        RecvTimeoutError::Disconnected => FabricError::Stopped,
    })
}

impl Drop for FabricHandle {
    fn drop(&mut self) {
        // There is nobody to tell.
        let _ = self.stop();
    }
}

impl fmt::Debug for FabricHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FabricHandle").field("stopping", &self.stopping).finish_non_exhaustive()
    }
}
