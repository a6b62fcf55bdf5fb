#!/usr/bin/env bash
# Qwen3-VL-4B on MIMIC-CXR with another vision encoder (ENCODER, default RAD-DINO) and a new linear merger, in one stage:
# merger and LoRA trained together, encoder frozen. See train.sh.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
source "$ROOT/scripts/mimic.sh"

export MODEL_PATH="${MODEL_PATH:-Qwen/Qwen3-VL-4B-Instruct}"
export ENCODER="${ENCODER:-rad_dino}"
export OUTPUT_DIR="${OUTPUT_DIR:-output/mimic_4b_${ENCODER//[^a-zA-Z0-9_.-]/_}}"
exec bash "$ROOT/scripts/train.sh" "$@"
