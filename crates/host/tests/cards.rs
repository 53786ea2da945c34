//! What network cards are told.

mod world;

use control::{NewSecurityGroup, NewSubnet, NewVpc, RunInstances};
use host::SimulatedConfig;
use machine_protocol::vpc::{PortConfig, Protocol};
use model::{
    Direction, Instance, InstanceId, InstanceState, Peer, Ports, SecurityGroupRule,
    SecurityGroupRuleId, Tags,
};
use world::World;

fn ssh(peer: Peer) -> SecurityGroupRule {
    SecurityGroupRule {
        id: SecurityGroupRuleId::random(),
        direction: Direction::Ingress,
        protocol: model::Protocol::Tcp,
        ports: Some(Ports { from: 22, to: 22 }),
        peer,
        description: String::new(),
        tags: Tags::new(),
    }
}

impl World {
    fn card(&self, id: &InstanceId) -> PortConfig {
        self.host.nic(id.as_str(), 0).unwrap()
    }

    async fn until_card(&self, id: &InstanceId, what: &str, test: impl Fn(&PortConfig) -> bool) {
        let told = || {
            self.host
                .nic(id.as_str(), 0)
                .is_some_and(|port| test(&port))
        };
        self.until(what, told).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cards_know_their_network_and_hear_of_changes() {
    let world = World::new(SimulatedConfig::default()).await;
    let _daemon = world.daemon();
    let (one, two) = (world.run().await, world.run().await);
    for id in [&one, &two] {
        world.until_state(id, InstanceState::Running).await;
    }
    let instance = |id: &InstanceId| -> Instance { world.instance(id).unwrap() };
    let address = |id: &InstanceId| instance(id).private_ip().unwrap();
    let name = instance(&two).hostname;
    let knows = |port: &PortConfig| port.names.iter().any(|n| n.name == name);
    world.until_card(&one, "the other's name", knows).await;
    let port = world.card(&one);
    port.check().unwrap();
    assert_eq!(port.address, address(&one));
    assert_eq!(port.public, instance(&one).public_ip());
    assert!(port.internet, "the default network has a way out");
    // As EC2's default group: all of its members, and all to the world.
    let group = instance(&one).interfaces[0].groups[0].clone();
    let members = |port: &PortConfig| port.groups.get(group.as_str()).map_or(0, Vec::len);
    assert_eq!(members(&port), 2);
    assert_eq!(port.ingress[0].protocol, Protocol::All);
    assert_eq!(port.ingress[0].groups, [group.to_string()]);
    assert!(port.egress.iter().any(|rule| rule.cidrs[0].prefix() == 0));

    let anywhere = Peer::Ipv4("0.0.0.0/0".parse().unwrap());
    world
        .plane
        .authorize(&world.caller, &group, vec![ssh(anywhere)])
        .await
        .unwrap();
    let opened = |port: &PortConfig| {
        let mut ssh = port.ingress.iter();
        ssh.any(|rule| rule.from == Some(22) && rule.cidrs.len() == 1)
    };
    for id in [&one, &two] {
        world.until_card(id, "the rule", opened).await;
    }
    let new = NewSecurityGroup {
        vpc: None,
        name: "web".into(),
        description: "web".into(),
        tags: Tags::new(),
    };
    let web = world.plane.create_security_group(&world.caller, new).await;
    let web = web.unwrap().id;
    let change = control::InstanceChange {
        groups: Some(vec![web.clone()]),
        ..control::InstanceChange::default()
    };
    let changed = world.plane.modify_instance(&world.caller, &two, change);
    changed.await.unwrap();
    world
        .until_card(&one, "one member", |port| members(port) == 1)
        .await;
    world
        .until_card(&two, "no ingress", |port| port.ingress.is_empty())
        .await;
    let ids = [two.clone()];
    let gone = world.plane.terminate_instances(&world.caller, &ids);
    gone.await.unwrap();
    world
        .until_card(&one, "the name is gone", |port| !knows(port))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_no_metadata_service_has_a_seed_disk() {
    let world = World::new(SimulatedConfig::default()).await;
    let _daemon = world.daemon();
    let new = RunInstances {
        tags: [("holm:datasource".to_owned(), "nocloud".to_owned())].into(),
        user_data: b"#!/bin/sh\nthe user's script".to_vec(),
        ..RunInstances::new(world.image.id.clone(), "t3.micro")
    };
    let (plane, caller) = (&world.plane, &world.caller);
    let launched = plane.run_instances(caller, new, None).await.unwrap();
    let id = &launched.instances[0].id;
    world.until_state(id, InstanceState::Running).await;
    let disks = world.host.launched(id.as_str()).unwrap().machine["disks"].clone();
    let seed = disks.as_array().unwrap().last().unwrap();
    assert_eq!(seed["read_only"], true);
    let volume = world.host.seed(id.as_str()).unwrap();
    let text = String::from_utf8_lossy(&volume);
    assert!(text.contains("the user's script"));
    assert!(text.contains(id.as_str()), "no instance id");
    let without = world.run().await;
    world.until_state(&without, InstanceState::Running).await;
    assert_eq!(world.host.seed(without.as_str()), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_network_has_on_the_host_goes_with_it() {
    let world = World::new(SimulatedConfig::default()).await;
    let daemon = world.daemon();
    let (plane, caller) = (&world.plane, &world.caller);
    let cidr = "10.9.0.0/16".parse().unwrap();
    let new = NewVpc {
        cidr,
        tags: Tags::new(),
    };
    let vpc = plane.create_vpc(caller, new).await.unwrap().id;
    let new = NewSubnet {
        vpc: vpc.clone(),
        cidr,
        zone: None,
        tags: Tags::new(),
    };
    let subnet = plane.create_subnet(caller, new).await.unwrap().id;
    let new = RunInstances {
        subnet: Some(subnet.clone()),
        ..RunInstances::new(world.image.id.clone(), "t3.micro")
    };
    let launched = plane.run_instances(caller, new, None).await.unwrap();
    let id = launched.instances[0].id.clone();
    world.until_state(&id, InstanceState::Running).await;
    let networks = || world.host.left().0.networks;
    assert_eq!(networks(), [vpc.to_string()]);
    let gone = plane.terminate_instances(caller, std::slice::from_ref(&id));
    gone.await.unwrap();
    world.until_state(&id, InstanceState::Terminated).await;
    plane.delete_subnet(caller, &subnet).await.unwrap();
    // By a daemon that was not there when it was asked for.
    drop(daemon);
    plane.delete_vpc(caller, &vpc).await.unwrap();
    assert_eq!(networks(), [vpc.to_string()]);
    let _daemon = world.daemon();
    let gone = || networks().is_empty();
    world.until("nothing of the network is left", gone).await;
}
