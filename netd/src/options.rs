//! The command line: paths that tests and the lab change; an appliance runs netd without any.

use crate::peers::PEER_PORT;
use proto::control::SOCKET_PATH;
use proto::part::NETD_PART_PATH;
use std::path::PathBuf;

const USAGE: &str = "usage: netd [--part PATH] [--bus PATH] [--init PATH] [--udp-port NUMBER]";

/// Where netd serves its bus.
const BUS_PATH: &str = "/run/evenkeel/bus/netd";

/// What the command line says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// netd's part of the configuration.
    pub(crate) part: PathBuf,
    /// The bus socket.
    pub(crate) bus: PathBuf,
    /// init's control socket.
    pub(crate) init: PathBuf,
    /// The peers' UDP port, the same on all nodes.
    pub(crate) udp_port: u16,
}

impl Options {
    /// Reads the arguments behind the program's name.
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options {
            part: NETD_PART_PATH.into(),
            bus: BUS_PATH.into(),
            init: SOCKET_PATH.into(),
            udp_port: PEER_PORT,
        };
        while let Some(option) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{option} needs a value; {USAGE}"));
            match option.as_str() {
                "--part" => options.part = value()?.into(),
                "--bus" => options.bus = value()?.into(),
                "--init" => options.init = value()?.into(),
                "--udp-port" => {
                    let text = value()?;
                    let number = text.parse().ok().filter(|port| *port != 0);
                    options.udp_port =
                        number.ok_or_else(|| format!("--udp-port {text}: expected 1 to 65535; {USAGE}"))?;
                }
                _ => return Err(format!("unknown argument {option}; {USAGE}")),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        Options::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn arguments_are_read_or_refused() {
        let bare = parse("").unwrap();
        assert_eq!((bare.part, bare.udp_port), (NETD_PART_PATH.into(), 7400));
        let all = parse("--part /tmp/p --bus /tmp/b --init /tmp/i --udp-port 7500").unwrap();
        let [part, bus, init] = ["/tmp/p", "/tmp/b", "/tmp/i"].map(PathBuf::from);
        assert_eq!(all, Options { part, bus, init, udp_port: 7500 });
        for wrong in ["--part", "--udp-port 0", "--udp-port x", "-v", "file"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
