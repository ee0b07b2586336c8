//! netd: finds the node's ports, talks to its peers and keeps the group's virtual addresses alive.
//!
//! The only owner of the node's addresses. Its decisions are `netd_core`'s; this program is the shell around it:
//!
//! | module | subject |
//! |---|---|
//! | [`driver`] | the loop: inputs to the core, outputs to the world |
//! | [`netlink`] | links, addresses, routes, rules |
//! | [`ports`], [`carrier`], [`addressing`], [`sysctl`] | which interface a port is, what belongs onto it |
//! | [`lan`], [`frames`] | packet sockets; ARP and neighbour discovery |
//! | [`announce`], [`probe`] | when to tell and when to ask the LAN |
//! | [`peers`] | sessions with the group's nodes |
//! | [`fence`] | init's word that VIPs go when this program hangs |
//! | [`bus`] | `org.evenkeel.Net1` |
//!
//! It does not hold addresses back by itself when it dies: they stay until its last word to init ends, and a next life
//! that beats before that adopts them.

mod addressing;
mod announce;
mod bus;
mod carrier;
mod clock;
mod driver;
mod events;
mod fence;
mod frames;
mod lan;
mod netlink;
mod options;
mod part;
mod peers;
mod ports;
mod probe;
mod sys;
mod sysctl;

use crate::driver::Driver;
use crate::fence::Fence;
use crate::netlink::Kernel;
use crate::options::Options;
use crate::part::PartFile;
use daemon::Readiness;
use proto::text::one_line;
use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("netd: {error}");
            return ExitCode::from(2);
        }
    };
    daemon::log::start(&["netd", "netd_core", "peer", "bus"]);
    let readiness = Readiness::from_environment();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(&options, readiness)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options, readiness: Readiness) -> Result<(), Box<dyn Error>> {
    let (file, part) = PartFile::open(&options.part)?;
    tracing::info!(node = %part.node, cluster = part.cluster.cluster, boot = part.boot, "netd starts");
    let incarnation = incarnation(part.boot, clock::now());
    let fence = Fence::new(&options.init, part.cluster.timing);
    let (mut driver, reader) =
        Driver::new((file, part), incarnation, Kernel::open()?, fence, options.udp_port)?;
    driver.start().await?;
    bus::serve(&options.bus, reader)?;
    Ok(driver.run(readiness.tell()).await?)
}

/// Rises with every life of the node's netd, without a wall clock: the boot, then the milliseconds since it began.
fn incarnation(boot: u64, now: proto::time::Time) -> u64 {
    /// 34 years of milliseconds.
    const MILLIS_BITS: u32 = 40;
    let millis = now.as_nanos() / 1_000_000;
    (boot << MILLIS_BITS) | (millis & ((1 << MILLIS_BITS) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::time::Time;

    #[test]
    fn incarnations_rise_within_a_boot_and_across_boots() {
        let at = |secs: u64| Time::from_nanos(secs * 1_000_000_000);
        let lives = [(1, at(3)), (1, at(4)), (2, at(1)), (2, at(86_400 * 365 * 30)), (3, at(0))];
        let numbers: Vec<u64> = lives.iter().map(|(boot, now)| incarnation(*boot, *now)).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    }
}
