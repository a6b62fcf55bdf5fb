#!/usr/bin/env bash
# The same as sft_mimic_4b_custom_vision.sh in two stages, where one is unstable: first the merger alone
# (STAGE1_MM_PROJECTOR_LR, STAGE1_EPOCHS), then merger and LoRA from that merger, and from stage 1's encoder if
# TUNE_MM_VISION=True trained it. Flags go to both stages, those of LoRA to stage 2 alone; a stage that is finished is
# not trained again.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

export ENCODER="${ENCODER:-rad_dino}"
export OUTPUT_DIR="${OUTPUT_DIR:-output/mimic_4b_${ENCODER//[^a-zA-Z0-9_.-]/_}_two_stage}"
one_stage=$ROOT/scripts/sft_mimic_4b_custom_vision.sh
stage1=$OUTPUT_DIR/stage1

# without_lora FLAGS: set `flags` to the flags but those of LoRA, which stage 1 would refuse.
without_lora() {
    flags=()
    while (($#)); do
        if [[ $1 != --lora[_-]* ]]; then
            flags+=("$1")
        elif [[ $1 != *=* && ${2---} != --* ]]; then
            shift # its value
        fi
        shift
    done
}

if [[ -f $stage1/adapter_config.json ]]; then
    echo "stage 1 is finished: $stage1"
else
    without_lora "$@"
    LORA_R='' LORA_ALPHA='' LORA_DROPOUT='' LORA_TARGET_MODULES='' \
        OUTPUT_DIR=$stage1 TUNE_MM_LLM=False LORA_ENABLE=False MM_PROJECTOR_LR="${STAGE1_MM_PROJECTOR_LR-1e-3}" \
        EPOCHS="${STAGE1_EPOCHS:-1}" bash "$one_stage" "${flags[@]}"
fi
OUTPUT_DIR=$OUTPUT_DIR/stage2 VISION_MERGER_PATH=$stage1 exec bash "$one_stage" "$@"
