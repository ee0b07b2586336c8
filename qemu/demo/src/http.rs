//! What the server understands and says. Pure.
//!
//! Just enough of HTTP/1.1 for `curl`, browsers and the lab's probes: a GET or HEAD of any path, answered in text, one
//! request per connection.

use std::net::IpAddr;
use std::time::Duration;

/// Bytes of the longest request head that is read. Browsers send about one KiB.
pub(crate) const REQUEST_MAX: usize = 4096;

/// What a request head asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// The head is not complete yet.
    Partial,
    /// `GET`.
    Get,
    /// `HEAD`: the answer's head alone.
    Head,
    /// A method this server does not have.
    OtherMethod,
    /// Not HTTP.
    Malformed,
    /// Longer than [`REQUEST_MAX`].
    TooLong,
}

/// Reads what has come so far.
pub(crate) fn parse(bytes: &[u8]) -> Request {
    let ended = bytes.windows(4).any(|w| w == b"\r\n\r\n") || bytes.windows(2).any(|w| w == b"\n\n");
    if !ended {
        return if bytes.len() >= REQUEST_MAX { Request::TooLong } else { Request::Partial };
    }
    let first = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
    let words: Vec<&[u8]> = first.trim_ascii().split(|&b| b == b' ').collect();
    match words.as_slice() {
        [method, target, version] if version.starts_with(b"HTTP/1.") && !target.is_empty() => match *method {
            b"GET" => Request::Get,
            b"HEAD" => Request::Head,
            _ => Request::OtherMethod,
        },
        _ => Request::Malformed,
    }
}

/// What is said about this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct About {
    /// The node's name.
    pub(crate) node: String,
    /// The address the client contacted: the VIP, mostly.
    pub(crate) local: IpAddr,
    /// The client's address.
    pub(crate) peer: IpAddr,
    /// Since the node started.
    pub(crate) uptime: Duration,
}

/// The whole answer to `request`, which is not [`Request::Partial`].
pub(crate) fn answer(request: Request, about: &About) -> String {
    let (status, body) = match request {
        Request::Get | Request::Head => ("200 OK", page(about)),
        Request::OtherMethod => ("405 Method Not Allowed", "only GET and HEAD are served here\n".to_owned()),
        Request::TooLong => {
            ("431 Request Header Fields Too Large", format!("at most {REQUEST_MAX} bytes are read\n"))
        }
        Request::Malformed | Request::Partial => {
            ("400 Bad Request", "this is not an HTTP request\n".to_owned())
        }
    };
    let allow = if request == Request::OtherMethod { "Allow: GET, HEAD\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\n{allow}Connection: close\r\n\r\n",
        body.len()
    );
    if request == Request::Head { head } else { head + &body }
}

fn page(about: &About) -> String {
    format!(
        "node {}\naddress {}\nclient {}\nuptime {} s\n",
        about.node,
        about.local.to_canonical(),
        about.peer.to_canonical(),
        about.uptime.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        let long = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &vec![b'x'; REQUEST_MAX]].concat();
        let table: [(&[u8], Request); 14] = [
            (b"", Request::Partial),
            (b"GET / HTTP/1.1\r\nHost: x\r\n", Request::Partial),
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Request::Get),
            (b"GET /any/path?q HTTP/1.0\r\n\r\n", Request::Get),
            (b"GET / HTTP/1.1\n\n", Request::Get),
            (b"HEAD / HTTP/1.1\r\n\r\n", Request::Head),
            (b"POST / HTTP/1.1\r\n\r\n", Request::OtherMethod),
            (b"get / HTTP/1.1\r\n\r\n", Request::OtherMethod),
            (b"GET /\r\n\r\n", Request::Malformed),
            (b"GET / HTTP/2\r\n\r\n", Request::Malformed),
            (b"GET  HTTP/1.1\r\n\r\n", Request::Malformed),
            (b"\r\n\r\n", Request::Malformed),
            (b"\xff\x00\xfe\n\n", Request::Malformed),
            (&long, Request::TooLong),
        ];
        for (bytes, expected) in table {
            assert_eq!(parse(bytes), expected, "{}", String::from_utf8_lossy(&bytes[..bytes.len().min(40)]));
        }
    }

    #[test]
    fn answers() {
        let about = About {
            node: "a1".into(),
            local: "::ffff:10.9.0.100".parse().unwrap(),
            peer: "fd09::1".parse().unwrap(),
            uptime: Duration::from_millis(61_999),
        };
        let body = "node a1\naddress 10.9.0.100\nclient fd09::1\nuptime 61 s\n";
        let text = answer(Request::Get, &about);
        let (head, text) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(text, body);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
        assert_eq!(answer(Request::Head, &about), format!("{head}\r\n\r\n"));
        for (request, status) in [
            (Request::OtherMethod, "405"),
            (Request::TooLong, "431"),
            (Request::Malformed, "400"),
            (Request::Partial, "400"),
        ] {
            assert!(answer(request, &about).starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}");
        }
    }
}
