//! The authentication at the start of a D-Bus connection: SASL with the one mechanism EXTERNAL.
//!
//! ```text
//! client                                     server
//! \0AUTH EXTERNAL <hex of uid digits>   -->
//!                                       <--  OK <guid>            or DATA, answered by DATA [hex], when no uid came
//! NEGOTIATE_UNIX_FD (optional)          -->
//!                                       <--  ERROR ...            descriptors are never passed here
//! BEGIN                                 -->  messages from here on
//! ```
//! Own code because the library's handshake panics on a line that is a single LF and collects an endless line.
//! Credentials come from the kernel (`SO_PEERCRED`); what the client claims only has to agree with them.
//!
//! Bytes are read one at a time: whatever follows BEGIN belongs to the message reader. A handshake has about sixty.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest line of a handshake. The longest useful one, `OK` with a GUID, has 37 bytes.
const LINE_MAX: usize = 256;

/// Lines after which a server gives up. Stock clients send three or four.
const LINES_MAX: usize = 16;

/// Why a handshake failed. The connection is to be dropped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaslError {
    /// Reading or writing failed.
    #[error("handshake interrupted")]
    Io(#[from] std::io::Error),
    /// The first byte of a client must be NUL.
    #[error("first byte of the client is {0:#04x}, a NUL was expected")]
    FirstByte(u8),
    /// A line longer than allowed, or not ended by CR LF, or not ASCII.
    #[error("malformed handshake line")]
    Line,
    /// Too many lines without BEGIN.
    #[error("no BEGIN within {LINES_MAX} handshake lines")]
    Endless,
    /// The server's answer is not the one expected.
    #[error("server answered {0:?} in the handshake, OK was expected")]
    Refused(String),
}

/// What a server does next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Send this line and read on.
    Answer(String),
    /// The client began: messages follow.
    Begin,
}

/// The server's side without its socket.
#[derive(Debug)]
struct Acceptor<'a> {
    uid: u32,
    guid: &'a str,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No mechanism chosen.
    Auth,
    /// EXTERNAL chosen without an identity: DATA is to follow.
    Data,
    /// Accepted; BEGIN is to follow.
    Accepted,
}

impl Acceptor<'_> {
    /// Handles one line without its CR LF.
    fn handle(&mut self, line: &str) -> Step {
        let mut words = line.split(' ').filter(|w| !w.is_empty());
        let verb = words.next().unwrap_or_default();
        match (self.state, verb) {
            (State::Auth, "AUTH") => match (words.next(), words.next()) {
                (Some("EXTERNAL"), None) => {
                    self.state = State::Data;
                    Step::Answer("DATA".to_owned())
                }
                (Some("EXTERNAL"), Some(identity)) => self.check(identity),
                _ => self.reject(),
            },
            // An empty identity means "whoever the kernel says I am".
            (State::Data, "DATA") => self.check(words.next().unwrap_or_default()),
            (State::Accepted, "BEGIN") => Step::Begin,
            (State::Accepted, "NEGOTIATE_UNIX_FD") => {
                Step::Answer("ERROR descriptors are not passed here".to_owned())
            }
            (_, "CANCEL" | "ERROR") => self.reject(),
            _ => Step::Answer("ERROR unexpected command".to_owned()),
        }
    }

    fn check(&mut self, identity: &str) -> Step {
        if identity.is_empty() || decode_uid(identity) == Some(self.uid) {
            self.state = State::Accepted;
            Step::Answer(format!("OK {}", self.guid))
        } else {
            self.reject()
        }
    }

    fn reject(&mut self) -> Step {
        self.state = State::Auth;
        Step::Answer("REJECTED EXTERNAL".to_owned())
    }
}

/// The uid in `hex`: decimal digits, each written as two hex digits.
fn decode_uid(hex: &str) -> Option<u32> {
    let digits: Option<String> = hex
        .as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [b'3', digit @ b'0'..=b'9'] => Some(char::from(*digit)),
            _ => None,
        })
        .collect();
    digits?.parse().ok()
}

/// The inverse of [`decode_uid`].
fn encode_uid(uid: u32) -> String {
    uid.to_string().chars().flat_map(|digit| ['3', digit]).collect()
}

/// Plays the server for a client the kernel says is `uid`. The caller sets the deadline.
pub(crate) async fn accept<S>(stream: &mut S, uid: u32, guid: &str) -> Result<(), SaslError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let first = stream.read_u8().await?;
    if first != 0 {
        return Err(SaslError::FirstByte(first));
    }
    let mut acceptor = Acceptor { uid, guid, state: State::Auth };
    for _ in 0..LINES_MAX {
        match acceptor.handle(&read_line(stream).await?) {
            Step::Answer(answer) => stream.write_all(format!("{answer}\r\n").as_bytes()).await?,
            Step::Begin => return Ok(()),
        }
    }
    Err(SaslError::Endless)
}

/// Plays the client that runs as `uid` and returns the server's GUID. The caller sets the deadline.
pub(crate) async fn initiate<S>(stream: &mut S, uid: u32) -> Result<String, SaslError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(format!("\0AUTH EXTERNAL {}\r\n", encode_uid(uid)).as_bytes()).await?;
    let answer = read_line(stream).await?;
    let Some(guid) = answer.strip_prefix("OK ") else {
        return Err(SaslError::Refused(answer));
    };
    stream.write_all(b"BEGIN\r\n").await?;
    Ok(guid.trim().to_owned())
}

/// Reads one line and cuts its CR LF off.
async fn read_line<S: AsyncRead + Unpin>(stream: &mut S) -> Result<String, SaslError> {
    let mut line = Vec::with_capacity(64);
    while line.len() < LINE_MAX {
        line.push(stream.read_u8().await?);
        if line.ends_with(b"\n") {
            let text = line.strip_suffix(b"\r\n").filter(|t| t.is_ascii()).ok_or(SaslError::Line)?;
            return String::from_utf8(text.to_vec()).map_err(|_| SaslError::Line);
        }
    }
    Err(SaslError::Line)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `lines` to a server for uid 1000 and returns its answers, `BEGIN` for the end.
    fn converse(lines: &[&str]) -> Vec<String> {
        let mut acceptor = Acceptor { uid: 1000, guid: "f00d", state: State::Auth };
        let answer = |line: &&str| match acceptor.handle(line) {
            Step::Answer(answer) => answer.split(' ').next().unwrap_or_default().to_owned(),
            Step::Begin => "BEGIN".to_owned(),
        };
        lines.iter().map(answer).collect()
    }

    #[test]
    fn conversations() {
        let table: &[(&[&str], &[&str])] = &[
            (&["AUTH EXTERNAL 31303030", "BEGIN"], &["OK", "BEGIN"]),
            (&["AUTH EXTERNAL", "DATA", "NEGOTIATE_UNIX_FD", "BEGIN"], &["DATA", "OK", "ERROR", "BEGIN"]),
            (&["AUTH EXTERNAL", "DATA 31303030", "BEGIN"], &["DATA", "OK", "BEGIN"]),
            // The claim must agree with the kernel's word.
            (&["AUTH EXTERNAL 30", "BEGIN"], &["REJECTED", "ERROR"]),
            (&["AUTH EXTERNAL", "DATA 30", "AUTH EXTERNAL 31303030"], &["DATA", "REJECTED", "OK"]),
            (&["AUTH", "AUTH ANONYMOUS", "AUTH DBUS_COOKIE_SHA1 31"], &["REJECTED", "REJECTED", "REJECTED"]),
            (&["BEGIN", "", "NEGOTIATE_UNIX_FD", "DATA"], &["ERROR", "ERROR", "ERROR", "ERROR"]),
            (&["AUTH EXTERNAL 31303030", "CANCEL", "BEGIN"], &["OK", "REJECTED", "ERROR"]),
            (&["AUTH EXTERNAL 3130303", "AUTH EXTERNAL zz", "AUTH EXTERNAL 4141"], &["REJECTED"; 3]),
        ];
        for (lines, expected) in table {
            assert_eq!(converse(lines), *expected, "{lines:?}");
        }
    }

    #[test]
    fn uids_round_trip() {
        for uid in [0, 7, 1000, u32::MAX] {
            assert_eq!(decode_uid(&encode_uid(uid)), Some(uid));
        }
        assert_eq!(decode_uid("39393939393939393939"), None, "larger than a uid");
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn garbage_ends_the_handshake() {
        let endless = [b"\0".as_slice(), &b"ERROR\r\n".repeat(LINES_MAX)].concat();
        let table: &[(&[u8], &str)] = &[
            (b"GET / HTTP/1.0\r\n\r\n", "first byte of the client is 0x47, a NUL was expected"),
            (b"\0\n", "malformed handshake line"),
            (b"\0AUTH\n", "malformed handshake line"),
            (b"\0\xff\xfe\r\n", "malformed handshake line"),
            (&[0; 2 * LINE_MAX], "malformed handshake line"),
            (&endless, "no BEGIN within 16 handshake lines"),
            (b"\0AUTH EXTERNAL 30\r\n", "handshake interrupted"),
            (b"", "handshake interrupted"),
        ];
        for (bytes, expected) in table {
            let outcome = run(async {
                let (mut near, mut far) = tokio::io::duplex(64 * 1024);
                far.write_all(bytes).await.unwrap();
                far.shutdown().await.unwrap();
                accept(&mut near, 0, "f00d").await
            });
            assert_eq!(outcome.unwrap_err().to_string(), *expected);
        }
    }

    #[test]
    fn both_sides_agree_and_leave_the_rest_of_the_stream_alone() {
        run(async {
            let (mut near, mut far) = tokio::io::duplex(1024);
            let client = async {
                let guid = initiate(&mut far, 0).await.unwrap();
                far.write_all(b"message").await.unwrap();
                guid
            };
            let (server, guid) = tokio::join!(accept(&mut near, 0, "f00d"), client);
            server.unwrap();
            assert_eq!(guid, "f00d");
            let mut rest = [0; 7];
            near.read_exact(&mut rest).await.unwrap();
            assert_eq!(&rest, b"message");
        });
    }
}
