//! PID 1: what it does when programs, people, the console or the kernel fail it.

use crate::stage::NODE;
use crate::world::{Outcome, REBOOT_LIMIT};
use lab::error::LabError;
use lab::lab::Lab;
use lab::machine::{Press, RunEnd, State};
use lab::serial::Position;
use lab::table::seconds;
use lab::variant::{Variant, Watchdog};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A killed service is back within this, on a busy host.
const BACK_LIMIT: Duration = Duration::from_secs(20);
/// An orderly way down: services have 20 s, killing 2 s.
const DOWN_LIMIT: Duration = Duration::from_secs(40);
/// What a guest that has ended said is on its way to us at most.
const SAID_LIMIT: Duration = Duration::from_secs(2);
/// Programs of the services, each once: `keel` is the console, PID 1 on the bus, and the lab's agent.
const PROGRAMS: [&str; 5] = ["provisiond", "netd", "demo-web", "keel", "lab-fault"];

pub(crate) fn no_watchdog() -> Variant {
    Variant { watchdog: Watchdog::None, ..Variant::default() }
}

/// State and process of each service, as `show services` says.
fn services(lab: &Lab) -> Result<BTreeMap<String, (String, String)>, LabError> {
    let text = lab.keel_within(NODE, "show services", BACK_LIMIT)?.text;
    let mut head = text.lines().next().unwrap_or_default().split_whitespace();
    let pid = head.position(|word| word == "PID").unwrap_or(usize::MAX);
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let word = |at: usize| words.get(at).map(|word| (*word).to_owned());
        Some((word(0)?, (word(1)?, word(pid)?)))
    };
    Ok(text.lines().skip(1).filter_map(row).collect())
}

/// Every service is killed in turn. Each comes back as another process, nobody else is touched, the lines it said
/// before are still there, and nothing it left is uncollected.
pub(crate) fn services_killed_in_turn(lab: &Lab) -> Outcome {
    let mut killed = 0;
    let first_line = |lab: &Lab| -> Result<String, LabError> {
        let log = lab.keel(NODE, "show log netd -n 200")?;
        Ok(log.lines().find(|l| !l.trim().is_empty()).unwrap_or_default().to_owned())
    };
    let said = first_line(lab)?;
    if said.is_empty() {
        return Err("netd has said nothing that could be lost".into());
    }
    for program in PROGRAMS {
        let before = services(lab)?;
        // Who carries the answer may be the one that is killed.
        let _ = lab.fault(NODE, &format!("signal {program} KILL"));
        lab.expect_within(BACK_LIMIT, &format!("{program} and everything else running"), || {
            services(lab).is_ok_and(|now| {
                let running = |(state, pid): &(String, String)| state == "ready" && pid != "-";
                let changed =
                    before.iter().filter(|(name, old)| now.get(*name).is_some_and(|new| new.1 != old.1));
                let expected = if program == "keel" { 3 } else { 1 };
                now.len() == before.len() && now.values().all(running) && changed.count() == expected
            })
        })?;
        killed += 1;
    }
    if first_line(lab)? != said {
        return Err(format!("netd's output from before its death is gone: {said:?}").into());
    }
    lab.fault(NODE, "orphans 50")?;
    lab.expect_within(BACK_LIMIT, "50 orphans collected", || {
        lab.fault(NODE, "zombies").is_ok_and(|count| count.trim() == "0")
    })?;
    lab.wait_for_vips()?;
    Ok(format!("{killed} programs killed, all back; 50 orphans collected"))
}

/// Waits until the guest has ended its run number `run` for `reason`, without the watchdog's help.
fn ended(lab: &Lab, run: u32, reason: &str, limit: Duration) -> Result<(), Box<dyn Error>> {
    let end = || lab.power(NODE).ok().and_then(|status| status.last_end).filter(|end| end.run == run);
    lab.expect_within(limit, "the guest's end", || end().is_some())?;
    match end() {
        Some(RunEnd { reason: given, watchdog: false, .. }) if given == reason => Ok(()),
        other => Err(format!("the run ended with {other:?} instead of {reason}").into()),
    }
}

/// Waits until the run after `run` serves.
fn back(lab: &Lab, run: u32) -> Result<(), LabError> {
    lab.expect_within(REBOOT_LIMIT, "the node's prompt after its restart", || {
        lab.power(NODE).is_ok_and(|s| s.starts == run + 1) && lab.has_prompt(NODE)
    })?;
    lab.wait_for_vips()
}

/// Has init's messages shown on the console from here on; where they begin.
fn hear_init(lab: &Lab) -> Result<Position, LabError> {
    lab.fault(NODE, "write /proc/sys/kernel/printk 7")?;
    Ok(lab.serial(NODE)?.position())
}

/// Checks that init said these words on the console since `from`, in this order.
fn said_in_order(lab: &Lab, from: Position, words: &[&str]) -> Result<(), LabError> {
    let serial = lab.serial(NODE)?;
    words.iter().try_fold(from, |at, word| serial.wait_for(at, word, SAID_LIMIT)).map(drop)
}

/// Nobody reads the console, which is full: commands are answered, services go on, and the node goes down in order.
/// Then it boots.
pub(crate) fn stuck_console(lab: &Lab) -> Outcome {
    let serial = lab.serial(NODE)?;
    let run = lab.power(NODE)?.starts;
    serial.hold(true);
    let stuck = serial.position();
    let mut console = UnixStream::connect(lab.dir().join(NODE).join("con"))?;
    for _ in 0..20 {
        console.write_all(b"help\r")?;
    }
    // Four screens at most go into the line's buffers; all twenty never do.
    let since = Instant::now();
    let state = lab.keel(NODE, "show state")?;
    let answered = since.elapsed();
    lab.fault(NODE, "signal netd KILL")?;
    lab.expect_within(BACK_LIMIT, "netd back while the console is stuck", || {
        services(lab).is_ok_and(|now| now.values().all(|(state, _)| state == "ready"))
    })?;
    let came = serial.text_since(stuck).matches("lists what can be shown").count();
    if came > 4 || state.is_empty() {
        return Err(format!("the console was not stuck: {came} of 20 answers came").into());
    }
    let since = Instant::now();
    let _ = lab.keel_within(NODE, "reboot --yes", Duration::from_secs(10));
    ended(lab, run, "guest-reset", DOWN_LIMIT)?;
    let down = since.elapsed();
    serial.hold(false);
    back(lab, run)?;
    Ok(format!("a command answered after {} ms, down in order after {}", answered.as_millis(), seconds(down)))
}

/// Ctrl-Alt-Del restarts the node in order: services first, then STATE, then the machine.
pub(crate) fn ctrl_alt_del(lab: &Lab) -> Outcome {
    let run = lab.power(NODE)?.starts;
    let from = hear_init(lab)?;
    let since = Instant::now();
    lab.press(NODE, Press::CtrlAltDel)?;
    ended(lab, run, "guest-reset", DOWN_LIMIT)?;
    let down = since.elapsed();
    said_in_order(lab, from, &["reboot asked for by SIGINT", "STATE: unmounted", "restarting the machine"])?;
    back(lab, run)?;
    Ok(format!("down after {}, back after {}", seconds(down), seconds(since.elapsed())))
}

/// The kernel panics: the machine resets after `panic=` seconds and the node comes back, its STATE whole.
pub(crate) fn kernel_panic(lab: &Lab) -> Outcome {
    let run = lab.power(NODE)?.starts;
    let since = Instant::now();
    // The kernel that should answer is the one that dies.
    let _ = lab.fault(NODE, "write /proc/sysrq-trigger c");
    ended(lab, run, "guest-reset", DOWN_LIMIT)?;
    let reset = since.elapsed();
    back(lab, run)?;
    Ok(format!("reset after {}, back after {}", seconds(reset), seconds(since.elapsed())))
}

/// The power button switches the node off in order.
pub(crate) fn power_button(lab: &Lab) -> Outcome {
    let run = lab.power(NODE)?.starts;
    let from = hear_init(lab)?;
    let since = Instant::now();
    lab.press(NODE, Press::Power)?;
    ended(lab, run, "guest-shutdown", DOWN_LIMIT)?;
    lab.expect_within(DOWN_LIMIT, "the node off", || {
        lab.power(NODE).is_ok_and(|s| matches!(s.state, State::Off { .. }))
    })?;
    let down = since.elapsed();
    let words = ["power-off asked for by the power button", "STATE: unmounted", "switching the machine off"];
    said_in_order(lab, from, &words)?;
    Ok(format!("off after {}", seconds(down)))
}

/// A machine without a watchdog boots, serves and says that it has none.
pub(crate) fn without_watchdog(lab: &Lab) -> Outcome {
    lab.power_on(NODE)?;
    back(lab, 0)?;
    let state = lab.keel(NODE, "show state")?;
    match state.contains("no watchdog") {
        true => Ok("serves, and says so".to_owned()),
        false => Err(format!("`show state` does not say that there is no watchdog:\n{state}").into()),
    }
}
