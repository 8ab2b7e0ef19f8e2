//! What becomes of requests whose database goes away in the middle, and of connections that are left
//! in the middle of an answer.

use bytes::Bytes;
use pleach::{
    model::{KeyRange, StoreError},
    store::{Query, read_all},
};

use crate::{
    bed::{ANSWER_WITHIN, Bed, DATABASE_FAMILY, is_unavailable},
    follow::{commits, soon},
    support::proxy::{Act, Way},
    words::{all_of, apply, bytes, key, list, put_op, put_record},
};

on_every_database! {
    rows_that_a_page_leaves_are_not_taken_for_the_next_answer,
    what_is_cut_short_is_never_taken_for_whole,
    a_waiting_compaction_ends_with_its_store,
    a_waiting_compaction_whose_step_is_cut_off_says_so_and_the_next_one_does_the_work,
    a_record_whose_commit_is_in_doubt_is_not_called_refused,
}

/// Writes so many versions of so many keys.
async fn write(bed: &Bed, versions: usize, keys: usize, value: &[u8]) {
    for _ in 0..versions {
        let put = |index| {
            let name = key(DATABASE_FAMILY, format!("key-{index:04}"));
            put_op(name, Bytes::copy_from_slice(value), 0)
        };
        apply(&*bed.router, all_of((0..keys).map(put).collect())).await.expect("all is well");
    }
}

async fn rows_that_a_page_leaves_are_not_taken_for_the_next_answer(bed: Bed) {
    const KEYS: usize = 24;
    let start = bed.clock.shown();
    // Four of them fill a page, and a page asks for more rows than that.
    write(&bed, 2, KEYS, &vec![b'v'; 300 << 10]).await;
    let revision = bed.clock.shown();
    let mut read = Query::new(KeyRange::all(), revision);
    let (mut names, mut connections) = (Vec::new(), None);
    loop {
        let page = bed.database.read(&read).await.expect("all is well");
        assert!(page.kvs.len() < KEYS, "no page was broken off");
        names.extend(page.kvs.into_iter().map(|kv| kv.key));
        // The same connection, with other statements: few rows, one row, rows of the log.
        assert_eq!(
            crate::words::count(&*bed.database, KeyRange::all(), revision).await.ok(),
            Some(KEYS as u64)
        );
        let single = Query::new(KeyRange::single(key(DATABASE_FAMILY, "key-0000")), revision);
        let found = bed.database.read(&single).await.expect("all is well").kvs;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].mod_revision, revision);
        let now = bed.proxy.connections();
        assert_eq!(*connections.get_or_insert(now), now, "a connection was thrown away");
        let Some(next) = page.next else { break };
        read.range.start = next;
    }
    let expected = (0..KEYS).map(|index| key(DATABASE_FAMILY, format!("key-{index:04}")));
    assert_eq!(names, expected.collect::<Vec<_>>());
    // The journal has forgotten the first of these, which the log then tells.
    let told = commits(&*bed.database, start, revision).await;
    let sizes: Vec<_> = told.iter().map(|commit| commit.events.len()).collect();
    assert_eq!(sizes, [KEYS, KEYS]);
}

async fn what_is_cut_short_is_never_taken_for_whole(bed: Bed) {
    const KEYS: usize = 40;
    write(&bed, 1, KEYS, &[b'v'; 2_000]).await;
    let prefix = KeyRange::prefix(key(DATABASE_FAMILY, "key-"));
    for way in [Way::Answers, Way::Requests] {
        for bytes in [0, 1, 4, 5, 9, 40, 150, 700, 3_000, 20_000, 70_000] {
            bed.proxy.truncate(way, bytes);
            let read = Query::new(prefix.clone(), bed.clock.shown());
            match tokio::time::timeout(ANSWER_WITHIN, read_all(&*bed.router, &read)).await {
                Ok(Ok(page)) => assert_eq!(page.kvs.len(), KEYS, "{way:?} {bytes}"),
                Ok(Err(error)) => assert!(is_unavailable(&error), "{way:?} {bytes}: {error}"),
                Err(_) => panic!("{way:?} {bytes}: no answer within {ANSWER_WITHIN:?}"),
            }
            let put = bed.try_put("cut", &format!("{way:?} {bytes}")).await;
            if let Err(error) = &put {
                let is_known =
                    is_unavailable(error) || matches!(error, StoreError::UnknownOutcome { .. });
                assert!(is_known, "{way:?} {bytes}: {error}");
            }
            bed.others_go_on().await;
            bed.put_again("well", "again").await;
            if put.is_ok() {
                assert_eq!(bed.value("cut").await, Some(format!("{way:?} {bytes}")));
            }
        }
    }
}

async fn a_waiting_compaction_ends_with_its_store(bed: Bed) {
    // Many steps, and a write between them that meets the trouble.
    write(&bed, 40, 256, b"value").await;
    let revision = bed.clock.shown();
    let fired = bed.proxy.trigger("the-needle", Act::CutBefore);
    let compacting = async {
        let compacting = bed.database.compact(revision, true);
        tokio::time::timeout(ANSWER_WITHIN, compacting).await.expect("an answer in bounded time")
    };
    let lose = async {
        soon("compaction begins", async {
            while bed.database.compacted() < revision {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let lose = async {
            fired.await.expect("the write was sent");
            bed.refuse().await;
        };
        tokio::join!(bed.try_put("a", "the-needle"), lose).0
    };
    let (compacted, put) = tokio::join!(compacting, lose);
    assert!(put.is_err(), "the write was cut off");
    let error = compacted.expect_err("the work is not done");
    assert!(is_unavailable(&error), "{error}");
    bed.pass().await;
    bed.put_again("a", "after").await;
    // It went on by itself, and who asks again hears of its end.
    bed.database.compact(revision, true).await.expect("all is well");
    let left = bed.sql("SELECT count(*) FROM pleach_log WHERE prev_seq = 0;").await;
    assert_eq!(left.trim(), "1", "only the last key was never superseded");
}

async fn a_waiting_compaction_whose_step_is_cut_off_says_so_and_the_next_one_does_the_work(
    bed: Bed,
) {
    write(&bed, 3, 50, b"value").await;
    let revision = bed.clock.shown();
    let fired = bed.proxy.trigger("walked", Act::CutBefore);
    let error = bed.database.compact(revision, true).await.expect_err("it was cut off");
    fired.await.expect("it was sent");
    assert!(is_unavailable(&error), "{error}");
    bed.put_again("a", "after").await;
    bed.database.compact(revision, true).await.expect("all is well");
    assert_eq!(bed.sql("SELECT count(*) FROM pleach_log;").await.trim(), "51");
}

async fn a_record_whose_commit_is_in_doubt_is_not_called_refused(bed: Bed) {
    for (act, is_there) in [(Act::DropAnswer, true), (Act::CutBefore, false)] {
        let name = format!("{act:?}");
        let fired = bed.proxy.trigger("COMMIT", act);
        let remembering = put_record(&*bed.records, &name, Some(bytes("value")));
        let answer = tokio::time::timeout(ANSWER_WITHIN, remembering).await;
        let error = answer.expect("an answer in bounded time").expect_err("nobody can know");
        fired.await.expect("there was a commit");
        assert!(matches!(error, StoreError::UnknownOutcome { .. }), "{act:?}: {error}");
        let records = soon("it is back", async {
            loop {
                if let Ok(records) = bed.records.scan_records(&name).await {
                    return records;
                }
            }
        });
        assert_eq!(records.await.len(), usize::from(is_there), "{act:?}");
        bed.put_again("well", "again").await;
    }
    list(&*bed.router, KeyRange::all(), bed.clock.shown()).await.expect("all is well");
}
