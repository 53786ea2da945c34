//! The operations, on a real store.

use std::sync::Arc;

use model::{
    AttachmentState, Claim, Direction, Image, Instance, InstanceState, InternetGateway, KeyType,
    Peer, Protocol, Quota, RouteTable, SecurityGroup, SecurityGroupRule, SecurityGroupRuleId,
    Snapshot, Subnet, Tags, Volume, VolumeState, Vpc,
};
use store::Sqlite;

use crate::{
    AttachVolume, Caller, KeyMaterial, NewAccessKey, NewKeyPair, NewSecurityGroup, NewSubnet,
    NewVolume, NewVpc, Plane, Refusal, RegisterImage, RunInstances, Token,
};

struct Site {
    plane: Plane,
    caller: Caller,
    _directory: tempfile::TempDir,
}

async fn site() -> Site {
    let directory = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&directory.path().join("store")).unwrap();
    let plane = Plane::open(Arc::new(store)).await.unwrap();
    let caller = Caller::owner(plane.site().unwrap().account);
    Site {
        plane,
        caller,
        _directory: directory,
    }
}

impl Site {
    async fn image(&self) -> Image {
        let (plane, caller) = (&self.plane, &self.caller);
        let snapshot = plane.adopt_snapshot(caller, "sha256:00", 1 << 30, 10, "");
        let new = RegisterImage {
            login: Some("debian".into()),
            ..RegisterImage::of("debian", snapshot.await.unwrap().id)
        };
        plane.register_image(caller, new).await.unwrap()
    }

    async fn run(&self, image: &Image) -> Instance {
        let new = RunInstances::new(image.id.clone(), "t3.micro");
        let launched = self.plane.run_instances(&self.caller, new, None).await;
        launched.unwrap().instances.remove(0)
    }

    /// What the reconcilers of crate `host` would do.
    async fn pretend(&self, instance: &Instance, state: InstanceState) {
        let done = self.plane.edit::<Instance>(&instance.id, |i, _| {
            i.state = state;
            Ok(())
        });
        done.await.unwrap();
        for disk in &instance.disks {
            let done = self.plane.edit::<Volume>(&disk.volume, |v, _| {
                v.state = VolumeState::InUse;
                v.actual_size = v.size;
                Ok(())
            });
            done.await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_new_site_has_a_default_network_and_keeps_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&directory.path().join("store")).unwrap();
    let store: Arc<dyn store::Store> = Arc::new(store);
    let plane = Plane::open(store.clone()).await.unwrap();
    let caller = Caller::owner(plane.site().unwrap().account);
    let vpc = plane.default_vpc(&caller).unwrap();
    let subnet = plane.default_subnet(&caller, None).unwrap();
    assert!(plane.reaches_internet(&subnet) && subnet.map_public_ip);
    assert_eq!(plane.free_addresses(&subnet), 4091);
    let stranger = Caller::owner(model::AccountId::random());
    assert!(plane.list::<Vpc>(&stranger).is_empty());
    assert!(plane.find::<Vpc>(&stranger, &vpc.id).is_err());

    let again = Plane::open(store).await.unwrap();
    assert_eq!(again.site().unwrap(), plane.site().unwrap());
    assert_eq!(again.list::<Vpc>(&caller).len(), 1);
    assert_eq!(again.default_vpc(&caller).unwrap(), vpc);
}

#[tokio::test]
async fn an_instance_takes_what_it_needs_and_gives_it_back() {
    let site = site().await;
    let (plane, caller) = (&site.plane, &site.caller);
    let image = site.image().await;
    let mut new = RunInstances::new(image.id.clone(), "t3.micro");
    new.count = 3;
    new.tags.insert("Name".into(), "web".into());
    let token = Token::new("once", [("count", "3")]).unwrap();
    let launched = plane.run_instances(caller, new.clone(), Some(&token)).await;
    let launched = launched.unwrap();
    let names: Vec<_> = launched
        .instances
        .iter()
        .map(|i| i.hostname.as_str())
        .collect();
    assert_eq!(names, ["web-1", "web-2", "web-3"]);
    let first = &launched.instances[0];
    assert_eq!((first.cpus, first.memory), (2, 1 << 30));
    assert_eq!(first.private_ip().unwrap().to_string(), "172.31.0.4");
    assert_eq!(first.public_ip().unwrap().to_string(), "127.86.0.2");
    let again = plane.run_instances(caller, new.clone(), Some(&token)).await;
    assert_eq!(again.unwrap().instances, launched.instances);
    let other = Token::new("once", [("count", "4")]).unwrap();
    let mismatch = plane.run_instances(caller, new, Some(&other)).await;
    assert!(matches!(mismatch, Err(Refusal::TokenMismatch(_))));
    assert_eq!(plane.list::<Volume>(caller).len(), 3);
    assert_eq!(plane.view().starting::<Claim>("address/").len(), 3);

    for instance in &launched.instances {
        site.pretend(instance, InstanceState::Running).await;
        let ids = [instance.id.clone()];
        let gone = plane.terminate_instances(caller, &ids).await.unwrap();
        assert_eq!(gone[0].now, InstanceState::ShuttingDown);
        plane.instance_gone(&instance.id).await.unwrap();
        plane.instance_gone(&instance.id).await.unwrap();
    }
    assert!(plane.view().starting::<Claim>("address/").is_empty());
    assert!(plane.view().starting::<Claim>("public/").is_empty());
    assert!(
        plane
            .list::<Volume>(caller)
            .iter()
            .all(|v| v.record.deleting)
    );
    let later = model::Timestamp(u64::MAX);
    assert_eq!(plane.forget_terminated(later).await.unwrap(), 3);
    assert!(plane.list::<Instance>(caller).is_empty());
}

#[tokio::test]
async fn instances_change_state_only_as_ec2_allows() {
    let site = site().await;
    let (plane, caller) = (&site.plane, &site.caller);
    let instance = site.run(&site.image().await).await;
    let ids = [instance.id.clone()];
    site.pretend(&instance, InstanceState::Running).await;
    let same = plane.start_instances(caller, &ids).await.unwrap();
    assert_eq!(same[0].now, InstanceState::Running);
    plane.reboot_instances(caller, &ids).await.unwrap();
    let change = crate::InstanceChange {
        termination_protection: Some(true),
        ..Default::default()
    };
    plane
        .modify_instance(caller, &ids[0], change)
        .await
        .unwrap();
    let refused = plane.terminate_instances(caller, &ids).await;
    assert!(matches!(refused, Err(Refusal::Protected { .. })));
    let resize = crate::InstanceChange {
        instance_type: Some("t3.small".into()),
        termination_protection: Some(false),
        ..Default::default()
    };
    let refused = plane.modify_instance(caller, &ids[0], resize.clone()).await;
    assert!(matches!(refused, Err(Refusal::State { .. })));
    let stop = plane.stop_instances(caller, &ids, false).await.unwrap();
    assert_eq!(stop[0].now, InstanceState::Stopping);
    assert!(plane.start_instances(caller, &ids).await.is_err());
    site.pretend(&instance, InstanceState::Stopped).await;
    plane
        .modify_instance(caller, &ids[0], resize)
        .await
        .unwrap();
    let started = plane.start_instances(caller, &ids).await.unwrap();
    assert_eq!(started[0].before, InstanceState::Stopped);
    let now = plane.find::<Instance>(caller, &ids[0]).unwrap();
    assert_eq!((now.record.memory, now.record.reboots_wanted), (2 << 30, 1));
    plane.terminate_instances(caller, &ids).await.unwrap();
    assert!(plane.reboot_instances(caller, &ids).await.is_err());
}

#[tokio::test]
async fn quotas_hold_under_requests_at_once() {
    let site = site().await;
    let (plane, caller) = (&site.plane, &site.caller);
    let image = site.image().await;
    let account = &caller.account;
    let limited = plane.set_quota(caller, account, Quota::Instances, Some(5));
    limited.await.unwrap();
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let (plane, caller) = (plane.clone(), caller.clone());
        let new = RunInstances::new(image.id.clone(), "t3.nano");
        requests.spawn(async move { plane.run_instances(&caller, new, None).await });
    }
    let results = requests.join_all().await;
    let refused = results
        .iter()
        .filter(|r| matches!(r, Err(Refusal::Quota { .. })));
    assert_eq!(refused.count(), 7);
    let ips: std::collections::HashSet<_> = plane
        .list::<Instance>(caller)
        .iter()
        .map(|i| i.record.private_ip())
        .collect();
    assert_eq!(ips.len(), 5);
}

#[tokio::test]
async fn volumes_go_in_and_out_of_instances() {
    let site = site().await;
    let (plane, caller) = (&site.plane, &site.caller);
    let instance = site.run(&site.image().await).await;
    let new = NewVolume {
        size: Some(3 << 30),
        ..NewVolume::default()
    };
    let volume = plane.create_volume(caller, new, None).await.unwrap();
    let attach = AttachVolume {
        volume: volume.id.clone(),
        instance: instance.id.clone(),
        device: None,
        delete_on_termination: false,
    };
    let early = plane.attach_volume(caller, attach.clone()).await;
    assert!(matches!(early, Err(Refusal::State { .. })), "{early:?}");
    site.pretend(&instance, InstanceState::Running).await;
    let done = plane.edit::<Volume>(&volume.id, |v, _| {
        (v.state, v.actual_size) = (VolumeState::Available, v.size);
        Ok(())
    });
    done.await.unwrap();
    let attachment = plane.attach_volume(caller, attach.clone()).await.unwrap();
    assert_eq!(attachment.device, "/dev/sdf");
    assert_eq!(attachment.state, AttachmentState::Attaching);
    let twice = plane.attach_volume(caller, attach).await;
    assert!(matches!(twice, Err(Refusal::InUse { .. })));
    assert!(plane.delete_volume(caller, &volume.id).await.is_err());
    let root = &instance.disks[0].volume;
    let refused = plane.detach_volume(caller, root, None, false).await;
    assert!(matches!(refused, Err(Refusal::State { .. })));
    let out = plane.detach_volume(caller, &volume.id, None, false).await;
    assert_eq!(out.unwrap().state, AttachmentState::Detaching);
    let shrink = crate::VolumeChange {
        size: Some(1 << 30),
        ..Default::default()
    };
    assert!(
        plane
            .modify_volume(caller, &volume.id, shrink)
            .await
            .is_err()
    );
    plane.instance_gone(&instance.id).await.unwrap();
    let kept = plane.find::<Volume>(caller, &volume.id).unwrap();
    assert_eq!(kept.record.state, VolumeState::Available);
    plane.delete_volume(caller, &volume.id).await.unwrap();
}

#[tokio::test]
async fn networks_are_made_and_removed_in_order() {
    let site = site().await;
    let (plane, caller) = (&site.plane, &site.caller);
    let new = NewVpc {
        cidr: "10.0.0.0/16".parse().unwrap(),
        tags: Tags::new(),
    };
    let vpc = plane.create_vpc(caller, new).await.unwrap();
    let new = NewSubnet {
        vpc: vpc.id.clone(),
        cidr: "10.0.1.0/24".parse().unwrap(),
        zone: None,
        tags: Tags::new(),
    };
    let subnet = plane.create_subnet(caller, new.clone()).await.unwrap();
    let overlap = NewSubnet {
        cidr: "10.0.0.0/20".parse().unwrap(),
        ..new
    };
    let refused = plane.create_subnet(caller, overlap).await;
    assert!(matches!(refused, Err(Refusal::Overlap(..))));
    let gateway = plane
        .create_internet_gateway(caller, Tags::new())
        .await
        .unwrap();
    let attach = plane.attach_internet_gateway(caller, &gateway.id, &vpc.id);
    attach.await.unwrap();
    let table = plane
        .create_route_table(caller, &vpc.id, Tags::new())
        .await
        .unwrap();
    let route = model::Route {
        destination: "0.0.0.0/0".parse().unwrap(),
        target: model::RouteTarget::InternetGateway(gateway.id.clone()),
    };
    assert!(!plane.reaches_internet(&subnet));
    plane
        .put_route(caller, &table.id, route.clone(), false)
        .await
        .unwrap();
    assert!(
        plane
            .put_route(caller, &table.id, route, false)
            .await
            .is_err()
    );
    let association = plane.associate_route_table(caller, &table.id, &subnet.id);
    let association = association.await.unwrap();
    assert!(plane.reaches_internet(&subnet));
    assert!(plane.delete_route_table(caller, &table.id).await.is_err());
    let main = plane
        .view()
        .filter::<RouteTable>(|t| t.vpc == vpc.id && t.main.is_some());
    let replaced = plane.replace_route_table_association(caller, &association, &main[0].record.id);
    let association = replaced.await.unwrap();
    assert!(!plane.reaches_internet(&subnet));
    plane
        .disassociate_route_table(caller, &association)
        .await
        .unwrap();
    plane.delete_route_table(caller, &table.id).await.unwrap();

    let refused = plane.delete_vpc(caller, &vpc.id).await;
    assert!(matches!(refused, Err(Refusal::InUse { .. })));
    plane.delete_subnet(caller, &subnet.id).await.unwrap();
    assert!(plane.delete_vpc(caller, &vpc.id).await.is_err());
    let detach = plane.detach_internet_gateway(caller, &gateway.id, &vpc.id);
    detach.await.unwrap();
    plane
        .delete_internet_gateway(caller, &gateway.id)
        .await
        .unwrap();
    plane.delete_vpc(caller, &vpc.id).await.unwrap();
    assert_eq!(plane.list::<SecurityGroup>(caller).len(), 1);
    assert_eq!(plane.list::<InternetGateway>(caller).len(), 1);
    assert_eq!(plane.list::<Subnet>(caller).len(), 1);
}

#[tokio::test]
async fn rules_come_and_go() {
    let site = site().await;
    let (plane, caller) = (&site.plane, &site.caller);
    let new = NewSecurityGroup {
        vpc: None,
        name: "web".into(),
        description: "web".into(),
        tags: Tags::new(),
    };
    let group = plane
        .create_security_group(caller, new.clone())
        .await
        .unwrap();
    let twice = plane.create_security_group(caller, new).await;
    assert!(matches!(twice, Err(Refusal::Exists { .. })));
    let ssh = SecurityGroupRule {
        id: SecurityGroupRuleId::random(),
        direction: Direction::Ingress,
        protocol: Protocol::Tcp,
        ports: Some(model::Ports { from: 22, to: 22 }),
        peer: Peer::Ipv4("0.0.0.0/0".parse().unwrap()),
        description: String::new(),
        tags: Tags::new(),
    };
    plane
        .authorize(caller, &group.id, vec![ssh.clone()])
        .await
        .unwrap();
    let twice = plane.authorize(caller, &group.id, vec![ssh.clone()]).await;
    assert!(matches!(twice, Err(Refusal::Exists { .. })));
    let gone = plane
        .revoke(caller, &group.id, &[], std::slice::from_ref(&ssh))
        .await;
    assert!(gone.unwrap()[0].is_same(&ssh));
    let twice = plane.revoke(caller, &group.id, &[ssh.id], &[]).await;
    assert!(matches!(twice, Err(Refusal::NotFound { .. })));
    plane
        .delete_security_group(caller, &group.id)
        .await
        .unwrap();
    let default = plane.list::<SecurityGroup>(caller);
    let refused = plane
        .delete_security_group(caller, &default[0].record.id)
        .await;
    assert!(matches!(refused, Err(Refusal::NotAllowed(_))));
}

#[tokio::test]
async fn names_tags_and_keys() {
    let site = site().await;
    let (plane, caller) = (&site.plane, &site.caller);
    let new = NewKeyPair {
        name: "mine".into(),
        material: KeyMaterial::Generate(KeyType::Ed25519),
        tags: Tags::new(),
    };
    let (pair, private) = plane.create_key_pair(caller, new.clone()).await.unwrap();
    assert!(private.unwrap().contains("PRIVATE KEY"));
    assert!(matches!(
        plane.create_key_pair(caller, new).await,
        Err(Refusal::Exists { .. })
    ));
    let tags = Tags::from([("team".into(), "a".into())]);
    let ids = [pair.id.to_string()];
    plane.create_tags(caller, &ids, &tags).await.unwrap();
    let named = plane.key_pair_named(caller, "mine").unwrap();
    assert_eq!(named.meta.tags, tags);
    let other = [("team".to_owned(), Some("b".to_owned()))];
    plane.delete_tags(caller, &ids, &other).await.unwrap();
    assert_eq!(
        plane.key_pair_named(caller, "mine").unwrap().meta.tags,
        tags
    );
    plane.delete_tags(caller, &ids, &[]).await.unwrap();
    assert!(
        plane
            .key_pair_named(caller, "mine")
            .unwrap()
            .meta
            .tags
            .is_empty()
    );
    plane.delete_key_pair(caller, &pair.id).await.unwrap();
    assert!(plane.key_pair_named(caller, "mine").is_err());

    let new = NewAccessKey {
        user: "root".into(),
        expires: None,
    };
    let key = plane.create_access_key(caller, new).await.unwrap();
    assert_eq!(plane.signer(&key.id), Some((caller.clone(), key.secret)));
    plane.delete_access_key(caller, &key.id).await.unwrap();
    assert_eq!(plane.signer(&key.id), None);

    let image = site.image().await;
    assert_eq!(plane.image_named(caller, "debian").unwrap().id, image.id);
    let snapshot = image.disks[0].snapshot.clone().unwrap();
    assert!(plane.delete_snapshot(caller, &snapshot).await.is_err());
    plane.deregister_image(caller, &image.id).await.unwrap();
    plane.delete_snapshot(caller, &snapshot).await.unwrap();
    assert!(
        plane
            .find::<Snapshot>(caller, &snapshot)
            .unwrap()
            .record
            .deleting
    );
}

#[tokio::test]
async fn what_expires_goes_and_what_drifts_is_named() {
    let site = site().await;
    let (plane, caller) = (&site.plane, &site.caller);
    let image = site.image().await;
    let mut new = RunInstances::new(image.id.clone(), "t3.micro");
    new.expires = Some(model::Timestamp(1000));
    new.termination_protection = true;
    let mortal = plane.run_instances(caller, new, None).await.unwrap();
    let mortal = &mortal.instances[0];
    plane.keep_house_at(model::Timestamp(999)).await.unwrap();
    let state = |id: &model::InstanceId| plane.find::<Instance>(caller, id).unwrap().record.state;
    assert_eq!(state(&mortal.id), InstanceState::Pending);
    plane.keep_house_at(model::Timestamp(1000)).await.unwrap();
    assert_eq!(state(&mortal.id), InstanceState::ShuttingDown);

    assert!(plane.orphans(caller).is_empty());
    let policy = model::TagPolicy {
        required: [("team".to_owned(), std::collections::BTreeSet::new())].into(),
    };
    let other = site.run(&image).await;
    plane.set_tag_policy(caller, policy).await.unwrap();
    let new = RunInstances::new(image.id.clone(), "t3.micro");
    let refused = plane.run_instances(caller, new, None).await;
    assert!(refused.unwrap_err().to_string().contains("team"));
    plane.deregister_image(caller, &image.id).await.unwrap();
    let drift = plane.drift(caller);
    let found = drift.iter().find(|(i, _)| i.id == other.id).unwrap();
    assert_eq!(found.1[0], crate::Drift::ImageGone);
    assert!(matches!(found.1[1], crate::Drift::Tags { .. }));
}
