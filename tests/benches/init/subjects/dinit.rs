//! dinit: one process. Debian 12 does not have it: it is measured when `EVENKEEL_BENCH_DINIT` names its program.

use std::path::PathBuf;

use crate::subject::{Kind, Launch, Subject, service_line};

/// Names the program, which is copied to the root.
const VARIABLE: &str = "EVENKEEL_BENCH_DINIT";

fn program() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

pub(crate) fn subject() -> Option<Subject> {
    // The size is asked for outside of any root, so the path has to live as long as the bench.
    let path: &'static str = String::leak(program()?.to_str()?.to_owned());
    Some(Subject {
        name: "dinit",
        kind: Kind::Supervisor,
        packages: &[],
        programs: Vec::leak(vec![path]),
        scaffold: &[],
        control: false,
        prepare: |root, count| {
            std::fs::copy(program().unwrap_or_default(), root.outside("/dinit"))?;
            let mut boot = "type = internal\n".to_owned();
            for n in 0..count {
                let text = format!("type = process\ncommand = {}\nrestart = true\n", service_line(n));
                root.file(&format!("/services/s{n}"), &text)?;
                boot.push_str(&format!("waits-for: s{n}\n"));
            }
            root.file("/services/boot", &boot)?;
            Ok(Launch::new([
                "/dinit",
                "--container",
                "--services-dir",
                "/services",
                "--socket-path",
                "/run/dinit",
                "boot",
            ]))
        },
    })
}
