//! `[[socket]]`: sockets that init makes and keeps for a service.

use std::net::SocketAddr;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

use super::Refusal;
use super::place::{Source, shorten};

/// Sockets of one service: its descriptors must stay below those init works with.
pub(super) const SOCKETS_MAX: usize = 8;
/// `sun_path` with its NUL.
const PATH_MAX: usize = 107;
/// Where sockets may lie. PID 1 makes them, and it must never wait for a disk.
const RUN: &str = "/run/";
/// Owner only.
const MODE_DEFAULT: u32 = 0o600;

/// A socket made before the service runs, kept over its restarts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Socket {
    /// Its name in `LISTEN_FDNAMES`.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) address: Address,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Stream,
    Datagram,
    Seqpacket,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A UNIX socket below `/run`, with its permissions.
    Path {
        path: String,
        mode: u32,
    },
    Internet(SocketAddr),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Path { path, .. } => f.write_str(path),
            Address::Internet(address) => write!(f, "{address}"),
        }
    }
}

impl Socket {
    /// Whether both cannot exist at once.
    pub(super) fn clashes(&self, other: &Socket) -> bool {
        match (&self.address, &other.address) {
            (Address::Path { path: a, .. }, Address::Path { path: b, .. }) => a == b,
            (a, b) => a == b && self.kind == other.kind,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    name: Option<Spanned<String>>,
    stream: Option<Spanned<String>>,
    datagram: Option<Spanned<String>>,
    seqpacket: Option<Spanned<String>>,
    mode: Option<Spanned<String>>,
}

/// The sockets and the line of each.
///
/// # Errors
/// The first key that breaks a rule.
pub(super) fn parse(raw: &[Spanned<Raw>], source: &Source<'_>) -> Result<Vec<(Socket, usize)>, Refusal> {
    let mut sockets: Vec<(Socket, usize)> = Vec::new();
    for (i, entry) in raw.iter().enumerate() {
        let at =
            |key: &str| if key.is_empty() { format!("socket[{i}]") } else { format!("socket[{i}].{key}") };
        let refuse = |span: Range<usize>, key: &str, rule: String| source.refuse(Some(span), &at(key), rule);
        if i >= SOCKETS_MAX {
            return Err(refuse(entry.span(), "", format!("more than {SOCKETS_MAX} sockets")));
        }
        let r = entry.get_ref();
        let given: Vec<_> = [
            (&r.stream, Kind::Stream, "stream"),
            (&r.datagram, Kind::Datagram, "datagram"),
            (&r.seqpacket, Kind::Seqpacket, "seqpacket"),
        ]
        .into_iter()
        .filter_map(|(value, kind, key)| Some((value.as_ref()?, kind, key)))
        .collect();
        let [(value, kind, key)] = given.as_slice() else {
            let rule = "expected one of stream, datagram and seqpacket".to_owned();
            return Err(refuse(entry.span(), "", rule));
        };
        let mode = r.mode.as_ref().map(|m| (octal(m.get_ref()), m));
        if let Some((None, m)) = mode {
            let rule = format!("expected permissions like \"0660\", found {:?}", shorten(m.get_ref()));
            return Err(refuse(m.span(), "mode", rule));
        }
        let mode = mode.and_then(|(mode, m)| Some((mode?, m)));
        let address = address(value.get_ref(), *kind, mode.as_ref().map(|(m, _)| *m))
            .map_err(|rule| refuse(value.span(), key, rule))?;
        if let (Address::Internet(_), Some((_, m))) = (&address, mode) {
            return Err(refuse(m.span(), "mode", "only a socket with a path has permissions".to_owned()));
        }
        let name = r.name.as_ref().map_or(source.name, |n| n.get_ref().as_str());
        if !super::service_name(name) {
            let span = r.name.as_ref().map_or(entry.span(), Spanned::span);
            let rule =
                format!("expected a name of a-z, 0-9 and '-', a letter first, found {:?}", shorten(name));
            return Err(refuse(span, "name", rule));
        }
        let socket = Socket { name: name.to_owned(), kind: *kind, address };
        if sockets.iter().any(|(other, _)| other.clashes(&socket)) {
            return Err(refuse(value.span(), key, format!("{} is listed twice", socket.address)));
        }
        sockets.push((socket, source.line(&value.span())));
    }
    Ok(sockets)
}

fn address(text: &str, kind: Kind, mode: Option<u32>) -> Result<Address, String> {
    if text.starts_with('/') {
        let plain = text.starts_with(RUN)
            && !text.ends_with('/')
            && !text.contains('\0')
            && !text.split('/').any(|part| part == ".." || part == ".");
        if !plain {
            return Err(format!("expected a path below {RUN} without \"..\", found {:?}", shorten(text)));
        }
        if text.len() > PATH_MAX {
            return Err(format!("longer than {PATH_MAX} bytes"));
        }
        return Ok(Address::Path { path: text.to_owned(), mode: mode.unwrap_or(MODE_DEFAULT) });
    }
    let expected =
        || format!("expected a path below {RUN} or an address like \"[::]:80\", found {:?}", shorten(text));
    let address: SocketAddr = text.parse().map_err(|_| expected())?;
    if kind == Kind::Seqpacket {
        return Err("seqpacket sockets have a path".to_owned());
    }
    if address.port() == 0 {
        return Err("port 0 is no port anybody could connect to".to_owned());
    }
    Ok(Address::Internet(address))
}

fn octal(text: &str) -> Option<u32> {
    let digits = text.strip_prefix('0').unwrap_or(text);
    let mode = u32::from_str_radix(digits, 8).ok()?;
    (digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit())).then_some(mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::unit::tests::{refused, unit};

    #[test]
    fn sockets_are_read_in_order() {
        let s = unit(
            "[[socket]]\nstream = '/run/a.sock'\nmode = '0660'\n[[socket]]\nname = 'web'\nstream = '[::]:80'\n\
             [[socket]]\ndatagram = '127.0.0.1:53'\n[[socket]]\nseqpacket = '/run/x/b'",
        )
        .sockets;
        let names: Vec<_> = s.iter().map(|s| (s.name.as_str(), s.kind)).collect();
        let kinds =
            [("a", Kind::Stream), ("web", Kind::Stream), ("a", Kind::Datagram), ("a", Kind::Seqpacket)];
        assert_eq!(names, kinds);
        assert_eq!(s[0].address, Address::Path { path: "/run/a.sock".into(), mode: 0o660 });
        assert_eq!(s[1].address, Address::Internet("[::]:80".parse().unwrap()));
        assert_eq!(s[3].address, Address::Path { path: "/run/x/b".into(), mode: 0o600 });
        // TCP and UDP have ports of their own.
        assert_eq!(unit("[[socket]]\nstream='1.2.3.4:5'\n[[socket]]\ndatagram='1.2.3.4:5'").sockets.len(), 2);
    }

    #[test]
    fn each_breach_names_line_and_key() {
        let long = format!("stream = '/run/{}'", "x".repeat(103));
        let cases = [
            ("name = 'x'", 2, "socket[0]: expected one of"),
            ("stream = '/run/a'\ndatagram = '/run/b'", 2, "socket[0]: expected one of"),
            ("stream = '/tmp/a'", 3, "socket[0].stream: expected a path below /run/"),
            ("stream = '/run/../a'", 3, "socket[0].stream: expected a path below"),
            ("stream = '/run/'", 3, "socket[0].stream: expected a path below"),
            ("stream = 'localhost:80'", 3, "socket[0].stream: expected a path below /run/ or an address"),
            ("stream = '1.2.3.4'", 3, "socket[0].stream: expected a path"),
            ("stream = '1.2.3.4:0'", 3, "socket[0].stream: port 0"),
            ("seqpacket = '1.2.3.4:5'", 3, "socket[0].seqpacket: seqpacket sockets have a path"),
            ("stream = '1.2.3.4:5'\nmode = '600'", 4, "socket[0].mode: only a socket with a path"),
            ("stream = '/run/a'\nmode = '668'", 4, "socket[0].mode: expected permissions"),
            ("stream = '/run/a'\nmode = '4755'", 4, "socket[0].mode: expected permissions"),
            ("stream = '/run/a'\nmode = '+60'", 4, "socket[0].mode: expected permissions"),
            ("stream = '/run/a'\nname = 'a:b'", 4, "socket[0].name: expected a name"),
            (
                "stream = '/run/a'\n[[socket]]\nseqpacket = '/run/a'",
                5,
                "socket[1].seqpacket: /run/a is listed",
            ),
            ("steam = '/run/a'", 3, "socket[0].steam: unknown field"),
            (long.as_str(), 3, "socket[0].stream: longer than 107"),
        ];
        for (text, line, expected) in cases {
            let said = refused(&format!("[[socket]]\n{text}"));
            assert!(said.starts_with(&format!("a.toml:{line}: {expected}")), "{text}: {said}");
        }
        let many: String = (0..9).map(|i| format!("[[socket]]\nstream='/run/{i}'\n")).collect();
        assert!(refused(&many).starts_with("a.toml:18: socket[8]: more than 8"), "{}", refused(&many));
    }
}
