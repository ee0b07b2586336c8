//! daemontools: svscan as PID 1, a supervise for each service. svscan takes up to five seconds to look around.

use crate::subject::{Kind, Launch, Subject};

pub(crate) fn subject() -> Subject {
    Subject {
        name: "daemontools",
        kind: Kind::Supervisor,
        packages: &["daemontools"],
        programs: &["/peers/usr/bin/svscan", "/peers/usr/bin/supervise"],
        scaffold: &[],
        control: false,
        prepare: |root, count| {
            root.run_directories(count)?;
            Ok(Launch::new(["/peers/usr/bin/svscan", "/service"]))
        },
    }
}
