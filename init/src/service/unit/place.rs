//! Where a value stands in a file, for the refusal that names it.

use std::ops::Range;

use toml::Spanned;

use super::Refusal;

/// Words of a list: a command, names, paths, system calls.
pub(super) const LIST_MAX: usize = 64;
/// Bytes of one word or value.
pub(super) const WORD_MAX: usize = 4096;

/// A list of strings that all know their place.
pub(super) type Words = Spanned<Vec<Spanned<String>>>;

/// The file a value came from.
pub(super) struct Source<'a> {
    /// The service's name.
    pub(super) name: &'a str,
    pub(super) text: &'a str,
}

impl Source<'_> {
    /// A refusal of the value at `span`; of the file as a whole without one.
    pub(super) fn refuse(&self, span: Option<Range<usize>>, key: &str, message: String) -> Refusal {
        Refusal {
            name: shorten(self.name),
            file: shorten(&format!("{}.toml", self.name)),
            line: span.map_or(0, |s| self.line(&s)),
            key: key.to_owned(),
            message,
        }
    }

    /// A refusal of `value`.
    pub(super) fn refuse_value<T>(&self, value: &Spanned<T>, key: &str, message: String) -> Refusal {
        self.refuse(Some(value.span()), key, message)
    }

    /// The line where `span` begins, from 1.
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        self.text.bytes().take(span.start).filter(|b| *b == b'\n').count() + 1
    }

    /// The strings of `list`, bounded in number and length and free of NUL (they become C strings).
    pub(super) fn words(&self, list: &Words, key: &str) -> Result<Vec<String>, Refusal> {
        if list.get_ref().len() > LIST_MAX {
            return Err(self.refuse_value(list, key, format!("more than {LIST_MAX} entries")));
        }
        let mut out = Vec::new();
        for (i, word) in list.get_ref().iter().enumerate() {
            if word.get_ref().len() > WORD_MAX || word.get_ref().contains('\0') {
                let rule = format!("longer than {WORD_MAX} bytes or has a NUL");
                return Err(self.refuse_value(word, &format!("{key}[{i}]"), rule));
            }
            out.push(word.get_ref().clone());
        }
        Ok(out)
    }

    /// `value` when it lies in `range`; `what` names the unit in the refusal.
    pub(super) fn within<T: PartialOrd + Copy + std::fmt::Display>(
        &self,
        value: &Option<Spanned<T>>,
        key: &str,
        range: std::ops::RangeInclusive<T>,
    ) -> Result<Option<T>, Refusal> {
        match value {
            None => Ok(None),
            Some(v) if range.contains(v.get_ref()) => Ok(Some(*v.get_ref())),
            Some(v) => {
                let rule = format!("expected {} to {}, found {}", range.start(), range.end(), v.get_ref());
                Err(self.refuse_value(v, key, rule))
            }
        }
    }
}

/// A value from a file, cut to what a message may quote.
pub(super) fn shorten(value: &str) -> String {
    value.chars().take(48).collect()
}
