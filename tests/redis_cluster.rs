//! Redis Cluster and sentinels: where keys are, and where they go.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::load::under_load;
use common::redis::{free_port, load, repo, Cluster, Redis};
use common::replay::{cases, replay};
use common::{eventually, Server};

const BODY: &str = r#"{"features":["store_daily:sales","region_stats:population"],
    "entities":{"store_id":[7,8,9,10,11,12,13,999],
                "region_code":["us-east","eu-west","a","b","c","d","e","f"]}}"#;

/// Clients that ask all the time while `action` happens; every answer must be right.
fn all_right_while(server: &Server, action: impl FnOnce()) {
    let expected = server.client().post("/get-online-features", BODY).text();
    assert!(expected.contains("42"), "{expected}");
    let (_, wrong) = under_load(server, BODY, &expected, action);
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn a_cluster_is_served_through_moves_and_failovers() {
    let cluster = Cluster::start();
    for options in ["", ",read_from_replicas=true,skip_full_coverage_check=true"] {
        let server = Server::start(repo(&cluster.block(options)), &["--workers", "2"]);
        assert_eq!(replay(&server, &cases("storage/cases.jsonl")), 11, "{options}");
    }
    let server = Server::start(repo(&cluster.block("")), &["--workers", "2", "--store-timeout-ms", "10000"]);

    // A slot moves to another master, key by key: ASK, then MOVED.
    let (key, _) = common::redis::dump().into_iter().next().unwrap();
    let slot = feast_prefork::online::redis::keys::slot(&key).to_string();
    let masters = cluster.masters();
    assert_eq!(masters.len(), 3);
    let owns = |index: usize| {
        let found = redis::cmd("EXISTS").arg(&key).query::<i64>(&mut cluster.nodes[index].connection());
        found.is_ok_and(|count| count == 1)
    };
    let from = *masters.iter().find(|&&index| owns(index)).unwrap();
    let to = *masters.iter().find(|&&index| index != from).unwrap();
    let (from_id, to_id) = (cluster.id(from), cluster.id(to));
    all_right_while(&server, || {
        cluster.tell(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).unwrap();
        cluster.tell(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).unwrap();
        let port = cluster.nodes[to].port.to_string();
        let _: redis::Value = redis::cmd("MIGRATE")
            .arg("127.0.0.1")
            .arg(&port)
            .arg(&key)
            .arg(0)
            .arg(1000)
            .query(&mut cluster.nodes[from].connection())
            .unwrap();
        std::thread::sleep(Duration::from_millis(300));
        for index in [to, from] {
            cluster.tell(index, &["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).unwrap();
        }
    });

    // A replica takes over from its master.
    let replica = (0..6)
        .find(|&index| {
            let role = format!("{:?}", cluster.tell(index, &["ROLE"]).unwrap());
            role.contains("slave") && role.contains(&cluster.nodes[to].port.to_string())
        })
        .unwrap();
    all_right_while(&server, || {
        // A failover that does not get its chance within 5 s is given up by the server.
        eventually("the replica is master", || {
            let _ = cluster.tell(replica, &["CLUSTER", "FAILOVER"]);
            std::thread::sleep(Duration::from_secs(1));
            cluster.masters().contains(&replica)
        });
    });
}

#[test]
fn a_master_that_dies_is_replaced_by_its_replica() {
    let mut cluster = Cluster::start();
    let server = Server::start(repo(&cluster.block("")), &["--workers", "2", "--store-timeout-ms", "15000"]);
    let mut expected = server.client().post("/get-online-features", BODY).text();
    let victim = cluster.masters()[0];
    cluster.nodes[victim].kill();
    let mut client = server.client();
    // Requests wait for the election and are answered then.
    for _ in 0..50 {
        let got = client.post("/get-online-features", BODY).text();
        assert_eq!(got, expected);
        expected = got;
    }
}

#[test]
fn sentinels_know_the_master() {
    let mut master = Redis::start(&[]);
    load(&mut master.connection());
    let replica = Redis::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    eventually("the replica follows", || {
        redis::cmd("DBSIZE").query::<i64>(&mut replica.connection()).unwrap() > 10
    });
    let sentinels: Vec<Redis> = (0..3)
        .map(|_| {
            let dir = tempfile::tempdir().unwrap().keep();
            let conf = dir.join("sentinel.conf");
            std::fs::write(
                &conf,
                format!(
                    "sentinel monitor features 127.0.0.1 {} 2\nsentinel down-after-milliseconds features 500\n\
                     sentinel failover-timeout features 3000\n",
                    master.port
                ),
            )
            .unwrap();
            Redis::sentinel(conf.to_str().unwrap())
        })
        .collect();
    let nodes: Vec<String> = std::iter::once(format!("127.0.0.1:{}", free_port()))
        .chain(sentinels.iter().map(Redis::address))
        .collect();
    let block = |name: &str| {
        format!(
            "{{type: redis, redis_type: redis_sentinel, sentinel_master: {name}, connection_string: '{}'}}",
            nodes.join(",")
        )
    };
    let server = Server::start(repo(&block("features")), &["--store-timeout-ms", "15000"]);
    assert_eq!(replay(&server, &cases("storage/cases.jsonl")), 11);
    // The sentinels have to know each other and the replica before they can elect.
    eventually("the sentinels know each other", || {
        let known: redis::Value = redis::cmd("SENTINEL")
            .arg(&["master", "features"])
            .query(&mut sentinels[0].connection())
            .unwrap();
        let text = format!("{known:?}").replace("bulk-string('\"", "").replace("\"')", "");
        text.contains("num-slaves, 1") && text.contains("num-other-sentinels, 2")
    });
    let expected = server.client().post("/get-online-features", BODY).text();
    master.kill();
    let mut client = server.client();
    for _ in 0..20 {
        assert_eq!(client.post("/get-online-features", BODY).text(), expected);
    }
    let other = Server::start(repo(&block("other")), &["--store-timeout-ms", "500"]);
    let got = other.client().post("/get-online-features", BODY);
    assert_eq!((got.status, got.text()), (500, "\"No master found for 'other'\"".to_owned()));
}

/// Everything that the masters hold.
fn all_keys(cluster: &Cluster) -> std::collections::BTreeSet<Vec<u8>> {
    let keys = |index: usize| {
        redis::cmd("KEYS").arg("*").query::<Vec<Vec<u8>>>(&mut cluster.nodes[index].connection()).unwrap()
    };
    cluster.masters().into_iter().flat_map(keys).collect()
}

#[test]
fn pushes_follow_a_slot_that_moves() {
    let cluster = Cluster::start();
    let repo = common::Repo::copy_of("driver_stats");
    let yaml = format!(
        "project: driver_stats\nregistry: data/registry.db\nprovider: local\nonline_store: {}\n\
         entity_key_serialization_version: 3\n",
        cluster.block("")
    );
    std::fs::write(repo.path().join("feature_store.yaml"), yaml).unwrap();
    let server = Server::start(repo, &["--workers", "1"]);
    let push = |minute: u32| {
        let body = format!(
            r#"{{"push_source_name":"driver_stats_push_source","to":"online","df":{{"driver_id":[5001,5002,5003],
            "event_timestamp":["2023-02-25T10:{minute}:00Z","2023-02-25T10:{minute}:00Z","2023-02-25T10:{minute}:00Z"],
            "created":["2023-02-25","2023-02-25","2023-02-25"],"conv_rate":[0.5,0.5,0.5],"acc_rate":[0.75,0.75,0.75],
            "avg_daily_trips":[{minute},{minute},{minute}],"string_feature":["a","b","c"]}}}}"#
        );
        let got = server.client().post("/push", &body);
        assert_eq!(got.status, 200, "{}", got.text());
    };
    let before = all_keys(&cluster);
    push(10);
    let key = all_keys(&cluster).difference(&before).next().unwrap().clone();
    let stored = |index: usize| {
        let mut connection = cluster.nodes[index].connection();
        redis::cmd("EXISTS").arg(&key).query::<i64>(&mut connection).is_ok_and(|count| count == 1)
    };
    let slot = feast_prefork::online::redis::keys::slot(&key).to_string();
    let masters = cluster.masters();
    let from = *masters.iter().find(|&&index| stored(index)).unwrap();
    let to = *masters.iter().find(|&&index| index != from).unwrap();
    let (from_id, to_id) = (cluster.id(from), cluster.id(to));
    cluster.tell(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).unwrap();
    cluster.tell(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).unwrap();
    // The key is where it was; then it has gone ahead of its slot; then the slot has followed.
    push(11);
    let _: redis::Value = redis::cmd("MIGRATE")
        .arg("127.0.0.1")
        .arg(cluster.nodes[to].port.to_string())
        .arg(&key)
        .arg(0)
        .arg(1000)
        .query(&mut cluster.nodes[from].connection())
        .unwrap();
    push(12);
    let read = || {
        let body = r#"{"features":["driver_hourly_stats_fresh:avg_daily_trips"],"entities":{"driver_id":[5001,5002,5003]}}"#;
        server.client().post("/get-online-features", body).text()
    };
    assert!(read().contains("[12,12,12]"), "{}", read());
    for index in [to, from] {
        cluster.tell(index, &["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).unwrap();
    }
    push(13);
    assert!(read().contains("[13,13,13]"), "{}", read());
}
