from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Dinov2Config

from qwenvl.bench.real_shape import real_shape_config
from qwenvl.model.components import component_sizes
from qwenvl.vision import TowerOptions, custom_config, plan_vision_config

# Qwen3-VL-4B-Instruct and -8B-Instruct have 4.44 and 8.77 billion parameters by their model cards.
BILLIONS = {"4b": 4.44, "8b": 8.77}
WIDTHS = {"4b": 2560, "8b": 4096}


def _on_meta(config: object) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("shape", WIDTHS)
def test_the_shape_has_as_many_parameters_as_the_real_model(standin: Path, shape: str) -> None:
    sizes = component_sizes(_on_meta(real_shape_config(standin, shape)))

    assert sum(size.total for size in sizes.values()) / 1e9 == pytest.approx(BILLIONS[shape], abs=0.005)


@pytest.mark.parametrize("shape", WIDTHS)
def test_rad_dino_fits_each_by_the_width_that_its_configuration_tells(standin: Path, shape: str) -> None:
    base = real_shape_config(standin, shape)
    rad_dino = Dinov2Config(image_size=518, patch_size=14).to_dict()

    vision = plan_vision_config(
        base, TowerOptions("rad_dino", encoder_config=rad_dino), AutoProcessor.from_pretrained(standin)
    )
    model = _on_meta(custom_config(base, vision))

    assert vision.geometry().grid(2544, 3056) == (37, 37)
    assert tuple(model.model.visual.merger.proj.weight.shape) == (WIDTHS[shape], 768)
    assert component_sizes(model)["vision"].total == pytest.approx(86.6e6, abs=0.1e6)
