//! Real QEMU processes that get no further than their firmware: control, power, and that nothing outlives its owner.

use lab::accel::Accel;
use lab::control::{Client, LabStatus, Reply, Request};
use lab::lab::{Lab, LabSpec};
use lab::machine::State;
use lab::serial::Position;
use lab::up;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
/// The firmware's first words on the serial line, whatever it finds to start.
const FIRMWARE: &str = "BdsDxe";

const CLUSTER: &str = r#"
schema = 1
cluster = "t"
[networks]
data = { v4 = "10.9.0.0/24" }
mgmt = { v4 = "10.8.0.0/24" }
[[node]]
name = "n1"
group = "g"
port = [
  { name = "p1", match = "pci:00:10.0", network = "data" },
  { name = "m", match = "mac:52:54:00:09:00:0a", network = "mgmt", v4 = "10.8.0.11" },
]
[[vip]]
name = "web"
group = "g"
network = "data"
address = "10.9.0.100"
home = "n1:p1"
"#;

/// A directory with an empty disk, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path = std::env::temp_dir().join(format!("ek-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("temporary directory");
        std::fs::File::create(path.join("empty.raw")).and_then(|f| f.set_len(1 << 20)).expect("a disk");
        Place(path)
    }

    fn spec(&self) -> LabSpec {
        LabSpec {
            name: "t".into(),
            root: self.0.join("r"),
            cluster_path: "t.toml".into(),
            cluster: CLUSTER.into(),
            base: self.0.join("empty.raw"),
            accel: Accel::Tcg,
            keep: false,
            throw_away: true,
            starting_at_once: 1,
            measure: false,
            variants: BTreeMap::new(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn alive(pid: u32) -> bool {
    // A zombie is no longer alive, whoever has to reap it.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

#[test]
fn a_machine_obeys_and_ends_with_its_lab() {
    let place = Place::new("obeys");
    let lab = Lab::start(place.spec()).expect("started");
    lab.unplug("n1:p1").expect("before power on");
    lab.power_on("n1").expect("on");
    let serial = lab.serial("n1").expect("a node");
    serial.wait_for(Position::default(), FIRMWARE, LIMIT).expect("the firmware speaks");
    lab.freeze("n1").expect("frozen");
    assert_eq!(lab.power("n1").expect("a node").state, State::Frozen);
    lab.thaw("n1").expect("thawed");
    lab.plug("n1:p1").expect("plugged");
    lab.unplug("n1:m").expect("unplugged");
    assert_eq!(lab.status().nodes[0].ports, ["m!", "p1"]);

    let first = lab.power("n1").expect("a node");
    lab.power_off("n1").expect("off");
    assert!(!alive(first.pid.expect("it ran")));
    let off = lab.power("n1").expect("a node").state;
    assert_eq!(off, State::Off { reason: "power cut".into() });
    let mark = serial.position();
    lab.power_on("n1").expect("on again");
    serial.wait_for(mark, FIRMWARE, LIMIT).expect("the firmware speaks again");
    let second = lab.power("n1").expect("a node");
    assert_eq!((second.starts, second.boot), (2, mark));
    assert_eq!(lab.status().nodes[0].ports, ["m!", "p1"], "links stay as they were");

    for (error, part) in [
        (lab.power_on("n9").expect_err("unknown"), "nodes: n1"),
        (lab.unplug("n1:p9").expect_err("unknown"), "ports: n1:m n1:p1"),
        (lab.mark("nowhere").expect_err("unknown"), "VIPs: web"),
    ] {
        assert!(error.to_string().contains(part), "{error}");
    }
    let pid = second.pid.expect("it runs");
    let dir = lab.dir().to_owned();
    drop(lab);
    assert!(!alive(pid) && !dir.exists());
}

/// A supervisor with a started lab, as `up` makes it.
fn supervisor(place: &Place) -> (Child, Client, LabStatus) {
    let (ours, theirs) = UnixStream::pair().expect("socket pair");
    let process = Command::new(env!("CARGO_BIN_EXE_lab"))
        .arg("supervise")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("spawned");
    let mut owner = Client::over(ours, "t");
    owner.call(&Request::Start { spec: place.spec() }, LIMIT).expect("started");
    let mut commands = Client::connect(&place.0.join("r"), "t").expect("its control socket is there");
    let hub = lab::events::Hub::default();
    let status = hub.wait(LIMIT, Duration::from_millis(20), || {
        let status = up::ask_status(&mut commands).expect("status");
        status.nodes[0].pid.is_some().then_some(status)
    });
    (process, owner, status.expect("the node is started"))
}

fn gone(pid: u32) -> bool {
    let hub = lab::events::Hub::default();
    hub.wait(LIMIT, Duration::from_millis(5), || (!alive(pid)).then_some(())).is_some()
}

#[test]
fn a_lab_without_its_owner_ends_unless_detached() {
    let place = Place::new("owner");
    let (mut process, owner, status) = supervisor(&place);
    let error = Client::connect(&place.0.join("r"), "t")
        .and_then(|mut c| {
            c.call(&Request::Keel { node: "n9".into(), command: "show".into(), limit_s: 1 }, LIMIT)
        })
        .expect_err("no such node");
    assert!(error.to_string().contains("nodes: n1"), "{error}");
    drop(owner);
    assert!(process.wait().expect("ended").success());
    assert!(!alive(status.nodes[0].pid.expect("it ran")));
    assert!(!PathBuf::from(&status.dir).exists());

    let (mut process, mut owner, status) = supervisor(&place);
    assert_eq!(owner.call(&Request::Detach, LIMIT).expect("detached"), Reply::Done("detached".into()));
    drop(owner);
    let mut commands = Client::connect(&place.0.join("r"), "t").expect("it goes on");
    assert_eq!(up::ask_status(&mut commands).expect("status").nodes[0].pid, status.nodes[0].pid);
    commands.call(&Request::Down, LIMIT).expect("ending");
    commands.wait_end(LIMIT).expect("ended");
    assert!(process.wait().expect("ended").success());
    assert!(!alive(status.nodes[0].pid.expect("it ran")));
}

#[test]
fn a_killed_supervisor_takes_its_machines_along_and_the_next_lab_cleans_up() {
    let place = Place::new("killed");
    let (mut process, _owner, status) = supervisor(&place);
    let pid = status.nodes[0].pid.expect("it runs");
    assert!(alive(pid));
    process.kill().expect("killed");
    process.wait().expect("reaped");
    assert!(gone(pid), "the kernel ends the machine with the supervisor");
    assert!(PathBuf::from(&status.dir).exists(), "nobody was left to clean up");
    let next = Lab::start(LabSpec { name: "next".into(), ..place.spec() }).expect("started");
    assert!(!PathBuf::from(&status.dir).exists());
    drop(next);
}
