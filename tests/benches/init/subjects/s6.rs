//! s6: s6-svscan as PID 1, an s6-supervise for each service.

use crate::subject::{Kind, Launch, Subject};

pub(crate) fn subject() -> Subject {
    Subject {
        name: "s6",
        kind: Kind::Supervisor,
        packages: &["s6", "libs6-2.11", "libskarnet2.13", "libexecline2.9"],
        programs: &[
            "/peers/usr/bin/s6-svscan",
            "/peers/usr/bin/s6-supervise",
            "/peers/usr/lib/x86_64-linux-gnu/libs6.so.2.11",
            "/peers/usr/lib/x86_64-linux-gnu/libskarnet.so.2.13",
        ],
        scaffold: &[],
        control: false,
        prepare: |root, count| {
            root.run_directories(count)?;
            Ok(Launch::new(["/peers/usr/bin/s6-svscan", "/service"]))
        },
    }
}
