//! As in `common`, whose own files they are: what is measured is what trains.

#[allow(dead_code, unused_imports, unused_macros)]
pub mod fused;
