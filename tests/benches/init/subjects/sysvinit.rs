//! sysvinit: one process, `respawn` entries in its inittab.

use std::fmt::Write;

use crate::subject::{Kind, Launch, Subject, service_line};

pub(crate) fn subject() -> Subject {
    Subject {
        name: "sysvinit",
        kind: Kind::Supervisor,
        packages: &["sysvinit-core"],
        programs: &["/peers/sbin/init"],
        scaffold: &[],
        control: false,
        prepare: |root, count| {
            let mut inittab = "id:2:initdefault:\n".to_owned();
            for n in 0..count {
                let _ = writeln!(inittab, "{n}:2:respawn:{}", service_line(n));
            }
            root.file("/etc/inittab", &inittab)?;
            Ok(Launch::new(["/peers/sbin/init"]))
        },
    }
}
