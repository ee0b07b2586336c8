//! The life of services: order, restarts, output, the control socket, another program taking over.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::fs;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use common::{Ids, Init, NOTIFY, PATIENCE, exchange};
use proto::control::{LastExit, Reply, Request, ServiceState, WatchState};
use proto::envelope;

/// Stays until told to stop and notes that.
const STAY: &str = "trap 'echo $N >> $D/stopped; exit 0' TERM; echo READY=1 >&$NOTIFY_FD; \
                    while :; do sleep 0.05; done";

fn stay(name: &str) -> String {
    format!("N={name}; echo $N up; {STAY}")
}

#[test]
fn services_start_in_order_and_stop_in_reverse() {
    let (one, two, three) = (stay("one"), stay("two"), stay("three"));
    let mut init = Init::start(
        "order",
        &[
            ("one", &format!("{NOTIFY}\nrequires = ['two']"), &one),
            ("two", NOTIFY, &two),
            ("three", &format!("{NOTIFY}\nafter = ['one']"), &three),
            // Asks PID 1 to end as `kill` of an operator would.
            ("z", "", "while [ ! -e $D/down ]; do sleep 0.05; done; kill -TERM 1; exec sleep 100"),
        ],
    );
    init.wait_for("three: ready");
    assert!(init.position("two: ready") < init.position("one: ready"));
    assert_eq!(init.row("one").state, ServiceState::Ready);
    assert_eq!(init.output("one"), ["one up"]);
    fs::write(init.directory.join("down"), "").unwrap();
    assert_eq!(init.ended().code(), Some(0), "{}", init.seen.join("\n"));
    assert_eq!(init.file("stopped"), "three\none\ntwo\n");
    assert!(init.file("logs/two.log").ends_with("two up\n"), "{:?}", init.file("logs/two.log"));
}

#[test]
fn after_the_start_its_code_is_locked_as_it_is_used() {
    let mut init = Init::start("pages", &[("a", NOTIFY, &stay("a"))]);
    init.wait_for("a: ready");
    let smaps = format!("/proc/{}/smaps", init.pid());
    // Resident KiB of init's code, once it is locked.
    let locked = || {
        let text = fs::read_to_string(&smaps).unwrap();
        let code = text.split_once(" r-xp ").expect("a program has code").1;
        let value = |key: &str| code.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim();
        let size = |key: &str| value(key).trim_end_matches(" kB").parse::<u32>().unwrap();
        let is_locked = value("VmFlags:").split(' ').any(|flag| flag == "lo");
        is_locked.then(|| (size("Rss:"), size("Size:")))
    };
    let deadline = Instant::now() + PATIENCE;
    let (resident, size) = loop {
        match locked() {
            Some(found) => break found,
            None => assert!(Instant::now() < deadline, "init's code is not locked"),
        }
        std::thread::park_timeout(Duration::from_millis(20));
    };
    assert!(0 < resident && resident <= size, "{resident} of {size} kB");
}

#[test]
fn a_killed_service_comes_back_and_its_last_words_are_kept() {
    let script = "echo start; echo >&$NOTIFY_FD; if [ ! -e $D/died ]; then : > $D/died; printf last-words; \
                  kill -9 $$; fi; exec sleep 100";
    let mut init = Init::start("crash", &[("a", NOTIFY, script)]);
    init.wait_for("a: ended (signal 9), starting again at once");
    // The second life's readiness is the second such line.
    init.seen.clear();
    init.wait_for("a: ready");
    let row = init.row("a");
    assert_eq!((row.state, row.restarts), (ServiceState::Ready, 1));
    assert_eq!(row.last_exit, Some(LastExit::Signal(9)));
    assert_eq!(init.output("a"), ["start", "last-words", "start"]);
    assert_eq!(init.ask(&Request::Restart { service: "a".into() }), Reply::Accepted);
    init.wait_for("a: ended (signal 15), starting again as asked");
}

#[test]
fn orphans_are_collected_and_descendants_do_not_survive() {
    // The orphan's number stays in /proc until init collects it.
    let orphan = "sh -c 'sleep 0.1 & echo $! > $D/orphan'; P=$(cat $D/orphan); \
                  while [ -e /proc/$P ]; do sleep 0.05; done; echo collected; echo >&$NOTIFY_FD; exec sleep 100";
    let parent = "sleep 300 & echo $! > $D/child; exit 1";
    let mut init = Init::start(
        "orphans",
        &[
            ("orphan", NOTIFY, orphan),
            ("parent", "restart = 'never'", parent),
            // In the namespace of the processes; tells when the child of a dead parent is gone.
            (
                "watch",
                &format!("{NOTIFY}\nafter = ['parent']"),
                "while [ ! -s $D/child ]; do sleep 0.05; done; P=$(cat $D/child); \
             while [ -e /proc/$P ]; do sleep 0.05; done; echo >&$NOTIFY_FD; exec sleep 100",
            ),
        ],
    );
    init.wait_for("orphan: ready");
    assert_eq!(init.output("orphan"), ["collected"]);
    init.wait_for("watch: ready");
    assert_eq!(init.row("parent").state, ServiceState::Finished);
}

#[test]
fn refused_files_and_missing_readiness_do_not_stop_the_rest() {
    let good = stay("good");
    let mut init = Init::start(
        "refused",
        &[
            ("good", &format!("{NOTIFY}\nafter = ['mute', 'broken']"), &good),
            (
                "mute",
                "ready = 'notify'\nready_timeout_s = 1\nstop_timeout_s = 1",
                "trap '' TERM; while :; do sleep 0.05; done",
            ),
            ("broken", "restart = 'sometimes'", "true"),
        ],
    );
    init.wait_for("service refused: broken.toml:2: restart:");
    init.wait_for("mute: not ready after 1 s");
    init.wait_for("good: ready");
    init.wait_for("mute: still there 1 s after its stop signal, killing it");
    init.wait_for("mute: ended (signal 9)");
    let row = init.row("broken");
    assert_eq!(row.state, ServiceState::Refused);
    assert!(row.detail.contains("sometimes"), "{}", row.detail);
    assert_eq!(init.ask(&Request::Reboot), Reply::Accepted);
    assert_eq!(init.ended().code(), Some(10), "a reboot has its own exit code");
}

#[test]
fn malformed_packets_do_no_harm() {
    let mut init = Init::start("packets", &[("a", "", "exec sleep 100")]);
    init.wait_for("a: ready");
    let mut wrong_kind = envelope::encode(&Request::Services);
    wrong_kind[0] ^= 0xff;
    let mut bad_variant = envelope::encode(&Request::Services);
    bad_variant[8] = 99;
    for packet in [vec![0], vec![0xff; 8], vec![7; 4096], wrong_kind, bad_variant] {
        let reply = exchange(&init.connect(), &packet);
        assert!(matches!(reply, Reply::Refused { .. }), "{packet:?}: {reply:?}");
    }
    let silent: Vec<_> = (0..40).map(|_| init.connect()).collect();
    drop(silent);
    let one = init.connect();
    for _ in 0..3 {
        let reply = exchange(&one, &envelope::encode(&Request::System));
        assert!(matches!(&reply, Reply::System(s) if !s.boot_id.is_empty() && s.memory.total_bytes > 0));
    }
    let refusals = [
        (Request::Restart { service: "none".into() }, "no service"),
        (Request::Log { service: Some("none".into()), lines: 1 }, "no service"),
        (Request::SetHostname { name: "-".into() }, "host name"),
    ];
    for (request, words) in refusals {
        let reply = init.ask(&request);
        assert!(matches!(&reply, Reply::Refused { reason } if reason.contains(words)), "{reply:?}");
    }
    let Reply::Log(own) = init.ask(&Request::Log { service: None, lines: 1 }) else { panic!("no log") };
    assert_eq!(own.len(), 1);
}

#[test]
fn a_flood_of_output_is_bounded_and_blocks_nobody() {
    // 3 MiB in one go, then a line without end beyond the longest.
    let script = "i=0; while [ $i -lt 300 ]; do head -c 10239 /dev/zero | tr '\\0' x; echo; i=$((i+1)); done; \
                  echo done; echo >&$NOTIFY_FD; exec sleep 100";
    let mut init = Init::start("flood", &[("a", NOTIFY, script)]);
    init.wait_for("a: ready");
    let lines = init.output("a");
    assert_eq!(lines.last().map(String::as_str), Some("done"));
    assert!(lines.iter().all(|l| l.len() <= proto::control::LOG_LINE_MAX));
    let kept: usize = lines.iter().map(String::len).sum();
    assert!(kept <= 64 * 1024, "{kept}");
    assert_eq!(init.ask(&Request::PowerOff), Reply::Accepted);
    assert_eq!(init.ended().code(), Some(0));
    for name in ["logs/a.log", "logs/a.log.1"] {
        let size = fs::metadata(init.directory.join(name)).map(|m| m.len()).unwrap_or(0);
        assert!((1..=300 * 1024).contains(&size), "{name}: {size}");
    }
}

#[test]
fn the_end_of_the_starter_ends_everything() {
    let script = stay("a");
    let mut init = Init::start("starter", &[("a", NOTIFY, &script)]);
    init.wait_for("a: ready");
    drop(init.stdin.take());
    assert_eq!(init.ended().code(), Some(0));
    assert_eq!(init.file("stopped"), "a\n");
    assert!(Path::new(&init.directory).exists());
}

#[test]
fn another_program_takes_over_while_services_run() {
    // Counts without a pause: a line lost or said twice shows.
    let count = "echo $$ > $D/pid; echo >&$NOTIFY_FD; i=0; while :; do i=$((i+1)); echo $i; \
                 printf part; echo; [ $((i % 50)) = 0 ] && sleep 0.01; done";
    let stays = stay("stays");
    let mut init = Init::start("reexec", &[("count", NOTIFY, count), ("stays", NOTIFY, &stays)]);
    init.wait_for("count: ready");
    init.wait_for("stays: ready");
    let pid = init.row("count").pid;
    for _ in 0..3 {
        assert_eq!(init.ask(&Request::ReExec { path: None }), Reply::Accepted);
        init.seen.clear();
        init.wait_for("took over 2 services");
    }
    let row = init.row("count");
    assert_eq!((row.pid, row.restarts, row.state), (pid, 0, ServiceState::Ready));
    let lines = init.output("count");
    let numbers: Vec<u64> = lines.iter().filter_map(|l| l.parse().ok()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    assert!(lines.iter().all(|l| l == "part" || l.parse::<u64>().is_ok()), "{lines:?}");
    // The next program supervises what the first one started.
    assert_eq!(init.ask(&Request::Restart { service: "count".into() }), Reply::Accepted);
    init.wait_for("count: ended (signal 15), starting again as asked");
    init.wait_for("count: ready");
    // Ready comes before its first line, and the end could be quicker than that.
    let deadline = Instant::now() + PATIENCE;
    let counted_anew = |lines: Vec<String>| {
        let numbers: Vec<u64> = lines.iter().filter_map(|l| l.parse().ok()).collect();
        numbers.first() == Some(&1) || numbers.windows(2).any(|pair| pair[1] < pair[0])
    };
    while !counted_anew(init.output("count")) {
        assert!(Instant::now() < deadline, "its next life says nothing");
        let _ = init.log.recv_timeout(Duration::from_millis(20));
    }
    let Reply::Log(own) = init.ask(&Request::Log { service: None, lines: 200 }) else { panic!("no log") };
    assert_eq!(own.iter().filter(|l| l.text.contains("handing over to")).count(), 3, "the log goes along");
    assert_eq!(init.ask(&Request::PowerOff), Reply::Accepted);
    assert_eq!(init.ended().code(), Some(0));
    assert_eq!(init.file("stopped"), "stays\n");
    let kept = init.file("logs/count.log.1") + &init.file("logs/count.log");
    let kept: Vec<u64> = kept.lines().filter_map(|l| l.rsplit(' ').next()?.parse().ok()).collect();
    let broken = kept.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
    assert_eq!(broken, 1, "one life after the other, and nothing missing in either");
}

/// netd gives signs of life until told not to; its last one counts in whatever program.
#[test]
fn a_trial_runs_out_after_another_init_took_over_no_later() {
    const LIMIT: Duration = Duration::from_secs(10);
    let netd = "while [ ! -e $D/silent ]; do echo >&$NOTIFY_FD; sleep 0.1; done; exec sleep 1000";
    let provisiond = stay("provisiond");
    let limit = format!("{NOTIFY}\nwatchdog_s = {}", LIMIT.as_secs());
    let services = [("netd", limit.as_str(), netd), ("provisiond", NOTIFY, provisiond.as_str())];
    let mut init = Init::start_as(Ids::Root, "trial", &services, &["--boot", "trial"]);
    init.wait_for("netd: ready");
    init.wait_for("provisiond: ready");
    init.hand_over();
    let silent = |init: &Init| match init.ask(&Request::Watch) {
        Reply::Watch(info) => {
            let rows: Vec<_> = info.rows.iter().map(|r| r.service.as_str()).collect();
            assert_eq!((info.state, rows), (WatchState::Trial, vec!["netd", "provisiond"]));
            Duration::from_millis(info.rows[0].silent_ms)
        }
        other => panic!("{other:?}"),
    };
    fs::write(init.directory.join("silent"), "").unwrap();
    let deadline = Instant::now() + PATIENCE;
    let before = loop {
        let since = silent(&init);
        // Ten of its signs: it has seen the file.
        if since > Duration::from_secs(1) {
            break since;
        }
        assert!(Instant::now() < deadline, "netd does not fall silent");
        std::thread::park_timeout(Duration::from_millis(20));
    };
    let asked = Instant::now();
    init.hand_over();
    let between = asked.elapsed();
    let asked = Instant::now();
    let after = silent(&init);
    // Times are cut to milliseconds.
    let cut = Duration::from_millis(1);
    assert!(after + cut >= before + between, "{before:?} + {between:?}, then {after:?}");
    init.wait_for("the trial has failed: netd made no progress for 10 s of the trial");
    assert!(asked.elapsed() + after + cut >= LIMIT, "too early: {after:?} + {:?}", asked.elapsed());
    init.wait_for("reboot asked for by the failed trial, without a watchdog");
    assert_eq!(init.ended().code(), Some(10));
}

#[test]
fn a_degraded_boot_stays_one_in_another_init() {
    let (netd, console) = (stay("netd"), stay("console"));
    let services = [("netd", NOTIFY, netd.as_str()), ("console", NOTIFY, console.as_str())];
    let mut init = Init::start_as(Ids::Root, "degraded", &services, &["--boot", "degraded"]);
    init.wait_for("console: ready");
    let pid = init.row("console").pid;
    for _ in 0..2 {
        init.hand_over();
        let Reply::Watch(info) = init.ask(&Request::Watch) else { panic!("no answer") };
        assert_eq!(info.state, WatchState::Degraded);
        assert!(info.reason.contains("3 times"), "{}", info.reason);
        assert_eq!((init.row("netd").state, init.row("console").pid), (ServiceState::Refused, pid));
    }
    assert!(!init.seen.iter().any(|l| l.contains("netd: ready")), "{}", init.seen.join("\n"));
}

#[test]
fn a_program_that_cannot_take_over_is_refused() {
    let script = stay("a");
    let hangs = "#!/bin/sh\nexec sleep 1000\n";
    let mut init = Init::start("reexec-refused", &[("a", NOTIFY, &script)]);
    init.wait_for("a: ready");
    let path = init.directory.join("hangs");
    fs::write(&path, hangs).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&path, mode).unwrap();
    let hangs = path.display().to_string();
    for (path, why) in [
        ("/bin/true", "did not say that it can take over"),
        ("/bin/echo", "--check-state"),
        ("/nowhere", "cannot be run: No such file"),
        ("relative", "absolute path"),
        (hangs.as_str(), "ended (signal 9)"),
    ] {
        let reply = init.ask(&Request::ReExec { path: Some(path.to_owned()) });
        assert!(matches!(&reply, Reply::Refused { reason } if reason.contains(why)), "{path}: {reply:?}");
    }
    assert_eq!(init.row("a").state, ServiceState::Ready);
}

/// Nobody waits for a service that does not stop: its own limit is an hour, that of all 20 s.
#[test]
fn ctrl_alt_del_seven_times_waits_for_nobody() {
    let deaf = "trap '' TERM; echo READY=1 >&$NOTIFY_FD; while :; do sleep 0.05; done";
    let mut init = Init::start(
        "forced",
        &[
            ("deaf", &format!("{NOTIFY}\nstop_timeout_s = 3600"), deaf),
            // As the kernel tells it; for as long as there is somebody to tell it to.
            (
                "keyboard",
                "stop_timeout_s = 3600",
                "trap '' TERM; while [ ! -e $D/now ]; do sleep 0.05; done; kill -INT 1; \
                 while [ ! -e $D/insist ]; do sleep 0.05; done; while kill -INT 1; do sleep 0.02; done",
            ),
        ],
    );
    init.wait_for("deaf: ready");
    fs::write(init.directory.join("now"), "").unwrap();
    init.wait_for("reboot asked for by Ctrl-Alt-Del");
    assert_eq!(init.row("deaf").state, ServiceState::Stopping, "once waits for it");
    fs::write(init.directory.join("insist"), "").unwrap();
    init.wait_for("Ctrl-Alt-Del 7 times within 2 s: restarting at once");
    let forced = Instant::now();
    assert_eq!(init.ended().code(), Some(10), "{}", init.seen.join("\n"));
    assert!(forced.elapsed() < Duration::from_secs(10), "it waited {:?}", forced.elapsed());
    init.wait_for("still running, killing: deaf, keyboard");
}

/// A fatal signal in PID 1: written down, and the restart is the one of its namespace.
#[test]
fn a_crash_is_written_down_and_ends_in_a_restart() {
    use std::os::unix::process::ExitStatusExt;
    for signal in ["SEGV", "ABRT", "SYS"] {
        let script = format!("kill -{signal} 1; exec sleep 1000");
        let test = format!("crash-{signal}");
        let script = format!("while [ ! -e $D/now ]; do sleep 0.05; done; {script}");
        let mut init = Init::start(&test, &[("a", "restart = 'never'", &script)]);
        init.wait_for("a: ready");
        // The road goes along when another program takes over.
        assert_eq!(init.ask(&Request::ReExec { path: None }), Reply::Accepted);
        init.wait_for("took over 1 services");
        fs::write(init.directory.join("now"), "").unwrap();
        init.wait_for(&format!("init: SIG{signal} sent by process"));
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = init.unshare.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            // The log's end is the end of all its writers.
            let _ = init.log.recv_timeout(Duration::from_millis(20));
        };
        // reboot(2) for a restart ends the first process of a namespace with SIGHUP (pid_namespaces(7)).
        let hup = nix::sys::signal::Signal::SIGHUP as i32;
        assert!(status.signal() == Some(hup) || status.code() == Some(128 + hup), "{status:?}");
        let record = fs::read(init.directory.join("crash")).unwrap();
        assert_eq!(
            (&record[..8], &record[504..512], record.len()),
            (&b"EKCRASH1"[..], &b"1HSARCKE"[..], 4096)
        );
        let number = nix::sys::signal::Signal::from_str(&format!("SIG{signal}")).unwrap() as u8;
        assert_eq!(record[8], number);
    }
}
