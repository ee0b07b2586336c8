//! busybox init (the static package): one process, `respawn` entries in its inittab. It sleeps for a second between
//! its turns. Its size is that of all its applets.

use std::fmt::Write;

use crate::subject::{Kind, Launch, Subject, service_line};

pub(crate) fn subject() -> Subject {
    Subject {
        name: "busybox",
        kind: Kind::Supervisor,
        packages: &["busybox-static"],
        programs: &["/peers/bin/busybox"],
        scaffold: &[],
        control: false,
        prepare: |root, count| {
            let mut inittab = String::new();
            for n in 0..count {
                let _ = writeln!(inittab, "::respawn:{}", service_line(n));
            }
            root.file("/etc/inittab", &inittab)?;
            // It is init by the name it is called by.
            root.link("/init", "/peers/bin/busybox")?;
            Ok(Launch::new(["/init"]))
        },
    }
}
