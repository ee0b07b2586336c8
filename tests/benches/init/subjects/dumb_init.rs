//! dumb-init: passes signals on to its one child and collects orphans.

use crate::subject::{Kind, Launch, SOCKET, Subject, service_program};

pub(crate) fn subject() -> Subject {
    Subject {
        name: "dumb-init",
        kind: Kind::Reaper,
        packages: &["dumb-init"],
        programs: &["/peers/usr/bin/dumb-init"],
        scaffold: &[],
        control: false,
        prepare: |_, _| Ok(Launch::new(["/peers/usr/bin/dumb-init", "--", &service_program(), SOCKET, "0"])),
    }
}
