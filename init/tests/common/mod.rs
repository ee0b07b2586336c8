//! init as PID 1 of a namespace of its own, for the tests with real processes.
//!
//! Every test starts `init --container` below `unshare`, which needs no privileges. Its log is read line by line and
//! is what the tests wait for. When a test ends, or is killed, init's standard input ends and takes everything down.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use proto::control::{PACKET_MAX, Reply, Request, ServiceRow};
use proto::envelope;

/// Longest wait for one event; two busy cores are slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Users and groups that exist in the namespace.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ids {
    /// Root only, which anybody may have.
    Root,
    /// All of the machine's; only its root can give them.
    All,
}

/// The directory of the test `test`.
pub(crate) fn directory_of(test: &str) -> PathBuf {
    std::env::temp_dir().join(format!("evenkeel-init-{}-{test}", std::process::id()))
}

/// The file of a service that runs `script`, with `rest` in front of its environment.
fn file_of(directory: &std::path::Path, rest: &str, script: &str) -> String {
    format!(
        "command = ['/bin/sh', '-c', '''{script}''']\n{rest}\n[environment]\nD = '{}'\nPATH = '{}'\n",
        directory.display(),
        std::env::var("PATH").unwrap()
    )
}

pub(crate) struct Init {
    pub(crate) directory: PathBuf,
    pub(crate) unshare: Child,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) log: Receiver<String>,
    /// Log lines seen so far.
    pub(crate) seen: Vec<String>,
}

impl Init {
    /// Starts init with one service per `(name, rest of its file, shell script)`. `$D` in a script is the test's
    /// directory.
    pub(crate) fn start(test: &str, services: &[(&str, &str, &str)]) -> Init {
        Init::start_as(Ids::Root, test, services, &[])
    }

    /// The same with the given ids and further options.
    pub(crate) fn start_as(ids: Ids, test: &str, services: &[(&str, &str, &str)], options: &[&str]) -> Init {
        let directory = directory_of(test);
        let files: Vec<_> =
            services.iter().map(|(name, rest, script)| (*name, file_of(&directory, rest, script))).collect();
        let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        Init::launch(ids, &[], directory, &files, options)
    }

    /// The same with one whole file and a network of its own, in which nothing is up.
    pub(crate) fn start_alone(test: &str, name: &str, rest: &str, script: &str) -> Init {
        let directory = directory_of(test);
        let text = file_of(&directory, rest, script);
        Init::launch(Ids::Root, &["-n"], directory, &[(name, &text)], &[])
    }

    /// The same with whole files.
    pub(crate) fn start_files(test: &str, files: &[(&str, &str)]) -> Init {
        Init::launch(Ids::Root, &[], directory_of(test), files, &[])
    }

    fn launch(
        ids: Ids,
        namespaces: &[&str],
        directory: PathBuf,
        files: &[(&str, &str)],
        options: &[&str],
    ) -> Init {
        let _ = fs::remove_dir_all(&directory);
        for sub in ["services", "run", "logs"] {
            fs::create_dir_all(directory.join(sub)).unwrap();
        }
        for (name, text) in files {
            fs::write(directory.join(format!("services/{name}.toml")), text).unwrap();
        }
        let mut unshare = Command::new("unshare");
        // With all ids the map is written from outside, by whoever may; until then nothing can be executed as root.
        match ids {
            Ids::Root => unshare.arg("-r"),
            Ids::All => {
                unshare.args(["-U", "sh", "-c", "echo unshared >&2; read go; exec \"$@\"", "sh", "unshare"])
            }
        };
        let mut unshare = unshare
            .args(["-p", "-f", "-m", "--mount-proc", "--kill-child"])
            .args(namespaces)
            // Sockets lie below /run; the machine's own is not for tests.
            .args(["sh", "-c", "mount -t tmpfs tmpfs /run && exec \"$@\"", "sh"])
            .args([env!("CARGO_BIN_EXE_init"), "--container"])
            .args(["--services".into(), directory.join("services")])
            .args(["--run".into(), directory.join("run")])
            .args(["--logs".into(), directory.join("logs")])
            .args(["--crash-record".into(), directory.join("crash")])
            .args(options)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("unshare of util-linux is installed");
        let (sender, log) = channel();
        let lines = BufReader::new(unshare.stderr.take().unwrap()).lines();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|l| sender.send(l)));
        let stdin = unshare.stdin.take();
        let mut init = Init { directory, unshare, stdin, log, seen: Vec::new() };
        if ids == Ids::All {
            init.wait_for("unshared");
            for map in ["uid_map", "gid_map"] {
                fs::write(format!("/proc/{}/{map}", init.unshare.id()), "0 0 65536").unwrap();
            }
            init.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        }
        init
    }

    /// Waits for a log line that contains `text`.
    pub(crate) fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        if self.seen.iter().any(|l| l.contains(text)) {
            return;
        }
        loop {
            match self.log.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let found = line.contains(text);
                    self.seen.push(line);
                    if found {
                        return;
                    }
                }
                Err(e) => panic!("{e} while waiting for {text:?}; the log says\n{}", self.seen.join("\n")),
            }
        }
    }

    /// Lets init itself take over from init, and waits until it has.
    pub(crate) fn hand_over(&mut self) {
        self.hand_over_as(&self.connect());
    }

    /// The same, asked for over `socket`.
    pub(crate) fn hand_over_as(&mut self, socket: &OwnedFd) {
        let request = Request::ReExec { path: None };
        assert_eq!(exchange(socket, &envelope::encode(&request)), Reply::Accepted);
        let before = std::mem::take(&mut self.seen);
        self.wait_for("took over");
        self.seen.splice(..0, before);
    }

    /// Asks until `found` has an answer in the file `name` of the directory; nobody tells.
    pub(crate) fn wait_for_file<T>(&self, name: &str, found: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = found(&self.file(name)) {
                return found;
            }
            assert!(Instant::now() < deadline, "{name} has {:?}", self.file(name));
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// init's number outside its namespace.
    pub(crate) fn pid(&self) -> u32 {
        let unshare = self.unshare.id();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap();
        children.trim().parse().unwrap()
    }

    /// What init has open, by what the kernel calls it, and how often. Sockets, pipes and memory have a number there.
    pub(crate) fn open_files(&self) -> BTreeMap<String, usize> {
        let mut open = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap() {
            let name = fs::read_link(entry.unwrap().path()).unwrap().display().to_string();
            *open.entry(name).or_default() += 1;
        }
        open
    }

    /// Where in the log `text` stands; the order of events.
    pub(crate) fn position(&self, text: &str) -> usize {
        self.seen.iter().position(|l| l.contains(text)).unwrap_or_else(|| panic!("{text:?} was not said"))
    }

    pub(crate) fn connect(&self) -> OwnedFd {
        let s = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let limit = TimeVal::milliseconds(PATIENCE.as_millis() as i64);
        setsockopt(&s, sockopt::ReceiveTimeout, &limit).unwrap();
        let path = self.directory.join("run/init.sock");
        connect(s.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        s
    }

    pub(crate) fn ask(&self, request: &Request) -> Reply {
        exchange(&self.connect(), &envelope::encode(request))
    }

    pub(crate) fn row(&self, name: &str) -> ServiceRow {
        let Reply::Services(rows) = self.ask(&Request::Services) else { panic!("no rows") };
        rows.into_iter().find(|r| r.name == name).unwrap_or_else(|| panic!("no row {name}"))
    }

    pub(crate) fn output(&self, name: &str) -> Vec<String> {
        match self.ask(&Request::Log { service: Some(name.into()), lines: 200 }) {
            Reply::Log(lines) => lines.into_iter().map(|l| l.text).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Waits for init's end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        // The log's end is the end of the process; only then is waiting for it short.
        loop {
            match self.log.recv_timeout(PATIENCE) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => return self.unshare.wait().unwrap(),
                Err(e) => panic!("{e}: init did not end; the log says\n{}", self.seen.join("\n")),
            }
        }
    }

    pub(crate) fn file(&self, name: &str) -> String {
        fs::read_to_string(self.directory.join(name)).unwrap_or_default()
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        drop(self.stdin.take());
        // With --kill-child the namespace goes with unshare, whatever state init is in.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

pub(crate) fn exchange(socket: &OwnedFd, packet: &[u8]) -> Reply {
    send(socket.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL).unwrap();
    let mut buffer = vec![0; PACKET_MAX];
    let count = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
    envelope::decode(&buffer[..count]).unwrap()
}

pub(crate) const NOTIFY: &str = "ready = 'notify'";
