"""The forward pass of training gives the hidden states of Transformers' own, and puts features where they belong."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from qwenvl.bench.standin import build_standin
from qwenvl.model.forward import hidden_states

GRID = torch.tensor([[1, 4, 4], [1, 2, 4]])
TEXT = 5


@pytest.fixture(scope="module", params=["dense", "moe"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = build_standin(tmp_path_factory.mktemp("forward") / request.param, moe=request.param == "moe")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    model.config.text_config.use_cache = False
    return model.eval()


def batch_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return a row of text, an image of 4 tokens, text, an image of 2 tokens and text."""
    torch.manual_seed(0)
    image = model.config.image_token_id
    ids = [7] * TEXT + [image] * 4 + [8] * TEXT + [image] * 2 + [9] * TEXT
    width = model.model.visual.patch_embed.proj.weight[0].numel()
    return {
        "input_ids": torch.tensor([ids]),
        "pixel_values": torch.randn(int(GRID.prod(1).sum()), width),
        "image_grid_thw": GRID,
    }


@torch.no_grad()
def test_hidden_states_are_those_of_transformers(model: PreTrainedModel) -> None:
    batch = batch_of(model)
    is_image = batch["input_ids"] == model.config.image_token_id
    expected = model.model(**batch, mm_token_type_ids=is_image.int()).last_hidden_state
    positions, _ = model.model.get_rope_index(batch["input_ids"], image_grid_thw=GRID, mm_token_type_ids=is_image.int())
    order = torch.arange(batch["input_ids"].shape[1])[None, None]

    found = hidden_states(
        model.model,
        **batch,
        position_ids=torch.cat([order, positions]),
        image_rows=is_image.flatten().nonzero().flatten(),
    )

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_features_of_deepstack_are_added_at_the_placeholders_alone(model: PreTrainedModel) -> None:
    batch = batch_of(model)
    rows = (batch["input_ids"] == model.config.image_token_id).flatten().nonzero().flatten()
    positions = torch.arange(batch["input_ids"].shape[1]).expand(4, 1, -1)
    after_first = []
    handle = model.model.language_model.layers[1].register_forward_pre_hook(
        lambda layer, inputs: after_first.append(inputs[0].clone())
    )
    for changed in (False, True):
        for merger in model.model.visual.deepstack_merger_list if changed else []:
            merger.linear_fc2.bias.add_(1.0)
        hidden_states(model.model, **batch, position_ids=positions, image_rows=rows)
    handle.remove()
    for merger in model.model.visual.deepstack_merger_list:
        merger.linear_fc2.bias.sub_(1.0)

    difference = (after_first[1] - after_first[0]).abs().flatten(0, 1).amax(-1)
    assert difference[rows].min() > 0.9
    difference[rows] = 0
    assert difference.max() == 0
