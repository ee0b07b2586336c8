//! The kernel's links, addresses, routes and rules. The only module that knows the netlink crates.
//!
//! Every operation is safe to repeat: what is there already is added, what is not there is removed. Each has a
//! deadline; after one passed it is not known whether the kernel acted, and the next full list tells.

use futures_util::{Stream, StreamExt};
use ipnet::IpNet;
use netd_core::Mac;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo,
};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteScope};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, LinkUnspec, MulticastGroup, RouteMessageBuilder};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// For one operation. The kernel answers within a millisecond unless somebody holds its lock.
const DEADLINE: Duration = Duration::from_secs(1);

/// Priority of netd's source rules, in front of the main table's 32766. It also marks them as netd's.
const RULE_PRIORITY: u32 = 1000;

/// Entries of a list that are looked at. More links, addresses or rules than that are not an appliance's.
const LIST_MAX: usize = 8192;

/// Why the kernel did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetlinkError {
    /// The kernel refused. Nothing was changed.
    #[error("cannot {what}: {source}")]
    Refused { what: String, source: io::Error },
    /// No answer in time. It may have been done or not.
    #[error("cannot {what}: no answer from the kernel within {DEADLINE:?}")]
    Late { what: String },
    /// The request could not be made or its answer not be read. It may have been done or not.
    #[error("cannot {what}: {reason}")]
    Broken { what: String, reason: String },
}

impl NetlinkError {
    fn errno(&self) -> Option<i32> {
        match self {
            NetlinkError::Refused { source, .. } => source.raw_os_error(),
            NetlinkError::Late { .. } | NetlinkError::Broken { .. } => None,
        }
    }
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// The hardware address in use; `None`: it is no Ethernet interface.
    pub(crate) mac: Option<Mac>,
    /// The one it was made with, where the driver tells.
    pub(crate) permanent: Option<Mac>,
    /// Administratively up.
    pub(crate) up: bool,
    pub(crate) carrier: bool,
}

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) index: u32,
    pub(crate) address: IpAddr,
    pub(crate) prefix_len: u8,
}

/// What an address is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The node's own.
    Own,
    /// A VIP: never chosen as the source of the node's own traffic where the kernel can be told so.
    Vip,
}

/// A route out of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// 254 is the main one.
    pub(crate) table: u32,
    pub(crate) to: IpNet,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) index: u32,
    /// The lower, the better.
    pub(crate) metric: u32,
}

/// A rule: what comes from `source` leaves by `table`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SourceRule {
    pub(crate) source: IpAddr,
    pub(crate) table: u32,
}

/// Counts of what the kernel reported. Only a wake-up: the full list decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) links: u64,
    pub(crate) addresses: u64,
}

/// The connection to the kernel.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    handle: Handle,
}

impl Kernel {
    /// Opens the connection and a second one for the kernel's reports. Needs a tokio runtime with I/O.
    pub(crate) fn open() -> io::Result<(Kernel, watch::Receiver<Changes>)> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, reports_handle, mut reports) = rtnetlink::new_multicast_connection(&groups)?;
        tokio::spawn(connection);
        let (tell, changes) = watch::channel(Changes::default());
        // Empties the library's unbounded queue at once: what is kept of a report is that there was one.
        tokio::spawn(async move {
            let _open = reports_handle;
            while let Some((report, _)) = reports.next().await {
                use netlink_packet_route::RouteNetlinkMessage::{DelAddress, DelLink, NewAddress, NewLink};
                let (_, payload) = report.into_parts();
                let rtnetlink::packet_core::NetlinkPayload::InnerMessage(message) = payload else { continue };
                tell.send_if_modified(|changes| {
                    match message {
                        NewLink(_) | DelLink(_) => changes.links += 1,
                        NewAddress(_) | DelAddress(_) => changes.addresses += 1,
                        _ => return false,
                    }
                    true
                });
            }
            tracing::error!("the kernel reports no changes any more; polling goes on");
        });
        Ok((Kernel { handle }, changes))
    }

    /// All interfaces.
    pub(crate) async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let request =
            self.handle.link().get().set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
        let messages = list("list interfaces", request.execute()).await?;
        Ok(messages.into_iter().map(link).collect())
    }

    /// All addresses.
    pub(crate) async fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        let messages = list("list addresses", self.handle.address().get().execute()).await?;
        Ok(messages.iter().filter_map(address).collect())
    }

    /// Sets an interface up.
    pub(crate) async fn set_up(&self, index: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        done(format!("set interface {index} up"), self.handle.link().set(message).execute()).await
    }

    /// Puts an address onto an interface.
    pub(crate) async fn add_address(
        &self,
        index: u32,
        address: IpAddr,
        prefix_len: u8,
        purpose: Purpose,
    ) -> Result<(), NetlinkError> {
        let mut request = self.handle.address().add(index, address, prefix_len);
        let message = request.message_mut();
        if address.is_ipv6() {
            // Duplicates are looked for by netd itself: the kernel's search takes a second.
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            if purpose == Purpose::Vip {
                let mut cache = CacheInfo::default();
                cache.ifa_preferred = 0;
                cache.ifa_valid = u32::MAX; // for ever
                message.attributes.push(AddressAttribute::CacheInfo(cache));
            }
        }
        let what = format!("add {address}/{prefix_len} to interface {index}");
        accept(&[libc::EEXIST], done(what, request.execute()).await)
    }

    /// Takes an address off an interface.
    pub(crate) async fn remove_address(&self, address: Address) -> Result<(), NetlinkError> {
        let Address { index, address, prefix_len } = address;
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.index = index;
        message.header.prefix_len = prefix_len;
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        let what = format!("remove {address}/{prefix_len} from interface {index}");
        let result = done(what, self.handle.address().del(message).execute()).await;
        accept(&[libc::EADDRNOTAVAIL, libc::ENODEV], result)
    }

    /// Adds a route, or replaces the one to the same prefix with the same metric.
    pub(crate) async fn put_route(&self, route: Route) -> Result<(), NetlinkError> {
        let what = format!("route {} by interface {} in table {}", route.to, route.index, route.table);
        let Some(message) = route_message(route) else {
            return Err(NetlinkError::Broken { what, reason: "gateway of another family".to_owned() });
        };
        done(what, self.handle.route().add(message).replace().execute()).await
    }

    /// netd's source rules.
    pub(crate) async fn rules(&self) -> Result<Vec<SourceRule>, NetlinkError> {
        let mut rules = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let request = self.handle.rule().get(version);
            let messages = match list("list rules", request.execute()).await {
                // A kernel without IPv6 has no such rules.
                Err(e) if e.errno() == Some(libc::EAFNOSUPPORT) => continue,
                other => other?,
            };
            rules.extend(messages.iter().filter_map(rule));
        }
        Ok(rules)
    }

    /// Adds a source rule.
    pub(crate) async fn add_rule(&self, rule: SourceRule) -> Result<(), NetlinkError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule_message(rule);
        let what = format!("add rule from {} to table {}", rule.source, rule.table);
        accept(&[libc::EEXIST], done(what, request.execute()).await)
    }

    /// Removes a source rule.
    pub(crate) async fn remove_rule(&self, rule: SourceRule) -> Result<(), NetlinkError> {
        let what = format!("remove rule from {} to table {}", rule.source, rule.table);
        accept(&[libc::ENOENT], done(what, self.handle.rule().del(rule_message(rule)).execute()).await)
    }
}

fn accept(harmless: &[i32], result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(e) if e.errno().is_some_and(|errno| harmless.contains(&errno)) => Ok(()),
        other => other,
    }
}

fn error(what: &str, error: rtnetlink::Error) -> NetlinkError {
    let what = what.to_owned();
    match error {
        rtnetlink::Error::NetlinkError(message) => NetlinkError::Refused { what, source: message.to_io() },
        other => NetlinkError::Broken { what, reason: other.to_string() },
    }
}

async fn done(
    what: String,
    request: impl Future<Output = Result<(), rtnetlink::Error>>,
) -> Result<(), NetlinkError> {
    match timeout(DEADLINE, request).await {
        Ok(result) => result.map_err(|e| error(&what, e)),
        Err(_) => Err(NetlinkError::Late { what }),
    }
}

async fn list<T>(
    what: &str,
    messages: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, NetlinkError> {
    let collect = async {
        let mut messages = pin!(messages);
        let mut list = Vec::new();
        while let Some(message) = messages.next().await {
            if list.len() < LIST_MAX {
                list.push(message.map_err(|e| error(what, e))?);
            }
        }
        Ok(list)
    };
    timeout(DEADLINE, collect).await.unwrap_or_else(|_| Err(NetlinkError::Late { what: what.to_owned() }))
}

fn link(message: LinkMessage) -> Link {
    let up = message.header.flags.contains(LinkFlags::Up);
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        permanent: None,
        up,
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
            LinkAttribute::PermAddress(bytes) => link.permanent = bytes.try_into().ok().map(Mac),
            // What the driver says. The flag can lag behind by a second.
            LinkAttribute::Carrier(carrier) => link.carrier = carrier != 0,
            _ => {}
        }
    }
    link.carrier &= up;
    link
}

fn address(message: &AddressMessage) -> Option<Address> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    // On a point-to-point interface "address" is the far end's.
    let address = find(true).or_else(|| find(false))?;
    // The kernel makes link-local ones itself.
    if message.header.scope == AddressScope::Link && address.is_ipv6() {
        return None;
    }
    Some(Address { index: message.header.index, address, prefix_len: message.header.prefix_len })
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// `None`: the gateway is of another family than the prefix.
fn route_message(route: Route) -> Option<RouteMessage> {
    let to = route.to;
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to.addr(), to.prefix_len())
        .ok()?
        .output_interface(route.index)
        .table_id(route.table)
        .protocol(RouteProtocol::Static)
        .priority(route.metric);
    builder = match route.gateway {
        // The gateway is on this link by the cluster file's rules, whatever other tables say.
        Some(gateway) => builder.gateway(gateway).ok()?.onlink(),
        None if to.addr().is_ipv4() => builder.scope(RouteScope::Link),
        None => builder,
    };
    Some(builder.build())
}

fn rule_message(rule: SourceRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.source);
    message.header.src_len = host_prefix(rule.source);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Source(rule.source),
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::Table(rule.table),
    ];
    message
}

fn rule(message: &RuleMessage) -> Option<SourceRule> {
    let mut source = None;
    let mut table = u32::from(message.header.table);
    let mut priority = 0;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(address) => source = Some(*address),
            RuleAttribute::Table(id) => table = *id,
            RuleAttribute::Priority(value) => priority = *value,
            _ => {}
        }
    }
    let source = source.filter(|s| message.header.src_len == host_prefix(*s))?;
    (priority == RULE_PRIORITY).then_some(SourceRule { source, table })
}

/// The prefix length of a single address.
pub(crate) fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { Ipv4Addr::BITS as u8 } else { Ipv6Addr::BITS as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_told_back_as_they_were_made() {
        for (source, table) in [("10.9.0.100", 1002), ("fd09::100", 1_000_000)] {
            let made = SourceRule { source: source.parse().unwrap(), table };
            assert_eq!(rule(&rule_message(made)), Some(made));
        }
        let mut foreign = rule_message(SourceRule { source: [10, 9, 0, 1].into(), table: 1002 });
        foreign.attributes.retain(|a| !matches!(a, RuleAttribute::Priority(_)));
        assert_eq!(rule(&foreign), None, "another priority is not netd's");
    }

    #[test]
    fn carrier_needs_an_interface_that_is_up() {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName("p1".into()), LinkAttribute::Carrier(1)];
        assert!(!link(message.clone()).carrier);
        message.header.flags = LinkFlags::Up;
        assert!(link(message.clone()).carrier);
        message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
        message.attributes = vec![LinkAttribute::Carrier(0)];
        assert!(!link(message).carrier, "the driver's word counts");
    }
}
