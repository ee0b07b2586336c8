//! The little of `org.freedesktop.DBus` that stock clients call before they let their user speak.
//!
//! There is no bus behind it: names resolve to this server, match rules are accepted and not looked at, because a
//! connection carries the signals of one daemon only.

/// The object at `/org/freedesktop/DBus`.
pub(crate) struct Bus;

/// The unique name every client gets; each connection has its own name space.
const CLIENT: &str = ":1.1";

/// The unique name this server goes by.
const SERVER: &str = ":1.0";

#[zbus::interface(name = "org.freedesktop.DBus", spawn = false, introspection_docs = false)]
impl Bus {
    fn hello(&self) -> &str {
        CLIENT
    }

    fn add_match(&self, _rule: &str) {}

    fn remove_match(&self, _rule: &str) {}

    fn get_name_owner(&self, name: &str) -> zbus::fdo::Result<String> {
        if name == "org.freedesktop.DBus" || name.starts_with("org.evenkeel.") || name == SERVER {
            Ok(SERVER.to_owned())
        } else {
            Err(zbus::fdo::Error::NameHasNoOwner(format!("nobody here owns {name}")))
        }
    }

    fn list_names(&self) -> Vec<String> {
        vec![SERVER.to_owned()]
    }
}
