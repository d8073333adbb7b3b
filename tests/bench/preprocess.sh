#!/usr/bin/env bash
# Preprocessing side by side with the Python way (transformers + datasets, both image backends): same rows, same machine, same run.
#
#   LLAVA_PYTHON=PYTHON tests/bench/preprocess.sh [REPEAT]     every row of coco224_main REPEAT times (default 10)
#
# PYTHON has tests/requirements.txt; LLAVA_SHARED has data/coco224_main, data/coco_tiny and tokenizer/qwen1.5-image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
cargo build --release -q -p preprocess
exec "${LLAVA_PYTHON:-python3}" tests/bench/preprocess.py "${CARGO_TARGET_DIR:-target}/release" "${LLAVA_SHARED:?a folder with data/coco224_main (photos) and tokenizer/qwen1.5-image}" "${1:-10}"
