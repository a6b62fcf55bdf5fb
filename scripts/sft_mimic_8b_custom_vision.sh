#!/usr/bin/env bash
# Qwen3-VL-8B on MIMIC-CXR with another vision encoder (ENCODER, default RAD-DINO) and a fresh linear merger, in one
# stage: merger and LoRA together, the encoder frozen. See train.sh.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
source "$ROOT/scripts/mimic.sh"

export MODEL_PATH="${MODEL_PATH:-Qwen/Qwen3-VL-8B-Instruct}"
export ENCODER="${ENCODER:-rad_dino}"
export OUTPUT_DIR="${OUTPUT_DIR:-output/mimic_8b_${ENCODER//[^a-zA-Z0-9_.-]/_}}"
# A fresh linear layer has to learn everything: see docs/custom_encoder.md on its learning rate.
export MM_PROJECTOR_LR="${MM_PROJECTOR_LR-2e-5}"
exec bash "$ROOT/scripts/train.sh" "$@"
