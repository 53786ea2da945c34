//! The interface as its clients see it: one program, because linking costs
//! more than running.

mod common;
mod document;
mod endpoints;
mod frame;
mod schema;
mod semantics;
