//! What every leaf shares that this node owns and writes alone.

pub(super) mod mailbox;
pub(super) mod page_sizer;
pub(super) mod process;
