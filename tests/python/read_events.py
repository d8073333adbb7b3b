"""What TensorBoard's own reader finds in a folder of event files: scalars as [step, value], texts. JSON on stdout."""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "tensors": 0})
events.Reload()
tags = events.Tags()
texts = {
    tag: [tensor_util.make_ndarray(event.tensor_proto).tolist()[0].decode() for event in events.Tensors(tag)]
    for tag in tags["tensors"]
    if events.SummaryMetadata(tag).plugin_data.plugin_name == "text"
}
json.dump({"scalars": {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags["scalars"]}, "texts": texts}, sys.stdout)
