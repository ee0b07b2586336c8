//! The rules of the cluster file, each broken once in the demonstration cluster.

use super::*;

const DEMO: &str = include_str!("../../testdata/demo.toml");

#[test]
fn the_demonstration_cluster_is_read_in_full() {
    let file = ClusterFile::parse("demo.toml", DEMO).unwrap();
    assert_eq!((file.schema, file.cluster.as_str(), file.timing), (1, "demo", Timing::LAB));
    assert_eq!((file.networks.len(), file.nodes.len(), file.vips.len()), (2, 4, 6));
    let a2 = &file.nodes[&"a2".into()];
    assert_eq!((a2.group.0.as_str(), a2.pair.as_ref()), ("west", Some(&"a".into())));
    assert_eq!(a2.ports[&"m".into()].v4, Some("10.8.0.13".parse().unwrap()));
    assert_eq!(a2.ports[&"p2".into()].matcher, PortMatch::Pci { bus: 0, device: 0x11, function: 0 });
    let shop = &file.vips[&"shop-6".into()];
    assert_eq!(
        (shop.home.to_string(), shop.guard, shop.failback),
        ("b2:p2".into(), Guard::Available, Failback::Never)
    );
    assert_eq!(shop.address, "fd09::113".parse::<core::net::IpAddr>().unwrap());
    assert_eq!(file.partner(&"a1".into()), Some(&"a2".into()));
    assert_eq!(file.management_address(&"b2".into()), Some("10.8.0.14".parse().unwrap()));
}
