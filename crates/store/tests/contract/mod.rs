//! What every store must do. A second implementation runs the same suite.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use store::{Change, Event, Expect, Revision, Store, StoreError, Watch};

const SOON: Duration = Duration::from_secs(30);

/// Runs all of it, each part on a store that `open` makes, empty.
pub async fn suite<S: Store + 'static>(open: impl Fn() -> Arc<S>) {
    documents(&*open()).await;
    conditions(&*open()).await;
    lists(&*open()).await;
    watches(&*open()).await;
    slow_watches(&*open()).await;
    leases(&*open()).await;
    limits(&*open()).await;
    racing(open()).await;
    random_changes(&*open()).await;
}

async fn documents(s: &dyn Store) {
    assert_eq!(s.get("a/1").await.unwrap(), None);
    let first = s.commit(Change::new().put("a/1", "one")).await.unwrap();
    let found = s.get("a/1").await.unwrap().unwrap();
    assert_eq!(found.value, b"one");
    assert_eq!((found.revision, found.created), (first, first));
    let second = s.commit(Change::new().put("a/1", "two")).await.unwrap();
    assert!(second > first);
    let found = s.get("a/1").await.unwrap().unwrap();
    assert_eq!((found.revision, found.created), (second, first));
    s.commit(Change::new().delete("a/1")).await.unwrap();
    assert_eq!(s.get("a/1").await.unwrap(), None);
    let third = s.commit(Change::new().put("a/1", "")).await.unwrap();
    let found = s.get("a/1").await.unwrap().unwrap();
    assert_eq!((found.value.as_slice(), found.created), (&b""[..], third));
}

async fn conditions(s: &dyn Store) {
    let made = Change::new().expect("k", Expect::Absent).put("k", "1");
    let at = s.commit(made.clone()).await.unwrap();
    for (change, found) in [
        (made, Some(at)),
        (
            Change::new().expect("k", Expect::At(at + 1)).delete("k"),
            Some(at),
        ),
        (Change::new().expect("z", Expect::Present).delete("k"), None),
    ] {
        match s.commit(change).await {
            Err(StoreError::Conflict { found: f, .. }) => assert_eq!(f, found),
            other => panic!("{other:?}"),
        }
    }
    // All or nothing.
    let change = Change::new()
        .expect("k", Expect::At(at))
        .expect("z", Expect::Present)
        .put("k", "2")
        .put("y", "2");
    assert!(s.commit(change).await.is_err());
    assert_eq!(s.get("y").await.unwrap(), None);
    assert_eq!(s.get("k").await.unwrap().unwrap().revision, at);
    // A condition alone may hold; it changes nothing.
    let same = s.commit(Change::new().expect("k", Expect::At(at))).await;
    assert_eq!(same.unwrap(), at);
    let both = Change::new()
        .expect("k", Expect::Present)
        .put("k", "3")
        .put("y", "3");
    let at = s.commit(both).await.unwrap();
    for key in ["k", "y"] {
        assert_eq!(s.get(key).await.unwrap().unwrap().revision, at);
    }
}

async fn lists(s: &dyn Store) {
    for n in 0..25 {
        let key = format!("a/{n:02}");
        s.commit(Change::new().put(key, "x")).await.unwrap();
    }
    for other in ["a", "a0", "a.", "b/1"] {
        s.commit(Change::new().put(other, "y")).await.unwrap();
    }
    let all = s.list("a/", "", 1000).await.unwrap();
    assert_eq!((all.documents.len(), all.more), (25, false));
    let (mut after, mut seen) = (String::new(), Vec::new());
    loop {
        let page = s.list("a/", &after, 10).await.unwrap();
        assert!(page.documents.len() <= 10);
        seen.extend(page.documents.iter().map(|d| d.key.clone()));
        if !page.more {
            break;
        }
        after = seen.last().unwrap().clone();
    }
    assert!(seen.is_sorted() && seen.len() == 25, "{seen:?}");
    assert_eq!(s.list("", "", 1000).await.unwrap().documents.len(), 29);
    assert_eq!(s.list("none/", "", 10).await.unwrap().documents, []);
}

async fn next(watch: &mut Box<dyn Watch>) -> Vec<Event> {
    let batch = tokio::time::timeout(SOON, watch.next()).await;
    batch.expect("an event").unwrap().events
}

async fn watches(s: &dyn Store) {
    let start = s.commit(Change::new().put("w/0", "before")).await.unwrap();
    let mut watch = s.watch("w/", start).await.unwrap();
    s.commit(Change::new().put("x/1", "other")).await.unwrap();
    let change = Change::new().put("w/1", "a").put("w/2", "b").delete("w/0");
    let at = s.commit(change).await.unwrap();
    let events = next(&mut watch).await;
    let keys: Vec<&str> = events.iter().map(Event::key).collect();
    assert_eq!(keys, ["w/0", "w/1", "w/2"]);
    assert!(events.iter().all(|e| e.revision() == at));
    assert!(matches!(&events[0], Event::Delete { .. }));
    let Event::Put(document) = &events[1] else {
        panic!("{events:?}");
    };
    assert_eq!(document.value, b"a");
    // A waiting watch wakes; and one from the past sees it all again.
    let waiting = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
    assert!(waiting.is_err(), "{waiting:?}");
    let change = s.commit(Change::new().put("w/3", "c"));
    let (events, _) = tokio::join!(next(&mut watch), change);
    assert_eq!(events[0].key(), "w/3");
    let mut again = s.watch("w/", start).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.extend(next(&mut again).await);
    }
    assert!(seen.is_sorted_by_key(Event::revision), "{seen:?}");
}

/// More events than fit one batch: none is lost, no change is torn.
async fn slow_watches(s: &dyn Store) {
    let mut watch = s.watch("", 0).await.unwrap();
    for n in 0..30 {
        let mut change = Change::new();
        for k in 0..99 {
            change = change.put(format!("s/{k}"), format!("{n}"));
        }
        s.commit(change).await.unwrap();
    }
    let mut seen = 0;
    while seen < 30 * 99 {
        let events = next(&mut watch).await;
        assert_eq!(events.len() % 99, 0, "a change in two batches");
        seen += events.len();
    }
}

async fn leases(s: &dyn Store) {
    let long = s.grant(Duration::from_secs(600)).await.unwrap();
    let short = s.grant(Duration::from_millis(300)).await.unwrap();
    assert_ne!(long, short);
    let change = Change::new()
        .put_leased("l/long", "x", long)
        .put_leased("l/short", "x", short)
        .put("l/none", "x");
    let at = s.commit(change).await.unwrap();
    assert_eq!(s.get("l/long").await.unwrap().unwrap().lease, Some(long));
    let mut watch = s.watch("l/", at).await.unwrap();
    let events = next(&mut watch).await;
    assert_eq!(events.len(), 1);
    assert!(matches!(&events[0], Event::Delete { key, .. } if key == "l/short"));
    assert!(matches!(
        s.keep_alive(short).await,
        Err(StoreError::NoLease(_))
    ));
    let late = Change::new().put_leased("l/late", "x", short);
    assert!(matches!(s.commit(late).await, Err(StoreError::NoLease(_))));
    s.keep_alive(long).await.unwrap();
    // Written anew without the lease, a document outlives it.
    s.commit(
        Change::new()
            .put("l/kept", "x")
            .put_leased("l/gone", "x", long),
    )
    .await
    .unwrap();
    s.commit(Change::new().put("l/long", "free")).await.unwrap();
    s.revoke(long).await.unwrap();
    assert!(matches!(s.revoke(long).await, Err(StoreError::NoLease(_))));
    let page = s.list("l/", "", 10).await.unwrap();
    let keys: Vec<&str> = page.documents.iter().map(|d| d.key.as_str()).collect();
    assert_eq!(keys, ["l/kept", "l/long", "l/none"]);
    // Kept alive, a short one goes on.
    let kept = s.grant(Duration::from_secs(2)).await.unwrap();
    s.commit(Change::new().put_leased("l/z", "x", kept))
        .await
        .unwrap();
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        s.keep_alive(kept).await.unwrap();
    }
    assert!(s.get("l/z").await.unwrap().is_some());
}

async fn limits(s: &dyn Store) {
    let long = "k".repeat(store::KEY_MAX);
    s.commit(Change::new().put(&long, vec![0; store::VALUE_MAX]))
        .await
        .unwrap();
    let many = (0..=store::WRITES_MAX).fold(Change::new(), |c, n| c.delete(format!("{n}")));
    for change in [
        Change::new().put(long + "k", "x"),
        Change::new().put("", "x"),
        Change::new().put("a b", "x"),
        Change::new().put("\u{e4}", "x"),
        Change::new().expect("a\n", Expect::Absent),
        Change::new().put("v", vec![0; store::VALUE_MAX + 1]),
        Change::new().put("twice", "1").delete("twice"),
        many,
    ] {
        let refused = s.commit(change).await;
        assert!(
            matches!(refused, Err(StoreError::Refused { .. })),
            "{refused:?}"
        );
    }
}

/// Compare-and-swap from many sides at once: every step is made exactly once.
async fn racing<S: Store + 'static>(s: Arc<S>) {
    const TASKS: u64 = 8;
    const STEPS: u64 = 40;
    s.commit(Change::new().put("n", "0")).await.unwrap();
    let tasks = (0..TASKS).map(|_| {
        let s = s.clone();
        tokio::spawn(async move {
            let mut made = 0;
            while made < STEPS {
                let now = s.get("n").await.unwrap().unwrap();
                let n: u64 = String::from_utf8(now.value).unwrap().parse().unwrap();
                let change = Change::new()
                    .expect("n", Expect::At(now.revision))
                    .put("n", (n + 1).to_string());
                match s.commit(change).await {
                    Ok(_) => made += 1,
                    Err(StoreError::Conflict { .. }) => {}
                    Err(e) => panic!("{e}"),
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let end = s.get("n").await.unwrap().unwrap();
    assert_eq!(end.value, (TASKS * STEPS).to_string().into_bytes());
}

/// Against a map: the same documents at the end, and a watch that replays to
/// the same.
async fn random_changes(s: &dyn Store) {
    let key = (0u8..3, 0u8..6).prop_map(|(a, b)| format!("{}/{b}", ["p", "q", "p/q"][a as usize]));
    let write = (key, proptest::option::weighted(0.7, 0u32..1000));
    let changes = proptest::collection::vec(
        (
            proptest::collection::vec(write, 1..5),
            proptest::bool::weighted(0.2),
        ),
        300,
    );
    let changes = changes
        .new_tree(&mut TestRunner::deterministic())
        .unwrap()
        .current();
    let mut model: BTreeMap<String, String> = BTreeMap::new();
    let mut last: Revision = 0;
    for (writes, fails) in changes {
        let mut change = Change::new();
        let writes: BTreeMap<_, _> = writes.into_iter().collect();
        for (key, value) in &writes {
            change = match value {
                Some(value) => change.put(key, value.to_string()),
                None => change.delete(key),
            };
        }
        if fails {
            change = change.expect("never", Expect::Present);
            assert!(s.commit(change).await.is_err());
            continue;
        }
        let at = s.commit(change).await.unwrap();
        assert!(at >= last);
        last = at;
        for (key, value) in writes {
            match value {
                Some(value) => drop(model.insert(key, value.to_string())),
                None => drop(model.remove(&key)),
            }
        }
    }
    let listed = s.list("", "", 1000).await.unwrap();
    let listed: BTreeMap<_, _> = listed
        .documents
        .into_iter()
        .map(|d| (d.key, String::from_utf8(d.value).unwrap()))
        .collect();
    assert_eq!(listed, model);
    let mut watch = s.watch("p/", 0).await.unwrap();
    let (mut replayed, mut at) = (BTreeMap::new(), 0);
    while at < last {
        let batch = tokio::time::timeout(Duration::from_millis(500), watch.next()).await;
        let Ok(batch) = batch else {
            break;
        };
        let batch = batch.unwrap();
        at = batch.revision;
        for event in batch.events {
            match event {
                Event::Put(d) => drop(replayed.insert(d.key, String::from_utf8(d.value).unwrap())),
                Event::Delete { key, .. } => drop(replayed.remove(&key)),
            }
        }
    }
    model.retain(|key, _| key.starts_with("p/"));
    assert_eq!(replayed, model);
}
