//! The commands that ask a node that runs: `tree`, `status`, `top`, `doctor`; and `completion` and `man`.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pleach::proto::etcdserverpb as pb;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    process::Command,
    time::timeout,
};

use crate::{
    call::{Ended, client, pleach, put},
    support::{
        certificates::{authority, certificate_until, write_certificates},
        etcd::Etcd,
        http::Api,
        node::Node,
        peers::free_port,
        process::{Process, eventually},
    },
};

const SOON: Duration = Duration::from_secs(20);

/// A root with a route that is away and a child, each with a folder of its own.
async fn tree(folder: &Path) -> Result<(Node, Node)> {
    for name in ["root", "region"] {
        fs::create_dir_all(folder.join(name))?;
    }
    let mut region = Node::new(&folder.join("region"), &["--name=region"])?;
    region.start().await?;
    let root = Node::new(&folder.join("root"), &["--name=root"])?;
    let mut root = root.with_routes_to(&[("/r/", region.url())])?;
    let channel = root.start().await?;
    eventually("the child is attached", SOON, async || Ok(put(&channel, "/r/a", "1").await?))
        .await?;
    Ok((root, region))
}

async fn asked(arguments: &[&str]) -> Result<Ended> {
    pleach(Path::new("."), arguments).await
}

fn json(ended: &Ended) -> Result<Value> {
    serde_json::from_str(&ended.stdout).with_context(|| format!("no JSON: {ended:?}"))
}

#[tokio::test]
async fn a_tree_is_printed_for_people_and_for_programs() -> Result<()> {
    let folder = TempDir::new()?;
    let (root, _region) = tree(folder.path()).await?;
    let url = root.url();
    // As etcdctl takes it, and from the variable.
    for arguments in [vec!["tree", &url], vec!["tree", url.trim_start_matches("http://")]] {
        let ended = asked(&arguments).await?;
        ensure!(ended.code == Some(0) && ended.stdout.contains("store-0 -> `region`"), "{ended:?}");
        ensure!(!ended.stdout.contains('\x1b'), "colours where nobody looks");
    }
    let ended = asked(&["tree", &url, "-o", "json"]).await?;
    let value = json(&ended)?;
    ensure!(value["name"] == "root" && value["lanes"][0]["first"] == 0, "{value}");
    ensure!(value["id"].as_str().is_some_and(|id| u64::from_str_radix(id, 16).is_ok()), "{value}");
    let below = &value["routes"][0]["node"];
    ensure!(below["name"] == "region" && below["giver"]["name"] == "root", "{value}");
    ensure!(value["revision"].is_i64() && value["routes"][1]["name"] == "main", "{value}");
    // What is not known is left out.
    ensure!(value["routes"][0].get("trouble").is_none(), "{value}");
    let ended = asked(&["tree", &url, "-o", "yaml"]).await?;
    ensure!(ended.stdout.contains("\nname: \"root\"\n"), "{}", ended.stdout);
    let ended = asked(&["tree", &url, "-o", "wide"]).await?;
    ensure!(ended.code == Some(0) && ended.stdout.contains("`region`"), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn a_tree_is_watched_until_nobody_reads_it() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &["--name=alone"])?;
    node.start().await?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
    command.args(["tree", "--watch", &node.url()]).kill_on_drop(true);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("it has an output")?).lines();
    for _ in 0..2 {
        let seen = timeout(SOON, async {
            while let Some(line) = lines.next_line().await? {
                if line.starts_with("`alone`") {
                    return Ok(());
                }
            }
            anyhow::bail!("it ended")
        });
        seen.await??;
    }
    drop(lines);
    ensure!(timeout(SOON, child.wait()).await??.success(), "it did not end well");
    Ok(())
}

/// Whatever is at an address, a person learns what it is and what to write; and a script that it is no node.
#[tokio::test]
async fn a_wrong_address_says_what_is_there_and_what_to_do() -> Result<()> {
    let folder = TempDir::new()?;
    write_certificates(folder.path(), &authority()?)?;
    let mut plain = Node::new(&folder.path().join("."), &[])?;
    plain.start().await?;
    let port = free_port()?;
    let file = |name: &str| folder.path().join(name).display().to_string();
    let ca = format!("--ca-file={}", file("ca.pem"));
    let flags = vec![
        "serve".to_owned(),
        format!("--listen-client-urls=https://127.0.0.1:{port}"),
        format!("--data-dir={}", file("secure")),
        format!("--cert-file={}", file("localhost.pem")),
        format!("--key-file={}", file("localhost.key")),
    ];
    let program = Path::new(env!("CARGO_BIN_EXE_pleach"));
    let _secure = Process::start("secure", program, folder.path(), &flags)?;
    let mutual_port = free_port()?;
    let mut mutual_flags = flags.clone();
    mutual_flags[1] = format!("--listen-client-urls=https://127.0.0.1:{mutual_port}");
    mutual_flags[2] = format!("--data-dir={}", file("mutual"));
    mutual_flags.push(format!("--trusted-ca-file={}", file("ca.pem")));
    let _mutual = Process::start("mutual", program, folder.path(), &mutual_flags)?;
    let (secure, mutual) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{mutual_port}"));
    eventually("it answers over TLS", SOON, async || {
        let ended = asked(&["tree", &format!("https://{secure}"), &ca]).await?;
        ensure!(ended.code == Some(0), "{ended:?}");
        let own = [
            format!("--cert-file={}", file("client.pem")),
            format!("--key-file={}", file("client.key")),
        ];
        let ended = asked(&["tree", &format!("https://{mutual}"), &ca, &own[0], &own[1]]).await?;
        ensure!(ended.code == Some(0), "{ended:?}");
        Ok(())
    })
    .await?;

    let mut etcd = Etcd::new()?;
    etcd.start().await?;
    let website = http_server("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await?;
    let greeter = http_server("SSH-2.0-OpenSSH_9.2\r\n").await?;
    let nobody = free_port()?;
    let cases: [(String, &[&str], &str); 12] = [
        (format!("http://127.0.0.1:{nobody}"), &[], "nobody listens there; is the node started?"),
        ("http://no-such-host.invalid:2379".to_owned(), &[], "no host is called so"),
        (format!("http://{secure}"), &[], "it speaks TLS; take https://"),
        (plain.url().replace("http", "https"), &[], "it does not speak TLS; take http://"),
        (format!("https://{secure}"), &[], "name the authority with --ca-file"),
        (format!("https://{mutual}"), &[&ca], "--cert-file and --key-file"),
        (etcd.url(), &[], "most likely an etcd"),
        (website, &[], "a server of HTTP answers there that is no node"),
        (greeter, &[], "something else than a node answers there"),
        ("127.0.0.1".to_owned(), &[], "the port is missing; try http://127.0.0.1:2379"),
        ("http://127.0.0.1:99999".to_owned(), &[], "no number from 1 to 65535"),
        ("etcd://127.0.0.1:2379".to_owned(), &[], "no scheme of a node"),
    ];
    for (url, flags, said) in &cases {
        for command in ["tree", "doctor", "top"] {
            let ended = asked(&[&[command, url][..], flags].concat()).await?;
            ensure!(ended.code == Some(2) && ended.stdout.is_empty(), "{command} {url}: {ended:?}");
            ensure!(
                ended.stderr.contains(said),
                "{command} {url}: {said} is not in: {}",
                ended.stderr
            );
            let is_raw = ["Status {", "Os {", "hyper::Error", "panicked"]
                .iter()
                .any(|it| ended.stderr.contains(it));
            ensure!(!is_raw && ended.stderr.lines().count() == 1, "{url}: {}", ended.stderr);
        }
    }
    Ok(())
}

/// Says the same to whoever connects.
async fn http_server(answer: &'static str) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // Whether anybody reads it is not the server's concern.
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.read(&mut [0; 1024]).await;
            });
        }
    });
    Ok(url)
}

#[tokio::test]
async fn status_has_a_line_for_each_node_and_an_exit_code_for_scripts() -> Result<()> {
    let folder = TempDir::new()?;
    let (root, mut region) = tree(folder.path()).await?;
    let url = root.url();
    let ended = asked(&["status", &url]).await?;
    ensure!(ended.code == Some(0), "{ended:?}");
    let names: Vec<_> =
        ended.stdout.lines().filter_map(|line| line.split_whitespace().next()).collect();
    ensure!(names == ["NODE", "root", "root/store-0"], "{}", ended.stdout);

    region.kill()?;
    eventually("the child is missed", SOON, async || {
        let ended = asked(&["status", &url, "-o", "json"]).await?;
        ensure!(ended.code == Some(1), "{ended:?}");
        let value = json(&ended)?;
        ensure!(value[0]["state"] == "trouble" && value[0]["routes_ok"] == 1, "{value}");
        let trouble = value[0]["troubles"][0].as_str().unwrap_or_default();
        ensure!(trouble.starts_with("store-0: "), "{value}");
        Ok(())
    })
    .await?;

    let nobody = format!("http://127.0.0.1:{}", free_port()?);
    let ended = asked(&["status", &url, &nobody]).await?;
    ensure!(ended.code == Some(2), "{ended:?}");
    ensure!(
        ended.stdout.contains("unreachable") && ended.stdout.contains("nobody listens"),
        "{ended:?}"
    );
    Ok(())
}

#[tokio::test]
async fn top_prints_the_routes_of_a_tree_once_where_nobody_looks() -> Result<()> {
    let folder = TempDir::new()?;
    let (root, _region) = tree(folder.path()).await?;
    let ended = asked(&["top", &root.url()]).await?;
    ensure!(ended.code == Some(0), "{ended:?}");
    for route in ["root/store-0", "root/main", "root/store-0/main"] {
        let is_there = |line: &str| line.split_whitespace().next() == Some(route);
        ensure!(ended.stdout.lines().any(is_there), "{route} is not in:\n{}", ended.stdout);
    }
    let value = json(&asked(&["top", &root.url(), "--sort=keys", "-o", "json"]).await?)?;
    ensure!(value.as_array().is_some_and(|rows| rows.len() == 3), "{value}");
    Ok(())
}

/// What programs get of a tree is what the book says, no less and no more.
#[tokio::test]
async fn the_fields_of_a_tree_are_those_of_the_book() -> Result<()> {
    /// Of a node with TLS, of one with a bound, and of what is in trouble or in no order.
    const SOMETIMES: [&str; 14] = [
        "certificates",
        "file",
        "hazards",
        "is_authority",
        "ends_in_s",
        "lasts_s",
        "last_error",
        "loop",
        "misrouted",
        "quota_bytes",
        "setting",
        "subject",
        "text",
        "age_s",
    ];
    fn names(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| {
                found.insert(name.clone());
                names(value, found);
            }),
            Value::Array(values) => values.iter().for_each(|value| names(value, found)),
            _ => {}
        }
    }
    let folder = TempDir::new()?;
    let (root, mut region) = tree(folder.path()).await?;
    let mut given = BTreeSet::new();
    names(&json(&asked(&["tree", &root.url(), "-o", "json"]).await?)?, &mut given);
    region.kill()?;
    eventually("the child is missed", SOON, async || {
        let value = json(&asked(&["tree", &root.url(), "-o", "json"]).await?)?;
        names(&value, &mut given);
        ensure!(given.contains("trouble_s"), "{value}");
        Ok(())
    })
    .await?;
    let book = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/src/commands.md"))?;
    let (_, section) = book.split_once("### `tree`").context("the book has the tree")?;
    let (section, _) = section.split_once("### `status`").context("and the status behind it")?;
    let said: BTreeSet<_> = section.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let unsaid: Vec<_> = given.difference(&said).collect();
    ensure!(unsaid.is_empty(), "the book does not have {unsaid:?}");
    let is_name = |name: &&String| !name.contains(['/', '.', ' ']) && **name != name.to_uppercase();
    let missing = said.difference(&given).filter(is_name);
    let missing: Vec<_> = missing.filter(|name| !SOMETIMES.contains(&name.as_str())).collect();
    ensure!(missing == ["Node", "Route"], "only the book has {missing:?}");
    Ok(())
}

#[tokio::test]
async fn doctor_says_what_is_wrong_and_what_to_do() -> Result<()> {
    let folder = TempDir::new()?;
    let (root, mut region) = tree(folder.path()).await?;
    let url = root.url();
    let ended = asked(&["doctor", &url]).await?;
    ensure!(ended.code == Some(0) && ended.stdout.contains("2 nodes and 3 routes"), "{ended:?}");

    region.kill()?;
    eventually("the child is missed", SOON, async || {
        let ended = asked(&["doctor", &url, "-o", "json"]).await?;
        ensure!(ended.code == Some(1), "{ended:?}");
        let finding = json(&ended)?["findings"][0].take();
        ensure!(finding["check"] == "store-away" && finding["severity"] == "error", "{finding}");
        ensure!(finding["place"] == "root/store-0", "{finding}");
        Ok(())
    })
    .await?;
    let ended = asked(&["doctor", &url]).await?;
    for part in ["error: root/store-0: it can't be used", "  means: ", "  do:    ", "1 error"] {
        ensure!(ended.stdout.contains(part), "{part} is not in:\n{}", ended.stdout);
    }
    Ok(())
}

/// A certificate of two days is soon over when a day is left of a year, and the one of an authority counts too.
#[tokio::test]
async fn doctor_and_metrics_say_when_certificates_end() -> Result<()> {
    let folder = TempDir::new()?;
    let authority = authority()?;
    write_certificates(folder.path(), &authority)?;
    let now = time::OffsetDateTime::now_utc();
    let (ending, key) =
        certificate_until(&authority, "localhost", now + time::Duration::hours(30))?;
    fs::write(folder.path().join("localhost.pem"), ending)?;
    fs::write(folder.path().join("localhost.key"), key)?;
    let port = free_port()?;
    let (admin, mutual) = (free_port()?, "--trusted-ca-file=ca.pem");
    let plain = format!("--listen-metrics-urls=http://127.0.0.1:{admin}");
    let _node = crate::tls::start(folder.path(), port, &[mutual, &plain])?;
    let file = |name: &str| folder.path().join(name).display().to_string();
    let url = format!("https://127.0.0.1:{port}");
    let flags = [
        format!("--ca-file={}", file("ca.pem")),
        format!("--cert-file={}", file("client.pem")),
        format!("--key-file={}", file("client.key")),
    ];
    let [ca, cert, key] = &flags;
    let report = eventually("it answers", SOON, async || {
        let ended = asked(&["doctor", &url, ca, cert, key, "-o", "json"]).await?;
        ensure!(ended.code == Some(1), "{ended:?}");
        json(&ended)
    })
    .await?;
    let findings = report["findings"].as_array().context("there are findings")?;
    let ending: Vec<_> = findings.iter().filter(|it| it["check"] == "certificate").collect();
    ensure!(ending.len() == 1 && ending[0]["severity"] == "error", "{report}");
    let what = ending[0]["what"].as_str().context("it is said")?;
    let parts = [&file("localhost.pem"), "(--cert-file)", "of localhost", "ends in 30 h"];
    ensure!(parts.iter().all(|part| what.contains(part)), "{what}");
    ensure!(ending[0]["alert"] == "PleachCertificateEnds", "{report}");

    let metrics = Api::at_port(admin).get("/metrics").await?;
    let metrics = metrics.as_str().context("metrics are text")?;
    let ends = |setting: &str| {
        let name =
            format!("pleach_certificate_not_after_timestamp_seconds{{setting=\"{setting}\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
        value.and_then(|value| value.parse::<f64>().ok()).with_context(|| setting.to_owned())
    };
    let left = ends("--cert-file")? - now.unix_timestamp() as f64;
    ensure!((left - 30.0 * 3_600.0).abs() < 2.0, "{left}");
    ensure!(ends("--trusted-ca-file")? > ends("--cert-file")?, "{metrics}");
    Ok(())
}

/// Which kinds of keys are asked for, and how many there are, over two nodes.
#[tokio::test]
async fn top_shows_the_kinds_of_keys() -> Result<()> {
    let folder = TempDir::new()?;
    fs::create_dir_all(folder.path().join("root"))?;
    fs::create_dir_all(folder.path().join("region"))?;
    let mut region = Node::new(&folder.path().join("region"), &["--name=region"])?;
    region.start().await?;
    let root = Node::new(&folder.path().join("root"), &["--name=root"])?;
    let mut root = root.with_routes_to(&[("/registry/pods/a/", region.url())])?;
    let channel = root.start().await?;
    eventually("the child is attached", SOON, async || {
        Ok(put(&channel, "/registry/pods/a/0", "1").await?)
    })
    .await?;
    for at in 0..400 {
        put(&channel, format!("/registry/pods/{}/{at}", ["a", "b"][at % 2]), "x".repeat(80))
            .await?;
    }
    put(&channel, "/registry/stable.example.com/shirts/a/b", "x").await?;
    for at in 0..3 {
        put(&channel, format!("/elsewhere-{at}"), "x").await?;
    }
    let cut = "not all kinds were counted";
    let ended = asked(&["top", "--prefixes", &root.url()]).await?;
    ensure!(!ended.stdout.contains(cut), "{ended:?}");
    let ended = asked(&["top", "--prefixes", &root.url(), "-o", "json"]).await?;
    let value = json(&ended)?;
    let row = |prefix: &str| {
        let rows = value.as_array().into_iter().flatten();
        rows.clone().find(|row| row["prefix"] == prefix).cloned().unwrap_or_default()
    };
    let pods = row("/registry/pods/");
    ensure!(value[0] == pods, "what is written most is first: {value}");
    // `a/0` was written before, by another name of the same key.
    ensure!(pods["keys"] == 400, "{value}");
    let bytes = pods["bytes_about"].as_f64().unwrap_or_default();
    ensure!((35_000.0..45_000.0).contains(&bytes), "{value}");
    ensure!(pods["writes_per_s"].as_f64() > Some(1.0), "{value}");
    ensure!(row("/registry/stable.example.com/shirts/")["keys"] == 1, "{value}");
    ensure!(row("")["keys"] == 3, "{value}");
    let ended = asked(&["top", "--prefixes", &root.url(), "--sort=keys"]).await?;
    ensure!(ended.stdout.lines().nth(1).is_some_and(|it| it.starts_with("/registry/pods/")));
    // Keys that are nobody's kind, before all others, hide none of them.
    for at in 0..1_100 {
        put(&channel, format!("/app{at}"), "x").await?;
    }
    let ended = asked(&["top", "--prefixes", &root.url(), "--sort=keys"]).await?;
    let lines: Vec<_> = ended.stdout.lines().collect();
    ensure!(lines[1].starts_with("(all others)") && lines[1].contains(" 1103 "), "{ended:?}");
    ensure!(lines[2].starts_with("/registry/pods/") && lines[2].contains(" 400 "), "{ended:?}");
    ensure!(lines.last().is_some_and(|line| line.starts_with(cut)), "{ended:?}");
    let ended = asked(&["top", "--prefixes", &root.url(), "--sort=time"]).await?;
    ensure!(ended.code == Some(1) && ended.stderr.contains("by rate, keys or bytes"), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn bench_measures_each_kind_and_leaves_nothing_behind() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    put(&channel, "/pleach-bench", "not of the benchmark").await?;
    let arguments =
        ["bench", &node.url(), "--for=300ms", "--clients=4", "--keys=200", "-o", "json"];
    let ended = asked(&arguments).await?;
    ensure!(ended.code == Some(0) && ended.stderr.contains("/pleach-bench/"), "{ended:?}");
    let value = json(&ended)?;
    for (at, what) in ["put", "get", "range", "watch"].into_iter().enumerate() {
        let row = &value[at];
        ensure!(row["what"] == what && row["failed"] == 0, "{row}");
        ensure!(row["requests"].as_u64() > Some(0) && row["per_s"].as_f64() > Some(0.0), "{row}");
        ensure!(row["p50_s"].as_f64() <= row["max_s"].as_f64(), "{row}");
    }
    let all = pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    let left = client(&channel).range(all).await?.into_inner();
    ensure!(left.kvs.len() == 1 && left.kvs[0].key == "/pleach-bench", "{:?}", left.kvs);

    let nobody = format!("http://127.0.0.1:{}", free_port()?);
    let ended = asked(&["bench", &nobody]).await?;
    ensure!(ended.code == Some(2) && ended.stderr.contains("nobody listens there"), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn shells_and_readers_of_manuals_are_served() -> Result<()> {
    let folder = TempDir::new()?;
    for (shell, part) in
        [("bash", "complete -F"), ("zsh", "#compdef pleach"), ("fish", "complete -c pleach")]
    {
        let ended = asked(&["completion", shell]).await?;
        ensure!(ended.is_success && ended.stdout.contains(part), "{shell}: {ended:?}");
        ensure!(ended.stdout.contains("doctor"), "{shell} completes no doctor");
    }
    let ended = asked(&["man"]).await?;
    ensure!(ended.is_success && ended.stdout.contains(".TH pleach 1"), "{ended:?}");
    let ended = pleach(folder.path(), &["man", "."]).await?;
    ensure!(ended.is_success, "{ended:?}");
    for (page, part) in [
        ("pleach", "Examples"),
        ("pleach-serve", "as kine is started"),
        ("pleach-doctor", "Exit codes"),
    ] {
        let text = fs::read_to_string(folder.path().join(format!("{page}.1")))?;
        ensure!(text.contains(part), "{part} is not in {page}");
    }
    Ok(())
}

/// What a list costs each store, through two levels, with a selector and without.
#[tokio::test]
async fn explain_says_what_a_read_costs_each_store_of_a_tree_that_runs() -> Result<()> {
    let folder = TempDir::new()?;
    let (root, region) = tree(folder.path()).await?;
    let (channel, url) = (root.channel()?, root.url());
    for index in 0..30 {
        let app = if index % 10 == 0 { "a" } else { "b" };
        let object = format!(
            r#"{{"apiVersion":"a.b/v1","kind":"C","metadata":{{"labels":{{"app":"{app}"}}}}}}"#
        );
        put(&channel, format!("/r/{index:02}"), object).await?;
    }
    put(&channel, "/other", "1").await?;
    let explained = async |more: &[&str]| -> Result<Value> {
        let all = [&["explain", "--node", &url, "-o", "json"], more].concat();
        json(&asked(&all).await?)
    };
    let row = |value: &Value, name: &str| {
        let stores = value["stores"].as_array().cloned().unwrap_or_default();
        stores.into_iter().find(|store| store["store"] == name).unwrap_or_default()
    };
    // With the key that `tree` has put.
    let all = explained(&["/r/"]).await?;
    ensure!(all["keys"] == 31 && row(&all, "main").is_null(), "{all}");
    let below = row(&all, "store-0/main");
    ensure!(below["rows_read"] == 31 && below["rows_returned"] == 31, "{all}");
    ensure!(row(&all, "store-0").get("rows_read").is_none(), "{all}");
    // The one that is no object can't be judged, and is answered.
    let some = explained(&["/r/", "-l", "app=a"]).await?;
    let below = row(&some, "store-0/main");
    ensure!(some["keys"] == 4 && row(&some, "store-0")["rows_returned"] == 4, "{some}");
    ensure!(below["rows_read"] == 31 && below["pages_by_index"] == 0, "{some}");
    let first = explained(&["/r/", "--limit", "3"]).await?;
    ensure!(first["keys"] == 3, "{first}");
    let one = explained(&["/other"]).await?;
    ensure!(one["keys"] == 1 && row(&one, "main")["rows_read"] == 1, "{one}");
    let ended = asked(&["explain", "/r/", "--node", &url]).await?;
    let lines: Vec<&str> = ended.stdout.lines().collect();
    ensure!(lines[0].starts_with("store-0: all that is left, by "), "{ended:?}");
    ensure!(lines[1].starts_with("31 keys at revision ") && lines.len() == 5, "{ended:?}");
    ensure!(
        all["routes"][0]["route"] == "store-0" && all["routes"][0]["reach"] == "whole",
        "{all}"
    );
    ensure!(one["routes"][0]["reach"] == "none" && one["routes"][1]["route"] == "main", "{one}");
    for (arguments, code, said) in [
        (vec!["/r/", "--node", &url, "-l", "app in ("], 1, "the label selector can't be read"),
        (vec!["/r/", "--node", &url, "--revision", "999999"], 1, "required revision is a future"),
        (vec!["/r/", "--node", "127.0.0.1:1"], 2, "nobody listens there"),
        (vec!["/r/"], 1, "give --topology FILE"),
        (vec!["/r/", "-l", "app=a"], 2, "--node"),
        (vec!["", "--node", &url], 1, "key is not provided"),
    ] {
        let ended = asked(&[&["explain"], &arguments[..]].concat()).await?;
        ensure!(ended.code == Some(code) && ended.stderr.contains(said), "{ended:?}");
    }
    drop(region);
    Ok(())
}
