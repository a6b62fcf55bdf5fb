"""The contract, over every registered encoder and the open forms, at small sizes."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from qwenvl.vision import EncoderOptions, list_encoders
from qwenvl.vision.encoder import check_forward
from qwenvl.vision.registry import build_encoder, encoder_geometry, resolve_encoder
from tests.vision.small_encoders import SMALL_ENCODERS, ask, name_of, random_image, swap, with_encoder

CASES = list(SMALL_ENCODERS)
SIZES = [(40, 64), (90, 30), (64, 64)]
SUPPORTS_PREFIX = [case for case in CASES if not case.startswith(("aimv2", "siglip", "medsiglip", "timm:swin"))]
TRANSFORMERS = [
    case for case in CASES if not case.startswith(("timm:", "biomedclip", "hf:")) and "convnext" not in case
]


def test_every_registered_encoder_is_tested_here():
    assert set(list_encoders()) <= {name_of(case) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_counted_tokens_are_the_produced_ones_for_any_image_size(case, standin):
    model, processor = swap(standin, with_encoder(case))
    for i, (height, width) in enumerate(SIZES):
        inputs = ask(processor, [random_image(height, width, seed=i)])
        counted = processor.image_processor.get_number_of_image_patches(height, width, {})
        assert int(inputs["image_grid_thw"].prod()) == counted
        assert int((inputs["input_ids"] == processor.image_token_id).sum()) == counted
        produced = model.model.visual(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        assert produced.shape == (counted, model.config.text_config.hidden_size)


@pytest.mark.parametrize("case", CASES)
def test_saved_and_loaded_by_the_auto_classes_it_gives_equal_logits(case, standin, tmp_path):
    model, processor = swap(standin, with_encoder(case))
    images = [random_image(40, 64), random_image(90, 30, seed=1)]
    inputs = ask(processor, images)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    again = ask(AutoProcessor.from_pretrained(tmp_path), images)
    assert {key: value.tolist() for key, value in again.items()} == {
        key: value.tolist() for key, value in inputs.items()
    }
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, loaded(**again).logits)


@pytest.mark.parametrize("case", CASES)
def test_one_training_step_moves_the_merger_only(case, standin):
    model, processor = swap(standin, with_encoder(case))
    model.requires_grad_(False)
    model.model.visual.merger.requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = ask(processor, [random_image(40, 64)])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model.train()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"model.visual.merger.proj.weight", "model.visual.merger.proj.bias"}


@pytest.mark.parametrize("case", CASES)
def test_trained_encoder_gets_a_gradient_on_every_parameter_left_trainable(case, standin):
    model, processor = swap(standin, with_encoder(case))
    tower = model.model.visual
    left_out = tower.set_encoder_trainable(True)
    inputs = ask(processor, [random_image(40, 64)])
    tower(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output.square().sum().backward()
    without = {name for name, parameter in tower.encoder.named_parameters() if parameter.grad is None}
    assert without == set(left_out)
    assert len(left_out) < len(list(tower.encoder.parameters())) / 2


@pytest.mark.parametrize("case", SUPPORTS_PREFIX)
def test_kept_prefix_tokens_come_first_and_are_counted(case):
    config = SMALL_ENCODERS[case]
    torch.manual_seed(0)
    dropped = build_encoder(resolve_encoder(name_of(case), config=config)).eval()
    kept = build_encoder(
        resolve_encoder(name_of(case), config=config, options=EncoderOptions(keep_prefix_tokens=True))
    ).eval()
    kept.load_state_dict(dropped.state_dict())
    size = encoder_geometry(dropped).input_size(40, 64)
    whole, patches = check_forward(kept, *size), check_forward(dropped, *size)
    if kept.prefix_tokens:
        assert kept.token_grid(*size)[0] == 1
    assert whole.shape[1] == patches.shape[1] + kept.prefix_tokens
    assert torch.equal(whole[:, kept.prefix_tokens :], patches)


@pytest.mark.parametrize("case", TRANSFORMERS)
def test_final_norm_of_the_last_layer_is_the_published_output(case):
    config, name = SMALL_ENCODERS[case], name_of(case)
    published = build_encoder(resolve_encoder(name, config=config)).eval()
    size = encoder_geometry(published).input_size(40, 64)
    bare = build_encoder(resolve_encoder(name, config=config, options=EncoderOptions(final_norm=False))).eval()
    bare.load_state_dict(published.state_dict())
    features = check_forward(bare, *size)
    if bare.last_is_normed:
        features = getattr(bare.model, bare.final_norm_name)(features)
    assert torch.allclose(features, check_forward(published, *size), atol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if case != "dinov3#convnext"])
def test_inner_layer_gives_other_features_of_its_own_width(case):
    config, name = SMALL_ENCODERS[case], name_of(case)
    torch.manual_seed(0)
    last = build_encoder(resolve_encoder(name, config=config)).eval()
    inner = build_encoder(resolve_encoder(name, config=config, options=EncoderOptions(layer=-2))).eval()
    inner.load_state_dict(last.state_dict())
    size = encoder_geometry(last).input_size(40, 64)
    features = check_forward(inner, *size)
    assert features.shape[-1] == inner.hidden_size
    assert features.shape != check_forward(last, *size).shape or not torch.allclose(
        features, check_forward(last, *size)
    )
