//! Trouble: what is wrong with a route, the worst last.

use super::figures;
use crate::proto::tree as pb;

/// What is wrong with a route itself, in the order of how bad it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    /// Nothing.
    #[default]
    None,
    /// Keys lie there that route elsewhere.
    Misrouted,
    /// Some of what was asked of it of late failed.
    Failing,
    /// The node behind it has raised an alarm.
    Alarm,
    /// There is no room for more.
    Full,
    /// The routes behind it lead back.
    Loop,
    /// It can't be used.
    Away,
}

// === impl Trouble ===

impl Trouble {
    pub(super) fn of(route: &pb::Route) -> Self {
        let done = [&route.reads, &route.writes, &route.commits];
        let is_failing =
            |done: &&Option<pb::Activity>| figures::failed(done).is_some_and(|it| it > 0);
        let node = route.node.as_ref();
        if !route.trouble.is_empty() {
            Self::Away
        } else if node.is_some_and(|node| !node.r#loop.is_empty()) {
            Self::Loop
        } else if route.is_full {
            Self::Full
        } else if node.is_some_and(|node| !node.alarms.is_empty()) {
            Self::Alarm
        } else if done.iter().any(is_failing) {
            Self::Failing
        } else if route.misrouted.is_some_and(|keys| keys > 0) {
            Self::Misrouted
        } else {
            Self::None
        }
    }

    pub(super) fn is_any(self) -> bool {
        self > Self::None
    }

    /// In a word or two: colours alone say nothing to many.
    pub(super) fn said(self) -> &'static str {
        match self {
            Self::None => "ok",
            Self::Misrouted => "misrouted keys",
            Self::Failing => "failing",
            Self::Alarm => "alarm",
            Self::Full => "full",
            Self::Loop => "loop",
            Self::Away => "away",
        }
    }

    /// How it looks.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::None => "fine",
            Self::Misrouted | Self::Failing => "doubtful",
            Self::Alarm | Self::Full | Self::Loop | Self::Away => "bad",
        }
    }
}
