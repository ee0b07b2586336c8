//! The wall clock's floor: no boot happens before the image was built or before the last boot ended. Pure.
//!
//! A board without a battery starts in 1970 and finds every certificate not yet valid. A clock that is far ahead may be
//! right, and setting it back could not be told from an attack, so it is left and said; but it is not saved either: one
//! boot with a broken battery must not drag all later ones into the next century.

/// How far behind the image's making a clock is still believed, in seconds: longer than any release is in use.
const BELIEVED_S: u64 = 20 * 365 * 86_400;

/// What to do with the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may be right.
    Plausible,
    /// Set it to this many seconds since 1970.
    Lift { to_s: u64, from_saved: bool },
    /// Too far in the future; leave it, and do not save it.
    Ahead,
}

/// Judges a clock that shows `now_s`; the image was made at `build_s` (0 = unknown), the last time saved is `saved_s`
/// (0 = none). Seconds since 1970.
pub(crate) fn judge(now_s: u64, build_s: u64, saved_s: u64) -> Verdict {
    // Without a build time there is nothing to measure the future by.
    let latest = if build_s == 0 { u64::MAX } else { build_s.saturating_add(BELIEVED_S) };
    let saved = if saved_s > latest { 0 } else { saved_s };
    let floor = build_s.max(saved);
    if now_s < floor {
        Verdict::Lift { to_s: floor, from_saved: saved > build_s }
    } else if now_s > latest {
        Verdict::Ahead
    } else {
        Verdict::Plausible
    }
}

/// Reads `build_time` from the text of `/etc/evenkeel/release`; 0 when there is none.
pub(crate) fn build_time(release: &str) -> u64 {
    value(release, "build_time").and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// The value of `key` in the release file, without quotes.
pub(crate) fn value<'a>(release: &'a str, key: &str) -> Option<&'a str> {
    let lines = release.lines().filter_map(|l| l.split_once('='));
    lines.into_iter().find(|(k, _)| k.trim() == key).map(|(_, v)| v.trim().trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_lifted_left_or_doubted() {
        let (build, y2099) = (1_760_000_000, 4_070_908_800);
        let lift = |to_s, from_saved| Verdict::Lift { to_s, from_saved };
        let cases = [
            ((0, build, 0), lift(build, false)),
            ((5, build, build + 100), lift(build + 100, true)),
            // An older release on the other slot: what was saved counts.
            ((build + 50, build, build + 100), lift(build + 100, true)),
            ((build + 50, build, build - 100), Verdict::Plausible),
            ((build, build, build), Verdict::Plausible),
            ((build + 200, build, build + 100), Verdict::Plausible),
            ((y2099, build, 0), Verdict::Ahead),
            // Saved by a boot that believed in 2099: not a floor.
            ((build + 200, build, y2099), Verdict::Plausible),
            ((5, build, u64::MAX), lift(build, false)),
            // No release file.
            ((5, 0, 100), lift(100, true)),
            ((y2099, 0, 0), Verdict::Plausible),
        ];
        for ((now, build, saved), expected) in cases {
            assert_eq!(judge(now, build, saved), expected, "{now} {build} {saved}");
        }
    }

    #[test]
    fn the_release_file_is_read() {
        let text = "product = \"evenkeel\"\nversion = \"0.1.0\"\nbuild_time = 1760000000\n";
        assert_eq!(build_time(text), 1_760_000_000);
        assert_eq!(value(text, "version"), Some("0.1.0"));
        assert_eq!((build_time("build_time = soon"), build_time(""), value("", "version")), (0, 0, None));
    }
}
