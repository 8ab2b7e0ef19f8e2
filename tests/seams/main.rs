//! The seams: what is away, restored, fenced, cancelled or hostile breaks no promise. Real processes, and
//! real stores of every kind that a promise is about.
//!
//! ```text
//!   upgrade     what an older version left
//!   trust       who may be a node's parent, and what a stranger can do
//!   lanes       a tree grows beyond what its nodes were given at first
//!   leases      a lease ends whole, whatever is away
//!   restored    stores that went back, or are others than before
//!   ownership   who has a store, and who waits for it
//!   routes      one route's trouble is its own
//!   neighbours  one write's trouble is its own
//!   settings    databases that are set up in another way
//! ```

#[path = "../support/mod.rs"]
mod support;

#[path = "../tree/call.rs"]
mod call;

mod health;
mod lanes;
mod leases;
mod neighbours;
mod ownership;
mod restored;
mod routes;
mod settings;
mod trust;
mod upgrade;
mod watch;
