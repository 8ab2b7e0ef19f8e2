//! What must hold of every history: each check looks at one promise, and says all that breaks it.

mod ledger;
mod log;
mod planted;
mod reads;
mod watches;

pub(crate) use self::log::Log;
use crate::history::History;

/// All that is wrong with a history whose commits are those of the log.
pub(crate) fn violations(history: &History, log: &Log) -> Vec<String> {
    let mut found = log.violations();
    found.extend(ledger::violations(history, log));
    found.extend(reads::violations(history, log));
    found.extend(watches::violations(history, log));
    found
}
