//! Who a service runs as and which of root's powers it keeps.

use toml::Spanned;

use super::Refusal;
use super::place::{Source, Words, shorten};

/// Capabilities by number, `capabilities(7)` without their `CAP_`; the index is the number.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A user or group number of all ones means "unchanged" to the kernel: no file may ask for it.
const ID_MAX: u32 = u32::MAX - 1;

/// What the service's process may do by its identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Privileges {
    /// Root when absent.
    pub(crate) identity: Option<Identity>,
    /// The capabilities it keeps, a bit each. Absent: all that root has.
    pub(crate) capabilities: Option<u64>,
    /// Neither it nor what it executes gains privileges from files.
    pub(crate) no_new_privs: bool,
}

/// Numbers of user and group. There are no supplementary groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) user: u32,
    pub(crate) group: u32,
}

/// The keys of this subject, as read.
pub(super) struct Raw<'a> {
    pub(super) user: &'a Option<Spanned<u32>>,
    pub(super) group: &'a Option<Spanned<u32>>,
    pub(super) capabilities: &'a Option<Words>,
    pub(super) no_new_privs: &'a Option<Spanned<bool>>,
    /// Whether the sandbox has a part that the kernel grants to the unprivileged only with `no_new_privs`.
    pub(super) implied: bool,
}

/// # Errors
/// The first key that breaks a rule.
pub(super) fn parse(raw: &Raw<'_>, source: &Source<'_>) -> Result<Privileges, Refusal> {
    let user = source.within(raw.user, "user", 0..=ID_MAX)?;
    let group = source.within(raw.group, "group", 0..=ID_MAX)?;
    let identity = match (user, group) {
        (None, None) => None,
        (Some(user), group) => Some(Identity { user, group: group.unwrap_or(user) }),
        (None, Some(group)) => Some(Identity { user: 0, group }),
    };
    let mut capabilities = raw.capabilities.as_ref().map(|c| set(c, source)).transpose()?;
    if identity.is_some_and(|i| i.user != 0) {
        // Another user than root has none unless they are named, as everywhere in Unix.
        capabilities = capabilities.or(Some(0));
    }
    let no_new_privs = match raw.no_new_privs {
        Some(value) if raw.implied && !*value.get_ref() => {
            let rule = "cannot be false together with system_calls, read or write: leave it out".to_owned();
            return Err(source.refuse_value(value, "no_new_privs", rule));
        }
        Some(value) => *value.get_ref(),
        None => raw.implied,
    };
    Ok(Privileges { identity, capabilities, no_new_privs })
}

fn set(names: &Words, source: &Source<'_>) -> Result<u64, Refusal> {
    let mut set = 0;
    for (i, (name, place)) in source.words(names, "capabilities")?.iter().zip(names.get_ref()).enumerate() {
        let Some(number) = CAPABILITIES.iter().position(|c| c == name) else {
            let rule = format!("expected a capability like \"NET_ADMIN\", found {:?}", shorten(name));
            return Err(source.refuse_value(place, &format!("capabilities[{i}]"), rule));
        };
        set |= 1 << number;
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::unit::tests::{refused, unit};

    #[test]
    fn who_it_runs_as() {
        let identity = |text: &str| unit(text).privileges.identity;
        assert_eq!(identity(""), None);
        assert_eq!(identity("user = 7"), Some(Identity { user: 7, group: 7 }));
        assert_eq!(identity("user = 7\ngroup = 8"), Some(Identity { user: 7, group: 8 }));
        assert_eq!(identity("group = 8"), Some(Identity { user: 0, group: 8 }));
        assert_eq!(
            refused("user = 4294967295"),
            "a.toml:2: user: expected 0 to 4294967294, found 4294967295"
        );
        assert!(refused("group = -1").starts_with("a.toml:2: group: invalid value"));
        assert!(refused("user = 'www'").starts_with("a.toml:2: user: invalid type"));
    }

    #[test]
    fn capabilities_are_a_set_of_numbers() {
        let kept = |text: &str| unit(text).privileges.capabilities;
        assert_eq!(kept(""), None);
        assert_eq!(kept("user = 7"), Some(0));
        assert_eq!(kept("capabilities = []"), Some(0));
        assert_eq!(
            kept("user = 7\ncapabilities = ['NET_ADMIN', 'NET_RAW']"),
            Some((1 << libc_number::NET_ADMIN) | (1 << libc_number::NET_RAW))
        );
        assert_eq!(kept("capabilities = ['CHECKPOINT_RESTORE', 'CHOWN']"), Some(1 << 40 | 1));
        assert!(
            refused("capabilities = [\n'CAP_KILL']")
                .starts_with("a.toml:3: capabilities[0]: expected a capability like \"NET_ADMIN\"")
        );
    }

    /// Numbers from `linux/capability.h`, to hold the table against.
    mod libc_number {
        pub(super) const NET_ADMIN: u32 = 12;
        pub(super) const NET_RAW: u32 = 13;
    }

    #[test]
    fn filters_imply_no_new_privs() {
        assert!(!unit("").privileges.no_new_privs);
        assert!(unit("no_new_privs = true").privileges.no_new_privs);
        assert!(unit("[sandbox]\nread = ['/etc']").privileges.no_new_privs);
        assert!(unit("[sandbox]\nsystem_calls = ['@service']").privileges.no_new_privs);
        assert!(!unit("[sandbox]\nprivate_tmp = true").privileges.no_new_privs);
        assert!(
            refused("no_new_privs = false\n[sandbox]\nwrite = ['/run']")
                .starts_with("a.toml:2: no_new_privs: cannot be false")
        );
    }
}
