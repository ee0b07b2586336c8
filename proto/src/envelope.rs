//! The versioned frame around every message on a wire and every record on a disk.
//!
//! ```text
//! offset 0      2         4            8              8+len
//!        | kind | version | len (u32)  | payload ...  |      all integers little endian
//! ```
//! postcard is positional: without a version and a length a reader of another release could neither tell that a
//! message is not for it nor step over it. Kinds are never reused; enum variants in payloads are only appended.

use serde::{Serialize, de::DeserializeOwned};

/// Bytes of the header in front of every payload.
pub const HEADER_LEN: usize = 8;

/// Every kind there is, in one list so that no number is given twice. Numbers are never reused.
pub mod kind {
    /// A node's status between peers (a beat).
    pub const STATUS: u16 = 0x0100;
    /// netd's part of the configuration.
    pub const NETD_PART: u16 = 0x0101;
    /// A request on init's control socket.
    pub const CONTROL_REQUEST: u16 = 0x0201;
    /// init's reply.
    pub const CONTROL_REPLY: u16 = 0x0202;
    /// What PID 1 hands to the program that takes over from it.
    pub const INIT_STATE: u16 = 0x0203;
    /// The first message on a session between peers.
    pub const HELLO: u16 = 0x0301;
    /// An entry of the roster chain.
    pub const ROSTER_ENTRY: u16 = 0x0302;
    /// What a node counts across boots.
    pub const NODE_RECORD: u16 = 0x0401;
    /// What makes a node itself.
    pub const PERSONALITY: u16 = 0x0402;
    /// What PID 1 remembers from boot to boot.
    pub const BOOT_RECORD: u16 = 0x0403;
    /// The part of the roster chain that a node keeps.
    pub const ROSTER_CHAIN: u16 = 0x0404;
    /// Which entry of the roster chain a node kept last.
    pub const ROSTER_MARK: u16 = 0x0405;
    /// What provisiond remembers of the two slots.
    pub const SLOT_RECORD: u16 = 0x0406;
    /// The manifest of a release.
    pub const RELEASE_MANIFEST: u16 = 0x0501;
    /// A node asks a voter for its lease.
    pub const LEASE_REQUEST: u16 = 0x0601;
    /// A voter answers.
    pub const LEASE_VOTE: u16 = 0x0602;
    /// A node gives up the lease of an earlier life of itself.
    pub const LEASE_GIVE_UP: u16 = 0x0603;
    /// What a witness remembers of the leases it granted.
    pub const LEASE_RECORD: u16 = 0x0604;
    /// What netd's next life learns of the leases this one granted.
    pub const LEASE_MEMORY: u16 = 0x0605;
    /// Between the members that write or keep a seal.
    pub const SEAL_MESSAGE: u16 = 0x0611;
    /// What an acceptor of a seal remembers.
    pub const SEAL_RECORD: u16 = 0x0612;
    /// Which ballot a proposer of a seal used last.
    pub const SEAL_ROUND: u16 = 0x0613;
}

/// What an envelope carries. The number is the wire's; it is never given to anything else.
pub trait Message: Serialize + DeserializeOwned {
    /// The kind's number on the wire.
    const KIND: u16;
    /// The release of this kind's layout. [`decode`] accepts this one only: postcard would read another layout as
    /// something else. Who has to read an older one looks at its [`header`] first.
    const VERSION: u16;
    /// The longest payload in bytes that a reader accepts, checked before anything is allocated.
    const MAX_LEN: usize;
}

/// Why bytes are not the message that was expected. The reader's state is unchanged in every case.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Fewer bytes than the header or than it announces.
    #[error("message cut short: {have} bytes, {need} needed")]
    Truncated { have: usize, need: usize },
    /// Another kind than the one expected here.
    #[error("message of kind {found}, expected kind {expected}")]
    Kind { expected: u16, found: u16 },
    /// A layout of another release.
    #[error("message kind {kind} has version {found}, this release reads version {known}")]
    Version { kind: u16, known: u16, found: u16 },
    /// Longer than this kind may be.
    #[error("message kind {kind} announces {len} bytes, at most {max} are allowed")]
    TooLong { kind: u16, len: usize, max: usize },
    /// The payload does not decode, or it has not the length that was announced.
    #[error("message kind {kind} does not decode")]
    Payload { kind: u16 },
}

/// The header's fields, read without touching the payload: enough to route or to skip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the payload is.
    pub kind: u16,
    /// Which layout it has.
    pub version: u16,
    /// Payload bytes that follow the header.
    pub len: usize,
}

/// Reads the header at the front of `bytes`.
pub fn header(bytes: &[u8]) -> Result<Header, EnvelopeError> {
    let Some(h) = bytes.first_chunk::<HEADER_LEN>() else {
        return Err(EnvelopeError::Truncated { have: bytes.len(), need: HEADER_LEN });
    };
    Ok(Header {
        kind: u16::from_le_bytes([h[0], h[1]]),
        version: u16::from_le_bytes([h[2], h[3]]),
        len: u32::from_le_bytes([h[4], h[5], h[6], h[7]]) as usize,
    })
}

/// Frames `message`.
///
/// # Panics
/// When the encoded message is longer than its own `MAX_LEN`: senders bound what they put into a message.
pub fn encode<M: Message>(message: &M) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.extend_from_slice(&M::KIND.to_le_bytes());
    out.extend_from_slice(&M::VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let mut out = postcard::to_extend(message, out).expect("encoding into memory cannot fail");
    let len = out.len() - HEADER_LEN;
    assert!(len <= M::MAX_LEN, "kind {} encodes to {len} bytes, its bound is {}", M::KIND, M::MAX_LEN);
    out[4..HEADER_LEN].copy_from_slice(&(len as u32).to_le_bytes());
    out
}

/// Reads one message that fills `bytes` exactly.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, EnvelopeError> {
    let h = header(bytes)?;
    if h.kind != M::KIND {
        return Err(EnvelopeError::Kind { expected: M::KIND, found: h.kind });
    }
    if h.version != M::VERSION {
        return Err(EnvelopeError::Version { kind: h.kind, known: M::VERSION, found: h.version });
    }
    if h.len > M::MAX_LEN {
        return Err(EnvelopeError::TooLong { kind: h.kind, len: h.len, max: M::MAX_LEN });
    }
    let payload = &bytes[HEADER_LEN..];
    if payload.len() < h.len {
        return Err(EnvelopeError::Truncated { have: bytes.len(), need: HEADER_LEN + h.len });
    }
    match postcard::take_from_bytes::<M>(payload) {
        Ok((message, [])) if payload.len() == h.len => Ok(message),
        Ok(_) | Err(_) => Err(EnvelopeError::Payload { kind: h.kind }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Ping {
        seq: u32,
        note: String,
    }

    impl Message for Ping {
        const KIND: u16 = 0xfff0;
        const VERSION: u16 = 2;
        const MAX_LEN: usize = 64;
    }

    fn ping() -> Ping {
        Ping { seq: 300, note: "hi".into() }
    }

    #[test]
    fn layout_is_as_drawn() {
        assert_eq!(encode(&ping()), [0xf0, 0xff, 2, 0, 5, 0, 0, 0, 0xac, 0x02, 2, b'h', b'i']);
        assert_eq!(decode::<Ping>(&encode(&ping())), Ok(ping()));
    }

    #[test]
    fn every_cut_is_refused() {
        let whole = encode(&ping());
        for n in 0..whole.len() {
            assert!(
                matches!(decode::<Ping>(&whole[..n]), Err(EnvelopeError::Truncated { .. })),
                "cut at {n}"
            );
        }
    }

    #[test]
    fn each_breach_has_its_own_refusal() {
        let change = |at: usize, to: u8| {
            let mut bytes = encode(&ping());
            bytes[at] = to;
            decode::<Ping>(&bytes)
        };
        assert_eq!(change(0, 1), Err(EnvelopeError::Kind { expected: 0xfff0, found: 0xff01 }));
        for found in [1, 3] {
            let refusal = EnvelopeError::Version { kind: 0xfff0, known: 2, found };
            assert_eq!(change(2, found as u8), Err(refusal), "another layout is not guessed at");
        }
        assert_eq!(
            change(4, 4),
            Err(EnvelopeError::Payload { kind: 0xfff0 }),
            "the announced length is a lie"
        );
        assert_eq!(change(5, 1), Err(EnvelopeError::TooLong { kind: 0xfff0, len: 261, max: 64 }));
        assert_eq!(change(10, 1), Err(EnvelopeError::Payload { kind: 0xfff0 }), "a byte is left over");
        let mut trailing = encode(&ping());
        trailing.push(0);
        assert_eq!(decode::<Ping>(&trailing), Err(EnvelopeError::Payload { kind: 0xfff0 }));
    }
}
