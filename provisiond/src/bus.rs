//! What `org.evenkeel.Provision1` shows, put together from what the driver has found.

use crate::config::{Configuration, public_key};
use crate::personality::Source;
use crate::roster::Keeper;
use bus::provision1::{MemberRow, ProvisionState, RosterRow, StateRow};
use proto::personality::Personality;
use proto::record::NodeRecord;
use proto::text::{hex, one_line};

/// Everything known at the moment; what is not known shows as empty.
#[derive(Default)]
pub(crate) struct View<'a> {
    pub(crate) personality: Option<(Source, &'a Personality)>,
    pub(crate) configuration: Option<&'a Configuration>,
    pub(crate) record: Option<&'a NodeRecord>,
    pub(crate) boot_id: &'a str,
    pub(crate) version: &'a str,
    /// Why the node cannot serve or remember, one reason per line.
    pub(crate) errors: &'a [String],
    pub(crate) roster: Option<&'a Keeper>,
}

impl View<'_> {
    /// The row clients read.
    pub(crate) fn state(&self) -> ProvisionState {
        let cluster = self.configuration.map(|c| &c.cluster);
        let node = self.configuration.and_then(|c| c.cluster.nodes.get(&c.node));
        let personality = self.personality.map(|(_, p)| p);
        let row = StateRow {
            node: personality.map(|p| p.node.to_string()).unwrap_or_default(),
            cluster: cluster.map(|c| c.cluster.clone()).unwrap_or_default(),
            group: node.map(|n| n.group.to_string()).unwrap_or_default(),
            pair: node.and_then(|n| n.pair.as_ref()).map(|p| p.to_string()).unwrap_or_default(),
            public_key: personality.map(|p| hex(&public_key(p))).unwrap_or_default(),
            config_digest: self.configuration.map(|c| hex(&c.digest)).unwrap_or_default(),
            boot_count: self.record.map(|r| r.boot_count).unwrap_or_default(),
            boot_id: self.boot_id.to_owned(),
            previous_boot_id: self.record.map(|r| r.previous_boot_id.clone()).unwrap_or_default(),
            personality_source: self.personality.map(|(s, _)| s.name().to_owned()).unwrap_or_default(),
            version: self.version.to_owned(),
            error: self.errors.join("\n"),
        };
        ProvisionState { row, roster: self.roster.map(roster).unwrap_or_default() }
    }
}

fn roster(keeper: &Keeper) -> RosterRow {
    let chain = match keeper.chain() {
        Ok(Some(chain)) => chain,
        Ok(None) => return RosterRow::default(),
        Err(error) => return RosterRow { error: one_line(error), ..RosterRow::default() },
    };
    let entry = chain.newest();
    let content = entry.content();
    let member = |m: &peer_core::roster::Member| MemberRow {
        name: m.name.to_string(),
        id: m.id.to_string(),
        key: hex(&m.key),
        role: m.role.to_string(),
        votes: content.voters.contains(&m.id),
    };
    RosterRow {
        cluster_id: chain.cluster().to_string(),
        number: entry.number(),
        hash: hex(entry.hash()),
        domain: content.domain.clone(),
        error: String::new(),
        members: content.members.iter().map(member).collect(),
        entry: entry.bytes().to_vec(),
    }
}
