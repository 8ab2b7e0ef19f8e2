//! The programs: where they are, which version they are, and the flags that each is started with.

use std::{
    fs,
    path::{Display, Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{keys::Set, rows::GROUPS, serving::free_port};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Etcd,
    Kine,
    Pleach,
    /// A node in front of another, with so many below it in a row.
    Hop {
        below: usize,
    },
    /// A node with a route and a file for each group of keys of the merged rows.
    Routes,
    /// A node with 500 routes, each to a file.
    Routes500,
    /// A node that traces one request of a hundred.
    Traced,
    /// etcd's own proxy.
    EtcdProxy,
}

// === impl Program ===

impl Program {
    fn name(self) -> &'static str {
        match self {
            Program::Etcd | Program::EtcdProxy => "etcd",
            Program::Kine => "kine",
            Program::Pleach
            | Program::Hop { .. }
            | Program::Routes
            | Program::Routes500
            | Program::Traced => "pleach",
        }
    }

    pub(crate) fn is_node(self) -> bool {
        self.name() == "pleach"
    }

    pub(crate) fn path(self, peers_directory: &Path) -> PathBuf {
        if self.is_node() {
            return env!("CARGO_BIN_EXE_pleach").into();
        }
        peers_directory.join(self.name())
    }

    pub(crate) fn require(self, peers_directory: &Path) -> Result<()> {
        ensure!(
            self.path(peers_directory).is_file(),
            "there is no {} binary: build it with `tests/peers/build {0}`, \
             or name the directory that holds it in PLEACH_PEERS_DIR",
            self.name()
        );
        Ok(())
    }

    /// What the binary says of itself, on one line.
    pub(crate) fn version(self, peers_directory: &Path) -> Result<String> {
        let path = self.path(peers_directory);
        if self == Program::Kine {
            return Ok(module_version(&fs::read(path)?));
        }
        let output = Command::new(path)
            .arg("--version")
            .output()
            .with_context(|| format!("asking {} for its version", self.name()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or("unknown").trim().to_owned())
    }

    /// The flags: durable on every side, nothing else tuned. `store` is the endpoint of the server
    /// that holds the data, or that it stands in front of; where there is none, the data are files in
    /// `data`.
    pub(crate) fn arguments(
        self,
        port: u16,
        data: &Path,
        store: Option<&str>,
    ) -> Result<Vec<String>> {
        let client = format!("http://127.0.0.1:{port}");
        let data = data.display();
        Ok(match self {
            Program::Etcd => {
                let peer = format!("http://127.0.0.1:{}", free_port()?);
                vec![
                    "--name=bench".into(),
                    format!("--data-dir={data}"),
                    format!("--listen-client-urls={client}"),
                    format!("--advertise-client-urls={client}"),
                    format!("--listen-peer-urls={peer}"),
                    format!("--initial-advertise-peer-urls={peer}"),
                    format!("--initial-cluster=bench={peer}"),
                    // The default of 2 GiB could end a long run.
                    "--quota-backend-bytes=8589934592".into(),
                    "--log-level=warn".into(),
                ]
            }
            Program::Kine => {
                // kine's own DSN but for `_synchronous`, which it sets to NORMAL: then SQLite does
                // not sync the WAL on commit, and acknowledged writes are lost with the power.
                let sqlite = || {
                    format!(
                        "sqlite://{data}/state.db?_journal_mode=WAL&_busy_timeout=30000\
                         &_synchronous=FULL&_txlock=immediate&_stmt_cache_size=20&cache=shared"
                    )
                };
                vec![
                    format!("--endpoint={}", store.map_or_else(sqlite, str::to_owned)),
                    format!("--listen-address=127.0.0.1:{port}"),
                    "--metrics-bind-address=0".into(),
                ]
            }
            Program::EtcdProxy => vec![
                "grpc-proxy".into(),
                "start".into(),
                format!("--endpoints={}", store.context("there is nothing to stand in front of")?),
                format!("--listen-addr=127.0.0.1:{port}"),
                format!("--data-dir={data}"),
            ],
            Program::Hop { below } => {
                let child = store.context("there is nothing to stand in front of")?;
                // Enough for each node to hand some on.
                let lanes = 4_u32.pow(u32::try_from(below)?);
                let route = route("child", "/registry", child) + &format!("  lanes: {lanes}\n");
                routed(&client, &data, &[route])?
            }
            Program::Routes => {
                let mut routes = Vec::new();
                for groups in GROUPS {
                    for number in 0..groups {
                        let prefix = Set::Spread { groups }.group(number as u64);
                        let name = format!("spread-{groups}-{number}");
                        let endpoint = format!("sqlite://{data}/{name}.db");
                        routes.push(route(&name, prefix.trim_end_matches('/'), &endpoint));
                    }
                }
                routed(&client, &data, &routes)?
            }
            Program::Routes500 => {
                let name = |number: usize| format!("r{number:03}");
                let of = |number| {
                    let name = name(number);
                    route(&name, &format!("/many/{name}"), &format!("sqlite://{data}/{name}.db"))
                };
                routed(&client, &data, &(0..500).map(of).collect::<Vec<_>>())?
            }
            Program::Pleach | Program::Traced => {
                let mut arguments = vec![
                    "serve".into(),
                    format!("--listen-client-urls={client}"),
                    format!("--advertise-client-urls={client}"),
                    format!("--data-dir={data}"),
                ];
                match store {
                    Some(receiver) if self == Program::Traced => arguments.extend([
                        format!("--otlp-endpoint={receiver}"),
                        "--trace-sample-ratio=0.01".into(),
                    ]),
                    Some(endpoint) => arguments.push(format!("--endpoint={endpoint}")),
                    None => {}
                }
                arguments
            }
        })
    }
}

/// A route of all keys below a prefix, in YAML.
fn route(name: &str, prefix: &str, endpoint: &str) -> String {
    format!("- name: {name}\n  prefix: {{ prefix: {prefix} }}\n  endpoint: {endpoint}\n")
}

/// The flags of a node with these routes.
fn routed(client: &str, data: &Display<'_>, routes: &[String]) -> Result<Vec<String>> {
    let topology = format!("{data}/topology.yaml");
    fs::write(&topology, format!("backends:\n{}", routes.concat()))?;
    Ok(vec![
        "serve".into(),
        format!("--listen-client-urls={client}"),
        format!("--data-dir={data}"),
        format!("--topology={topology}"),
    ])
}

/// kine calls itself `dev` unless its own build script made it, but Go records the version of the
/// module in the binary: path, tab, version.
fn module_version(binary: &[u8]) -> String {
    let mark = b"github.com/k3s-io/kine\tv";
    let found = binary.windows(mark.len()).position(|window| window == mark);
    let version = found.map_or(&b"unknown"[..], |at| {
        let rest = &binary[at + mark.len() - 1..];
        rest.split(u8::is_ascii_whitespace).next().unwrap_or(rest)
    });
    String::from_utf8_lossy(version).into_owned()
}
