"""Tests of the count of operations: against counts by hand, and against the issue of the real shape."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qwenvl.bench.flops import SampleSizes, encoder_flops, language_model_flops, merger_flops, sample_flops
from qwenvl.bench.real_shape import real_shape_config

TEXT = SimpleNamespace(
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    vocab_size=100,
)
VISION = SimpleNamespace(
    hidden_size=4,
    depth=3,
    intermediate_size=8,
    out_hidden_size=8,
    in_channels=3,
    temporal_patch_size=2,
    patch_size=2,
    spatial_merge_size=2,
    deepstack_visual_indexes=[0],
)
DINO = {"num_channels": 3, "patch_size": 2, "hidden_size": 4, "num_hidden_layers": 3, "mlp_ratio": 2}
CUSTOM = SimpleNamespace(encoder_config=DINO, hidden_size=4, out_hidden_size=8)
SIZES = SampleSizes(tokens=10, supervised=3, patches=12, squared_tokens=100, squared_patches=144)


def test_the_language_model_is_counted_as_by_hand() -> None:
    projections = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8  # q, k, v, o
    mlp = 3 * 8 * 16
    lora = 2 * (8 + 8) + 2 * (8 + 4) + 2 * (8 + 4) + 2 * (8 + 8)  # rank 2
    frozen = 2 * 10 * (projections + mlp)
    attention = 2 * (2 * 10 * 10 * 8) // 2  # scores and values, the lower half
    layer = 2 * frozen + 3 * attention + 3 * 2 * 10 * lora
    head = 2 * (2 * 3 * 8 * 100)
    assert language_model_flops(TEXT, SIZES, lora_rank=2) == 2 * layer + head


def test_the_encoder_is_counted_forward_only() -> None:
    block = 2 * 12 * (4 * 4 * 4 + 2 * 4 * 8) + 2 * (2 * 12 * 12 * 4)
    assert encoder_flops(VISION, SIZES) == 3 * block + 2 * 12 * (3 * 2 * 2 * 2) * 4
    assert encoder_flops(CUSTOM, SIZES) == 3 * block + 2 * 12 * (3 * 2 * 2) * 4


def test_a_mergers_first_layer_needs_no_gradient_of_its_input() -> None:
    own = 2 * 3 * (2 * 16 * 16 + 3 * 16 * 8)
    assert merger_flops(VISION, 12) == 2 * own  # the merger and one of DeepStack
    assert merger_flops(CUSTOM, 12) == 2 * 2 * 12 * 4 * 8


def test_cached_features_leave_the_encoder_out() -> None:
    config = SimpleNamespace(text_config=TEXT, vision_config=CUSTOM)
    difference = sample_flops(config, SIZES, 2) - sample_flops(config, SIZES, 2, encodes=False)
    assert difference == encoder_flops(CUSTOM, SIZES)


def test_sizes_are_means_over_the_samples() -> None:
    sizes = SampleSizes.of(np.array([2, 4]), np.array([1, 2]), np.array([4, 8]))
    assert sizes == SampleSizes(3.0, 1.5, 6.0, 10.0, 40.0)


def test_a_sample_of_537_tokens_costs_the_4b_shape_10_teraflop(standin: Path) -> None:
    config = real_shape_config(standin, "4b")
    sizes = SampleSizes(537, 83, 1680, 537**2, 1680**2)
    assert encoder_flops(config.vision_config, sizes) == pytest.approx(1.3e12, rel=0.03)
    assert sample_flops(config, sizes, 64) == pytest.approx(9.9e12, rel=0.03)
