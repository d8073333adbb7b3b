#!/usr/bin/env bash
# Share of the processor time that the column `crc32` of shards costs, by samples of perf: writing shards, and reading every row (`preprocess verify`).
#
#   tests/bench/checksum.sh MODEL_DIR WORK_DIR [REPEAT]     every row of coco224_main REPEAT times (default 20)
#
# Needs perf, the program (cargo build --release, or PREPROCESS=PROGRAM) and LLAVA_SHARED (data/coco224_main).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
model=$1 work=$2 data=${LLAVA_SHARED:?a folder with data/coco224_main}/data/coco224_main
program=${PREPROCESS:-${CARGO_TARGET_DIR:-target}/release/preprocess}
rm -rf "$work"
mkdir -p "$work/data"
ln -s "$data/images" "$work/data/images"
python3 - "$data/chat.json" "$work/data/chat.json" "${3:-20}" <<'PYTHON'
import json, sys
rows = json.load(open(sys.argv[1]))
json.dump([{**row, "id": f"{row['id']}-{time}"} for time in range(int(sys.argv[3])) for row in rows], open(sys.argv[2], "w"))
PYTHON
measure() {
    local name=$1
    shift
    perf record -q -F 5000 -e cpu-clock -o "$work/$name.perf" "$program" "$@" >"$work/$name.txt" 2>&1
    perf report -i "$work/$name.perf" --stdio --sort symbol 2>"$work/perf.txt" |
        awk -v name="$name" '/crc32fast|checksum::of_row/ { sum += $1 } END { printf "%s: %.2f %% of the processor time\n", name, sum }'
}
measure writing shards --model "$model" --data "$work/data" --output "$work/shards"
measure reading verify "$work/shards"
