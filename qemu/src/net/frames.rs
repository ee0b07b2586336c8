//! The few kinds of Ethernet frames the probing host speaks: ARP, ICMP echo of both families, neighbour
//! solicitation and advertisement. [`parse`] takes any bytes and never panics; what it does not know, or what a
//! checksum or a length condemns, is [`Packet::Other`].
//!
//! Not here: VLAN tags, fragments and IPv6 extension headers. Nobody in the lab puts a probe's answer into those.

use super::mac::Mac;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an Ethernet header: destination, source, type.
pub const ETHERNET_HEADER: usize = 14;
/// Longest frame the lab carries: a 9000-byte MTU, its header and two VLAN tags. Longer ones are dropped.
pub const FRAME_MAX: usize = 9000 + ETHERNET_HEADER + 8;
/// All IPv6 nodes of the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const TYPE_IPV4: u16 = 0x0800;
const TYPE_ARP: u16 = 0x0806;
const TYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_ICMPV6: u8 = 58;
const IPV6_HEADER: usize = 40;
/// ND packets must come from the link itself: nothing that was routed has this left.
const ND_HOP_LIMIT: u8 = 255;
const OPTION_SOURCE_MAC: u8 = 1;
const OPTION_TARGET_MAC: u8 = 2;

/// A frame taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Who sent it.
    pub source: Mac,
    /// Whom it is for.
    pub destination: Mac,
    /// What it says.
    pub packet: Packet<'a>,
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// IPv4 address resolution.
    Arp(Arp),
    /// ICMP or ICMPv6 echo.
    Echo(Echo<'a>),
    /// Neighbour solicitation: who has `target`?
    Solicit(Solicit),
    /// Neighbour advertisement: I have `target`.
    Advertise(Advertise),
    /// A TCP segment, not looked into.
    Tcp { source: IpAddr, destination: IpAddr },
    /// Anything else, damaged packets included.
    Other,
}

/// An ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// True for a reply, false for a request.
    pub reply: bool,
    /// Who speaks.
    pub sender_mac: Mac,
    /// The speaker's address; 0.0.0.0 in a probe.
    pub sender: Ipv4Addr,
    /// Whom it is told, zero in a request.
    pub target_mac: Mac,
    /// The address asked for, or the asker's.
    pub target: Ipv4Addr,
}

/// An echo request or reply; both addresses are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo<'a> {
    /// True for a reply.
    pub reply: bool,
    /// Sender.
    pub source: IpAddr,
    /// Receiver.
    pub destination: IpAddr,
    /// Names the asker's session.
    pub ident: u16,
    /// Counts the asker's questions.
    pub sequence: u16,
    /// Returned unchanged.
    pub data: &'a [u8],
}

/// A neighbour solicitation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solicit {
    /// The asker, `::` while it checks an address for duplicates.
    pub source: Ipv6Addr,
    /// The target's solicited-node group, or the target itself.
    pub destination: Ipv6Addr,
    /// The address asked for.
    pub target: Ipv6Addr,
    /// Where the asker wants its answer.
    pub source_mac: Option<Mac>,
}

/// A neighbour advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// The speaker.
    pub source: Ipv6Addr,
    /// The asker, or all nodes.
    pub destination: Ipv6Addr,
    /// The address spoken of.
    pub target: Ipv6Addr,
    /// Its hardware address.
    pub target_mac: Option<Mac>,
    /// Answers a question.
    pub solicited: bool,
    /// Takes precedence over what the hearer knows.
    pub overrides: bool,
}

/// Source and destination of a frame, if it is long enough to have them.
pub fn stations(frame: &[u8]) -> Option<(Mac, Mac)> {
    let header = frame.get(..ETHERNET_HEADER)?;
    Some((mac_at(header, 6)?, mac_at(header, 0)?))
}

/// Takes a frame apart. `None` only for what is too short to be a frame.
pub fn parse(frame: &[u8]) -> Option<Frame<'_>> {
    let (source, destination) = stations(frame)?;
    let payload = frame.get(ETHERNET_HEADER..)?;
    let packet = match u16_at(frame, 12)? {
        TYPE_ARP => parse_arp(payload),
        TYPE_IPV4 => parse_ipv4(payload),
        TYPE_IPV6 => parse_ipv6(payload),
        _ => None,
    };
    Some(Frame { source, destination, packet: packet.unwrap_or(Packet::Other) })
}

/// An ARP packet from `arp.sender_mac` to the station `to`.
pub fn arp(to: Mac, arp: &Arp) -> Vec<u8> {
    let mut out = ethernet(to, arp.sender_mac, TYPE_ARP, 28);
    out.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, if arp.reply { 2 } else { 1 }]);
    out.extend_from_slice(&arp.sender_mac.0);
    out.extend_from_slice(&arp.sender.octets());
    out.extend_from_slice(&arp.target_mac.0);
    out.extend_from_slice(&arp.target.octets());
    out
}

/// An echo from `from` to `to`; `None` when the two addresses are of different families or the data is too long
/// for a frame.
pub fn echo(from: Mac, to: Mac, echo: &Echo<'_>) -> Option<Vec<u8>> {
    let length = 8 + echo.data.len();
    if length + IPV6_HEADER + ETHERNET_HEADER > FRAME_MAX {
        return None;
    }
    match (echo.source, echo.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut out = ethernet(to, from, TYPE_IPV4, 20 + length);
            let total = u16::try_from(20 + length).ok()?.to_be_bytes();
            out.extend_from_slice(&[0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, PROTOCOL_ICMP, 0, 0]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
            let sum = checksum(0, &out[ETHERNET_HEADER..]);
            out[ETHERNET_HEADER + 10..ETHERNET_HEADER + 12].copy_from_slice(&sum.to_be_bytes());
            let at = out.len();
            push_echo(&mut out, if echo.reply { 0 } else { 8 }, echo);
            seal(&mut out, at, 0);
            Some(out)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut out = ipv6(to, from, source, destination, length)?;
            let at = out.len();
            push_echo(&mut out, if echo.reply { 129 } else { 128 }, echo);
            seal(&mut out, at, pseudo_sum(source, destination, length));
            Some(out)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

/// A neighbour solicitation from `from` to the station `to`.
pub fn solicit(from: Mac, to: Mac, solicit: &Solicit) -> Vec<u8> {
    neighbour(
        from,
        to,
        (solicit.source, solicit.destination),
        [135, 0],
        (solicit.target, 1, solicit.source_mac),
    )
}

/// A neighbour advertisement from `from` to the station `to`.
pub fn advertise(from: Mac, to: Mac, say: &Advertise) -> Vec<u8> {
    let flags = (u8::from(say.solicited) << 6) | (u8::from(say.overrides) << 5);
    neighbour(from, to, (say.source, say.destination), [136, flags], (say.target, 2, say.target_mac))
}

/// The group a node joins for `address`, to be asked about it.
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// The station group of an IPv6 group.
pub fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

fn parse_arp(p: &[u8]) -> Option<Packet<'static>> {
    if p.get(..6)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let reply = match u16_at(p, 6)? {
        1 => false,
        2 => true,
        _ => return None,
    };
    Some(Packet::Arp(Arp {
        reply,
        sender_mac: mac_at(p, 8)?,
        sender: v4_at(p, 14)?,
        target_mac: mac_at(p, 18)?,
        target: v4_at(p, 24)?,
    }))
}

fn parse_ipv4(p: &[u8]) -> Option<Packet<'_>> {
    let first = *p.first()?;
    let header = usize::from(first & 0xf) * 4;
    let total = usize::from(u16_at(p, 2)?);
    // The frame may be padded behind the packet, never shorter than it says.
    if first >> 4 != 4
        || header < 20
        || total < header
        || total > p.len()
        || checksum(0, p.get(..header)?) != 0
    {
        return None;
    }
    // More fragments to come, or not the first one.
    if u16_at(p, 6)? & 0x3fff != 0 {
        return None;
    }
    let (source, destination) = (IpAddr::V4(v4_at(p, 12)?), IpAddr::V4(v4_at(p, 16)?));
    let body = p.get(header..total)?;
    match *p.get(9)? {
        PROTOCOL_ICMP if checksum(0, body) == 0 => parse_echo(body, [8, 0], source, destination),
        PROTOCOL_TCP => Some(Packet::Tcp { source, destination }),
        _ => None,
    }
}

fn parse_ipv6(p: &[u8]) -> Option<Packet<'_>> {
    let length = usize::from(u16_at(p, 4)?);
    if *p.first()? >> 4 != 6 {
        return None;
    }
    let (source, destination) = (v6_at(p, 8)?, v6_at(p, 24)?);
    let body = p.get(IPV6_HEADER..IPV6_HEADER.checked_add(length)?)?;
    match *p.get(6)? {
        PROTOCOL_TCP => Some(Packet::Tcp { source: source.into(), destination: destination.into() }),
        PROTOCOL_ICMPV6 if checksum(pseudo_sum(source, destination, length), body) == 0 => {
            match *body.first()? {
                128 | 129 => parse_echo(body, [128, 129], source.into(), destination.into()),
                135 | 136 if *p.get(7)? == ND_HOP_LIMIT => parse_neighbour(body, source, destination),
                _ => None,
            }
        }
        _ => None,
    }
}

/// `kinds` are the family's numbers of request and reply.
fn parse_echo(body: &[u8], kinds: [u8; 2], source: IpAddr, destination: IpAddr) -> Option<Packet<'_>> {
    let kind = *body.first()?;
    if !kinds.contains(&kind) || *body.get(1)? != 0 {
        return None;
    }
    let (ident, sequence, data) = (u16_at(body, 4)?, u16_at(body, 6)?, body.get(8..)?);
    Some(Packet::Echo(Echo { reply: kind == kinds[1], source, destination, ident, sequence, data }))
}

fn parse_neighbour(body: &[u8], source: Ipv6Addr, destination: Ipv6Addr) -> Option<Packet<'static>> {
    let (kind, code, flags) = (*body.first()?, *body.get(1)?, *body.get(4)?);
    let target = v6_at(body, 8)?;
    if code != 0 || target.is_multicast() || source.is_multicast() {
        return None;
    }
    let mut options = body.get(24..)?;
    let (mut source_mac, mut target_mac) = (None, None);
    while let Some(&[kind, words]) = options.get(..2) {
        let length = usize::from(words) * 8;
        let option = options.get(..length).filter(|o| !o.is_empty())?;
        match kind {
            OPTION_SOURCE_MAC if length == 8 => source_mac = mac_at(option, 2),
            OPTION_TARGET_MAC if length == 8 => target_mac = mac_at(option, 2),
            _ => {}
        }
        options = options.get(length..)?;
    }
    // RFC 4861, 7.1.1: a question from nobody names no station to answer to.
    if kind == 135 && source.is_unspecified() && source_mac.is_some() {
        return None;
    }
    Some(match kind {
        135 => Packet::Solicit(Solicit { source, destination, target, source_mac }),
        _ => Packet::Advertise(Advertise {
            source,
            destination,
            target,
            target_mac,
            solicited: flags & 0x40 != 0,
            overrides: flags & 0x20 != 0,
        }),
    })
}

fn ethernet(to: Mac, from: Mac, kind: u16, payload: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(ETHERNET_HEADER + payload);
    out.extend_from_slice(&to.0);
    out.extend_from_slice(&from.0);
    out.extend_from_slice(&kind.to_be_bytes());
    out
}

fn ipv6(to: Mac, from: Mac, source: Ipv6Addr, destination: Ipv6Addr, length: usize) -> Option<Vec<u8>> {
    let mut out = ethernet(to, from, TYPE_IPV6, IPV6_HEADER + length);
    out.extend_from_slice(&[0x60, 0, 0, 0]);
    out.extend_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
    out.extend_from_slice(&[PROTOCOL_ICMPV6, ND_HOP_LIMIT]);
    out.extend_from_slice(&source.octets());
    out.extend_from_slice(&destination.octets());
    Some(out)
}

fn push_echo(out: &mut Vec<u8>, kind: u8, echo: &Echo<'_>) {
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.extend_from_slice(&echo.ident.to_be_bytes());
    out.extend_from_slice(&echo.sequence.to_be_bytes());
    out.extend_from_slice(echo.data);
}

/// `kind_flags`: ICMPv6 type and flags; `about`: target, and the option that names a station.
fn neighbour(
    from: Mac,
    to: Mac,
    (source, destination): (Ipv6Addr, Ipv6Addr),
    kind_flags: [u8; 2],
    (target, option, station): (Ipv6Addr, u8, Option<Mac>),
) -> Vec<u8> {
    let length = if station.is_some() { 32 } else { 24 };
    let mut out = ipv6(to, from, source, destination, length).expect("32 bytes fit a 16-bit length");
    let at = out.len();
    out.extend_from_slice(&[kind_flags[0], 0, 0, 0, kind_flags[1], 0, 0, 0]);
    out.extend_from_slice(&target.octets());
    if let Some(mac) = station {
        out.extend_from_slice(&[option, 1]);
        out.extend_from_slice(&mac.0);
    }
    seal(&mut out, at, pseudo_sum(source, destination, length));
    out
}

/// Fills in the checksum of the ICMP message that begins at `at`.
fn seal(out: &mut [u8], at: usize, start: u32) {
    let sum = checksum(start, &out[at..]);
    out[at + 2..at + 4].copy_from_slice(&sum.to_be_bytes());
}

/// The Internet checksum (RFC 1071) of `bytes`; zero over a block that holds its own right checksum.
fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = u64::from(start);
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sum of the IPv6 pseudo header of an ICMPv6 message of `length` bytes.
fn pseudo_sum(source: Ipv6Addr, destination: Ipv6Addr, length: usize) -> u32 {
    let words = source.segments().into_iter().chain(destination.segments());
    words.map(u32::from).sum::<u32>() + length as u32 + u32::from(PROTOCOL_ICMPV6)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn mac_at(bytes: &[u8], at: usize) -> Option<Mac> {
    Some(Mac(bytes.get(at..at + 6)?.try_into().ok()?))
}

fn v4_at(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?))
}

fn v6_at(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 0xa]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 0xb]);
    const V4: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(10, 9, 0, 250), Ipv4Addr::new(10, 9, 0, 100));
    const V6: (Ipv6Addr, Ipv6Addr) =
        (Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 0x250), Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0x12, 0x3456));

    fn samples() -> Vec<Vec<u8>> {
        let question = Arp { reply: false, sender_mac: A, sender: V4.0, target_mac: Mac::ZERO, target: V4.1 };
        let ping = |reply, pair: (IpAddr, IpAddr), data| Echo {
            reply,
            source: pair.0,
            destination: pair.1,
            ident: 0x4b45,
            sequence: 7,
            data,
        };
        let group = solicited_node(V6.1);
        vec![
            arp(Mac::BROADCAST, &question),
            arp(A, &Arp { reply: true, sender_mac: B, sender: V4.1, target_mac: A, target: V4.0 }),
            echo(A, B, &ping(false, (V4.0.into(), V4.1.into()), b"odd")).unwrap(),
            echo(B, A, &ping(true, (V6.1.into(), V6.0.into()), b"even")).unwrap(),
            solicit(
                A,
                group_mac(group),
                &Solicit { source: V6.0, destination: group, target: V6.1, source_mac: Some(A) },
            ),
            advertise(
                B,
                A,
                &Advertise {
                    source: V6.1,
                    destination: V6.0,
                    target: V6.1,
                    target_mac: Some(B),
                    solicited: true,
                    overrides: false,
                },
            ),
        ]
    }

    /// Builds what was parsed once more.
    fn rebuild(frame: &[u8]) -> Option<Vec<u8>> {
        let f = parse(frame)?;
        match f.packet {
            Packet::Arp(a) => Some(arp(f.destination, &a)),
            Packet::Echo(e) => echo(f.source, f.destination, &e),
            Packet::Solicit(s) => Some(solicit(f.source, f.destination, &s)),
            Packet::Advertise(a) => Some(advertise(f.source, f.destination, &a)),
            Packet::Tcp { .. } | Packet::Other => None,
        }
    }

    #[test]
    fn built_frames_parse_to_the_same() {
        for frame in samples() {
            assert_eq!(rebuild(&frame).as_deref(), Some(&frame[..]));
        }
    }

    /// Somebody else's parser agrees with our builder.
    #[test]
    fn etherparse_agrees() {
        use etherparse::{NetSlice, SlicedPacket, TransportSlice};
        for frame in samples() {
            let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
            match parse(&frame).unwrap().packet {
                Packet::Arp(a) => {
                    let Some(NetSlice::Arp(theirs)) = sliced.net else { panic!("no ARP: {sliced:?}") };
                    assert_eq!(theirs.sender_protocol_addr(), a.sender.octets());
                    assert_eq!(theirs.target_hw_addr(), a.target_mac.0);
                }
                _ => match sliced.transport {
                    Some(TransportSlice::Icmpv4(icmp)) => {
                        assert_eq!(icmp.header().checksum, icmp.icmp_type().calc_checksum(icmp.payload()));
                    }
                    Some(TransportSlice::Icmpv6(icmp)) => {
                        let Some(NetSlice::Ipv6(ip)) = sliced.net else { panic!("no IPv6") };
                        assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
                    }
                    other => panic!("{other:?}"),
                },
            }
        }
    }

    #[test]
    fn damage_is_seen() {
        for frame in samples() {
            if matches!(parse(&frame).unwrap().packet, Packet::Arp(_)) {
                continue; // ARP has no checksum
            }
            // Behind the hop limit or time to live every byte is under a checksum.
            for at in ETHERNET_HEADER + 8..frame.len() {
                let mut bad = frame.clone();
                bad[at] ^= 0x10;
                assert_eq!(parse(&bad).unwrap().packet, Packet::Other, "byte {at} of {frame:02x?}");
            }
        }
    }

    #[test]
    fn a_padded_frame_says_the_same() {
        for frame in samples() {
            let mut padded = frame.clone();
            padded.resize(frame.len() + 20, 0);
            assert_eq!(parse(&padded), parse(&frame));
        }
    }

    #[test]
    fn nd_that_was_routed_or_breaks_the_rules_is_refused() {
        let group = solicited_node(V6.1);
        let from_nobody =
            Solicit { source: Ipv6Addr::UNSPECIFIED, destination: group, target: V6.1, source_mac: Some(A) };
        assert_eq!(parse(&solicit(A, group_mac(group), &from_nobody)).unwrap().packet, Packet::Other);
        let fine = Solicit { source_mac: None, ..from_nobody };
        let mut frame = solicit(A, group_mac(group), &fine);
        assert_eq!(parse(&frame).unwrap().packet, Packet::Solicit(fine));
        frame[ETHERNET_HEADER + 7] = 254;
        assert_eq!(parse(&frame).unwrap().packet, Packet::Other);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = rebuild(&bytes);
        }

        /// Random damage to real frames reaches deeper than random bytes do.
        #[test]
        fn any_damage_is_taken(
            which in 0..6usize,
            cut in 0..100usize,
            edits in proptest::collection::vec((0..100usize, any::<u8>()), 0..6),
        ) {
            let mut frame = samples().swap_remove(which);
            for (at, value) in edits {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            frame.truncate(frame.len().saturating_sub(cut));
            let _ = rebuild(&frame);
        }

        /// The same with a right checksum, so that the option walk sees the damage.
        #[test]
        fn any_options_are_taken(options in proptest::collection::vec(any::<u8>(), 0..64)) {
            let length = 24 + options.len();
            let mut frame = ipv6(A, B, V6.0, V6.1, length).unwrap();
            let at = frame.len();
            frame.extend_from_slice(&[136, 0, 0, 0, 0, 0, 0, 0]);
            frame.extend_from_slice(&V6.1.octets());
            frame.extend_from_slice(&options);
            seal(&mut frame, at, pseudo_sum(V6.0, V6.1, length));
            let _ = rebuild(&frame);
        }
    }
}
