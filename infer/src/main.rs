//! `infer` (skeleton)
fn main() {}
