//! The embedded store: the contract, and what is its own.

mod contract;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use store::{Change, Sqlite, Store, StoreError};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_the_contract() {
    let directories = Mutex::new(Vec::new());
    contract::suite(|| {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Sqlite::open(directory.path()).unwrap());
        directories.lock().unwrap().push(directory);
        store
    })
    .await;
}

#[tokio::test]
async fn one_daemon_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let first = Sqlite::open(directory.path()).unwrap();
    let error = Sqlite::open(directory.path()).map(|_| ()).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    drop(first);
    Sqlite::open(directory.path()).unwrap();
}

#[tokio::test]
async fn documents_and_leases_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = Sqlite::open(directory.path()).unwrap();
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    let change = Change::new().put("a", "1").put_leased("b", "2", lease);
    let at = store.commit(change).await.unwrap();
    drop(store);
    let store = Sqlite::open(directory.path()).unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().revision, at);
    store.keep_alive(lease).await.unwrap();
    store.revoke(lease).await.unwrap();
    assert_eq!(store.get("b").await.unwrap(), None);
    // A watch from before the restart misses nothing.
    let mut watch = store.watch("", at - 1).await.unwrap();
    assert_eq!(watch.next().await.unwrap().events.len(), 3);
}

#[tokio::test]
async fn a_watch_that_is_too_late_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let store = Sqlite::open(directory.path()).unwrap();
    let mut asleep = store.watch("", 0).await.unwrap();
    let mut commits = tokio::task::JoinSet::new();
    for n in 0..52_000 {
        let store = store.clone();
        commits.spawn(async move { store.commit(Change::new().put("a", format!("{n}"))).await });
    }
    while let Some(done) = commits.join_next().await {
        done.unwrap().unwrap();
    }
    assert!(matches!(
        asleep.next().await,
        Err(StoreError::Compacted { .. })
    ));
    let error = store.watch("", 0).await.map(|_| ()).unwrap_err();
    let StoreError::Compacted { oldest } = error else {
        panic!("{error}");
    };
    let mut watch = store.watch("", oldest).await.unwrap();
    assert!(!watch.next().await.unwrap().events.is_empty());
}

#[tokio::test]
async fn a_backup_is_whole_and_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Sqlite::open(&directory.path().join("one")).unwrap());
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..500 {
                let text = n.to_string();
                let change = Change::new().put("a", text.clone()).put("b", text);
                store.commit(change).await.unwrap();
            }
        })
    };
    let file = directory.path().join("backup");
    while store.get("a").await.unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    store.backup(&file).await.unwrap();
    writer.await.unwrap();
    assert_eq!(store::check(&file).unwrap().faults, [""; 0]);
    let two = directory.path().join("two");
    let report = store::restore(&file, &two).unwrap();
    assert_eq!(report.documents, 2);
    assert!(store::restore(&file, &two).is_err(), "there is one already");
    let copy = Sqlite::open(&two).unwrap();
    let a = copy.get("a").await.unwrap().unwrap();
    assert_eq!(a.value, copy.get("b").await.unwrap().unwrap().value);
    copy.commit(Change::new().put("c", "goes on"))
        .await
        .unwrap();
}

fn sql(file: &Path, text: &str) {
    let connection = rusqlite::Connection::open(file).unwrap();
    connection.execute_batch(text).unwrap();
}

#[tokio::test]
async fn newer_foreign_and_damaged_files_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let open = || Sqlite::open(directory.path()).map(|_| ());
    open().unwrap();
    let file = directory.path().join("holm.db");
    sql(&file, "PRAGMA user_version = 99");
    let error = open().unwrap_err();
    assert!(
        matches!(error, StoreError::Newer { found: 99, .. }),
        "{error}"
    );
    assert!(matches!(store::check(&file), Err(StoreError::Newer { .. })));
    sql(&file, "PRAGMA user_version = 1; PRAGMA application_id = 5");
    assert!(matches!(open(), Err(StoreError::Foreign { .. })));
    std::fs::write(
        &file,
        b"this is a text, not a database, and long enough to see it".repeat(99),
    )
    .unwrap();
    assert!(matches!(open(), Err(StoreError::Foreign { .. })));
    assert!(store::restore(&file, &directory.path().join("x")).is_err());
    assert!(!directory.path().join("x").exists());
}

#[test]
fn check_finds_what_does_not_fit() {
    let directory = tempfile::tempdir().unwrap();
    drop(Sqlite::open(directory.path()).unwrap());
    let file = directory.path().join("holm.db");
    assert_eq!(store::check(&file).unwrap().faults, [""; 0]);
    sql(
        &file,
        "PRAGMA foreign_keys = OFF; INSERT INTO documents VALUES ('a', x'00', 9, 9, 7)",
    );
    let faults = store::check(&file).unwrap().faults;
    assert_eq!(faults.len(), 2, "{faults:?}");
}

const CHILD: &str = "HOLM_STORE_TEST_CHILD";

/// The process that gets killed: writes, and says what was acknowledged.
#[test]
fn child_writes_until_it_is_killed() {
    let Some(directory) = std::env::var_os(CHILD) else {
        return; // only as the child of the next test
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = Sqlite::open(Path::new(&directory)).unwrap();
        for n in 0u64.. {
            let value = n.to_string();
            let change = Change::new().put("a", value.clone()).put("b", value);
            store.commit(change).await.unwrap();
            println!("acknowledged {n}");
        }
    });
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..10 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_writes_until_it_is_killed", "--nocapture"])
            .env(CHILD, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut acknowledged = None;
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for line in lines.by_ref().map_while(Result::ok) {
            if let Some(n) = line.strip_prefix("acknowledged ") {
                acknowledged = n.parse::<u64>().ok();
                if acknowledged >= Some(20 + round * 7) {
                    break;
                }
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            acknowledged = line
                .strip_prefix("acknowledged ")
                .and_then(|n| n.parse().ok())
                .or(acknowledged);
        }
        let store = Sqlite::open(directory.path()).unwrap();
        let a = store.get("a").await.unwrap().unwrap().value;
        assert_eq!(a, store.get("b").await.unwrap().unwrap().value);
        let n: u64 = String::from_utf8(a).unwrap().parse().unwrap();
        assert!(Some(n) >= acknowledged, "{n} after {acknowledged:?}");
        let check = store::check(&directory.path().join("holm.db")).unwrap();
        assert_eq!(check.faults, [""; 0]);
    }
}
