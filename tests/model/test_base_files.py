import json
import shutil
from pathlib import Path

import pytest

from qwenvl.errors import UserError
from qwenvl.model.attention import resolve_attention
from qwenvl.model.base_files import refuse_broken_weights, refuse_other_processor, refuse_pointers
from qwenvl.model.build import load_config, load_pretrained, load_processor

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


@pytest.fixture
def base(standin: Path, tmp_path: Path) -> Path:
    """Return a copy of the stand-in's folder, without its weights, for a test to change."""
    return shutil.copytree(standin, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))


def _change_config(folder: Path, part: str | None, changes: dict) -> None:
    config = json.loads((folder / "config.json").read_text())
    (config if part is None else config[part]).update(changes)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (None, {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes"),
        (None, {"quantization_config": {"load_in_8bit": True}}, "bitsandbytes, 8 bit"),
        (None, {"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        (None, {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        (None, {"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        (None, {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {}}}, "compressed-"),
        (None, {"quantization_config": {"quant_method": "not_yet_invented"}}, "not_yet_invented"),
        (None, {"compression_config": {"format": "pack-quantized"}}, "see its config.json"),
        (None, {"quantization": {"group_size": 64, "bits": 4}}, "4 bit"),
        ("text_config", {"quantization_config": {"quant_method": "awq"}}, "awq"),
    ],
)
def test_a_quantized_model_is_refused_by_its_configuration(
    base: Path, part: str | None, changes: dict, message: str
) -> None:
    _change_config(base, part, changes)

    with pytest.raises(
        UserError, match=rf"holds quantized weights \({message}.*use the model that they were made from"
    ):
        load_config(str(base))


@pytest.mark.parametrize("name", ["hf_quant_config.json", "quantize_config.json", "quant_config.json"])
def test_a_quantized_model_is_refused_by_a_file_beside_its_configuration(base: Path, name: str) -> None:
    (base / name).write_text("{}")

    with pytest.raises(UserError, match=f"holds quantized weights .{name}"):
        load_config(str(base))


def test_a_model_that_says_it_is_not_quantized_is_loaded(base: Path) -> None:
    _change_config(base, None, {"quantization_config": None})

    assert load_config(str(base)).model_type == "qwen3_vl"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "has no tokenizer"),
        ("tokenizer.json", "{}", "no processor could be loaded: KeyError"),
        ("chat_template.json", None, "has no chat template"),
        ("chat_template.json", "{}", "no processor could be loaded: KeyError"),
        ("chat_template.json", '{"chat_template": "{{"}', "no processor could be loaded: TemplateSyntaxError"),
        ("preprocessor_config.json", "[", "not valid JSON"),
    ],
)
def test_a_damaged_processor_is_reported_in_one_line(base: Path, name: str, content: str | None, message: str) -> None:
    (base / name).unlink()
    if content is not None:
        (base / name).write_text(content)

    with pytest.raises(UserError, match=message):
        load_processor(str(base))


@pytest.mark.parametrize(
    "changes", [{"quantization_config": "x"}, {"vision_config": [1]}, {"model_type": [1]}], ids=str
)
def test_a_configuration_of_wrong_types_is_reported_in_one_line(base: Path, changes: dict) -> None:
    _change_config(base, None, changes)

    with pytest.raises(UserError, match="the model configuration could not be loaded"):
        load_config(str(base))


def test_a_processor_of_another_model_is_refused(base: Path) -> None:
    config, processor = load_config(str(base)), load_processor(str(base))
    refuse_other_processor(str(base), config, processor)
    processor.image_processor.patch_size = 14

    with pytest.raises(UserError, match=r"preprocessor_config.json has patch_size 14, its config.json 16"):
        refuse_other_processor(str(base), config, processor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 7}, r"its weights lack model\.language_model\.layers\.\d+\.\S+ \(and \d+ more\)"),
        ({"hidden_size": 96}, r"has the shape \[\d+, 64\] \(and \d+ more\), but config.json asks for \[\d+, 96\]"),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(
    standin: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    folder = shutil.copytree(standin, tmp_path / "base")
    _change_config(folder, "text_config", changes)

    with pytest.raises(UserError, match=message):
        load_pretrained(str(folder), dtype="auto", attention=resolve_attention("sdpa"))


def test_weights_that_are_cut_short_or_missing_are_named(standin: Path, base: Path) -> None:
    refuse_broken_weights(base)
    content = (standin / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        refuse_broken_weights(base)

    (base / "model.safetensors").write_bytes(content)
    refuse_broken_weights(base)
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors is missing"):
        refuse_broken_weights(base)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pointer_of_git_lfs_in_a_model_folder_is_named(base: Path, name: str) -> None:
    (base / name).write_text(POINTER)

    for load in (load_config, load_processor):
        with pytest.raises(UserError, match=rf"pointers of Git LFS instead of files \({name}\).*git lfs pull"):
            load(str(base))


def test_pointers_are_counted_and_a_file_or_a_name_on_the_hub_can_be_asked_about(tmp_path: Path) -> None:
    for name in ("a.bin", "b.bin", "c.bin"):
        (tmp_path / name).write_text(POINTER)

    with pytest.raises(UserError, match=r"a\.bin and 2 more"):
        refuse_pointers(tmp_path)
    with pytest.raises(UserError, match=r"b\.bin"):
        refuse_pointers(tmp_path / "b.bin")
    refuse_pointers("Qwen/Qwen3-VL-4B-Instruct")
