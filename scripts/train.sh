#!/usr/bin/env bash
# Start a training run on the CPU, one or several GPUs, or several machines, from any folder.
#
# Each setting of the table below is an environment variable; set it to an empty string to leave its flag out. Flags after
# the script's name go to qwenvl/train/train_qwen.py and override the settings. More about some variables, and others:
#   MM_PROJECTOR_LR   learning rate of the merger (default, if it is trained: 1e-5, or 2e-5 with ENCODER, whose merger
#                     is new)
#   LORA_R LORA_ALPHA LORA_DROPOUT    rank, scale and dropout of LoRA (default: 8, 16 and 0.0 if LORA_ENABLE is True)
#   WARMUP_RATIO      share of the steps in which the learning rates rise (default: 0.03 if the schedule has a warmup)
#   SAVE_STEPS        steps between two checkpoints (default: 500, if --save_strategy is steps)
#   LOGGING_STEPS     steps between two log lines (default: 10, unless --logging_strategy is given)
#   SAMPLES_PER_STEP  samples of an optimizer step, about, whatever the packs and GPUs (default: 32, unless GRAD_ACCUM
#                     is set)
#   NUM_WORKERS       data workers of each training process (default: one per core, at most 12)
#   EVAL_DATASETS     datasets to evaluate on during training, every EVAL_STEPS steps unless --eval_strategy is given
#   NPROC_PER_NODE    processes on this machine (default: one per GPU, or one)
#   NNODES NODE_RANK MASTER_ADDR MASTER_PORT    for several machines: their number, the index of this one, the address
#                     and port of rank 0
#   DEEPSPEED         DeepSpeed configuration (default: zero2.json with several GPUs), or none
#   BF16              compute in bfloat16 (default: True if the GPU supports it)
#   PYTHON            the Python to use (default: the active environment's, or the repository's .venv)
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

# variable              flag                            default
SETTINGS='
MODEL_PATH              model_name_or_path              Qwen/Qwen3-VL-4B-Instruct
CACHE_DIR               cache_dir
DATASETS                dataset_use
OUTPUT_DIR              output_dir                      output/qwen3vl
TUNE_MM_LLM             tune_mm_llm                     True
TUNE_MM_MLP             tune_mm_mlp                     True
TUNE_MM_VISION          tune_mm_vision                  False
LORA_ENABLE             lora_enable                     True
LORA_R                  lora_r
LORA_ALPHA              lora_alpha
LORA_DROPOUT            lora_dropout
LORA_TARGET_MODULES     lora_target_modules
LEARNING_RATE           learning_rate                   2e-5
MM_PROJECTOR_LR         mm_projector_lr
VISION_TOWER_LR         vision_tower_lr
ENCODER                 custom_vision_encoder
ENCODER_PATH            custom_vision_pretrained_path
VISION_INPUT            custom_vision_input
VISION_LAYER            vision_layer
VISION_RESIZE           vision_resize
VISION_INPUT_SIZE       vision_input_size
VISION_MERGER           vision_merger
VISION_MERGER_PATH      vision_merger_path
VISION_CACHE            cache_vision_features
SAVE_ENCODER            save_encoder
LR_SCHEDULER            lr_scheduler_type               cosine
WARMUP_RATIO            warmup_ratio
WEIGHT_DECAY            weight_decay                    0.0
MAX_GRAD_NORM           max_grad_norm                   1.0
EPOCHS                  num_train_epochs                1
BATCH_SIZE              per_device_train_batch_size     1
EVAL_BATCH_SIZE         per_device_eval_batch_size      1
GRAD_ACCUM              gradient_accumulation_steps
SAMPLES_PER_STEP        samples_per_step
MODEL_MAX_LENGTH        model_max_length                16384
DATA_FLATTEN            data_flatten
DATA_PACKING            data_packing                    True
MAX_PIXELS              max_pixels
MIN_PIXELS              min_pixels
VIDEO_FPS               video_fps
VIDEO_MAX_FRAMES        video_max_frames
VIDEO_MIN_FRAMES        video_min_frames
VIDEO_MAX_PIXELS        video_max_pixels
VIDEO_MIN_PIXELS        video_min_pixels
BAD_SAMPLE_POLICY       bad_sample_policy
MAX_BAD_SAMPLES         max_bad_samples
ATTENTION               attn_implementation
GRADIENT_CHECKPOINTING  gradient_checkpointing
TORCH_COMPILE           torch_compile
NUM_WORKERS             dataloader_num_workers
SAVE_STEPS              save_steps
SAVE_TOTAL_LIMIT        save_total_limit                3
LOGGING_STEPS           logging_steps
REPORT_TO               report_to
RUN_NAME                run_name
SEED                    seed
'

# located FILE: print the path of a DeepSpeed file: as given, in the repository, or in scripts/.
located() {
    local path
    for path in "$1" "$ROOT/$1" "$ROOT/scripts/$1"; do
        if [[ -f $path ]]; then
            printf '%s' "$path"
            return
        fi
    done
    printf '%s' "$1"
}

find_python
devices=$("$PYTHON" -c '
import torch
print(torch.cuda.device_count(), torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False))
' 2>/dev/null) || fail "$PYTHON has no working PyTorch; run scripts/quickstart.sh once, or pip install -r" \
    "requirements.txt (for the reason: $PYTHON -c 'import torch')"
read -r gpus has_bf16 <<<"$devices"
processes=${NPROC_PER_NODE:-$((gpus > 0 ? gpus : 1))}
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "NPROC_PER_NODE=$processes: give the number of processes on this machine"
nodes=${NNODES:-1}
cores=$(($(nproc) > processes ? $(nproc) / processes : 1)) # of each process

if [[ -z ${DATASETS-} ]] && ! given dataset_use "$@" >/dev/null; then
    fail "no dataset given: DATASETS=path/to/train.json bash $0 (or a name registered in qwenvl/data/__init__.py)"
fi

# The training program refuses a flag that has no effect, so these defaults are set only where they have one.
if is_true "$(given tune_mm_mlp "$@" || echo "${TUNE_MM_MLP-True}")"; then
    # A new merger starts from random weights: see docs/custom_encoder.md on its learning rate.
    encoder=$(given custom_vision_encoder "$@" || echo "${ENCODER-}")
    : "${MM_PROJECTOR_LR=$([[ -n $encoder ]] && echo 2e-5 || echo 1e-5)}"
fi
if is_true "$(given lora_enable "$@" || echo "${LORA_ENABLE-True}")"; then
    : "${LORA_R=8}" "${LORA_ALPHA=16}" "${LORA_DROPOUT=0.0}"
fi
schedule=$(given lr_scheduler_type "$@" || echo "${LR_SCHEDULER-cosine}")
if [[ ! $schedule =~ ^(constant|reduce_lr_on_plateau|greedy)$ ]] && ! given warmup_steps "$@" >/dev/null; then
    : "${WARMUP_RATIO=0.03}"
fi
if ! given logging_strategy "$@" >/dev/null; then
    : "${LOGGING_STEPS=10}"
fi
if [[ $(given save_strategy "$@" || echo steps) == steps ]]; then
    : "${SAVE_STEPS=500}"
fi
: "${NUM_WORKERS=$((cores > 12 ? 12 : cores))}"

if [[ -z ${GRAD_ACCUM-} ]] && ! given gradient_accumulation_steps "$@" >/dev/null; then
    : "${SAMPLES_PER_STEP=32}"
fi

arguments=()
while read -r variable flag default; do
    if [[ -n $variable ]]; then
        value=${!variable-$default}
        arguments+=(${value:+"--$flag" "$value"})
    fi
done <<<"$SETTINGS"

if [[ -n ${EVAL_DATASETS-} ]]; then
    arguments+=(--eval_dataset_use "$EVAL_DATASETS")
    if ! given eval_strategy "$@" >/dev/null; then
        arguments+=(--eval_strategy steps --eval_steps "${EVAL_STEPS:-500}")
    fi
fi
if ((gpus > 0)) && ! is_true "$(given fp16 "$@" || true)" && ! is_true "$(given use_cpu "$@" || true)"; then
    arguments+=(--bf16 "${BF16:-$has_bf16}")
fi
if [[ -z ${DEEPSPEED-} && ($processes != 1 || $nodes != 1) ]] && ((gpus > 0)) &&
    ! is_true "$(given use_cpu "$@" || true)"; then
    DEEPSPEED=zero2.json
fi
if [[ -n ${DEEPSPEED-} && $DEEPSPEED != none ]]; then
    arguments+=(--deepspeed "$(located "$DEEPSPEED")")
elif ((gpus == 0)) && ! given deepspeed "$@" >/dev/null; then
    # Without this flag, several processes on a machine without a GPU would not find each other.
    arguments+=(--use_cpu True)
fi

launcher=(--nproc_per_node "$processes")
if [[ $nodes != 1 || -n ${MASTER_ADDR-} || -n ${MASTER_PORT-} ]]; then
    if [[ $nodes != 1 && -z ${MASTER_ADDR-} ]]; then
        fail "NNODES=$nodes needs MASTER_ADDR, the address of the machine with NODE_RANK=0; set the same on every machine"
    fi
    launcher+=(--nnodes "$nodes" --node_rank "${NODE_RANK:-0}")
    launcher+=(--master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}")
else
    launcher+=(--standalone)
fi

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$cores}"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m qwenvl.train.launch "${launcher[@]}" "$ROOT/qwenvl/train/train_qwen.py" "${arguments[@]}" "$@"
