//! One node's machine: a QEMU process, started again whenever the guest resets, owned by one thread.
//!
//! ```text
//!            power_on                      cont                    SHUTDOWN guest-reset, exit
//!   Off ────────────────> Starting (-S) ───────────> Running ──────────────────────────────┐
//!    ^                        ^                      │  ^ │                               │
//!    │                        │                 stop v  │ │ cont                          │
//!    │                        │                    Frozen                                 │
//!    │                        └───────────────────────────────────────────────────────────┘
//!    └── power_off (SIGKILL), guest-shutdown, QEMU died
//! ```
//! A machine that resets in place goes from Running to Running: the next run is in the same process.
//!
//! The kernel kills a child bound to a thread when that thread ends: the owning thread lives as long as the lab, so
//! nothing outlives it, not even when the lab's process is killed. Unplugged links stay unplugged over restarts.

use crate::agent::Agent;
use crate::arguments::{AGENT_PORT, Descriptors, FAULTS_PORT, MachineSpec, PLUGGED_IN, arguments};
use crate::error::LabError;
use crate::events::Hub;
use crate::qmp::{Qmp, QmpEvent};
use crate::serial::{Position, Serial};
use crate::sys::{self, Waited};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The program.
pub const QEMU: &str = "qemu-system-x86_64";
/// QEMU answers within milliseconds; while many of them start on few cores it may take seconds.
const CONTROL_LIMIT: Duration = Duration::from_secs(20);
/// A process that was killed is gone when the kernel has taken its memory back.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Whether the machine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not running, and why.
    Off {
        /// "never started", "power cut", "shut down by the node", …
        reason: String,
    },
    /// Running.
    On,
    /// Stopped between two instructions; its clocks stand still.
    Frozen,
}

/// How the guest ended a run of its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunEnd {
    /// Which run: the value of [`Status::starts`] while it lasted.
    pub run: u32,
    /// QEMU's word: `guest-reset`, `guest-shutdown`, `guest-panic`.
    pub reason: String,
    /// The watchdog had run out before.
    pub watchdog: bool,
    /// Since the machine was started.
    pub after: Duration,
}

/// What is known about a machine.
#[derive(Clone, Debug)]
pub struct Status {
    /// Whether it runs.
    pub state: State,
    /// QEMU's process, when there is one.
    pub pid: Option<u32>,
    /// How often it was started in this lab, by power or by reset.
    pub starts: u32,
    /// When it was started last.
    pub since: Instant,
    /// Where its console stood then.
    pub boot: Position,
    /// How the guest ended the last run that it ended itself; a power cut is none.
    pub last_end: Option<RunEnd>,
    /// Ports whose cable is unplugged, by device id.
    pub unplugged: BTreeSet<String>,
}

/// What a person can do at a machine's front, and one thing a debugger does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Press {
    /// The power button, briefly.
    Power,
    /// Ctrl-Alt-Del on the keyboard.
    CtrlAltDel,
    /// The NMI button: what the kernel makes of it is its own affair.
    Nmi,
}

impl Press {
    /// What is told of it.
    pub fn word(self) -> &'static str {
        match self {
            Press::Power => "power button pressed",
            Press::CtrlAltDel => "Ctrl-Alt-Del pressed",
            Press::Nmi => "NMI button pressed",
        }
    }

    /// QEMU's command with its arguments.
    fn command(self) -> (&'static str, serde_json::Value) {
        let key = |name: &str| json!({ "type": "qcode", "data": name });
        match self {
            Press::Power => ("system_powerdown", json!({})),
            Press::CtrlAltDel => ("send-key", json!({ "keys": [key("ctrl"), key("alt"), key("delete")] })),
            Press::Nmi => ("inject-nmi", json!({})),
        }
    }
}

enum Order {
    On,
    Off,
    Freeze,
    Thaw,
    Press(Press),
    Link { nic: String, up: bool },
    PlugIn,
    Quit,
}

enum Input {
    Order(Order, SyncSender<Result<(), LabError>>),
    Qmp { life: u32, event: QmpEvent },
}

/// A handle on one machine. Dropping it ends the machine.
#[derive(Debug)]
pub struct Machine {
    name: String,
    inputs: Sender<Input>,
    status: Arc<Mutex<Status>>,
    /// Its serial line.
    pub serial: Arc<Serial>,
    /// Its second one, when its variant has it.
    pub second_serial: Option<Arc<Serial>>,
    /// Its command port.
    pub agent: Arc<Agent>,
    /// The port of `lab-fault`, which speaks the agent's lines.
    pub faults: Arc<Agent>,
    thread: Option<JoinHandle<()>>,
}

impl Machine {
    /// Makes the machine ready in `dir`, switched off.
    pub fn new(spec: MachineSpec, dir: &Path, hub: Arc<Hub>) -> Result<Machine, LabError> {
        let name = spec.node.clone();
        let serial = Serial::open(&name, dir, "con")?;
        let second_serial = match spec.second_serial {
            true => Some(Serial::open(&name, dir, "con2")?),
            false => None,
        };
        let (agent, faults) = (Arc::new(Agent::default()), Arc::new(Agent::default()));
        let status = Arc::new(Mutex::new(Status {
            state: State::Off { reason: "never started".into() },
            pid: None,
            starts: 0,
            since: Instant::now(),
            boot: Position::default(),
            last_end: None,
            unplugged: BTreeSet::new(),
        }));
        let (inputs, queue) = channel();
        let owner = Owner {
            spec,
            dir: dir.to_owned(),
            hub,
            serial: Arc::clone(&serial),
            second_serial: second_serial.clone(),
            agent: Arc::clone(&agent),
            faults: Arc::clone(&faults),
            status: Arc::clone(&status),
            inputs: inputs.clone(),
            running: None,
            life: 0,
        };
        let thread = std::thread::Builder::new()
            .name(format!("machine {name}"))
            .spawn(move || owner.run(&queue))
            .map_err(LabError::io("start a thread"))?;
        Ok(Machine { name, inputs, status, serial, second_serial, agent, faults, thread: Some(thread) })
    }

    /// What is known about it now.
    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts it; nothing happens when it runs.
    pub fn power_on(&self) -> Result<(), LabError> {
        self.order(Order::On)
    }

    /// Cuts its power: what the guest had not written to its disk is lost.
    pub fn power_off(&self) -> Result<(), LabError> {
        self.order(Order::Off)
    }

    /// Stops its processor and its clocks.
    pub fn freeze(&self) -> Result<(), LabError> {
        self.order(Order::Freeze)
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<(), LabError> {
        self.order(Order::Thaw)
    }

    /// Presses a button; returns when the machine has it, not when the guest has acted on it.
    pub fn press(&self, press: Press) -> Result<(), LabError> {
        self.order(Order::Press(press))
    }

    /// Plugs a cable in or out: the guest sees its carrier change within 10 ms.
    pub fn link(&self, nic: &str, up: bool) -> Result<(), LabError> {
        self.order(Order::Link { nic: nic.to_owned(), up })
    }

    /// Puts a device into its free slot; the guest notices in its own time.
    pub fn plug_in(&self) -> Result<(), LabError> {
        self.order(Order::PlugIn)
    }

    /// Ends it for good: every later order is refused.
    pub fn stop(&self) {
        let _ = self.order(Order::Quit);
        self.serial.close();
        if let Some(second) = &self.second_serial {
            second.close();
        }
    }

    fn order(&self, order: Order) -> Result<(), LabError> {
        let gone = || LabError::Machine { node: self.name.clone(), what: "the lab is ending".into() };
        let (reply, answer) = sync_channel(1);
        self.inputs.send(Input::Order(order, reply)).map_err(|_| gone())?;
        // Every step of the owner has its own deadline; this one only guards against its death.
        answer.recv_timeout(4 * CONTROL_LIMIT).map_err(|_| gone())?
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Running {
    child: Child,
    qmp: Qmp,
    /// The watchdog has run out.
    watchdog: bool,
    /// Why the guest ended, once it has said so.
    ended: Option<String>,
}

/// The thread's side.
struct Owner {
    spec: MachineSpec,
    dir: PathBuf,
    hub: Arc<Hub>,
    serial: Arc<Serial>,
    second_serial: Option<Arc<Serial>>,
    agent: Arc<Agent>,
    faults: Arc<Agent>,
    status: Arc<Mutex<Status>>,
    inputs: Sender<Input>,
    running: Option<Running>,
    /// Counts processes: events of an earlier one are not this one's.
    life: u32,
}

impl Owner {
    fn run(mut self, queue: &Receiver<Input>) {
        while let Ok(input) = queue.recv() {
            match input {
                Input::Order(Order::Quit, reply) => {
                    self.end("the lab ended");
                    let _ = reply.send(Ok(()));
                    return;
                }
                Input::Order(order, reply) => {
                    let _ = reply.send(self.obey(order));
                }
                Input::Qmp { life, event } if life == self.life => self.heard(event),
                Input::Qmp { .. } => {}
            }
        }
    }

    fn obey(&mut self, order: Order) -> Result<(), LabError> {
        match order {
            Order::On if self.running.is_some() => match self.frozen() {
                true => Err(self.error("it is frozen: thaw it".into())),
                false => Ok(()),
            },
            Order::On => self.start("power on"),
            Order::Off | Order::Quit => {
                if self.running.is_some() {
                    self.end("power cut");
                }
                Ok(())
            }
            Order::Freeze => {
                self.control("stop", &json!({}))?;
                self.update(|s| s.state = State::Frozen);
                self.tell("frozen");
                Ok(())
            }
            Order::Thaw => {
                self.control("cont", &json!({}))?;
                self.update(|s| s.state = State::On);
                self.tell("thawed");
                Ok(())
            }
            Order::Press(press) => {
                let (command, arguments) = press.command();
                self.control(command, &arguments)?;
                self.tell(press.word());
                Ok(())
            }
            Order::PlugIn => {
                let device = PLUGGED_IN.into_iter().map(|(key, value)| (key.to_owned(), value.into()));
                self.control("device_add", &serde_json::Value::Object(device.collect()))?;
                self.tell("keys plugged in");
                Ok(())
            }
            Order::Link { nic, up } => {
                if !self.spec.nics.iter().any(|n| n.id == nic) {
                    return Err(self.error(format!("has no interface {nic}")));
                }
                if self.running.is_some() {
                    self.control("set_link", &json!({ "name": nic, "up": up }))?;
                }
                self.tell(&format!(
                    "{} {}",
                    nic.trim_start_matches("nic-"),
                    if up { "plugged" } else { "unplugged" }
                ));
                self.update(|s| {
                    if up {
                        s.unplugged.remove(&nic);
                    } else {
                        s.unplugged.insert(nic);
                    }
                });
                Ok(())
            }
        }
    }

    fn heard(&mut self, event: QmpEvent) {
        match event {
            QmpEvent::Shutdown { reason } => {
                let Some(running) = &mut self.running else { return };
                running.ended = Some(reason.clone());
                self.run_ended(reason);
            }
            // One that QEMU makes for itself ends no run: the guest is at its beginning.
            QmpEvent::Reset { reason } if reason.starts_with("guest-") => {
                if self.running.is_some() {
                    self.run_ended(reason);
                    self.run_began(self.serial.position());
                    self.tell("reset in place");
                }
            }
            QmpEvent::Watchdog => {
                if let Some(running) = &mut self.running {
                    running.watchdog = true;
                }
                self.tell("the watchdog ran out");
            }
            QmpEvent::Closed => {
                let Some(running) = self.running.as_ref() else { return };
                match running.ended.as_deref() {
                    Some("guest-reset") => {
                        self.end("restarting");
                        if let Err(error) = self.start("restart") {
                            self.tell(&format!("cannot restart: {}", error.chain()));
                        }
                    }
                    Some("guest-shutdown") => self.end("shut down by the node"),
                    Some(reason) => self.end(&format!("ended: {reason}")),
                    None => {
                        let words = last_words(&self.dir.join("qemu.log"));
                        self.end(&format!("QEMU died{words}"));
                    }
                }
            }
            QmpEvent::PortClosed { id } if id == AGENT_PORT => self.agent.lost(),
            QmpEvent::PortClosed { id } if id == FAULTS_PORT => self.faults.lost(),
            QmpEvent::Reset { .. } | QmpEvent::PortClosed { .. } | QmpEvent::Other(_) => {}
        }
    }

    fn run_ended(&mut self, reason: String) {
        let watchdog = self.running.as_mut().is_some_and(|running| std::mem::take(&mut running.watchdog));
        self.tell(&format!("the guest ended its run: {reason}"));
        self.update(|s| {
            s.last_end = Some(RunEnd { run: s.starts, reason, watchdog, after: s.since.elapsed() });
        });
    }

    /// A run begins; `boot` is where the console stood.
    fn run_began(&self, boot: Position) {
        self.update(|s| {
            s.state = State::On;
            s.starts += 1;
            s.since = Instant::now();
            s.boot = boot;
        });
    }

    fn start(&mut self, why: &str) -> Result<(), LabError> {
        self.life += 1;
        let boot = self.serial.position();
        let started = self.launch();
        match started {
            Ok(running) => {
                let pid = running.child.id();
                self.running = Some(running);
                self.update(|s| s.pid = Some(pid));
                self.run_began(boot);
                self.tell(why);
                Ok(())
            }
            Err(error) => {
                let reason = error.chain();
                self.update(|s| s.state = State::Off { reason });
                Err(error)
            }
        }
    }

    fn launch(&self) -> Result<Running, LabError> {
        let failed = |what: &str| LabError::io(format!("{what} for node {}", self.spec.node));
        let pair = || UnixStream::pair().map_err(failed("make sockets"));
        let ((control, control_end), (console, console_end), (agent, agent_end)) =
            (pair()?, pair()?, pair()?);
        let (faults, faults_end) = pair()?;
        let second = self.second_serial.as_ref().map(|_| pair()).transpose()?;
        let fds = Descriptors {
            control: control_end.as_raw_fd(),
            console: console_end.as_raw_fd(),
            second_serial: second.as_ref().map(|(_, end)| end.as_raw_fd()),
            agent: agent_end.as_raw_fd(),
            faults: faults_end.as_raw_fd(),
        };
        for nic in &self.spec.nics {
            let _ = std::fs::remove_file(&nic.machine_end); // of the process before
        }
        let log_path = self.dir.join("qemu.log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(LabError::io(format!("open {}", log_path.display())))?;
        let mut command = Command::new(QEMU);
        command.args(arguments(&self.spec, fds)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let (second, second_end) = second.unzip();
        let ends = [control_end, console_end, agent_end, faults_end].into_iter().chain(second_end);
        sys::bind_to_thread(&mut command, ends.map(OwnedFd::from).collect());
        let mut child = command.spawn().map_err(LabError::io(format!("start {QEMU}")))?;
        drop(command); // closes our copies of the machine's ends: otherwise its death would go unnoticed

        let ready = || -> Result<Qmp, LabError> {
            self.serial.attach(console).map_err(failed("read the console"))?;
            if let (Some(serial), Some(second)) = (&self.second_serial, second) {
                serial.attach(second).map_err(failed("read the second serial line"))?;
            }
            self.agent.attach(agent).map_err(failed("read the command port"))?;
            self.faults.attach(faults).map_err(failed("read the fault port"))?;
            let (inputs, life) = (self.inputs.clone(), self.life);
            let mut qmp = Qmp::start(control, CONTROL_LIMIT, move |event| {
                // Nobody listens any more when the lab is ending.
                let _ = inputs.send(Input::Qmp { life, event });
            })
            .map_err(|e| self.error(e.to_string()))?;
            let unplugged = self.status.lock().unwrap_or_else(PoisonError::into_inner).unplugged.clone();
            for nic in unplugged {
                let arguments = json!({ "name": nic, "up": false });
                qmp.execute("set_link", &arguments, CONTROL_LIMIT).map_err(|e| self.error(e.to_string()))?;
            }
            qmp.execute("cont", &json!({}), CONTROL_LIMIT).map_err(|e| self.error(e.to_string()))?;
            Ok(qmp)
        };
        match ready() {
            Ok(qmp) => Ok(Running { child, qmp, watchdog: false, ended: None }),
            Err(error) => {
                let _ = child.kill();
                let _ = sys::wait_child(&mut child, END_LIMIT, None);
                self.agent.detach();
                self.faults.detach();
                let words = last_words(&log_path);
                Err(if words.is_empty() { error } else { self.error(format!("QEMU did not start{words}")) })
            }
        }
    }

    /// Ends the process, which may have ended by itself.
    fn end(&mut self, reason: &str) {
        let Some(mut running) = self.running.take() else { return };
        // After a guest's own end QEMU has closed its disks before its sockets; killing it then is harmless.
        let _ = running.child.kill();
        if !matches!(sys::wait_child(&mut running.child, END_LIMIT, None), Ok(Waited::Ended(_))) {
            self.tell("its QEMU process does not go away");
        }
        self.agent.detach();
        self.faults.detach();
        for nic in &self.spec.nics {
            let _ = std::fs::remove_file(&nic.machine_end); // QEMU leaves them
        }
        self.update(|s| {
            s.state = State::Off { reason: reason.to_owned() };
            s.pid = None;
        });
        self.tell(reason);
    }

    fn control(&mut self, command: &str, arguments: &serde_json::Value) -> Result<(), LabError> {
        let Some(running) = &mut self.running else {
            return Err(self.error("it is off: power it on first".into()));
        };
        let result = running.qmp.execute(command, arguments, CONTROL_LIMIT);
        result.map(|_| ()).map_err(|e| self.error(e.to_string()))
    }

    fn frozen(&self) -> bool {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).state == State::Frozen
    }

    fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn tell(&self, what: &str) {
        self.hub.tell(&self.spec.node, what);
    }

    fn error(&self, what: String) -> LabError {
        LabError::Machine { node: self.spec.node.clone(), what }
    }
}

/// The last line of a log with a separator in front, or nothing.
fn last_words(log: &Path) -> String {
    let Ok(mut file) = File::open(log) else { return String::new() };
    let mut text = String::new();
    // QEMU says a line or two; a log that grew beyond this is not worth reading whole.
    let _ = file.by_ref().take(256 * 1024).read_to_string(&mut text);
    text.lines()
        .rfind(|line| !line.trim().is_empty())
        .map(|line| format!(": {}", line.trim()))
        .unwrap_or_default()
}
