#!/usr/bin/env bash
# Generation side by side with transformers on the same machine and model, f32 against f32, two threads each.
#
#   LLAVA_PYTHON=PYTHON tests/bench/generate.sh MODEL_DIR [BATCH …]      default batches: 1 8
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
model=$(realpath "${1:?give a model directory}")
shift
[ $# -gt 0 ] || set -- 1 8
data=$(realpath "${LLAVA_SHARED:?a folder with data/coco224_main (photos) and tokenizer/qwen1.5-image}/data/coco224_main")
bench() { RAYON_NUM_THREADS=2 cargo bench -q -p infer --bench generate -- "$@"; }
bench --help >/dev/null # builds it
for batch in "$@"; do
    "${LLAVA_PYTHON:-python3}" tests/bench/peers/peer_generate.py --model "$model" --data "$data" --batch "$batch" --threads 2
    bench --model "$model" --data "$data" --batch "$batch" --weights f32
    bench --model "$model" --data "$data" --batch "$batch" --weights int8
done
