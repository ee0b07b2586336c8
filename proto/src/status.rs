//! The status message: what a node tells every node of its failover group, each beat and at once on change.
//!
//! ```text
//! Status: node, incarnation, sequence, participation
//!         ports   what this node's ports are good for
//!         holds   VIPs that are on this node's ports now          (vip, port, epoch)
//!         claims  VIPs this node is about to take                 (vip, port, epoch)
//!         epochs  VIPs whose highest epoch nobody heard holds any more
//!         refused ports whose kernel lately refused a VIP's address         (vip, port)
//!         seen    how far this node has heard each peer: a claimant reads here who knows of its claim
//! ```
//! The message is the beat: hearing it is what keeps a node alive in the eyes of its peers. It is sent whole
//! every time, so that losing one costs nothing but time. It names no times of the sender's clock, only
//! lengths.
//!
//! Every list and every name is bounded while it is read (`*_MAX`), before memory is set aside for it; who
//! builds a `Status` keeps the same bounds.

use crate::cluster::{NodeName, PortName, VipName};
use crate::envelope::Message;
use core::fmt;
use core::marker::PhantomData;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Longest name in bytes: the cluster file's rule.
pub const NAME_MAX: usize = 32;
/// Ports of one node: more than any chassis of this class has.
pub const PORTS_MAX: usize = 64;
/// VIPs of one group.
pub const VIPS_MAX: usize = 1024;
/// Nodes of one group, with room: a full mesh of beats is meant for at most 32.
pub const NODES_MAX: usize = 64;

/// One status message. See the [module](self) for who reads which list.
///
/// ```
/// use proto::{envelope, status::{Participation, Status}};
/// let status = Status {
///     node: "a1".into(), incarnation: 7, sequence: 1, participation: Participation::Starting,
///     ports: vec![], holds: vec![], claims: vec![], epochs: vec![], refused: vec![],
///     seen: vec![],
/// };
/// let bytes = envelope::encode(&status);
/// assert_eq!(envelope::decode::<Status>(&bytes), Ok(status));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The sender. Receivers compare it with the node the session belongs to.
    #[serde(deserialize_with = "name")]
    pub node: NodeName,
    /// Which life of the sender's netd this is; a later life has a higher number.
    pub incarnation: u64,
    /// Counts the status messages of one life, from 1. An older one than the last heard says nothing.
    pub sequence: u64,
    /// Whether the sender takes VIPs.
    pub participation: Participation,
    /// All ports the cluster file gives the sender.
    #[serde(deserialize_with = "bounded::<_, _, PORTS_MAX>")]
    pub ports: Vec<PortReport>,
    /// VIPs on the sender's ports.
    #[serde(deserialize_with = "bounded::<_, _, VIPS_MAX>")]
    pub holds: Vec<Holding>,
    /// VIPs the sender will take when its peers know and nobody on the LAN answers for them.
    #[serde(deserialize_with = "bounded::<_, _, VIPS_MAX>")]
    pub claims: Vec<Holding>,
    /// Epochs higher than those of all holders the sender hears; empty in a settled group.
    #[serde(deserialize_with = "bounded::<_, _, VIPS_MAX>")]
    pub epochs: Vec<VipEpoch>,
    /// Ports of the sender that are no place for a VIP, for the time being.
    #[serde(deserialize_with = "bounded::<_, _, VIPS_MAX>")]
    pub refused: Vec<Refusal>,
    /// One entry for each peer the sender takes for alive.
    #[serde(deserialize_with = "bounded::<_, _, NODES_MAX>")]
    pub seen: Vec<Seen>,
}

/// Whether a node takes VIPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Participation {
    /// Just started and still listening; it will take part within a lease.
    Starting,
    /// Takes part.
    Ready,
    /// Its process stood still for longer than a lease; it gave everything up and listens for half a lease.
    Late,
    /// Is about to stop and takes nothing any more.
    Leaving,
}

/// One port of the sender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortReport {
    /// Its name on the sender.
    #[serde(deserialize_with = "name")]
    pub port: PortName,
    /// What it is good for.
    pub state: PortState,
}

/// Whether a port can carry VIPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortState {
    /// Usable, without a break for this many milliseconds.
    Operative { for_ms: u64 },
    /// Not usable, and why.
    Out(PortReason),
}

impl PortState {
    /// Whether the port can carry VIPs.
    pub fn is_operative(self) -> bool {
        matches!(self, PortState::Operative { .. })
    }
}

/// Why a port is not operative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortReason {
    /// The node has no interface that matches.
    Missing,
    /// No carrier.
    Carrier,
    /// It has carrier again, but lost it so recently or often that it must first keep it for a while.
    Flapping,
}

impl fmt::Display for PortReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PortReason::Missing => "missing",
            PortReason::Carrier => "no carrier",
            PortReason::Flapping => "flapping",
        })
    }
}

/// A VIP on a port, or claimed for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The VIP.
    #[serde(deserialize_with = "name")]
    pub vip: VipName,
    /// The sender's port.
    #[serde(deserialize_with = "name")]
    pub port: PortName,
    /// Rises each time the VIP is taken anew; of two holders the higher one stays. 0: adopted after a restart
    /// and not yet confirmed.
    pub epoch: u64,
}

/// The highest epoch known of a VIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipEpoch {
    /// The VIP.
    #[serde(deserialize_with = "name")]
    pub vip: VipName,
    /// The epoch.
    pub epoch: u64,
}

/// A VIP whose address the kernel lately refused on a port of the sender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The VIP.
    #[serde(deserialize_with = "name")]
    pub vip: VipName,
    /// The sender's port.
    #[serde(deserialize_with = "name")]
    pub port: PortName,
}

/// How far the sender has heard a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The peer.
    #[serde(deserialize_with = "name")]
    pub node: NodeName,
    /// Its life.
    pub incarnation: u64,
    /// The last sequence number of that life the sender has acted on.
    pub sequence: u64,
}

/// Bytes of a name with its length, of a number, at most.
const NAME_LEN: usize = NAME_MAX + 1;
const NUMBER_LEN: usize = 10;

impl Message for Status {
    const KIND: u16 = crate::envelope::kind::STATUS;
    const VERSION: u16 = 1;
    /// Every list full of longest names. A settled group of a dozen VIPs takes about 200 bytes.
    const MAX_LEN: usize = NAME_LEN
        + 2 * NUMBER_LEN
        + 1
        + 6 * 2 // list lengths
        + PORTS_MAX * (NAME_LEN + 1 + NUMBER_LEN)
        + 2 * VIPS_MAX * (2 * NAME_LEN + NUMBER_LEN)
        + VIPS_MAX * (NAME_LEN + NUMBER_LEN)
        + VIPS_MAX * 2 * NAME_LEN
        + NODES_MAX * (NAME_LEN + 2 * NUMBER_LEN);
}

/// Reads a list of at most `MAX` entries; refuses a longer one by its announced length.
pub fn bounded<'de, D, T, const MAX: usize>(input: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct List<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX} entries")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let announced = seq.size_hint().unwrap_or(0);
            if announced > MAX {
                return Err(A::Error::invalid_length(announced, &self));
            }
            let mut list = Vec::new();
            while let Some(entry) = seq.next_element()? {
                if list.len() == MAX {
                    return Err(A::Error::invalid_length(MAX + 1, &self));
                }
                list.push(entry);
            }
            Ok(list)
        }
    }

    input.deserialize_seq(List::<T, MAX>(PhantomData))
}

/// Reads a name and holds it to the cluster file's rule, before it is copied.
fn name<'de, D, N>(input: D) -> Result<N, D::Error>
where
    D: Deserializer<'de>,
    N: for<'a> From<&'a str>,
{
    struct Name<N>(PhantomData<N>);

    impl<N: for<'a> From<&'a str>> Visitor<'_> for Name<N> {
        type Value = N;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a name of 1 to {NAME_MAX} of a-z 0-9 -")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<N, E> {
            let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if text.is_empty() || text.len() > NAME_MAX || !text.bytes().all(known) {
                return Err(E::invalid_value(serde::de::Unexpected::Other("another text"), &self));
            }
            Ok(N::from(text))
        }
    }

    input.deserialize_str(Name(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{EnvelopeError, decode, encode};

    fn sample() -> Status {
        Status {
            node: "a1".into(),
            incarnation: 300,
            sequence: 5,
            participation: Participation::Ready,
            ports: vec![
                PortReport { port: "p1".into(), state: PortState::Operative { for_ms: 1000 } },
                PortReport { port: "p2".into(), state: PortState::Out(PortReason::Carrier) },
            ],
            holds: vec![Holding { vip: "web".into(), port: "p1".into(), epoch: 2 }],
            claims: vec![Holding { vip: "db".into(), port: "p1".into(), epoch: 1 }],
            epochs: vec![VipEpoch { vip: "db".into(), epoch: 9 }],
            refused: vec![Refusal { vip: "db".into(), port: "p2".into() }],
            seen: vec![Seen { node: "b1".into(), incarnation: 4, sequence: 6 }],
        }
    }

    /// These bytes are what release 1 writes; they are never edited, a change of layout raises the version.
    const GOLDEN: &[u8] = &[
        0x00, 0x01, 1, 0, 54, 0, 0, 0, // kind, version, length
        2, b'a', b'1', 0xac, 0x02, 5, 1, // node, incarnation, sequence, participation
        2, 2, b'p', b'1', 0, 0xe8, 0x07, 2, b'p', b'2', 1, 1, // ports
        1, 3, b'w', b'e', b'b', 2, b'p', b'1', 2, // holds
        1, 2, b'd', b'b', 2, b'p', b'1', 1, // claims
        1, 2, b'd', b'b', 9, // epochs
        1, 2, b'd', b'b', 2, b'p', b'2', // refused
        1, 2, b'b', b'1', 4, 6, // seen
    ];

    #[test]
    fn golden_bytes() {
        assert_eq!(encode(&sample()), GOLDEN);
        assert_eq!(decode::<Status>(GOLDEN), Ok(sample()));
    }

    #[test]
    fn the_fullest_status_fits_its_bound() {
        let long = "n".repeat(NAME_MAX);
        let holding = Holding { vip: long.as_str().into(), port: long.as_str().into(), epoch: u64::MAX };
        let full = Status {
            node: long.as_str().into(),
            incarnation: u64::MAX,
            sequence: u64::MAX,
            participation: Participation::Leaving,
            ports: vec![
                PortReport {
                    port: long.as_str().into(),
                    state: PortState::Operative { for_ms: u64::MAX }
                };
                PORTS_MAX
            ],
            holds: vec![holding.clone(); VIPS_MAX],
            claims: vec![holding; VIPS_MAX],
            epochs: vec![VipEpoch { vip: long.as_str().into(), epoch: u64::MAX }; VIPS_MAX],
            refused: vec![Refusal { vip: long.as_str().into(), port: long.as_str().into() }; VIPS_MAX],
            seen: vec![
                Seen { node: long.as_str().into(), incarnation: u64::MAX, sequence: u64::MAX };
                NODES_MAX
            ],
        };
        assert_eq!(decode::<Status>(&encode(&full)), Ok(full));
    }

    #[test]
    fn each_length_is_capped() {
        let refused = |change: fn(&mut Status)| {
            let mut status = sample();
            change(&mut status);
            decode::<Status>(&encode(&status)) == Err(EnvelopeError::Payload { kind: Status::KIND })
        };
        assert!(!refused(|_| ()));
        assert!(refused(|s| s.node = "".into()), "empty node name");
        assert!(refused(|s| s.node = "n".repeat(NAME_MAX + 1).as_str().into()), "long node name");
        assert!(refused(|s| s.node = "A1".into()), "upper case node name");
        assert!(refused(|s| s.ports[0].port = "p".repeat(NAME_MAX + 1).as_str().into()), "long port name");
        assert!(refused(|s| s.holds[0].vip = "v\n".into()), "control character");
        assert!(refused(|s| s.ports = vec![s.ports[0].clone(); PORTS_MAX + 1]), "ports");
        assert!(refused(|s| s.holds = vec![s.holds[0].clone(); VIPS_MAX + 1]), "holds");
        assert!(refused(|s| s.claims = vec![s.claims[0].clone(); VIPS_MAX + 1]), "claims");
        assert!(refused(|s| s.epochs = vec![s.epochs[0].clone(); VIPS_MAX + 1]), "epochs");
        assert!(refused(|s| s.refused = vec![s.refused[0].clone(); VIPS_MAX + 1]), "refused");
        assert!(refused(|s| s.seen = vec![s.seen[0].clone(); NODES_MAX + 1]), "seen");
    }

    #[test]
    fn no_damage_panics() {
        for at in 0..GOLDEN.len() {
            for bit in 0..8 {
                let mut bytes = GOLDEN.to_vec();
                bytes[at] ^= 1 << bit;
                let _ = decode::<Status>(&bytes);
            }
            let _ = decode::<Status>(&GOLDEN[..at]);
        }
    }
}
