"""Count the floating-point operations of training one sample, from shapes alone.

The recipe is the benchmark's: LoRA on the attention projections of a frozen language model, a trained merger, a frozen
encoder. Counted are matrix products, two operations for each multiplication and addition, and each product once:
checkpointed layers that are computed again do not count as more work. Norms, activations and rotations are left out.
"""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedConfig

# How often a product is computed in a step: forward, gradient of its input, gradient of its weight.
_FORWARD, _FROZEN, _TRAINED = 1, 2, 3
_FIRST_TRAINED = 2  # nothing before it is trained, so its input needs no gradient


@dataclass(frozen=True)
class SampleSizes:
    """Means over the samples: tokens, supervised tokens, encoder patches, and the squares that attention depends on."""

    tokens: float
    supervised: float
    patches: float
    squared_tokens: float
    squared_patches: float

    @classmethod
    def of(cls, tokens: np.ndarray, supervised: np.ndarray, patches: np.ndarray) -> "SampleSizes":
        """Return the means of counts (n,) of samples with one image each."""
        return cls(
            *(float(each.mean()) for each in (tokens, supervised, patches)),
            *(float(np.square(each, dtype=np.float64).mean()) for each in (tokens, patches)),
        )


def sample_flops(config: PreTrainedConfig, sizes: SampleSizes, lora_rank: int, *, encodes: bool = True) -> float:
    """Return the operations of a mean sample in the forward and the backward pass.

    `config` is the model's, with Qwen3-VL's own encoder or a custom ViT with one linear layer as its merger. `encodes`
    is False where the encoder's features come from a cache.
    """
    total = language_model_flops(config.text_config, sizes, lora_rank)
    total += merger_flops(config.vision_config, sizes.patches)
    return total + (encoder_flops(config.vision_config, sizes) if encodes else 0.0)


def language_model_flops(config: PreTrainedConfig, sizes: SampleSizes, lora_rank: int) -> float:
    """Return the operations of a frozen language model with LoRA on q, k, v and o, and of its loss."""
    hidden, width = config.hidden_size, config.num_attention_heads * config.head_dim
    key_width = config.num_key_value_heads * config.head_dim
    attention_weights = 2 * hidden * width + 2 * hidden * key_width
    lora_weights = lora_rank * (2 * (hidden + width) + 2 * (hidden + key_width))
    linear = _FROZEN * (attention_weights + 3 * hidden * config.intermediate_size) + _TRAINED * lora_weights
    # Scores and weighted values over half of the square; their backward pass has twice as many products.
    attention = 3 * 2 * width * sizes.squared_tokens
    layers = config.num_hidden_layers * (2 * sizes.tokens * linear + attention)
    return layers + 2 * sizes.supervised * _FROZEN * hidden * config.vocab_size


def encoder_flops(config: PreTrainedConfig, sizes: SampleSizes) -> float:
    """Return the operations of a frozen encoder."""
    custom = getattr(config, "encoder_config", None)
    if custom is None:
        patch_values = config.in_channels * config.temporal_patch_size * config.patch_size**2
        hidden, depth, inner = config.hidden_size, config.depth, config.intermediate_size
    else:
        patch_values = custom["num_channels"] * custom["patch_size"] ** 2
        hidden, depth = custom["hidden_size"], custom["num_hidden_layers"]
        inner = int(custom["mlp_ratio"] * hidden)
    linear = 2 * sizes.patches * (4 * hidden**2 + 2 * hidden * inner)
    attention = 2 * 2 * hidden * sizes.squared_patches
    return _FORWARD * (depth * (linear + attention) + 2 * sizes.patches * patch_values * hidden)


def merger_flops(config: PreTrainedConfig, patches: float) -> float:
    """Return the operations of the trained mergers: one linear layer, or Qwen3-VL's own with those of DeepStack."""
    if getattr(config, "encoder_config", None) is not None:
        return 2 * patches * _FIRST_TRAINED * config.hidden_size * config.out_hidden_size
    merged = config.spatial_merge_size**2
    hidden = config.hidden_size * merged
    weights = _FIRST_TRAINED * hidden**2 + _TRAINED * hidden * config.out_hidden_size
    return 2 * (patches / merged) * weights * (1 + len(config.deepstack_visual_indexes))
