//! `pipelines` (skeleton)
fn main() {}
