//! The architecture's arrows, held by a test: who may know whom, who alone may know a library, which licences and
//! duplicates come in with it. Reads `cargo metadata`; the few rules about sources read the files git tracks.

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Own crate -> own crates it may use in the product. Arrows run one way: shells -> cores -> quorum -> proto.
const ARROWS: &[(&str, &[&str])] = &[
    ("evenkeel-proto", &[]),
    ("evenkeel-quorum", &["evenkeel-proto"]),
    ("evenkeel-store", &["evenkeel-proto"]),
    ("evenkeel-peer-core", &["evenkeel-proto"]),
    ("evenkeel-peer", &["evenkeel-proto", "evenkeel-peer-core"]),
    ("evenkeel-bus", &[]),
    ("evenkeel-daemon", &["evenkeel-proto"]),
    ("evenkeel-init", &["evenkeel-proto", "evenkeel-store"]),
    ("evenkeel-netd-core", &["evenkeel-proto"]),
    (
        "evenkeel-netd",
        &["evenkeel-proto", "evenkeel-netd-core", "evenkeel-peer", "evenkeel-bus", "evenkeel-daemon"],
    ),
    ("evenkeel-provisiond-core", &["evenkeel-proto", "evenkeel-peer-core"]),
    (
        "evenkeel-provisiond",
        &["evenkeel-proto", "evenkeel-store", "evenkeel-peer-core", "evenkeel-bus", "evenkeel-daemon"],
    ),
    ("evenkeel-console", &["evenkeel-proto", "evenkeel-peer-core", "evenkeel-bus", "evenkeel-daemon"]),
    ("evenkeel-demo", &[]),
    ("evenkeel-image", &["evenkeel-proto", "evenkeel-peer-core", "evenkeel-provisiond-core"]),
    ("evenkeel-lab", &["evenkeel-proto", "evenkeel-image"]),
    ("evenkeel-tests", &[]),
];

/// Crates that touch no world: everything they may use, directly or through others, is on this list.
const PURE: &[&str] = &[
    "evenkeel-proto",
    "evenkeel-quorum",
    "evenkeel-netd-core",
    "evenkeel-peer-core",
    "evenkeel-provisiond-core",
];

/// Libraries a pure crate may never reach: they open sockets, files, clocks or start threads.
const WORLDLY: &[&str] = &[
    "tokio",
    "nix",
    "libc",
    "rtnetlink",
    "netlink-packet-route",
    "zbus",
    "quinn",
    "rustls",
    "socket2",
    "mio",
    "tracing",
    "rand",
    "getrandom",
];

/// A library that moves fast or is dangerous in two hands -> the only own crate that may import it.
const SOLE_IMPORTER: &[(&str, &str)] = &[
    ("rtnetlink", "evenkeel-netd"),
    ("netlink-packet-route", "evenkeel-netd"),
    ("zbus", "evenkeel-bus"),
    ("quinn", "evenkeel-peer"),
    ("rustls", "evenkeel-peer"),
    ("smoltcp", "evenkeel-lab"),
    ("backhand", "evenkeel-image"),
];

/// PID 1 has no runtime, no bus, no cryptography: what it may use directly, and nothing else.
const PID_1: &[&str] = &[
    "evenkeel-proto",
    "evenkeel-store",
    "nix",
    "libc",
    "serde",
    "toml",
    "serde_path_to_error",
    "thiserror",
    "seccompiler",
    "crc32fast",
];

/// Two versions of these in one tree mean two event loops, two trust stores or two ideas of a kernel message.
const NEVER_TWICE: &[&str] =
    &["nix", "rtnetlink", "zbus", "rustls", "tokio", "quinn", "ring", "postcard", "toml"];

/// Licences that fit beside Apache-2.0 OR MIT in a shipped binary. A package passes when one side of each of its
/// `OR`s is made of these alone.
const LICENCES: &[&str] = &[
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "CC0-1.0",
    "Unicode-3.0",
    "Unlicense",
    "BSL-1.0",
    "MIT-0",
    "CDLA-Permissive-2.0",
];

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .other_options(vec!["--locked".into(), "--filter-platform".into(), "x86_64-unknown-linux-gnu".into()])
        .exec()
        .expect(
            "cargo metadata reads the workspace; if the lock file is stale, run `cargo check` and commit it",
        )
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}

/// Names of what `package` uses in the product (build and test helpers left out).
fn product_dependencies(package: &Package) -> BTreeSet<String> {
    package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal).map(|d| d.name.clone()).collect()
}

/// All package names reachable from `name` through product and build dependencies.
fn reachable(metadata: &Metadata, name: &str) -> BTreeSet<String> {
    let names: BTreeMap<_, _> = metadata.packages.iter().map(|p| (&p.id, p.name.to_string())).collect();
    let resolve = metadata.resolve.as_ref().expect("metadata was asked for with dependencies");
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|n| (&n.id, n)).collect();
    let start =
        &metadata.packages.iter().find(|p| *p.name == name).expect("the crate is in the workspace").id;
    let mut seen = BTreeSet::new();
    let mut stack = vec![start];
    while let Some(id) = stack.pop() {
        for dep in &nodes[id].deps {
            let used = dep.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal);
            // A procedural macro runs in the compiler: what it links never reaches the product.
            let package = &metadata[&dep.pkg];
            let in_compiler = package.targets.iter().any(|t| t.is_proc_macro());
            if used && !in_compiler && seen.insert(names[&dep.pkg].clone()) {
                stack.push(&dep.pkg);
            }
        }
    }
    seen
}

/// Rust sources that belong to the product, relative to the root.
fn sources() -> Vec<(String, String)> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(root())
        .output()
        .expect("git lists the sources");
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).expect("paths are UTF-8");
    names
        .lines()
        .filter(|name| root().join(name).exists())
        .map(|name| {
            (name.to_owned(), std::fs::read_to_string(root().join(name)).expect("a listed file is readable"))
        })
        .collect()
}

#[test]
fn arrows_run_one_way() {
    let metadata = metadata();
    let arrows: BTreeMap<_, BTreeSet<_>> =
        ARROWS.iter().map(|(a, b)| (*a, b.iter().copied().collect())).collect();
    for package in metadata.workspace_packages() {
        let allowed = arrows.get(package.name.as_str()).unwrap_or_else(|| {
            panic!(
                "{} has no line in ARROWS: say what it may know, and docs/architecture.md what it is for",
                package.name
            )
        });
        for dependency in product_dependencies(package).iter().filter(|d| d.starts_with("evenkeel-")) {
            assert!(allowed.contains(dependency.as_str()), "{} must not know {dependency}", package.name);
        }
    }
}

#[test]
fn pure_crates_reach_no_world() {
    let metadata = metadata();
    for pure in PURE {
        let reached = reachable(&metadata, pure);
        for worldly in WORLDLY {
            assert!(
                !reached.contains(*worldly),
                "{pure} reaches {worldly}: decisions live in cores that never touch the world"
            );
        }
    }
}

#[test]
fn fast_moving_libraries_have_one_importer() {
    let metadata = metadata();
    for package in metadata.workspace_packages() {
        for dependency in product_dependencies(package) {
            for (library, importer) in SOLE_IMPORTER {
                assert!(
                    dependency != *library || package.name.as_str() == *importer,
                    "{} imports {library}; only {importer} may",
                    package.name
                );
            }
        }
    }
}

#[test]
fn pid_1_stays_small() {
    let metadata = metadata();
    let init =
        metadata.packages.iter().find(|p| *p.name == "evenkeel-init").expect("init is in the workspace");
    for dependency in product_dependencies(init) {
        assert!(PID_1.contains(&dependency.as_str()), "init uses {dependency}: PID 1 has no room for it");
    }
}

#[test]
fn nothing_important_comes_twice() {
    let metadata = metadata();
    for name in NEVER_TWICE {
        let versions: BTreeSet<_> =
            metadata.packages.iter().filter(|p| *p.name == *name).map(|p| &p.version).collect();
        assert_eq!(versions.len(), 1, "{name} is in the tree in versions {versions:?}: align them");
    }
}

#[test]
fn one_crypto_provider() {
    let metadata = metadata();
    let provider = metadata.packages.iter().find(|p| p.name.starts_with("aws-lc"));
    assert!(
        provider.is_none(),
        "{} is in the tree beside ring: one crypto provider",
        provider.expect("checked").name
    );
}

#[test]
fn licences_fit() {
    for package in &metadata().packages {
        let licence =
            package.license.as_deref().unwrap_or_else(|| panic!("{} names no licence", package.name));
        assert!(
            licence_fits(licence),
            "{} {} is licensed {licence:?}, which is not on the list",
            package.name,
            package.version
        );
    }
}

/// Whether one side of every `OR` is on the list. Old manifests write `/` for `OR`.
fn licence_fits(expression: &str) -> bool {
    let plain = expression.replace('/', " OR ").replace(['(', ')'], " ");
    plain.split(" AND ").all(|part| part.split(" OR ").any(|name| LICENCES.contains(&name.trim())))
}

#[test]
fn licence_reader_tells_apart() {
    assert!(licence_fits("MIT OR Apache-2.0"));
    assert!(licence_fits("MIT/Apache-2.0"));
    assert!(licence_fits("(MIT OR GPL-3.0) AND Unicode-3.0"));
    assert!(!licence_fits("GPL-3.0"));
    assert!(!licence_fits("MIT AND GPL-2.0"));
}

#[test]
fn every_crate_keeps_the_house_lints() {
    for package in metadata().workspace_packages() {
        let manifest =
            std::fs::read_to_string(&package.manifest_path).expect("a member's manifest is readable");
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{} does not take the workspace's lints",
            package.name
        );
    }
}

#[test]
fn unsafe_code_lives_in_sys_files() {
    let word = concat!("allow(unsafe", "_code)");
    for (name, text) in sources() {
        assert!(
            name.ends_with("/sys.rs") || name.ends_with("/sys/mod.rs") || !text.contains(word),
            "{name} allows unsafe code; it belongs in the crate's sys module"
        );
    }
}

#[test]
fn netlink_has_one_module() {
    let library = concat!("rt", "netlink");
    for (name, text) in sources() {
        let imports = text.lines().any(|l| {
            let l = l.trim_start();
            !l.starts_with("//")
                && (l.contains(&format!("use {library}")) || l.contains(&format!("{library}::")))
        });
        let owner = name == "netd/src/netlink.rs" || name.starts_with("netd/src/netlink/");
        assert!(owner || !imports, "{name} imports {library}; only netd's netlink module may");
    }
}
