//! The namespaces, bridges and processes of these tests, as a small language.

#![allow(clippy::unwrap_used)] // a test's helpers fail by panicking

use proto::cluster::ClusterFile;
use proto::envelope;
use proto::identity::ClusterId;
use proto::part::{KeySeed, NetdPart};
use proto::roster::Roster;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Set inside the namespaces: the test's directory, which is removed outside, whatever happens inside.
const INSIDE: &str = "NETD_TEST_INSIDE";

/// A whole test.
const TEST_DEADLINE: Duration = Duration::from_secs(120);

/// From the start of a netd to its readiness.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Nodes n1, n2, n3.
const NODES: u8 = 3;

/// Tests share the machine's two cores: one after the other, so that leases measure netd and not the neighbour test.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs `test` in new namespaces: as the child of this test that runs only itself again.
pub(crate) fn inside(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let directory = std::env::temp_dir().join(format!("netd-netns-{}-{name}", std::process::id()));
    // Socket paths are limited to 107 bytes.
    let directory =
        Directory(PathBuf::from(directory.to_str().unwrap().chars().take(60).collect::<String>()));
    fs::create_dir_all(&directory.0).unwrap();
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut child = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, &directory.0)
        .spawn()
        .expect("unshare of util-linux");
    let status = wait(&mut child, TEST_DEADLINE);
    assert!(status.success(), "{name} inside its namespaces: {status} (the host must allow user namespaces)");
}

/// Waits for a process; kills it when the deadline has passed.
fn wait(child: &mut Child, deadline: Duration) -> ExitStatus {
    let begun = Instant::now();
    let mut pause = Pause::new();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begun.elapsed() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("process still there after {deadline:?}");
        }
        pause.take();
    }
}

/// Repeats `check` until it gives something.
pub(crate) fn patiently<T>(within: Duration, what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    let mut pause = Pause::new();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(begun.elapsed() < within, "not within {within:?}: {what}");
        pause.take();
    }
}

/// A short wait for anything at all on a socket that stays silent.
struct Pause(std::net::UdpSocket);

impl Pause {
    fn new() -> Pause {
        // Bound to the wildcard: a fresh namespace's loopback is down.
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        Pause(socket)
    }

    fn take(&mut self) {
        let _ = self.0.recv(&mut [0]);
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn ip(text: &str) -> String {
    run("ip", &text.split_whitespace().collect::<Vec<_>>())
}

/// Removed with all that is in it.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The bridges, and this process as a host on them.
pub(crate) struct Lan {
    directory: PathBuf,
}

/// Something else on the data bridge.
pub(crate) struct Station {
    holder: Child,
    name: String,
}

impl Station {
    /// Has the station open a connection to the data bridge's host: its question shows its own address to all.
    pub(crate) fn speak(&self) {
        let target = SocketAddr::from(([10, 9, 0, 1], 9));
        let script = format!("exec 3<>/dev/tcp/{}/{}", target.ip(), target.port());
        let pid = self.holder.id().to_string();
        // Refused or lost: what counts is the question before.
        let _ = Command::new("nsenter")
            .args(["--target", &pid, "--net", "timeout", "1", "bash", "-c", &script])
            .stderr(Stdio::null())
            .status();
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        // Not only its process: a namespace may outlive it for a moment, and its end of the cable with it.
        ip(&format!("link del {}", self.name));
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Lan {
    pub(crate) fn new() -> Lan {
        let directory = PathBuf::from(std::env::var_os(INSIDE).expect("runs inside"));
        ip("link set lo up");
        for (bridge, addresses) in
            [("data", ["10.9.0.1/24", "fd09::1/64"]), ("mgmt", ["10.8.0.1/24", "fd08::1/64"])]
        {
            ip(&format!("link add {bridge} type bridge forward_delay 0 mcast_snooping 0"));
            ip(&format!("link set {bridge} up"));
            for address in addresses {
                let flags = if address.contains(':') { "nodad" } else { "" };
                ip(&format!("address add {address} dev {bridge} {flags}"));
            }
        }
        Lan { directory }
    }

    fn cluster() -> ClusterFile {
        let mut text = String::from(
            r#"
            schema = 1
            cluster = "netns"
            timing = { preset = "explicit", beat_ms = 50, lease_ms = 600 }
            [networks]
            data = { v4 = "10.9.0.0/24", v6 = "fd09::/64", gateway = "10.9.0.1" }
            mgmt = { v4 = "10.8.0.0/24", gateway = "10.8.0.1" }
            "#,
        );
        for n in 1..=NODES {
            let port = |last: u8| format!("mac:02:00:00:00:{n:02x}:{last:02x}");
            writeln!(
                text,
                r#"
                [[node]]
                name = "n{n}"
                group = "east"
                port = [
                  {{ name = "p1", match = "{}", network = "data" }},
                  {{ name = "p2", match = "{}", network = "data" }},
                  {{ name = "m", match = "{}", network = "mgmt", v4 = "10.8.0.1{n}" }},
                ]"#,
                port(1),
                port(2),
                port(3)
            )
            .unwrap();
        }
        for (name, address) in [("web", super::WEB), ("web6", super::WEB6)] {
            writeln!(
                text,
                r#"
                [[vip]]
                name = "{name}"
                group = "east"
                network = "data"
                address = "{address}"
                home = "n1:p1"
                guard = "available"
                failback = "never""#
            )
            .unwrap();
        }
        ClusterFile::parse("netns.toml", &text).unwrap()
    }

    /// Makes a node's namespace, cables and part; nothing runs in it yet.
    pub(crate) fn node(&self, name: &str) -> Node {
        let number: u8 = name[1..].parse().unwrap();
        let holder = namespace();
        for (port, bridge, last) in [("p1", "data", 1), ("p2", "data", 2), ("m", "mgmt", 3)] {
            plug(
                holder.id(),
                &format!("{name}{port}"),
                bridge,
                port,
                Some(format!("02:00:00:00:{number:02x}:{last:02x}")),
            );
        }
        let part = NetdPart {
            node: name.into(),
            cluster: Lan::cluster(),
            cluster_id: ClusterId([9; 16]),
            key: KeySeed([number; 32]),
            roster: roster(&[1, 2, 3]),
            boot: 1,
        };
        let directory = self.directory.join(name);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("part"), envelope::encode(&part)).unwrap();
        Node { name: name.to_owned(), number, directory, holder, netd: None }
    }

    /// A station that is no node and uses `address`.
    pub(crate) fn station(&self, name: &str, address: &str) -> Station {
        let holder = namespace();
        let outer = format!("{name}0");
        plug(holder.id(), &outer, "data", "eth0", None);
        for command in ["link set eth0 up".to_owned(), format!("address add {address}/24 dev eth0")] {
            in_namespace(holder.id(), &command);
        }
        Station { holder, name: outer }
    }

    /// Connects or cuts the cable of a port.
    pub(crate) fn carrier(&self, node: &Node, port: &str, on: bool) {
        ip(&format!("link set {}{port} {}", node.name, if on { "up" } else { "down" }));
    }

    /// Whether somebody answers for `address`: a refused connection is an answer that came back all the way.
    pub(crate) fn answers(&self, address: &str) -> bool {
        let target = SocketAddr::new(address.parse().unwrap(), 9);
        let result = TcpStream::connect_timeout(&target, Duration::from_millis(300));
        matches!(result, Err(e) if e.kind() == ErrorKind::ConnectionRefused)
    }

    /// The hardware address this host knows for `address`, without asking anew.
    pub(crate) fn neighbour(&self, address: &str) -> String {
        let text = ip(&format!("neighbour show to {address} dev data"));
        let mut words = text.split_whitespace();
        words.find(|word| *word == "lladdr");
        words.next().unwrap_or_default().to_owned()
    }
}

/// The keys of these nodes.
fn roster(numbers: &[u8]) -> Roster {
    let mut roster = Roster::new();
    for n in numbers {
        let public = *peer::SecretKey::from_seed([*n; 32]).public();
        roster.insert(format!("n{n}").as_str().into(), public).unwrap();
    }
    roster
}

/// A process that does nothing but hold a network namespace of its own.
fn namespace() -> Child {
    let holder = Command::new("unshare")
        .args(["--net", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    let path = format!("/proc/{}/ns/net", holder.id());
    patiently(START_DEADLINE, "a namespace", || (fs::read_link(&path).ok()? != own).then_some(()));
    holder
}

fn in_namespace(pid: u32, command: &str) -> String {
    let pid = pid.to_string();
    let arguments = ["--target", &pid, "--net", "ip"].into_iter().chain(command.split_whitespace());
    run("nsenter", &arguments.collect::<Vec<_>>())
}

/// Lays a cable from a bridge, where its end is called `outer`, into a namespace, where it is called `inner`.
fn plug(pid: u32, outer: &str, bridge: &str, inner: &str, mac: Option<String>) {
    let mac = mac.map(|mac| format!("address {mac}")).unwrap_or_default();
    ip(&format!("link add {outer} type veth peer name {inner} {mac} netns {pid}"));
    ip(&format!("link set {outer} master {bridge} up"));
}

/// A node.
pub(crate) struct Node {
    pub(crate) name: String,
    number: u8,
    directory: PathBuf,
    holder: Child,
    netd: Option<Netd>,
}

struct Netd {
    process: Child,
    readiness: std::io::PipeReader,
}

impl Node {
    /// Starts netd.
    pub(crate) fn start(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.directory.join("log")).unwrap();
        let (readiness, notify) = std::io::pipe().unwrap();
        // The device's own build can be put in this one's place.
        let program =
            std::env::var_os("NETD_TEST_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_netd").into());
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.holder.id().to_string(), "--net", "unshare", "--mount", "sh", "-c"])
            // The namespace's own interfaces in /sys. A host that forbids it costs netd its cheap look only.
            .arg("mount -t sysfs sysfs /sys 2>/dev/null; exec \"$0\" \"$@\"")
            .arg(program)
            .args(["--part".as_ref(), self.directory.join("part").as_os_str()])
            .args(["--bus".as_ref(), self.directory.join("bus").as_os_str()])
            // Nobody is there unless the test has an `Init`.
            .args(["--init".as_ref(), self.init_socket().as_os_str()])
            // Standard output is as good a descriptor as any.
            .env("NOTIFY_FD", "1")
            .stdin(Stdio::null())
            .stdout(notify)
            .stderr(log);
        let process = command.spawn().unwrap();
        drop(command); // and with it this side's copy of the pipe's end
        self.netd = Some(Netd { process, readiness });
    }

    /// Waits for its readiness.
    pub(crate) fn ready(&mut self) {
        let netd = self.netd.as_mut().expect("started");
        let mut line = String::new();
        // Its death closes the pipe, and the whole test has a deadline.
        BufReader::new(&mut netd.readiness).read_line(&mut line).unwrap();
        assert_eq!(line, "READY=1\n", "{}: {}", self.name, self.log());
    }

    /// The power cut of a process.
    pub(crate) fn kill(&mut self) {
        let mut netd = self.netd.take().expect("started");
        netd.process.kill().unwrap();
        netd.process.wait().unwrap();
    }

    /// Puts a part with the keys of these nodes only into the place of the node's part, as provisiond does.
    pub(crate) fn hand_out_roster(&self, numbers: &[u8]) {
        let path = self.directory.join("part");
        let part: NetdPart = envelope::decode(&fs::read(&path).unwrap()).unwrap();
        let new = self.directory.join("part.new");
        fs::write(&new, envelope::encode(&NetdPart { roster: roster(numbers), ..part })).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// Waits for its end without asking for it.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut netd = self.netd.take().expect("started");
        wait(&mut netd.process, START_DEADLINE)
    }

    /// Asks it to leave and waits for its end.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let mut netd = self.netd.take().expect("started");
        run("kill", &["-TERM", &netd.process.id().to_string()]);
        wait(&mut netd.process, START_DEADLINE)
    }

    /// Stops or continues it.
    pub(crate) fn signal(&self, signal: &str) {
        let netd = self.netd.as_ref().expect("started");
        run("kill", &[&format!("-{signal}"), &netd.process.id().to_string()]);
    }

    /// Where it looks for init.
    pub(crate) fn init_socket(&self) -> PathBuf {
        self.directory.join("init.sock")
    }

    /// The node's network namespace, as a file.
    pub(crate) fn namespace(&self) -> fs::File {
        fs::File::open(format!("/proc/{}/ns/net", self.holder.id())).unwrap()
    }

    /// Runs `ip` in the node.
    pub(crate) fn ip(&self, command: &str) -> String {
        in_namespace(self.holder.id(), command)
    }

    pub(crate) fn mac(&self, port: &str) -> String {
        let last = ["p1", "p2", "m"].iter().position(|p| *p == port).unwrap() + 1;
        format!("02:00:00:00:{:02x}:{last:02x}", self.number)
    }

    /// Whether `port` has `address`.
    pub(crate) fn has(&self, port: &str, address: &str) -> bool {
        self.ip(&format!("-oneline address show dev {port}")).contains(&format!(" {address}/"))
    }

    /// VIPs on any port, as `address port`.
    pub(crate) fn vips(&self) -> Vec<String> {
        let ports = ["p1", "p2"].iter();
        let all = ports.flat_map(|port| [super::WEB, super::WEB6].map(|vip| (port, vip)));
        all.filter(|(port, vip)| self.has(port, vip)).map(|(port, vip)| format!("{vip} {port}")).collect()
    }

    fn rules(&self) -> String {
        self.ip("-4 rule show priority 1000") + &self.ip("-6 rule show priority 1000")
    }

    /// The kernel's number of the port's interface.
    pub(crate) fn index(&self, port: &str) -> u32 {
        let text = self.ip(&format!("-oneline link show dev {port}"));
        text.split(':').next().unwrap().parse().unwrap()
    }

    fn table(&self, port: &str) -> u32 {
        1000 + self.index(port)
    }

    /// Routes of the port's table.
    pub(crate) fn table_of(&self, port: &str) -> String {
        let table = self.table(port);
        // A table that nothing was ever put into does not exist.
        let show = |family: &str| {
            let output = Command::new("nsenter")
                .args([
                    "--target",
                    &self.holder.id().to_string(),
                    "--net",
                    "ip",
                    family,
                    "route",
                    "show",
                    "table",
                ])
                .arg(table.to_string())
                .output()
                .unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        show("-4") + &show("-6")
    }

    /// Whether there is one rule for each VIP that is here, to the table of its port, and no other.
    pub(crate) fn rules_fit(&self) -> bool {
        let mut rules: Vec<String> =
            self.rules().lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        rules.sort();
        let expected = self.vips().into_iter().map(|vip| {
            let (address, port) = vip.split_once(' ').unwrap();
            format!("1000: from {address} lookup {}", self.table(port))
        });
        let mut expected: Vec<String> = expected.collect();
        expected.sort();
        rules == expected
    }

    /// The rules, the tables behind them, and the main table.
    pub(crate) fn assert_rules(&self) {
        assert!(self.rules_fit(), "VIPs: {:?}, rules: {}", self.vips(), self.rules());
        for port in ["p1", "p2"] {
            let routes = self.table_of(port);
            // The kernel drops IPv4 routes with an interface's last IPv4 address; nothing leaves by them then.
            for (vip, expected) in [
                (super::WEB, format!("10.9.0.0/24 dev {port}")),
                (super::WEB, format!("default via 10.9.0.1 dev {port}")),
                (super::WEB6, format!("fd09::/64 dev {port}")),
            ] {
                let needed = self.has(port, vip);
                assert!(!needed || routes.contains(&expected), "expected {expected} in: {routes}");
            }
        }
        let main = self.ip("-4 route show table main");
        assert!(
            main.contains("default via 10.8.0.1 dev m") && !main.contains("10.9.0."),
            "main table: {main}"
        );
    }

    pub(crate) fn assert_no_rules(&self) {
        patiently(START_DEADLINE, "rules are gone", || self.rules().is_empty().then_some(()));
    }

    /// What netd has logged so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// What netd's bus says.
    pub(crate) fn port_is_operative(&self, port: &str) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let path: &Path = &self.directory.join("bus");
        runtime.block_on(async {
            let client = bus::net1::Client::connect(path, Duration::from_secs(2)).await.unwrap();
            let ports = client.ports().await.unwrap();
            ports.iter().any(|row| row.name == port && row.operative)
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.name, self.log());
            eprintln!("{}{}", self.ip("-oneline address show"), self.rules());
        }
        if let Some(netd) = &mut self.netd {
            let _ = netd.process.kill();
            let _ = netd.process.wait();
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
