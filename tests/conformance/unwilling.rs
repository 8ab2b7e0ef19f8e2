//! Servers that are there, and can't: they only read, have no connection left, or no room, or are far.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, chown, symlink},
    time::{Duration, Instant},
};

use pleach::model::StoreError;
use sqlx::Connection as _;

use crate::{
    bed::{Bed, is_unavailable},
    follow::soon,
    support::{
        databases::{DatabaseServer, Kind, PASSWORD, USER},
        proxy::Mode,
        rng::Rng,
        tmpfs::Tmpfs,
    },
    world::DATABASE,
};

const CONNECTIONS_MAX: usize = 10;
const VALUE_BYTES: usize = 64 << 10;
/// Far more values than the disk of these tests holds.
const PUTS_MAX: usize = 2_000;

on_every_database! {
    a_link_with_a_long_way_is_slow_for_its_own_keys_only,
}

mod alone {
    use crate::support::databases::Kind;

    macro_rules! on_servers_of_their_own {
        ($($trouble:ident),* $(,)?) => {
            mod postgres {$(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $trouble() {
                    Box::pin(super::super::$trouble(super::Kind::Postgres)).await;
                }
            )*}
            mod mariadb {$(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $trouble() {
                    Box::pin(super::super::$trouble(super::Kind::MariaDb)).await;
                }
            )*}
        };
    }

    on_servers_of_their_own! {
        a_server_that_became_read_only_is_said_and_writes_when_it_may,
        a_server_without_a_free_connection_is_said_and_waited_for,
        a_full_disk_refuses_writes_and_no_other_store,
    }
}

fn server(kind: Kind) -> DatabaseServer {
    DatabaseServer::new(kind).expect("a folder can be made").without_sync()
}

async fn a_link_with_a_long_way_is_slow_for_its_own_keys_only(bed: Bed) {
    // There and back.
    let way = Duration::from_millis(100);
    bed.proxy.set(Mode::Delay(way)).await.expect("the proxy obeys");
    let far = async {
        for value in ["1", "2", "3"] {
            let started = Instant::now();
            bed.try_put("a", value).await.expect("it is only far");
            assert!(started.elapsed() > way * 2, "the link was not slow");
        }
    };
    tokio::pin!(far);
    let mut worst = Duration::ZERO;
    loop {
        let started = Instant::now();
        tokio::select! {
            biased;
            () = &mut far => break,
            () = bed.others_go_on() => worst = worst.max(started.elapsed()),
        }
        tokio::task::yield_now().await;
    }
    assert!(worst < way, "the other store's worst write and read took {worst:?}");
    assert_eq!(bed.value("a").await.as_deref(), Some("3"));
}

async fn a_server_that_became_read_only_is_said_and_writes_when_it_may(kind: Kind) {
    let bed = Bed::alone(server(kind)).await;
    let (read_only, writable) = match kind {
        Kind::Postgres => (
            "ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf();",
            "ALTER SYSTEM RESET default_transaction_read_only; SELECT pg_reload_conf();",
        ),
        Kind::MariaDb => ("SET GLOBAL read_only = 1;", "SET GLOBAL read_only = 0;"),
    };
    bed.try_put("a", "before").await.expect("all is well");
    bed.sql(read_only).await;
    bed.proxy.cut().await;
    soon("it is said", async {
        loop {
            // The server's own processes hear of a new setting one by one.
            let Err(error) = bed.try_put("a", "meanwhile").await else { continue };
            assert!(is_unavailable(&error), "{error}");
            if error.to_string().contains("this server only reads") {
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..5 {
        let started = Instant::now();
        let error = bed.try_put("a", "meanwhile").await.expect_err("it only reads");
        assert!(is_unavailable(&error), "{error}");
        assert!(started.elapsed() < Duration::from_secs(1), "it is known and was waited for");
        bed.others_go_on().await;
    }
    bed.sql(writable).await;
    bed.put_again("a", "after").await;
    assert_eq!(bed.value("a").await.as_deref(), Some("after"));
}

/// Connections of others.
enum Others {
    Postgres(Vec<sqlx::PgConnection>),
    MariaDb(Vec<sqlx::MySqlConnection>),
}

// === impl Others ===

impl Others {
    /// All that there are; how many.
    async fn take_all(bed: &Bed) -> (Self, usize) {
        let at = format!("{USER}:{PASSWORD}@{}/{DATABASE}", bed.server.address());
        match bed.server.kind() {
            Kind::Postgres => {
                let (url, mut taken) = (format!("postgres://{at}"), Vec::new());
                while let Ok(connection) = sqlx::PgConnection::connect(&url).await {
                    taken.push(connection);
                }
                let count = taken.len();
                (Self::Postgres(taken), count)
            }
            Kind::MariaDb => {
                let (url, mut taken) = (format!("mysql://{at}"), Vec::new());
                while let Ok(connection) = sqlx::MySqlConnection::connect(&url).await {
                    taken.push(connection);
                }
                let count = taken.len();
                (Self::MariaDb(taken), count)
            }
        }
    }

    async fn leave(self) {
        match self {
            Self::Postgres(taken) => {
                for connection in taken {
                    connection.close().await.expect("it can be closed");
                }
            }
            Self::MariaDb(taken) => {
                for connection in taken {
                    connection.close().await.expect("it can be closed");
                }
            }
        }
    }
}

async fn a_server_without_a_free_connection_is_said_and_waited_for(kind: Kind) {
    let name = match kind {
        Kind::Postgres => "max_connections",
        Kind::MariaDb => "max-connections",
    };
    let server = server(kind).with_setting(name, &CONNECTIONS_MAX.to_string());
    let bed = Bed::alone(server).await;
    bed.try_put("a", "before").await.expect("all is well");
    bed.refuse().await;
    // What was cut is free once the server has noticed.
    let mut others = Vec::new();
    soon("all connections are taken", async {
        let mut count = 0;
        let reserved = if kind == Kind::Postgres { 3 } else { 0 };
        while count < CONNECTIONS_MAX - reserved {
            let (more, taken) = Others::take_all(&bed).await;
            others.push(more);
            count += taken;
            tokio::task::yield_now().await;
        }
    })
    .await;
    bed.pass().await;
    let said = soon("it is said", async {
        loop {
            let error = bed.try_put("a", "meanwhile").await.expect_err("there is no connection");
            assert!(is_unavailable(&error), "{error}");
            let said = error.to_string();
            if ["oo many", "slots are reserved"].iter().any(|part| said.contains(part)) {
                break said;
            }
            tokio::task::yield_now().await;
        }
    });
    println!("{}", said.await);
    bed.others_go_on().await;
    for others in others {
        others.leave().await;
    }
    bed.put_again("a", "after").await;
    assert_eq!(bed.value("a").await.as_deref(), Some("after"));
}

/// A server whose store lies on a disk of its own, since a log without room ends the server itself.
async fn with_disk(kind: Kind, disk: &Tmpfs) -> Bed {
    let mut server = server(kind);
    Box::pin(server.start()).await.expect("the server starts");
    let of = fs::metadata(server.folder()).expect("it is there");
    let place = disk.path().join("store");
    fs::create_dir(&place).expect("the disk is empty");
    for path in [disk.path(), &place] {
        chown(path, Some(of.uid()), Some(of.gid())).expect("root may");
    }
    match kind {
        Kind::Postgres => {
            let place = place.display();
            server.create_database(DATABASE).await.expect("a database can be made");
            let lay = format!(
                "CREATE TABLESPACE small LOCATION '{place}'; \
                 GRANT CREATE ON TABLESPACE small TO {USER}; \
                 ALTER DATABASE {DATABASE} SET default_tablespace = small;"
            );
            server.sql("", &lay).await.expect("the administrator is answered");
        }
        Kind::MariaDb => {
            // A database is a folder, or a link to one.
            let link = server.folder().join("data").join(DATABASE);
            symlink(&place, link).expect("there is no such database");
            let grant = format!("GRANT ALL ON {DATABASE}.* TO {USER}@'%';");
            server.sql("", &grant).await.expect("the administrator is answered");
        }
    }
    Bed::over(crate::bed::Server::Own(server)).await
}

async fn a_full_disk_refuses_writes_and_no_other_store(kind: Kind) {
    let disk = Tmpfs::mount("16m").expect("a disk can be mounted");
    let bed = with_disk(kind, &disk).await;
    let mut rng = Rng::new(1);
    // What no compression makes shorter.
    let mut value =
        || -> String { (0..VALUE_BYTES).map(|_| (b' ' + rng.below(95) as u8) as char).collect() };
    let (mut kept, mut refused) = (Vec::new(), None);
    for index in 0..PUTS_MAX {
        let (name, value) = (format!("fill-{index:04}"), value());
        match bed.try_put(&name, &value).await {
            Ok(_) => kept.push((name, value)),
            Err(error) => {
                refused = Some((name, error));
                break;
            }
        }
    }
    let (name, error) = refused.expect("there was room for all");
    assert!(matches!(error, StoreError::NoSpace(_)), "{error}");
    assert!(kept.len() > 10, "only {} values fit", kept.len());
    for _ in 0..3 {
        let error = bed.try_put("more", &value()).await.expect_err("there is no room");
        assert!(matches!(error, StoreError::NoSpace(_)), "{error}");
        bed.others_go_on().await;
    }
    assert_eq!(bed.value(&name).await, None);
    disk.remount("size=64m").expect("the disk can grow");
    bed.put_again("more", "room").await;
    for (name, value) in kept {
        assert_eq!(bed.value(&name).await, Some(value), "{name}");
    }
}
