//! How other programs are reached: addresses, credentials, TLS, connections, and how their errors read.
//!
//! Nothing here ever shows a password, waits without a bound, or knows what is said over a connection.

pub mod address;
pub mod connect;
pub mod status;
mod unverified;
