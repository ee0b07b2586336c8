//! The few Ethernet frames netd writes and reads itself: ARP and IPv6 neighbour discovery. Bytes only, no sockets.
//!
//! ```text
//! asks       ARP probe (sender 0.0.0.0)          neighbour solicitation from ::
//! announces  ARP request and reply, both own     neighbour advertisement, override, to all nodes
//! ```

use netd_core::Mac;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// EtherTypes.
pub(crate) const ARP: u16 = 0x0806;
pub(crate) const IPV6: u16 = 0x86dd;

const BROADCAST: [u8; 6] = [0xff; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const ETHERNET_LEN: usize = 14;
const IPV6_LEN: usize = 40;

/// What a frame says about an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Saying {
    /// The sender uses the address.
    Uses,
    /// The sender asks whether somebody uses it, to use it itself.
    Probes,
}

/// Who says what about which address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sighting {
    pub(crate) mac: Mac,
    pub(crate) address: IpAddr,
    pub(crate) saying: Saying,
}

/// The question whether somebody uses `address`, from a station that does not (RFC 5227 2.1.1, RFC 4862 5.4.2).
pub(crate) fn probe(own: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp(1, own, Ipv4Addr::UNSPECIFIED, [0; 6], address),
        IpAddr::V6(address) => {
            let group = solicited_node(address);
            let body = [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0], address.octets().as_slice()].concat();
            icmpv6(own, Ipv6Addr::UNSPECIFIED, group, body)
        }
    }
}

/// The news that `address` is here now. ARP in both forms: some stations believe only one of them.
pub(crate) fn announcements(own: Mac, address: IpAddr) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(address) => {
            vec![arp(1, own, address, [0; 6], address), arp(2, own, address, BROADCAST, address)]
        }
        IpAddr::V6(address) => {
            // Flags: override. Option 2: the target's link-layer address.
            let head = [ADVERTISEMENT, 0, 0, 0, 0x20, 0, 0, 0];
            let body = [head.as_slice(), &address.octets(), &[2, 1], &own.0].concat();
            vec![icmpv6(own, address, ALL_NODES, body)]
        }
    }
}

/// The multicast hardware address that questions for `address` are sent to.
pub(crate) fn question_mac(address: Ipv6Addr) -> [u8; 6] {
    multicast_mac(solicited_node(address))
}

/// Reads what a frame says about an address; `None` when it says nothing or is not whole.
pub(crate) fn read(frame: &[u8]) -> Option<Sighting> {
    match u16::from_be_bytes(*frame.get(12..)?.first_chunk()?) {
        ARP => read_arp(frame.get(ETHERNET_LEN..)?),
        IPV6 => read_neighbour(frame),
        _ => None,
    }
}

fn arp(operation: u8, own: Mac, sender: Ipv4Addr, target_mac: [u8; 6], target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(own, BROADCAST, ARP);
    // Ethernet, IPv4, their lengths, operation.
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend_from_slice(&own.0);
    frame.extend_from_slice(&sender.octets());
    frame.extend_from_slice(&target_mac);
    frame.extend_from_slice(&target.octets());
    frame
}

fn ethernet(own: Mac, to: [u8; 6], ether_type: u16) -> Vec<u8> {
    [to.as_slice(), &own.0, &ether_type.to_be_bytes()].concat()
}

fn icmpv6(own: Mac, from: Ipv6Addr, to: Ipv6Addr, mut body: Vec<u8>) -> Vec<u8> {
    let sum = checksum(from, to, &body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(own, multicast_mac(to), IPV6);
    frame.extend_from_slice(&[0x60, 0, 0, 0]);
    frame.extend_from_slice(&(body.len() as u16).to_be_bytes());
    frame.extend_from_slice(&[58, 255]); // ICMPv6; a hop limit below 255 would have crossed a router
    frame.extend_from_slice(&from.octets());
    frame.extend_from_slice(&to.octets());
    frame.extend_from_slice(&body);
    frame
}

/// The Internet checksum over the pseudo-header (RFC 8200 8.1) and the body with its checksum field zero.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> u16 {
    let tail = [0, 0, (body.len() >> 8) as u8, body.len() as u8, 0, 0, 0, 58];
    let all = [from.octets().as_slice(), &to.octets(), &tail, body].concat();
    let mut sum: u32 = 0;
    for pair in all.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

fn multicast_mac(group: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

fn read_arp(arp: &[u8]) -> Option<Sighting> {
    let arp: &[u8; 28] = arp.first_chunk()?;
    if arp[..6] != [0, 1, 8, 0, 6, 4] || !matches!(arp[6..8], [0, 1] | [0, 2]) {
        return None;
    }
    let mac = Mac(*arp[8..].first_chunk()?);
    let sender = Ipv4Addr::from(*arp[14..].first_chunk::<4>()?);
    let target = Ipv4Addr::from(*arp[24..].first_chunk::<4>()?);
    if !sender.is_unspecified() {
        return Some(Sighting { mac, address: sender.into(), saying: Saying::Uses });
    }
    (arp[7] == 1).then_some(Sighting { mac, address: target.into(), saying: Saying::Probes })
}

fn read_neighbour(frame: &[u8]) -> Option<Sighting> {
    let mac = Mac(*frame.get(6..)?.first_chunk()?);
    let ip: &[u8; IPV6_LEN] = frame.get(ETHERNET_LEN..)?.first_chunk()?;
    let length = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    let body = frame.get(ETHERNET_LEN + IPV6_LEN..)?.get(..length)?;
    let from = Ipv6Addr::from(*ip[8..].first_chunk::<16>()?);
    let to = Ipv6Addr::from(*ip[24..].first_chunk::<16>()?);
    // Whoever gets this past a router or with a wrong sum is not on this link or not whole (RFC 4861 7.1).
    if ip[0] >> 4 != 6 || ip[6] != 58 || ip[7] != 255 || body.len() < 24 || checksum(from, to, body) != 0 {
        return None;
    }
    let target = Ipv6Addr::from(*body[8..].first_chunk::<16>()?);
    let (address, saying) = match body[0] {
        ADVERTISEMENT => (target, Saying::Uses),
        SOLICITATION if from.is_unspecified() => (target, Saying::Probes),
        SOLICITATION => (from, Saying::Uses),
        _ => return None,
    };
    Some(Sighting { mac, address: address.into(), saying })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([0x52, 0x54, 0, 9, 0, 0xa]);

    fn v4() -> IpAddr {
        "10.9.0.100".parse().unwrap()
    }

    fn v6() -> IpAddr {
        "fd09::12:3456".parse().unwrap()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn arp_bytes() {
        assert_eq!(
            hex(&probe(OWN, v4())),
            "ffffffffffff52540009000a0806000108000604000152540009000a000000000000000000000a090064"
        );
        let [request, reply] = announcements(OWN, v4()).try_into().unwrap();
        assert_eq!(
            hex(&request),
            "ffffffffffff52540009000a0806000108000604000152540009000a0a0900640000000000000a090064"
        );
        assert_eq!(
            hex(&reply),
            "ffffffffffff52540009000a0806000108000604000252540009000a0a090064ffffffffffff0a090064"
        );
    }

    #[test]
    fn neighbour_discovery_bytes() {
        assert_eq!(
            hex(&probe(OWN, v6())),
            concat!(
                "3333ff12345652540009000a86dd",
                "6000000000183aff00000000000000000000000000000000ff0200000000000000000001ff123456",
                "870014ce00000000fd090000000000000000000000123456"
            )
        );
        let [advertisement] = announcements(OWN, v6()).try_into().unwrap();
        assert_eq!(
            hex(&advertisement),
            concat!(
                "33330000000152540009000a86dd",
                "6000000000203afffd090000000000000000000000123456ff020000000000000000000000000001",
                "8800a15420000000fd090000000000000000000000123456020152540009000a"
            )
        );
    }

    #[test]
    fn own_frames_are_read_as_they_are_meant() {
        for address in [v4(), v6()] {
            assert_eq!(
                read(&probe(OWN, address)),
                Some(Sighting { mac: OWN, address, saying: Saying::Probes })
            );
            for frame in announcements(OWN, address) {
                assert_eq!(read(&frame), Some(Sighting { mac: OWN, address, saying: Saying::Uses }));
            }
        }
    }

    #[test]
    fn question_of_a_station_shows_its_address() {
        let IpAddr::V6(own) = v6() else { unreachable!() };
        let other: Ipv6Addr = "fd09::1".parse().unwrap();
        let body = [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0], other.octets().as_slice()].concat();
        let frame = icmpv6(OWN, own, solicited_node(other), body);
        assert_eq!(read(&frame), Some(Sighting { mac: OWN, address: v6(), saying: Saying::Uses }));
    }

    /// Every cut and every flipped bit is read without a panic; IPv6 ones are refused for their sum.
    #[test]
    fn damaged_frames_are_harmless() {
        let frames = [probe(OWN, v4()), probe(OWN, v6()), announcements(OWN, v6()).remove(0)];
        for frame in frames {
            for cut in 0..frame.len() {
                assert_eq!(read(&frame[..cut]), None, "cut at {cut}");
            }
            for at in 0..frame.len() * 8 {
                let mut damaged = frame.clone();
                damaged[at / 8] ^= 1 << (at % 8);
                let seen = read(&damaged);
                if frame[12] == 0x86 && at / 8 >= ETHERNET_LEN + 8 {
                    assert_eq!(seen, None, "bit {at}");
                }
            }
        }
    }

    #[test]
    fn bytes_behind_the_frame_are_padding() {
        for address in [v4(), v6()] {
            let mut frame = probe(OWN, address);
            frame.resize(100, 0);
            assert!(read(&frame).is_some());
        }
    }
}
