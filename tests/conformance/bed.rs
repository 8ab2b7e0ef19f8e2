//! What tests of trouble share: a router over a store in memory and one in a database behind a proxy.

use std::{
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant},
};

use pleach::{
    clock::SharedClock,
    model::{Revision, StoreError},
    route::Router,
    store::{RecordStore, Store, memory::Memory},
    topology::Endpoint,
};

use crate::{
    follow::soon,
    support::{
        databases::{DatabaseServer, Kind},
        proxy::{Mode, Proxy},
    },
    words::{all_of, apply, bytes, get, key, put, put_op},
    world::{DATABASE, fresh_clock, open_database, pods, route, server},
};

/// An answer must come within this, whatever the trouble: what a statement may take, and a new
/// connection, and some patience with a busy machine.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// The family of keys that lives in memory, and the one in the database.
pub(crate) const MEMORY: usize = 0;
pub(crate) const DATABASE_FAMILY: usize = 1;

/// A router over memory and a database behind a proxy.
pub(crate) struct Bed {
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
    pub(crate) endpoint: Endpoint,
    pub(crate) prefix: String,
    pub(crate) clock: SharedClock,
    pub(crate) router: Arc<Router>,
    pub(crate) database: Arc<dyn Store>,
    pub(crate) records: Arc<dyn RecordStore>,
}

/// A server.
#[derive(Debug)]
pub(crate) enum Server {
    /// Of the whole suite.
    Shared(&'static DatabaseServer),
    /// Of one test.
    Own(DatabaseServer),
}

impl Deref for Server {
    type Target = DatabaseServer;

    fn deref(&self) -> &DatabaseServer {
        match self {
            Self::Shared(server) => server,
            Self::Own(server) => server,
        }
    }
}

// === impl Bed ===

impl Bed {
    pub(crate) async fn open(kind: Kind) -> Self {
        Self::over(Server::Shared(server(kind).await)).await
    }

    /// The same over a server of its own, which a test may change.
    pub(crate) async fn alone(mut server: DatabaseServer) -> Self {
        server.start().await.expect("the server starts");
        server.create_database(DATABASE).await.expect("a database can be made");
        Self::over(Server::Own(server)).await
    }

    pub(crate) async fn over(server: Server) -> Self {
        let proxy = Proxy::start(server.address()).await.expect("a proxy can listen");
        let prefix = crate::world::new_prefix();
        let endpoint = endpoint(&server, &proxy, &prefix);
        let clock = fresh_clock();
        let database = open_database("pods", &endpoint, &clock).await.expect("it can be opened");
        let records = database.clone();
        let to = route(pods(), database.clone());
        let router = Router::new(vec![to], Memory::new("main", clock.clone()));
        Self { server, proxy, endpoint, prefix, clock, router, database, records }
    }

    /// A write to the database, which must be answered in time.
    pub(crate) async fn try_put(&self, name: &str, value: &str) -> Result<Revision, StoreError> {
        let txn = all_of(vec![put_op(key(DATABASE_FAMILY, name), bytes(value), 0)]);
        let answer = tokio::time::timeout(ANSWER_WITHIN, apply(&*self.router, txn)).await;
        let answer = answer.expect("an answer in bounded time");
        answer.map(|written| written.revision)
    }

    /// Tries until the database takes writes again.
    pub(crate) async fn put_again(&self, name: &str, value: &str) -> Revision {
        soon("the store is back", async {
            loop {
                match self.try_put(name, value).await {
                    Ok(revision) => return revision,
                    Err(StoreError::Unavailable { .. }) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        })
        .await
    }

    /// The other store goes on as if nothing was.
    pub(crate) async fn others_go_on(&self) {
        let started = Instant::now();
        let revision = put(&*self.router, key(MEMORY, "other"), bytes("goes on")).await;
        let kv = get(&*self.router, &key(MEMORY, "other"), revision).await;
        assert_eq!(kv.expect("it was put").mod_revision, revision);
        assert!(started.elapsed() < Duration::from_secs(1), "the other store was held up");
    }

    pub(crate) async fn value(&self, name: &str) -> Option<String> {
        let kv = get(&*self.router, &key(DATABASE_FAMILY, name), self.clock.shown()).await?;
        Some(String::from_utf8_lossy(&kv.value).into_owned())
    }

    pub(crate) async fn sql(&self, text: &str) -> String {
        let text = text.replace("pleach_", &self.prefix);
        self.server.sql(DATABASE, &text).await.expect("the administrator is answered")
    }

    /// Cuts the server off, whatever was open.
    pub(crate) async fn refuse(&self) {
        self.proxy.set(Mode::Refuse).await.expect("the proxy obeys");
        self.proxy.cut().await;
    }

    pub(crate) async fn pass(&self) {
        self.proxy.set(Mode::Pass).await.expect("the proxy obeys");
    }
}

pub(crate) fn endpoint(server: &DatabaseServer, proxy: &Proxy, prefix: &str) -> Endpoint {
    let url = server.url_at(proxy.address(), DATABASE);
    let join = if url.contains('?') { '&' } else { '?' };
    Endpoint::parse(&format!("{url}{join}table_prefix={prefix}")).expect("a good endpoint")
}

pub(crate) fn is_unavailable(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable { store, .. } if &**store == "pods")
}
