//! The recovery prompt: `r` on a serial console, within the first seconds, leads to the rescue prompt.
//!
//! ```text
//! shown, early in the boot --r--> rescue prompt      (before STATE is mounted: at once; later: services are stopped)
//!        '------ WINDOW ------> over
//! ```
//! **An unattended boot waits for nothing.** The line keeps what is typed while the boot goes on beside the prompt; it
//! is looked at before STATE is touched and from then on by the poll loop. Services start meanwhile, only those that
//! own one of these terminals wait for the rest of the three seconds: two readers on one line would each get half of
//! what is typed. The console of the image comes after netd and provisiond anyway, which is later than that.
//!
//! It decides nothing about the rescue prompt, and a machine without a serial console has none of this.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use proto::time::Time;

use crate::boot::consoles::{self, Console, Reading};

/// How long a person has.
pub(crate) const WINDOW: Duration = Duration::from_secs(3);
/// What the line may take to show the prompt: one of 9600 baud needs 60 ms. Dropped on a line nobody reads.
const SHOW_LIMIT: Duration = Duration::from_millis(20);
/// Begins what no person types.
const ESCAPE: u8 = 0x1b;
/// What is typed between two looks; more does not say more.
const TYPED_MAX: usize = 256;

/// The prompt on its consoles, while it is there. Given back when dropped.
pub(crate) struct Recovery {
    /// `None` for one that is gone.
    consoles: Vec<Option<Console>>,
    until: Time,
}

impl Recovery {
    /// Shows the prompt on every serial console; `None` without one.
    pub(crate) fn show(now: Time) -> Option<Recovery> {
        Recovery::on(now, consoles::serial(Reading::Keys))
    }

    fn on(now: Time, consoles: Vec<Console>) -> Option<Recovery> {
        let text = format!("\nEvenkeel: press r within {} s for the rescue prompt\n", WINDOW.as_secs());
        for console in &consoles {
            console.show(&text, SHOW_LIMIT);
        }
        let until = now + WINDOW;
        (!consoles.is_empty()).then(|| Recovery { consoles: consoles.into_iter().map(Some).collect(), until })
    }

    /// When it is over.
    pub(crate) fn until(&self) -> Time {
        self.until
    }

    /// Whether the terminal `/dev/NAME` is one of its consoles.
    pub(crate) fn is_on(&self, path: &str) -> bool {
        self.consoles.iter().flatten().any(|c| path.strip_prefix("/dev/") == Some(c.name()))
    }

    /// The descriptor of each console; its place is its number.
    pub(crate) fn fds(&self) -> impl Iterator<Item = (u16, BorrowedFd<'_>)> {
        (0..).zip(&self.consoles).filter_map(|(i, c)| Some((i, c.as_ref()?.fd())))
    }

    /// The console on which r was pressed, if there is one.
    pub(crate) fn pressed_anywhere(&self) -> Option<String> {
        let pressed = |c: &&Console| self.pressed_on(c).unwrap_or(false);
        self.consoles.iter().flatten().find(pressed).map(|c| c.name().to_owned())
    }

    /// Whether r was pressed on console `index`, and then its name.
    ///
    /// # Errors
    /// The console is gone. Its descriptor is to be waited for no more; [`Recovery::lose`] closes it.
    pub(crate) fn pressed(&self, index: u16) -> Result<Option<&str>, nix::errno::Errno> {
        let Some(Some(console)) = self.consoles.get(usize::from(index)) else { return Ok(None) };
        Ok(self.pressed_on(console)?.then_some(console.name()))
    }

    /// Closes console `index`.
    pub(crate) fn lose(&mut self, index: u16) {
        if let Some(console) = self.consoles.get_mut(usize::from(index)) {
            *console = None;
        }
    }

    fn pressed_on(&self, console: &Console) -> Result<bool, nix::errno::Errno> {
        let mut typed = [0; TYPED_MAX];
        let typed = console.read(&mut typed)?;
        // Terminals answer the firmware's and the loader's questions in such sequences: where the cursor is, for one.
        Ok(typed.contains(&b'r') && !typed.contains(&ESCAPE))
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::boot::consoles::testing::Line;

    /// The prompt on terminals called `ttyT0`, `ttyT1` and so on.
    pub(crate) fn on_lines(now: Time, lines: &[Line]) -> Recovery {
        let consoles =
            lines.iter().enumerate().map(|(i, line)| line.open(&format!("ttyT{i}"), Reading::Keys));
        Recovery::on(now, consoles.collect()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::on_lines;
    use super::*;
    use crate::boot::consoles::testing::{Line, wait_for_hangup};
    use nix::poll::{PollFd, PollFlags, poll};

    #[test]
    fn r_on_any_line_is_heard_and_nothing_else() {
        let lines = [Line::new(), Line::new()];
        // Typed into the firmware, for example.
        lines[1].type_keys("r");
        let recovery = on_lines(Time::ZERO, &lines);
        assert_eq!(recovery.until(), Time::ZERO + Duration::from_secs(3));
        for line in &lines {
            line.shown_until("press r within 3 s");
        }
        assert_eq!(recovery.pressed_anywhere(), None);
        let type_on = |index: usize, keys: &str| {
            lines[index].type_keys(keys);
            let fd = recovery.fds().nth(index).unwrap().1;
            assert_eq!(poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], 10_000u16), Ok(1));
        };
        for (index, keys, heard) in [
            (0, "\n q\u{1b}[A", None),
            (1, "xyzr", Some("ttyT1")),
            (0, "\u{1b}[24;80R", None),
            (0, "\u{1b}P1$r0m", None),
            (0, "r", Some("ttyT0")),
        ] {
            type_on(index, keys);
            assert_eq!(recovery.pressed_anywhere().as_deref(), heard, "{keys:?}");
        }
        type_on(1, "r");
        assert_eq!((recovery.pressed(0), recovery.pressed(1)), (Ok(None), Ok(Some("ttyT1"))));
        assert!(recovery.is_on("/dev/ttyT1") && !recovery.is_on("/dev/ttyT2") && !recovery.is_on("ttyT1"));
    }

    #[test]
    fn a_line_that_is_gone_is_said_and_no_line_is_no_prompt() {
        assert!(Recovery::on(Time::ZERO, Vec::new()).is_none());
        let line = Line::new();
        let mut recovery = on_lines(Time::ZERO, std::slice::from_ref(&line));
        drop(line);
        wait_for_hangup(recovery.fds().next().unwrap().1);
        assert!(recovery.pressed(0).is_err());
        recovery.lose(0);
        assert_eq!((recovery.pressed(0), recovery.fds().count()), (Ok(None), 0));
    }
}
