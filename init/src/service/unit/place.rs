//! Where a value stands in a file, for the refusal that names it.

/// The line of byte `at`, from 1.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|b| *b == b'\n').count() + 1
}

/// A value from a file, cut to what a message may quote.
pub(super) fn shorten(value: &str) -> String {
    value.chars().take(48).collect()
}
