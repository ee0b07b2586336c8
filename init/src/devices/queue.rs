//! Which devices' modules are to be loaded next: modaliases that have come, each once, or a walk over all devices.
//!
//! A walk covers whatever has come before it begins, so that it takes the place of all that waits. That is what makes
//! the bound safe: a full queue becomes a walk.

use std::collections::BTreeSet;

/// Modaliases that wait; a bus that is found makes a few tens. At most 64 KiB.
pub(crate) const QUEUE_MAX: usize = 32;

/// What one child is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Look at every device there is.
    Walk,
    /// Serve these modaliases.
    Serve(BTreeSet<String>),
}

/// What waits.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: BTreeSet<String>,
    walk: bool,
}

impl Queue {
    /// A device with `modalias` has come.
    pub(crate) fn push(&mut self, modalias: &str) {
        if self.walk || self.waiting.contains(modalias) {
            return;
        }
        if self.waiting.len() == QUEUE_MAX {
            return self.walk();
        }
        self.waiting.insert(modalias.to_owned());
    }

    /// Asks for a walk.
    pub(crate) fn walk(&mut self) {
        self.walk = true;
        self.waiting.clear();
    }

    /// Whether a walk waits.
    pub(crate) fn wants_walk(&self) -> bool {
        self.walk
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        !self.walk && self.waiting.is_empty()
    }

    /// Takes all that waits.
    pub(crate) fn take(&mut self) -> Option<Job> {
        if std::mem::take(&mut self.walk) {
            return Some(Job::Walk);
        }
        let waiting = std::mem::take(&mut self.waiting);
        (!waiting.is_empty()).then_some(Job::Serve(waiting))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_modalias_waits_once() {
        let mut queue = Queue::default();
        for alias in ["b", "a", "b"] {
            queue.push(alias);
        }
        assert_eq!(queue.take(), Some(Job::Serve(["a", "b"].map(str::to_owned).into())));
        assert_eq!((queue.take(), queue.is_empty()), (None, true));
    }

    #[test]
    fn a_full_queue_becomes_a_walk() {
        let mut queue = Queue::default();
        (0..QUEUE_MAX).for_each(|i| queue.push(&format!("a{i}")));
        queue.push("a0");
        assert!(!queue.wants_walk(), "it waits already");
        queue.push("one more");
        assert_eq!((queue.take(), queue.take()), (Some(Job::Walk), None));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_the_bound_holds(events in proptest::collection::vec(0_u8..80, 0..300)) {
            // 79 takes a job, 78 asks for a walk, the others come as devices.
            let (mut queue, mut owed) = (Queue::default(), BTreeSet::new());
            for event in events {
                match event {
                    79 => match queue.take() {
                        Some(Job::Walk) => owed.clear(),
                        Some(Job::Serve(list)) => {
                            prop_assert_eq!(&list, &owed);
                            owed.clear();
                        }
                        None => prop_assert!(owed.is_empty()),
                    },
                    78 => queue.walk(),
                    n => {
                        queue.push(&n.to_string());
                        owed.insert(n.to_string());
                    }
                }
                prop_assert!(queue.waiting.len() <= QUEUE_MAX);
                prop_assert!(queue.waiting.is_empty() || !queue.walk);
            }
        }
    }
}
