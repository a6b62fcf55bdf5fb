#!/usr/bin/env bash
# Qwen3-VL-4B on your own data: DATASETS=my/train.json bash scripts/sft_qwen3_4b.sh. See train.sh for the settings.
# ENCODER=rad_dino, for example, replaces the vision encoder.
set -euo pipefail

export MODEL_PATH="${MODEL_PATH:-Qwen/Qwen3-VL-4B-Instruct}"
export OUTPUT_DIR="${OUTPUT_DIR:-output/qwen3_4b}"
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/train.sh" "$@"
