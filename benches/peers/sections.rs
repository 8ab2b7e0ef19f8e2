//! The order of a run: which servers live when, and which row visits which.

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    client::Connections,
    disk,
    keys::Set,
    listing, load, loopback, merging,
    options::Plan,
    peer::Peer,
    process::Memory,
    program::Program,
    report::{Figures, Metric, Report},
    rows::Row,
    scraping::Scraper,
    selecting,
    server::Server,
    streaming,
    watching::{self, Watchers},
    writing,
};

/// A run in progress.
pub(crate) struct Bench<'a> {
    plan: &'a Plan,
    report: &'a mut Report,
}

impl<'a> Bench<'a> {
    pub(crate) fn new(plan: &'a Plan, report: &'a mut Report) -> Self {
        Bench { plan, report }
    }

    pub(crate) async fn run(&mut self) -> Result<()> {
        // With load rows, the machine is measured beside them, since it drifts too.
        if !self.asked(is_load) {
            for round in 0..self.plan.rounds {
                self.machine(round).await?;
            }
        }
        if self.asked(|row| matches!(row, Row::StartFresh | Row::Watchers | Row::Scrape)) {
            self.idle().await?;
        }
        if self.asked(is_load) {
            self.load().await?;
        }
        if self.asked(is_listing) {
            self.listing().await?;
        }
        if self.asked(is_selecting) {
            self.selecting().await?;
        }
        if self.asked(|row| matches!(row, Row::Keys | Row::Stream | Row::StartLoaded)) {
            self.loaded().await?;
        }
        Ok(())
    }

    async fn machine(&mut self, round: u32) -> Result<()> {
        for row in [Row::Disk, Row::Loopback] {
            if !self.plan.asks_for(row) {
                continue;
            }
            self.progress(round, &row.id(), None);
            let (directory, window) = (self.plan.directory.clone(), self.plan.window);
            let measured = spawn_blocking(move || match row {
                Row::Disk => disk::floor(&directory, window),
                _ => loopback::floor(window),
            });
            self.report.add_machine(&row.label(self.plan), measured.await??);
        }
        Ok(())
    }

    /// One server alone at a time: its start, and its memory before and with watchers.
    async fn idle(&mut self) -> Result<()> {
        for round in 0..self.plan.rounds {
            for peer in self.plan.order(round) {
                self.progress(round, "start and idle watchers", Some(peer));
                let server = Server::start(self.plan, peer, "idle").await?;
                sleep(self.plan.settle).await;
                let before = server.memory()?;
                if self.plan.asks_for(Row::StartFresh) {
                    let label = Row::StartFresh.label(self.plan);
                    self.report.add(&label, peer, started(&server, before));
                }
                if self.asked(|row| matches!(row, Row::Watchers | Row::Scrape)) {
                    self.with_watchers(&server, before).await?;
                }
                server.discard().await?;
            }
        }
        Ok(())
    }

    async fn with_watchers(&mut self, server: &Server, before: Memory) -> Result<()> {
        let (plan, count) = (self.plan, self.plan.idle_watchers);
        let watchers = Watchers::open(server.port(), count).await?;
        sleep(plan.settle).await;
        if plan.asks_for(Row::Watchers) {
            let with = server.memory()?;
            let more = (with.anonymous_mib - before.anonymous_mib) * 1024.0 * 1024.0;
            let mut figures = memory(with);
            figures.push((Metric::PerWatcher, more / count as f64));
            self.report.add(&Row::Watchers.label(plan), server.peer, figures);
        }
        // kine has its metrics at another port, where it has any.
        if plan.asks_for(Row::Scrape) && server.peer.program() != Program::Kine {
            let work = vec![Scraper { port: server.port(), watchers: count }];
            let (figures, _) = load::run(plan, server.processes()?, work).await?;
            self.report.add(&Row::Scrape.label(plan), server.peer, figures);
        }
        drop(watchers);
        Ok(())
    }

    /// Fresh servers side by side in each round, so that no round inherits another's data.
    async fn load(&mut self) -> Result<()> {
        for round in 0..self.plan.rounds {
            self.machine(round).await?;
            let mut servers = Vec::new();
            for peer in self.plan.order(round) {
                let server = Server::start(self.plan, peer, "load").await?;
                let refusals = writing::prepare(server.port()).await?;
                self.report.refuse("filling", peer, refusals);
                servers.push(server);
            }
            for &row in self.plan.rows.iter().filter(|&&row| is_load(row)) {
                for server in &servers {
                    self.turn(round, row, server).await?;
                }
            }
            for server in servers {
                server.discard().await?;
            }
        }
        Ok(())
    }

    /// Loaded once: filling takes longer than reading, and reads leave the data as it is.
    async fn listing(&mut self) -> Result<()> {
        let (keys, revisions) = (self.plan.listed_keys, self.plan.listed_revisions);
        let mut servers = self.filled("listing", Set::Listed, keys, revisions).await?;
        for round in 0..self.plan.rounds {
            for &row in self.plan.rows.iter().filter(|&&row| is_listing(row)) {
                for server in &servers {
                    self.turn(round, row, server).await?;
                }
            }
            servers.reverse();
        }
        for server in servers {
            server.discard().await?;
        }
        Ok(())
    }

    /// Loaded once. Creates come last, since they add to what is selected.
    async fn selecting(&mut self) -> Result<()> {
        let keys = self.plan.stored_keys;
        let mut servers = self.filled("selecting", Set::Selected, keys, 1).await?;
        for server in &servers {
            self.progress(0, "indexes, where there are any", Some(server.peer));
            let connections = Connections::open(server.port(), 1).await?;
            let prepared = selecting::prepare(&connections, keys).await;
            prepared.with_context(|| format!("selecting, {}", server.peer.name()))?;
        }
        for is_creating in [false, true] {
            for round in 0..self.plan.rounds {
                let rows = self.plan.rows.iter().filter(|&&row| is_selecting(row));
                for &row in rows.filter(|&&row| creates_objects(row) == is_creating) {
                    for server in &servers {
                        self.turn(round, row, server).await?;
                    }
                }
                servers.reverse();
            }
        }
        for server in servers {
            server.discard().await?;
        }
        Ok(())
    }

    /// Memory after loading, then start-up and memory on the same data, in turn.
    async fn loaded(&mut self) -> Result<()> {
        let mut servers = self.filled("loaded", Set::Stored, self.plan.stored_keys, 1).await?;
        for server in &mut servers {
            sleep(self.plan.settle).await;
            if self.plan.asks_for(Row::Keys) {
                let figures = memory(server.memory()?);
                self.report.add(&Row::Keys.label(self.plan), server.peer, figures);
            }
        }
        if self.plan.asks_for(Row::Stream) {
            for round in 0..self.plan.rounds {
                for server in &servers {
                    self.progress(round, "stream", Some(server.peer));
                    let figures = streaming::measure(self.plan, server).await;
                    let figures =
                        figures.with_context(|| format!("row stream, {}", server.peer.name()))?;
                    self.report.add(&Row::Stream.label(self.plan), server.peer, figures);
                }
                servers.reverse();
            }
        }
        for server in &mut servers {
            server.stop().await?;
        }
        if !self.plan.asks_for(Row::StartLoaded) {
            return Ok(());
        }
        for round in 0..self.plan.rounds {
            for server in &mut servers {
                self.progress(round, "start with data", Some(server.peer));
                server.start_again(self.plan).await?;
                sleep(self.plan.settle).await;
                let figures = started(server, server.memory()?);
                self.report.add(&Row::StartLoaded.label(self.plan), server.peer, figures);
                server.stop().await?;
            }
            servers.reverse();
        }
        Ok(())
    }

    /// Servers with a set written, all at once since nothing is measured meanwhile.
    async fn filled(
        &mut self,
        name: &str,
        set: Set,
        keys: usize,
        revisions: usize,
    ) -> Result<Vec<Server>> {
        self.progress(0, &format!("filling {keys} keys × {revisions}"), None);
        let plan = self.plan;
        let fill = async |peer: Peer| {
            let server = Server::start(plan, peer, name).await?;
            let filling = writing::fill(server.port(), set, keys, revisions).await;
            let refusals = filling.with_context(|| format!("filling {}", peer.name()))?;
            anyhow::Ok((server, refusals))
        };
        let filled = try_join_all(plan.order(0).into_iter().map(fill)).await?;
        let mut servers = Vec::new();
        for (server, refusals) in filled {
            self.report.refuse("filling", server.peer, refusals);
            servers.push(server);
        }
        Ok(servers)
    }

    /// One measurement of a row on a server; rows of other sections are passed over.
    async fn turn(&mut self, round: u32, row: Row, server: &Server) -> Result<()> {
        let (plan, port, processes) = (self.plan, server.port(), server.processes()?);
        let connected = async |clients| Connections::open(port, clients).await;
        let label = row.label(plan);
        let measure = async {
            Ok(Some(match row {
                Row::Create(clients)
                | Row::CreateObjects(clients)
                | Row::CreateSelected(clients) => {
                    let connections = connected(clients).await?;
                    let set = match row {
                        Row::CreateObjects(_) => Set::Objects,
                        Row::CreateSelected(_) => Set::Selected,
                        _ => Set::Created { clients },
                    };
                    // In each round others, where the store is that of the round before.
                    let first = (u64::from(round) + 1) << 24;
                    let (work, created) = writing::creates(&connections, clients, set, first);
                    let (figures, mut refusals) = load::run(plan, processes, work).await?;
                    let lost = writing::lost(&connections, &created).await?;
                    // kine is known to acknowledge a create that its database did not take.
                    let is_known = server.peer.program() == Program::Kine;
                    ensure!(lost == 0 || is_known, "{lost} creates are lost");
                    if lost > 0 {
                        refusals.insert("acknowledged and yet lost".into(), lost);
                    }
                    (figures, refusals)
                }
                Row::Update(clients) => {
                    let work = writing::updates(&connected(clients).await?, clients).await?;
                    load::run(plan, processes, work).await?
                }
                Row::Get(clients) => {
                    let work = writing::gets(&connected(clients).await?, clients);
                    load::run(plan, processes, work).await?
                }
                Row::Watch(watchers) => watching::measure(plan, port, processes, watchers).await?,
                Row::Merged(groups) => merging::measure(plan, port, processes, groups).await?,
                row if is_selecting(row) => {
                    let work = selecting::reader(&connected(1).await?, row, plan.stored_keys);
                    load::run(plan, processes, vec![work]).await?
                }
                row if is_listing(row) => {
                    let work = listing::reader(&connected(1).await?, row, plan.listed_keys);
                    load::run(plan, processes, vec![work]).await?
                }
                _ => return anyhow::Ok(None),
            }))
        };
        let measured = measure.await;
        let outcome =
            measured.with_context(|| format!("row {}, {}", row.id(), server.peer.name()))?;
        if let Some((figures, refusals)) = outcome {
            self.progress(round, &row.id(), Some(server.peer));
            self.report.add(&label, server.peer, figures);
            self.report.refuse(&label, server.peer, refusals);
        }
        Ok(())
    }

    fn asked(&self, of: impl Fn(Row) -> bool) -> bool {
        self.plan.rows.iter().any(|&row| of(row))
    }

    fn progress(&self, round: u32, what: &str, peer: Option<Peer>) {
        let peer = peer.map_or("", Peer::name);
        eprintln!("round {}/{}  {what:<24} {peer}", round + 1, self.plan.rounds);
    }
}

fn is_load(row: Row) -> bool {
    matches!(row, Row::Create(_) | Row::Update(_) | Row::Get(_) | Row::Watch(_) | Row::Merged(_))
}

fn is_selecting(row: Row) -> bool {
    use Row::{SelectHalf, SelectHundredth, SelectOne, SelectPage};
    creates_objects(row) || matches!(row, SelectOne | SelectHundredth | SelectHalf | SelectPage)
}

fn creates_objects(row: Row) -> bool {
    matches!(row, Row::CreateObjects(_) | Row::CreateSelected(_))
}

fn is_listing(row: Row) -> bool {
    matches!(row, Row::ListPage | Row::ListNext | Row::ListAll | Row::Count)
}

fn started(server: &Server, memory_now: Memory) -> Figures {
    let mut figures = vec![(Metric::StartUp, server.serving.started_in.as_secs_f64() * 1e3)];
    figures.extend(memory(memory_now));
    figures
}

fn memory(memory: Memory) -> Figures {
    vec![(Metric::Resident, memory.resident_mib), (Metric::Anonymous, memory.anonymous_mib)]
}
