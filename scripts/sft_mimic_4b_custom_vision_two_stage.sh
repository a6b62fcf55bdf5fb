#!/usr/bin/env bash
# The same as sft_mimic_4b_custom_vision.sh in two stages, for runs that are unstable in one. Stage 1 trains only the
# merger (STAGE1_MM_PROJECTOR_LR, STAGE1_EPOCHS). Stage 2 trains merger and LoRA, and starts from the merger of stage 1,
# and from its encoder if TUNE_MM_VISION=True trained it. Flags go to both stages, those of LoRA only to stage 2. A
# finished stage is not trained again.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

export ENCODER="${ENCODER:-rad_dino}"
export OUTPUT_DIR="${OUTPUT_DIR:-output/mimic_4b_${ENCODER//[^a-zA-Z0-9_.-]/_}_two_stage}"
one_stage=$ROOT/scripts/sft_mimic_4b_custom_vision.sh
stage1=$OUTPUT_DIR/stage1

if given output_dir "$@" >/dev/null; then
    fail "--output_dir would apply to both stages; set OUTPUT_DIR, in which the folders stage1 and stage2 are made"
fi

# without_lora FLAGS: set `flags` to the flags without those of LoRA, which stage 1 would refuse.
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

# Train only the merger, and exit with the training's own code if it fails. Signals are passed on to the training: on
# SIGTERM, bash would exit at once and leave it running. With job control (set -m), the training has its own process group
# and does not ignore Ctrl-C as other background commands of a script do.
train_stage1() {
    local flags code=0 name signalled=true
    without_lora "$@"
    set -m
    OUTPUT_DIR=$stage1 TUNE_MM_LLM=False LORA_ENABLE=False LORA_R='' LORA_ALPHA='' LORA_DROPOUT='' \
        LORA_TARGET_MODULES='' MM_PROJECTOR_LR="${STAGE1_MM_PROJECTOR_LR-1e-3}" EPOCHS="${STAGE1_EPOCHS:-1}" \
        bash "$one_stage" ${flags[@]+"${flags[@]}"} &
    local training=$!
    set +m
    for name in TERM HUP INT; do
        # shellcheck disable=SC2064 # expand the process id now
        trap "signalled=true; kill -$name $training 2>/dev/null || true" "$name"
    done
    while $signalled; do # a signal interrupts `wait`, not the training
        signalled=false code=0
        wait "$training" || code=$?
    done
    trap - TERM HUP INT
    ((code == 0)) || exit "$code"
}

if [[ -f $stage1/adapter_config.json ]]; then
    echo "stage 1 is finished: $stage1"
else
    train_stage1 "$@"
    if is_true "$(given dry_run "$@" || true)"; then
        echo "a dry run: stage 2 can be planned after stage 1 is trained"
        exit
    elif [[ ! -f $stage1/adapter_config.json ]]; then
        echo "stage 1 was stopped and saved, and stage 2 is not started: continue with the same command and" \
            "--resume_from_checkpoint auto"
        exit
    fi
fi
OUTPUT_DIR=$OUTPUT_DIR/stage2 VISION_MERGER_PATH=$stage1 exec bash "$one_stage" "$@"
