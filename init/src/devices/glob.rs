//! Patterns of modaliases, as fnmatch(3) has them without flags: `*`, `?`, `[a-f]`, `[!a-f]`, `\` before a plain byte.
//!
//! Bytes, not characters: modaliases are ASCII. Named classes (`[[:digit:]]`) do not occur in modules and are not
//! known here. A bracket without its end is a plain `[`.

/// Whether all of `text` is what `pattern` describes. Takes at most length times length steps.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (mut rest, mut text) = (pattern.as_bytes(), text.as_bytes());
    // What follows the last `*`, and where in the text it was tried. An earlier `*` need not be tried again: the
    // last one can take whatever that would.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let Some((b'*', after)) = rest.split_first() {
            (rest, retry) = (after, Some((after, text)));
            continue;
        }
        let Some((byte, behind)) = text.split_first() else { return rest.is_empty() };
        if let Some(after) = one(rest, *byte) {
            (rest, text) = (after, behind);
            continue;
        }
        let Some((after, [_, next @ ..])) = retry else { return false };
        (rest, text, retry) = (after, next, Some((after, next)));
    }
}

/// What is left of `pattern` behind its first element, if that one describes `byte`.
fn one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    let (first, rest) = pattern.split_first()?;
    let plain = |literal: u8, rest| (literal == byte).then_some(rest);
    match first {
        b'?' => Some(rest),
        b'[' => match bracket(rest, byte) {
            Some((within, rest)) => within.then_some(rest),
            None => plain(b'[', rest),
        },
        b'\\' => rest.split_first().and_then(|(literal, rest)| plain(*literal, rest)),
        literal => plain(*literal, rest),
    }
}

/// Whether `byte` is one of a bracket's, and what follows the bracket. `set` begins behind the `[`.
fn bracket(set: &[u8], byte: u8) -> Option<(bool, &[u8])> {
    let (negated, mut set) = match set {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, set),
    };
    let (mut within, mut first) = (false, true);
    loop {
        set = match set {
            // In front, the closing bracket is one of the set.
            [b']', rest @ ..] if !first => return Some((within != negated, rest)),
            [from, b'-', to, rest @ ..] if *to != b']' => {
                within |= (*from..=*to).contains(&byte);
                rest
            }
            [one, rest @ ..] => {
                within |= *one == byte;
                rest
            }
            [] => return None,
        };
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_of_real_modules() {
        let pci = "pci:v00008086d000010D3sv*sd*bc*sc*i*";
        assert!(matches(pci, "pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00"));
        assert!(!matches(pci, "pci:v00008086d000010D4sv00008086sd0000A01Fbc02sc00i00"));
        let hid = "hid:b0003g*v0000046Dp*";
        assert!(matches(hid, "hid:b0003g0001v0000046Dp0000C52B"));
        assert!(!matches(hid, "hid:b0005g0001v0000046Dp0000C52B"));
        assert!(matches(
            "usb:v*p*d*dc*dsc*dp*ic08isc06ip62in*",
            "usb:v0951p1666d0110dc00dsc00dp00ic08isc06ip62in00"
        ));
        assert!(matches("usb:v0471p0602d000[1-9]dc*", "usb:v0471p0602d0007dc00"));
        assert!(!matches("usb:v0471p0602d000[1-9]dc*", "usb:v0471p0602d0000dc00"));
    }

    #[test]
    fn brackets_as_fnmatch_has_them() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*", "a", true),
            ("?", "", false),
            ("[!a-c]", "d", true),
            ("[^a-c]", "b", false),
            ("[]]", "]", true),
            ("[!]]", "]", false),
            ("[a-]", "-", true),
            ("[a-]", "b", false),
            ("[c-a]", "b", false),
            ("[a", "[a", true),
            ("[a", "a", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a\\", "a", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_time() {
        let pattern = "*a".repeat(120) + "b";
        assert!(!matches(&pattern, &"a".repeat(2048)));
    }

    /// The same by trying everything, and brackets by the set of their bytes.
    fn naive(pattern: &[u8], text: &[u8]) -> bool {
        let Some((first, rest)) = pattern.split_first() else { return text.is_empty() };
        let next = |set: &dyn Fn(u8) -> bool, rest: &[u8]| {
            text.first().is_some_and(|byte| set(*byte)) && naive(rest, &text[1..])
        };
        match first {
            b'*' => (0..=text.len()).any(|taken| naive(rest, &text[taken..])),
            b'?' => next(&|_| true, rest),
            b'\\' => rest.first().is_some_and(|escaped| next(&|b| b == *escaped, &rest[1..])),
            b'[' => {
                let negated = matches!(rest.first(), Some(b'!' | b'^'));
                let start = usize::from(negated);
                let Some(end) = (start + 1..rest.len()).find(|i| {
                    // An end of a range is no end of the bracket.
                    rest[*i] == b']'
                }) else {
                    return next(&|b| b == b'[', rest);
                };
                let mut set = std::collections::BTreeSet::new();
                let inner = &rest[start..end];
                let mut i = 0;
                while i < inner.len() {
                    if i + 2 < inner.len() && inner[i + 1] == b'-' {
                        set.extend(inner[i]..=inner[i + 2]);
                        i += 3;
                    } else {
                        set.insert(inner[i]);
                        i += 1;
                    }
                }
                next(&|b| set.contains(&b) != negated, &rest[end + 1..])
            }
            literal => next(&|b| b == *literal, rest),
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_trying_everything(
            pattern in r"([abc]|\*|\?|\[[!]?[abc]-[abc]\]|\[[abc\]]?[abc]{1,2}\]|[\[\]!\\-]){0,10}",
            text in r"[abc\[\]\\-]{0,10}",
        ) {
            prop_assert_eq!(matches(&pattern, &text), naive(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn a_pattern_made_from_a_text_matches_it(text in "[a-z0-9:]{0,40}", from in 0_usize..40, to in 0_usize..40) {
            let (from, to) = (from.min(text.len()), to.min(text.len()));
            let (from, to) = (from.min(to), from.max(to));
            let pattern = format!("{}*{}", &text[..from], text[to..].replace(|c: char| c.is_ascii_digit(), "[0-9]"));
            prop_assert!(matches(&pattern, &text));
        }
    }
}
