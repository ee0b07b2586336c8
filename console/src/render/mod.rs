//! What the commands print. Pure: rows and the present instant in, text out.
//!
//! Made for slow serial lines: [`state`] fits 20 lines of 78 columns and 1,000 bytes for a cluster of four nodes and six
//! VIPs, and stays short for larger ones by naming what needs attention and counting the rest.

mod roster;
pub(crate) mod text;

use bus::net1::{NetState, PeerRow, PortRow, VipRow};
use bus::provision1::StateRow;
use proto::control::{
    BootInfo, FenceInfo, FenceState, LogLine, ServiceRow, ServiceState, SystemInfo, WatchInfo, WatchState,
};
pub(crate) use roster::{entry, founded, roster, roster_row, signed};
use std::collections::BTreeMap;
use text::{COLUMNS, age, bytes, clip, list, paragraph, printable, table};

/// VIPs that the state shows; more are counted.
const STATE_VIPS: usize = 10;

/// Lines that a list of ports or peers may take in the state.
const STATE_LIST_LINES: usize = 2;

/// Lines that the reason of a degraded or failing node may take in the state.
const WATCH_LINES: usize = 3;

/// Hex digits of a digest that are enough to compare by eye.
const DIGEST_DIGITS: usize = 8;

/// This boot and the ones before it, the latest first.
pub(crate) fn boot(boot: &BootInfo) -> String {
    let known = |text: &str| if text.is_empty() { "unknown".to_owned() } else { printable(text) };
    let mut out = match boot.count {
        0 => "boot      number unknown".to_owned(),
        count => format!("boot      number {count}"),
    };
    out.push_str(&format!(" from slot {}, id {}\n", known(&boot.slot), known(&boot.boot_id)));
    if !boot.not_recorded.is_empty() {
        out.push_str(&format!("record    not kept on STATE: {}\n", printable(&boot.not_recorded)));
    }
    for entry in boot.history.iter().rev() {
        let end = printable(&entry.ended.to_string());
        out.push_str(&format!("before    {} ran {} s: {end}\n", entry.count, entry.ran_s));
    }
    out.push_str(&format!(
        "resets    {} by the watchdog in the last 10 running minutes\n",
        boot.watchdog_resets
    ));
    if let Some(fault) = &boot.last_fault {
        out.push_str(&format!("fault     in boot {}: {}\n", fault.count, printable(&fault.text)));
    }
    let id = known(&boot.machine_id);
    out.push_str(&format!("machine   {id} from {}\n", known(&boot.machine_id_from)));
    out.push_str(&format!("seed      {}\nclock     {}\n", known(&boot.seed), known(&boot.clock)));
    out
}

/// What [`state`] is made of. A part is `None` when its daemon did not answer; the caller says so itself.
#[derive(Debug, Default)]
pub(crate) struct Overview {
    /// From provisiond.
    pub(crate) provision: Option<StateRow>,
    /// From netd.
    pub(crate) net: Option<NetState>,
    /// From init.
    pub(crate) system: Option<SystemInfo>,
    /// From init.
    pub(crate) services: Option<Vec<ServiceRow>>,
    /// From init.
    pub(crate) watch: Option<WatchInfo>,
}

/// This node at a glance. `now_ms` is `CLOCK_BOOTTIME`.
pub(crate) fn state(overview: &Overview, now_ms: u64) -> String {
    let mut out = String::new();
    if let Some(row) = &overview.provision {
        out.push_str(&identity(row));
    }
    if let Some(system) = &overview.system {
        out.push_str(&machine(system));
    }
    if let Some(watch) = &overview.watch {
        out.push_str(&watch_lines(watch));
    }
    if let Some(net) = &overview.net {
        let ports: Vec<String> = net.ports.iter().map(port_word).collect();
        if !ports.is_empty() {
            out.push_str(&list("ports", &ports, STATE_LIST_LINES));
        }
        out.push_str(&peers_line(&net.peers, now_ms));
        out.push_str(&state_vips(&net.vips, now_ms));
    }
    if let Some(services) = &overview.services {
        out.push_str(&services_line(services));
    }
    out
}

fn line(text: &str) -> String {
    clip(printable(text).trim_end(), COLUMNS) + "\n"
}

fn identity(row: &StateRow) -> String {
    let mut place = Vec::new();
    if !row.cluster.is_empty() {
        place.push(format!("cluster {}", row.cluster));
    }
    if !row.group.is_empty() {
        place.push(format!("group {}", row.group));
    }
    if !row.pair.is_empty() {
        place.push(format!("pair {}", row.pair));
    }
    let name = if row.node.is_empty() { "(no name)" } else { &row.node };
    let digest: String = row.config_digest.chars().take(DIGEST_DIGITS).collect();
    let mut out = line(&format!("node {name}  {}", place.join(", ")));
    if !digest.is_empty() {
        out.push_str(&line(&format!("boot {}, configuration {digest}", row.boot_count)));
    }
    if !row.error.is_empty() {
        out.push_str(&line(&format!("error: {}", row.error)));
    }
    out
}

fn machine(system: &SystemInfo) -> String {
    let release = Release::parse(&system.release);
    let mut parts = vec![format!("release {}", release.version()), format!("up {}", age(system.uptime_ms))];
    match &system.watchdog {
        Some(watchdog) => parts.push(format!("watchdog {}s", watchdog.timeout_s)),
        None => parts.push("no watchdog".to_owned()),
    }
    let disk = match &system.state {
        Some(fs) => format!("STATE {} of {}", bytes(fs.used_bytes), bytes(fs.size_bytes)),
        None => "no STATE".to_owned(),
    };
    let memory = &system.memory;
    let used = memory.total_bytes.saturating_sub(memory.available_bytes);
    let memory = format!("memory {} of {}", bytes(used), bytes(memory.total_bytes));
    line(&parts.join(", ")) + &line(&format!("used: {disk}, {memory}"))
}

/// Nothing as long as the machine does what it is there for.
fn watch_lines(watch: &WatchInfo) -> String {
    match watch.state {
        WatchState::Committed | WatchState::Trial => String::new(),
        WatchState::Withheld => {
            let what = "watchdog withheld, the machine will be reset";
            paragraph(&format!("{what}: {}", watch.reason), WATCH_LINES)
        }
        WatchState::Degraded => paragraph(&format!("degraded: {}", watch.reason), WATCH_LINES),
    }
}

fn port_word(port: &PortRow) -> String {
    match (port.operative, port.reason.as_str()) {
        (true, _) => format!("{} up", port.name),
        (false, "") => format!("{} not operative", port.name),
        (false, reason) => format!("{} {reason}", port.name),
    }
}

fn heard(peer: &PeerRow, now_ms: u64) -> String {
    match (peer.alive, peer.last_heard_ms) {
        (true, _) => "up".to_owned(),
        (false, 0) => "never heard".to_owned(),
        (false, last) => format!("silent {}", age(now_ms.saturating_sub(last))),
    }
}

/// The silent ones first: a list that is cut must not hide them.
fn peers_line(peers: &[PeerRow], now_ms: u64) -> String {
    if peers.is_empty() {
        return String::new();
    }
    let (up, silent): (Vec<&PeerRow>, Vec<&PeerRow>) = peers.iter().partition(|peer| peer.alive);
    let word = |peer: &&PeerRow| format!("{} {}", peer.node, heard(peer, now_ms));
    let words: Vec<String> = silent.iter().chain(&up).map(word).collect();
    list("peers", &words, STATE_LIST_LINES)
}

fn nobody(holder: &str) -> String {
    if holder.is_empty() { "-".to_owned() } else { holder.to_owned() }
}

/// Up to [`STATE_VIPS`] VIPs, those that nobody holds or that carry a note first.
fn state_vips(vips: &[VipRow], now_ms: u64) -> String {
    if vips.is_empty() {
        return String::new();
    }
    let (odd, plain): (Vec<&VipRow>, Vec<&VipRow>) =
        vips.iter().partition(|vip| vip.holder.is_empty() || !vip.note.is_empty());
    let shown: Vec<&VipRow> = if vips.len() <= STATE_VIPS {
        vips.iter().collect()
    } else {
        odd.into_iter().chain(plain).take(STATE_VIPS - 1).collect()
    };
    let rows: Vec<[String; 6]> = shown
        .iter()
        .map(|vip| {
            [
                vip.name.clone(),
                vip.address.clone(),
                vip.state.clone(),
                nobody(&vip.holder),
                vip.next.clone(),
                age(now_ms.saturating_sub(vip.since_ms)),
            ]
        })
        .collect();
    let mut out = table(["VIP", "ADDRESS", "STATE", "HOLDER", "NEXT", "SINCE"], &rows, Some(COLUMNS));
    if shown.len() < vips.len() {
        out.push_str(&line(&format!("{} more; \"show vips\" lists all", vips.len() - shown.len())));
    }
    out
}

fn services_line(services: &[ServiceRow]) -> String {
    let well = |row: &&ServiceRow| matches!(row.state, ServiceState::Ready | ServiceState::Finished);
    let ready = services.iter().filter(well).count();
    let mut words = vec![format!("{ready} ready")];
    words.extend(services.iter().filter(|row| !well(row)).map(|row| format!("{} {}", row.name, row.state)));
    list("services", &words, STATE_LIST_LINES)
}

/// `show ports`.
pub(crate) fn ports(ports: &[PortRow]) -> String {
    if ports.is_empty() {
        return "no ports are configured\n".to_owned();
    }
    let rows: Vec<[String; 7]> = ports
        .iter()
        .map(|port| {
            [
                port.name.clone(),
                if port.interface.is_empty() { "-".to_owned() } else { port.interface.clone() },
                port.network.clone(),
                if port.carrier { "yes".to_owned() } else { "no".to_owned() },
                if port.operative { "operative".to_owned() } else { format!("no: {}", port.reason) },
                port.mac.clone(),
                port.address.clone(),
            ]
        })
        .collect();
    table(["PORT", "LINK", "NETWORK", "CARRIER", "STATE", "MAC", "ADDRESS"], &rows, None)
}

/// `show vips`. `now_ms` is `CLOCK_BOOTTIME`.
pub(crate) fn vips(vips: &[VipRow], now_ms: u64) -> String {
    if vips.is_empty() {
        return "no VIPs are configured\n".to_owned();
    }
    let rows: Vec<[String; 10]> = vips
        .iter()
        .map(|vip| {
            [
                vip.name.clone(),
                vip.address.clone(),
                vip.group.clone(),
                vip.state.clone(),
                nobody(&vip.holder),
                nobody(&vip.next),
                vip.home.clone(),
                vip.epoch.to_string(),
                age(now_ms.saturating_sub(vip.since_ms)),
                vip.note.clone(),
            ]
        })
        .collect();
    let heading = ["VIP", "ADDRESS", "GROUP", "STATE", "HOLDER", "NEXT", "HOME", "MOVES", "SINCE", "NOTE"];
    table(heading, &rows, None)
}

/// `show peers`. `now_ms` is `CLOCK_BOOTTIME`.
pub(crate) fn peers(peers: &[PeerRow], now_ms: u64) -> String {
    if peers.is_empty() {
        return "no other nodes are configured\n".to_owned();
    }
    let rows: Vec<[String; 3]> =
        peers.iter().map(|peer| [peer.node.clone(), heard(peer, now_ms), peer.address.clone()]).collect();
    table(["NODE", "STATE", "ADDRESS"], &rows, None)
}

/// `show fence`. `now_ms` is `CLOCK_BOOTTIME`.
pub(crate) fn fence(fence: &FenceInfo, now_ms: u64) -> String {
    let mut out = match fence.state {
        FenceState::Idle => "no addresses are registered\n".to_owned(),
        _ => {
            let left =
                fence.left_ms.map(|ms| format!("{}.{} s", ms / 1000, ms % 1000 / 100)).unwrap_or_default();
            let rows: Vec<[String; 5]> = fence
                .rows
                .iter()
                .map(|row| {
                    let link = fence.interfaces.get(usize::from(row.interface));
                    [
                        format!("{}/{}", row.address.address, row.address.prefix),
                        link.map(|link| link.name.clone()).unwrap_or_default(),
                        left.clone(),
                        fence.state.to_string(),
                        fence.service.clone().unwrap_or_default(),
                    ]
                })
                .collect();
            table(["ADDRESS", "LINK", "LEFT", "STATE", "SERVICE"], &rows, Some(COLUMNS))
        }
    };
    out.push_str(&line(&format!("fed {} times since boot", fence.feeds)));
    if let Some(last) = &fence.last {
        let ago = age(now_ms.saturating_sub(last.at_ms));
        let (took, deleted, absent) = (last.took_us.div_ceil(1000), last.deleted, last.absent);
        out.push_str(&line(&format!(
            "{ago} ago: {deleted} deleted, {absent} were not there, {took} ms after the deadline"
        )));
    }
    out
}

/// `show services`.
pub(crate) fn services(services: &[ServiceRow]) -> String {
    if services.is_empty() {
        return "no services are configured\n".to_owned();
    }
    let rows: Vec<[String; 7]> = services
        .iter()
        .map(|row| {
            [
                row.name.clone(),
                row.state.to_string(),
                age(row.since_s.saturating_mul(1000)),
                row.pid.map(|pid| pid.to_string()).unwrap_or_default(),
                row.restarts.to_string(),
                row.last_exit.as_ref().map(ToString::to_string).unwrap_or_default(),
                row.detail.clone(),
            ]
        })
        .collect();
    table(["SERVICE", "STATE", "SINCE", "PID", "RESTARTS", "LAST END", "DETAIL"], &rows, None)
}

/// `show log`.
pub(crate) fn log(lines: &[LogLine]) -> String {
    if lines.is_empty() {
        return "nothing was written so far\n".to_owned();
    }
    let mut out = String::new();
    for entry in lines {
        let (s, ms) = (entry.at_ms / 1000, entry.at_ms % 1000);
        // A tab is the one control character that logs use and terminals may keep.
        let text = entry.text.replace('\t', " ");
        out.push_str(&format!("[{s:>6}.{ms:03}] {}\n", printable(&text)));
    }
    out
}

/// The release file's values. It is TOML; the values used here are plain `key = value` lines of its top.
#[derive(Debug, Default)]
pub(crate) struct Release(BTreeMap<String, String>);

impl Release {
    /// Reads what can be read; a damaged file gives fewer values.
    pub(crate) fn parse(text: &str) -> Release {
        let pairs = text.lines().take_while(|line| !line.trim_start().starts_with('[')).filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            Some((key.trim().to_owned(), value.trim().trim_matches('"').to_owned()))
        });
        Release(pairs.collect())
    }

    /// One value, empty when it is missing.
    pub(crate) fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    /// The version, with the flavour when one is named.
    pub(crate) fn version(&self) -> String {
        match (self.get("version"), self.get("flavour")) {
            ("", _) => "unknown".to_owned(),
            (version, "") => version.to_owned(),
            (version, flavour) => format!("{version} ({flavour})"),
        }
    }
}

/// `version`.
pub(crate) fn version(release: &Release) -> String {
    let product = release.get("product");
    let product = if product.is_empty() { "Evenkeel" } else { product };
    let mut out = line(&format!("{product} {}", release.version()));
    let kernel = release.get("kernel");
    if !kernel.is_empty() {
        out.push_str(&line(&format!("kernel {kernel}")));
    }
    out.push_str(&format!("keel {}\n", env!("CARGO_PKG_VERSION")));
    out
}

/// What a shell prints when it starts.
pub(crate) fn banner(node: &str, release: &Release) -> String {
    let node = if node.is_empty() { "a node without a name" } else { node };
    line(&format!("Evenkeel {}, {node}. Type \"help\".", release.version()))
}

#[cfg(test)]
mod tests;
