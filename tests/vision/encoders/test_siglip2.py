"""SigLIP 2: NaFlex has the input of its own image processor."""

import numpy as np
import pytest
import torch
from transformers.models.siglip2.image_processing_siglip2 import Siglip2ImageProcessor, convert_image_to_patches

from qwenvl.vision.preprocessing import Geometry, TokenRule
from qwenvl.vision.registry import build_encoder, resolve_encoder
from tests.vision.encoders.comparing import SIZE
from tests.vision.small_encoders import SMALL_ENCODERS, random_image


def test_default_input_of_naflex_is_that_of_the_librarys_image_processor():
    wanted = resolve_encoder("siglip2", config=SMALL_ENCODERS["siglip2#naflex"]).preprocessing
    made = Siglip2ImageProcessor(patch_size=8, max_num_patches=16)(random_image(*SIZE), return_tensors="pt")
    geometry = Geometry(wanted, TokenRule(8))
    assert list(geometry.grid(*SIZE)) == made["spatial_shapes"][0].tolist()
    pixels = geometry.prepare(torch.from_numpy(np.array(random_image(*SIZE))).permute(2, 0, 1)[None])
    patches = convert_image_to_patches(pixels[0], 8)
    assert torch.allclose(patches, made["pixel_values"][0, : len(patches)], atol=1e-5)


def test_naflex_patches_are_cut_as_its_own_image_processor_cuts_them():
    encoder = build_encoder(resolve_encoder("siglip2", config=SMALL_ENCODERS["siglip2#naflex"]))
    pixels = torch.randn(2, 3, 16, 40)
    made = encoder.model_inputs(pixels)
    assert torch.equal(made["pixel_values"], torch.stack([convert_image_to_patches(image, 8) for image in pixels]))
    assert made["spatial_shapes"].tolist() == [[2, 5], [2, 5]]


@pytest.mark.parametrize(("case", "is_naflex"), [("siglip2", False), ("siglip2#naflex", True)])
def test_only_naflex_gets_patches(case, is_naflex):
    encoder = build_encoder(resolve_encoder("siglip2", config=SMALL_ENCODERS[case]))
    assert ("spatial_shapes" in encoder.model_inputs(torch.zeros(1, 3, 32, 32))) == is_naflex
    assert (encoder.preprocessing.resize == "naflex") == is_naflex
    assert encoder.preprocessing.interpolation == "bilinear"
