//! The clock the libraries are given: running time since it was made, whatever the wall clock says.
//!
//! Raw keys have no validity in time, so TLS asks for the time and does nothing with it. QUIC dates the tokens by which
//! senders prove their address; they live some seconds and are read by this process only.

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use std::time::{Duration, Instant, SystemTime};

/// Counts from 1970 at its making, monotonic.
#[derive(Debug)]
pub(crate) struct RunningClock(Instant);

impl RunningClock {
    pub(crate) fn new() -> RunningClock {
        RunningClock(Instant::now())
    }

    fn running(&self) -> Duration {
        self.0.elapsed()
    }
}

impl TimeProvider for RunningClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.running()))
    }
}

impl quinn::TimeSource for RunningClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.running()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    #[test]
    fn begins_in_1970_and_runs() {
        let clock = RunningClock::new();
        assert!(clock.current_time().unwrap().as_secs() < 60);
        assert!(quinn::TimeSource::now(&clock) < SystemTime::UNIX_EPOCH + Duration::from_secs(60));
    }

    /// A node whose clock stands at 1970 or 2099 is served like any other, because nobody looks.
    #[test]
    fn nothing_reads_the_wall_clock() {
        let words =
            [concat!("System", "Time::now"), concat!("Unix", "Time::now"), concat!("Config::", "builder()")];
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut folders = vec![root.join("src"), root.join("core/src")];
        let mut files = 0;
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = fs::read_to_string(&path).unwrap();
                files += 1;
                for word in words {
                    assert!(!text.contains(word), "{} has {word}", path.display());
                }
                // Without details the library takes the wall clock by itself; only a test's stranger may.
                let plain = concat!("builder_with_", "provider");
                assert!(
                    !text.contains(plain) || path.ends_with("tests/refusals.rs"),
                    "{} has {plain}",
                    path.display()
                );
            }
        }
        assert!(files > 15, "{files} files looked at");
    }
}
