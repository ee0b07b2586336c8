//! What the child that loads modules tells PID 1, a packet each: `JOB WORD …` in text.
//!
//! ```text
//! 7 loading ax88179_178a              it may take long from here
//! 7 refused 19 f tg3                  errno, whether it names firmware, name
//! 7 trouble no index: …               something else did not work; the job goes on
//! 7 finished 31 2                     modaliases looked at, modules loaded; the last packet
//! ```
//! Every packet says that the child is alive. The number keeps late words of a child that was killed from being taken
//! for its successor's.

use crate::ring;

/// Bytes of a packet.
pub(crate) const REPORT_MAX: usize = 512;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    Loading(String),
    Refused { name: String, errno: i32, firmware: bool },
    Trouble(String),
    Finished { modaliases: usize, loaded: usize },
}

impl Report {
    /// The packet of job `job`.
    pub(crate) fn packet(&self, job: u32) -> String {
        let mut text = match self {
            Report::Loading(name) => format!("{job} loading {name}"),
            Report::Refused { name, errno, firmware } => {
                format!("{job} refused {errno} {} {name}", if *firmware { "f" } else { "m" })
            }
            Report::Trouble(text) => format!("{job} trouble {text}"),
            Report::Finished { modaliases, loaded } => format!("{job} finished {modaliases} {loaded}"),
        };
        ring::shorten(&mut text, REPORT_MAX);
        text
    }

    /// Reads a packet: whose it is and what it says.
    pub(crate) fn parse(packet: &[u8]) -> Option<(u32, Report)> {
        let text = std::str::from_utf8(packet).ok()?;
        let (job, text) = text.split_once(' ')?;
        let (word, rest) = text.split_once(' ')?;
        let report = match word {
            "loading" => Report::Loading(rest.to_owned()),
            "refused" => {
                let mut words = rest.splitn(3, ' ');
                let errno = words.next()?.parse().ok()?;
                let firmware = words.next()? == "f";
                Report::Refused { name: words.next()?.to_owned(), errno, firmware }
            }
            "trouble" => Report::Trouble(rest.to_owned()),
            "finished" => {
                let (modaliases, loaded) = rest.split_once(' ')?;
                Report::Finished { modaliases: modaliases.parse().ok()?, loaded: loaded.parse().ok()? }
            }
            _ => return None,
        };
        Some((job.parse().ok()?, report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_its_packet() {
        for report in [
            Report::Loading("ax88179_178a".into()),
            Report::Refused { name: "tg3".into(), errno: libc::ENODEV, firmware: true },
            Report::Refused { name: "b".into(), errno: 0, firmware: false },
            Report::Trouble("no index: it is gone".into()),
            Report::Finished { modaliases: 31, loaded: 2 },
        ] {
            assert_eq!(Report::parse(report.packet(7).as_bytes()), Some((7, report)));
        }
        let long = Report::Trouble("é".repeat(REPORT_MAX)).packet(u32::MAX);
        assert!(long.len() <= REPORT_MAX && Report::parse(long.as_bytes()).is_some());
    }

    #[test]
    fn what_is_no_report_is_nothing() {
        for packet in [
            &b""[..],
            b"7",
            b"7 loading",
            b"x loading a",
            b"-1 loading a",
            b"7 refused 19 f",
            b"7 refused no f a",
            b"7 finished 1",
            b"7 dancing a",
            b"7 loading \xff",
        ] {
            assert_eq!(Report::parse(packet), None);
        }
    }
}
