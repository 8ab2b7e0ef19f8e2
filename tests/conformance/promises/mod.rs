//! The promises of `pleach::store`, each as a function of a [`crate::world::World`].

pub(crate) mod compaction;
pub(crate) mod leases;
pub(crate) mod reads;
mod reopening;
mod routing;
pub(crate) mod selecting;
pub(crate) mod tails;
pub(crate) mod writes;
