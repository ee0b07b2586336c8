//! The node's word to init for the VIPs on its ports (`docs/decisions/0007-fence-protocol.md`): each is registered before
//! it is added, one feed after a beat answers for all, and what was removed is released.
//!
//! ```text
//!              first VIP                       last VIP released
//!   at rest ----------------> agreed --------------------------------> at rest
//!                              |  ^
//!          init gone, refuses  v  |  every RETRY: what is registered is made what is held
//!                            at odds
//! ```
//! When to say what is `netd_core`'s [`FencePace`]. A connection is kept for as long as there is something to answer for.
//! Whatever init does, netd waits no longer than a beat for an answer, and not at all with a feed. `available` VIPs are
//! served without init; that is said once, and once more when it is over.

use daemon::InitError;
use daemon::fence::Fence as Init;
use netd_core::FencePace;
use nix::errno::Errno;
use proto::cluster::{PortName, Timing, VipName};
use proto::control::{FenceAddress, InterfaceRef};
use proto::status::Participation;
use proto::time::{Duration, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Between two attempts to agree with an init that is not there or refuses.
const RETRY: Duration = Duration::from_secs(1);

/// Why an address is not registered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FenceError {
    /// init was not reached or refused.
    #[error(transparent)]
    Init(#[from] InitError),
    /// init is not asked again before [`RETRY`] has passed.
    #[error("init was asked a moment ago, in vain")]
    AtOdds,
    /// The last beat is too long ago, or none was sent yet: the next one registers.
    #[error("no beat was sent of late")]
    NoWord,
}

/// An address that is on an interface, or about to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) interface: InterfaceRef,
    pub(crate) address: FenceAddress,
}

/// The fence as netd sees it.
#[derive(Debug)]
pub(crate) struct Fence {
    path: PathBuf,
    pace: FencePace,
    init: Option<Init>,
    /// VIPs on own ports, from before their addition to after their removal.
    held: BTreeMap<(VipName, PortName), Place>,
    /// init has registered what is in `held`, and nothing else.
    agreed: bool,
    /// When to ask again after it failed.
    retry: Time,
    /// What the log said last: whether VIPs are fenced.
    told: Option<bool>,
}

impl Fence {
    /// A fence that asks the init at `path` once there is a VIP.
    pub(crate) fn new(path: &Path, timing: Timing) -> Fence {
        Fence {
            path: path.to_owned(),
            pace: FencePace::new(timing),
            init: None,
            held: BTreeMap::new(),
            agreed: true,
            retry: Time::ZERO,
            told: None,
        }
    }

    /// A VIP that is on a port already. It is registered with the first beat: until then the former life's word stands,
    /// and peers count from that life's last beat.
    pub(crate) fn found(&mut self, vip: &VipName, port: &PortName, place: Place) {
        self.held.insert((vip.clone(), port.clone()), place);
        self.agreed = false;
    }

    /// Registers a VIP that is about to be added.
    ///
    /// # Errors
    /// [`FenceError`]; it is tried again with the beats, for as long as the VIP is held.
    pub(crate) fn add(
        &mut self,
        now: Time,
        vip: &VipName,
        port: &PortName,
        place: Place,
    ) -> Result<(), FenceError> {
        let old = self.held.insert((vip.clone(), port.clone()), place.clone());
        // Of an interface that has another index by now, the old one is released as well.
        let moved = old.as_ref().is_some_and(|old| *old != place);
        match (&self.init, self.agreed) {
            (Some(_), true) if old.is_some() && !moved => Ok(()),
            (Some(init), true) if !moved => {
                let word = self.pace.word(now).ok_or(FenceError::NoWord);
                let result =
                    word.and_then(|word| Ok(init.register(word, &place.interface, &[place.address])?));
                self.concluded(now, result)
            }
            _ => {
                self.agreed = false;
                self.agree(now)
            }
        }
    }

    /// Releases a VIP that was removed.
    pub(crate) fn removed(&mut self, now: Time, vip: &VipName, port: &PortName) {
        let Some(place) = self.held.remove(&(vip.clone(), port.clone())) else { return };
        if let (Some(init), true) = (&self.init, self.agreed) {
            let result = init.release(place.interface.index, &[place.address]);
            // Said in the log; what stays registered is released with a later beat.
            let _ = self.concluded(now, result.map_err(FenceError::from));
        }
        self.rest();
    }

    /// A status has left at `sent`: the moment for a word.
    pub(crate) fn beat(&mut self, sent: Time, participation: Participation) {
        let Some(word) = self.pace.sent(sent, participation) else { return };
        if let Some(init) = &self.init {
            match init.feed(word) {
                // With EAGAIN init is behind: the next word may get through.
                Ok(()) | Err(InitError::Connection(Errno::EAGAIN)) => {}
                Err(_) => {
                    // Another init took over, perhaps: it is asked at once.
                    (self.init, self.agreed) = (None, false);
                }
            }
        }
        if !self.agreed {
            // Said in the log.
            let _ = self.agree(sent);
        }
    }

    /// Makes what init has registered what is held.
    fn agree(&mut self, now: Time) -> Result<(), FenceError> {
        if now < self.retry {
            return Err(FenceError::AtOdds);
        }
        let result = self.pace.word(now).ok_or(FenceError::NoWord).and_then(|word| {
            let init = match self.init.take() {
                Some(init) => init,
                None => Init::connect_within(&self.path, self.pace.patience())?,
            };
            settle(self.init.insert(init), word, self.held.values())
        });
        self.concluded(now, result)?;
        self.rest();
        Ok(())
    }

    /// Draws the conclusion from what init did.
    fn concluded(&mut self, now: Time, result: Result<(), FenceError>) -> Result<(), FenceError> {
        self.agreed = result.is_ok();
        match &result {
            // Not init's fault; the next beat brings the word.
            Err(FenceError::NoWord | FenceError::AtOdds) => return result,
            Err(FenceError::Init(error)) => {
                // A connection on which init is only behind keeps the order of what was asked.
                let behind = matches!(error, InitError::Late | InitError::Connection(Errno::EAGAIN));
                if !behind && !matches!(error, InitError::Refused(_)) {
                    self.init = None;
                }
                self.retry = now + RETRY;
                if self.told != Some(false) {
                    tracing::warn!(%error, "VIPs are not fenced: init would not delete them if netd hung");
                }
            }
            Ok(()) if self.told != Some(true) => tracing::info!("VIPs are fenced"),
            Ok(()) => {}
        }
        self.told = Some(self.agreed);
        result
    }

    /// Nothing to answer for: no connection, which init would close for its silence.
    fn rest(&mut self) {
        if self.held.is_empty() && self.agreed {
            self.init = None;
        }
    }
}

/// Registers all of `held` and releases everything else.
fn settle<'a>(init: &Init, word: Time, held: impl Iterator<Item = &'a Place>) -> Result<(), FenceError> {
    let mut wanted: BTreeMap<u32, (&InterfaceRef, BTreeSet<FenceAddress>)> = BTreeMap::new();
    for Place { interface, address } in held {
        wanted.entry(interface.index).or_insert((interface, BTreeSet::new())).1.insert(*address);
    }
    // Also answers for what a former life has registered, so that it may be released.
    init.adopt(word)?;
    for (interface, addresses) in wanted.values() {
        init.register(word, interface, &addresses.iter().copied().collect::<Vec<_>>())?;
    }
    let info = init.state()?;
    let mut others: BTreeMap<u32, Vec<FenceAddress>> = BTreeMap::new();
    for row in &info.rows {
        let Some(interface) = info.interfaces.get(usize::from(row.interface)) else { continue };
        if wanted.get(&interface.index).is_none_or(|(_, addresses)| !addresses.contains(&row.address)) {
            others.entry(interface.index).or_default().push(row.address);
        }
    }
    for (index, addresses) in others {
        init.release(index, &addresses)?;
    }
    Ok(())
}
