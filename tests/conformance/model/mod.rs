//! Random sequences of operations, with `Memory` as the oracle: the same sequence goes to both, and
//! answers, revisions and logs must be equal, number for number.
//!
//! A seed that fails is printed and kept in `proptest-regressions/`, which git ignores.

pub(crate) mod run;
mod steps;

use proptest::test_runner::{Config, FileFailurePersistence, TestError, TestRunner};
use steps::Step;

use crate::world::{Composition, World};

/// Operations of one sequence.
const STEPS: std::ops::Range<usize> = 40..80;

/// The most tries to make a sequence that fails shorter.
const SHRINKS_MAX: u32 = 200;

/// Draws sequences for the worlds that `open` makes, until one is answered otherwise than by the
/// oracle. Where it `is_kept`, a sequence that fails is made shorter and its seed kept.
pub(crate) fn check(
    cases: u32,
    is_kept: bool,
    open: impl AsyncFn() -> World,
) -> Result<(), TestError<Vec<Step>>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let mut config = Config {
        cases,
        failure_persistence: None,
        // Each try is a sequence on disk: shrinking must end too.
        max_shrink_iters: if is_kept { SHRINKS_MAX } else { 0 },
        ..Config::default()
    };
    if is_kept {
        let file = FileFailurePersistence::Direct("proptest-regressions/conformance.txt");
        config.failure_persistence = Some(Box::new(file));
    }
    let mut runner = TestRunner::new(config);
    let sequences = proptest::collection::vec(steps::step(), STEPS);
    runner.run(&sequences, |steps| {
        runtime.block_on(async { run::run(open().await, &steps).await });
        Ok(())
    })
}

fn agrees(composition: Composition) {
    // Most of what a sequence costs is the making of its leaves.
    let cases = Config::default().cases / composition.cost().max(1);
    if let Err(error) = check(cases.max(1), true, async || World::open(composition).await) {
        panic!("{composition:?} and the oracle differ: {error}");
    }
}

macro_rules! agrees_with_the_oracle {
    ($($name:ident: $composition:ident,)*) => {$(
        #[test]
        fn $name() {
            agrees(Composition::$composition);
        }
    )*};
}

agrees_with_the_oracle! {
    memory_agrees_with_itself: Memory,
    sqlite_agrees_with_the_oracle: Sqlite,
    a_router_over_memories_agrees_with_the_oracle: MemoryRouter,
    a_router_over_sqlites_agrees_with_the_oracle: SqliteRouter,
    a_router_of_routers_agrees_with_the_oracle: RouterOfRouters,
    postgres_agrees_with_the_oracle: Postgres,
    mariadb_agrees_with_the_oracle: MariaDb,
    etcd_agrees_with_the_oracle: Etcd,
    a_router_over_all_kinds_agrees_with_the_oracle: MixedRouter,
    a_tree_agrees_with_the_oracle: Tree,
}
