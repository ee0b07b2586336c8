//! What scenarios run on, started when the first one needs it and ended when the next one needs something else.

use crate::world::{Outcome, Owners, World, settle, told};
use lab::dir;
use lab::error::LabError;
use lab::lab::{Lab, LabSpec, test_name};
use lab::prepare::{self, Prepared};
use lab::progress::Terminal;
use lab::variant::{Hardware, Variant};
use lab::{signals, test_command};
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// The only node of a lab of one node.
pub(crate) const NODE: &str = "n1";
/// From power on, or from the last scenario's end, to a node that serves.
const NODE_LIMIT: Duration = Duration::from_secs(120);

/// One node, alone in its cluster, with one VIP.
const ALONE: &str = r#"
schema = 1
cluster = "alone"
timing = { preset = "lab" }
[networks]
data = { v4 = "10.9.0.0/24" }
mgmt = { v4 = "10.8.0.0/24" }
[[node]]
name = "n1"
group = "g"
port = [
  { name = "p1", match = "pci:00:10.0", network = "data" },
  { name = "m", match = "pci:00:11.0", network = "mgmt", v4 = "10.8.0.11" },
]
[[vip]]
name = "web"
group = "g"
network = "data"
address = "10.9.0.100"
home = "n1:p1"
"#;

/// A scenario that was run: what it measured or why it failed, and what was seen of the cluster's VIPs meanwhile.
pub(crate) type Played = (Result<String, String>, Option<Owners>);

/// The labs there are: at most one at a time.
pub(crate) struct Stage {
    prepared: Prepared,
    /// The same with an image for real hardware, once a scenario has asked for it.
    generic: Option<Prepared>,
    /// The cluster, or why there is none.
    world: Option<Result<World, String>>,
    node: Option<Arc<Lab>>,
}

impl Stage {
    pub(crate) fn new(prepared: Prepared) -> Stage {
        Stage { prepared, generic: None, world: None, node: None }
    }

    /// Runs a scenario on the cluster. One that did not come up is not tried again.
    pub(crate) fn cluster(&mut self, name: &str, scenario: fn(&World) -> Outcome) -> Played {
        self.node = None;
        let prepared = &self.prepared;
        let world = match self.world.get_or_insert_with(|| boot_cluster(prepared)) {
            Ok(world) => world,
            Err(why) => return (Err(format!("no cluster: {why}")), None),
        };
        let outcome = guarded(|| {
            settle(world)?;
            scenario(world)
        });
        let counted = world.mark();
        let owners = world.owners.take();
        let result = match (outcome, counted) {
            (Ok(_), Ok(())) if owners.doubles > 0 => {
                let vips: Vec<&str> = owners.doubled.iter().map(String::as_str).collect();
                Err(format!("two stations answered for {}: see the events", vips.join(" ")))
            }
            (Ok(_), Ok(())) if owners.samples == 0 => Err("no VIP's owner was ever seen".to_owned()),
            (Ok(text), Ok(())) => Ok(text),
            (Ok(_), Err(error)) => Err(error.chain()),
            (Err(why), _) => Err(why),
        };
        if result.is_err() {
            keep_logs(&world.lab, name);
        }
        (result, Some(owners))
    }

    /// Runs a scenario on a node of its own.
    pub(crate) fn new_node(&mut self, name: &str, variant: Variant, scenario: fn(&Lab) -> Outcome) -> Played {
        (self.world, self.node) = (None, None);
        let lab = self.image_for(&variant).and_then(|prepared| alone(&prepared, variant));
        let result = lab.map_err(|e| e.chain()).and_then(|lab| {
            let result = guarded(|| scenario(&lab));
            if result.is_err() {
                keep_logs(&lab, name);
            }
            result
        });
        (result, None)
    }

    /// What a machine boots: the generic image where it has real hardware's devices.
    fn image_for(&mut self, variant: &Variant) -> Result<Prepared, LabError> {
        if variant.hardware == Hardware::Virtio {
            return Ok(self.prepared.clone());
        }
        if let Some(generic) = &self.generic {
            return Ok(generic.clone());
        }
        let generic = prepare::generic(&self.prepared, &mut Terminal::default())?;
        self.generic = Some(generic.clone());
        Ok(generic)
    }

    /// Runs a scenario on the shared node. After a failure the next one gets a new node.
    pub(crate) fn node(&mut self, name: &str, scenario: fn(&Lab) -> Outcome) -> Played {
        self.world = None;
        let lab = match self.node.take().map_or_else(|| alone(&self.prepared, Variant::default()), Ok) {
            Ok(lab) => lab,
            Err(error) => return (Err(error.chain()), None),
        };
        let result = guarded(|| {
            serve(&lab)?;
            scenario(&lab)
        });
        match result.is_ok() {
            true => self.node = Some(lab),
            false => keep_logs(&lab, name),
        }
        (result, None)
    }
}

/// Runs a part of a scenario: its error in words, a panic as an error too.
fn guarded(part: impl FnOnce() -> Outcome) -> Result<String, String> {
    match catch_unwind(AssertUnwindSafe(part)) {
        Ok(outcome) => outcome.map_err(|error| told(error.as_ref())),
        Err(_) => Err("panicked, see above".to_owned()),
    }
}

fn boot_cluster(prepared: &Prepared) -> Result<World, String> {
    let lab = LabSpec::demo(&test_name(), prepared).and_then(start).map_err(|e| e.chain())?;
    let since = Instant::now();
    match lab.boot().and_then(|()| lab.wait_for_vips()) {
        Ok(()) => Ok(World::new(lab, since.elapsed())),
        Err(error) => {
            keep_logs(&lab, "boot");
            Err(error.chain())
        }
    }
}

/// A lab of one node, switched off.
fn alone(prepared: &Prepared, variant: Variant) -> Result<Arc<Lab>, LabError> {
    start(LabSpec {
        cluster: ALONE.into(),
        cluster_path: "alone.toml".into(),
        root: dir::default_root(),
        variants: [(NODE.to_owned(), variant)].into(),
        ..LabSpec::demo(&test_name(), prepared)?
    })
}

/// Sees to it that the shared node runs, shows its prompt and serves.
fn serve(lab: &Lab) -> Result<(), LabError> {
    lab.serial(NODE)?.hold(false);
    lab.power_on(NODE)?;
    lab.expect_within(NODE_LIMIT, "the node's prompt", || lab.has_prompt(NODE))?;
    lab.wait_for_vips()
}

/// Labs to end when the test is told to.
static LABS: Mutex<Vec<Weak<Lab>>> = Mutex::new(Vec::new());

fn start(spec: LabSpec) -> Result<Arc<Lab>, LabError> {
    // Held while it starts: a signal then waits until there is something to end.
    let mut labs = LABS.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = Arc::new(Lab::start(spec)?);
    labs.push(Arc::downgrade(&lab));
    Ok(lab)
}

/// Ctrl-C ends the machines and removes the directories before it ends the test.
pub(crate) fn end_on_signals() -> Result<(), Box<dyn Error>> {
    let signals = signals::ending()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let _ = signals.read_signal();
        let labs = LABS.lock().unwrap_or_else(PoisonError::into_inner);
        labs.iter().filter_map(Weak::upgrade).for_each(|lab| lab.stop());
        eprintln!("interrupted");
        std::process::exit(1);
    })?;
    Ok(())
}

fn keep_logs(lab: &Lab, name: &str) {
    let to = test_command::failure_dir().join(name);
    match lab.keep_logs(&to) {
        Ok(()) => eprintln!("logs and capture: {}", to.display()),
        Err(error) => eprintln!("{}", error.chain()),
    }
}
