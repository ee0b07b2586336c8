//! Who votes, and what a majority of them is.
//!
//! The list is versioned by the number of the roster entry that changed it last. A step adds or removes one voter, so
//! that a majority of a version shares a voter with every majority of the version before and after it. Two steps may
//! share none: what keeps a list in use from meeting one two steps away is said in [`crate::lease`].

use proto::identity::MemberId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Voters of one list: seven members and witnesses, with room.
pub const VOTERS_MAX: usize = 16;

/// Why a list of voters is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a list of {found} voters, at most {VOTERS_MAX} are allowed; name fewer voters in the roster")]
pub struct TooManyVoters {
    /// How many there were.
    pub found: usize,
}

/// A list of voters.
///
/// ```
/// use proto::identity::MemberId;
/// use quorum::voters::Voters;
/// let voters = Voters::new(4, [1, 2, 3].map(|n| MemberId([n; 32]))).unwrap();
/// assert_eq!((voters.version(), voters.majority()), (4, 2));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Voters {
    version: u64,
    members: BTreeSet<MemberId>,
}

impl Voters {
    /// The list of roster entry `version`. A member named twice is one voter.
    ///
    /// # Errors
    /// [`TooManyVoters`] above [`VOTERS_MAX`].
    pub fn new(version: u64, members: impl IntoIterator<Item = MemberId>) -> Result<Voters, TooManyVoters> {
        let members: BTreeSet<_> = members.into_iter().collect();
        if members.len() > VOTERS_MAX {
            return Err(TooManyVoters { found: members.len() });
        }
        Ok(Voters { version, members })
    }

    /// Number of the roster entry.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The voters, in order.
    pub fn members(&self) -> impl Iterator<Item = MemberId> + '_ {
        self.members.iter().copied()
    }

    /// Whether `member` votes.
    pub fn contains(&self, member: MemberId) -> bool {
        self.members.contains(&member)
    }

    /// How many different voters decide. An empty list never decides.
    pub fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }

    /// How many voters may be lost before nothing can be decided.
    pub fn bears_losses(&self) -> usize {
        self.members.len().saturating_sub(self.majority())
    }

    /// Whether `next` is one step away: the next version, at most one voter more or fewer.
    pub fn steps_to(&self, next: &Voters) -> bool {
        next.version > self.version && self.members.symmetric_difference(&next.members).count() <= 1
    }

    /// The best value that a majority has reached or passed; `None` when no majority has any. One value for each
    /// voter: the caller keeps them in a map.
    pub(crate) fn reached<T: Ord>(&self, values: impl Iterator<Item = (MemberId, T)>) -> Option<T> {
        let mut values: Vec<T> =
            values.filter(|(who, _)| self.contains(*who)).map(|(_, value)| value).collect();
        values.sort_unstable_by(|a, b| b.cmp(a));
        values.into_iter().nth(self.majority() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voters(version: u64, members: &[u8]) -> Voters {
        Voters::new(version, members.iter().map(|n| MemberId([*n; 32]))).unwrap()
    }

    #[test]
    fn any_two_majorities_of_adjacent_versions_share_a_voter() {
        for n in 0..7u8 {
            let all: Vec<u8> = (0..=n).collect();
            let (less, more) = (voters(1, &all[..n as usize]), voters(2, &all));
            assert!(less.steps_to(&more));
            assert!(less.majority() + more.majority() > usize::from(n) + 1, "{n} and one more");
        }
    }

    #[test]
    fn a_step_is_one_voter_and_the_next_version() {
        assert!(voters(1, &[1, 2, 3]).steps_to(&voters(2, &[1, 2])));
        assert!(voters(1, &[1, 2, 3]).steps_to(&voters(2, &[1, 2, 3])));
        assert!(!voters(1, &[1, 2, 3]).steps_to(&voters(2, &[1, 2, 4])), "one replaced is two steps");
        assert!(!voters(2, &[1, 2, 3]).steps_to(&voters(2, &[1, 2])));
    }

    #[test]
    fn a_majority_reaches_what_its_slowest_has_reached() {
        let three = voters(1, &[1, 2, 3]);
        let reached =
            |values: &[(u8, u32)]| three.reached(values.iter().map(|(n, v)| (MemberId([*n; 32]), *v)));
        assert_eq!(reached(&[(1, 9), (2, 4), (3, 5)]), Some(5));
        assert_eq!(reached(&[(1, 9)]), None);
        assert_eq!(reached(&[(1, 9), (7, 9)]), None, "a stranger's vote");
        assert_eq!(voters(1, &[]).reached([].into_iter().map(|n: u8| (MemberId([n; 32]), 1))), None);
    }

    #[test]
    fn lists_are_bounded() {
        let many: Vec<u8> = (0..=VOTERS_MAX as u8).collect();
        let refused = Voters::new(1, many.iter().map(|n| MemberId([*n; 32])));
        assert_eq!(refused, Err(TooManyVoters { found: VOTERS_MAX + 1 }));
    }
}
