//! How a node starts, and what it refuses to start with.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, UnixDatagram},
    time::timeout,
};

use crate::{
    call::{get, put, refused},
    support::{http::Api, node::Node, peers::free_port, process::eventually, tmpfs::Tmpfs},
};

/// A start takes a moment; the rest is for a busy machine.
const TOLD_WITHIN: Duration = Duration::from_secs(20);

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Both fail only when the process is gone already, and that is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn without_flags_in_an_empty_folder_a_node_is_ready_over_sqlite_in_pleach_data() -> Result<()>
{
    let folder = TempDir::new()?;
    let port = free_port()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
    // The usual port may be taken on this machine; a flag's variable is no flag.
    command.env("PLEACH_LISTEN_CLIENT_URLS", format!("http://127.0.0.1:{port}"));
    command.current_dir(folder.path()).stdin(Stdio::null()).stderr(Stdio::null());
    let _node = Killed(command.spawn()?);
    eventually("it is ready", Duration::from_secs(10), async || {
        Api::at_port(port).get("/readyz").await
    })
    .await?;
    ensure!(folder.path().join("pleach-data/pleach.db").is_file(), "no pleach-data/pleach.db");
    Ok(())
}

#[tokio::test]
async fn a_second_process_on_the_same_data_is_refused_by_name_until_the_first_is_killed()
-> Result<()> {
    let folder = TempDir::new()?;
    let mut first = Node::new(folder.path(), &["--name=first"])?;
    let channel = first.start().await?;
    put(&channel, "kept", "yes").await?;
    let data_dir = format!("--data-dir={}", first.data_dir().display());
    let said = refused(folder.path(), &[&data_dir]).await?;
    for part in ["node `first`", &format!("process {}", first.id()?), "is in use", "--data-dir"] {
        ensure!(said.contains(part), "{part} is not in: {said}");
    }
    put(&channel, "undisturbed", "yes").await?;

    first.kill()?;
    let channel = first.start().await?;
    ensure!(get(&channel, "kept").await?.is_some(), "the write before the kill is gone");
    ensure!(get(&channel, "undisturbed").await?.is_some(), "a later write is gone");
    Ok(())
}

#[tokio::test]
async fn a_route_to_the_file_of_the_default_store_is_refused() -> Result<()> {
    let folder = TempDir::new()?;
    let topology = "backends:\n- name: same\n  endpoint: sqlite://./pleach-data/pleach.db\n  \
                    prefix:\n    prefix: pods\n";
    fs::write(folder.path().join("topology.yaml"), topology)?;
    let said = refused(folder.path(), &["--topology=topology.yaml"]).await?;
    ensure!(said.contains("`same`") && said.contains("the default store"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_folder_that_can_not_be_written_is_refused_with_its_name() -> Result<()> {
    let folder = TempDir::new()?;
    let disk = Tmpfs::mount("4m")?;
    disk.remount("ro")?;
    let data_dir = disk.path().join("data");
    let said = refused(folder.path(), &[&format!("--data-dir={}", data_dir.display())]).await?;
    let name = data_dir.display().to_string();
    ensure!(said.contains(&name) && said.contains("Read-only file system"), "{said}");

    fs::write(folder.path().join("file"), "")?;
    let said = refused(folder.path(), &["--data-dir=file/data"]).await?;
    ensure!(said.contains("file/data") && said.contains("Not a directory"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_data_folder_that_became_read_only_is_refused_and_kept() -> Result<()> {
    let folder = TempDir::new()?;
    let disk = Tmpfs::mount("8m")?;
    let data_dir = format!("--data-dir={}", disk.path().display());
    let mut node = Node::new(folder.path(), &[])?.with_data_dir(disk.path());
    let channel = node.start().await?;
    put(&channel, "kept", "yes").await?;
    node.kill()?;
    disk.remount("ro")?;
    let said = refused(folder.path(), &[&data_dir]).await?;
    ensure!(said.contains("pleach.db") && said.contains("ead-only"), "{said}");
    disk.remount("rw")?;
    let channel = node.start().await?;
    ensure!(get(&channel, "kept").await?.is_some(), "the write is gone");
    // The file system can't be unmounted under a node that runs.
    node.kill()
}

#[tokio::test]
async fn flags_that_contradict_each_other_are_refused_with_a_remedy() -> Result<()> {
    let folder = TempDir::new()?;
    let taken = TcpListener::bind("127.0.0.1:0").await?;
    let taken = format!("--listen-client-urls=http://{}", taken.local_addr()?);
    let cases: [(&[&str], &str); 7] = [
        (&["--listen-client-urls=https://127.0.0.1:0"], "--cert-file"),
        (&["--listen-client-urls=127.0.0.1:1"], "http://HOST:PORT"),
        (&["--listen-client-urls=http://127.0.0.1"], "port is missing"),
        (&[&taken], "is another server there?"),
        (&["--client-cert-auth"], "--cert-file"),
        (&["--watch-progress-notify-interval=1ms"], "100ms"),
        (&["--listen-client-urls=http://127.0.0.1:0", "--topology=missing.yaml"], "missing.yaml"),
    ];
    for (flags, remedy) in cases {
        let mut arguments = vec!["serve"];
        arguments.extend(flags);
        let ended = crate::call::pleach(folder.path(), &arguments).await?;
        ensure!(!ended.is_success, "{flags:?} was taken");
        ensure!(ended.stderr.contains(remedy), "{flags:?}: {}", ended.stderr);
    }
    Ok(())
}

#[tokio::test]
async fn systemd_is_told_when_clients_are_served_and_when_that_ends() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    let mut node = Node::new(folder.path(), &[])?;
    node.set_env("NOTIFY_SOCKET", &path.display().to_string());
    node.spawn()?;
    let mut said = [0; 64];
    let told = timeout(TOLD_WITHIN, socket.recv(&mut said)).await.context("nothing was said")??;
    ensure!(&said[..told] == b"READY=1\n", "{said:?}");
    get(&node.channel()?, "key").await?;
    node.signal("TERM")?;
    let told = timeout(TOLD_WITHIN, socket.recv(&mut said)).await.context("nothing was said")??;
    ensure!(&said[..told] == b"STOPPING=1\n", "{said:?}");
    node.ended().await?;
    Ok(())
}
