//! Text that every part writes the same way: an error with its causes, bytes in hexadecimal.

use core::error::Error;
use core::fmt::Write as _;

/// An error and its causes on one line: `what: why: why`. Each level of our errors says only its own part.
pub fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing into memory cannot fail");
        text
    })
}

/// The bytes that `text` spells in hexadecimal digits of either case; `None` when it is anything else.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    rest.is_empty().then_some(())?;
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_its_causes_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("the plan was not read")]
        struct Outer(#[source] core::num::ParseIntError);
        let error = Outer("x".parse::<u8>().unwrap_err());
        assert_eq!(one_line(&error), "the plan was not read: invalid digit found in string");
        assert_eq!(one_line(&error.0), "invalid digit found in string");
    }

    #[test]
    fn hexadecimal_goes_around_and_refuses_the_rest() {
        assert_eq!(hex(&[0x00, 0xa7, 0xff]), "00a7ff");
        assert_eq!(unhex("00a7FF"), Some(vec![0x00, 0xa7, 0xff]));
        assert_eq!(unhex(""), Some(vec![]));
        for bad in ["0", "0g", "+1", "é", " 00"] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }
}
