//! Stands in for `system` until it lands; then this file goes.

use crate::core::{Core, Exec};

impl Core {
    /// Whether the current code may access a port: checks nothing yet.
    pub(crate) fn check_io(&mut self, _port: u16, _size: usize) -> Exec {
        Ok(())
    }
}
