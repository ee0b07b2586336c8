//! The Ethernet hardware address, and which of them the lab keeps for itself.

use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Serialize};

/// An Ethernet hardware address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Every station of a segment.
    pub const BROADCAST: Mac = Mac([0xff; 6]);
    /// Nobody: what an ARP question carries where the answer will be.
    pub const ZERO: Mac = Mac([0; 6]);
    /// The probing host (`EK` in its middle, locally administered).
    pub const PROBE: Mac = Mac([0x02, 0x45, 0x4b, 0, 0, 1]);
    /// The host that speaks TCP for forwards and `http_get`.
    pub const TCP: Mac = Mac([0x02, 0x45, 0x4b, 0, 0, 2]);
    /// Prefix of the lab's own hosts.
    pub const LAB_PREFIX: [u8; 3] = [0x02, 0x45, 0x4b];
    /// Prefix of the addresses under which IPv4 owner questions are asked; the rest is the question's slot.
    pub const QUESTION_V4_PREFIX: [u8; 3] = [0x02, 0x45, 0x50];
    /// Prefix of the addresses under which IPv6 owner questions are asked.
    pub const QUESTION_V6_PREFIX: [u8; 3] = [0x02, 0x45, 0x51];

    /// `prefix` followed by the low 24 bits of `number`.
    pub const fn numbered(prefix: [u8; 3], number: u32) -> Mac {
        let [_, a, b, c] = number.to_be_bytes();
        Mac([prefix[0], prefix[1], prefix[2], a, b, c])
    }

    /// The number behind `prefix`, when this address begins with it.
    pub fn number_after(self, prefix: [u8; 3]) -> Option<u32> {
        let [p, q, r, a, b, c] = self.0;
        ([p, q, r] == prefix).then(|| u32::from_be_bytes([0, a, b, c]))
    }

    /// True for a group of stations, broadcast included.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// True for what a single station may call itself.
    pub fn is_station(self) -> bool {
        !self.is_multicast() && self != Mac::ZERO
    }

    /// True for addresses the lab's own hosts use; no machine may speak under them.
    pub fn is_lab(self) -> bool {
        [Mac::LAB_PREFIX, Mac::QUESTION_V4_PREFIX, Mac::QUESTION_V6_PREFIX].contains(&self.prefix())
    }

    /// The first three bytes.
    pub const fn prefix(self) -> [u8; 3] {
        [self.0[0], self.0[1], self.0[2]]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no hardware address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hardware address {text:?}: expected six pairs of hex digits joined by colons")]
pub struct BadMac {
    /// What came, cut to a line.
    pub text: String,
}

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac { text: text.chars().take(40).collect() };
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(pair.ok_or_else(bad)?, 16).map_err(|_| bad())?;
        }
        if pairs.next().is_some() { Err(bad()) } else { Ok(Mac(bytes)) }
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = BadMac;

    fn try_from(text: String) -> Result<Self, BadMac> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        let mac: Mac = "52:54:00:09:00:0a".parse().unwrap();
        assert_eq!(mac, Mac([0x52, 0x54, 0, 9, 0, 0x0a]));
        assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
    }

    #[test]
    fn bad_texts_are_refused() {
        for text in
            ["", "52:54:00:09:00", "52:54:00:09:00:0a:01", "5:54:00:09:00:0a", "+5:54:00:09:00:0a", "é"]
        {
            assert!(text.parse::<Mac>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn question_numbers_come_back() {
        let mac = Mac::numbered(Mac::QUESTION_V4_PREFIX, 0x0012_3456);
        assert_eq!(mac.number_after(Mac::QUESTION_V4_PREFIX), Some(0x12_3456));
        assert_eq!(mac.number_after(Mac::QUESTION_V6_PREFIX), None);
        assert!(mac.is_station() && mac.is_lab());
    }
}
