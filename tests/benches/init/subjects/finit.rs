//! finit: one process, `service` lines in its configuration.

use std::fmt::Write;

use crate::subject::{Kind, Launch, Subject, service_line};

pub(crate) fn subject() -> Subject {
    Subject {
        name: "finit",
        kind: Kind::Supervisor,
        packages: &["finit", "libite5", "libuev3"],
        programs: &[
            "/peers/sbin/finit",
            "/peers/usr/lib/x86_64-linux-gnu/libite.so.5",
            "/peers/usr/lib/x86_64-linux-gnu/libuev.so.3",
        ],
        scaffold: &[],
        control: false,
        prepare: |root, count| {
            let mut conf = "runlevel 2\n".to_owned();
            for n in 0..count {
                let _ = writeln!(conf, "service name:s :{n} [S12345] {} -- s{n}", service_line(n));
            }
            root.file("/etc/finit.conf", &conf)?;
            root.file("/etc/fstab", "")?;
            Ok(Launch::new(["/peers/sbin/finit"]))
        },
    }
}
