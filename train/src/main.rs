//! `train` (skeleton)
fn main() {}
