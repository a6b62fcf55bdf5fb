"""The tower: a frozen encoder costs nothing twice, and pixels that do not fit are named."""

import pytest
import torch
from torch import nn

from qwenvl.errors import UserError
from qwenvl.vision import CustomVisionConfig, EncoderOptions
from tests.vision.small_encoders import SMALL_ENCODERS, TowerOptions, ask, random_image, swap, with_encoder


@pytest.fixture
def swapped(standin):
    model, processor = swap(standin, with_encoder("rad_dino"))
    return model, ask(processor, [random_image(40, 64)])


def encode(model: nn.Module, inputs) -> torch.Tensor:
    return model.model.visual(inputs["pixel_values"], inputs["image_grid_thw"])


def test_frozen_encoder_builds_no_graph_and_the_merger_does(swapped):
    model, inputs = swapped
    output = encode(model.train(), inputs)
    assert not output.last_hidden_state.requires_grad
    assert output.pooler_output.requires_grad
    # Checkpointing has every embedding's output ask for a gradient, the encoder's patch embedding among them.
    model.enable_input_require_grads()
    assert not encode(model, inputs).last_hidden_state.requires_grad
    model.model.visual.set_encoder_trainable(True)
    assert encode(model, inputs).last_hidden_state.requires_grad


def test_frozen_encoder_stays_in_eval_mode_when_the_model_trains(standin):
    config = {**SMALL_ENCODERS["rad_dino"], "hidden_dropout_prob": 0.5, "drop_path_rate": 0.5}
    model, processor = swap(standin, TowerOptions("rad_dino", encoder_config=config))
    inputs = ask(processor, [random_image(40, 64)])
    tower = model.train().model.visual
    assert tower.training and not any(module.training for module in tower.encoder.modules())
    assert torch.equal(encode(model, inputs).pooler_output, encode(model, inputs).pooler_output)
    tower.set_encoder_trainable(True)
    model.train()
    assert all(module.training for module in tower.encoder.modules())
    assert not torch.equal(encode(model, inputs).pooler_output, encode(model, inputs).pooler_output)
    tower.encoder.requires_grad_(False)
    assert torch.equal(encode(model, inputs).pooler_output, encode(model, inputs).pooler_output)


def test_mask_token_stays_frozen_and_is_reported(standin, caplog):
    model, _ = swap(standin, with_encoder("rad_dino"))
    with caplog.at_level("INFO"):
        assert model.model.visual.set_encoder_trainable(True) == ["model.embeddings.mask_token"]
    assert "model.embeddings.mask_token" in caplog.text
    trainable = {name for name, value in model.model.visual.encoder.named_parameters() if value.requires_grad}
    assert "model.embeddings.mask_token" not in trainable and "model.layernorm.weight" in trainable


def test_with_an_inner_layer_the_blocks_behind_it_stay_frozen(standin):
    model, _ = swap(standin, with_encoder("rad_dino", options=EncoderOptions(layer=-2)))
    left_out = model.model.visual.set_encoder_trainable(True)
    behind = {name for name, _ in model.model.visual.encoder.named_parameters() if ".layer.2." in name}
    assert behind and set(left_out) == behind | {
        "model.embeddings.mask_token",
        "model.layernorm.weight",
        "model.layernorm.bias",
    }


def test_gradient_checkpointing_of_a_trained_encoder_gives_equal_gradients(standin):
    for case in ("rad_dino", "timm:vit_tiny_patch16_224"):
        model, processor = swap(standin, with_encoder(case))
        inputs = ask(processor, [random_image(40, 64)])
        model.train().model.visual.set_encoder_trainable(True)
        gradients = []
        for checkpointing in (False, True):
            model.zero_grad()
            if checkpointing:
                model.gradient_checkpointing_enable()
                model.enable_input_require_grads()
                layers = [module for module in model.model.visual.encoder.modules() if _checkpoints(module)]
                assert layers
            encode(model, inputs).pooler_output.square().sum().backward()
            gradients.append([p.grad.clone() for p in model.model.visual.parameters() if p.grad is not None])
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def _checkpoints(module: nn.Module) -> bool:
    return bool(getattr(module, "gradient_checkpointing", False))


def test_encoder_in_another_precision_than_the_merger_works(swapped):
    model, inputs = swapped
    expected = encode(model, inputs).pooler_output
    model.model.visual.encoder.to(torch.bfloat16)
    found = encode(model, inputs).pooler_output
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.99


def test_pixels_of_another_processor_are_named(swapped, processor):
    model, inputs = swapped
    official = processor.image_processor([random_image(40, 64)], return_tensors="pt")
    with pytest.raises(UserError, match="do not hold the 1 media of the grid; use the processor saved with this model"):
        model.model.visual(official["pixel_values"], official["image_grid_thw"])
    with pytest.raises(UserError, match="1 images in pixel_values, but the grid counts 2"):
        model.model.visual(inputs["pixel_values"], inputs["image_grid_thw"].repeat(2, 1))


def test_counts_that_disagree_with_the_features_are_named_with_both(swapped):
    model, inputs = swapped
    with pytest.raises(UserError, match=r"returned \(1, 16, 32\) .* counted \(1, 15, 32\)"):
        model.model.visual(inputs["pixel_values"], torch.tensor([[1, 3, 5]]))


def test_given_features_skip_the_encoder(swapped):
    model, inputs = swapped
    expected = encode(model, inputs)
    model.model.visual.encoder.forward = None
    features = expected.last_hidden_state.unsqueeze(1)
    given = model.model.visual(features, inputs["image_grid_thw"])
    assert torch.equal(given.pooler_output, expected.pooler_output)
    with pytest.raises(UserError, match=r"shape \(15, 1, 32\), expected \(16, 1, 32\)"):
        model.model.visual(features[1:], inputs["image_grid_thw"])


def test_long_video_is_encoded_in_pieces_with_equal_results(swapped, monkeypatch):
    model, _ = swapped
    frames, grid = torch.randn(5, 3, 28, 28), torch.tensor([[5, 4, 4]])
    expected = model.model.visual(frames, grid).pooler_output
    monkeypatch.setattr("qwenvl.vision.tower.FROZEN_ENCODER_BATCH", 2)
    assert torch.allclose(model.model.visual(frames, grid).pooler_output, expected, atol=1e-6)


def test_unknown_input_mode_is_named():
    with pytest.raises(UserError, match="--custom_vision_input raw: expected native or qwen"):
        CustomVisionConfig(input_mode="raw")
