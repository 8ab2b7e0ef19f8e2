//! Which process owns a store, so that another one on the same machine can tell that it is dead.
//!
//! A name tells nothing: two nodes may have the same, and one that starts anew has it too. What tells is the
//! death of the process, which only its own machine knows, since the machine was started and in the same
//! space of process ids.

use std::{fs, io::ErrorKind};

/// This process, as others on the same machine can find it.
pub(in crate::store) fn this() -> String {
    let id = std::process::id();
    let started = match find(id) {
        Found::Started(at) => at,
        Found::Ended | Found::Unknown => String::new(),
    };
    match machine() {
        Some(machine) => format!("{machine} {id} {started}"),
        // Nobody elsewhere can tell whether it lives.
        None => String::new(),
    }
}

/// The machine since it was started, and the space that process ids are from; `None` where either hides, so that
/// two machines would be taken for one.
fn machine() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let space = fs::read_link("/proc/self/ns/pid").ok()?;
    machine_of(boot.trim(), &space.display().to_string())
}

fn machine_of(boot: &str, space: &str) -> Option<String> {
    (!boot.is_empty() && !space.is_empty()).then(|| format!("{boot} {space}"))
}

/// What the machine says of a process.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// It runs since then, in ticks.
    Started(String),
    /// It has ended.
    Ended,
    /// It hides, or nothing more can be asked at present.
    Unknown,
}

fn find(id: u32) -> Found {
    let stat = match fs::read_to_string(format!("/proc/{id}/stat")) {
        Ok(stat) => stat,
        // Other people's processes may be hidden; who may not send to one says that it is there.
        Err(error) if error.kind() == ErrorKind::NotFound => return if_gone(id),
        Err(_) => return Found::Unknown,
    };
    // The name of the program, in parentheses, may hold anything.
    let Some((_, behind)) = stat.rsplit_once(')') else { return Found::Unknown };
    let mut words = behind.split_whitespace();
    match words.next() {
        // One that is dead and not buried does nothing any more.
        Some("Z") => Found::Ended,
        _ => words.nth(18).map_or(Found::Unknown, |start| Found::Started(start.to_owned())),
    }
}

fn if_gone(id: u32) -> Found {
    let id = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw);
    match id.map(rustix::process::test_kill_process) {
        Some(Err(rustix::io::Errno::SRCH)) => Found::Ended,
        _ => Found::Unknown,
    }
}

/// Whether a process is dead for certain: one of this machine that is no longer there.
pub(in crate::store) fn is_dead(process: &str) -> bool {
    let Some(rest) = machine().as_deref().and_then(|machine| process.strip_prefix(machine)) else {
        return false;
    };
    let mut words = rest.split_whitespace();
    let (Some(id), Some(start)) = (words.next(), words.next()) else { return false };
    id.parse().is_ok_and(|id| match find(id) {
        Found::Started(now) => now != start,
        Found::Ended => true,
        Found::Unknown => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_one_of_another_time_or_place_is_told_apart() {
        assert!(!is_dead(&this()));
        let id = std::process::id();
        let here = machine().expect("a machine on which tests run says which it is");
        assert!(is_dead(&format!("{here} {id} 1")), "the id was given to another process");
        assert!(!is_dead(&format!("elsewhere pid:[1] {id} 1")));
        assert!(!is_dead(""));
        // The first process is never dead, whether it hides or not.
        assert_ne!(find(1), Found::Ended);
        assert!(is_dead(&format!("{here} 4194303 1")), "there is no such process");
        assert_eq!(machine_of("", "pid:[1]"), None, "it could be any machine");
        assert_eq!(machine_of("id", ""), None);
    }
}
