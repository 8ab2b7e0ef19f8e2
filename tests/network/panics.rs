//! Panics in tasks, of which their runtimes say nothing to anyone who does not ask.

use std::{cell::RefCell, panic, sync::Once};

thread_local! {
    /// A simulation is one thread.
    static NOTED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Notes panics from now on, on every thread.
pub(crate) fn note() {
    static NOTING: Once = Once::new();
    NOTING.call_once(|| {
        let say = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            NOTED.set(Some(panic.to_string()));
            say(panic);
        }));
    });
}

/// The last panic of this thread since this was called.
pub(crate) fn take() -> Option<String> {
    NOTED.take()
}
