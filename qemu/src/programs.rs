//! Builds the device's programs, static, from this checkout.

use crate::command;
use crate::error::LabError;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The crates whose programs go into the lab's image.
const CRATES: [&str; 5] =
    ["evenkeel-init", "evenkeel-netd", "evenkeel-provisiond", "evenkeel-console", "evenkeel-demo"];
/// An explicit target keeps host tools (build scripts) out of the static linking below.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// From scratch on two slow cores; beyond it something hangs.
const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);

/// The checkout this lab was built from.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// `cargo` with what an outer cargo told its child taken back: those variables describe another crate.
pub fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(workspace());
    for (name, _) in std::env::vars_os().filter(|(name, _)| of_outer_cargo(name)) {
        command.env_remove(name);
    }
    command
}

fn of_outer_cargo(name: &OsString) -> bool {
    let name = name.to_string_lossy();
    let exact = ["CARGO", "OUT_DIR", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET"];
    let prefixes = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
        "CARGO_PRIMARY_",
        "CARGO_CFG_",
        "CARGO_FEATURE_",
    ];
    exact.contains(&name.as_ref()) || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// Builds all device programs; returns the folder they are in. Cargo tells its progress itself.
pub fn build(offline: bool) -> Result<PathBuf, LabError> {
    build_crates(&CRATES, offline)
}

/// Builds the device programs of `crates` alone, as [`build`] does.
pub fn build_crates(crates: &[&str], offline: bool) -> Result<PathBuf, LabError> {
    let target_dir = workspace().join("target/device");
    let mut command = cargo();
    command
        .args(["build", "--quiet", "--profile", "device", "--target", TARGET, "--target-dir"])
        .arg(&target_dir);
    for name in crates {
        command.args(["-p", name]);
    }
    if offline {
        command.arg("--offline");
    }
    // A target directory of its own: with shared ones these flags would rebuild the world on every call.
    command.env("RUSTFLAGS", "-C target-feature=+crt-static");
    command::stream(&mut command, "cargo build of the device programs", BUILD_LIMIT)?;
    Ok(target_dir.join(TARGET).join("device"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outer_cargos_words_are_forgotten_and_the_users_kept() {
        for gone in
            ["CARGO", "CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "CARGO_TARGET_DIR", "CARGO_ENCODED_RUSTFLAGS"]
        {
            assert!(of_outer_cargo(&gone.into()), "{gone}");
        }
        for kept in ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_TERM_COLOR", "RUSTUP_TOOLCHAIN", "PATH"] {
            assert!(!of_outer_cargo(&kept.into()), "{kept}");
        }
        assert!(workspace().join("Cargo.toml").exists());
    }
}
