//! etcdctl 3.7.3: each of its commands that applies to a node of one.

use std::{path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use crate::{
    call::{Ended, run},
    support::{node::Node, peers::peer},
};

/// A line that a command has to print.
const LINE_WITHIN: Duration = Duration::from_secs(15);

struct Etcdctl {
    folder: TempDir,
    node: Node,
    program: PathBuf,
}

/// A command that runs on.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Etcdctl {
    async fn new() -> Result<Self> {
        let folder = TempDir::new()?;
        let mut node = Node::new(folder.path(), &[])?;
        node.start().await?;
        Ok(Self { folder, node, program: peer("etcdctl")? })
    }

    fn arguments(&self, line: &str) -> Vec<String> {
        let mut arguments = vec![format!("--endpoints={}", self.node.url())];
        arguments.extend(line.split(' ').map(str::to_owned));
        arguments
    }

    async fn ends(&self, line: &str) -> Result<Ended> {
        let arguments = self.arguments(line);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        run(&self.program, self.folder.path(), &arguments).await
    }

    /// What a command prints that must succeed.
    async fn says(&self, line: &str) -> Result<String> {
        let ended = self.ends(line).await?;
        ensure!(ended.is_success, "{line}: {}", ended.stderr);
        Ok(ended.stdout)
    }

    /// The words on which a command must fail.
    async fn fails(&self, line: &str, words: &str) -> Result<()> {
        let ended = self.ends(line).await?;
        ensure!(!ended.is_success, "{line} succeeds: {}", ended.stdout);
        ensure!(ended.stderr.contains(words), "{line}: {words} is not in {}", ended.stderr);
        Ok(())
    }

    async fn prints(&self, line: &str, expected: &str) -> Result<()> {
        let said = self.says(line).await?;
        ensure!(said == expected, "{line}: {said:?}, not {expected:?}");
        Ok(())
    }

    async fn json(&self, line: &str) -> Result<Value> {
        let said = self.says(&format!("{line} -w json")).await?;
        serde_json::from_str(&said).with_context(|| format!("{line}: {said}"))
    }

    fn runs(&self, line: &str) -> Result<Running> {
        let mut command = Command::new(&self.program);
        command.args(self.arguments(line)).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::null()).kill_on_drop(true).spawn()?;
        let stdout = child.stdout.take().context("no output")?;
        Ok(Running { child, lines: BufReader::new(stdout).lines() })
    }

    /// A command that reads what to do.
    async fn fed(&self, line: &str, input: &str) -> Result<String> {
        let mut running = self.runs(line)?;
        let mut stdin = running.child.stdin.take().context("no input")?;
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        let mut said = String::new();
        while let Some(line) = running.line().await? {
            said += &line;
            said.push('\n');
        }
        Ok(said)
    }
}

impl Running {
    async fn line(&mut self) -> Result<Option<String>> {
        let line = tokio::time::timeout(LINE_WITHIN, self.lines.next_line()).await;
        Ok(line.context("no line is printed")??)
    }

    async fn says(&mut self, expected: &str) -> Result<()> {
        let line = self.line().await?;
        ensure!(line.as_deref() == Some(expected), "{line:?}, not {expected:?}");
        Ok(())
    }
}

#[tokio::test]
async fn put_get_and_del_print_what_they_do() -> Result<()> {
    let ctl = Etcdctl::new().await?;
    ctl.prints("put a 1", "OK\n").await?;
    ctl.prints("put b 2 --prev-kv", "OK\n").await?;
    ctl.prints("put a 3 --prev-kv", "OK\na\n1\n").await?;
    ctl.prints("get a", "a\n3\n").await?;
    ctl.prints("get --prefix --keys-only a", "a\n\n").await?;
    ctl.prints("get a z --order=DESCEND --print-value-only", "2\n3\n").await?;
    ctl.prints("get a --rev=2", "a\n1\n").await?;
    ctl.prints("get --from-key b --limit=1", "b\n2\n").await?;
    let counted = ctl.says("get --prefix --count-only -w fields a").await?;
    ensure!(counted.contains("\"Count\" : 1\n"), "{counted}");
    let read = ctl.json("get a").await?;
    ensure!(read["header"]["revision"] == 4 && read["kvs"][0]["version"] == 2, "{read}");
    ctl.fails("get a --rev=99", "required revision is a future revision").await?;
    ctl.prints("del a --prev-kv", "1\na\n3\n").await?;
    ctl.prints("del a", "0\n").await?;
    ctl.prints("del --prefix b", "1\n").await
}

#[tokio::test]
async fn txn_takes_either_branch() -> Result<()> {
    let ctl = Etcdctl::new().await?;
    ctl.says("put user bad").await?;
    let txn = "value(\"user\") = \"bad\"\n\ndel user\n\nput user good\n\n";
    let said = ctl.fed("txn", txn).await?;
    ensure!(said == "SUCCESS\n\n1\n", "{said:?}");
    let said = ctl.fed("txn", txn).await?;
    ensure!(said == "FAILURE\n\nOK\n", "{said:?}");
    ctl.prints("get user", "user\ngood\n").await
}

#[tokio::test]
async fn watch_prints_the_past_and_the_present() -> Result<()> {
    let ctl = Etcdctl::new().await?;
    ctl.says("put w/1 old").await?;
    let mut watch = ctl.runs("watch --prefix w/ --rev=2 --prev-kv")?;
    for line in ["PUT", "w/1", "old"] {
        watch.says(line).await?;
    }
    ctl.says("put w/1 new").await?;
    for line in ["PUT", "w/1", "old", "w/1", "new"] {
        watch.says(line).await?;
    }
    ctl.says("del w/1").await?;
    for line in ["DELETE", "w/1", "new", "w/1", ""] {
        watch.says(line).await?;
    }
    Ok(())
}

#[tokio::test]
async fn leases_are_granted_listed_kept_and_revoked() -> Result<()> {
    let ctl = Etcdctl::new().await?;
    let granted = ctl.says("lease grant 60").await?;
    let id = granted.split(' ').nth(1).context("no id")?.to_owned();
    ensure!(granted == format!("lease {id} granted with TTL(60s)\n"), "{granted}");
    ctl.prints(&format!("put leased x --lease={id}"), "OK\n").await?;
    ctl.prints("lease list", &format!("found 1 leases\n{id}\n")).await?;
    let left = ctl.says(&format!("lease timetolive {id} --keys")).await?;
    ensure!(left.contains("granted with TTL(60s)") && left.contains("[leased]"), "{left}");
    let kept = ctl.says(&format!("lease keep-alive --once {id}")).await?;
    ensure!(kept == format!("lease {id} keepalived with TTL(60)\n"), "{kept}");
    ctl.prints(&format!("lease revoke {id}"), &format!("lease {id} revoked\n")).await?;
    ctl.prints("get leased", "").await?;
    let gone = ctl.says(&format!("lease timetolive {id}")).await?;
    ensure!(gone == format!("lease {id} already expired\n"), "{gone}");
    ctl.fails(&format!("lease revoke {id}"), "requested lease not found").await
}

#[tokio::test]
async fn a_lock_is_held_by_one_and_an_election_won_by_one() -> Result<()> {
    let ctl = Etcdctl::new().await?;
    let mut first = ctl.runs("lock door")?;
    let held = first.line().await?.context("no lock")?;
    ensure!(held.starts_with("door/"), "{held}");
    let mut second = ctl.runs("lock door")?;
    // etcdctl gives its lease back when it is asked to end.
    let id = first.child.id().context("it has ended")?;
    Command::new("sh").args(["-c", &format!("kill -TERM {id}")]).status().await?;
    let held = second.line().await?.context("the second never got it")?;
    ensure!(held.starts_with("door/"), "{held}");

    let mut leader = ctl.runs("elect chair ann")?;
    let won = leader.line().await?.context("nobody won")?;
    ensure!(won.starts_with("chair/"), "{won}");
    leader.says("ann").await?;
    let mut listener = ctl.runs("elect -l chair")?;
    let seen = [listener.line().await?, listener.line().await?];
    ensure!(seen[0].as_deref() == Some(&won) && seen[1].as_deref() == Some("ann"), "{seen:?}");
    Ok(())
}

#[tokio::test]
async fn compaction_defragmentation_and_hashes_work() -> Result<()> {
    let ctl = Etcdctl::new().await?;
    for value in ["1", "2", "3"] {
        ctl.says(&format!("put c {value}")).await?;
    }
    ctl.prints("compaction 3", "compacted revision 3\n").await?;
    ctl.prints("compaction 4 --physical", "compacted revision 4\n").await?;
    ctl.fails("compaction 4", "required revision has been compacted").await?;
    ctl.fails("get c --rev=2", "required revision has been compacted").await?;
    let said = ctl.says("defrag").await?;
    ensure!(said.starts_with("Finished defragmenting etcd member"), "{said}");
    let (now, then) =
        (ctl.json("endpoint hashkv").await?, ctl.json("endpoint hashkv --rev=4").await?);
    ensure!(now[0]["HashKV"]["hash"] == then[0]["HashKV"]["hash"], "{now} {then}");
    Ok(())
}

#[tokio::test]
async fn the_endpoint_and_its_one_member_are_shown() -> Result<()> {
    let ctl = Etcdctl::new().await?;
    let ended = ctl.ends("endpoint health").await?;
    let said = format!("{}{}", ended.stdout, ended.stderr);
    ensure!(ended.is_success && said.contains("is healthy"), "{said}");
    let status = ctl.json("endpoint status").await?;
    let status = &status[0]["Status"];
    let is_leader = status["leader"] == status["header"]["member_id"];
    ensure!(status["version"] == "3.7.3" && is_leader, "{status}");
    let members = ctl.json("member list").await?;
    let members = members["members"].as_array().context("no members")?;
    ensure!(members.len() == 1 && members[0]["name"] == "default", "{members:?}");
    ensure!(members[0]["clientURLs"][0] == ctl.node.url(), "{members:?}");
    ctl.prints("alarm list", "").await?;
    ctl.prints("alarm disarm", "").await
}

#[tokio::test]
async fn what_a_node_does_not_do_is_said_in_a_sentence() -> Result<()> {
    let ctl = Etcdctl::new().await?;
    ctl.fails("snapshot save copy.db", "back up the stores").await?;
    ctl.fails("member add other --peer-urls=http://localhost:1", "members are not added").await?;
    ctl.fails("user add ann:secret", "users and roles are not kept").await?;
    ctl.fails("auth enable", "root user does not exist").await?;
    let said = ctl.says("auth status").await?;
    ensure!(said.starts_with("Authentication Status: false"), "{said}");
    Ok(())
}
