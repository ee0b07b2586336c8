//! netd's state as the rows of `org.evenkeel.Net1`.

use crate::addressing::Addressing;
use crate::clock::millis_ago;
use crate::ports::PortTable;
use bus::net1::{NetState, PeerRow, PortRow, VipRow};
use bus::{Interfaces, Server};
use netd_core::{Liveness, Snapshot, VipState};
use proto::cluster::{ClusterFile, GroupName};
use proto::status::PortState;
use proto::time::Time;
use std::path::Path;
use tokio::sync::watch;

/// Serves `state` on `path` from now on, in a task of its own.
pub(crate) fn serve(path: &Path, state: watch::Receiver<NetState>) -> Result<(), bus::BindError> {
    let server = Server::bind(path)?;
    let interfaces = Interfaces { net: Some(state), ..Interfaces::default() };
    tokio::spawn(async move {
        // Failover goes on without the bus; the console will say that netd does not answer.
        let Err(error) = server.serve(interfaces).await;
        tracing::error!(%error, "the bus is not served any more");
    });
    Ok(())
}

/// Publishes `new`; readers are woken when more than the times of beats has changed.
pub(crate) fn publish(state: &watch::Sender<NetState>, new: NetState) {
    state.send_if_modified(|current| {
        let news = without_beats(current) != without_beats(&new);
        *current = new;
        news
    });
}

fn without_beats(state: &NetState) -> NetState {
    let mut state = state.clone();
    state.peers.iter_mut().for_each(|peer| peer.last_heard_ms = 0);
    state
}

/// All rows at `now`.
pub(crate) fn rows(
    now: Time,
    snapshot: &Snapshot,
    cluster: &ClusterFile,
    addressing: &Addressing,
    ports: &PortTable,
) -> NetState {
    NetState {
        ports: port_rows(snapshot, addressing, ports),
        vips: vip_rows(now, snapshot, cluster),
        peers: peer_rows(now, snapshot, cluster),
    }
}

fn port_rows(snapshot: &Snapshot, addressing: &Addressing, ports: &PortTable) -> Vec<PortRow> {
    let own = snapshot.ports.iter().filter(|row| row.port.node == snapshot.node);
    own.map(|row| {
        let link = ports.link(&row.port.port);
        let (operative, reason) = match row.state {
            Some(PortState::Operative { .. }) => (true, String::new()),
            Some(PortState::Out(reason)) => (false, reason.to_string()),
            None => (false, "starting".to_owned()),
        };
        PortRow {
            name: row.port.port.0.clone(),
            interface: link.map(|link| link.name.clone()).unwrap_or_default(),
            mac: link.and_then(|link| link.mac).map(|mac| mac.to_string()).unwrap_or_default(),
            network: row.network.0.clone(),
            operative,
            reason,
            carrier: link.is_some_and(|link| link.carrier),
            address: addressing.own_text(&row.port.port),
        }
    })
    .collect()
}

fn vip_rows(now: Time, snapshot: &Snapshot, cluster: &ClusterFile) -> Vec<VipRow> {
    let here = snapshot.vips.iter().map(|row| {
        let holder = row.holder.as_ref();
        let state = match &row.state {
            VipState::Held if holder.is_some_and(|port| port.node == snapshot.node) => "active",
            VipState::Held => "backup",
            VipState::Unheld => "down",
            VipState::Probing => "probing",
            VipState::Claiming { .. } => "claiming",
            VipState::Waiting { .. } => "waiting",
        };
        let row = VipRow {
            name: row.vip.0.clone(),
            address: row.address.to_string(),
            group: snapshot.group.0.clone(),
            network: row.network.0.clone(),
            state: state.to_owned(),
            holder: holder.map(ToString::to_string).unwrap_or_default(),
            epoch: row.epoch,
            since_ms: millis_ago(now, row.since),
            home: row.home.to_string(),
            next: row.next.as_ref().map(ToString::to_string).unwrap_or_default(),
            note: note(row),
        };
        (row.name.clone(), row)
    });
    let elsewhere = cluster.vips.iter().filter(|(_, vip)| vip.group != snapshot.group).map(|(name, vip)| {
        let row = VipRow {
            name: name.0.clone(),
            address: vip.address.to_string(),
            group: vip.group.0.clone(),
            network: vip.network.0.clone(),
            state: "elsewhere".to_owned(),
            home: vip.home.to_string(),
            note: format!("ask a node of group {}", group_text(&vip.group)),
            ..VipRow::default()
        };
        (row.name.clone(), row)
    });
    let all: std::collections::BTreeMap<String, VipRow> = here.chain(elsewhere).collect();
    all.into_values().collect()
}

fn group_text(group: &GroupName) -> &str {
    &group.0
}

/// The most urgent thing to know of a VIP.
fn note(row: &netd_core::VipRow) -> String {
    match (&row.state, &row.conflict, &row.next) {
        (VipState::Waiting { cause, .. }, ..) => cause.to_string(),
        (VipState::Claiming { unseen_by }, ..) => {
            let names: Vec<&str> = unseen_by.iter().map(|node| node.0.as_str()).collect();
            format!("until {} know", names.join(", "))
        }
        (_, Some(conflict), _) => format!("also claimed by {} ({} times)", conflict.mac, conflict.times),
        (_, None, Err(reason)) => format!("no successor: {reason}"),
        (_, None, Ok(_)) => String::new(),
    }
}

/// The nodes of the own group: of others nothing is known here.
fn peer_rows(now: Time, snapshot: &Snapshot, cluster: &ClusterFile) -> Vec<PeerRow> {
    let rows = snapshot.peers.iter().map(|row| PeerRow {
        node: row.node.0.clone(),
        alive: matches!(row.liveness, Liveness::Alive | Liveness::Suspect),
        last_heard_ms: row.heard.map(|ago| millis_ago(now, ago)).unwrap_or(0),
        address: cluster.management_address(&row.node).map(|a| a.to_string()).unwrap_or_default(),
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(last_heard_ms: u64, alive: bool) -> NetState {
        let peer = PeerRow { node: "a2".into(), alive, last_heard_ms, address: String::new() };
        NetState { peers: vec![peer], ..NetState::default() }
    }

    #[test]
    fn beats_alone_wake_nobody() {
        let (sender, mut receiver) = watch::channel(state(1, true));
        receiver.mark_unchanged();
        publish(&sender, state(2, true));
        assert!(!receiver.has_changed().unwrap());
        assert_eq!(receiver.borrow().peers[0].last_heard_ms, 2, "but are told to who asks");
        publish(&sender, state(2, false));
        assert!(receiver.has_changed().unwrap());
    }
}
