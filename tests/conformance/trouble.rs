//! What stores behind a socket promise when the socket, the server or another owner makes trouble.
//!
//! Each test has a [`Bed`]. In trouble the database's keys are refused in bounded time, with the route's
//! name; the others' go on; and all is well again without help when the trouble is over.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use pleach::{
    model::{KeyRange, StoreError},
    store::sql::remote::OpenError,
    topology::Endpoint,
};

use crate::{
    bed::{Bed, DATABASE_FAMILY, is_unavailable},
    follow::{Follower, soon},
    support::{
        databases::{DatabaseServer, Kind},
        proxy::{Act, Mode},
        rng::Rng,
    },
    words::{get, key, kvs, number},
    world::{DATABASE, fresh_clock, open_database},
};

on_every_database! {
    a_server_that_refuses_is_named_and_comes_back,
    a_connection_that_was_cut_while_idle_is_not_noticed,
    a_commit_whose_answer_was_lost_is_found_out,
    a_commit_that_was_cut_off_did_not_happen,
    a_commit_that_happened_is_told_when_the_server_is_back,
    a_commit_that_did_not_happen_leaves_nothing_when_the_server_is_back,
    a_server_that_hangs_holds_up_no_other_store,
    a_second_node_is_refused_by_name,
    a_node_that_lost_the_store_writes_and_reads_nothing,
    a_server_that_lost_what_it_acknowledged_is_not_served,
    a_lock_that_another_program_holds_is_waited_for_in_bounds,
    a_store_that_is_never_idle_is_kept,
    the_first_of_many_versions_can_be_read,
    a_database_of_kine_is_refused_by_name,
    tables_of_a_newer_version_are_refused,
    a_wrong_password_is_said_and_not_shown,
    keys_beyond_the_limit_are_refused_and_those_at_it_are_kept_whole,
    random_trouble_loses_no_acknowledged_write_and_no_event,
}

async fn a_server_that_refuses_is_named_and_comes_back(bed: Bed) {
    bed.try_put("a", "before").await.expect("all is well");
    bed.refuse().await;
    let error = bed.try_put("a", "meanwhile").await.expect_err("nobody is there");
    assert!(is_unavailable(&error), "{error}");
    bed.others_go_on().await;
    // A list over both must not look whole.
    let all = crate::words::list(&*bed.router, KeyRange::all(), bed.clock.shown()).await;
    assert!(is_unavailable(&all.expect_err("a part is missing")));
    bed.pass().await;
    bed.put_again("b", "after").await;
    assert_eq!(bed.value("a").await.as_deref(), Some("before"));
}

async fn a_connection_that_was_cut_while_idle_is_not_noticed(bed: Bed) {
    bed.try_put("a", "1").await.expect("all is well");
    assert_eq!(bed.value("a").await.as_deref(), Some("1"));
    bed.proxy.cut().await;
    assert_eq!(bed.value("a").await.as_deref(), Some("1"));
    bed.put_again("a", "2").await;
    assert_eq!(bed.value("a").await.as_deref(), Some("2"));
}

async fn a_commit_whose_answer_was_lost_is_found_out(bed: Bed) {
    let mut follower = Follower::start(&*bed.router, bed.clock.shown());
    let fired = bed.proxy.trigger("COMMIT", Act::DropAnswer);
    let revision = bed.try_put("a", "1").await.expect("it happened, and that was found out");
    fired.await.expect("the answer was dropped");
    assert_eq!(bed.value("a").await.as_deref(), Some("1"));
    soon("the event", follower.reach(revision)).await.expect("nothing is compacted");
    assert_eq!(crate::follow::revisions(&follower.commits), [revision]);
}

async fn a_commit_that_was_cut_off_did_not_happen(bed: Bed) {
    let fired = bed.proxy.trigger("COMMIT", Act::CutBefore);
    let error = bed.try_put("a", "1").await.expect_err("it was cut off");
    fired.await.expect("the commit was cut off");
    // Found out to be not applied, so it may be tried again.
    assert!(is_unavailable(&error), "{error}");
    assert_eq!(bed.value("a").await, None);
    bed.put_again("a", "2").await;
    assert_eq!(bed.value("a").await.as_deref(), Some("2"));
}

/// Loses a commit together with the server; `act` says whether it happened.
async fn lose_server_in_commit(bed: &Bed, act: Act) -> StoreError {
    let fired = bed.proxy.trigger("COMMIT", act);
    let lose = async {
        fired.await.expect("there is a commit");
        bed.refuse().await;
    };
    let (answer, ()) = tokio::join!(bed.try_put("a", "1"), lose);
    answer.expect_err("nobody can know")
}

async fn a_commit_that_happened_is_told_when_the_server_is_back(bed: Bed) {
    let mut follower = Follower::start(&*bed.router, bed.clock.shown());
    let error = lose_server_in_commit(&bed, Act::DropAnswer).await;
    assert!(matches!(error, StoreError::UnknownOutcome { .. }), "{error}");
    bed.others_go_on().await;
    bed.pass().await;
    let last = bed.put_again("b", "2").await;
    assert_eq!(bed.value("a").await.as_deref(), Some("1"));
    soon("the events", follower.reach(last)).await.expect("nothing is compacted");
    let told: Vec<_> = follower.commits.iter().flat_map(|commit| &commit.events).collect();
    let told = told.iter().filter(|event| event.kv.key == key(DATABASE_FAMILY, "a"));
    assert_eq!(told.count(), 1, "the unknown commit is told once");
}

async fn a_commit_that_did_not_happen_leaves_nothing_when_the_server_is_back(bed: Bed) {
    let error = lose_server_in_commit(&bed, Act::CutBefore).await;
    assert!(matches!(error, StoreError::UnknownOutcome { .. }), "{error}");
    bed.pass().await;
    bed.put_again("b", "2").await;
    assert_eq!(bed.value("a").await, None);
}

async fn a_server_that_hangs_holds_up_no_other_store(bed: Bed) {
    bed.try_put("a", "1").await.expect("all is well");
    bed.proxy.set(Mode::Stall).await.expect("the proxy obeys");
    let hanging = bed.try_put("a", "2");
    let others = async {
        for _ in 0..10 {
            bed.others_go_on().await;
        }
    };
    let (answer, ()) = tokio::join!(hanging, others);
    let error = answer.expect_err("nobody answers");
    let known = is_unavailable(&error) || matches!(error, StoreError::UnknownOutcome { .. });
    assert!(known, "{error}");
    // It is known now, so nobody waits any more.
    let started = Instant::now();
    let error = bed.try_put("a", "3").await.expect_err("nobody answers");
    assert!(is_unavailable(&error), "{error}");
    assert!(started.elapsed() < Duration::from_secs(1), "it waited for a server known to hang");
    bed.proxy.cut().await;
    bed.pass().await;
    bed.put_again("b", "4").await;
}

async fn a_second_node_is_refused_by_name(bed: Bed) {
    let second = open_database("pods", &bed.endpoint, &fresh_clock()).await;
    let error = second.expect_err("it is in use");
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    let said = error.to_string();
    assert!(said.contains("the conformance suite"), "{said}");
    bed.try_put("a", "1").await.expect("its owner goes on");
}

async fn a_node_that_lost_the_store_writes_and_reads_nothing(bed: Bed) {
    bed.try_put("a", "1").await.expect("all is well");
    bed.sql("UPDATE pleach_meta SET value = value + 1 WHERE name = 'epoch';").await;
    let error = bed.try_put("a", "2").await.expect_err("another one owns it");
    let is_fenced = |error: &StoreError| matches!(error, StoreError::Fenced { .. });
    assert!(is_fenced(&error) || is_unavailable(&error), "{error}");
    soon("reads are refused too", async {
        while let Ok(page) =
            crate::words::list(&*bed.database, KeyRange::all(), bed.clock.shown()).await
        {
            assert_eq!(page.kvs.len(), 1);
            tokio::task::yield_now().await;
        }
    })
    .await;
    let error = bed.try_put("a", "3").await.expect_err("another one owns it");
    assert!(is_fenced(&error), "{error}");
    assert_eq!(bed.sql("SELECT count(*) FROM pleach_log;").await.trim(), "1");
    bed.others_go_on().await;
}

async fn a_server_that_lost_what_it_acknowledged_is_not_served(bed: Bed) {
    bed.try_put("a", "1").await.expect("all is well");
    bed.try_put("a", "2").await.expect("all is well");
    bed.refuse().await;
    // What a replica that is behind looks like.
    bed.sql("DELETE FROM pleach_log WHERE seq = 2;").await;
    bed.pass().await;
    let said = soon("the loss is said", async {
        loop {
            let error = bed.try_put("b", "3").await.expect_err("it is not served");
            assert!(is_unavailable(&error), "{error}");
            let said = error.to_string();
            if said.contains("lost what it had promised") {
                return said;
            }
            tokio::task::yield_now().await;
        }
    });
    let said = said.await;
    assert!(said.contains("restore all stores"), "it names the remedy: {said}");
    bed.others_go_on().await;
}

async fn a_lock_that_another_program_holds_is_waited_for_in_bounds(bed: Bed) {
    bed.try_put("a", "1").await.expect("all is well");
    let hold = "BEGIN; SELECT value FROM pleach_meta WHERE name = 'epoch' FOR UPDATE;";
    let nap = match bed.endpoint {
        Endpoint::Postgres(_) => "SELECT pg_sleep(9);",
        _ => "SELECT sleep(9);",
    };
    let holding = bed.sql(hold).await.len();
    assert!(holding > 0, "the row is there");
    let text = format!("{hold} {nap} COMMIT;");
    let (_, error) = tokio::join!(bed.sql(&text), async {
        // The lock is taken some time after the client starts.
        soon("a write meets the lock", async {
            loop {
                if let Err(error) = bed.try_put("a", "2").await {
                    return error;
                }
            }
        })
        .await
    });
    assert!(is_unavailable(&error), "{error}");
    bed.put_again("a", "3").await;
}

async fn a_store_that_is_never_idle_is_kept(bed: Bed) {
    // Longer than the lease of its owner, without a pause in which it could be extended.
    let until = Instant::now() + Duration::from_secs(11);
    while Instant::now() < until {
        bed.try_put("a", "1").await.expect("all is well");
        assert_eq!(bed.value("a").await.as_deref(), Some("1"));
    }
}

/// Databases bound how far a recursive query goes, and some cut its answer without a word.
async fn the_first_of_many_versions_can_be_read(bed: Bed) {
    let first = bed.try_put("a", "first").await.expect("all is well");
    for version in 0..1_200 {
        bed.try_put("a", &version.to_string()).await.expect("all is well");
    }
    let kv = get(&*bed.router, &key(DATABASE_FAMILY, "a"), first).await.expect("it was there");
    assert_eq!(&kv.value[..], b"first");
}

async fn a_database_of_kine_is_refused_by_name(bed: Bed) {
    let database = bed.server.new_database().await.expect("a database can be made");
    bed.server.sql(&database, "CREATE TABLE kine (id INT);").await.expect("a table can be made");
    let endpoint = Endpoint::parse(&bed.server.url(&database)).expect("a good endpoint");
    let error = open_database("pods", &endpoint, &bed.clock).await.expect_err("it is kine's");
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    assert!(error.to_string().contains("kine"), "{error}");
}

async fn tables_of_a_newer_version_are_refused(bed: Bed) {
    bed.sql("UPDATE pleach_meta SET value = 99 WHERE name = 'schema';").await;
    let error = open_database("pods", &bed.endpoint, &bed.clock).await.expect_err("too new");
    assert!(matches!(error, OpenError::TooNew { found: 99, .. }), "{error}");
}

async fn a_wrong_password_is_said_and_not_shown(bed: Bed) {
    let url = bed.server.url(DATABASE);
    let url = url.replace(crate::support::databases::PASSWORD, "not-the-password");
    let endpoint = Endpoint::parse(&url).expect("a good endpoint");
    let error = open_database("pods", &endpoint, &bed.clock).await.expect_err("it is wrong");
    let said = error.to_string();
    assert!(said.contains("check the endpoint's user and password"), "{said}");
    assert!(!said.contains("not-the-password"), "{said}");
    assert!(!format!("{error:?} {endpoint:?}").contains("not-the-password"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_does_not_travel_in_clear() {
    let open = async |server: &DatabaseServer, more: &str| {
        let url = server.url("kubernetes").replace("?sslmode=disable", more);
        let endpoint = Endpoint::parse(&url).expect("a good endpoint");
        open_database("pods", &endpoint, &fresh_clock()).await
    };
    let server = DatabaseServer::new(Kind::Postgres).expect("a folder can be made");
    let server = server.without_sync().with_authentication("password");
    let mut server = server.with_tls().expect("certificates can be made");
    Box::pin(server.start()).await.expect("the server starts");
    server.create_database("kubernetes").await.expect("a database can be made");
    let error = Box::pin(open(&server, "?sslmode=disable")).await.expect_err("it is refused");
    assert!(error.to_string().contains("set sslmode=require"), "{error}");
    Box::pin(open(&server, "?sslmode=require")).await.expect("it is encrypted");
    let authority = format!("?sslmode=verify-full&sslrootcert={}", server.authority());
    Box::pin(open(&server, &authority)).await.expect("it is encrypted and verified");
}

async fn keys_beyond_the_limit_are_refused_and_those_at_it_are_kept_whole(bed: Bed) {
    let prefix = key(DATABASE_FAMILY, "").len();
    let mut rng = Rng::new(1);
    // Bytes that no compression makes shorter.
    let mut name = |length: usize| {
        let letters = (0..length - prefix).map(|_| (b'!' + rng.below(90) as u8) as char);
        letters.filter(|letter| *letter != '/').collect::<String>()
    };
    let mut error = None;
    for length in [2_000, 2_400, 2_600, 3_072, 4_000, 60_000] {
        let name = name(length);
        match bed.try_put(&name, "kept").await {
            Ok(_) => {
                assert_eq!(bed.value(&name).await.as_deref(), Some("kept"));
                assert!(error.is_none(), "{length} bytes were kept above the limit");
            }
            Err(refused) => error = Some(refused),
        }
    }
    let error = error.expect("60,000 bytes are too many");
    assert!(matches!(error, StoreError::KeyTooLong { .. }), "{error}");
}

async fn random_trouble_loses_no_acknowledged_write_and_no_event(bed: Bed) {
    const ROUNDS: usize = 40;
    const WRITERS: usize = 4;
    let seed = std::env::var("PLEACH_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("PLEACH_SEED={seed}");
    let mut rng = Rng::new(seed);
    let mut follower = Follower::start(&*bed.router, bed.clock.shown());
    let is_done = std::sync::atomic::AtomicBool::new(false);
    let writer = async |writer: usize| {
        // The last value that was acknowledged, and those after it whose outcome is not known.
        let (mut known, mut doubtful, mut next) = (0, Vec::new(), 1);
        let mut revisions = BTreeMap::new();
        while !is_done.load(std::sync::atomic::Ordering::Acquire) {
            match bed.try_put(&format!("writer-{writer}"), &next.to_string()).await {
                Ok(revision) => {
                    revisions.insert(revision, next);
                    (known, doubtful) = (next, Vec::new());
                }
                Err(StoreError::UnknownOutcome { .. }) => doubtful.push(next),
                Err(error) => {
                    assert!(is_unavailable(&error), "{error}");
                    // Nothing is known to change until the store is back.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            next += 1;
        }
        (known, doubtful, revisions)
    };
    let trouble = async {
        for _ in 0..ROUNDS {
            let made = bed.proxy.trouble(&mut rng).await.expect("the proxy obeys");
            println!("{made}");
            bed.others_go_on().await;
            bed.put_again("well", "again").await;
        }
        is_done.store(true, std::sync::atomic::Ordering::Release);
    };
    let writers = futures::future::join_all((0..WRITERS).map(writer));
    let (ledgers, ()) = tokio::join!(writers, trouble);
    let last = bed.put_again("last", "0").await;
    soon("all events", follower.reach(last)).await.expect("nothing is compacted");
    let events: Vec<_> = follower.commits.iter().flat_map(|commit| &commit.events).collect();
    for (writer, (known, doubtful, revisions)) in ledgers.into_iter().enumerate() {
        assert!(!revisions.is_empty(), "writer {writer} got nothing through");
        let name = key(DATABASE_FAMILY, format!("writer-{writer}"));
        let found = get(&*bed.router, &name, last).await.map_or(0, |kv| number(&kv.value));
        assert!(
            found == known || doubtful.contains(&found),
            "writer {writer} left {found}, but {known} was acknowledged; unknown: {doubtful:?}"
        );
        let told: Vec<_> = events.iter().filter(|event| event.kv.key == name).collect();
        let told_of: BTreeMap<_, _> =
            told.iter().map(|event| (event.kv.mod_revision, number(&event.kv.value))).collect();
        assert_eq!(told.len(), told_of.len(), "an event of writer {writer} came twice");
        for (revision, value) in revisions {
            assert_eq!(told_of.get(&revision), Some(&value), "of writer {writer}");
        }
        for (at, event) in told.iter().enumerate() {
            assert_eq!(event.kv.version, at as i64 + 1, "an event of writer {writer} is missing");
        }
    }
    assert_eq!(kvs(&*bed.router, KeyRange::all(), last).await.len(), WRITERS + 3);
}
