//! The provisioning daemon: finds out which node this is, keeps what must survive a reboot, and writes each daemon's
//! part of the configuration.
//!
//! ```text
//! STATE or SMBIOS --> personality --> config --> parts/netd, host name, bus
//!                         |             |
//!       boot id --> node record <--- digest          (every arrow into STATE is durable before the next step)
//! ```
//! It owns `/state/evenkeel`. A configuration that is refused does not stop it: it stays up and says why on the bus. A
//! disk that cannot keep what must be kept does: it ends with an error, and nothing that depends on it is started.

mod bus;
mod config;
mod driver;
mod init;
mod log;
mod node_record;
mod options;
mod parts;
mod personality;

use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = match options::parse(std::env::args_os().skip(1)) {
        Ok(options) => options,
        Err(e) => {
            eprintln!("provisiond: {e}");
            return ExitCode::from(2);
        }
    };
    log::start();
    match driver::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{}", with_causes(&e));
            ExitCode::FAILURE
        }
    }
}

/// An error and what led to it, on one line.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text.push_str(": ");
        text.push_str(&e.to_string());
        cause = e.source();
    }
    text
}
