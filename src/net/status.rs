//! How an error chain reads.

use std::error::Error;

/// An error and those behind it in one line, each said once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    append_sources(&mut text, error);
    text
}

/// A status as people read it: its message, not its code, and what is behind it.
pub fn message(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    append_sources(&mut text, status);
    text
}

fn append_sources(text: &mut String, error: &dyn Error) {
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
}
