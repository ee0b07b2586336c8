//! The roster as text.

use super::text::{printable, table};
use crate::founder::Folder;
use bus::provision1::{MemberRow, RosterRow};
use peer_core::roster::RosterChain;
use proto::text::hex;

/// Digits of a hash that are shown: enough to compare by eye.
const DIGITS: usize = 16;

/// The row of a chain that is not a node's.
pub(crate) fn roster_row(chain: &RosterChain) -> RosterRow {
    let newest = chain.newest();
    let content = newest.content();
    let member = |m: &peer_core::roster::Member| MemberRow {
        name: m.name.to_string(),
        id: m.id.to_string(),
        key: hex(&m.key),
        role: m.role.to_string(),
        votes: content.voters.contains(&m.id),
    };
    RosterRow {
        cluster_id: chain.cluster().to_string(),
        number: newest.number(),
        hash: hex(newest.hash()),
        domain: content.domain.clone(),
        members: content.members.iter().map(member).collect(),
        ..RosterRow::default()
    }
}

/// Who belongs.
pub(crate) fn roster(row: &RosterRow) -> String {
    if row.cluster_id.is_empty() {
        return "no signed roster is kept here, the personality's list of keys counts;\n\
                \"roster ?\" tells how a cluster is founded\n"
            .to_owned();
    }
    let digits = |text: &str| printable(text).chars().take(DIGITS).collect::<String>();
    let rows: Vec<[String; 4]> = row
        .members
        .iter()
        .map(|m| {
            let vote = if m.votes { "votes" } else { "" };
            [m.name.clone(), m.role.clone(), vote.to_owned(), digits(&m.key)]
        })
        .collect();
    format!(
        "cluster {}, domain {}\nentry {}, hash {}\n{}",
        printable(&row.cluster_id),
        printable(&row.domain),
        row.number,
        digits(&row.hash),
        table(["NAME", "ROLE", "VOTE", "KEY"], &rows, None)
    )
}

/// An entry as it is handed in.
pub(crate) fn entry(bytes: &[u8]) -> String {
    hex(bytes) + "\n"
}

/// What to do with a new entry.
pub(crate) fn signed(number: u64, bytes: &[u8]) -> String {
    format!("entry {number} is signed; hand it in on every member:\nroster apply {}\n", hex(bytes))
}

/// What to do with a new cluster.
pub(crate) fn founded(folder: &str, made: &Folder) -> String {
    format!(
        "cluster {} is founded; its admin key is {folder}/admin.key.\n\
         Move each {folder}/recovery-N.key to a place of its own, off every node.\n{}",
        made.chain().cluster(),
        signed(0, made.chain().newest().bytes())
    )
}
