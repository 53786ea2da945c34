//! Every endpoint, called as a client would; and that none is missing here.

use std::collections::BTreeSet;

use crate::common::{Client, Site, peer, site};
use axum::http::StatusCode;
use model::{InstanceState, Operation, OperationId, OperationState, Timestamp};
use serde_json::{Value, json};

#[tokio::test]
async fn every_endpoint_does_what_it_says_and_none_is_left_out() {
    let site = site().await;
    let client = site.owner();
    daemon(&client).await;
    networks(&client).await;
    routing(&client).await;
    keys(&client).await;
    account(&client).await;
    storage(&site, &client).await;
    instances(&site, &client).await;
    records(&site, &client).await;
    reports(&site, &client).await;

    let document = serde_json::to_value(api::document()).unwrap();
    let called = client.called.lock().unwrap().clone();
    let mut missing = BTreeSet::new();
    for (template, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let fits = |path: &str| matches(template, path);
            let of = called
                .iter()
                .filter(|(m, path, _)| m.eq_ignore_ascii_case(method) && fits(path));
            let good = of.clone().filter(|(_, _, status)| status.is_success());
            for (_, path, status) in good.clone() {
                let documented = &operation["responses"][status.as_str()];
                assert!(documented.is_object(), "{method} {path} gave {status}");
            }
            if good.count() == 0 {
                missing.insert(format!("{method} {template}"));
            }
        }
    }
    assert!(missing.is_empty(), "never called with success: {missing:?}");
    // And all of them want to know who asks, but for two.
    let stranger = Client::new(&site, peer::network());
    let reader = site.token(false).await;
    let bearer = format!("Bearer {}", reader.text);
    let reader = Client::new(&site, peer::network()).with("authorization", &bearer);
    for (template, item) in document["paths"].as_object().unwrap() {
        let path: String = template.replace(['{', '}'], "");
        for method in item.as_object().unwrap().keys() {
            if ["/healthz", "/v1/openapi.json"].contains(&template.as_str()) {
                continue;
            }
            let method = method.to_uppercase();
            stranger
                .refused(&method, &path, None, "unauthenticated")
                .await;
            if method != "GET" {
                reader.refused(&method, &path, None, "forbidden").await;
            }
        }
    }
}

fn matches(template: &str, path: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    let (a, b): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
    let same = |(a, b): (&&str, &&str)| a == b || (a.starts_with('{') && !b.is_empty());
    // A path that is written out is not the variable of another template.
    let literal = ["capture"].contains(b.last().unwrap()) && template.ends_with('}');
    a.len() == b.len() && !literal && a.iter().zip(&b).all(same)
}

fn id(value: &Value) -> String {
    value["id"].as_str().unwrap().to_owned()
}

async fn daemon(client: &Client) {
    let health = client.does("GET", "/healthz", None, 200).await;
    assert_eq!(health.json()["status"], "ok");
    let document = client.does("GET", "/v1/openapi.json", None, 200).await;
    assert_eq!(document.json()["info"]["title"], "Holm");
    client.does("GET", "/metrics", None, 200).await;
    client.does("GET", "/v1/caller", None, 200).await;
    let site = client.does("GET", "/v1/site", None, 200).await.json();
    assert_eq!(site["account"].as_str().unwrap().len(), 12);
    assert_eq!(site["ec2_endpoint"], "http://127.0.0.1:4780");
}

async fn networks(client: &Client) {
    let all = client.does("GET", "/v1/vpcs", None, 200).await.json();
    assert_eq!(all["items"][0]["is_default"], true, "{all}");
    let body = json!({"cidr": "10.9.0.0/16", "tags": {"Name": "lab"}});
    let made = client.does("POST", "/v1/vpcs", Some(body), 201).await;
    let vpc = id(&made.json());
    assert_eq!(made.header("location"), format!("/v1/vpcs/{vpc}"));
    let path = format!("/v1/vpcs/{vpc}");
    let shown = client.does("GET", &path, None, 200).await;
    assert_eq!(shown.json(), made.json());
    assert_eq!(shown.header("etag"), made.header("etag"));
    let body = json!({"dns_hostnames": true});
    let changed = client.does("PATCH", &path, Some(body), 200).await;
    assert_eq!(changed.json()["dns_hostnames"], true);
    let named = client.does("GET", "/v1/vpcs?name=lab", None, 200).await;
    assert_eq!(id(&named.json()["items"][0]), vpc);

    for (cidr, code) in [
        ("10.9.1.0/24", ""),
        ("10.9.1.0/25", "invalid-value"),
        ("10.8.1.0/24", "invalid-value"),
        ("lots", "invalid-value"),
    ] {
        let body = json!({"vpc_id": vpc, "cidr": cidr});
        match code {
            "" => drop(client.does("POST", "/v1/subnets", Some(body), 201).await),
            code => drop(
                client
                    .refused("POST", "/v1/subnets", Some(body), code)
                    .await,
            ),
        }
    }
    let all = client.does("GET", "/v1/subnets", None, 200).await.json();
    let all = all["items"].as_array().unwrap().clone();
    let subnet = all.iter().find(|s| s["vpc_id"] == vpc.as_str()).unwrap();
    let subnet_path = format!("/v1/subnets/{}", id(subnet));
    let shown = client.does("GET", &subnet_path, None, 200).await.json();
    assert_eq!(shown["free_addresses"], 251);
    let body = json!({"map_public_ip": true});
    client.does("PATCH", &subnet_path, Some(body), 200).await;
    client.refused("DELETE", &path, None, "in-use").await;

    let body = json!({"name": "web", "vpc_id": vpc, "description": "for the web"});
    let made = client
        .does("POST", "/v1/security-groups", Some(body.clone()), 201)
        .await;
    client
        .refused("POST", "/v1/security-groups", Some(body), "already-exists")
        .await;
    let group = format!("/v1/security-groups/{}", id(&made.json()));
    let body = json!({"rules": [
        {"protocol": "tcp", "from_port": 80, "peer": "0.0.0.0/0"},
        {"protocol": "all", "peer": id(&made.json()), "description": "each other"},
    ]});
    let rules = format!("{group}/rules");
    let with = client
        .does("POST", &rules, Some(body.clone()), 200)
        .await
        .json();
    client
        .refused("POST", &rules, Some(body), "already-exists")
        .await;
    let bad = json!({"rules": [{"protocol": "tcp", "from_port": 80, "peer": "everybody"}]});
    client
        .refused("POST", &rules, Some(bad), "invalid-value")
        .await;
    let of = with["rules"].as_array().unwrap();
    let web = of.iter().find(|rule| rule["from_port"] == 80).unwrap();
    assert_eq!(
        (&web["to_port"], &web["direction"]),
        (&json!(80), &json!("ingress"))
    );
    for rule in of.iter().filter(|rule| rule["direction"] == "ingress") {
        let path = format!("{rules}/{}", id(rule));
        client.does("DELETE", &path, None, 204).await;
        client.refused("DELETE", &path, None, "not-found").await;
    }
    let shown = client.does("GET", &group, None, 200).await.json();
    assert_eq!(shown["rules"].as_array().unwrap().len(), of.len() - 2);
    client
        .does("GET", "/v1/security-groups?name=web", None, 200)
        .await;
    client.does("DELETE", &group, None, 204).await;
    client.does("DELETE", &subnet_path, None, 204).await;
    client.does("DELETE", &path, None, 204).await;
    client.refused("GET", &path, None, "not-found").await;
}

async fn routing(client: &Client) {
    let body = json!({"cidr": "10.20.0.0/16"});
    let vpc = client.does("POST", "/v1/vpcs", Some(body), 201).await;
    let vpc = id(&vpc.json());
    let body = json!({"vpc_id": vpc, "cidr": "10.20.1.0/24"});
    let subnet = client.does("POST", "/v1/subnets", Some(body), 201).await;
    let subnet = id(&subnet.json());
    let body = json!({"tags": {"Name": "out"}});
    let path = "/v1/internet-gateways";
    let gateway = client.does("POST", path, Some(body), 201).await.json();
    let gateway_path = format!("{path}/{}", id(&gateway));
    let found = client.does("GET", "/v1/internet-gateways?name=out", None, 200);
    assert_eq!(found.await.json()["items"], json!([gateway]));
    let detach = format!("{gateway_path}/detach");
    client.refused("POST", &detach, None, "wrong-state").await;

    let body = json!({"vpc_id": vpc});
    let path = "/v1/route-tables";
    let table = client
        .does("POST", path, Some(body.clone()), 201)
        .await
        .json();
    let path = format!("{path}/{}", id(&table));
    let routes = format!("{path}/routes");
    let route = json!({"destination": "0.0.0.0/0", "gateway_id": id(&gateway)});
    client
        .refused("PUT", &routes, Some(route.clone()), "invalid-value")
        .await;
    let attach = format!("{gateway_path}/attach");
    let attached = client.does("POST", &attach, Some(body), 200).await.json();
    assert_eq!(attached["vpc_id"], vpc);
    client
        .refused("DELETE", &gateway_path, None, "in-use")
        .await;
    // Twice is once.
    for _ in 0..2 {
        let table = client
            .does("PUT", &routes, Some(route.clone()), 200)
            .await
            .json();
        assert_eq!(table["routes"], json!([route]));
    }
    for bad in ["x", "0.0.0.1/0", ""] {
        let route = json!({"destination": bad, "gateway_id": id(&gateway)});
        client
            .refused("PUT", &routes, Some(route), "invalid-value")
            .await;
    }
    let body = json!({"subnet_id": subnet});
    let post = async |what: &str, body| {
        let path = format!("{path}/{what}");
        client.does("POST", &path, body, 200).await.json()
    };
    let named = post("associate", Some(body.clone())).await;
    assert_eq!(named["subnet_ids"], json!([subnet]));
    client.refused("DELETE", &path, None, "in-use").await;
    let named = post("disassociate", Some(body.clone())).await;
    assert_eq!(named["subnet_ids"], json!([]));
    let again = format!("{path}/disassociate");
    client
        .refused("POST", &again, Some(body), "not-found")
        .await;
    assert_eq!(post("make-main", None).await["is_main"], true);
    let shown = client.does("GET", &path, None, 200).await.json();
    assert_eq!(shown["is_main"], true);
    let all = client
        .does("GET", "/v1/route-tables", None, 200)
        .await
        .json();
    let all = all["items"].as_array().unwrap();
    let mains = all
        .iter()
        .filter(|t| t["vpc_id"] == vpc && t["is_main"] == true);
    assert_eq!(mains.count(), 1);
    let old = all
        .iter()
        .find(|t| t["vpc_id"] == vpc && t["is_main"] == false);
    let old = format!("/v1/route-tables/{}", id(old.unwrap()));
    client.does("DELETE", &old, None, 204).await;
    let gone = format!("{routes}?destination=0.0.0.0/0");
    client.does("DELETE", &gone, None, 204).await;
    client.refused("DELETE", &gone, None, "not-found").await;
    client.does("POST", &detach, None, 200).await;
    client.does("GET", &gateway_path, None, 200).await;
    client.does("DELETE", &gateway_path, None, 204).await;
    client
        .does("DELETE", &format!("/v1/subnets/{subnet}"), None, 204)
        .await;
    client
        .does("DELETE", &format!("/v1/vpcs/{vpc}"), None, 204)
        .await;
}

async fn reports(site: &Site, client: &Client) {
    let mut volumes = Vec::new();
    for _ in 0..3 {
        let body = json!({"size": 1_u64 << 30, "tags": {"Name": "lost"}});
        let made = client.does("POST", "/v1/volumes", Some(body), 201).await;
        let volume = id(&made.json());
        site.made(&volume).await;
        volumes.push(volume);
    }
    let first = client.does("GET", "/v1/reports/orphans?limit=2", None, 200);
    let first = first.await.json();
    let next = first["next"].as_str().unwrap();
    let path = format!("/v1/reports/orphans?limit=2&after={next}");
    let second = client.does("GET", &path, None, 200).await.json();
    let all = [&first, &second].map(|page| page["items"].as_array().unwrap().clone());
    let all = all.concat();
    let since: Vec<_> = all.iter().map(|o| o["since"].as_str()).collect();
    assert!(since.is_sorted(), "the oldest first: {since:?}");
    let lost = all.iter().filter(|orphan| orphan["name"] == "lost");
    let mut seen: Vec<_> = lost.map(|o| o["volume_id"].as_str().unwrap()).collect();
    seen.sort_unstable();
    volumes.sort_unstable();
    assert_eq!(seen, volumes);

    let body = json!({"image": "golden-2", "instance_type": "t3.micro"});
    let image = site.image_of("golden-2").await;
    let made = client
        .does("POST", "/v1/instances", Some(body), 201)
        .await
        .json();
    let instance = id(&made["instances"][0]);
    let policy = json!({"required": {"team": ["red", "blue"]}});
    let path = "/v1/tag-policy";
    let none = client.does("GET", path, None, 200).await.json();
    assert_eq!(none, json!({"required": {}}));
    let set = client.does("PUT", path, Some(policy), 200).await.json();
    assert_eq!(client.get(path).await.json(), set);
    let body = json!({"size": 1_u64 << 30, "tags": {"team": "green"}});
    client
        .refused("POST", "/v1/volumes", Some(body), "invalid-value")
        .await;
    let gone = format!("/v1/images/{}", image.id);
    client.does("DELETE", &gone, None, 204).await;
    let drift = client
        .does("GET", "/v1/reports/drift", None, 200)
        .await
        .json();
    let drift = drift["items"].as_array().unwrap();
    let of = drift
        .iter()
        .find(|d| d["instance_id"] == instance.as_str())
        .unwrap();
    let kinds: Vec<_> = of["differences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| &d["kind"])
        .collect();
    assert_eq!(kinds, ["image-gone", "tags"], "{of}");
    let path = "/v1/reports/boot-times";
    let boots = client.does("GET", path, None, 200).await.json();
    for boot in boots["items"].as_array().unwrap() {
        assert!(boot["p50_seconds"].as_f64() <= boot["p99_seconds"].as_f64());
    }
    for bad in ["/v1/reports/drift?limit=0", "/v1/reports/orphans?limit=0"] {
        client.refused("GET", bad, None, "bad-request").await;
    }
}

async fn keys(client: &Client) {
    let body = json!({"name": "mine"});
    let made = client
        .does("POST", "/v1/key-pairs", Some(body.clone()), 201)
        .await;
    let made = made.json();
    let private = made["private_key"].as_str().unwrap();
    assert!(private.contains("PRIVATE KEY"), "{private}");
    client
        .refused("POST", "/v1/key-pairs", Some(body), "already-exists")
        .await;
    let body = json!({"name": "theirs", "public_key": made["public_key"]});
    let imported = client
        .does("POST", "/v1/key-pairs", Some(body), 201)
        .await
        .json();
    assert!(imported["private_key"].is_null());
    for bad in [
        json!({"name": "bad", "public_key": "ssh-rsa nonsense"}),
        json!({"name": "bad", "kind": "dsa"}),
        json!({"name": "bad", "kind": "rsa", "public_key": made["public_key"]}),
        json!({"name": ""}),
    ] {
        client
            .refused("POST", "/v1/key-pairs", Some(bad), "invalid-value")
            .await;
    }
    let all = client.does("GET", "/v1/key-pairs", None, 200).await;
    assert!(!all.text().contains("PRIVATE"), "it is given once");
    let path = format!("/v1/key-pairs/{}", id(&imported));
    let shown = client.does("GET", &path, None, 200).await.json();
    assert_eq!(shown["fingerprint"], imported["fingerprint"]);
    client.does("DELETE", &path, None, 204).await;

    let made = client
        .does("POST", "/v1/access-keys", Some(json!({"user": "ci"})), 201)
        .await;
    let made = made.json();
    assert!(id(&made).starts_with("AKIA") && made["secret"].as_str().unwrap().len() >= 40);
    let all = client
        .does("GET", "/v1/access-keys", None, 200)
        .await
        .text();
    assert!(all.contains(&id(&made)) && !all.contains(made["secret"].as_str().unwrap()));
    let path = format!("/v1/access-keys/{}", id(&made));
    client.does("DELETE", &path, None, 204).await;
    client.refused("DELETE", &path, None, "not-found").await;

    let body = json!({"name": "dashboard", "ttl_seconds": 60});
    let made = client
        .does("POST", "/v1/tokens", Some(body), 201)
        .await
        .json();
    assert_eq!(made["role"], "reader");
    let all = client.does("GET", "/v1/tokens", None, 200).await.text();
    assert!(all.contains(&id(&made)) && !all.contains(made["secret"].as_str().unwrap()));
    let path = format!("/v1/tokens/{}", id(&made));
    client.does("DELETE", &path, None, 204).await;
    client.refused("DELETE", &path, None, "not-found").await;
}

async fn account(client: &Client) {
    let body = json!({"limit": 3});
    let set = client
        .does("PUT", "/v1/quotas/vpcs", Some(body), 200)
        .await
        .json();
    assert_eq!((&set["limit"], &set["used"]), (&json!(3), &json!(1)));
    for (n, code) in [(1, ""), (2, ""), (3, "quota-exceeded")] {
        let body = json!({"cidr": format!("10.{n}.0.0/16")});
        match code {
            "" => drop(client.does("POST", "/v1/vpcs", Some(body), 201).await),
            code => drop(client.refused("POST", "/v1/vpcs", Some(body), code).await),
        }
    }
    client
        .does("PUT", "/v1/quotas/vpcs", Some(json!({})), 200)
        .await;
    client
        .refused("PUT", "/v1/quotas/cats", Some(json!({})), "not-found")
        .await;
    let all = client.does("GET", "/v1/quotas", None, 200).await.json();
    let vpcs = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|q| q["name"] == "vpcs");
    assert_eq!(vpcs.unwrap()["limit"], 100);

    let all = client.does("GET", "/v1/vpcs", None, 200).await.json();
    let vpc = id(&all["items"][0]);
    let path = format!("/v1/tags/{vpc}");
    let body = json!({"team": "blue", "old": "x"});
    client.does("PATCH", &path, Some(body), 204).await;
    let body = json!({"team": "red", "old": null});
    client.does("PATCH", &path, Some(body), 204).await;
    let shown = client
        .does("GET", &format!("/v1/vpcs/{vpc}"), None, 200)
        .await
        .json();
    assert_eq!(shown["tags"], json!({"team": "red"}));
    for (query, count) in [("tag=team", 1), ("tag=team=red", 1), ("tag=team=blue", 0)] {
        let page = client.get(&format!("/v1/vpcs?{query}")).await.json();
        assert_eq!(page["items"].as_array().unwrap().len(), count, "{query}");
    }
    client
        .refused(
            "PATCH",
            "/v1/tags/vpc-00000000",
            Some(json!({})),
            "not-found",
        )
        .await;
    client
        .refused("PATCH", &path, Some(json!({"aws:x": "y"})), "invalid-value")
        .await;

    let body = json!({"name": "lab.tiny", "cpus": 1, "memory_mib": 256});
    client
        .does("POST", "/v1/instance-types", Some(body.clone()), 201)
        .await;
    client
        .refused("POST", "/v1/instance-types", Some(body), "already-exists")
        .await;
    let all = client
        .does("GET", "/v1/instance-types", None, 200)
        .await
        .text();
    assert!(all.contains("t3.micro") && all.contains("lab.tiny"));
    let path = "/v1/instance-types/lab.tiny";
    let shown = client.does("GET", path, None, 200).await.json();
    assert_eq!(shown["custom"], true);
    client.does("DELETE", path, None, 204).await;
    client.refused("GET", path, None, "not-found").await;
    client
        .refused("DELETE", "/v1/instance-types/t3.micro", None, "forbidden")
        .await;
}

async fn storage(site: &Site, client: &Client) {
    let image = site.image().await;
    let body = json!({"size": 1_u64 << 30, "kind": "gp3", "tags": {"Name": "data"}});
    let made = client
        .does("POST", "/v1/volumes", Some(body), 201)
        .await
        .json();
    assert_eq!(made["state"], "creating");
    for bad in [
        json!({}),
        json!({"size": 0}),
        json!({"size": 1_u64 << 30, "kind": "fast"}),
        json!({"size": -1}),
        json!({"size": 1, "colour": "red"}),
    ] {
        client
            .refused("POST", "/v1/volumes", Some(bad), "invalid-value")
            .await;
    }
    let path = format!("/v1/volumes/{}", id(&made));
    site.made(&id(&made)).await;
    let page = client
        .does("GET", "/v1/volumes?state=available", None, 200)
        .await;
    assert_eq!(page.json()["items"][0]["id"], made["id"]);
    let shown = client.does("GET", &path, None, 200).await;
    let body = json!({"size": 2_u64 << 30});
    let grown = client
        .with("if-match", shown.header("etag"))
        .does("PATCH", &path, Some(body), 200)
        .await;
    assert_eq!(grown.json()["size"], 2_u64 << 30);
    client
        .refused("PATCH", &path, Some(json!({"size": 1})), "invalid-value")
        .await;

    let body = json!({"volume_id": made["id"], "description": "monday"});
    let snapshot = client
        .does("POST", "/v1/snapshots", Some(body), 201)
        .await
        .json();
    let of_image = image.disks[0].snapshot.as_ref().unwrap().to_string();
    let all = client.does("GET", "/v1/snapshots", None, 200).await.text();
    assert!(all.contains(&of_image) && all.contains(&id(&snapshot)));
    let back = format!("{path}/rollback");
    let body = json!({"snapshot_id": id(&snapshot)});
    client
        .refused("POST", &back, Some(body.clone()), "wrong-state")
        .await;
    site.completed(&id(&snapshot)).await;
    let volume = client.does("POST", &back, Some(body), 202).await.json();
    assert_eq!(volume["rolling_back_to"], id(&snapshot));
    let running = client.does("GET", "/v1/operations?state=running", None, 200);
    let running = running.await.json();
    assert_eq!(running["items"][0]["kind"], "volume-rollback");
    let snapshot = format!("/v1/snapshots/{}", id(&snapshot));
    client.refused("DELETE", &snapshot, None, "in-use").await;
    site.rolled_back(&id(&made)).await;
    client.does("GET", &snapshot, None, 200).await;
    client.does("DELETE", &snapshot, None, 204).await;
    let needed = format!("/v1/snapshots/{of_image}");
    client.refused("DELETE", &needed, None, "in-use").await;

    let body =
        json!({"name": "again", "disks": [{"device": "/dev/xvda", "snapshot_id": of_image}]});
    let again = client
        .does("POST", "/v1/images", Some(body), 201)
        .await
        .json();
    let again = format!("/v1/images/{}", id(&again));
    let body = json!({"description": "a copy", "login": "admin"});
    let changed = client.does("PATCH", &again, Some(body), 200).await.json();
    assert_eq!(
        (&changed["login"], &changed["name"]),
        (&json!("admin"), &json!("again"))
    );
    client.does("GET", &again, None, 200).await;
    client.does("GET", "/v1/images?name=again", None, 200).await;
    client.does("DELETE", &again, None, 204).await;
}

async fn instances(site: &Site, client: &Client) {
    let body = json!({
        "image": "debian", "instance_type": "t3.micro", "key_name": "mine",
        "user_data": "IyEvYmluL3NoCg==", "tags": {"Name": "web1"}, "ttl_seconds": 3600,
    });
    let keyed = client.with("idempotency-key", "launch-1");
    let made = keyed
        .does("POST", "/v1/instances", Some(body.clone()), 201)
        .await
        .json();
    let again = keyed
        .does("POST", "/v1/instances", Some(body), 201)
        .await
        .json();
    assert_eq!(made, again, "it is done once");
    let instance = &made["instances"][0];
    assert_eq!(
        (&instance["state"], &instance["name"]),
        (&json!("pending"), &json!("web1"))
    );
    assert_eq!(instance["key_name"], "mine");
    let name = id(instance);
    for (bad, code) in [
        (
            json!({"image": "nothing", "instance_type": "t3.micro"}),
            "not-found",
        ),
        (
            json!({"image": "debian", "instance_type": "huge"}),
            "not-found",
        ),
        (json!({"image": "debian"}), "invalid-value"),
        (
            json!({"image": "debian", "instance_type": "t3.micro", "count": 0}),
            "invalid-value",
        ),
        (
            json!({"image": "debian", "instance_type": "t3.micro", "user_data": "%"}),
            "invalid-value",
        ),
    ] {
        client
            .refused("POST", "/v1/instances", Some(bad), code)
            .await;
    }
    let path = format!("/v1/instances/{name}");
    let all = client
        .does("GET", "/v1/instances?name=web1", None, 200)
        .await
        .json();
    assert_eq!(id(&all["items"][0]), name);
    site.enters(&name, InstanceState::Running).await;
    let shown = client.does("GET", &path, None, 200).await.json();
    assert!(shown["private_ip"].is_string() && shown["disks"][0]["volume_id"].is_string());
    let console = client
        .does("GET", &format!("{path}/console"), None, 200)
        .await;
    assert!(console.text().contains(&format!("booting {name}")));

    let body = json!({"size": 1_u64 << 30});
    let volume = client
        .does("POST", "/v1/volumes", Some(body), 201)
        .await
        .json();
    site.made(&id(&volume)).await;
    let volume = format!("/v1/volumes/{}", id(&volume));
    let body = json!({"instance_id": name, "device": "/dev/sdf"});
    let attached = client
        .does("POST", &format!("{volume}/attach"), Some(body), 200)
        .await;
    assert_eq!(attached.json()["attachment"]["state"], "attaching");
    client.refused("DELETE", &volume, None, "in-use").await;
    client
        .does("POST", &format!("{volume}/detach"), Some(json!({})), 200)
        .await;

    let body = json!({"termination_protection": true, "ttl_seconds": 0});
    let changed = client.does("PATCH", &path, Some(body), 200).await.json();
    assert!(changed["expires"].is_null());
    client.refused("DELETE", &path, None, "wrong-state").await;
    let resize = json!({"instance_type": "t3.small"});
    client
        .refused("PATCH", &path, Some(resize), "wrong-state")
        .await;
    client
        .does("POST", &format!("{path}/reboot"), None, 202)
        .await;
    let body = json!({"instance_id": name, "name": "golden"});
    let image = client
        .does("POST", "/v1/images/capture", Some(body), 201)
        .await
        .json();
    assert_eq!(image["state"], "pending");
    let stop = client
        .does("POST", &format!("{path}/stop"), Some(json!({})), 202)
        .await;
    assert_eq!(stop.json()["state"], "stopping");
    client
        .refused("POST", &format!("{path}/start"), None, "wrong-state")
        .await;
    site.enters(&name, InstanceState::Stopped).await;
    let start = client
        .does("POST", &format!("{path}/start"), None, 202)
        .await;
    assert_eq!(start.json()["state"], "pending");
    let body = json!({"termination_protection": false});
    client.does("PATCH", &path, Some(body), 200).await;
    let gone = client.does("DELETE", &path, None, 202).await.json();
    assert_eq!(gone["state"], "shutting-down");
    let free = client.get(&volume).await.json();
    assert_ne!(free["state"], "deleting", "{free}");
    client.send("DELETE", &volume, None).await;
    // One that is free goes at once.
    let body = json!({"size": 1_u64 << 30});
    let volume = client
        .does("POST", "/v1/volumes", Some(body), 201)
        .await
        .json();
    let volume = format!("/v1/volumes/{}", id(&volume));
    client.does("DELETE", &volume, None, 204).await;
}

async fn records(site: &Site, client: &Client) {
    let all = client.does("GET", "/v1/events", None, 200).await.json();
    let all = all["items"].as_array().unwrap();
    let stopped = |event: &&Value| event["kind"] == "instance-stop-asked-for";
    let stopped = all.iter().find(stopped).expect("it is told");
    assert_eq!(stopped["actor"], "user:1000");
    let resource = stopped["resource_id"].as_str().unwrap();
    let some = client
        .get(&format!("/v1/events?resource={resource}&last=1"))
        .await;
    let some = some.json();
    assert_eq!(some["items"].as_array().unwrap().len(), 1);
    assert_eq!(some["items"][0]["kind"], "instance-terminate-asked-for");
    let operation = Operation {
        id: OperationId::random(),
        account: site.caller.account.clone(),
        kind: "image-import".into(),
        resource: "ami-00000000".into(),
        began: Timestamp::now(),
        ended: None,
        stage: "converting".into(),
        progress: Some(40),
        state: OperationState::Running,
        failure: None,
    };
    let begun = site
        .plane
        .transact(|batch| batch.create(operation.id.as_str(), &operation));
    begun.await.unwrap();
    let path = format!("/v1/operations/{}", operation.id);
    let shown = client.does("GET", &path, None, 200).await.json();
    assert_eq!(
        (&shown["progress"], &shown["state"]),
        (&json!(40), &json!("running"))
    );
    let path = "/v1/operations?state=running&name=image-import";
    let all = client.does("GET", path, None, 200).await.json();
    assert_eq!(all["items"], json!([shown]));
    client
        .refused("GET", "/v1/operations/op-00000000", None, "not-found")
        .await;
    let watch = client.open("/v1/watch?kind=vpc").await;
    assert_eq!(watch.status(), StatusCode::OK);
    client
        .refused("GET", "/v1/watch?kind=cat", None, "bad-request")
        .await;
}
