//! The roster chain this node keeps on STATE, and whether what is found there is what was kept.
//!
//! ```text
//! roster         the newest entry and as many before it as fit      put first
//! roster-mark    cluster, number and hash of the newest             put second, then the entry is used
//!
//! at the start:  neither                  no chain: the personality's list of keys counts
//!                a mark alone             lost      --+
//!                newest below the mark    older       |  no part is handed out; the marked entry, handed in anew,
//!                another hash             forked      |  takes its place: its hash proves it
//!                damaged, unreadable      refused   --+
//!                newest above the mark    a cut between the two puts: the mark follows
//!                a chain alone            a cut between the first two puts: the mark is made
//! ```
//! The mark is what makes an old copy, put back by hand or left by a damaged slot, tell itself from a put that was cut.
//! Both together may be old only where the whole of STATE is: then the other members say so.
//!
//! What this does not do: judge entries ([`peer_core::roster`] does), fetch them, take a node in that has no chain
//! while its cluster has one for long (enrolment will).

use crate::records;
use peer_core::roster::{Change, Entry, LoadError, Member, Refused, RosterChain, RosterRecord};
use proto::cluster::NodeName;
use proto::envelope::{HEADER_LEN, header};
use proto::identity::ClusterId;
use proto::record::RosterMark;
use proto::roster::PublicKey;
use proto::text::hex;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use store::{Record, StoreError};
use tracing::{info, warn};

/// The chain's name in the state directory.
const RECORD: &str = "roster";
/// The mark's name there.
const MARK: &str = "roster-mark";
/// Ending of a chain that was put aside.
const ASIDE: &str = "damaged";

/// Why the chain on STATE is not used. STATE is unchanged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    /// The chain or its mark cannot be read.
    #[error("the roster on STATE cannot be read")]
    Store(#[source] StoreError),
    /// An entry of it breaks a rule.
    #[error("the roster on STATE is refused")]
    Load(#[source] LoadError),
    /// The chain is gone.
    #[error("the roster is lost: this node kept entry {}, STATE has none; {}", .0.number, give_back(.0))]
    Lost(RosterMark),
    /// It is of another cluster.
    #[error("the roster on STATE is of cluster {found}, this node belongs to {}; {}", .mark.cluster, give_back(.mark))]
    OtherCluster { mark: RosterMark, found: ClusterId },
    /// It ends before the entry that was kept last: an old copy.
    #[error("the roster on STATE is older than it was: it ends at entry {found}, this node kept {}; {}", .mark.number, give_back(.mark))]
    Older { mark: RosterMark, found: u64 },
    /// It has another entry of that number.
    #[error("the roster on STATE is forked at entry {}: found {found}, kept {}; {}", .mark.number, hex(&.mark.hash), give_back(.mark))]
    Forked { mark: RosterMark, found: String },
}

/// What a technician does about it.
fn give_back(mark: &RosterMark) -> String {
    format!(
        "fetch entry {} with \"keel roster show --entry\" from another member and hand it in with \"keel roster apply\"",
        mark.number
    )
}

/// Why handed in entries were not taken. The chain is unchanged, or ends with the last entry that was good.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// Not a row of entries.
    #[error(
        "expected whole roster entries, found {len} bytes that are none; hand in what \"keel roster\" printed, all of it"
    )]
    Form { len: usize },
    /// An entry breaks a rule.
    #[error("roster entry refused, the roster is as it was")]
    Refused(#[source] Refused),
    /// The first chain would shut this node out.
    #[error(
        "roster not taken: it has no key or another one for {node}, which this machine is; expected {node}:{key}; add it with \"keel roster add\""
    )]
    WithoutUs { node: NodeName, key: String },
    /// Only the marked entry can take a damaged chain's place.
    #[error(
        "roster entry {number} ({found}) cannot take the place of the one on STATE, expected entry {} ({})",
        .mark.number,
        hex(&.mark.hash)
    )]
    NotTheMarked { mark: RosterMark, number: u64, found: String },
    /// There is no mark to judge a new chain by.
    #[error(
        "neither the roster on STATE nor its mark can be used: move roster and roster-mark out of {state}, restart provisiond, then hand in the roster again"
    )]
    NoMark { state: PathBuf },
}

/// What came of entries that were handed in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Nothing new.
    Known { number: u64 },
    /// A chain was begun or put back, ending at this entry.
    Begun { cluster: ClusterId, number: u64 },
    /// The last step.
    Step(Change),
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = match self {
            Taken::Known { number } => return write!(f, "entry {number} was in force already"),
            Taken::Begun { cluster, number } => {
                return write!(f, "cluster {cluster}, entry {number} is in force");
            }
            Taken::Step(step) => step,
        };
        write!(f, "entry {} is in force", step.number)?;
        let names = |members: &[Member]| members.iter().map(|m| m.name.clone()).collect::<Vec<_>>();
        let rotated: Vec<NodeName> = step.rotated.iter().map(|(name, _)| name.clone()).collect();
        for (what, names) in
            [("added", names(&step.added)), ("removed", names(&step.removed)), ("another key for", rotated)]
        {
            for name in names {
                write!(f, ", {what} {name}")?;
            }
        }
        if step.admin {
            f.write_str(", another admin key")?;
        }
        Ok(())
    }
}

/// The chain and its place. Both records stay open and locked as long as the daemon runs.
#[derive(Debug)]
pub(crate) struct Keeper {
    state: PathBuf,
    record: Option<Record<RosterRecord>>,
    mark: Option<Record<RosterMark>>,
    chain: Result<Option<RosterChain>, Unusable>,
}

impl Keeper {
    /// Reads what is kept in `state`.
    ///
    /// # Errors
    /// STATE cannot be used at all. A chain that cannot be used is told by [`Keeper::chain`].
    pub(crate) fn open(state: &Path) -> Result<Keeper, StoreError> {
        let mark = records::open::<RosterMark>(&state.join(MARK))?;
        let record = records::open::<RosterRecord>(&state.join(RECORD))?;
        let mut keeper = Keeper { state: state.to_owned(), record: None, mark: None, chain: Ok(None) };
        keeper.chain = match (record, mark) {
            (Ok(record), Ok(mark)) => {
                let chain = judge(record.as_ref().map(Record::get), mark.as_ref().map(Record::get));
                (keeper.record, keeper.mark) = (record, mark);
                chain
            }
            (Err(damage), mark) => {
                keeper.mark = mark.unwrap_or_default();
                Err(Unusable::Store(damage))
            }
            (Ok(_), Err(damage)) => Err(Unusable::Store(damage)),
        };
        if let Ok(Some(chain)) = &keeper.chain {
            info!("roster of cluster {} at entry {}", chain.cluster(), chain.newest().number());
            let due = mark_of(chain);
            if keeper.mark.as_ref().is_none_or(|mark| *mark.get() != due) {
                warn!("the mark of the roster was not written any more, it is now");
                put(&mut keeper.mark, &state.join(MARK), due)?;
            }
        }
        Ok(keeper)
    }

    /// The chain in force, if there is any.
    pub(crate) fn chain(&self) -> Result<Option<&RosterChain>, &Unusable> {
        self.chain.as_ref().map(Option::as_ref)
    }

    /// Takes entries, one behind the other in `bytes`. Each one is durable before the next is judged, and all are when this
    /// returns. The first chain has to know this node, `own`.
    ///
    /// # Errors
    /// The outer error ends the daemon: STATE cannot keep what was taken.
    pub(crate) fn apply(
        &mut self,
        bytes: &[u8],
        (node, key): (&NodeName, &PublicKey),
    ) -> Result<Result<Taken, ApplyError>, StoreError> {
        let entries = match split(bytes) {
            Ok(entries) => entries,
            Err(error) => return Ok(Err(error)),
        };
        let mut chain = match self.begin(&entries) {
            Ok(begun) => begun,
            Err(error) => return Ok(Err(error)),
        };
        let begun = self.chain().ok().flatten().is_none();
        let current = chain.newest().number();
        let mut taken = Taken::Known { number: current };
        let mut refused = None;
        // What is handed in as a whole often begins long ago: its end counts.
        if let Some(last) = entries.last().map(Entry::number).filter(|last| *last < current) {
            refused = Some(ApplyError::Refused(Refused::Old { number: last, current }));
        }
        for entry in entries {
            match chain.apply(entry) {
                Ok(applied) => (chain, taken) = (applied.chain, Taken::Step(applied.change)),
                Err(Refused::Known { .. } | Refused::Old { .. }) => {}
                Err(error) => {
                    refused = Some(ApplyError::Refused(error));
                    break;
                }
            }
        }
        let restored = self.chain.is_err();
        if begun && !restored {
            if chain.machines().key_of(node) != Some(key) {
                let key = hex(key);
                return Ok(Err(ApplyError::WithoutUs { node: node.clone(), key }));
            }
            if let Some(error) = refused {
                return Ok(Err(error)); // all or nothing: half a beginning helps nobody
            }
        }
        if begun {
            taken = Taken::Begun { cluster: chain.cluster(), number: chain.newest().number() };
        }
        if self.chain().ok().flatten() != Some(&chain) {
            self.keep(chain)?;
        }
        Ok(refused.map_or(Ok(taken), Err))
    }

    /// The chain that `entries` go on from, or begin.
    fn begin(&self, entries: &[Entry]) -> Result<RosterChain, ApplyError> {
        let first = entries.first().cloned().ok_or(ApplyError::Form { len: 0 })?;
        match (&self.chain, &self.mark) {
            (Ok(Some(chain)), _) => Ok(chain.clone()),
            (Ok(None), _) => RosterChain::found(first).map_err(ApplyError::Refused),
            (Err(_), Some(mark)) => {
                let mark = mark.get().clone();
                let marked = entries.iter().find(|e| e.number() == mark.number && *e.hash() == mark.hash);
                let Some(entry) = marked.cloned() else {
                    let (number, found) = (first.number(), hex(first.hash()));
                    return Err(ApplyError::NotTheMarked { mark, number, found });
                };
                RosterChain::join(mark.cluster, entry).map_err(ApplyError::Refused)
            }
            (Err(_), None) => Err(ApplyError::NoMark { state: self.state.clone() }),
        }
    }

    /// Makes `chain` durable, then puts it in force.
    fn keep(&mut self, chain: RosterChain) -> Result<(), StoreError> {
        let path = self.state.join(RECORD);
        if self.chain.is_err() {
            self.record = None; // closes it
            put_aside(&path)?;
        }
        put(&mut self.record, &path, chain.record())?;
        put(&mut self.mark, &self.state.join(MARK), mark_of(&chain))?;
        self.chain = Ok(Some(chain));
        Ok(())
    }
}

/// Replaces or makes a record.
fn put<T: proto::envelope::Message>(
    record: &mut Option<Record<T>>,
    path: &Path,
    value: T,
) -> Result<(), StoreError> {
    match record {
        Some(record) => record.put(value),
        None => {
            *record = Some(Record::create(path, value)?);
            Ok(())
        }
    }
}

/// Gives a chain that cannot be used another name: it may tell what has happened.
fn put_aside(path: &Path) -> Result<(), StoreError> {
    let aside = path.with_extension(ASIDE);
    match fs::rename(path, &aside) {
        Ok(()) => warn!("the roster that was not used is now {}", aside.display()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(source) => {
            return Err(StoreError::Io { record: path.to_owned(), what: "put it aside", source });
        }
    }
    Ok(())
}

pub(crate) fn mark_of(chain: &RosterChain) -> RosterMark {
    let newest = chain.newest();
    RosterMark { cluster: chain.cluster(), number: newest.number(), hash: *newest.hash() }
}

/// The entries in `bytes`.
fn split(bytes: &[u8]) -> Result<Vec<Entry>, ApplyError> {
    let form = || ApplyError::Form { len: bytes.len() };
    let (mut entries, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let len = header(rest).map_err(|_| form())?.len.saturating_add(HEADER_LEN);
        let (entry, behind) = rest.split_at_checked(len).ok_or_else(form)?;
        entries.push(Entry::decode(entry).map_err(ApplyError::Refused)?);
        rest = behind;
    }
    Ok(entries)
}

/// Whether what was found is what was kept.
fn judge(record: Option<&RosterRecord>, mark: Option<&RosterMark>) -> Result<Option<RosterChain>, Unusable> {
    let chain = match (record, mark) {
        (None, None) => return Ok(None),
        (None, Some(mark)) => return Err(Unusable::Lost(mark.clone())),
        (Some(record), _) => RosterChain::load(record).map_err(Unusable::Load)?,
    };
    let Some(mark) = mark.cloned() else { return Ok(Some(chain)) };
    if chain.cluster() != mark.cluster {
        return Err(Unusable::OtherCluster { mark, found: chain.cluster() });
    }
    let newest = chain.newest().number();
    match chain.entry(mark.number) {
        None if newest < mark.number => Err(Unusable::Older { mark, found: newest }),
        None => Err(Unusable::Forked { mark, found: "an entry too far ahead".to_owned() }),
        Some(entry) if *entry.hash() == mark.hash => Ok(Some(chain)),
        Some(entry) => {
            let found = hex(entry.hash());
            Err(Unusable::Forked { mark, found })
        }
    }
}
