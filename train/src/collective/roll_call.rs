//! Exchanges through a library that does not say which ranks take part: the ranks tell each other.

use super::{Place, Result};
use std::time::Instant;

/// A rank's part of it.
pub trait RollCall: Send {
    /// The rank begins an exchange: what is reported of it, should it be killed.
    fn begins(&mut self, place: &Place);

    /// The rank waits in its exchange number `exchange`, and has waited since `since`. Called again and again; nobody waits for it.
    ///
    /// # Errors
    /// Another rank has failed.
    fn waits(&mut self, place: &Place, exchange: u64, since: Instant) -> Result<()>;

    /// Other ranks that were not seen to wait in exchange number `exchange` or a later one.
    fn absent(&mut self, exchange: u64) -> Vec<usize>;
}

/// Where ranks cannot tell each other anything.
pub struct Silent;

impl RollCall for Silent {
    fn begins(&mut self, _: &Place) {}

    fn waits(&mut self, _: &Place, _: u64, _: Instant) -> Result<()> {
        Ok(())
    }

    fn absent(&mut self, _: u64) -> Vec<usize> {
        Vec::new()
    }
}
