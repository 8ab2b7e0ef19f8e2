//! Flags of etcd, kine and etcdctl that Pleach has not, and what to do instead.
//!
//! Whoever comes from there has them in manifests and units. None is ignored: a setting that somebody made for
//! a reason is refused by its name, all of them at once, with what stands in its place here.

/// A flag without its dashes, or how several begin (`peer-*`); and what to do.
type Row = (&'static str, &'static str);

const NO_PEERS: &str = "a node has no peers and elects nobody; drop it";
const NO_FILES: &str = "it sets etcd's own files, and there are none; drop it";
const NO_WATCHDOG: &str = "nothing here is checked or measured so; drop it";
const COMPACTION: &str = "take --compact-interval for the default store, and `compactInterval` in the \
                          topology for a route; an API server has all stores compacted by itself";
const TRACES: &str = "take --otlp-endpoint and --trace-sample-ratio";
const NOT_POLLED: &str = "nothing is polled here; drop it";
const TLS_FIXED: &str = "TLS is 1.2 and 1.3 with the suites of rustls; drop it";

/// Of `etcd` and of `kine`, which start a server.
const SERVERS: &[Row] = &[
    // etcd: the cluster.
    ("listen-peer-urls", NO_PEERS),
    ("initial-*", NO_PEERS),
    ("peer-*", NO_PEERS),
    ("discovery*", NO_PEERS),
    ("heartbeat-interval", NO_PEERS),
    ("election-timeout", NO_PEERS),
    ("pre-vote", NO_PEERS),
    ("strict-reconfig-check", NO_PEERS),
    ("max-learners", NO_PEERS),
    ("raft-*", NO_PEERS),
    (
        "force-new-cluster",
        "there is no cluster to leave; after a restored copy see `pleach repair --help`",
    ),
    // etcd: its files.
    ("snapshot-*", NO_FILES),
    ("experimental-snapshot-*", NO_FILES),
    ("wal-dir", NO_FILES),
    ("max-wals", NO_FILES),
    ("max-snapshots", NO_FILES),
    ("backend-*", NO_FILES),
    ("bootstrap-*", NO_FILES),
    ("experimental-bootstrap-*", NO_FILES),
    ("experimental-backend-*", NO_FILES),
    ("memory-mlock", NO_FILES),
    (
        "unsafe-no-fsync",
        "every commit is durable before it is answered, and that can't be turned off; drop it",
    ),
    // etcd: what it does by itself.
    ("auto-compaction-*", COMPACTION),
    ("compaction-*", COMPACTION),
    ("experimental-compaction-*", COMPACTION),
    ("corrupt-check-time", NO_WATCHDOG),
    ("compact-hash-check*", NO_WATCHDOG),
    ("experimental-*corrupt-check*", NO_WATCHDOG),
    ("experimental-compact-hash-check*", NO_WATCHDOG),
    ("downgrade-check-time", NO_WATCHDOG),
    ("warning-apply-duration", "take --warning-unary-request-duration"),
    ("experimental-warning-*", "take --warning-unary-request-duration"),
    ("config-file", "there is no file of flags: each is a variable, too (`pleach serve --help`)"),
    ("feature-gates", "there are none; drop it"),
    ("v2-deprecation", "there never was a v2 here; drop it"),
    ("enable-v2", "there is no v2 here; drop it"),
    // etcd: what it serves.
    ("listen-client-http-urls", "HTTP and gRPC share --listen-client-urls; drop it"),
    ("enable-grpc-gateway", "what is served is not chosen; drop it"),
    ("enable-pprof", "there is none; /metrics and --otlp-endpoint tell what a node does; drop it"),
    ("metrics", "all metrics are served always; drop it"),
    ("cors", "other sites may read /health, /version and /metrics, no more; drop it"),
    ("host-whitelist", "it guards browsers only; drop it, and take TLS with --trusted-ca-file"),
    ("max-concurrent-streams", "streams are bounded for each connection; drop it"),
    ("grpc-keepalive-*", "connections are watched with bounds of their own; drop it"),
    ("socket-reuse-*", "a port has one node; drop it"),
    // etcd: certificates and users.
    ("client-cert-file", "it is for etcd's own gateway; drop it"),
    ("client-key-file", "it is for etcd's own gateway; drop it"),
    (
        "client-crl-file",
        "lists of revoked certificates are not read; sign clients by an authority of their own",
    ),
    (
        "client-cert-allowed-hostname",
        "all certificates of --trusted-ca-file are admitted; sign clients by an \
                                      authority of their own",
    ),
    ("auto-tls", "give it a certificate: --cert-file and --key-file"),
    ("self-signed-cert-validity", "give it a certificate: --cert-file and --key-file"),
    ("cipher-suites", TLS_FIXED),
    ("tls-min-version", TLS_FIXED),
    ("tls-max-version", TLS_FIXED),
    ("auth-token*", "drop it"),
    ("bcrypt-cost", "drop it"),
    // etcd: logs and traces.
    ("logger", "there is one; --log-format says how lines look; drop it"),
    ("log-outputs", "the log goes to standard error; redirect that"),
    ("enable-log-rotation", "the log goes to standard error; let who takes it rotate it"),
    ("log-rotation-config-json", "the log goes to standard error; let who takes it rotate it"),
    ("distributed-tracing-*", TRACES),
    ("enable-distributed-tracing", TRACES),
    ("experimental-*distributed-tracing*", TRACES),
    // kine.
    ("poll-batch-size", NOT_POLLED),
    ("poll-interval", NOT_POLLED),
    ("compact-batch-size", "compaction works in small steps between writes; drop it"),
    ("slow-sql-*", "take --warning-unary-request-duration"),
    ("emulated-etcd-version", "a node says that it is an etcd 3.7; drop it"),
    ("metrics-enable-profiling", "there is none; drop it"),
    ("nats-*", "there is no store on NATS; take SQLite, PostgreSQL, MySQL, MariaDB or an etcd"),
    ("datastore-endpoint", "it is called --endpoint"),
    ("datastore-cafile", "it is called --ca-file"),
    ("datastore-certfile", "it is called --datastore-cert-file"),
    ("datastore-keyfile", "it is called --datastore-key-file"),
    ("server-client-ca-file", "it is called --trusted-ca-file"),
    ("topology-config", "it is called --topology"),
];

/// Of etcdctl, which asks one.
const CLIENTS: &[Row] = &[
    ("endpoints", "the address of the node is an argument: `pleach COMMAND http://HOST:PORT`"),
    ("endpoint", "the address of the node is an argument: `pleach COMMAND http://HOST:PORT`"),
    ("url", "the address of the node is an argument: `pleach COMMAND http://HOST:PORT`"),
    ("cacert", "it is called --ca-file"),
    ("cert", "it is called --cert-file"),
    ("key", "it is called --key-file"),
    ("write-out", "it is called --output, or -o"),
    ("user", "what a node tells of itself it tells everybody; drop it"),
];

/// Commands that start no server.
const OTHERS: [&str; 6] = ["tree", "status", "top", "doctor", "bench", "explain"];

/// What is said of the flags of a command line that are others'; `None` where none is.
pub(super) fn explained(arguments: &[String]) -> Option<String> {
    let is_client = arguments.first().is_some_and(|first| OTHERS.contains(&first.as_str()));
    let rows = if is_client { CLIENTS } else { SERVERS };
    let mut lines: Vec<String> = Vec::new();
    for argument in arguments.iter().take_while(|argument| *argument != "--") {
        let Some(flag) = argument.strip_prefix("--") else { continue };
        let flag = flag.split('=').next().unwrap_or_default();
        if let Some(advice) = advice(rows, flag) {
            let line = format!("  --{flag}: {advice}");
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    (!lines.is_empty()).then(|| format!("no such flags here:\n{}", lines.join("\n")))
}

/// The variables that an etcd reads and a node does not: they are set, and nothing comes of it.
pub(super) fn variables(names: impl Iterator<Item = String>, own_flags: &[String]) -> Vec<String> {
    let mut found: Vec<String> = names
        .filter_map(|name| {
            let flag = name.strip_prefix("ETCD_")?.to_lowercase().replace('_', "-");
            match own_flags.contains(&flag) {
                true => Some(format!("{name} (set PLEACH_{})", &name["ETCD_".len()..])),
                false => advice(SERVERS, &flag).map(|advice| format!("{name} ({advice})")),
            }
        })
        .collect();
    found.sort();
    found
}

fn advice(rows: &[Row], flag: &str) -> Option<&'static str> {
    rows.iter().find(|(pattern, _)| matches(pattern, flag)).map(|(_, advice)| *advice)
}

/// Whether a flag is one of a pattern: the letters before the first `*`, and those between two, wherever.
fn matches(pattern: &str, flag: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == flag,
        Some((begin, inside)) => {
            let rest = flag.strip_prefix(begin);
            rest.is_some_and(|rest| rest.contains(inside.trim_end_matches('*')))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    fn said(arguments: &[&str]) -> Option<String> {
        explained(&arguments.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn all_flags_of_others_are_named_at_once_with_what_to_do() {
        let text = said(&[
            "serve",
            "--name=a",
            "--initial-cluster-state=new",
            "--listen-peer-urls",
            "http://a:2380",
            "--auto-compaction-retention=1",
        ]);
        let text = text.expect("there are three");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[1].starts_with("  --initial-cluster-state: a node has no peers"), "{text}");
        assert!(lines[3].contains("--compact-interval"), "{text}");
        assert_eq!(said(&["--nothing-of-the-kind"]), None);
        assert!(said(&["tree", "--cacert=x"]).is_some_and(|it| it.contains("--ca-file")));
        assert_eq!(said(&["tree", "--", "--cacert=x"]), None);
    }

    /// A row for a flag that there is would never be read, and the day that it goes would be wrong.
    #[test]
    fn no_flag_of_ours_is_called_anothers() {
        let command = Cli::command();
        for flag in command.get_arguments().filter_map(|it| it.get_long()) {
            assert_eq!(advice(SERVERS, flag), None, "--{flag}");
        }
        for name in OTHERS {
            let command = command.find_subcommand(name).expect("there is such a command");
            for flag in command.get_arguments().filter_map(|it| it.get_long()) {
                assert_eq!(advice(CLIENTS, flag), None, "{name} --{flag}");
            }
        }
    }

    #[test]
    fn variables_of_etcd_are_told_from_those_of_a_service_of_that_name() {
        let names =
            ["ETCD_NAME", "ETCD_INITIAL_CLUSTER", "ETCD_SERVICE_HOST", "ETCDCTL_API", "HOME"];
        let found = variables(names.iter().map(|it| (*it).to_owned()), &["name".to_owned()]);
        assert_eq!(found[0], format!("ETCD_INITIAL_CLUSTER ({NO_PEERS})"));
        assert_eq!(found[1..], ["ETCD_NAME (set PLEACH_NAME)"]);
    }
}
