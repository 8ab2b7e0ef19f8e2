//! Each kind of violation, planted into a history that is right, must be found.

use std::time::Duration;

use super::{Log, violations};
use crate::{
    history::{Change, Generation, History, Keys, Life, Outcome, Read, Span, Told, Watcher, Write},
    support::changes::{Event, Row},
};

/// A history in which all is right, and the events of its two stores.
struct Story {
    history: History,
    stores: [Vec<Event>; 2],
}

fn span(asked: u64, answered: u64) -> Span {
    Span { asked: Duration::from_secs(asked), answered: Duration::from_secs(answered) }
}

fn row(value: &str, create: i64, modified: i64, version: i64) -> Row {
    Row { value: value.to_owned(), create, modified, version }
}

fn change(key: &str, before: i64, value: Option<&str>) -> Change {
    Change { key: key.to_owned(), before, value: value.map(str::to_owned) }
}

fn event(revision: i64, key: &str, now: Option<Row>, before: Option<Row>) -> Event {
    Event { revision, key: key.to_owned(), now, before }
}

/// `/a` is put at 10, `/b` and `/c` at 20 in one transaction, `/a` at 30; `/c` is deleted with a put of
/// `/b` at 40. One read follows each, at the other of two nodes, and node 0 has watchers.
fn story() -> Story {
    let (a1, a2) = (row("a1", 10, 10, 1), row("a2", 10, 30, 2));
    let (b1, b2, c1) = (row("b1", 20, 20, 1), row("b2", 20, 40, 2), row("c1", 20, 20, 1));
    let first = vec![
        event(10, "/a", Some(a1.clone()), None),
        event(30, "/a", Some(a2.clone()), Some(a1.clone())),
    ];
    let second = vec![
        event(20, "/b", Some(b1.clone()), None),
        event(20, "/c", Some(c1.clone()), None),
        event(40, "/b", Some(b2.clone()), Some(b1.clone())),
        event(40, "/c", None, Some(c1.clone())),
    ];
    let write = |at, changes, revision| Write {
        node: 0,
        span: span(at, at + 1),
        changes,
        outcome: Outcome::Applied(revision),
    };
    let writes = vec![
        write(0, vec![change("/a", 0, Some("a1"))], 10),
        write(10, vec![change("/b", 0, Some("b1")), change("/c", 0, Some("c1"))], 20),
        write(20, vec![change("/a", 10, Some("a2"))], 30),
        write(30, vec![change("/b", 20, Some("b2")), change("/c", 20, None)], 40),
    ];
    let all = Keys::below("/");
    let read = |at, revision, rows: &[(&str, &Row)]| Read {
        node: 1,
        span: span(at, at + 1),
        keys: Keys::below("/"),
        revision,
        rows: rows.iter().map(|(key, row)| ((*key).to_owned(), (*row).clone())).collect(),
    };
    let reads = vec![
        read(5, 10, &[("/a", &a1)]),
        read(15, 25, &[("/a", &a1), ("/b", &b1), ("/c", &c1)]),
        read(35, 40, &[("/a", &a2), ("/b", &b2)]),
    ];
    let told = |revision, events: &[&Event]| Told {
        revision,
        events: events.iter().map(|event| (*event).clone()).collect(),
    };
    let lives = vec![
        Life {
            start: 6,
            created: 5,
            told: vec![told(10, &[&first[0]]), told(20, &[&second[0], &second[1]]), told(25, &[])],
        },
        Life {
            start: 26,
            created: 30,
            told: vec![told(40, &[&first[1], &second[2], &second[3]]), told(45, &[])],
        },
    ];
    let generations = vec![Generation { listed: 5, lives, is_compacted: false }];
    let watchers = vec![Watcher { node: 0, keys: all, is_of_own_stores: false, generations }];
    Story { history: History { writes, reads, watchers }, stores: [first, second] }
}

// === impl Story ===

impl Story {
    fn found(self) -> Vec<String> {
        let mut log = Log::default();
        for store in self.stores {
            log.add_store(store);
        }
        violations(&self.history, &log)
    }

    fn life(&mut self, at: usize) -> &mut Life {
        &mut self.history.watchers[0].generations[0].lives[at]
    }
}

/// Plants something, which must be found and said in these words.
fn planted(words: &str, plant: impl FnOnce(&mut Story)) {
    let mut story = story();
    plant(&mut story);
    let found = story.found();
    assert!(found.iter().any(|violation| violation.contains(words)), "{words}: {found:#?}");
}

#[test]
fn a_history_without_violations_has_none() {
    assert_eq!(story().found(), Vec::<String>::new());
}

#[test]
fn a_revision_of_two_commits_is_found() {
    planted("two stores have revision 20", |story| {
        let twice = row("a1", 20, 20, 1);
        story.stores[0][0] = event(20, "/a", Some(twice), None);
    });
}

#[test]
fn a_lost_write_is_found() {
    planted("lost, though it was acknowledged", |story| drop(story.stores[0].pop()));
}

#[test]
fn half_of_a_transaction_is_found() {
    planted("is [Event", |story| drop(story.stores[1].pop()));
}

#[test]
fn what_nobody_wrote_is_found() {
    planted("nobody wrote", |story| {
        story.stores[0].push(event(50, "/d", Some(row("d1", 50, 50, 1)), None));
    });
}

#[test]
fn a_write_that_is_applied_twice_is_found() {
    planted("applied twice", |story| {
        let (before, again) = (row("a2", 10, 30, 2), row("a2", 10, 50, 3));
        story.stores[0].push(event(50, "/a", Some(again), Some(before)));
    });
}

#[test]
fn another_revision_than_was_acknowledged_is_found() {
    planted("its client was told", |story| {
        story.history.writes[2].outcome = Outcome::Applied(29);
    });
}

#[test]
fn a_write_that_was_refused_and_applied_is_found() {
    planted("its client was told", |story| story.history.writes[2].outcome = Outcome::Failed);
}

#[test]
fn an_unknown_write_may_be_there_or_not() {
    let mut there = story();
    there.history.writes[2].outcome = Outcome::Unknown;
    assert_eq!(there.found(), Vec::<String>::new());
    let mut lost = story();
    let changes = vec![change("/a", 30, Some("a3"))];
    let unknown = Write { node: 0, span: span(40, 50), changes, outcome: Outcome::Unknown };
    lost.history.writes.push(unknown);
    assert_eq!(lost.found(), Vec::<String>::new());
}

#[test]
fn a_guard_that_was_judged_wrongly_is_found() {
    planted("its guards held", |story| {
        let changes = vec![change("/a", 30, Some("a3"))];
        let refused = Write { node: 0, span: span(40, 50), changes, outcome: Outcome::Refused(40) };
        story.history.writes.push(refused);
    });
    planted("is [Event", |story| story.history.writes[2].changes[0].before = 9);
}

#[test]
fn a_list_with_a_part_of_a_transaction_is_found() {
    planted("no snapshot", |story| drop(story.history.reads[1].rows.pop()));
}

#[test]
fn a_list_of_two_moments_is_found() {
    planted("no snapshot", |story| {
        story.history.reads[1].rows[0].1 = row("a2", 10, 30, 2);
    });
}

#[test]
fn a_stale_read_is_found() {
    planted("stale: /a", |story| {
        // As of 10 it is right, but 20 and 30 were acknowledged before it was asked for.
        let read = story.history.reads[0].clone();
        story.history.reads.push(Read { node: 2, span: span(25, 26), ..read });
    });
    planted("stale: /a", |story| {
        let rows = story.history.reads[0].rows.clone();
        let keys = Keys::one("/a");
        let read = Read { node: 2, span: span(25, 26), keys, revision: 10, rows };
        story.history.reads.push(read);
    });
}

#[test]
fn a_read_from_the_future_is_found() {
    planted("before", |story| story.history.reads[2].span = span(28, 29));
}

#[test]
fn a_node_that_goes_back_is_found() {
    planted("node 1 went back from 40", |story| {
        let read =
            Read { keys: Keys::one("/x"), rows: Vec::new(), ..story.history.reads[0].clone() };
        story.history.reads.push(Read { span: span(50, 51), revision: 35, ..read });
    });
}

#[test]
fn a_gap_is_found() {
    planted("a gap", |story| drop(story.life(0).told.remove(1)));
    // What is lacking behind the last progress is no gap.
    let mut behind = story();
    behind.life(1).told.clear();
    assert_eq!(behind.found(), Vec::<String>::new());
}

#[test]
fn a_gap_is_no_violation_where_the_watcher_started_afresh() {
    let mut story = story();
    story.life(0).told.remove(1);
    story.history.watchers[0].generations[0].is_compacted = true;
    let afresh = Generation { listed: 45, lives: Vec::new(), is_compacted: false };
    story.history.watchers[0].generations.push(afresh);
    assert_eq!(story.found(), Vec::<String>::new());
}

#[test]
fn an_end_that_nothing_asks_for_is_found() {
    planted("lacks nothing", |story| {
        story.history.watchers[0].is_of_own_stores = true;
        story.history.watchers[0].generations[0].is_compacted = true;
    });
    planted("never began again", |story| {
        story.history.watchers[0].generations[0].is_compacted = true;
    });
}

#[test]
fn disorder_is_found() {
    planted("and then of 10", |story| story.life(0).told.swap(0, 1));
    planted("and then of 30", |story| story.life(1).told[0].events.rotate_left(1));
}

#[test]
fn a_duplicate_is_found() {
    planted("told twice of 10", |story| {
        let first = story.life(0).told[0].clone();
        story.life(0).told.insert(1, first);
    });
}

#[test]
fn a_revision_in_two_responses_is_found() {
    planted("which is", |story| {
        let mut rest = story.life(0).told[1].clone();
        rest.events.remove(0);
        story.life(0).told[1].events.pop();
        story.life(0).told.insert(2, rest);
    });
}

#[test]
fn progress_that_overtakes_an_event_is_found() {
    planted("told all up to 15, and then of 10", |story| {
        story.life(0).told.insert(0, Told { revision: 15, events: Vec::new() });
    });
}

#[test]
fn progress_that_goes_back_is_found() {
    planted("progress went back", |story| {
        story.life(1).told.push(Told { revision: 41, events: Vec::new() });
    });
}

#[test]
fn a_watch_that_does_not_begin_where_it_was_asked_to_is_found() {
    planted("it resumed at 27", |story| story.life(1).start = 27);
}

#[test]
fn an_event_with_the_wrong_past_is_found() {
    planted("told of 30 as", |story| story.life(1).told[0].events[0].before = None);
    planted("told of 10 as", |story| {
        let created = story.life(0).told[0].events[0].now.as_mut();
        created.expect("it is a put").version = 2;
    });
}

#[test]
fn an_event_of_other_keys_is_found() {
    planted("told of 20 as", |story| story.history.watchers[0].keys = Keys::below("/b/"));
}

#[test]
fn a_log_that_does_not_follow_is_found() {
    planted("came after", |story| story.stores[0][1].before = None);
    planted("do not follow", |story| {
        let put = story.stores[0][1].now.as_mut();
        put.expect("it is a put").version = 7;
    });
}
