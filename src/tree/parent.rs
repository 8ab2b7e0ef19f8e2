//! Whom a node answers as its parent.
//!
//! A node has one parent: who assigned it its lanes. The parent shows a credential with each request that
//! the two agreed upon when it joined, so knowing the parent's id helps nobody. Who may join is the
//! operator's to say:
//!
//! | said | who may join |
//! | --- | --- |
//! | `--tree-secret-file` | who shows the secret in it |
//! | `--parent NAME` or `NAME:ID` | a node of that name, or exactly that node; also in place of another |
//! | nothing, all addresses are loopback ones | the first that asks |
//! | nothing, else | nobody |
//!
//! All of this is looked at before a request moves the clock, takes memory or changes anything.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::watch, time::Instant};

use super::lanes::Lanes;
use crate::wire::Member;

/// What an operator says of a node's place in a tree.
#[derive(Clone, Debug, Default)]
pub struct TreeOptions {
    /// The parent that may join.
    pub parent: Option<ParentSpec>,
    /// A file with the secret that parents show, and that this node shows its children. Read at each
    /// joining, so that it can be replaced while the node runs.
    pub secret_file: Option<PathBuf>,
    /// Whether anybody may join who asks first, since only this machine can.
    pub is_local: bool,
}

/// A parent, as an operator names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentSpec {
    /// What it is called.
    pub name: String,
    /// Its id, where exactly one node is meant.
    pub id: Option<u64>,
}

/// Why a node is not answered as a parent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotParent {
    /// Nothing was said of who may join.
    #[error(
        "{child} lets nobody join that its operator did not name: start it with --parent {} (or \
         {}:{:x}), or both nodes with --tree-secret-file", caller.name, caller.name, caller.id
    )]
    Unnamed {
        /// The node that is asked.
        child: Member,
        /// Who asks.
        caller: Member,
    },
    /// Another one was named.
    #[error("{child} was started with --parent {spec}, and {caller} is another node")]
    Other {
        /// The node that is asked.
        child: Member,
        /// Who asks.
        caller: Member,
        /// Who was named.
        spec: String,
    },
    /// The secret is missing or wrong.
    #[error(
        "{caller} does not show the secret of {child}; give both nodes the same --tree-secret-file"
    )]
    Secret {
        /// The node that is asked.
        child: Member,
        /// Who asks.
        caller: Member,
    },
    /// The secret's file can't be read.
    #[error("the secret of {child} can't be read: {reason}")]
    Unreadable {
        /// The node that is asked.
        child: Member,
        /// Why.
        reason: String,
    },
    /// It has a parent.
    #[error(
        "{child} has the parent {parent}, and a node has one: take its route out of one of the two, or \
         start {child} with --parent {}:{:x} to give it to {caller}", caller.name, caller.id
    )]
    Taken {
        /// The node that is asked.
        child: Member,
        /// Its parent.
        parent: Member,
        /// Who asks.
        caller: Member,
    },
    /// It says to be the parent, and does not show what was agreed upon.
    #[error(
        "{caller} does not show what {child} agreed upon with it: its default store was replaced, or it is \
         another node; start {child} with --parent {}:{:x}, or both with --tree-secret-file",
        caller.name, caller.id
    )]
    Credential {
        /// The node that is asked.
        child: Member,
        /// Who asks.
        caller: Member,
    },
    /// A copy of the parent's data runs beside it.
    #[error(
        "another process is attached to {child} as {caller}: one has a copy of the other's data, and both \
         would count alike; give one of them an empty default store"
    )]
    Copied {
        /// The node that is asked.
        child: Member,
        /// Who both say to be.
        caller: Member,
    },
    /// It is no parent at all.
    #[error("{child} answers only the node that assigned it its lanes")]
    Stranger {
        /// The node that is asked.
        child: Member,
    },
}

/// Who asks, as it says itself.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The last node that the request came through; `None` for a client.
    pub member: Option<Member>,
    /// Its process.
    pub process: u64,
    /// What it shows.
    pub credential: Bytes,
    /// The secret that it shows, where it joins.
    pub secret: Bytes,
}

/// The process that is attached as the parent.
///
/// A copy of the parent's data says to be the parent too, and so does the parent itself when it is started
/// anew while its old connections are not known to be dead. They are told apart by asking: whoever has a
/// log open is challenged in it, and answers with a request while it lives.
#[derive(Debug)]
pub struct ParentGuard {
    attached: Arc<Mutex<Attached>>,
    challenges: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Attached {
    /// The process whose logs are open, and how many.
    process: u64,
    logs: usize,
    /// Counts the processes that were attached; a log of one before counts no more.
    generation: u64,
    /// When a request of this process came last.
    heard: Option<Instant>,
    /// When it was last asked whether it lives.
    challenged: Option<Instant>,
}

/// A log that a parent's process has open, until it is dropped.
#[derive(Debug)]
pub struct OpenLog {
    attached: Arc<Mutex<Attached>>,
    generation: u64,
}

/// How long a process that is attached may take to answer a challenge.
const ANSWER_WITHIN: Duration = Duration::from_millis(2_500);

/// How long an answer holds.
const CHALLENGE_AGAIN_AFTER: Duration = Duration::from_secs(10);

// === impl ParentSpec ===

impl std::str::FromStr for ParentSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, id) = match text.rsplit_once(':') {
            None => (text, None),
            Some((name, id)) => match u64::from_str_radix(id, 16) {
                Ok(id) => (name, Some(id)),
                Err(_) => {
                    return Err("expected NAME or NAME:ID, as `pleach tree` prints them".to_owned());
                }
            },
        };
        if name.is_empty() {
            return Err("the name is missing: expected NAME or NAME:ID".to_owned());
        }
        Ok(Self { name: name.to_owned(), id })
    }
}

impl std::fmt::Display for ParentSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        self.id.map_or(Ok(()), |id| write!(f, ":{id:x}"))
    }
}

impl ParentSpec {
    fn names(&self, member: &Member) -> bool {
        self.name == member.name && self.id.is_none_or(|id| id == member.id)
    }
}

// === impl TreeOptions ===

impl TreeOptions {
    /// The secret in the file, without the end of its line; `None` where no file was named.
    ///
    /// # Errors
    /// Where it can't be read or is empty.
    pub fn secret(&self) -> Result<Option<Bytes>, String> {
        let Some(path) = &self.secret_file else { return Ok(None) };
        let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let secret = text.trim_ascii_end();
        if secret.is_empty() {
            return Err(format!("{} is empty", path.display()));
        }
        Ok(Some(Bytes::copy_from_slice(secret)))
    }

    /// Whether `caller` may become, or be again, the parent of `me`. `is_first` says that no parent has
    /// joined since this process started: then who is named may come without the credential, which it lost
    /// with its data; later nobody may.
    ///
    /// # Errors
    /// Why it may not.
    pub fn admit(
        &self,
        me: &Member,
        lanes: &Lanes,
        caller: &Caller,
        is_first: bool,
    ) -> Result<(), NotParent> {
        let child = || me.clone();
        let Some(member) = &caller.member else {
            return Err(NotParent::Stranger { child: child() });
        };
        let held = lanes.held.as_ref().filter(|held| held.giver.is_some());
        let parent = held.and_then(|held| held.giver.as_ref());
        let is_parent = parent.is_some_and(|parent| parent.id == member.id);
        let credential = held.map(|held| &held.credential).filter(|it| !it.is_empty());
        if is_parent && credential.is_some_and(|known| is_same(known, &caller.credential)) {
            return Ok(());
        }
        let is_named = self.parent.as_ref().is_some_and(|spec| spec.names(member));
        // Of another node of the parent's name its id must say that it is meant.
        let is_meant = is_named
            && parent.is_none_or(|parent| {
                parent.id == member.id
                    || parent.name != member.name
                    || self.parent.as_ref().is_some_and(|spec| spec.id.is_some())
            });
        if let Some(parent) = parent.filter(|_| !is_parent && !is_meant) {
            let (child, parent, caller) = (child(), parent.clone(), member.clone());
            return Err(NotParent::Taken { child, parent, caller });
        }
        let secret = self.secret();
        let secret = secret.map_err(|reason| NotParent::Unreadable { child: child(), reason })?;
        let caller_is = member.clone();
        match (secret, &self.parent) {
            (Some(secret), _) if is_same(&secret, &caller.secret) => Ok(()),
            (Some(_), _) => Err(NotParent::Secret { child: child(), caller: caller_is }),
            (None, Some(_)) if is_meant && (is_first || !is_parent || credential.is_none()) => {
                Ok(())
            }
            (None, Some(spec)) if !is_named => {
                let spec = spec.to_string();
                Err(NotParent::Other { child: child(), caller: caller_is, spec })
            }
            (None, _) if credential.is_some() => {
                Err(NotParent::Credential { child: child(), caller: caller_is })
            }
            (None, _) if self.is_local => Ok(()),
            (None, _) => Err(NotParent::Unnamed { child: child(), caller: caller_is }),
        }
    }
}

/// Whether two are the same, in a time that does not say where they differ.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

// === impl ParentGuard ===

impl Default for ParentGuard {
    fn default() -> Self {
        Self { attached: Arc::default(), challenges: watch::Sender::new(0) }
    }
}

impl ParentGuard {
    fn lock(&self) -> MutexGuard<'_, Attached> {
        // Nothing panics while it changes what is behind the lock.
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the challenges: each is to be told in every log that is open.
    pub fn challenges(&self) -> watch::Receiver<u64> {
        self.challenges.subscribe()
    }

    /// Whether a request is the parent's.
    ///
    /// # Errors
    /// Why it is not.
    pub fn check(&self, me: &Member, lanes: &Lanes, caller: &Caller) -> Result<(), NotParent> {
        let stranger = || NotParent::Stranger { child: me.clone() };
        let member = caller.member.as_ref().ok_or_else(stranger)?;
        let held = lanes.held.as_ref().ok_or_else(stranger)?;
        if held.giver.as_ref().is_none_or(|giver| giver.id != member.id) {
            return Err(stranger());
        }
        if held.credential.is_empty() || !is_same(&held.credential, &caller.credential) {
            return Err(NotParent::Credential { child: me.clone(), caller: member.clone() });
        }
        self.check_process(me, member, caller.process)
    }

    /// Whether no other process of the caller's identity is attached and lives. One that has a log open is
    /// challenged, and counts until the time to answer is over.
    ///
    /// # Errors
    /// `Copied` where one is.
    pub fn check_process(
        &self,
        me: &Member,
        member: &Member,
        process: u64,
    ) -> Result<(), NotParent> {
        self.check_attached(&mut self.lock(), me, member, process)
    }

    fn check_attached(
        &self,
        attached: &mut Attached,
        me: &Member,
        member: &Member,
        process: u64,
    ) -> Result<(), NotParent> {
        let now = Instant::now();
        if attached.logs == 0 || attached.process == process {
            if attached.process == process {
                attached.heard = Some(now);
            }
            return Ok(());
        }
        let has_answered = attached.heard > attached.challenged;
        let since = attached.challenged.map(|challenged| now - challenged);
        match since {
            Some(since) if !has_answered && since >= ANSWER_WITHIN => {
                let generation = attached.generation + 1;
                *attached = Attached { generation, ..Attached::default() };
                return Ok(());
            }
            Some(since) if !has_answered || since < CHALLENGE_AGAIN_AFTER => {}
            _ => {
                attached.challenged = Some(now);
                self.challenges.send_modify(|count| *count += 1);
            }
        }
        Err(NotParent::Copied { child: me.clone(), caller: member.clone() })
    }

    /// Notes that the parent's process has a log open. As long as it has and lives, no other process is the
    /// parent.
    ///
    /// # Errors
    /// `Copied` where another one was faster.
    pub fn open_log(
        &self,
        me: &Member,
        member: &Member,
        process: u64,
    ) -> Result<OpenLog, NotParent> {
        let mut attached = self.lock();
        self.check_attached(&mut attached, me, member, process)?;
        attached.process = process;
        attached.heard = Some(Instant::now());
        attached.logs += 1;
        Ok(OpenLog { attached: self.attached.clone(), generation: attached.generation })
    }
}

impl Drop for OpenLog {
    fn drop(&mut self) {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        if attached.generation == self.generation {
            attached.logs -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::LaneBlock, tree::lanes::HeldLanes};

    fn member(id: u64, name: &str) -> Member {
        Member { id, name: name.to_owned() }
    }

    fn me() -> Member {
        member(1, "child")
    }

    fn caller(id: u64, name: &str, credential: &'static str, secret: &'static str) -> Caller {
        Caller {
            member: Some(member(id, name)),
            process: 5,
            credential: Bytes::from(credential),
            secret: Bytes::from(secret),
        }
    }

    fn held_of(id: u64, name: &str, credential: &'static str) -> Lanes {
        let held = HeldLanes {
            blocks: vec![LaneBlock::ALL],
            giver: Some(member(id, name)),
            credential: Bytes::from(credential),
        };
        Lanes { held: Some(held), ..Lanes::default() }
    }

    fn named(spec: &str) -> TreeOptions {
        let parent = Some(spec.parse().expect("a good name"));
        TreeOptions { parent, ..TreeOptions::default() }
    }

    #[test]
    fn who_may_join_is_as_the_operator_says() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "hush\n").expect("it can be written");
        let secret =
            TreeOptions { secret_file: Some(file.path().to_owned()), ..TreeOptions::default() };
        let local = TreeOptions { is_local: true, ..TreeOptions::default() };
        let (none, alone) = (TreeOptions::default(), Lanes::default());
        let root = caller(7, "root", "", "");
        let knows = caller(7, "root", "", "hush");
        let agreed = caller(7, "root", "agreed", "");
        let other = caller(8, "root", "agreed", "");
        let of_root = held_of(7, "root", "agreed");
        let before = held_of(7, "root", "");
        let cases: [(&str, &TreeOptions, &Lanes, &Caller, bool); 22] = [
            ("nothing was said", &none, &alone, &root, false),
            ("only this machine can", &local, &alone, &root, true),
            ("by name", &named("root"), &alone, &root, true),
            ("by id", &named("root:7"), &alone, &root, true),
            ("by another id", &named("root:8"), &alone, &root, false),
            ("by another name", &named("roots"), &alone, &root, false),
            ("the secret is shown", &secret, &alone, &knows, true),
            ("the secret is not shown", &secret, &alone, &root, false),
            ("it is the parent", &none, &of_root, &agreed, true),
            ("it says to be the parent", &none, &of_root, &root, false),
            ("it says to be the parent here", &local, &of_root, &root, false),
            ("it says to be the one named", &named("root"), &of_root, &root, true),
            ("it knows the secret", &secret, &of_root, &knows, true),
            ("another of the parent's name", &named("root"), &of_root, &other, false),
            ("another that is meant", &named("root:8"), &of_root, &other, true),
            ("another that is not", &none, &of_root, &other, false),
            ("another, on this machine", &local, &of_root, &other, false),
            (
                "another that knows the secret",
                &secret,
                &of_root,
                &caller(8, "b", "", "hush"),
                false,
            ),
            ("another name", &named("b"), &of_root, &caller(8, "b", "", ""), true),
            ("a parent of before, here", &local, &before, &root, true),
            ("a parent of before, from elsewhere", &none, &before, &root, false),
            ("a client", &local, &alone, &Caller { member: None, ..root.clone() }, false),
        ];
        for (what, options, lanes, caller, may) in cases {
            let admitted = options.admit(&me(), lanes, caller, true);
            assert_eq!(admitted.is_ok(), may, "{what}: {admitted:?}");
        }
        let again = named("root").admit(&me(), &of_root, &root, false);
        again.expect_err("the parent has joined, and shows what was agreed upon");
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_does_not_answer_makes_room_and_one_that_does_stays() {
        let guard = ParentGuard::default();
        let root = member(7, "root");
        let mut challenges = guard.challenges();
        let old = guard.open_log(&me(), &root, 5).expect("nobody else has one");
        guard.check_process(&me(), &root, 6).expect_err("it may be a copy");
        assert!(challenges.has_changed().expect("the guard is here"));
        challenges.mark_unchanged();
        tokio::time::advance(ANSWER_WITHIN / 2).await;
        guard.check_process(&me(), &root, 5).expect("it answers");
        tokio::time::advance(ANSWER_WITHIN).await;
        guard.check_process(&me(), &root, 6).expect_err("the other lives");
        assert!(!challenges.has_changed().expect("the guard is here"), "its answer holds a while");
        tokio::time::advance(CHALLENGE_AGAIN_AFTER).await;
        guard.check_process(&me(), &root, 6).expect_err("it is asked again");
        assert!(challenges.has_changed().expect("the guard is here"));
        tokio::time::advance(ANSWER_WITHIN).await;
        let new = guard.open_log(&me(), &root, 6).expect("the other is dead");
        drop(old);
        guard.check_process(&me(), &root, 5).expect_err("its log is of before");
        drop(new);
        guard.check_process(&me(), &root, 5).expect("nobody is attached");
    }

    #[tokio::test]
    async fn a_request_is_the_parents_by_what_it_shows_and_its_process() {
        let guard = ParentGuard::default();
        let lanes = held_of(7, "root", "agreed");
        let agreed = caller(7, "root", "agreed", "");
        guard.check(&me(), &lanes, &agreed).expect("it is the parent");
        let others = [
            caller(7, "root", "", ""),
            caller(7, "root", "agreeD", ""),
            caller(8, "root", "agreed", ""),
            Caller { member: None, ..agreed.clone() },
        ];
        for other in &others {
            guard.check(&me(), &lanes, other).expect_err("it is not");
        }
        guard.check(&me(), &Lanes::default(), &agreed).expect_err("there is no parent");
        guard
            .check(&me(), &held_of(7, "root", ""), &caller(7, "root", "", ""))
            .expect_err("nothing is known");
        let root = member(7, "root");
        let log = guard.open_log(&me(), &root, 5).expect("nobody else has one");
        let copy = Caller { process: 6, ..agreed.clone() };
        let refused = guard.check(&me(), &lanes, &copy).expect_err("it is a copy").to_string();
        assert!(refused.contains("copy"), "{refused}");
        guard.open_log(&me(), &root, 6).expect_err("it is a copy");
        guard.check(&me(), &lanes, &agreed).expect("it is the same process");
        drop(log);
        guard.check(&me(), &lanes, &copy).expect("the other has gone");
    }

    #[test]
    fn a_parent_is_named_as_people_read_it() {
        let parsed = |text: &str| text.parse::<ParentSpec>().map(|spec| spec.to_string());
        assert_eq!(parsed("root"), Ok("root".to_owned()));
        assert_eq!(parsed("root:7F"), Ok("root:7f".to_owned()));
        assert!(parsed("root:xyz").is_err() && parsed(":7").is_err() && parsed("").is_err());
    }
}
