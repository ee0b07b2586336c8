//! The floor: forty lines of C (`helpers/floor.c`).

use crate::subject::{Kind, Launch, SOCKET, Subject, service_program};

pub(crate) fn subject() -> Subject {
    Subject {
        name: "floor",
        kind: Kind::Supervisor,
        packages: &[],
        programs: &["/bench/floor"],
        scaffold: &[],
        control: false,
        prepare: |_, count| Ok(Launch::new(["/bench/floor", &service_program(), SOCKET, &count.to_string()])),
    }
}
