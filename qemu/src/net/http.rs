//! As much HTTP as a check of a service needs: one GET, one response, then the end of the connection. HTTP/1.0 is
//! asked for, so that no chunks come back.

use core::net::SocketAddr;
use serde::{Deserialize, Serialize};

/// Longest response that is taken, head and body. Services in the lab answer with a line or two.
pub const RESPONSE_MAX: usize = 1 << 20;
/// Longest path that is asked for.
pub const PATH_MAX: usize = 1024;

/// A response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpResponse {
    /// Status code, 100 to 999.
    pub status: u16,
    /// Body.
    pub body: Vec<u8>,
}

impl HttpResponse {
    /// The body as text; bytes that are no UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Why bytes are no response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// The path would break the request.
    #[error("path {path:?}: expected a slash and up to 1023 printable characters without spaces")]
    BadPath {
        /// What was asked, cut to a line.
        path: String,
    },
    /// It is too long.
    #[error("the response is longer than {RESPONSE_MAX} bytes")]
    TooLong,
    /// It is no HTTP.
    #[error("expected a response that begins with \"HTTP/1.\", a status and headers, got {start:?}")]
    NotHttp {
        /// How it begins.
        start: String,
    },
    /// It ended before its announced length.
    #[error("the response ended after {got} of {expected} bytes")]
    Short {
        /// Bytes of body that came.
        got: usize,
        /// Bytes that were announced.
        expected: usize,
    },
}

/// The bytes of a request.
///
/// # Errors
/// When the path has spaces or control characters, or does not begin with a slash.
pub(super) fn request(target: SocketAddr, path: &str) -> Result<Vec<u8>, HttpError> {
    let printable = path.bytes().all(|b| b.is_ascii_graphic());
    if !printable || !path.starts_with('/') || path.len() > PATH_MAX {
        return Err(HttpError::BadPath { path: path.chars().take(60).collect() });
    }
    Ok(format!("GET {path} HTTP/1.0\r\nHost: {target}\r\nConnection: close\r\n\r\n").into_bytes())
}

/// Judges what has come so far: a response, `None` while more is needed. `ended`: nothing more will come.
pub(super) fn response(bytes: &[u8], ended: bool) -> Result<Option<HttpResponse>, HttpError> {
    let not_http =
        || HttpError::NotHttp { start: String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into() };
    let prefix = b"HTTP/1.";
    let common = bytes.len().min(prefix.len());
    if bytes[..common] != prefix[..common] {
        return Err(not_http());
    }
    let Some(head) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return match (ended, bytes.len() > RESPONSE_MAX) {
            (_, true) => Err(HttpError::TooLong),
            (true, false) => Err(not_http()),
            (false, false) => Ok(None),
        };
    };
    let (text, body) = (String::from_utf8_lossy(&bytes[..head]), &bytes[head + 4..]);
    let mut lines = text.split("\r\n");
    let status =
        lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse::<u16>().ok());
    let status = status.filter(|s| (100..1000).contains(s)).ok_or_else(not_http)?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok());
    let whole = |body: &[u8]| Ok(Some(HttpResponse { status, body: body.to_vec() }));
    match length {
        Some(expected) if expected > RESPONSE_MAX => Err(HttpError::TooLong),
        Some(expected) if body.len() >= expected => whole(&body[..expected]),
        Some(expected) if ended => Err(HttpError::Short { got: body.len(), expected }),
        None if ended => whole(body),
        _ if bytes.len() > RESPONSE_MAX => Err(HttpError::TooLong),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_end_by_length_or_by_the_connection() {
        let ok = |status, body: &str| Ok(Some(HttpResponse { status, body: body.as_bytes().to_vec() }));
        for (bytes, ended, expected) in [
            ("", false, Ok(None)),
            ("HTT", false, Ok(None)),
            ("HTTP/1.0 200 OK\r\n\r\nhel", false, Ok(None)),
            ("HTTP/1.0 200 OK\r\n\r\nhello", true, ok(200, "hello")),
            ("HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nnope", false, ok(503, "no")),
            ("HTTP/1.1 200\r\ncontent-length: 9\r\n\r\nhi", false, Ok(None)),
            (
                "HTTP/1.1 200\r\ncontent-length: 9\r\n\r\nhi",
                true,
                Err(HttpError::Short { got: 2, expected: 9 }),
            ),
            ("HTTP/1.1 200\r\ncontent-length: 99999999\r\n\r\nhi", false, Err(HttpError::TooLong)),
            ("SSH-2.0", false, Err(HttpError::NotHttp { start: "SSH-2.0".into() })),
            (
                "HTTP/1.0 20x OK\r\n\r\n",
                true,
                Err(HttpError::NotHttp { start: "HTTP/1.0 20x OK\r\n\r\n".into() }),
            ),
            ("HTTP/1.0 200 OK\r\n", true, Err(HttpError::NotHttp { start: "HTTP/1.0 200 OK\r\n".into() })),
        ] {
            assert_eq!(response(bytes.as_bytes(), ended), expected, "{bytes:?}");
        }
        let endless = [b"HTTP/1.0 200 OK\r\n\r\n".to_vec(), vec![b'x'; RESPONSE_MAX]].concat();
        assert_eq!(response(&endless, false), Err(HttpError::TooLong));
    }

    #[test]
    fn paths_cannot_break_the_request() {
        let target = "10.9.0.100:80".parse().unwrap();
        assert!(
            request(target, "/health?x=1")
                .unwrap()
                .starts_with(b"GET /health?x=1 HTTP/1.0\r\nHost: 10.9.0.100:80")
        );
        for bad in ["", "x", "/a b", "/a\r\nX: y", "/\u{e9}"] {
            assert!(request(target, bad).is_err(), "{bad:?}");
        }
    }
}
