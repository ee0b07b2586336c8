//! What a service file says about privileges, walls, limits and sockets, on real processes. Each part is seen to work
//! or to be refused with its reason.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};

use common::{Ids, Init, NOTIFY, PATIENCE, directory_of};
use proto::control::{Reply, Request, ServiceState};

/// Says ready once its output is written, and stays.
fn says(script: &str) -> String {
    format!("{script}; echo >&$NOTIFY_FD; exec sleep 100")
}

/// What the only service of a file with `rest` says.
fn output_of(test: &str, rest: &str, script: &str) -> Vec<String> {
    let script = says(script);
    let mut init = Init::start(test, &[("a", &format!("{NOTIFY}\n{rest}"), &script)]);
    init.wait_for("a: ready");
    init.output("a")
}

/// Waits until the service `a` has failed to start with `why`.
fn refused(test: &str, rest: &str, why: &str) {
    let mut init = Init::start(test, &[("a", rest, "exec sleep 100"), ("b", "", "exec sleep 100")]);
    init.wait_for(why);
    init.wait_for("b: ready");
    assert_ne!(init.row("a").state, ServiceState::Ready);
}

#[test]
fn capabilities_are_all_that_a_service_keeps() {
    let status = "grep -E '^(Cap|NoNew)' /proc/self/status | tr -d '\\t'";
    let kept = output_of("caps", "capabilities = ['NET_ADMIN']\nno_new_privs = true", status);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(kept.contains(&format!("{set}:0000000000001000")), "{kept:?}");
    }
    assert!(kept.contains(&"NoNewPrivs:1".to_owned()), "{kept:?}");
    let none = output_of("nocaps", "capabilities = []", status);
    for set in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(none.contains(&format!("{set}:0000000000000000")), "{none:?}");
    }
    let all = output_of("allcaps", "", status);
    assert!(all.contains(&"NoNewPrivs:0".to_owned()) && !all.contains(&"CapEff:0000000000000000".to_owned()));
}

#[test]
fn a_service_runs_as_its_user_or_not_at_all() {
    refused("nouser", "user = 1000", "cannot drop supplementary groups: Operation not permitted");
    if !nix::unistd::geteuid().is_root() {
        // Other ids than one's own can only be had from root: the refusal above is all there is to see.
        return;
    }
    let script = says("id -u; id -g; id -G; grep CapEff /proc/self/status | tr -d '\\t'");
    let rest = format!("{NOTIFY}\nuser = 1000\ngroup = 1001\ncapabilities = ['NET_RAW']");
    let plain = format!("{NOTIFY}\nuser = 1000");
    let mut init = Init::start_as(Ids::All, "user", &[("a", &rest, &script), ("b", &plain, &script)], &[]);
    init.wait_for("a: ready");
    init.wait_for("b: ready");
    assert_eq!(init.output("a"), ["1000", "1001", "1001", "CapEff:0000000000002000"]);
    assert_eq!(init.output("b"), ["1000", "1000", "1000", "CapEff:0000000000000000"]);
}

#[test]
fn system_calls_that_are_not_listed_fail() {
    let script = "mount -t tmpfs tmpfs /mnt 2>/dev/null && echo mounted || echo refused; \
                  grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status | tr -d '\\t'";
    let free = output_of("calls-free", "", script);
    assert_eq!(free, ["mounted", "NoNewPrivs:0", "Seccomp:0"]);
    let set = output_of("calls-set", "[sandbox]\nsystem_calls = ['@service']", script);
    assert_eq!(set, ["refused", "NoNewPrivs:1", "Seccomp:2"]);
    let more = output_of("calls-more", "[sandbox]\nsystem_calls = ['@service', 'mount']", script);
    assert_eq!(more, ["mounted", "NoNewPrivs:1", "Seccomp:2"]);
}

#[test]
fn a_program_that_cannot_run_says_so_through_its_filter() {
    // The program is there when the file is read and is no program when it is executed.
    let path = directory_of("calls-exec").with_extension("prog");
    std::fs::write(&path, "\x7fELF but not really").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).unwrap();
    let text = format!("command = ['{}']\n[sandbox]\nsystem_calls = ['read']\n", path.display());
    let mut init = Init::start_files("calls-exec", &[("a", &text)]);
    init.wait_for(&format!("cannot run {}: Exec format error", path.display()));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn paths_that_are_not_listed_are_out_of_reach() {
    let d = directory_of("paths");
    let d = d.display();
    let rest = format!(
        "[sandbox]\nread = ['/bin', '/lib', '/lib64', '/usr', '/etc']\nwrite = ['{d}/logs', '/dev/null']"
    );
    let script = "echo x > $D/logs/w && cat $D/logs/w; (echo x > $D/run/w) 2>/dev/null || echo unwritable; \
                  cat $D/services/a.toml 2>/dev/null || echo unreadable; \
                  (echo x > /etc/evenkeel-test) 2>/dev/null || echo read-only";
    assert_eq!(output_of("paths", &rest, script), ["x", "unwritable", "unreadable", "read-only"]);
    refused(
        "nopath",
        "[sandbox]\nread = ['/']\nwrite = ['/nowhere']",
        "cannot allow sandbox.write[0]: /nowhere: No such file or directory",
    );
}

#[test]
fn mounts_are_read_only_but_tmp_and_what_may_be_written() {
    let try_all =
        "for f in $D/w /run/w /tmp/w; do (echo x > $f) 2>/dev/null && echo $f || echo no; done; ls /tmp";
    let lines = output_of("ro", "[sandbox]\nread_only_root = true\nprivate_tmp = true", try_all);
    assert_eq!(lines, ["no", "no", "/tmp/w", "w"]);
    let rest = "[sandbox]\nread_only_root = true\nread = ['/']\nwrite = ['/run', '/dev']";
    let script = "for f in $D/w /run/w; do (echo x > $f) 2>/dev/null && echo $f || echo no; done";
    assert_eq!(output_of("ro-but", rest, script), ["no", "/run/w"]);
    // What one service mounts is not there for another.
    let mounts = says("mount -t tmpfs tmpfs /mnt && : > /mnt/own && ls /mnt");
    let looks = says("ls /mnt | grep own || echo nothing");
    let own = format!("{NOTIFY}\n[sandbox]\nprivate_mounts = true");
    let mut init =
        Init::start("mounts", &[("a", &own, &mounts), ("b", &format!("{NOTIFY}\nrequires = ['a']"), &looks)]);
    init.wait_for("b: ready");
    assert_eq!((init.output("a"), init.output("b")), (vec!["own".to_owned()], vec!["nothing".to_owned()]));
}

#[test]
fn without_network_there_is_another_namespace() {
    let script = says("readlink /proc/self/ns/net; grep -c : /proc/net/dev");
    let none = format!("{NOTIFY}\n[sandbox]\nnetwork = false");
    let mut init = Init::start("network", &[("a", &none, &script), ("b", NOTIFY, &script)]);
    init.wait_for("a: ready");
    init.wait_for("b: ready");
    let (without, with) = (init.output("a"), init.output("b"));
    assert_ne!(without[0], with[0]);
    assert_eq!(without[1], "1", "loopback alone");
}

#[test]
fn limits_of_a_process_are_set_or_refused() {
    let script =
        "ulimit -n; ulimit -c; ulimit -l; cut -d' ' -f19 /proc/self/stat; cat /proc/self/oom_score_adj";
    let rest =
        "[limits]\nopen_files = 64\ncore_dump = '0'\nlocked_memory = '64K'\noom_score_adj = 500\nnice = 19";
    assert_eq!(output_of("limits", rest, script), ["64", "0", "64", "19", "500"]);
    assert_eq!(output_of("defaults", "", "ulimit -n; ulimit -c"), ["1024", "0"]);
    refused(
        "realtime",
        "[limits]\nrealtime_priority = 10",
        "cannot set limits.realtime_priority: Operation not permitted",
    );
}

#[test]
fn limits_of_a_group_need_its_controllers() {
    refused(
        "nogroups",
        "[limits]\nprocesses = 16",
        "its limits need control groups: init was started without a cgroup2 directory",
    );
    let fake = directory_of("fake-cgroup");
    std::fs::create_dir_all(&fake).unwrap();
    for (file, text) in [("cgroup.procs", ""), ("cgroup.controllers", "hugetlb\n")] {
        std::fs::write(fake.join(file), text).unwrap();
    }
    let services = [("a", "[limits]\nmemory = '32M'", "exec sleep 100")];
    let path = fake.display().to_string();
    let mut init = Init::start_as(Ids::Root, "controllers", &services, &["--cgroup", &path]);
    init.wait_for("cannot set limits.memory: no memory controller in");
    init.wait_for("(there: hugetlb)");
    drop(init);
    std::fs::remove_dir_all(fake).unwrap();
}

#[test]
fn sockets_take_connections_before_and_between_lives() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // Each life serves one connection and ends.
    let server = "echo >&$NOTIFY_FD; exec perl -e 'open(L, \"+<&=4\") or die; accept(C, L) or die; \
                  syswrite(C, \"$ENV{LISTEN_FDS} $ENV{LISTEN_FDNAMES} $$\\n\")'";
    let rest =
        format!("{NOTIFY}\nrequires = ['gate']\n[[socket]]\nname = 'web'\nstream = '127.0.0.1:{port}'");
    let gate = says("while [ ! -e $D/go ]; do sleep 0.05; done");
    let mut init = Init::start("socket", &[("a", &rest, server), ("gate", NOTIFY, &gate)]);
    init.wait_for("2 services, 0 refused");
    // The log line comes before the sockets: the control socket answers after them.
    assert_eq!(init.row("a").state, ServiceState::Waiting);
    let connect = || {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let (first, second) = (connect(), connect());
    std::fs::write(init.directory.join("go"), "").unwrap();
    let answer = |stream: TcpStream| {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    };
    let (first, second) = (answer(first), answer(second));
    assert!(first.starts_with("1 web ") && second.starts_with("1 web "), "{first:?} {second:?}");
    assert_ne!(first, second, "two lives");
    // Another init keeps the very socket.
    assert_eq!(init.ask(&Request::ReExec { path: None }), Reply::Accepted);
    let third = connect();
    init.wait_for("took over 2 services");
    assert!(answer(third).starts_with("1 web "));
    assert!(answer(connect()).starts_with("1 web "));
}

#[test]
fn a_socket_that_cannot_be_made_keeps_its_service_down_until_it_can() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let rest = format!("[[socket]]\nstream = '{address}'");
    let mut init = Init::start("taken", &[("a", &rest, "exec sleep 100")]);
    init.wait_for(&format!("cannot make its socket {address}: Address already in use"));
    drop(taken);
    init.wait_for("a: ready");
}

#[test]
fn a_socket_with_a_path_has_its_mode() {
    let rest = "[[socket]]\nstream = '/run/a.sock'\nmode = '0620'\n[[socket]]\nseqpacket = '/run/b.sock'";
    let lines = output_of("modes", rest, "stat -c '%a %F' /run/a.sock /run/b.sock; echo $LISTEN_FDNAMES");
    assert_eq!(lines, ["620 socket", "600 socket", "a:a"]);
}
