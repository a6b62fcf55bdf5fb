#!/usr/bin/env bash
# Qwen3-VL-4B on MIMIC-CXR: native encoder, LoRA on the language model, merger trained, vision encoder frozen. See train.sh.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
if [[ -n ${ENCODER-} ]]; then
    fail "ENCODER=$ENCODER is set, but this preset uses Qwen3-VL's own encoder; unset ENCODER, or use" \
        "scripts/sft_mimic_4b_custom_vision.sh (or sft_mimic_8b_custom_vision.sh)"
fi
source "$ROOT/scripts/mimic.sh"

export MODEL_PATH="${MODEL_PATH:-Qwen/Qwen3-VL-4B-Instruct}"
export OUTPUT_DIR="${OUTPUT_DIR:-output/mimic_4b}"
exec bash "$ROOT/scripts/train.sh" "$@"
