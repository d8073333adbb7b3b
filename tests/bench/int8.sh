#!/usr/bin/env bash
# What 8-bit weights cost: the loss on data/coco224_main of LLAVA_SHARED with weights as stored and with --quantize int8.
#
#   tests/bench/int8.sh MODEL_DIR [ADAPTER_DIR]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
model=$(realpath "${1:?give a model directory}")
adapter=(${2:+--adapter "$(realpath "$2")"})
data=$(realpath "${LLAVA_SHARED:?a folder with data/coco224_main (photos) and tokenizer/qwen1.5-image}/data/coco224_main")
programs=$(realpath "${CARGO_TARGET_DIR:-target}")/release
cargo build --release -q -p infer -p preprocess
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$programs/preprocess" shards --model "$model" --data "$data" --output "$work/shards" >/dev/null 2>&1
loss() { "$programs/infer" score --model "$model" "${adapter[@]}" --shards "$work/shards" --output "$work/scores.jsonl" "$@" 2>/dev/null; }
stored=$(loss)
int8=$(loss --quantize int8)
python3 - "$stored" "$int8" <<'PYTHON'
import json, sys
stored, int8 = map(json.loads, sys.argv[1:])
difference = int8["loss"] - stored["loss"]
print(json.dumps(dict(rows=stored["rows"], tokens=stored["tokens"], loss_stored=stored["loss"], loss_int8=int8["loss"], difference=difference)))
sys.exit(0 if abs(difference) < 0.02 else 1)
PYTHON
