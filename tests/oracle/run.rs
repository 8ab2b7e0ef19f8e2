//! Two servers, the same steps, and a comparison of everything they say.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    mem,
};

use anyhow::{Context as _, Result, bail, ensure};
use pleach::{proto::etcdserverpb as pb, select::Selector};
use tonic::Code;

use crate::{
    chronicle::Chronicle,
    differences::{anonymous, settle},
    generate::{FAR, Seen, Step},
    request::{Answer, Client, Request, revision_of},
    server::{Kind, ROUTES, Server},
    watch::{Listener, Spoil},
};

/// The stream with one watcher over everything, from which the chronicle is written.
const CHRONICLE_STREAM: usize = 0;
/// A put here moves the revision on, where watchers wait for one that has not come yet.
const MOVE_ON_KEY: &str = "z/sync";

/// One of the two servers and all that is open on it.
#[derive(Debug)]
pub struct Side {
    server: Server,
    client: Client,
    streams: BTreeMap<usize, Listener>,
    chronicle: Chronicle,
    /// Cluster ID and member ID, which must never change.
    identity: Option<(u64, u64)>,
    spoil_answer: Option<fn(&mut Answer)>,
    spoil_message: Option<Spoil>,
}

/// What both sides know of one watcher.
#[derive(Debug)]
struct Watcher {
    /// How far its histories have been compared: events, and the revision.
    compared: [usize; 2],
    compared_revision: i64,
    /// What was compacted when it was opened.
    compacted: i64,
}

/// A run over one pair of servers. The left side is etcd and always right.
#[derive(Debug)]
pub struct Run {
    left: Side,
    right: Side,
    pub seen: Seen,
    watchers: BTreeMap<usize, Vec<Watcher>>,
    /// Watchers that compaction ended and the client has not cancelled yet: stream, ID.
    dead: BTreeSet<(usize, i64)>,
    /// The start revision of each live watcher, by stream and ID.
    starts: BTreeMap<(usize, i64), i64>,
    /// Of the live watchers, those whose ID the client chose.
    chosen: BTreeSet<(usize, i64)>,
    /// A watcher was opened at this revision, so that progress at it says nothing of that watcher:
    /// the server may have promised it before.
    opened_at: i64,
    right_is_routed: bool,
    right_selects: bool,
    /// How often what was asked got which kind of answer.
    pub tally: BTreeMap<String, usize>,
}

// === impl Side ===

impl Side {
    pub async fn start(kind: Kind) -> Result<Self> {
        let (server, client) = Server::start(kind).await?;
        Ok(Self {
            server,
            client,
            streams: BTreeMap::new(),
            chronicle: Chronicle::default(),
            identity: None,
            spoil_answer: None,
            spoil_message: None,
        })
    }

    /// Changes what the server says before it is looked at.
    pub fn spoil(&mut self, answer: Option<fn(&mut Answer)>, message: Option<Spoil>) {
        self.spoil_answer = answer;
        self.spoil_message = message;
    }

    pub async fn ask(&mut self, request: &Request) -> Result<Answer> {
        let mut answer = self.client.ask(request).await;
        if let Some(spoil) = self.spoil_answer {
            spoil(&mut answer);
        }
        if let Some(header) = answer.header() {
            let identity = (header.cluster_id, header.member_id);
            let known = *self.identity.get_or_insert(identity);
            ensure!(known == identity, "the server was {known:?} and is now {identity:?}");
        }
        if answer == Answer::Silence {
            bail!("no answer to {request:?}:\n{}", self.server.last_words());
        }
        Ok(answer)
    }

    /// Where its server is reached.
    pub fn url(&self) -> &str {
        self.server.url()
    }

    pub fn stream(&mut self, stream: usize) -> &mut Listener {
        let (client, spoil) = (&self.client, self.spoil_message);
        self.streams.entry(stream).or_insert_with(|| Listener::new(client.watch(), spoil))
    }

    async fn sync(&mut self, revision: i64) -> Result<()> {
        for (stream, listener) in &mut self.streams {
            // etcd does not answer for a stream without watchers.
            if listener.histories.iter().any(|history| !history.is_ended) {
                let synced = listener.sync(revision).await;
                synced.with_context(|| format!("on stream {stream}"))?;
            }
        }
        Ok(())
    }
}

// === impl Run ===

impl Run {
    pub async fn start(right: Kind) -> Result<Self> {
        let (left_side, right_side) =
            tokio::try_join!(Side::start(Kind::Etcd), Side::start(right))?;
        let mut run = Self {
            left: left_side,
            right: right_side,
            seen: Seen::new(),
            watchers: BTreeMap::new(),
            dead: BTreeSet::new(),
            starts: BTreeMap::new(),
            chosen: BTreeSet::new(),
            opened_at: 0,
            right_is_routed: right.is_routed(),
            right_selects: right.selects(),
            tally: BTreeMap::new(),
        };
        let everything = pb::WatchCreateRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            prev_kv: true,
            ..Default::default()
        };
        run.open(CHRONICLE_STREAM, &everything).await?;
        Ok(run)
    }

    /// The side under test.
    pub fn right(&mut self) -> &mut Side {
        &mut self.right
    }

    /// Takes one step on both sides. An error is a difference, or a server that fell silent.
    pub async fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Ask(request) => self.ask(request).await,
            Step::Selecting(request) => self.selecting(request).await,
            Step::GrantUnnamed { ttl } => self.grant_unnamed(*ttl).await,
            Step::Spanning(request) => self.spanning(request).await,
            Step::Open { stream, create } => self.open(*stream, create).await,
            Step::Cancel { stream, id } => self.cancel(*stream, *id).await,
            Step::Sync => self.sync().await,
        }
    }

    async fn ask(&mut self, request: &Request) -> Result<()> {
        if let Request::Compact(compaction) = request
            && self.seen.fatal_to_compact.contains(&compaction.revision)
        {
            return Ok(());
        }
        if let Request::Compact(compaction) = request
            && compaction.revision > self.seen.compacted
            && compaction.revision <= self.seen.revision
        {
            // etcd reads prev_kv and the past of a new watcher when it sends them, so a compaction
            // races with what is still on its way.
            self.sync().await?;
        }
        let (left, right) = self.ask_both(request).await?;
        self.seen.learn(request, &left);
        *self.tally.entry(kind_of(request, &left)).or_default() += 1;
        let (mut settled_left, mut settled_right) = (left, right);
        settle(request, &mut settled_left, &mut settled_right);
        same("the answers", &settled_left, &settled_right)
    }

    async fn ask_both(&mut self, request: &Request) -> Result<(Answer, Answer)> {
        let (left, right) = tokio::join!(self.left.ask(request), self.right.ask(request));
        Ok((left.context("on the left")?, right.context("on the right")?))
    }

    async fn selecting(&mut self, request: &pb::RangeRequest) -> Result<()> {
        if !self.right_selects {
            return Ok(());
        }
        let all = pb::RangeRequest {
            limit: 0,
            keys_only: false,
            count_only: false,
            label_selector: String::new(),
            ..request.clone()
        };
        let (all, request) = (Request::Range(all), Request::Range(request.clone()));
        let (left, right) = tokio::join!(self.left.ask(&all), self.right.ask(&request));
        let (mut left, mut right) = (left.context("on the left")?, right.context("on the right")?);
        self.seen.learn(&all, &left);
        if let (Request::Range(request), Answer::Range(answer)) = (&request, &mut left) {
            select(request, answer)?;
        }
        *self.tally.entry(format!("Selecting{}", kind_of(&request, &left))).or_default() += 1;
        settle(&request, &mut left, &mut right);
        same("what is selected", &left, &right)
    }

    async fn grant_unnamed(&mut self, ttl: i64) -> Result<()> {
        let request = Request::LeaseGrant(pb::LeaseGrantRequest { ttl, id: 0 });
        let (mut left, mut right) = self.ask_both(&request).await?;
        let ids = [unname(&mut left), unname(&mut right)];
        settle(&request, &mut left, &mut right);
        same("the grants", &left, &right)?;
        if let [Some(left_id), Some(right_id)] = ids {
            ensure!(
                left_id > 0 && right_id > 0,
                "IDs of the server's choice are positive: {ids:?}"
            );
            let revoke = |id| Request::LeaseRevoke(pb::LeaseRevokeRequest { id });
            let (mut left, mut right) =
                (self.left.ask(&revoke(left_id)).await?, self.right.ask(&revoke(right_id)).await?);
            settle(&request, &mut left, &mut right);
            same("the revocations", &left, &right)?;
        }
        Ok(())
    }

    /// Only a routed node is asked: etcd would do it. The node must name two routes.
    async fn spanning(&mut self, request: &Request) -> Result<()> {
        if !self.right_is_routed {
            return Ok(());
        }
        let answer = self.right.ask(request).await?;
        let Answer::Refused { code: Code::InvalidArgument, message } = &answer else {
            bail!("not refused with INVALID_ARGUMENT: {answer:?}");
        };
        // A route to a router is called by the names of all stores behind it.
        let named: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        let mut stores: Vec<&str> = named.iter().flat_map(|route| route.split('+')).collect();
        let is_known =
            |name: &&str| ROUTES.iter().any(|(route, _)| name == route) || *name == "main";
        stores.sort();
        ensure!(
            named.len() == 2 && stores.iter().all(is_known) && stores.is_sorted_by(|a, b| a < b),
            "not two routes are named: {message}"
        );
        Ok(())
    }

    // --- watches ---

    async fn open(&mut self, stream: usize, create: &pb::WatchCreateRequest) -> Result<()> {
        let start = create.start_revision;
        let dies = start > 0 && start < self.seen.compacted;
        let (left, right) = tokio::join!(
            self.left.stream(stream).create(create, dies),
            self.right.stream(stream).create(create, dies),
        );
        let anonymous = |replies: Vec<_>| replies.into_iter().map(anonymous).collect::<Vec<_>>();
        let left = anonymous(left.context("on the left")?);
        same("the replies to a watch", &left, &anonymous(right.context("on the right")?))?;
        let created = &left[0];
        if created.canceled {
            return Ok(());
        }
        let id = (stream, created.watch_id);
        self.opened_at = self.seen.revision;
        if create.watch_id != 0 {
            self.chosen.insert(id);
        }
        self.watchers.entry(stream).or_default().push(Watcher {
            compared: [0; 2],
            compared_revision: 0,
            compacted: self.seen.compacted,
        });
        self.seen.watchers.entry(stream).or_default().insert(created.watch_id);
        if dies {
            self.dead.insert(id);
        } else {
            self.starts.insert(id, start);
        }
        Ok(())
    }

    async fn cancel(&mut self, stream: usize, id: i64) -> Result<()> {
        let is_known = self.seen.watchers.get(&stream).is_some_and(|live| live.contains(&id));
        if !is_known {
            let (left, right) = (self.left.stream(stream), self.right.stream(stream));
            left.cancel_unknown(id).await?;
            return right.cancel_unknown(id).await;
        }
        // etcd gives a second watcher of the same ID what was on its way to the first one, so where
        // an ID may be used again nothing must be. IDs that etcd chose are not used again.
        if self.chosen.contains(&(stream, id)) {
            self.sync().await?;
        }
        // To bring all watchers up to date ends those that wait for a far revision.
        if self.seen.watchers[&stream].contains(&id) {
            self.cancel_known(stream, id).await?;
        }
        Ok(())
    }

    async fn cancel_known(&mut self, stream: usize, id: i64) -> Result<()> {
        let (left, right) = tokio::join!(
            self.left.stream(stream).cancel(id),
            self.right.stream(stream).cancel(id),
        );
        let left = anonymous(left.context("on the left")?);
        let right = anonymous(right.context("on the right")?);
        self.dead.remove(&(stream, id));
        self.starts.remove(&(stream, id));
        self.chosen.remove(&(stream, id));
        self.seen.watchers.entry(stream).or_default().remove(&id);
        same("the replies to a cancel", &left, &right)
    }

    /// Waits until both sides have told every watcher everything, then compares the histories.
    async fn sync(&mut self) -> Result<()> {
        for (stream, id) in mem::take(&mut self.dead) {
            self.cancel_known(stream, id).await?;
        }
        self.reach_all_starts().await?;
        let revision = self.seen.revision;
        let (left, right) = tokio::join!(self.left.sync(revision), self.right.sync(revision));
        left.context("on the left")?;
        right.context("on the right")?;
        self.write_chronicles()?;
        self.compare_histories()
    }

    /// etcd promises no progress while a watcher waits for a future revision. So those that wait
    /// for long are cancelled, and for the others the revision is moved on, also beyond what may
    /// have been promised before the last watcher was opened.
    async fn reach_all_starts(&mut self) -> Result<()> {
        let far: Vec<_> =
            self.starts.iter().filter(|(_, start)| **start >= FAR).map(|(id, _)| *id).collect();
        for (stream, id) in far {
            self.cancel_known(stream, id).await?;
        }
        let last = self.starts.values().copied().max().unwrap_or(0).max(self.opened_at + 1);
        while self.seen.revision < last {
            let put = pb::PutRequest { key: MOVE_ON_KEY.into(), ..Default::default() };
            let request = Request::Put(put);
            let (mut left, mut right) = self.ask_both(&request).await?;
            self.seen.revision = revision_of(&left)?;
            settle(&request, &mut left, &mut right);
            same("the puts that move on", &left, &right)?;
        }
        Ok(())
    }

    fn write_chronicles(&mut self) -> Result<()> {
        for side in [&mut self.left, &mut self.right] {
            let all = &side.streams[&CHRONICLE_STREAM].histories[0];
            side.chronicle.extend(&all.events)?;
        }
        Ok(())
    }

    fn compare_histories(&mut self) -> Result<()> {
        for (stream, watchers) in &mut self.watchers {
            let sides = [&self.left, &self.right];
            let listeners = sides.map(|side| &side.streams[stream]);
            let counts = listeners.map(|listener| listener.histories.len());
            ensure!(counts == [watchers.len(); 2], "{counts:?} watchers on stream {stream}");
            for (place, watcher) in watchers.iter_mut().enumerate() {
                let histories = listeners.map(|listener| &listener.histories[place]);
                if histories[0].is_ended && watcher.is_compared_to_the_end(&histories) {
                    continue;
                }
                let name =
                    || format!("watcher {place} of stream {stream}, {:?}", histories[0].create);
                watcher.compare(&histories).with_context(name)?;
                if histories[0].is_ended {
                    continue;
                }
                for (side, history) in sides.iter().zip(histories) {
                    let from = watcher.compared_revision + 1;
                    let checked = side.chronicle.check(history, from, watcher.compacted);
                    checked.with_context(name)?;
                }
                watcher.compared_revision = self.seen.revision;
            }
        }
        Ok(())
    }

    /// The ends of what both servers wrote, for a report.
    pub fn last_words(&self) -> String {
        let [left, right] = [&self.left, &self.right].map(|side| side.server.last_words());
        format!("left:\n{left}\nright:\n{right}")
    }

    /// Both sides at once, for tests that wait for something without asking.
    pub fn sides(&mut self) -> [&mut Side; 2] {
        [&mut self.left, &mut self.right]
    }
}

// === impl Watcher ===

impl Watcher {
    fn is_compared_to_the_end(&self, histories: &[&crate::watch::History; 2]) -> bool {
        [0, 1].iter().all(|side| self.compared[*side] == histories[*side].events.len())
    }

    /// Equal event for event; after a cancel one may have got further than the other, and etcd has
    /// forgotten that previous values were asked for.
    fn compare(&mut self, histories: &[&crate::watch::History; 2]) -> Result<()> {
        let fresh = |side: usize| &histories[side].events[self.compared[side]..];
        let [left, mut right] = [0, 1].map(|side| fresh(side).to_vec());
        for (left, right) in left.iter().zip(&mut right) {
            if histories[0].is_ended && left.prev_kv.is_none() {
                right.prev_kv = None;
            }
            let right = &*right;
            same("the events", left, right)?;
        }
        self.compared = histories.map(|history| history.events.len());
        if !histories[0].is_ended {
            same("the numbers of events", &left.len(), &right.len())?;
        }
        Ok(())
    }
}

/// Makes of an answer with all keys of a range the one with what is selected.
fn select(request: &pb::RangeRequest, answer: &mut pb::RangeResponse) -> Result<()> {
    let selector = Selector::parse(&request.label_selector, "")?.context("it selects")?;
    answer.kvs.retain(|kv| selector.may_match(&kv.value));
    answer.count = i64::try_from(answer.kvs.len())?;
    let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0);
    answer.more = !request.count_only && limit.is_some_and(|limit| answer.kvs.len() > limit);
    answer.kvs.truncate(if request.count_only { 0 } else { limit.unwrap_or(usize::MAX) });
    if request.keys_only {
        for kv in &mut answer.kvs {
            // Without values etcd answers from its index of keys, which has no leases.
            kv.value.clear();
            kv.lease = 0;
        }
    }
    Ok(())
}

/// The name of the call and, where it was refused, the words.
fn kind_of(request: &Request, answer: &Answer) -> String {
    let request = format!("{request:?}");
    let name = request.split('(').next().unwrap_or_default().to_owned();
    match answer {
        Answer::Refused { message, .. } => format!("{name}: {message}"),
        _ => name,
    }
}

fn unname(answer: &mut Answer) -> Option<i64> {
    let Answer::LeaseGrant(grant) = answer else {
        return None;
    };
    Some(mem::replace(&mut grant.id, 1))
}

fn same<T: PartialEq + Debug>(what: &str, left: &T, right: &T) -> Result<()> {
    if left == right {
        return Ok(());
    }
    bail!("{what} differ\n  left:  {}\n  right: {}", short(left), short(right))
}

/// Long values say little; the ends of the texts are cut.
fn short(value: &impl Debug) -> String {
    const TEXT_CHARS_MAX: usize = 6000;
    let text = format!("{value:?}");
    let cut: String = text.chars().take(TEXT_CHARS_MAX).collect();
    if cut.len() < text.len() { format!("{cut}… ({} bytes)", text.len()) } else { cut }
}
