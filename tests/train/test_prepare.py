import json
import shutil
from pathlib import Path

import pytest

from qwenvl.bench.standin import build_standin_encoder
from qwenvl.data.arguments import DataArguments
from qwenvl.errors import UserError
from qwenvl.model.arguments import ModelArguments
from qwenvl.train import prepare as prepare_module
from qwenvl.train.argument import TrainingArguments
from qwenvl.train.prepare import prepare, prepare_base


def training_args(tmp_path: Path, **flags: object) -> TrainingArguments:
    return TrainingArguments(str(tmp_path / "run"), use_cpu=True, **flags)


def test_a_model_that_keeps_its_encoder_gets_its_own_processor_with_the_limits_of_the_flags(standin: Path) -> None:
    base = prepare_base(ModelArguments(str(standin)), DataArguments(max_pixels=4096, min_pixels=1024))

    assert base.vision_config is None
    assert base.config.model_type == "qwen3_vl"
    assert (base.processor.image_processor.size["longest_edge"], base.processor.image_processor.merge_size) == (4096, 2)


def test_a_swapped_encoder_brings_the_processor_that_fits_it(standin: Path, tmp_path: Path) -> None:
    encoder = build_standin_encoder(tmp_path / "encoder")
    flags = {"custom_vision_encoder": "rad_dino", "custom_vision_pretrained_path": str(encoder)}

    base = prepare_base(ModelArguments(str(standin), **flags), DataArguments())

    assert base.vision_config.encoder == "rad_dino"
    assert type(base.processor.image_processor).__name__ != "Qwen2VLImageProcessor"


def test_a_feature_cache_of_the_official_encoder_is_refused_before_the_processor_is_read(
    standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "load_processor", None)

    with pytest.raises(UserError, match="keeps the features of a custom encoder"):
        prepare_base(ModelArguments(str(standin), cache_vision_features=str(tmp_path / "cache")), DataArguments())


def test_a_processor_of_another_model_is_refused(standin: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(standin, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["patch_size"] = 14
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(UserError, match="has patch_size 16, its config.json 14"):
        prepare_base(ModelArguments(str(folder)), DataArguments())


@pytest.mark.parametrize("dry_run", [True, False])
def test_only_a_dry_run_needs_no_weights(
    standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    folder = shutil.copytree(standin, tmp_path / "base")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    monkeypatch.setattr(prepare_module, "make_supervised_data_module", lambda *args, **kwargs: "data")
    flags = ModelArguments(str(folder)), DataArguments(), training_args(tmp_path, dry_run=dry_run)

    if dry_run:
        assert prepare(*flags).data == "data"
    else:
        with pytest.raises(UserError, match="model.safetensors is damaged"):
            prepare(*flags)


@pytest.mark.parametrize(("tune_mm_llm", "only_vision"), [(False, True), (True, False)])
def test_the_data_is_made_for_the_attention_and_the_parts_that_are_trained(
    standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tune_mm_llm: bool, only_vision: bool
) -> None:
    monkeypatch.setattr(prepare_module, "make_supervised_data_module", lambda *args, **kwargs: kwargs)
    model_args = ModelArguments(str(standin), tune_mm_llm=tune_mm_llm, attn_implementation="sdpa")

    prepared = prepare(model_args, DataArguments(), training_args(tmp_path))

    assert prepared.attention.backend == "sdpa"
    assert prepared.data == {"varlen": False, "only_vision_is_trained": only_vision}
