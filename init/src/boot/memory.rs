//! What PID 1 remembers from boot to boot, on STATE: the one place that reads and writes it.
//!
//! ```text
//! STATE up --begin--> seed, panic, crash, record, clock, crash file --NOTED_AT_S--> "still running" --close--> end
//! ```
//! Every touch of the disk or the firmware is a child's with a deadline. When one of them hangs, the others are not
//! tried: the disk is dead, the node runs without a memory and says so.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use proto::boot::{Action, BootRecord, Evidence, NOTED_AT_S, watchdog_resets};
use proto::control::{BootInfo, DETAIL_MAX};
use proto::envelope;
use proto::time::Time;
use serde::{Deserialize, Serialize};
use store::Record;

use crate::boot::attempt::{self, ANSWER_MAX, Attempt, attempt, attempt_with, detach};
use crate::boot::clock_floor::{self, Verdict};
use crate::boot::cmdline::Cmdline;
use crate::boot::{block_file, crash_record, machine_id, pstore, seed, slot, state};
use crate::host::Host;
use crate::shutdown::End;
use crate::sys::random::{self, KernelPool};
use crate::{clock, ring, sys};

/// init's directory below STATE's mount point.
pub(crate) const DIRECTORY: &str = "init";
/// The boot record below it.
const RECORD: &str = "boot";
/// The crash file below it.
const CRASH: &str = "crash";
/// Limit of one piece of work on the disk or the firmware; 100 ms are much.
const LIMIT: Duration = Duration::from_secs(10);
/// The same when somebody insists on a restart.
const FORCED_LIMIT: Duration = Duration::from_secs(1);
/// The running time in which watchdog resets are counted.
const RESETS_WITHIN: Duration = Duration::from_secs(600);
/// The image's description.
const RELEASE: &str = "/etc/evenkeel/release";
/// Set in the boot status of a watchdog that has reset the machine (`WDIOF_CARDRESET`).
const WATCHDOG_RESET: u32 = 0x20;

// The record comes from a child in one answer.
const _: () = assert!(<BootRecord as envelope::Message>::MAX_LEN + envelope::HEADER_LEN < ANSWER_MAX);

/// The state of the memory while the machine runs. It goes along when another program takes over.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    info: BootInfo,
    /// Where it is; `None` when nothing can be recorded.
    directory: Option<PathBuf>,
    /// UUID of the machine, zeros without one.
    machine: [u8; 16],
    /// How many of [`NOTED_AT_S`] are behind.
    noted: usize,
    /// What the shutdown was asked for by, in the caller's words.
    asked_by: Option<String>,
}

impl Memory {
    /// What is known, for the control socket.
    pub(crate) fn info(&self) -> BootInfo {
        let uptime = clock::now().since(Time::ZERO);
        let resets = watchdog_resets(&self.info.history, uptime, RESETS_WITHIN);
        BootInfo { watchdog_resets: resets, ..self.info.clone() }
    }

    /// Remembers who asked for the shutdown; the first counts.
    pub(crate) fn asked_by(&mut self, who: &str) {
        self.asked_by.get_or_insert_with(|| who.to_owned());
    }

    /// Remembers who would not wait for the shutdown's end, whoever asked for it first.
    pub(crate) fn insisted_on_by(&mut self, who: &str) {
        self.asked_by = Some(who.to_owned());
    }

    /// One with something in every field.
    #[cfg(test)]
    pub(crate) fn full() -> Memory {
        use proto::boot::{BootEnd, BootEntry, Fault};
        let text = str::to_owned;
        let entry = BootEntry { count: 1, slot: text("A"), ran_s: 2, ended: BootEnd::PowerOrReset };
        let info = BootInfo {
            count: 2,
            boot_id: text("id"),
            slot: text("B"),
            history: vec![entry],
            watchdog_resets: 3,
            machine_id: text("m"),
            machine_id_from: text("STATE"),
            seed: text("s"),
            clock: text("c"),
            last_fault: Some(Fault { count: 1, text: text("f") }),
            not_recorded: text("n"),
        };
        let directory = Some(PathBuf::from("/state/init"));
        Memory { info, directory, machine: [1; 16], noted: 4, asked_by: Some(text("who")) }
    }

    /// One that is kept in `directory`.
    #[cfg(test)]
    pub(crate) fn in_directory(directory: &Path) -> Memory {
        Memory { directory: Some(directory.to_owned()), ..Memory::default() }
    }

    /// Who asked for the shutdown, or insisted; empty for nobody.
    pub(crate) fn who_asked(&self) -> &str {
        self.asked_by.as_deref().unwrap_or_default()
    }

    /// Begins to record that this boot is a trial that has failed.
    ///
    /// # Errors
    /// Why it will not be recorded.
    pub(crate) fn record_failed_trial(&self, why: &str) -> Result<Attempt, String> {
        let Some(directory) = &self.directory else {
            let why = Some(self.info.not_recorded.as_str()).filter(|why| !why.is_empty());
            return Err(format!("this boot has no record: {}", why.unwrap_or("there is no STATE")));
        };
        let seconds = clock::now().since(Time::ZERO).as_secs();
        attempt::begin(|| {
            update(directory, |record| record.failed_trial(why, seconds)).map(|_| (Vec::new(), None))
        })
    }

    /// When [`Memory::handle_timeout`] is due.
    pub(crate) fn next_wakeup(&self) -> Option<Time> {
        self.directory.as_ref()?;
        NOTED_AT_S.get(self.noted).map(|s| Time::ZERO + Duration::from_secs(*s))
    }

    /// Notes that this boot is still running, in a child that nobody waits for.
    pub(crate) fn handle_timeout(&mut self, now: Time) {
        let Some(directory) =
            self.directory.as_ref().filter(|_| self.next_wakeup().is_some_and(|t| t <= now))
        else {
            return;
        };
        self.noted += 1;
        let seconds = now.since(Time::ZERO).as_secs();
        // A child that cannot be made or a disk that hangs costs one note: the run counts as shorter than it was.
        let _ = detach(|| {
            if let Err(error) = update(directory, |record| record.ran(seconds)) {
                let _ = fs::write("/dev/kmsg", format!("<4>init: boot record: {error}\n"));
            }
        });
    }
}

/// Does one thing after the other until one of them hangs.
struct Steps<'a> {
    host: &'a mut Host,
    dead: bool,
}

impl Steps<'_> {
    fn run(
        &mut self,
        what: &str,
        job: impl FnOnce() -> Result<(Vec<u8>, Option<File>), String>,
    ) -> Result<(Vec<u8>, Option<File>), String> {
        if self.dead {
            return Err("not tried, STATE does not answer".to_owned());
        }
        let began = clock::now();
        let done = attempt_with(self.host, LIMIT, job);
        self.dead = done.is_err() && clock::now().since(began) >= LIMIT;
        if let Err(error) = &done {
            self.host.log.error(format_args!("{what}: {error}"));
        }
        done.map(|(bytes, fd)| (bytes, fd.map(File::from)))
    }

    fn text(&mut self, what: &str, job: impl FnOnce() -> Result<String, String>) -> Result<String, String> {
        let done = self.run(what, || job().map(|text| (text.into_bytes(), None)))?;
        Ok(String::from_utf8_lossy(&done.0).into_owned())
    }
}

/// Begins this boot's part of the memory, once STATE is up. Nothing in here fails the boot.
pub(crate) fn begin(host: &mut Host, cmdline: &Cmdline) {
    let directory = Path::new(state::MOUNT_POINT).join(DIRECTORY);
    let word = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let boot_id = word("/proc/sys/kernel/random/boot_id");
    let own_id = machine_id::usable(&word(machine_id::PRODUCT_UUID));
    let machine = own_id.unwrap_or_default();
    let release = fs::read_to_string(RELEASE).unwrap_or_default();
    let build_s = clock_floor::build_time(&release);
    let version = clock_floor::value(&release, "version").unwrap_or_default();
    let reset_by_watchdog =
        host.watchdog.as_ref().is_some_and(|w| w.info().boot_status & WATCHDOG_RESET != 0);

    let mut steps = Steps { host, dead: false };
    let slot = steps.text("slot", || Ok(slot::find(cmdline))).unwrap_or_default();
    let own = format!("{boot_id} {} {} {}", proto::text::hex(&machine), wall_s(), clock::now().as_nanos());
    let seed = steps.text("random seed", || {
        let mut pool = KernelPool::open().map_err(|e| format!("/dev/urandom: {}", sys::errno_text(&e)))?;
        seed::load(&mut pool, &directory, machine, own.as_bytes())
    });
    let panic = steps.text("pstore", || {
        pstore::keep(Path::new(pstore::DIRECTORY), &directory).map(Option::unwrap_or_default)
    });
    let panic = panic.ok().filter(|line| !line.is_empty());
    let crash = steps.text("crash record", || Ok(last_crash(&directory).unwrap_or_default()));
    let crash = crash.ok().filter(|line| !line.is_empty());
    for (what, line) in [("crash of init", &crash), ("kernel panic", &panic)] {
        if let Some(line) = line {
            steps.host.log.error(format_args!("the last boot ended in a {what}: {line}"));
        }
    }
    let evidence = Evidence { crash, panic: panic.clone(), watchdog: reset_by_watchdog };
    let record = steps.run("boot record", || {
        let mut random_id = [0; 16];
        random::draw(&mut random_id).map_err(|e| sys::errno_text(&e))?;
        let record = update(&directory, |record| {
            record.begin(&boot_id, &slot, version, evidence);
            record.machine_id.get_or_insert(random_id);
        })?;
        Ok((envelope::encode(&record), None))
    });
    let record = record
        .and_then(|(bytes, _)| envelope::decode::<BootRecord>(&bytes).map_err(|e| proto::text::one_line(&e)));
    if panic.is_some() && record.is_ok() {
        // Only now: the panic is in the record, and its text is on STATE.
        let _ = steps.text("pstore", || pstore::clear(Path::new(pstore::DIRECTORY)).map(|()| String::new()));
    }
    let (record, not_recorded) = match record {
        Ok(record) => (record, String::new()),
        Err(error) => (BootRecord::default(), error),
    };
    // Overwrites what was read above.
    let sector = crash_record::prepared(record.count, version);
    let file = steps.run("crash record", || {
        let file = block_file::open(&directory.join(CRASH)).map_err(|e| sys::errno_text(&e))?;
        file.write_all_at(&sector, 0).map_err(|e| sys::errno_text(&e))?;
        Ok((Vec::new(), Some(file)))
    });
    sys::crash::prepare(&sector);
    if let Ok((_, Some(file))) = file {
        sys::crash::set_file(file);
    }

    let clock = set_clock(host, build_s, record.wall_s);
    let (id, from) = match (own_id, record.machine_id) {
        (Some(id), _) => (id, "SMBIOS"),
        (None, Some(id)) => (id, "STATE"),
        (None, None) => {
            let mut id = [0; 16];
            // Without random numbers the machine has no id; publishing one that others have would be worse.
            let _ = random::draw(&mut id);
            (id, "this boot only, STATE does not keep it")
        }
    };
    let published = machine_id::publish(Path::new(machine_id::FILE), id);
    if let Err(error) = &published {
        host.log.error(format_args!("{}: {}", machine_id::FILE, sys::errno_text(error)));
    }
    let mut info = BootInfo {
        count: record.count,
        boot_id,
        slot,
        history: record.history,
        watchdog_resets: 0,
        machine_id: published.unwrap_or_default(),
        machine_id_from: from.to_owned(),
        seed: seed.unwrap_or_else(|error| error),
        clock,
        last_fault: record.last_fault,
        not_recorded,
    };
    for text in [&mut info.seed, &mut info.clock, &mut info.not_recorded] {
        ring::shorten(text, DETAIL_MAX);
    }
    let last = info.history.last().map_or("none".to_owned(), |e| format!("{} after {} s", e.ended, e.ran_s));
    host.log.info(format_args!(
        "boot {}; the one before: {last}; machine id {} ({from}); seed: {}; clock: {}",
        info.count, info.machine_id, info.seed, info.clock
    ));
    let directory = info.not_recorded.is_empty().then_some(directory);
    host.memory = Memory { info, directory, machine, noted: 0, asked_by: None };
}

/// Writes how this boot ends, and lets go of STATE. The last but the unmounting.
pub(crate) fn close(host: &mut Host, end: End) {
    // An open file would keep STATE from being unmounted.
    drop(sys::crash::take_file());
    let Some(directory) = host.memory.directory.take() else { return };
    let by = host.memory.asked_by.take().unwrap_or_else(|| "the rescue prompt".to_owned());
    let limit = if end == End::ForcedReboot { FORCED_LIMIT } else { LIMIT };
    let release = fs::read_to_string(RELEASE).unwrap_or_default();
    let (now_s, build_s) = (wall_s(), clock_floor::build_time(&release));
    let machine = host.memory.machine;
    let done = attempt(host, limit, || {
        update(&directory, |record| {
            let seconds = clock::now().since(Time::ZERO).as_secs();
            match end {
                End::Reboot | End::Rescue => record.leave(Action::Reboot, &by, seconds),
                End::PowerOff => record.leave(Action::PowerOff, &by, seconds),
                End::ForcedReboot => record.forced(&by, seconds),
            }
            record.wall_s = believed(now_s, build_s, record.wall_s);
        })?;
        let mut pool = KernelPool::open().map_err(|e| format!("/dev/urandom: {}", sys::errno_text(&e)))?;
        seed::save(&mut pool, &directory, machine).map(|()| String::new())
    });
    if let Err(error) = done {
        host.log.error(format_args!("boot record: {error}"));
    }
}

/// Goes on with a crash file that another program opened.
pub(crate) fn resume_crash_file(host: &Host, file: File) {
    let release = fs::read_to_string(RELEASE).unwrap_or_default();
    let version = clock_floor::value(&release, "version").unwrap_or_default();
    sys::crash::prepare(&crash_record::prepared(host.memory.info.count, version));
    sys::crash::set_file(file);
}

/// Changes the record in `directory`, which is made when it is not there. Blocks as long as the disk does, or as
/// another child that changes it: one does not wait for the other here.
///
/// A damaged record is put aside as `boot.damaged` and begun anew: the node's service does not depend on it.
fn update(directory: &Path, change: impl FnOnce(&mut BootRecord)) -> Result<BootRecord, String> {
    let said_of = |e: std::io::Error| format!("{}: {}", directory.display(), sys::errno_text(&e));
    let _turn = Flock::lock(File::open(directory).map_err(said_of)?, FlockArg::LockExclusive)
        .map_err(|(_, errno)| said_of(errno.into()))?;
    let path = directory.join(RECORD);
    let said = |e: store::StoreError| proto::text::one_line(&e);
    let opened = Record::<BootRecord>::open(&path);
    let opened = match opened {
        Err(store::StoreError::Damaged { .. } | store::StoreError::Size { .. }) => {
            let aside = path.with_extension("damaged");
            fs::rename(&path, &aside).map_err(|e| format!("{}: {}", aside.display(), sys::errno_text(&e)))?;
            None
        }
        other => other.map_err(said)?,
    };
    let mut record = match opened {
        Some(record) => record,
        None => Record::create(&path, BootRecord::default()).map_err(said)?,
    };
    let mut value = record.get().clone();
    change(&mut value);
    if *record.get() != value {
        record.put(value).map_err(said)?;
    }
    Ok(record.get().clone())
}

/// What the crash file holds, for people. Any trouble with it counts as nothing: it is made anew.
fn last_crash(directory: &Path) -> Option<String> {
    let file = File::open(directory.join(CRASH)).ok()?;
    crash_record::parse(&block_file::read(&file).ok()?).map(|(_, _, line)| line)
}

/// Lifts the wall clock to its floor. Returns what was done, for people.
fn set_clock(host: &mut Host, build_s: u64, saved_s: u64) -> String {
    match clock_floor::judge(wall_s(), build_s, saved_s) {
        Verdict::Plausible => "plausible".to_owned(),
        Verdict::Ahead => {
            let text = format!("{} s since 1970 is far in the future; left, but set it", wall_s());
            host.log.warn(format_args!("clock: {text}"));
            text
        }
        Verdict::Lift { to_s, from_saved } => {
            let from = if from_saved { "the last shutdown's" } else { "the image's" };
            let seconds = i64::try_from(to_s).unwrap_or(i64::MAX);
            match clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, 0)) {
                Ok(()) => format!("was behind, lifted to {from} time"),
                Err(errno) => {
                    host.log.error(format_args!("cannot set the clock: {}", errno.desc()));
                    format!("behind {from} time and cannot be set: {}", errno.desc())
                }
            }
        }
    }
}

/// The time to save: the clock's, unless it is not believed.
fn believed(now_s: u64, build_s: u64, saved_s: u64) -> u64 {
    match clock_floor::judge(now_s, build_s, saved_s) {
        Verdict::Plausible => now_s,
        Verdict::Lift { .. } | Verdict::Ahead => saved_s,
    }
}

/// The wall clock, in seconds since 1970.
fn wall_s() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME).ok().and_then(|t| u64::try_from(t.tv_sec()).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testdir::TestDir;

    #[test]
    fn the_record_is_made_changed_and_put_aside_when_damaged() {
        let dir = TestDir::new();
        let begin = |id: &str| update(dir.path(), |r| r.begin(id, "", "1", Evidence::default()));
        assert_eq!(begin("one").unwrap().count, 1);
        assert_eq!(begin("two").unwrap().count, 2);
        let path = dir.path().join(RECORD);
        fs::write(&path, vec![0xff; fs::metadata(&path).unwrap().len() as usize]).unwrap();
        assert_eq!(begin("three").unwrap().count, 1);
        assert!(dir.path().join("boot.damaged").exists());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(begin("four").unwrap_err().contains("boot"));
    }

    #[test]
    fn a_crash_is_found_once_prepared_and_filled() {
        let dir = TestDir::new();
        assert_eq!(last_crash(dir.path()), None);
        let file = block_file::open(&dir.path().join(CRASH)).unwrap();
        let mut sector = crash_record::prepared(3, "1");
        file.write_all_at(&sector, 0).unwrap();
        assert_eq!(last_crash(dir.path()), None);
        crash_record::fill(&mut sector, &crash_record::Crash::default(), &"why");
        file.write_all_at(&sector, 0).unwrap();
        assert_eq!(last_crash(dir.path()).as_deref(), Some("panic 0.000 s into boot 3 of release 1: why"));
    }

    #[test]
    fn a_clock_that_is_not_believed_is_not_saved() {
        let build = 1_760_000_000;
        assert_eq!(believed(build + 5, build, build), build + 5);
        assert_eq!(believed(4_070_908_800, build, build), build);
        assert_eq!(believed(7, build, build + 1), build + 1);
    }
}
