"""Prepare a run before its model is built: configuration, processor, tower plan, attention and data."""

from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedConfig, ProcessorMixin

from qwenvl.data.arguments import DataArguments
from qwenvl.data.data_processor import DataModule, make_supervised_data_module
from qwenvl.data.pixel_limits import set_pixel_limits
from qwenvl.model.arguments import ModelArguments
from qwenvl.model.attention import Attention, resolve_attention
from qwenvl.model.base_files import refuse_broken_weights, refuse_other_processor
from qwenvl.model.build import load_config, load_processor
from qwenvl.model.custom_vision import plan_custom_vision
from qwenvl.model.lora import check_lora_targets
from qwenvl.train.argument import TrainingArguments
from qwenvl.train.features import check_feature_cache
from qwenvl.vision import CUSTOM_MODEL_TYPES, CustomVisionConfig, swap_processor
from qwenvl.vision.native import patch_layout
from qwenvl.vision.tower import grids_of


@dataclass(frozen=True)
class BasePlan:
    """The base model's configuration, the tower planned for it, and the processor that fits this tower.

    `vision_config` is None where the model keeps its own tower.
    """

    config: PreTrainedConfig
    vision_config: CustomVisionConfig | None
    processor: ProcessorMixin


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs before its model is built."""

    base: BasePlan
    attention: Attention
    data: DataModule


def prepare_base(model_args: ModelArguments, data_args: DataArguments, cache_dir: str | None = None) -> BasePlan:
    """Load configuration and processor, plan the tower, and set the pixel limits; no weights of the model are read.

    Training, `check_data` and `pack_data` count tokens with this processor. Raises `UserError` for a model other
    than Qwen3-VL, and for flags that do not fit the encoder or the model.
    """
    name, is_trusted = model_args.model_name_or_path, model_args.trust_remote_code
    config = load_config(name, cache_dir, trust_remote_code=is_trusted)
    check_feature_cache(model_args, config)
    processor = load_processor(name, cache_dir, trust_remote_code=is_trusted)
    refuse_other_processor(name, config, processor)
    vision_config = plan_custom_vision(model_args, config, processor)
    if vision_config is not None:
        processor = swap_processor(processor, vision_config)
    set_pixel_limits(processor, data_args)
    return BasePlan(config, vision_config, processor)


def prepare(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> Prepared:
    """Prepare a run up to its data, which are read, checked, counted and planned into batches.

    Raises `UserError` for errors in the base model, the encoder, the names of LoRA's layers or the data.
    """
    base = prepare_base(model_args, data_args, training_args.cache_dir)
    if not training_args.dry_run:
        refuse_broken_weights(model_args.model_name_or_path)
    if training_args.lora_enable:
        check_lora_targets(base.config, training_args.lora_target_modules)
    attention = resolve_attention(model_args.attn_implementation, training_args.half_precision)
    data = make_supervised_data_module(
        base.processor,
        data_args,
        training_args,
        training_args.model_max_length,
        varlen=attention.backend == "varlen",
        only_vision_is_trained=not model_args.tune_mm_llm,
    )
    if base.vision_config is not None or base.config.model_type in CUSTOM_MODEL_TYPES:
        data.data_collator.layout_of = grids_of
    elif attention.backend == "varlen" and base.config.model_type == "qwen3_vl":
        data.data_collator.layout_of = partial(patch_layout, config=base.config.vision_config)
    return Prepared(base, attention, data)
