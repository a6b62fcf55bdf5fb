"""Estimate the GPU memory of a run from shapes alone."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig

from qwenvl.data.summary import DataSummary
from qwenvl.model.components import component_sizes
from qwenvl.model.loss import ROWS_AT_A_TIME
from qwenvl.train.argument import TrainingArguments
from qwenvl.utils.zero3 import full_numel

_GIB = 2**30
# The CUDA context, the kernels' workspaces and the allocator's rounding, beside the tensors.
_OVERHEAD_GIB = 1.5
# Per entry of a piece of the logits, beside the logits and their gradient in the model's precision: both in float32.
_LOGIT_BYTES = 4 + 4
# Under ZeRO-3: parameters that are gathered at a time, DeepSpeed's default of stage3_max_live_parameters.
_LIVE_WEIGHTS = 10**9
_USUAL_EXPANSION, _USUAL_DEPTH = 4, 12


@dataclass(frozen=True)
class BatchShape:
    """The largest micro-batch of a run: tokens in the language model, supervised ones, patches in the encoder."""

    tokens: int
    supervised: int
    patches: int


@dataclass(frozen=True)
class Sharding:
    """How many processes share a run's memory, and at which DeepSpeed ZeRO stage (0: none)."""

    processes: int = 1
    zero_stage: int = 0

    def share(self, num_bytes: float, from_stage: int) -> float:
        """Return one process's share of what is partitioned from the given ZeRO stage on."""
        return num_bytes / self.processes if self.zero_stage >= from_stage else num_bytes


def estimate_memory(
    model: nn.Module,
    batch: BatchShape,
    *,
    gradient_checkpointing: bool,
    compiled: bool = False,
    sharding: Sharding | None = None,
) -> dict[str, float]:
    """Estimate the peak GPU memory of one process, in GiB: its parts by name, and their sum under "total".

    AdamW keeps two float32 moments, and a trainable weight and its gradient are float32 too. Activations are counted
    per layer: all that the backward pass of one layer reads, times the layers that keep it; with gradient
    checkpointing every layer keeps only its input. Logits exist for a piece of the supervised tokens at a time. The
    constants were fitted to the runs that `docs/benchmarks.md` names.
    """
    sharding = sharding or Sharding()
    sizes = component_sizes(model)
    trainable = sum(size.trainable for size in sizes.values())
    weights = sum(full_numel(p) * p.element_size() for p in model.parameters())
    if sharding.zero_stage:
        weights += trainable * 4 / sharding.processes  # the float32 copy that DeepSpeed keeps beside the model
    config = model.config
    element_size = next(p.element_size() for p in model.parameters() if not p.requires_grad or p.element_size() == 4)
    text = _text_activations(config.text_config, batch.tokens, element_size, gradient_checkpointing, compiled)
    vision = _vision_activations(
        config.vision_config,
        batch.patches,
        element_size,
        keeps_layers=sizes["vision"].trainable > 0 and not gradient_checkpointing,
    )
    if sharding.zero_stage == 3:
        num_weights = sum(size.total for size in sizes.values())
        weights = weights / sharding.processes + min(num_weights, _LIVE_WEIGHTS) * element_size
    parts = {
        "weights": weights,
        "gradients": sharding.share(trainable * 4, 2),
        "optimizer": sharding.share(trainable * 8, 1),
        # The encoder's working memory is free again at the language model's peak.
        "activations": max(text, vision),
        "logits": min(batch.supervised, ROWS_AT_A_TIME)
        * config.text_config.vocab_size
        * (_LOGIT_BYTES + 2 * element_size),
    }
    estimate = {name: num_bytes / _GIB for name, num_bytes in parts.items()} | {"overhead": _OVERHEAD_GIB}
    return estimate | {"total": sum(estimate.values())}


def memory_table(
    model: nn.Module, summary: DataSummary, training_args: TrainingArguments, sharding: Sharding
) -> list[tuple[str, ...]]:
    """Return the rows of a text table: the estimate for the largest micro-batch of a run, its sum last.

    On a machine without a GPU `--gradient_checkpointing auto` has not been settled: the table then has both estimates.
    """
    is_open = training_args.checkpoints_if_needed and training_args.device.type != "cuda"
    choices = (False, True) if is_open else (bool(training_args.activation_checkpointing),)
    head = ("GiB", "GiB, recomputing activations") if is_open else ("GiB",)
    estimates = [_estimate(model, summary, training_args, sharding, choice) for choice in choices]
    rows = [(name, *(f"{estimate[name]:.2f}" for estimate in estimates)) for name in estimates[0]]
    return [("GPU memory of a process", *head), *rows]


def estimate_total(
    model: nn.Module, summary: DataSummary, training_args: TrainingArguments, sharding: Sharding
) -> float:
    """Return the estimate in GiB for the largest micro-batch of a run that keeps all activations."""
    return _estimate(model, summary, training_args, sharding, gradient_checkpointing=False)["total"]


def _estimate(
    model: nn.Module,
    summary: DataSummary,
    training_args: TrainingArguments,
    sharding: Sharding,
    gradient_checkpointing: bool,
) -> dict[str, float]:
    return estimate_memory(
        model,
        BatchShape(summary.max_tokens, summary.most_supervised, summary.most_patches),
        gradient_checkpointing=gradient_checkpointing,
        compiled=bool(training_args.torch_compile),
        sharding=sharding,
    )


def _text_activations(
    config: PreTrainedConfig, tokens: int, element_size: int, checkpointed: bool, compiled: bool
) -> float:
    hidden = config.hidden_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    # Inputs of the two norms and their outputs; queries and keys before and after norm and rotation; values; what
    # attention returns; gate, up, their activation and product.
    one_layer = 4 * hidden + 3 * (queries + keys) + keys + 2 * queries + 4 * config.intermediate_size
    if compiled:  # norms, rotations and the activation's product are computed again rather than kept
        one_layer = 3 * hidden + 2 * (queries + keys) + keys + queries + 3 * config.intermediate_size
    kept = config.num_hidden_layers * (hidden if checkpointed else one_layer) + (one_layer if checkpointed else 0)
    return tokens * kept * element_size


def _vision_activations(config: PreTrainedConfig, patches: int, element_size: int, keeps_layers: bool) -> float:
    hidden = config.hidden_size
    # Custom encoders have no common name for depth and inner width: the usual ones are assumed.
    one_layer = 10 * hidden + 2 * getattr(config, "intermediate_size", _USUAL_EXPANSION * hidden)
    return patches * one_layer * element_size * (getattr(config, "depth", _USUAL_DEPTH) if keeps_layers else 1)
