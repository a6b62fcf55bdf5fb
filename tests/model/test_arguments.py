import pytest

from qwenvl.model.arguments import BuildArguments


def test_merger_learning_rate_is_its_own_or_else_the_general_one(tmp_path) -> None:
    general = BuildArguments(output_dir=str(tmp_path), learning_rate=2e-5)
    own = BuildArguments(output_dir=str(tmp_path), learning_rate=2e-5, mm_projector_lr=1e-3)
    assert (general.merger_learning_rate, own.merger_learning_rate) == (2e-5, 1e-3)


@pytest.mark.parametrize(("bf16", "expected"), [(True, True), (False, False)])
def test_half_precision_follows_bf16(tmp_path, bf16: bool, expected: bool) -> None:
    assert BuildArguments(output_dir=str(tmp_path), bf16=bf16, use_cpu=True).half_precision is expected
