//! init, as the device runs it, in its container mode.

use std::io;

use crate::subject::{Kind, Launch, Root, SOCKET, Subject, service_program};

/// init's control socket on the root.
pub(crate) const CONTROL: &str = "/run/evenkeel/init.sock";
/// The number of the service that writes lines.
pub(crate) const TALKER: usize = 0;
/// Where its lines are kept.
pub(crate) const TALKERS_LOG: &str = "/logs/s0.log";

/// The row the others are compared with: services' output is captured, none of it is kept on a disk.
pub(crate) fn init() -> Subject {
    Subject {
        name: "init",
        kind: Kind::Supervisor,
        packages: &[],
        programs: &["/device/init"],
        scaffold: &[],
        control: true,
        prepare: |root, count| {
            services(root, count, |_| String::new())?;
            Ok(launch(&[]))
        },
    }
}

/// With the child that keeps the services' output in files, as on the device.
pub(crate) fn init_with_logs() -> Subject {
    Subject {
        name: "init-logs",
        prepare: |root, count| {
            services(root, count, |_| String::new())?;
            Ok(launch(&["--logs", "/logs"]))
        },
        control: false,
        ..init()
    }
}

/// `count` services of which [`TALKER`] writes `lines` lines; output is kept.
pub(crate) fn prepare_talking(root: &Root, count: usize, lines: usize) -> io::Result<Launch> {
    services(root, count, |n| if n == TALKER { format!(", \"{lines}\"") } else { String::new() })?;
    Ok(launch(&["--logs", "/logs"]))
}

fn services(root: &Root, count: usize, more: impl Fn(usize) -> String) -> io::Result<()> {
    (0..count).try_for_each(|n| {
        let text = format!("command = [\"{}\", \"{SOCKET}\", \"{n}\"{}]\n", service_program(), more(n));
        root.file(&format!("/services/s{n}.toml"), &text)
    })
}

fn launch(more: &[&str]) -> Launch {
    let mut launch =
        Launch::new(["/device/init", "--container", "--services", "/services", "--run", "/run/evenkeel"]);
    launch.words.extend(more.iter().map(|w| (*w).to_owned()));
    launch
}
