//! catatonit: passes signals on to its one child and collects orphans; a static program.

use crate::subject::{Kind, Launch, SOCKET, Subject, service_program};

pub(crate) fn subject() -> Subject {
    Subject {
        name: "catatonit",
        kind: Kind::Reaper,
        packages: &["catatonit"],
        programs: &["/peers/usr/bin/catatonit"],
        scaffold: &[],
        control: false,
        prepare: |_, _| Ok(Launch::new(["/peers/usr/bin/catatonit", "--", &service_program(), SOCKET, "0"])),
    }
}
