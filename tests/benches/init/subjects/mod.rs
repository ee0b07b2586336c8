//! The subjects, a file for each: ours first, then the floor, then the peers.

pub(crate) mod evenkeel;

mod busybox;
mod catatonit;
mod daemontools;
mod dinit;
mod dumb_init;
mod finit;
mod floor;
mod openrc;
mod runit;
mod s6;
mod sysvinit;
mod tini;

use crate::subject::Subject;

/// All of them, in the table's order.
pub(crate) fn all() -> Vec<Subject> {
    let mut all = vec![
        evenkeel::init(),
        evenkeel::init_with_logs(),
        floor::subject(),
        s6::subject(),
        runit::subject(),
        daemontools::subject(),
        sysvinit::subject(),
        busybox::subject(),
        finit::subject(),
        openrc::subject(),
    ];
    all.extend(dinit::subject());
    all.extend([tini::subject(), dumb_init::subject(), catatonit::subject()]);
    all
}
