#!/usr/bin/env bash
# The same as sft_mimic_4b_custom_vision.sh with Qwen3-VL-8B: only MODEL_PATH and OUTPUT_DIR differ.
set -euo pipefail

export MODEL_PATH="${MODEL_PATH:-Qwen/Qwen3-VL-8B-Instruct}"
export ENCODER="${ENCODER:-rad_dino}"
export OUTPUT_DIR="${OUTPUT_DIR:-output/mimic_8b_${ENCODER//[^a-zA-Z0-9_.-]/_}}"
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/sft_mimic_4b_custom_vision.sh" "$@"
