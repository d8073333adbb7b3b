//! Scores of answers against the expected ones: what `infer eval`, `infer caption` and `train --eval_metric` compute.

pub mod captions;
mod metric;
pub mod multiple_choice;
pub mod vqa;
pub mod yes_no;

pub use metric::{Expected, Metric, Unusable};
