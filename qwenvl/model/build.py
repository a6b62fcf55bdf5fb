"""Build the model and its processor from the run's arguments, with or without weights."""

import logging
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.modeling_layers import GradientCheckpointingLayer

from qwenvl.errors import UserError
from qwenvl.model.arguments import BuildArguments, ModelArguments
from qwenvl.model.attention import Attention, resolve_attention
from qwenvl.model.base_files import (
    refuse_broken_weights,
    refuse_other_weights,
    refuse_pointers,
    refuse_quantized,
)
from qwenvl.model.components import component_of, plain_tower_name, set_trainable
from qwenvl.model.custom_vision import load_trained_tower, warn_of_slow_merger
from qwenvl.model.frozen import hold_frozen_weights
from qwenvl.model.lora import LoraSettings, add_adapter
from qwenvl.model.loss import SupervisedHead, compute_loss_in_forward, piece_loss_and_gradient
from qwenvl.model.trust import refuse_code_in_config, refuse_foreign_code
from qwenvl.utils.json_text import read_json
from qwenvl.utils.zero3 import is_partitioned
from qwenvl.vision import (
    CUSTOM_MODEL_TYPES,
    CustomVisionConfig,
    CustomVisionTower,
    custom_config,
    swap_vision_tower,
)
from qwenvl.vision.native import PackedVisionTower, pack_vision_attention

logger = logging.getLogger(__name__)

ADAPTER_CONFIG_NAME = "adapter_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
SUPPORTED_MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe", *CUSTOM_MODEL_TYPES)


def load_config(
    name_or_path: str, cache_dir: str | None = None, *, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """Load a model's configuration and check that it is a Qwen3-VL.

    Raises `UserError` if there is none at `name_or_path`, if it is another kind of model, an adapter, quantized, or
    pointers of Git LFS, and, unless `trust_remote_code`, if it refers to code.
    """
    refuse_pointers(name_or_path)
    if (adapter_config := Path(name_or_path) / ADAPTER_CONFIG_NAME).is_file():
        base = read_json(adapter_config).get("base_model_name_or_path")
        raise UserError(
            f"{name_or_path} holds an adapter ({ADAPTER_CONFIG_NAME}), not a whole model; give its base model, {base}, "
            f"with --resume_from_checkpoint to continue that run, or --vision_merger_path {name_or_path} to start a "
            "new one from its merger"
        )
    if not Path(name_or_path).exists() and name_or_path.count("/") != 1:
        raise UserError(
            f"{name_or_path}: no such folder; give the folder of a Qwen3-VL, or a hub name such as "
            "Qwen/Qwen3-VL-4B-Instruct"
        )
    refuse_foreign_code(name_or_path, trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(name_or_path, cache_dir=cache_dir, trust_remote_code=trust_remote_code)
    except Exception as error:  # values of unexpected types may raise anything
        raise UserError(f"{name_or_path}: {_why_not_loaded(name_or_path, error)}") from None
    if not trust_remote_code:
        refuse_code_in_config(name_or_path, "config.json", config.to_dict())
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        raise UserError(
            f"{name_or_path} is a {config.model_type} model; expected a Qwen3-VL, dense or MoE, "
            "such as Qwen/Qwen3-VL-4B-Instruct"
        )
    refuse_quantized(name_or_path, config)
    return config


def load_processor(
    name_or_path: str, cache_dir: str | None = None, *, trust_remote_code: bool = False
) -> ProcessorMixin:
    """Load the processor (tokenizer, chat template, image and video processor) that belongs to a model.

    It pads on the left, as generation in batches needs; training pads by its collators, on the right.
    """
    refuse_pointers(name_or_path)
    refuse_foreign_code(name_or_path, trust_remote_code)
    try:
        processor = AutoProcessor.from_pretrained(
            name_or_path, cache_dir=cache_dir, trust_remote_code=trust_remote_code, padding_side="left"
        )
        if Path(name_or_path).is_dir() and not any((Path(name_or_path) / name).is_file() for name in _TOKENIZER_FILES):
            raise UserError(f"{name_or_path} has no tokenizer ({' or '.join(_TOKENIZER_FILES)}); copy it again")
        if processor.chat_template is None:
            raise UserError(
                f"{name_or_path} has no chat template (chat_template.json or chat_template.jinja); copy it again"
            )
        processor.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": "Hello"}]}])
    except UserError:
        raise
    except Exception as error:  # damaged files and templates may raise anything
        raise UserError(
            f"{name_or_path}: no processor could be loaded: {type(error).__name__}: {_first_line(error)}; copy its "
            "tokenizer, preprocessor and chat template files again"
        ) from None
    return processor


def load_pretrained(
    name_or_path: str,
    *,
    dtype: torch.dtype | str,
    attention: Attention,
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a Qwen3-VL, dense or MoE by its configuration, for training or inference."""
    if Path(name_or_path).is_dir():
        # Adapters record the path of their base model, which has to work from any folder.
        name_or_path = str(Path(name_or_path).absolute())
    load_config(name_or_path, cache_dir, trust_remote_code=trust_remote_code)
    refuse_broken_weights(name_or_path)
    try:
        model, loading_info = AutoModelForImageTextToText.from_pretrained(
            name_or_path,
            dtype=dtype,
            attn_implementation=attention.per_subconfig,
            cache_dir=cache_dir,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, in one line
        )
    except (OSError, SafetensorError) as error:
        raise UserError(f"{name_or_path}: no weights could be loaded: {_first_line(error)}") from None
    refuse_other_weights(name_or_path, loading_info)
    return model


def build_model(
    model_args: ModelArguments,
    training_args: BuildArguments,
    vision_config: CustomVisionConfig | None = None,
    *,
    without_weights: bool = False,
) -> PreTrainedModel | PeftModel:
    """Build the model to train: loaded, its encoder swapped if asked, frozen where asked, with LoRA if asked.

    `vision_config` is that of a custom tower. `without_weights` builds on the meta device, where the model takes no
    memory. Trainable parameters are float32, because small updates are rounded away in bf16's eight bits; DeepSpeed
    keeps such a copy itself. With `--frozen_weights` the language model's frozen linear layers are converted one by one
    and put on the training's device.
    """
    warn_of_slow_merger(model_args, training_args.merger_learning_rate)
    attention = resolve_attention(model_args.attn_implementation, training_args.half_precision)
    logger.info("attention: %s (%s)", attention.backend, attention.reason)
    dtype = compute_dtype(training_args)
    if without_weights:
        config = load_config(
            model_args.model_name_or_path, training_args.cache_dir, trust_remote_code=model_args.trust_remote_code
        )
        config = config if vision_config is None else custom_config(config, vision_config)
        model = _build_on_meta(config, dtype, attention, model_args.model_name_or_path)
    else:
        model = load_pretrained(
            model_args.model_name_or_path,
            dtype=dtype,
            attention=attention,
            cache_dir=training_args.cache_dir,
            trust_remote_code=model_args.trust_remote_code,
        )
        if vision_config is not None:
            model = swap_vision_tower(model, vision_config)
        _fit_encoder_precision(model.model.visual, training_args, is_new=vision_config is not None)
    saved = {"vision"} if model_args.save_encoder else set()
    if vision_config is not None and vision_config.encoder_weights is None:
        logger.info("the encoder's weights are in no file of their own, so each checkpoint gets a copy of them")
        saved.add("vision")
    if model_args.vision_merger_path is not None:
        saved |= load_trained_tower(model, model_args.vision_merger_path)
    # A key-value cache hides the boundaries between packed samples and costs time; training does not use it.
    model.config.use_cache = False
    model.config.text_config.use_cache = False
    compute_loss_in_forward(model)
    if attention.backend == "varlen":
        pack_vision_attention(model.model.visual)
    text_layers = model.model.language_model.layers  # the adapter is added inside them
    model = _make_trainable(model, model_args, training_args, saved)
    if not training_args.deepspeed:
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.float32)
    if model_args.frozen_weights != "bf16":
        hold_frozen_weights(text_layers, model_args.frozen_weights, training_args.device)
    if training_args.torch_compile:
        compile_layers(model, training_args.torch_compile_backend, training_args.torch_compile_mode)
    return model


def _fit_encoder_precision(tower: nn.Module, training_args: BuildArguments, *, is_new: bool) -> None:
    """Try a custom encoder in the precision of the training, and cast one that came with the base model to it."""
    if not isinstance(tower, CustomVisionTower) or any(map(is_partitioned, tower.encoder.parameters())):
        return
    if training_args.deepspeed:
        tower.check_for_deepspeed(compute_dtype(training_args))
    elif not is_new:
        tower.hold_encoder_in(compute_dtype(training_args))


def compile_layers(model: nn.Module, backend: str, mode: str | None) -> None:
    """Compile each layer of the language model and of a custom encoder separately, in place, at its first call.

    Layers of one kind share their code, so this takes a minute once. The official encoder's layers are compiled where
    one attention call serves all images; else they, as the whole model, would be recompiled for each number of
    images.
    """
    tower = next(module for name, module in model.named_modules() if name.endswith("visual"))
    compiles_tower = isinstance(tower, CustomVisionTower | PackedVisionTower)
    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer) and (compiles_tower or component_of(name) != "vision"):
            module.compile(backend=backend, mode=mode, dynamic=True)
        elif isinstance(module, SupervisedHead):
            module.loss_and_gradient = torch.compile(piece_loss_and_gradient, backend=backend, mode=mode, dynamic=True)


def _build_on_meta(
    config: PreTrainedConfig, dtype: torch.dtype, attention: Attention, name_or_path: str
) -> PreTrainedModel:
    # Under DeepSpeed ZeRO-3 `from_config` allocates and partitions weights, on the meta device too. Can go when it does
    # not: https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/modeling_utils.py#L1435
    unset_hf_deepspeed_config()
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation=attention.per_subconfig
        )
    model.name_or_path = name_or_path
    return model


def compute_dtype(training_args: BuildArguments) -> torch.dtype:
    """Return the precision in which frozen weights are held and products are computed."""
    if training_args.bf16:
        return torch.bfloat16
    return torch.float16 if training_args.fp16 else torch.float32


def _make_trainable(
    model: PreTrainedModel, model_args: ModelArguments, training_args: BuildArguments, saved: set[str]
) -> PreTrainedModel | PeftModel:
    """Freeze what is not trained, and add the adapter, which also holds the components of `saved`."""
    tower = model.model.visual
    unreachable: list[str] = []
    if isinstance(tower, CustomVisionTower) and model_args.tune_mm_vision:
        unreachable = [f"encoder.{name}" for name in tower.set_encoder_trainable(True)]
        if not training_args.deepspeed and not tower.merger.proj.weight.is_meta:
            tower.prepare_for_autocast(compute_dtype(training_args))
    switches = {"merger": model_args.tune_mm_mlp, "vision": model_args.tune_mm_vision}
    trained = {component for component, is_trained in switches.items() if is_trained}
    if model_args.tune_mm_llm and not training_args.lora_enable:
        set_trainable(model, {"llm", *trained})
    else:
        lora = LoraSettings(
            training_args.lora_r,
            training_args.lora_alpha,
            training_args.lora_dropout,
            training_args.lora_target_modules,
        )
        model = add_adapter(
            model,
            lora if training_args.lora_enable else None,
            train=trained,
            save=saved,
        )
    for name, parameter in model.named_parameters():
        if plain_tower_name(name) in unreachable:
            parameter.requires_grad_(False)
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _why_not_loaded(name_or_path: str, error: Exception) -> str:
    folder = Path(name_or_path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        return "the folder has no config.json, so it is not a Transformers model; give the folder of a Qwen3-VL"
    reason = " ".join(str(error).split())[:300]
    return (
        f"the model configuration could not be loaded ({reason}); give the folder of a Qwen3-VL, or "
        "download one first with `hf download Qwen/Qwen3-VL-4B-Instruct --local-dir FOLDER`"
    )
