//! The core's events as log lines: their stable name, then `key=value`.

use netd_core::{DropCause, Event, MoveCause, Operation, Rival, TakeCause};
use proto::time::Duration;
use std::fmt::Write as _;

/// Logs one event. Troubles are warnings, the rest is information.
pub(crate) fn log(event: &Event) {
    match event {
        Event::VipConflict { .. }
        | Event::VipWaiting { .. }
        | Event::VipUnplaceable { .. }
        | Event::AddressRepaired { .. }
        | Event::AddressForeign { .. }
        | Event::AddressRefused { .. }
        | Event::NodeLate { .. } => tracing::warn!("{}{}", event.name(), fields(event)),
        _ => tracing::info!("{}{}", event.name(), fields(event)),
    }
}

/// A growing ` key=value` text.
struct Line(String);

impl Line {
    fn with(mut self, key: &str, value: &impl ToString) -> Line {
        let value = value.to_string();
        let quote = if value.contains(' ') { "\"" } else { "" };
        // Writing into a string cannot fail.
        let _ = write!(self.0, " {key}={quote}{value}{quote}");
        self
    }

    fn ms(self, key: &str, span: Duration) -> Line {
        self.with(key, &span.as_millis())
    }
}

fn fields(event: &Event) -> String {
    let line = Line(String::new());
    let line = match event {
        Event::PortUp { port, out_for } => line.with("port", port).ms("out_ms", *out_for),
        Event::PortDown { port, reason, operative_for, hold_down } => line
            .with("port", port)
            .with("reason", reason)
            .ms("operative_ms", *operative_for)
            .ms("hold_down_ms", *hold_down),
        Event::PeerUp { node, incarnation, silent_for } => {
            let line = line.with("node", node).with("incarnation", incarnation);
            match silent_for {
                Some(span) => line.ms("silent_ms", *span),
                None => line,
            }
        }
        Event::PeerDown { node, silent_for } => line.with("node", node).ms("silent_ms", *silent_for),
        Event::VipTaken { vip, port, epoch, cause, unserved_for } => line
            .with("vip", vip)
            .with("port", port)
            .with("epoch", epoch)
            .with("cause", &take_cause(cause))
            .ms("unserved_ms", *unserved_for),
        Event::VipDropped { vip, port, epoch, cause, held_for } => line
            .with("vip", vip)
            .with("port", port)
            .with("epoch", epoch)
            .with("cause", &drop_cause(cause))
            .ms("held_ms", *held_for),
        Event::VipMoved { vip, from, to, epoch, cause, held_for } => {
            let cause = match cause {
                MoveCause::PortOut { reason } => reason.to_string(),
                MoveCause::Failback => "failback".to_owned(),
                MoveCause::Refused => "refused by the kernel".to_owned(),
            };
            line.with("vip", vip)
                .with("from", from)
                .with("to", to)
                .with("epoch", epoch)
                .with("cause", &cause)
                .ms("held_ms", *held_for)
        }
        Event::VipConflict { vip, port, with, .. } => {
            let line = line.with("vip", vip).with("port", port);
            match with {
                Rival::Node(node) => line.with("node", node),
                Rival::Mac(mac) => line.with("mac", mac),
            }
        }
        Event::VipWaiting { vip, port, cause, retry_in } => {
            line.with("vip", vip).with("port", port).with("cause", cause).ms("retry_ms", *retry_in)
        }
        Event::VipUnplaceable { vip, reason } => line.with("vip", vip).with("reason", reason),
        Event::AddressRepaired { vip, port } | Event::AddressForeign { vip, port } => {
            line.with("vip", vip).with("port", port)
        }
        Event::AddressRefused { vip, port, operation, error } => {
            let operation = match operation {
                Operation::Add => "add",
                Operation::Remove => "remove",
            };
            line.with("vip", vip).with("port", port).with("operation", &operation).with("error", error)
        }
        Event::NodeLate { late_for, dropped } => line.ms("late_ms", *late_for).with("dropped", dropped),
        Event::NodeReady { after } => line.ms("after_ms", *after),
    };
    line.0
}

fn take_cause(cause: &TakeCause) -> String {
    match cause {
        TakeCause::NeverHeld => "never held".to_owned(),
        TakeCause::Leftover => "leftover of the last life".to_owned(),
        TakeCause::HolderDown { node } => format!("{node} is down"),
        TakeCause::HolderDropped { node } => format!("{node} dropped it"),
        TakeCause::OwnDrop => "dropped here earlier".to_owned(),
    }
}

fn drop_cause(cause: &DropCause) -> String {
    match cause {
        DropCause::PortOut { reason } => reason.to_string(),
        DropCause::Outranked { by, epoch } => format!("outranked by {by} with epoch {epoch}"),
        DropCause::Failback { home } => format!("failback to {home}"),
        DropCause::Refused => "refused by the kernel".to_owned(),
        DropCause::Late => "this node stood still".to_owned(),
        DropCause::Leaving => "leaving".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_short_and_quoted_where_needed() {
        let taken = Event::VipTaken {
            vip: "web".into(),
            port: "p1".into(),
            epoch: 2,
            cause: TakeCause::HolderDown { node: "a1".into() },
            unserved_for: Duration::from_millis(640),
        };
        assert_eq!(fields(&taken), " vip=web port=p1 epoch=2 cause=\"a1 is down\" unserved_ms=640");
        let down = Event::PeerDown { node: "a1".into(), silent_for: Duration::from_millis(600) };
        assert_eq!(fields(&down), " node=a1 silent_ms=600");
    }
}
