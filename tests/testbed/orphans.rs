//! A test process that is killed leaves no server and no data.

use std::{
    env, future,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::support::{
    daemon::is_alive,
    databases::{DatabaseServer, Kind},
    process::eventually,
};

const MARK: &str = "server: ";

#[tokio::test]
async fn servers_and_their_data_go_when_the_test_process_is_killed() -> Result<()> {
    let mut child = Command::new(env::current_exe()?)
        .args(["--exact", "orphans::servers_to_be_left_behind", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()?;
    let servers = read_servers(&mut child);
    child.kill()?;
    child.wait()?;
    let servers = servers?;
    ensure!(servers.len() == 3, "only {servers:?} were started");
    for (id, folder) in servers {
        eventually("it is gone", Duration::from_secs(10), async || {
            ensure!(!is_alive(id), "process {id} of {folder} runs on");
            ensure!(!Path::new(&folder).exists(), "{folder} is still there");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// What the test below prints before it waits for its end.
fn read_servers(child: &mut Child) -> Result<Vec<(u32, String)>> {
    let output = BufReader::new(child.stdout.take().context("no output")?);
    let mut servers = Vec::new();
    for line in output.lines() {
        let line = line?;
        if line.ends_with("all run") {
            break;
        }
        if let Some((_, server)) = line.split_once(MARK) {
            let (id, folder) = server.split_once(' ').context("no folder")?;
            servers.push((id.parse()?, folder.to_owned()));
        }
    }
    Ok(servers)
}

#[tokio::test]
#[ignore = "is run, and killed, by the test above"]
async fn servers_to_be_left_behind() -> Result<()> {
    let shared = DatabaseServer::shared(Kind::Postgres).await?;
    println!("{MARK}{} {}", shared.id()?, shared.folder().display());
    let mut others = Vec::new();
    for kind in [Kind::Postgres, Kind::MariaDb] {
        let mut server = DatabaseServer::new(kind)?;
        server.start().await?;
        println!("{MARK}{} {}", server.id()?, server.folder().display());
        // One that does not react is taken away as well.
        server.pause()?;
        others.push(server);
    }
    println!("all run");
    future::pending::<()>().await;
    Ok(())
}
