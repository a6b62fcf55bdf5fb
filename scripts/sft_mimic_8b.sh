#!/usr/bin/env bash
# The same as sft_mimic_4b.sh with Qwen3-VL-8B: only MODEL_PATH and OUTPUT_DIR differ.
set -euo pipefail

export MODEL_PATH="${MODEL_PATH:-Qwen/Qwen3-VL-8B-Instruct}"
export OUTPUT_DIR="${OUTPUT_DIR:-output/mimic_8b}"
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/sft_mimic_4b.sh" "$@"
