//! Inference with the checkpoints of a run.
