//! The conformance suite: one list of promises, held against every store and every composition.
//!
//! ```text
//!   promises/     each promise of `pleach::store` as an async function of a `World`
//!   world         what can be opened: memory, SQLite, PostgreSQL, MariaDB, etcd, routers over them and of routers
//!   children      … and nodes, behind a socket
//!   model/        random sequences of operations, with `Memory` as the oracle
//!   concurrency   many writers and readers at once
//!   planted       stores with a defect, which the promises above must notice
//!   absence       what a merged log promises while a child comes and goes
//!   attaching     whom a node takes as a child
//!   etcds/        what a store in an etcd promises besides, with others writing to it
//!   trouble       what stores in databases promise when socket, server or another owner fail
//!   doubt         … when it is not known what became of a request
//!   hosts         … where several servers answer
//!   unwilling     … when the server is there, and can't
//! ```
//!
//! A new leaf joins the suite by a [`world::Composition`]; a new promise joins by a function in
//! `promises/`, listed in its module's [`on_every_composition`].
//!
//! `PROPTEST_CASES` sets how many sequences the model draws for a composition (256); one of costly
//! leaves gets so many fewer.

/// Makes a test of each function, on each composition. One of many writers at once says so, and gets a
/// tree whose nodes share no number.
macro_rules! on_every_composition {
    (@$tree:ident $($promise:ident),*) => {
        on_composition! { memory Memory [$($promise),*] }
        on_composition! { sqlite Sqlite [$($promise),*] }
        on_composition! { postgres Postgres [$($promise),*] }
        on_composition! { mariadb MariaDb [$($promise),*] }
        on_composition! { etcd Etcd [$($promise),*] }
        on_composition! { router_over_memories MemoryRouter [$($promise),*] }
        on_composition! { router_over_sqlites SqliteRouter [$($promise),*] }
        on_composition! { router_of_routers RouterOfRouters [$($promise),*] }
        on_composition! { router_over_all_kinds MixedRouter [$($promise),*] }
        on_composition! { tree $tree [$($promise),*] }
    };
    (at once: $($promise:ident),* $(,)?) => {
        on_every_composition! { @LaneTree $($promise),* }
    };
    ($($promise:ident),* $(,)?) => {
        on_every_composition! { @Tree $($promise),* }
    };
}

/// Makes a test of each function, on one composition.
macro_rules! on_composition {
    ($module:ident $composition:ident [$($promise:ident),*]) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    use crate::world::{Composition, World};
                    super::$promise(World::open(Composition::$composition).await).await;
                }
            )*
        }
    };
}

/// Makes a test of each function, on a [`bed::Bed`] of each database.
macro_rules! on_every_database {
    ($($trouble:ident),* $(,)?) => {
        mod postgres {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $trouble() {
                use crate::{bed::Bed, support::databases::Kind};
                Box::pin(super::$trouble(Box::pin(Bed::open(Kind::Postgres)).await)).await;
            }
        )*}
        mod mariadb {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $trouble() {
                use crate::{bed::Bed, support::databases::Kind};
                Box::pin(super::$trouble(Box::pin(Bed::open(Kind::MariaDb)).await)).await;
            }
        )*}
    };
}

#[path = "../support/mod.rs"]
mod support;

mod absence;
mod attaching;
mod bed;
mod children;
mod concurrency;
mod doubt;
mod etcds;
mod follow;
mod hosts;
mod model;
mod planted;
mod promises;
mod stalled;
mod trouble;
mod unwilling;
mod words;
mod world;
