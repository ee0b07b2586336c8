//! OpenRC's supervise-daemon: a process for each service. It is no PID 1; catatonit of the bench is, uncounted.

use crate::subject::{Kind, Launch, Subject, service_program};

pub(crate) fn subject() -> Subject {
    Subject {
        name: "openrc",
        kind: Kind::Supervisor,
        packages: &["openrc", "libeinfo1", "librc1", "catatonit"],
        programs: &[
            "/peers/sbin/supervise-daemon",
            "/peers/lib/x86_64-linux-gnu/libeinfo.so.1",
            "/peers/lib/x86_64-linux-gnu/librc.so.1",
        ],
        scaffold: &["catatonit", "sleep", "dash", "sh", "bash"],
        control: false,
        prepare: |root, count| {
            root.script(
                "/start",
                &format!(
                    "mkdir -p /run/openrc /etc/init.d /lib/rc\nn=0\nwhile [ $n -lt {count} ]; do\n\
                     RC_SVCNAME=s$n supervise-daemon s$n --start --pidfile /run/s$n.pid {} -- /bench.sock $n\n\
                     n=$((n+1))\ndone\nexec sleep 100000",
                    service_program()
                ),
            )?;
            Ok(Launch::new(["/peers/usr/bin/catatonit", "--", "/start"]))
        },
    }
}
