//! What the suite can open: leaves, and routers over them.

use std::{path::PathBuf, sync::Arc};

use pleach::{
    clock::{Clock, Lane, REVISION_MAX, SharedClock},
    route::{Route, Router, rule::Rule},
    store::{
        Store,
        memory::Memory,
        sql::sqlite::{self, OpenError},
    },
};
use tempfile::TempDir;

use crate::follow::soon;

/// A store, or stores and how routers hold them together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Composition {
    Memory,
    Sqlite,
    MemoryRouter,
    SqliteRouter,
    /// A router over two routers and a leaf; their leaves are files and memory.
    RouterOfRouters,
}

/// An open composition, with its leaves at hand.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: SharedClock,
    pub(crate) composition: Composition,
    /// The routers, the outermost first.
    pub(crate) routers: Vec<Arc<Router>>,
    pub(crate) leaves: Vec<Leaf>,
    folder: TempDir,
}

/// A store that holds keys itself.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    pub(crate) store: Arc<dyn Store>,
    /// There where it is durable.
    pub(crate) path: Option<PathBuf>,
}

/// A clock as a lone node has it.
pub(crate) fn fresh_clock() -> SharedClock {
    SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL))
}

// === impl Composition ===

impl Composition {
    /// The names of the leaves, and whether each is a file.
    fn plan(self) -> &'static [(&'static str, bool)] {
        match self {
            Self::Memory => &[("memory", false)],
            Self::Sqlite => &[("sqlite", true)],
            Self::MemoryRouter => {
                &[("main", false), ("pods", false), ("shirts", false), ("blue", false)]
            }
            Self::SqliteRouter => {
                &[("main", true), ("pods", true), ("shirts", true), ("blue", true)]
            }
            Self::RouterOfRouters => &[
                ("main", true),
                ("pods", false),
                ("pods-blue", true),
                ("shirts", false),
                ("blue", false),
            ],
        }
    }

    /// Which leaf each of [`crate::words::FAMILIES`] lives in.
    pub(crate) fn leaf_of(self, family: usize) -> usize {
        match self {
            Self::Memory | Self::Sqlite => 0,
            Self::MemoryRouter | Self::SqliteRouter => [0, 1, 1, 2, 3][family],
            Self::RouterOfRouters => family,
        }
    }

    /// Whether all that it holds outlives the process.
    pub(crate) fn is_durable(self) -> bool {
        self.plan().iter().all(|(_, is_file)| *is_file)
    }

    /// How many of its leaves are files.
    pub(crate) fn files(self) -> u32 {
        self.plan().iter().map(|(_, is_file)| u32::from(*is_file)).sum()
    }

    fn compose(self, leaves: &[Leaf]) -> (Arc<dyn Store>, Vec<Arc<Router>>) {
        let leaf = |at: usize| leaves[at].store.clone();
        match self {
            Self::Memory | Self::Sqlite => (leaf(0), Vec::new()),
            Self::MemoryRouter | Self::SqliteRouter => {
                let routes = vec![
                    Route { rule: pods(), store: leaf(1) },
                    Route { rule: shirts(), store: leaf(2) },
                    Route { rule: blue(), store: leaf(3) },
                ];
                let router = Router::new(routes, leaf(0));
                (router.clone(), vec![router])
            }
            Self::RouterOfRouters => {
                let of_pods = Router::new(vec![Route { rule: blue(), store: leaf(2) }], leaf(1));
                let of_rest = Router::new(vec![Route { rule: blue(), store: leaf(4) }], leaf(0));
                let routes = vec![
                    Route { rule: pods(), store: of_pods.clone() },
                    Route { rule: shirts(), store: leaf(3) },
                ];
                let root = Router::new(routes, of_rest.clone());
                (root.clone(), vec![root, of_pods, of_rest])
            }
        }
    }
}

pub(crate) fn pods() -> Rule {
    Rule::prefix("pods").expect("a good rule")
}

pub(crate) fn shirts() -> Rule {
    Rule::custom_resource("stable.example.com", Some("shirts")).expect("a good rule")
}

pub(crate) fn blue() -> Rule {
    Rule::namespace("blue", &[] as &[&str]).expect("a good rule")
}

// === impl World ===

impl World {
    /// A fresh one.
    pub(crate) async fn open(composition: Composition) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let clock = fresh_clock();
        let mut leaves = Vec::new();
        for (name, is_file) in composition.plan() {
            leaves.push(match is_file {
                true => open_file(name, folder.path().join(name), &clock).await,
                false => Leaf { store: Memory::new(name, clock.clone()), path: None },
            });
        }
        Self::over(composition, leaves, clock, folder)
    }

    fn over(
        composition: Composition,
        leaves: Vec<Leaf>,
        clock: SharedClock,
        folder: TempDir,
    ) -> Self {
        let (store, routers) = composition.compose(&leaves);
        Self { store, clock, composition, routers, leaves, folder }
    }

    /// The same with something between it and the suite.
    pub(crate) fn wrapped(mut self, wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>) -> Self {
        self.store = wrap(self.store.clone());
        self
    }

    /// Closes all files and opens them again, as the next process would: with a clock of its own.
    /// What is only in memory lives on, and so does the clock then. Whoever still holds a store
    /// would keep its file locked.
    pub(crate) async fn reopened(self) -> Self {
        let Self { store, clock, composition, routers, leaves, folder } = self;
        let clock = if composition.is_durable() { fresh_clock() } else { clock };
        let kept: Vec<Option<Leaf>> =
            leaves.into_iter().map(|leaf| Some(leaf).filter(|leaf| leaf.path.is_none())).collect();
        drop((store, routers));
        let mut leaves = Vec::new();
        for (kept, (name, _)) in kept.into_iter().zip(composition.plan()) {
            leaves.push(match kept {
                Some(leaf) => leaf,
                None => open_file(name, folder.path().join(name), &clock).await,
            });
        }
        Self::over(composition, leaves, clock, folder)
    }
}

/// Opens a file, once whoever has it has let it go: a writer ends behind the last that holds it.
async fn open_file(name: &str, path: PathBuf, clock: &SharedClock) -> Leaf {
    let open = async {
        loop {
            match sqlite::open(name, &path, "the conformance suite", clock.clone()).await {
                Err(OpenError::InUse { .. }) => tokio::task::yield_now().await,
                opened => return opened.expect("the file can be opened"),
            }
        }
    };
    let store = soon("letting a file go", open).await;
    Leaf { store, path: Some(path) }
}
