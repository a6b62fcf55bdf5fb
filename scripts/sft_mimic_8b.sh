#!/usr/bin/env bash
# The same as sft_mimic_4b.sh on Qwen3-VL-8B: the model path is all that differs.
set -euo pipefail

export MODEL_PATH="${MODEL_PATH:-Qwen/Qwen3-VL-8B-Instruct}"
export OUTPUT_DIR="${OUTPUT_DIR:-output/mimic_8b}"
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/sft_mimic_4b.sh" "$@"
