"""Code that a configuration names runs only if the caller allows it."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from qwenvl.errors import UserError
from qwenvl.model.arguments import ModelArguments
from qwenvl.model.custom_vision import plan_custom_vision
from qwenvl.vision import TowerOptions, trust
from qwenvl.vision.encoder import EncoderSpec
from qwenvl.vision.registry import build_encoder, build_on_meta, encoder_class, resolve_encoder
from tests.vision.small_encoders import SMALL_ENCODERS, swap

FOREIGN = """
from pathlib import Path
from tests.vision.small_encoders import PatchEncoder

Path(__file__).with_name("it_ran").touch()

class Foreign(PatchEncoder):
    pass
"""
REFUSED = "names its encoder by code, .*foreign.py:Foreign, and code that a model names runs only if it is allowed"


@pytest.fixture(scope="module")
def swapped(standin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model whose encoder is a file, as another user may have saved it."""
    folder = tmp_path_factory.mktemp("swapped")
    (folder / "foreign.py").write_text(FOREIGN)
    model, processor = swap(standin, TowerOptions(f"{folder}/foreign.py:Foreign"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def foreign(swapped: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return that folder in a process that does not trust the file; the file writes a marker when it runs."""
    monkeypatch.setattr(trust, "_TRUSTED_FILES", set())
    for name in [name for name in sys.modules if name.startswith("qwenvl_user_encoder_foreign")]:
        monkeypatch.delitem(sys.modules, name)
    (swapped / "it_ran").unlink(missing_ok=True)
    return swapped


def name_encoder(folder: Path, name: str) -> None:
    """Write another name of the encoder into a folder's configuration."""
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["encoder"] = name
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["foreign.py:Foreign", "below/../foreign.py:Foreign", "{folder}/foreign.py:Foreign"])
def test_no_way_of_loading_runs_the_file_that_a_configuration_names(
    foreign: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    name_encoder(foreign, name.format(folder=foreign))
    (foreign / "below").mkdir(exist_ok=True)
    monkeypatch.chdir(foreign)
    config = AutoConfig.from_pretrained(foreign)
    AutoProcessor.from_pretrained(foreign)
    spec = config.vision_config.encoder_spec()
    assert isinstance(spec, EncoderSpec)

    for load in (
        lambda: AutoModelForImageTextToText.from_pretrained(foreign),
        lambda: AutoModelForImageTextToText.from_pretrained(foreign, trust_remote_code=False),
        lambda: AutoModelForImageTextToText.from_config(config),
        lambda: AutoModel.from_config(config.vision_config),
        lambda: build_encoder(spec),
        lambda: build_on_meta(spec),
        lambda: encoder_class(spec.name),
    ):
        with pytest.raises(UserError, match=REFUSED):
            load()
    assert not (foreign / "it_ran").exists()


def test_transformers_own_flag_lets_it_run(foreign: Path) -> None:
    name_encoder(foreign, f"{foreign}/foreign.py:Foreign")

    model = AutoModelForImageTextToText.from_pretrained(foreign, trust_remote_code=True)

    assert type(model.model.visual.encoder).__name__ == "Foreign"
    assert (foreign / "it_ran").exists()


def test_a_base_model_with_such_a_name_is_refused_before_anything_else_and_allowed_by_the_flag(foreign: Path) -> None:
    name_encoder(foreign, f"{foreign}/foreign.py:Foreign")
    config, processor = AutoConfig.from_pretrained(foreign), AutoProcessor.from_pretrained(foreign)
    for flags in ({}, {"custom_vision_encoder": "rad_dino"}):
        with pytest.raises(UserError, match=f"--model_name_or_path {foreign}: .*{REFUSED}.*--trust_remote_code True"):
            plan_custom_vision(ModelArguments(str(foreign), **flags), config, processor)
    assert not (foreign / "it_ran").exists()

    assert plan_custom_vision(ModelArguments(str(foreign), trust_remote_code=True), config, processor) is None
    with torch.device("meta"):
        AutoModelForImageTextToText.from_config(config)
    assert (foreign / "it_ran").exists()


def test_trust_is_of_one_file_and_not_of_its_neighbors(foreign: Path) -> None:
    trust.trust_encoder_file(f"{foreign}/other.py:Foreign")
    trust.trust_encoder_file("rad_dino")

    with pytest.raises(UserError, match=REFUSED):
        encoder_class(f"{foreign}/foreign.py:Foreign")


class Payload:
    """A pickle of this makes a file where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("dinov2", "pytorch_model.bin"),
        ("timm:vit_tiny_patch16_224", "pytorch_model.bin"),
        ("biomedclip", "open_clip_pytorch_model.bin"),
        ("own", "weights.pt"),
    ],
)
def test_a_pickle_among_an_encoders_weights_is_refused_in_one_line(tmp_path: Path, name: str, file: str) -> None:
    mark = tmp_path / "it_ran"
    torch.save({"weight": torch.ones(1), "more": Payload(mark)}, tmp_path / file)
    path = tmp_path
    if name == "own":
        (tmp_path / "own.py").write_text(FOREIGN.replace("it_ran", "own_ran"))
        spec = resolve_encoder(f"{tmp_path}/own.py:Foreign", path=str(tmp_path / file))
    else:
        config = {**SMALL_ENCODERS[name]}
        (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "dinov2"}))
        spec = resolve_encoder(name, path=str(path), config=config)

    with pytest.raises(UserError, match=f"{tmp_path}.* a pickle that would run code, which is not loaded") as caught:
        build_encoder(spec)

    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_code_beside_an_encoders_weights_is_refused_in_one_line_and_not_asked_about(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "unheard_of", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}})
    )
    (tmp_path / "own.py").write_text(FOREIGN)

    with pytest.raises(UserError, match="config.json names its own code .auto_map., which is not run"):
        resolve_encoder("hf:someone/model", path=str(tmp_path))
    assert not (tmp_path / "it_ran").exists()
