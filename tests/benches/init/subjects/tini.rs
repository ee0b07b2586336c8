//! tini: passes signals on to its one child and collects orphans.

use crate::subject::{Kind, Launch, SOCKET, Subject, service_program};

pub(crate) fn subject() -> Subject {
    Subject {
        name: "tini",
        kind: Kind::Reaper,
        packages: &["tini"],
        programs: &["/peers/usr/bin/tini"],
        scaffold: &[],
        control: false,
        prepare: |_, _| Ok(Launch::new(["/peers/usr/bin/tini", "--", &service_program(), SOCKET, "0"])),
    }
}
