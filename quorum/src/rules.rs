//! The rules that the arguments rest on. Outside tests there is no way to break one, and asking costs nothing.

/// One rule. A test breaks it and shows the check that notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(test, derive(PartialOrd, Ord))]
pub(crate) enum Rule {
    // The lease, at the holder.
    /// A deadline counts from the sending of the request, not from the arrival of the vote.
    FromSending,
    /// Every handler looks at the deadline, not the timer alone.
    EveryHandler,
    /// What has expired is dropped before anything else is said.
    StepDownFirst,
    /// Votes of one voter count once.
    DistinctVoters,
    /// A renewal extends only as far as a majority has answered again.
    FreshMajority,
    /// A ballot is sent with one time of sending only.
    BallotsOnce,
    /// A vote for a request that did not name the key says nothing about it.
    SinceWanted,
    /// The holder gives the clocks' rates away.
    Drift,
    // The lease, at the acceptor.
    /// A key of another member's live lease is not granted.
    NeverReplace,
    /// Another life of the same member is another owner.
    LivesDiffer,
    /// A give-up ends the lease it names and no other: owner, incarnation, ballot.
    GiveUpExactly,
    /// An old request changes nothing.
    BallotsRise,
    /// Of request and own configuration the longer times count.
    LongerTimes,
    /// A shorter request does not shorten what was promised before.
    NeverShorten,
    /// After a lease the bound of the fence is waited for.
    FenceBound,
    /// An acceptor without its memory is silent for the longest lease there can be.
    SilentAfterRestart,
    /// Who counts by a list two steps old gets no answer.
    OldVoters,
    // The seal, and the lease of a witness.
    /// No answer leaves before its record is on disk.
    DurableFirst,
    /// An acceptor that promised a ballot accepts none below it.
    PromiseHolds,
    /// A proposer takes over the value of the highest ballot it is told of.
    AdoptHighest,
    /// A round is on disk before it is used.
    RoundFirst,
}

/// Which rules are kept: all of them, outside tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Rules {
    #[cfg(test)]
    broken: Option<Rule>,
}

impl Rules {
    /// None is broken.
    #[cfg(test)]
    pub(crate) const ALL: Rules = Rules { broken: None };

    #[cfg(test)]
    pub(crate) const fn without(rule: Rule) -> Rules {
        Rules { broken: Some(rule) }
    }

    pub(crate) fn keep(self, rule: Rule) -> bool {
        #[cfg(test)]
        return self.broken != Some(rule);
        #[cfg(not(test))]
        {
            let _ = rule;
            true
        }
    }
}
