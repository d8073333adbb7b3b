"""What transformers' Trainer and its EarlyStoppingCallback make of the values of evaluations: JSON on stdin, a list of
{"metric", "greater_is_better", "patience", "values"}; a list of {"greater_is_better", "best_metric", "best_step", "stopped_at"} on stdout."""

import json
import sys
import tempfile
from types import SimpleNamespace

from transformers import EarlyStoppingCallback, Trainer, TrainerControl, TrainerState, TrainingArguments


def decided(case):
    name = case["metric"]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, metric_for_best_model=name, greater_is_better=case["greater_is_better"], eval_strategy="steps", eval_steps=1,
            save_strategy="steps", save_steps=1, load_best_model_at_end=True, report_to="none", use_cpu=True,
        )
    state, control, stopping = TrainerState(), TrainerControl(), EarlyStoppingCallback(case["patience"])
    trainer = SimpleNamespace(args=args, state=state)
    key = name if name.startswith("eval_") else f"eval_{name}"
    for step, value in enumerate(case["values"], start=1):
        state.global_step = step
        # In the order of Trainer._maybe_log_save_evaluate: evaluation with its callbacks, then the best one is noted.
        stopping.on_evaluate(args, state, control, {key: value})
        Trainer._determine_best_metric(trainer, {key: value}, None)
        if control.should_training_stop:
            break
    stopped = step if control.should_training_stop else None
    return {"greater_is_better": args.greater_is_better, "best_metric": state.best_metric, "best_step": state.best_global_step, "stopped_at": stopped}


json.dump([decided(case) for case in json.load(sys.stdin)], sys.stdout)
