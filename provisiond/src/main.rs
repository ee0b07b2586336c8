//! The provisioning daemon: finds out which node this is, keeps what must survive a reboot, and writes each daemon's
//! part of the configuration.
//!
//! ```text
//! STATE or SMBIOS --> personality --> config --> parts/netd, host name, bus
//!                         |             |  ^
//!                         |             |  +---- roster chain <-- entries handed in on the bus
//!       boot id --> node record <--- digest          (every arrow into STATE is durable before the next step)
//! ```
//! It owns `/state/evenkeel`. A configuration that is refused does not stop it: it stays up and says why on the bus. A
//! disk that cannot keep what must be kept does: it ends with an error, and nothing that depends on it is started.

mod bus;
mod config;
mod driver;
mod init;
mod machine;
mod node_record;
mod options;
mod parts;
mod personality;
mod records;
mod roster;

use proto::text::one_line;
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = match options::parse(std::env::args_os().skip(1)) {
        Ok(options) => options,
        Err(e) => {
            eprintln!("provisiond: {e}");
            return ExitCode::from(2);
        }
    };
    daemon::log::start(&["provisiond", "bus"]);
    match driver::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{}", one_line(&e));
            ExitCode::FAILURE
        }
    }
}
