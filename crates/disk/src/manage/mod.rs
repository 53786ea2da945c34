//! Operations on image files that no machine uses.

mod create;
mod new_file;

pub use create::{CreateOptions, Preallocate, create, create_overlay_in};
