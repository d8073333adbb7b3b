#!/usr/bin/env bash
# The forecast of `train plan` against the real peak (VmHWM) of two steps, on the pretrained backbones (162 million parameters).
#
#   LLAVA_BACKBONES=… LLAVA_SHARED=… tests/bench/memory.sh [WORK_DIR]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
programs=${CARGO_TARGET_DIR:-target}/release
work=${1:-$(mktemp -d)}
[ -d "$work/llava" ] || "$programs/preprocess" model --vision-tower "$LLAVA_BACKBONES/dinov2s_as_clip336" \
    --language-model "$LLAVA_BACKBONES/smollm2_as_qwen2" --output "$work/llava" >/dev/null
[ -d "$work/shards" ] || "$programs/preprocess" shards --model "$work/llava" --data "${LLAVA_SHARED:?a folder with data/coco224_main (photos) and tokenizer/qwen1.5-image}/data/coco224_main" \
    --output "$work/shards" >/dev/null 2>&1

one() { # OPTIONS OF train …
    rm -rf "$work/run"
    local options=(--model_name_or_path "$work/llava" --data_path "$work/shards" --output_dir "$work/run" "$@")
    local forecast peak
    forecast=$("$programs/train" plan "${options[@]}" | awk '$1 == "peak" { print $2 * ($3 == "GB" ? 1000 : 1) }')
    "$programs/train" "${options[@]}" --max_steps 2 --logging_steps 1 --save_strategy no >/dev/null 2>&1
    peak=$(sed -n '$s/.*"peak_rss_mb":\([0-9.]*\).*/\1/p' "$work/run/metrics.jsonl")
    awk -v o="$*" -v f="$forecast" -v p="$peak" \
        'BEGIN { p *= 1.048576; printf "| `%s` | %d | %d | %+.1f %% |\n", o, f, p, 100 * (f / p - 1) }'
}

echo "| options | forecast, MB a rank | peak, MB in all | difference |"
echo "|---|---|---|---|"
one --train_type none --per_device_train_batch_size 4
one --train_type freeze_vision --per_device_train_batch_size 2
one --train_type use_lora --per_device_train_batch_size 4
one --train_type use_lora --per_device_train_batch_size 4 --gradient_checkpointing true
one --train_type projector --per_device_train_batch_size 4
