//! What happened in a lab, for people who watch and for conditions that wait.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Events that may wait for a subscriber; one that stays behind further loses the newest.
const QUEUE_MAX: usize = 1024;
/// Events kept to explain a failure.
const RECENT_MAX: usize = 200;

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since the lab started.
    pub at_ms: u64,
    /// Node, port or VIP it happened to.
    pub subject: String,
    /// What happened.
    pub what: String,
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>9.3}  {}: {}", self.at_ms as f64 / 1000.0, self.subject, self.what)
    }
}

#[derive(Debug, Default)]
struct Inner {
    subscribers: Vec<SyncSender<Event>>,
    recent: VecDeque<Event>,
    count: u64,
}

/// Where events are told.
#[derive(Debug)]
pub struct Hub {
    start: Instant,
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Default for Hub {
    fn default() -> Self {
        Hub { start: Instant::now(), inner: Mutex::default(), changed: Condvar::new() }
    }
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody.
    pub fn tell(&self, subject: impl Into<String>, what: impl Into<String>) {
        let at_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let event = Event { at_ms, subject: subject.into(), what: what.into() };
        let mut inner = self.lock();
        inner
            .subscribers
            .retain(|s| !matches!(s.try_send(event.clone()), Err(TrySendError::Disconnected(_))));
        if inner.recent.len() == RECENT_MAX {
            inner.recent.pop_front();
        }
        inner.recent.push_back(event);
        inner.count += 1;
        self.changed.notify_all();
    }

    /// Everything from now on, until the receiver is dropped.
    pub fn subscribe(&self) -> Receiver<Event> {
        let (sender, receiver) = sync_channel(QUEUE_MAX);
        self.lock().subscribers.push(sender);
        receiver
    }

    /// The last events.
    pub fn recent(&self) -> Vec<Event> {
        self.lock().recent.iter().cloned().collect()
    }

    /// Waits until `condition` gives a value: looks after every event and at least every `interval`, because not
    /// everything a condition reads is told as an event.
    pub fn wait<T>(
        &self,
        limit: Duration,
        interval: Duration,
        mut condition: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let until = Instant::now() + limit;
        loop {
            let seen = self.lock().count;
            if let Some(value) = condition() {
                return Some(value);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let guard = self.lock();
            let _ = self
                .changed
                .wait_timeout_while(guard, left.min(interval), |inner| inner.count == seen)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn subscribers_hear_what_comes_and_slow_ones_lose_the_newest_only() {
        let hub = Hub::default();
        hub.tell("a1", "before");
        let receiver = hub.subscribe();
        for n in 0..QUEUE_MAX + 5 {
            hub.tell("a1", n.to_string());
        }
        let heard: Vec<Event> = receiver.try_iter().collect();
        assert_eq!(heard.len(), QUEUE_MAX);
        assert_eq!(heard[0].what, "0");
        drop(receiver);
        hub.tell("a1", "nobody");
        assert!(hub.lock().subscribers.is_empty());
        assert_eq!(hub.recent().len(), RECENT_MAX);
        assert_eq!(hub.recent().last().expect("kept").what, "nobody");
    }

    #[test]
    fn a_condition_is_looked_at_after_an_event_and_given_up_at_the_deadline() {
        let hub = Arc::new(Hub::default());
        let teller = Arc::clone(&hub);
        let thread = std::thread::spawn(move || teller.tell("a1", "up"));
        let long = Duration::from_secs(30);
        let seen = hub.wait(long, long, || hub.recent().last().map(|e| e.what.clone()));
        assert_eq!(seen.as_deref(), Some("up"));
        thread.join().expect("told");
        assert_eq!(hub.wait(Duration::from_millis(10), Duration::from_millis(2), || None::<()>), None);
    }
}
