import pytest

from qwenvl.errors import UserError
from qwenvl.model.arguments import BuildArguments, ModelArguments


def test_merger_learning_rate_is_its_own_or_else_the_general_one(tmp_path) -> None:
    general = BuildArguments(output_dir=str(tmp_path), learning_rate=2e-5)
    own = BuildArguments(output_dir=str(tmp_path), learning_rate=2e-5, mm_projector_lr=1e-3)
    assert (general.merger_learning_rate, own.merger_learning_rate) == (2e-5, 1e-3)


@pytest.mark.parametrize(("bf16", "expected"), [(True, True), (False, False)])
def test_half_precision_follows_bf16(tmp_path, bf16: bool, expected: bool) -> None:
    assert BuildArguments(output_dir=str(tmp_path), bf16=bf16, use_cpu=True).half_precision is expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"vision_layer": -2}, "--vision_layer -2 is for a custom encoder"),
        ({"save_encoder": True}, "--save_encoder True is for a custom encoder"),
        ({"custom_vision_pretrained_path": "encoders/a"}, "--custom_vision_pretrained_path encoders/a is for a custom"),
    ],
)
def test_a_flag_of_a_custom_encoder_is_refused_without_one(flags: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"{message}.*name one by --custom_vision_encoder"):
        ModelArguments(**flags)

    ModelArguments(custom_vision_encoder="rad_dino", **flags)
