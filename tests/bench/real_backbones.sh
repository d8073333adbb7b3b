#!/usr/bin/env bash
# The real job at a size that a CPU can do: DINOv2-S and SmolLM2-135M, both really pretrained, are assembled, trained on COCO
# photographs (the projector, then LoRA) and asked for captions. Shows the losses and the captions beside the answers.
#
#   tests/bench/real_backbones.sh OUT_DIR      LLAVA_BACKBONES names the folder that fetch_backbones.py made (tests/run makes one)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
out=${1:?a folder for models, shards and runs}
programs=${CARGO_TARGET_DIR:-$root/target}/release
mkdir -p "$out"
cd "$out"
ln -sfn "${LLAVA_BACKBONES:?a folder made by fetch_backbones.py}/dinov2s_as_clip336" dinov2s_as_clip336
ln -sfn "$LLAVA_BACKBONES/smollm2_as_qwen2" smollm2_as_qwen2
ln -sfn "${LLAVA_SHARED:?a folder with data/coco224_main (photos) and tokenizer/qwen1.5-image}/data/coco224_main" coco224_main
"$programs/pipelines" run "$root/tests/bench/real_backbones.toml"

echo "== a question without a picture, before any training"
"$programs/infer" generate --model llava --prompt "The capital of France is" --max-new-tokens 12
for run in 1-projector 2-lora; do
    echo "== loss of $run, every second step"
    sed -E 's/.*"step":([0-9]+).*"loss":([0-9.]+).*/step \1  loss \2/' "$run/metrics.jsonl"
done
echo "== captions after training"
cat captions.jsonl
