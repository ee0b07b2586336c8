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
const BACK_LIMIT: Duration = Duration::from_secs(30);
/// An orderly way down: services have 20 s, killing 2 s.
const DOWN_LIMIT: Duration = Duration::from_secs(40);
/// What a guest that has ended said is on its way to us at most.
const SAID_LIMIT: Duration = Duration::from_secs(2);
/// Programs of the services, each once: `keel` is the console, PID 1 on the bus, and the lab's agent.
const PROGRAMS: [&str; 5] = ["provisiond", "netd", "demo-web", "keel", "lab-fault"];

/// A reset by the watchdog: its timeout in [`short_watchdog`], what is left of it in the hardware's second stage, and a
/// busy host.
const RESET_LIMIT: Duration = Duration::from_secs(60);

/// Without a watchdog, with a slot for what comes later.
pub(crate) fn no_watchdog() -> Variant {
    Variant { watchdog: Watchdog::None, free_slot: true, ..Variant::default() }
}

/// Two watchdogs of few seconds, one of which the loader has started. They know after the reset that it was one of them.
pub(crate) fn short_watchdogs() -> Variant {
    Variant { watchdog: Watchdog::Two, resets_in_place: true, ..Variant::with_words("evenkeel.watchdog=6") }
}

/// One of them, on the first boot of a slot that is not committed.
pub(crate) fn trial() -> Variant {
    Variant { resets_in_place: true, ..Variant::with_words("evenkeel.watchdog=6 evenkeel.trial") }
}

/// State and process of each service, as `show services` says.
fn services(lab: &Lab) -> Result<BTreeMap<String, (String, String)>, LabError> {
    services_of(lab, NODE)
}

/// The same of another node.
pub(crate) fn services_of(lab: &Lab, node: &str) -> Result<BTreeMap<String, (String, String)>, LabError> {
    let text = lab.keel(node, "show services")?;
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

/// Waits until the guest has ended its run number `run`.
fn end_of(lab: &Lab, run: u32, limit: Duration) -> Result<RunEnd, Box<dyn Error>> {
    let end = || lab.power(NODE).ok().and_then(|status| status.last_end).filter(|end| end.run == run);
    lab.expect_within(limit, "the guest's end", || end().is_some())?;
    end().ok_or_else(|| "the next run ended meanwhile".into())
}

/// Waits until the guest has ended its run number `run` for `reason`, without the watchdog's help.
fn ended(lab: &Lab, run: u32, reason: &str, limit: Duration) -> Result<(), Box<dyn Error>> {
    match end_of(lab, run, limit)? {
        RunEnd { reason: given, watchdog: false, .. } if given == reason => Ok(()),
        other => Err(format!("the run ended with {other:?} instead of {reason}").into()),
    }
}

/// Waits until the watchdog has ended the run number `run`; how long that took.
fn reset_by_watchdog(lab: &Lab, run: u32) -> Result<Duration, Box<dyn Error>> {
    let since = Instant::now();
    match end_of(lab, run, RESET_LIMIT)? {
        RunEnd { watchdog: true, .. } => Ok(since.elapsed()),
        other => Err(format!("the run ended with {other:?} instead of the watchdog").into()),
    }
}

fn is_off(lab: &Lab) -> bool {
    lab.power(NODE).is_ok_and(|s| matches!(s.state, State::Off { .. }))
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
    said_in_order(
        lab,
        from,
        &["reboot asked for by Ctrl-Alt-Del", "STATE: unmounted", "restarting the machine"],
    )?;
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
    lab.expect_within(DOWN_LIMIT, "the node off", || is_off(lab))?;
    let down = since.elapsed();
    let words = ["power-off asked for by the power button", "STATE: unmounted", "switching the machine off"];
    said_in_order(lab, from, &words)?;
    Ok(format!("off after {}", seconds(down)))
}

/// A machine without a watchdog boots, serves and says that it has none. A device that is plugged in while it runs gets
/// its driver.
pub(crate) fn without_watchdog(lab: &Lab) -> Outcome {
    lab.power_on(NODE)?;
    back(lab, 0)?;
    // The log of a first boot from its beginning: init knows its own files and the machine's devices.
    let log = lab.keel(NODE, "show log -n 200")?;
    for (what, from, word) in [
        ("that its files are whole", "own files: ", ", 0 damaged, "),
        ("of a walk", "devices: ", " modaliases, "),
    ] {
        if !log.lines().any(|line| line.contains(from) && line.contains(word)) {
            return Err(format!("init's log does not tell {what}:\n{log}").into());
        }
    }
    let state = lab.keel(NODE, "show state")?;
    if !state.contains("no watchdog") {
        return Err(format!("`show state` does not say that there is no watchdog:\n{state}").into());
    }
    let keys = "virtio_input";
    if lab.fault(NODE, "read /proc/modules")?.contains(keys) {
        return Err("the driver of keys is there before keys are".into());
    }
    let since = Instant::now();
    lab.plug_in(NODE)?;
    lab.expect_within(BACK_LIMIT, "the driver of what was plugged in", || {
        lab.fault(NODE, "read /proc/modules").is_ok_and(|modules| modules.contains(keys))
    })?;
    Ok(format!("serves, and says so; driver of what was plugged in after {}", seconds(since.elapsed())))
}

/// What `keel show boot` must say after a start that ended the way `words` tell.
fn told_of_last_boot(lab: &Lab, words: &str) -> Result<(), Box<dyn Error>> {
    let boot = lab.keel_within(NODE, "show boot", BACK_LIMIT)?.text;
    match boot.contains(words) {
        true => Ok(()),
        false => Err(format!("`show boot` does not say {words:?}:\n{boot}").into()),
    }
}

/// Services do not end and nobody waits for them: Ctrl-Alt-Del seven times restarts the node at once. The next boot is
/// led to the rescue prompt and from there goes on.
pub(crate) fn forced_restart_and_recovery(lab: &Lab) -> Outcome {
    let run = lab.power(NODE)?.starts;
    lab.fault(NODE, "signal demo-web STOP")?;
    let since = Instant::now();
    for _ in 0..7 {
        lab.press(NODE, Press::CtrlAltDel)?;
    }
    ended(lab, run, "guest-reset", DOWN_LIMIT)?;
    let down = since.elapsed();
    let serial = lab.serial(NODE)?;
    lab.expect_within(REBOOT_LIMIT, "the next boot", || lab.power(NODE).is_ok_and(|s| s.starts == run + 1))?;
    let offered = serial.wait_for(lab.power(NODE)?.boot, "press r within", REBOOT_LIMIT)?;
    let mut console = UnixStream::connect(lab.dir().join(NODE).join("con"))?;
    console.write_all(b"r")?;
    let rescue = serial.wait_for(offered, "rescue> ", REBOOT_LIMIT)?;
    console.write_all(b"disks\r")?;
    let listed = serial.wait_for(rescue, "STATE", REBOOT_LIMIT)?;
    serial.wait_for(listed, "rescue> ", REBOOT_LIMIT)?;
    console.write_all(b"retry\r")?;
    back(lab, run)?;
    told_of_last_boot(lab, "forced")?;
    Ok(format!("restarted after {}, then rescue prompt and on", seconds(down)))
}

/// PID 1 hangs: the watchdog resets the machine. After the third time the node starts neither netd nor provisiond, so
/// that it holds no address, stays where it is, and answers.
pub(crate) fn hung_pid_1(lab: &Lab) -> Outcome {
    lab.power_on(NODE)?;
    let mut took = Vec::new();
    for run in 1..=3 {
        lab.expect_within(REBOOT_LIMIT, "the node's prompt", || {
            lab.power(NODE).is_ok_and(|s| s.starts == run) && lab.has_prompt(NODE)
        })?;
        lab.wait_for_vips()?;
        lab.fault(NODE, "hang init")?;
        took.push(reset_by_watchdog(lab, run)?);
    }
    lab.expect_within(REBOOT_LIMIT, "the fourth boot", || lab.power(NODE).is_ok_and(|s| s.starts == 4))?;
    // provisiond, which knows the node's name, is not there to tell the console.
    lab.serial(NODE)?.wait_for(lab.power(NODE)?.boot, ", a node without a name.", REBOOT_LIMIT)?;
    let running = lab.keel_within(NODE, "show services", BACK_LIMIT)?.text;
    let idle = |name: &str| running.lines().any(|l| l.starts_with(name) && !l.contains("ready"));
    if !idle("netd") || !idle("provisiond") {
        return Err(format!("netd or provisiond runs on a node that is to be degraded:\n{running}").into());
    }
    told_of_last_boot(lab, "watchdog")?;
    let took: Vec<_> = took.into_iter().map(seconds).collect();
    Ok(format!("reset after {}, then degraded", took.join(" ")))
}

/// netd hangs on a trial, in its first life and in the next: PID 1 ends the feeding and the watchdog resets the machine,
/// however well PID 1 is.
///
/// A netd that holds addresses is ended by the fence within a lease and may do better; so this one has lost its only
/// port's cable, and with it the VIP, before it hangs.
pub(crate) fn hung_netd_on_trial(lab: &Lab) -> Outcome {
    lab.power_on(NODE)?;
    back(lab, 0)?;
    lab.unplug("n1:p1")?;
    lab.expect_within(BACK_LIMIT, "a netd without addresses", || {
        lab.keel(NODE, "show fence").is_ok_and(|text| text.contains("no addresses are registered"))
    })?;
    lab.fault(NODE, "signal netd STOP")?;
    let took = reset_by_watchdog(lab, 1)?;
    Ok(format!("reset after {}", seconds(took)))
}

/// PID 1 reads from address 0: the machine restarts at once, and the next boot knows why.
pub(crate) fn crashed_pid_1(lab: &Lab) -> Outcome {
    let run = lab.power(NODE)?.starts;
    let since = Instant::now();
    // The answer may not get out any more.
    let told = lab.fault(NODE, "corrupt init");
    ended(lab, run, "guest-reset", DOWN_LIMIT).map_err(|e| format!("{e}; the fault: {told:?}"))?;
    let reset = since.elapsed();
    back(lab, run)?;
    told_of_last_boot(lab, "SIGSEGV for address 0x0")?;
    Ok(format!("reset after {} ms", reset.as_millis()))
}

/// A service that makes processes without end, and one that wants more memory than it may have: each ends at its limits,
/// and nobody else is touched.
pub(crate) fn greedy_service(lab: &Lab) -> Outcome {
    let before = services(lab)?;
    let others = |now: &BTreeMap<String, (String, String)>| {
        before.iter().all(|(name, old)| name == "fault" || now.get(name) == Some(old))
    };
    lab.mark("web")?;
    lab.fault(NODE, "bomb")?;
    let refused = "/sys/fs/cgroup/evenkeel/fault/pids.events";
    lab.expect_within(BACK_LIMIT, "a process refused to the bomb", || {
        let events = lab.fault(NODE, &format!("read {refused}")).unwrap_or_default();
        events.trim().strip_prefix("max ").is_some_and(|count| count != "0")
    })?;
    let since = Instant::now();
    if !others(&services(lab)?) {
        return Err("a service changed while the bomb went on".into());
    }
    let answered = since.elapsed();
    let outage = lab.outage("web")?;
    let killed = Instant::now();
    lab.keel(NODE, "restart fault")?;
    let cleared = |lab: &Lab| {
        lab.fault(NODE, "read /sys/fs/cgroup/evenkeel/fault/pids.current")
            .is_ok_and(|count| count.trim() == "1")
    };
    lab.expect_within(BACK_LIMIT, "the bomb gone and its service back", || cleared(lab))?;
    let gone = killed.elapsed();
    let dead = services(lab)?;
    let _ = lab.fault(NODE, "eat 100");
    lab.expect_within(BACK_LIMIT, "the service that ate too much back", || {
        services(lab).is_ok_and(|now| now["fault"].0 == "ready" && now["fault"] != dead["fault"])
            && cleared(lab)
    })?;
    if !others(&services(lab)?) {
        return Err("another service was ended for the memory of this one".into());
    }
    Ok(format!(
        "a command answered after {} ms beside the bomb, gone after {}, VIP away for {} ms",
        answered.as_millis(),
        seconds(gone),
        outage.as_millis()
    ))
}

/// STATE is full: services go on and come back, the node reboots in order and serves.
pub(crate) fn full_state(lab: &Lab) -> Outcome {
    let run = lab.power(NODE)?.starts;
    let filled = lab.fault(NODE, "fill /state/filler")?;
    lab.fault(NODE, "signal netd KILL")?;
    lab.expect_within(BACK_LIMIT, "netd back with STATE full", || {
        services(lab).is_ok_and(|now| now.values().all(|(state, _)| state == "ready"))
    })?;
    let _ = lab.keel_within(NODE, "reboot --yes", Duration::from_secs(10));
    ended(lab, run, "guest-reset", DOWN_LIMIT)?;
    back(lab, run)?;
    let boot = lab.keel(NODE, "show boot")?;
    lab.fault(NODE, "remove /state/filler")?;
    let first = boot.lines().next().unwrap_or_default();
    Ok(format!("serves with {} more on STATE; {first}", filled.trim()))
}

/// STATE's block bitmap is overwritten. The kernel notices when it looks for a free block; the next boot's check repairs
/// it, and the node serves all the time.
pub(crate) fn damaged_state_is_repaired(lab: &Lab) -> Outcome {
    lab.power_on(NODE)?;
    back(lab, 0)?;
    // In order: a journal that must be replayed would repair it.
    let _ = lab.keel_within(NODE, "power-off --yes", Duration::from_secs(10));
    ended(lab, 1, "guest-shutdown", DOWN_LIMIT)?;
    lab.expect_within(DOWN_LIMIT, "the node off", || is_off(lab))?;
    let disk = lab.disk(NODE)?;
    let start = disk.partition("STATE")?.start;
    // The first group's descriptor is in the second block of 4 KiB and begins with its block bitmap's place.
    let descriptor = disk.read(start + 4096, 512)?;
    let place = descriptor.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    if !(2..4096).contains(&place) {
        return Err(format!("no block bitmap where it is expected: block {place}").into());
    }
    disk.write(start + u64::from(place) * 4096, &[0x55; 4096])?;
    lab.power_on(NODE)?;
    back(lab, 1)?;
    // Blocks from every group.
    lab.fault(NODE, "fill /state/filler")?;
    lab.fault(NODE, "remove /state/filler")?;
    let _ = lab.keel_within(NODE, "reboot --yes", Duration::from_secs(10));
    ended(lab, 2, "guest-reset", DOWN_LIMIT)?;
    back(lab, 2)?;
    let log = lab.keel(NODE, "show log -n 200")?;
    let said = log
        .lines()
        .find(|line| line.contains("STATE: checked: ") && line.contains("with errors, check forced"));
    Ok(said.ok_or_else(|| format!("the checker was not asked to repair anything:\n{log}"))?.trim().to_owned())
}

/// Another init takes over while services run: they keep their processes, and the node serves on.
pub(crate) fn re_exec(lab: &Lab) -> Outcome {
    let before = services(lab)?;
    lab.mark("web")?;
    let since = Instant::now();
    lab.keel_within(NODE, "init re-exec", BACK_LIMIT)?;
    let took = since.elapsed();
    let after = services(lab)?;
    if after != before {
        return Err(format!("services before and after: {before:?} {after:?}").into());
    }
    let _ = lab.fault(NODE, "signal netd KILL");
    lab.expect_within(BACK_LIMIT, "netd started by the new init", || {
        services(lab).is_ok_and(|now| now["netd"].0 == "ready" && now["netd"] != before["netd"])
    })?;
    Ok(format!("answered after {} ms, {} services kept", took.as_millis(), before.len()))
}
