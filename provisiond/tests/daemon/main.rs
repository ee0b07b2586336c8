//! The real daemon in directories of a test's own: boots, refusals, damage, and disks that cannot keep anything.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod roster;

use bus::provision1::{Client, StateRow};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr};
use nix::sys::socket::{accept, bind, listen, recv, send, socket};
use nix::unistd::{Pid, close};
use peer_core::key::SecretKey;
use proto::control::{Reply, Request};
use proto::envelope;
use proto::part::{KeySeed, NetdPart};
use proto::record::NodeRecord;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use store::Record;

const DEMO: &str = include_str!("../../../proto/testdata/demo.toml");
const DEADLINE: Duration = Duration::from_secs(20);
const BOOT: [&str; 3] = [
    "11111111-aaaa-4aaa-8aaa-000000000001",
    "22222222-bbbb-4bbb-8bbb-000000000002",
    "33333333-cccc-4ccc-8ccc-000000000003",
];

/// A machine: its directories, removed at its end.
struct Machine(PathBuf);

impl Machine {
    /// Node a1 of the demonstration cluster, before its first boot.
    fn new() -> Machine {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("evenkeel-prov-{}-{count}", std::process::id()));
        fs::create_dir_all(path.join("smbios/11-0")).unwrap();
        fs::create_dir_all(path.join("smbios/1-0")).unwrap();
        fs::write(path.join("smbios/1-0/raw"), [1, 27]).unwrap();
        fs::write(path.join("release"), "version = \"9.8.7\"\n").unwrap();
        let machine = Machine(path);
        machine.boot_id(BOOT[0]);
        machine.strings(&strings(DEMO));
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn boot_id(&self, id: &str) {
        fs::write(self.path("boot_id"), format!("{id}\n")).unwrap();
    }

    /// What the firmware tells.
    fn strings(&self, strings: &[String]) {
        let mut raw = vec![11, 5, 0, 1, strings.len() as u8];
        for string in strings {
            raw.extend(string.bytes().chain([0]));
        }
        raw.push(0);
        fs::write(self.path("smbios/11-0/raw"), raw).unwrap();
    }

    fn options(&self) -> Vec<String> {
        let names = ["state", "smbios", "boot-id", "parts", "init", "bus", "release"];
        let files = ["var/state", "smbios", "boot_id", "run/parts", "init.sock", "run/bus", "release"];
        let pairs = names.iter().zip(files);
        pairs.flat_map(|(n, f)| [format!("--{n}"), self.path(f).display().to_string()]).collect()
    }

    fn start(&self) -> Daemon {
        Daemon::spawn(Command::new(env!("CARGO_BIN_EXE_provisiond")).args(self.options()))
    }

    /// One start of the daemon up to READY and its end by SIGTERM; what it showed and what it logged.
    fn run(&self) -> (StateRow, String) {
        let daemon = self.start();
        daemon.ready();
        let row = self.state();
        let (status, log) = daemon.terminate();
        assert_eq!(status.code(), Some(0), "{log}");
        (row, log)
    }

    fn state(&self) -> StateRow {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let path = self.path("run/bus");
        runtime.block_on(async { Client::connect(&path, DEADLINE).await.unwrap().state().await.unwrap() })
    }

    fn part(&self) -> Option<NetdPart> {
        let bytes = fs::read(self.path("run/parts/netd")).ok()?;
        Some(envelope::decode(&bytes).unwrap())
    }

    /// What is on the disk; the daemon must not run.
    fn record(&self) -> NodeRecord {
        Record::<NodeRecord>::open(&self.path("var/state/node")).unwrap().unwrap().get().clone()
    }

    /// Changes the byte at `offset` of a record.
    fn damage(&self, record: &str, offset: usize) {
        let path = self.path("var/state").join(record);
        let mut bytes = fs::read(&path).unwrap();
        bytes[offset] ^= 0x10;
        fs::write(path, bytes).unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn public(seed: u8) -> String {
    proto::text::hex(SecretKey::from_seed([seed; 32]).public())
}

fn strings(cluster: &str) -> Vec<String> {
    let roster: Vec<String> = [("a1", 1), ("b1", 2), ("a2", 3), ("b2", 4)]
        .iter()
        .map(|(n, s)| format!("{n}:{}", public(*s)))
        .collect();
    vec![
        "vendor=Acme".to_owned(),
        "evenkeel.node=a1".to_owned(),
        format!("evenkeel.key={}", "01".repeat(32)),
        format!("evenkeel.roster={}", roster.join(",")),
        format!("evenkeel.cluster={cluster}"),
    ]
}

/// A running daemon; killed when the test ends before it.
struct Daemon {
    child: Child,
    ready: Receiver<String>,
    log: Option<std::thread::JoinHandle<String>>,
}

impl Daemon {
    fn spawn(command: &mut Command) -> Daemon {
        // Readiness comes over standard output: a pipe this test has anyway.
        command.env("NOTIFY_FD", "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (told, ready) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| told.send(line)));
        let mut errors = child.stderr.take().unwrap();
        let log = std::thread::spawn(move || {
            let mut text = String::new();
            errors.read_to_string(&mut text).unwrap();
            text
        });
        Daemon { child, ready, log: Some(log) }
    }

    fn ready(&self) {
        assert_eq!(self.ready.recv_timeout(DEADLINE).as_deref(), Ok("READY=1"));
    }

    /// Its loop says that it turns, with an empty line every so often.
    fn lives(&self) {
        assert_eq!(self.ready.recv_timeout(DEADLINE).as_deref(), Ok(""));
    }

    fn terminate(self) -> (ExitStatus, String) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
        self.end()
    }

    /// Waits for its end, which closes its output.
    fn end(mut self) -> (ExitStatus, String) {
        while self.ready.recv_timeout(DEADLINE).is_ok() {}
        let status = self.child.wait().unwrap();
        (status, self.log.take().unwrap().join().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A control socket that takes connections and never answers.
fn silent_init(path: &Path) -> OwnedFd {
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    listen(&listener, Backlog::new(1).unwrap()).unwrap();
    listener
}

/// An init that answers one request and tells what it was.
fn fake_init(path: &Path, reply: Reply) -> std::thread::JoinHandle<Request> {
    let listener = silent_init(path);
    std::thread::spawn(move || {
        let client = accept(listener.as_raw_fd()).unwrap();
        let mut packet = [0; 1024];
        let len = recv(client, &mut packet, MsgFlags::empty()).unwrap();
        send(client, &envelope::encode(&reply), MsgFlags::empty()).unwrap();
        close(client).unwrap();
        envelope::decode(&packet[..len]).unwrap()
    })
}

#[test]
fn first_boot_stores_the_personality_and_hands_out_the_part() {
    let machine = Machine::new();
    let init = fake_init(&machine.path("init.sock"), Reply::Accepted);
    let daemon = machine.start();
    daemon.ready();
    daemon.lives();
    daemon.lives();
    assert_eq!(init.join().unwrap(), Request::SetHostname { name: "a1".into() });
    let row = machine.state();
    let expected = StateRow {
        node: "a1".into(),
        cluster: "demo".into(),
        group: "east".into(),
        pair: "a".into(),
        public_key: public(1),
        config_digest: row.config_digest.clone(),
        boot_count: 1,
        boot_id: BOOT[0].into(),
        previous_boot_id: String::new(),
        personality_source: "smbios".into(),
        version: "9.8.7".into(),
        error: String::new(),
    };
    assert_eq!(row, expected);
    assert_eq!(row.config_digest.len(), 64);
    let part = machine.part().unwrap();
    assert_eq!((part.node.0.as_str(), part.key, part.roster.len()), ("a1", KeySeed([1; 32]), 4));
    assert_eq!((part.cluster.vips.len(), part.boot), (6, 1));
    for secret in ["run/parts/netd", "var/state/personality", "var/state/node"] {
        assert_eq!(
            fs::metadata(machine.path(secret)).unwrap().permissions().mode() & 0o777,
            0o600,
            "{secret}"
        );
    }
    assert_eq!(
        fs::read_dir(machine.path("run/parts")).unwrap().count(),
        1,
        "nothing is left beside the part"
    );
    let (status, log) = daemon.terminate();
    assert_eq!(status.code(), Some(0), "{log}");
    let place = |text: &str| log.find(text).unwrap_or_else(|| panic!("{text:?} is not in the log:\n{log}"));
    assert!(place("personality of a1 from SMBIOS") < place("storing the personality of a1"));
    assert!(place("storing the personality of a1") < place("stored the personality of a1"));
    assert!(place("stored the personality of a1") < place("handed netd its part"));
    assert!(!log.contains("warn ") && !log.contains("error "), "{log}");
    assert!(!log.contains("0101"), "the seed is in the log");
}

#[test]
fn boots_are_counted_once_each() {
    let machine = Machine::new();
    let counted = |row: StateRow| (row.boot_count, row.boot_id, row.previous_boot_id, row.personality_source);
    let is = |n: u64, id: &str, previous: &str, source: &str| (n, id.into(), previous.into(), source.into());
    assert_eq!(counted(machine.run().0), is(1, BOOT[0], "", "smbios"));
    assert_eq!(counted(machine.run().0), is(1, BOOT[0], "", "state"), "the daemon's restart is no boot");
    machine.boot_id(BOOT[1]);
    assert_eq!(counted(machine.run().0), is(2, BOOT[1], BOOT[0], "state"));
    assert_eq!(machine.part().unwrap().boot, 2);
    machine.boot_id(BOOT[2]);
    assert_eq!(counted(machine.run().0), is(3, BOOT[2], BOOT[1], "state"));
    let record = machine.record();
    assert_eq!((record.boot_count, record.version.as_str()), (3, "9.8.7"));
    assert!(record.config_digest.is_some());
}

#[test]
fn no_boot_id_is_no_boot_and_no_part() {
    let machine = Machine::new();
    for id in ["", "this is much longer than any boot id the kernel has ever given"] {
        machine.boot_id(id);
        let (row, log) = machine.run();
        assert_eq!((row.boot_count, row.boot_id.as_str()), (0, ""), "{log}");
        assert!(row.error.starts_with("no boot id in "), "{}", row.error);
        assert!(machine.part().is_none());
    }
}

#[test]
fn state_wins_over_strings_that_changed() {
    let machine = Machine::new();
    machine.run();
    machine.strings(&strings(&DEMO.replace("demo", "other")));
    let (row, log) = machine.run();
    assert_eq!((row.cluster.as_str(), row.personality_source.as_str()), ("demo", "state"));
    assert!(log.contains("warn SMBIOS strings differ from STATE in cluster: STATE is used"), "{log}");
    machine.strings(&["vendor=Acme".into()]);
    let (row, log) = machine.run();
    assert_eq!(row.cluster, "demo");
    assert!(!log.contains("SMBIOS"), "{log}");
    fs::remove_dir_all(machine.path("smbios")).unwrap();
    assert_eq!(machine.run().0.cluster, "demo");
}

#[test]
fn a_bad_cluster_file_is_told_and_not_stored() {
    let machine = Machine::new();
    machine.strings(&strings(&DEMO.replace("10.9.0.101", "10.7.0.101")));
    let (row, log) = machine.run();
    let expected = "cluster.toml:55:11: vip[0].address: VIP 10.7.0.101 is outside every network\n   \
                    55 | address = \"10.7.0.101\"\n      |           ^^^^^^^^^^^^\n   \
                    help: network data is 10.9.0.0/24, fd09::/64";
    assert_eq!(row.error, expected);
    for line in expected.lines() {
        assert!(log.contains(&format!("error {line}\n")), "{log}");
    }
    assert_eq!((row.node.as_str(), row.cluster.as_str(), row.boot_count), ("a1", "", 1));
    assert!(machine.part().is_none());
    assert!(!machine.path("var/state/personality").exists(), "a mistake is not kept");
    machine.strings(&strings(DEMO));
    let (row, log) = machine.run();
    assert_eq!((row.cluster.as_str(), row.error.as_str()), ("demo", ""), "{log}");
}

#[test]
fn a_machine_without_a_personality_says_so() {
    let machine = Machine::new();
    let table: [(&[String], &str); 3] = [
        (
            &["vendor=Acme".into()],
            "no personality on STATE: no personality in SMBIOS: give the machine the type 11 strings",
        ),
        (&strings(DEMO)[..4], "no personality on STATE: SMBIOS string evenkeel.cluster is missing"),
        (&["evenkeel.node=A".into()], "no personality on STATE: SMBIOS string evenkeel.key is missing"),
    ];
    for (strings, expected) in table {
        machine.strings(strings);
        let (row, log) = machine.run();
        assert!(row.error.starts_with(expected), "{}\n{log}", row.error);
        assert_eq!((row.node.as_str(), row.personality_source.as_str()), ("", ""));
        assert!(machine.part().is_none());
    }
    fs::remove_dir_all(machine.path("smbios")).unwrap();
    let (row, _) = machine.run();
    assert!(row.error.contains("smbios cannot be read"), "{}", row.error);
}

#[test]
fn one_damaged_slot_is_survived_and_said() {
    let machine = Machine::new();
    machine.run();
    machine.boot_id(BOOT[1]);
    machine.run();
    // Three writes: made, boot 1, boot 2. The last one lies in the first slot.
    machine.damage("node", 30);
    let (row, log) = machine.run();
    assert!(log.contains("var/state/node is damaged (checksum does not match), the other is used"), "{log}");
    assert_eq!((row.boot_count, row.previous_boot_id.as_str(), row.error.as_str()), (2, BOOT[0], ""));
}

#[test]
fn damage_to_both_slots_is_never_taken_for_a_first_boot() {
    for (record, expected) in
        [("node", "boots cannot be counted: record "), ("personality", "no personality: record ")]
    {
        let machine = Machine::new();
        machine.run();
        fs::remove_dir_all(machine.path("run")).unwrap();
        machine.damage(record, 30);
        if record == "node" {
            let half = fs::metadata(machine.path("var/state/node")).unwrap().len() as usize / 2;
            machine.damage(record, half + 30);
        }
        let (row, log) = machine.run();
        assert!(
            row.error.starts_with(expected) && row.error.contains("damaged in both slots"),
            "{}\n{log}",
            row.error
        );
        assert!(machine.part().is_none(), "{record}");
        assert!(log.contains(&format!("error {}", row.error)), "{log}");
    }
}

#[test]
fn a_second_daemon_is_refused() {
    let machine = Machine::new();
    let first = machine.start();
    first.ready();
    let (status, log) = machine.start().end();
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("is in use by another process; one writer at a time"), "{log}");
    assert_eq!(first.terminate().0.code(), Some(0));
}

#[test]
fn an_init_that_refuses_or_is_silent_does_not_stop_it() {
    let machine = Machine::new();
    let init = fake_init(&machine.path("init.sock"), Reply::Refused { reason: "no names today".into() });
    let (row, log) = machine.run();
    init.join().unwrap();
    assert!(log.contains("warn the host name is not set: init refused: no names today"), "{log}");
    assert_eq!(row.error, "");
    fs::remove_file(machine.path("init.sock")).unwrap();
    assert!(machine.run().1.contains("the host name is not set: init's control socket fails: ENOENT"));
    let silent = silent_init(&machine.path("init.sock"));
    assert!(machine.run().1.contains("the host name is not set: init does not answer within 2s"));
    drop(silent);
}

#[test]
fn a_readiness_pipe_that_nobody_reads_does_not_stop_it() {
    let machine = Machine::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_provisiond"));
    command.args(machine.options()).env("NOTIFY_FD", "1").stdin(Stdio::null()).stdout(writer);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let errors = BufReader::new(child.stderr.take().unwrap());
    let (told, said) = channel();
    std::thread::spawn(move || errors.lines().map_while(Result::ok).try_for_each(|line| told.send(line)));
    let heard = std::iter::from_fn(|| said.recv_timeout(DEADLINE).ok())
        .any(|line| line.starts_with("warn readiness was not heard"));
    let answers = heard && machine.state().node == "a1";
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(answers, "it ended, or waits");
}

#[test]
fn bad_options_are_refused() {
    let (status, log) = Daemon::spawn(Command::new(env!("CARGO_BIN_EXE_provisiond")).arg("--stat")).end();
    assert_eq!(status.code(), Some(2));
    assert!(log.starts_with("provisiond: unknown option --stat; options are: "), "{log}");
}

/// Runs the daemon in a mount namespace of its own, with a fresh file system on the directory of the records.
fn run_on(machine: &Machine, mount: &str) -> (ExitStatus, String) {
    fs::create_dir_all(machine.path("var")).unwrap();
    let script = format!("mount -t tmpfs {mount} none \"$0\" && exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
    command.arg(machine.path("var")).arg(env!("CARGO_BIN_EXE_provisiond")).args(machine.options());
    Daemon::spawn(&mut command).end()
}

#[test]
fn a_disk_that_cannot_keep_ends_the_daemon() {
    let table = [
        ("-o ro", "error cannot make ", "is STATE mounted, writable and not full?: Read-only file system"),
        ("-o size=64k", "error STATE cannot keep what it must", "cannot create it: No space left on device"),
    ];
    for (mount, begin, cause) in table {
        let machine = Machine::new();
        let (status, log) = run_on(&machine, mount);
        assert_eq!(status.code(), Some(1), "{mount}: {log}");
        let last = log.lines().last().unwrap_or_default();
        assert!(last.starts_with(begin) && last.contains(cause), "{mount}: {log}");
        assert!(machine.part().is_none(), "{mount}: nothing is handed out that is not kept");
        assert!(!log.contains("stored the personality"), "{mount}: {log}");
    }
}
