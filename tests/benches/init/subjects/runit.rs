//! runit: runit as PID 1, runsvdir as its stage 2, a runsv for each service.

use crate::subject::{Kind, Launch, Subject};

pub(crate) fn subject() -> Subject {
    Subject {
        name: "runit",
        kind: Kind::Supervisor,
        packages: &["runit"],
        programs: &["/peers/sbin/runit", "/peers/usr/bin/runsvdir", "/peers/usr/bin/runsv"],
        scaffold: &[],
        control: false,
        prepare: |root, count| {
            root.run_directories(count)?;
            root.script("/etc/runit/1", "exit 0")?;
            root.script("/etc/runit/2", "exec runsvdir -P /service")?;
            root.script("/etc/runit/3", "exit 0")?;
            Ok(Launch::new(["/peers/sbin/runit"]))
        },
    }
}
