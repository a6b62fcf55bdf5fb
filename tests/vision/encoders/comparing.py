"""What tests of the encoders share: small models, their features, and the comparison of inputs."""

import json

import numpy as np
import torch
from transformers import (
    PreTrainedModel,
)

from qwenvl.vision.encoder import check_forward
from qwenvl.vision.preprocessing import Geometry, Preprocessing, TokenRule
from qwenvl.vision.registry import build_encoder, resolve_encoder
from tests.vision.small_encoders import SMALL_ENCODERS, name_of, random_image

# Gray levels of 255. Both sides round a resized image to integers, except DINOv3, which rescales first; PIL's filters,
# which timm uses, may be off by one level. Another filter, crop or normalization is off by dozens.
TOLERANCE = 2.0


# Wide, with an odd number of pixels to crop, so that a crop one pixel off the center is found.
SIZE = (61, 98)


def assert_equal_input(wanted: Preprocessing, expected: torch.Tensor) -> None:
    pixels = torch.from_numpy(np.array(random_image(*SIZE))).permute(2, 0, 1)[None]
    made = Geometry(wanted, TokenRule(1)).prepare(pixels)
    assert made.shape == expected.shape
    levels = (made - expected).abs() * 255 * torch.tensor(wanted.std).view(3, 1, 1)
    assert levels.max() <= TOLERANCE


def write_json(folder, values, name="preprocessor_config.json"):
    (folder / name).write_text(values if isinstance(values, str) else json.dumps(values))
    return str(folder)


def small_model(case: str) -> PreTrainedModel:
    torch.manual_seed(1)
    return build_encoder(resolve_encoder(name_of(case), config=SMALL_ENCODERS[case])).model


def features_of(encoder) -> torch.Tensor:
    return check_forward(encoder.eval(), encoder.preprocessing.height, encoder.preprocessing.width)
