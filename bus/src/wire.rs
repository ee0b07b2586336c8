//! The socket under a connection: whole messages only up to a bound, never a file descriptor.
//!
//! The library believes a header and sets memory aside for up to 128 MiB. [`Framing`] follows the messages in the
//! stream and ends the connection at the first header that announces more than this side expects.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use zbus::connection::socket::{ReadHalf, Socket, Split, WriteHalf};
use zbus::export::async_trait::async_trait;

/// Longest message a server accepts: calls here carry no arguments, a match rule, or roster entries, of which the longest
/// has 63 KiB.
pub(crate) const CALL_MAX: usize = 80 * 1024;

/// Longest message a client accepts: the rows of a thousand VIPs take a quarter of it.
pub(crate) const REPLY_MAX: usize = 1024 * 1024;

/// The fixed part in front of every message.
const HEADER_LEN: usize = 16;

/// Follows message boundaries in a byte stream.
#[derive(Debug)]
struct Framing {
    max: usize,
    header: [u8; HEADER_LEN],
    have: usize,
    /// Bytes of the current message still to come after its fixed header.
    left: usize,
}

impl Framing {
    fn new(max: usize) -> Framing {
        Framing { max, header: [0; HEADER_LEN], have: 0, left: 0 }
    }

    /// Takes note of received bytes. Refuses the message they belong to as soon as its length is known.
    fn follow(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let step = self.left.min(bytes.len());
                self.left -= step;
                bytes = &bytes[step..];
                continue;
            }
            let step = (HEADER_LEN - self.have).min(bytes.len());
            self.header[self.have..self.have + step].copy_from_slice(&bytes[..step]);
            self.have += step;
            bytes = &bytes[step..];
            if self.have == HEADER_LEN {
                self.left = self.announced()?;
                self.have = 0;
            }
        }
        Ok(())
    }

    /// Bytes that follow the fixed header: the header fields padded to 8, then the body.
    fn announced(&self) -> io::Result<usize> {
        let h = &self.header;
        let number = |at: usize| {
            let bytes = [h[at], h[at + 1], h[at + 2], h[at + 3]];
            if h[0] == b'B' { u32::from_be_bytes(bytes) as usize } else { u32::from_le_bytes(bytes) as usize }
        };
        let (body, fields) = (number(4), number(12));
        let len = fields.saturating_add(7) / 8 * 8;
        let len = len.saturating_add(body);
        if len > self.max {
            let text = format!("message of {len} bytes announced, at most {} are accepted", self.max);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(len)
    }
}

/// A stream behind the handshake.
#[derive(Debug)]
pub(crate) struct Guarded {
    stream: UnixStream,
    max: usize,
}

impl Guarded {
    /// Accepts messages of up to `max` bytes from `stream`.
    pub(crate) fn new(stream: UnixStream, max: usize) -> Guarded {
        Guarded { stream, max }
    }
}

impl Socket for Guarded {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        let (read, write) = self.stream.into_split();
        Split::new(Reader(read, Framing::new(self.max)), Writer(write))
    }
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct Reader(OwnedReadHalf, Framing);

#[async_trait]
impl ReadHalf for Reader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let n = self.0.read(buffer).await?;
        self.1.follow(&buffer[..n])?;
        Ok((n, Vec::new()))
    }
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct Writer(OwnedWriteHalf);

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], _fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.0.write(buffer).await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(endian: u8, body: u32, fields: u32) -> Vec<u8> {
        let number = |n: u32| if endian == b'B' { n.to_be_bytes() } else { n.to_le_bytes() };
        let mut bytes = vec![endian, 1, 0, 1];
        bytes.extend(number(body));
        bytes.extend(number(7));
        bytes.extend(number(fields));
        bytes
    }

    #[test]
    fn messages_are_followed_in_any_cut() {
        let mut stream = Vec::new();
        for (endian, body, fields) in [(b'l', 5, 3), (b'B', 0, 0), (b'l', 0, 9), (b'B', 92, 1)] {
            stream.extend(header(endian, body, fields));
            stream.resize(stream.len() + (fields.div_ceil(8) * 8 + body) as usize, 0xff);
        }
        for cut in 1..stream.len() {
            let mut framing = Framing::new(100);
            for part in stream.chunks(cut) {
                framing.follow(part).unwrap();
            }
            assert_eq!((framing.have, framing.left), (0, 0), "cut every {cut} bytes");
        }
    }

    #[test]
    fn too_long_is_refused_by_the_header_alone() {
        let table =
            [(b'l', 101, 0), (b'B', 101, 0), (b'l', 0, 101), (b'l', 96, 1), (b'l', u32::MAX, u32::MAX)];
        for (endian, body, fields) in table.map(|(e, b, f): (u8, u32, u32)| (e, b, f)) {
            let limit = if body == 96 { 103 } else { 100 };
            assert!(Framing::new(limit).follow(&header(endian, body, fields)).is_err(), "{body} {fields}");
        }
        assert!(Framing::new(104).follow(&header(b'l', 96, 1)).is_ok());
    }
}
