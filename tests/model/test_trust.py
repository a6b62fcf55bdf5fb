import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from qwenvl import load_checkpoint
from qwenvl.bench.standin import build_standin
from qwenvl.checkpoint.manifest import MANIFEST_NAME
from qwenvl.errors import UserError
from qwenvl.model.build import load_config, load_processor
from qwenvl.model.trust import refuse_foreign_code, refuse_foreign_pickles
from qwenvl.train.train_qwen import train
from tests.train.conftest import command_line


class Payload:
    """What a hostile pickle holds: a call."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Return a Python file that leaves the folder `ran` beside it when it is run."""
    file = tmp_path / "hostile.py"
    file.write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    return file


@pytest.mark.parametrize("form", ["absolute", "relative", "in a parent folder"])
def test_an_encoder_in_a_python_file_that_a_checkpoint_names_is_not_run(
    own_copy: Path, hostile: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_copy if form == "in a parent folder" else hostile.parent)
    file = {"absolute": str(hostile), "relative": "hostile.py", "in a parent folder": "../hostile.py"}[form]
    (own_copy / MANIFEST_NAME).unlink()
    vision_config = json.loads((own_copy / "config.json").read_text())["vision_config"]
    change_json(own_copy / "config.json", vision_config=vision_config | {"encoder": f"{file}:Encoder"})

    with pytest.raises(
        UserError, match=rf"names an encoder in a Python file, {file}:Encoder, .*trust_remote_code=True"
    ):
        load_checkpoint(own_copy, device="cpu")
    assert not (hostile.parent / "ran").exists()

    with pytest.raises(UserError):  # it is run now, and holds no encoder
        load_checkpoint(own_copy, device="cpu", trust_remote_code=True)
    assert (hostile.parent / "ran").exists()


def test_neither_is_that_of_a_whole_model_or_a_base_model(
    own_copy: Path, trained_flags: dict, hostile: Path, tmp_path: Path
) -> None:
    model = build_standin(tmp_path / "model")
    vision_config = json.loads((own_copy / "config.json").read_text())["vision_config"]
    change_json(
        model / "config.json",
        model_type="qwen3_vl_custom_vision",
        vision_config=vision_config | {"encoder": f"{hostile}:Encoder"},
    )
    (own_copy / MANIFEST_NAME).unlink()
    change_json(own_copy / "adapter_config.json", base_model_name_or_path=str(model))

    with pytest.raises(UserError, match="names an encoder in a Python file"):
        load_checkpoint(model, device="cpu")
    with pytest.raises(UserError, match=f"the base model of {own_copy}: .*names an encoder in a Python file"):
        load_checkpoint(own_copy, device="cpu")
    with pytest.raises(UserError, match="names an encoder in a Python file"):
        train(command_line(**trained_flags | {"model_name_or_path": model}, output_dir=tmp_path / "new"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_code_that_a_configuration_names_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    model = build_standin(tmp_path / "model")
    if not (model / name).is_file():
        (model / name).write_text("{}")
    change_json(model / name, inner=[{"auto_map": {"AutoModel": "hostile.Model"}}])

    for load in (load_config, load_processor):
        with pytest.raises(UserError, match=rf"its {name} names code of its own \(`auto_map`\)"):
            load(str(model))
    refuse_foreign_code(model, trust_remote_code=True)


def test_a_module_that_an_adapter_would_import_is_refused(own_copy: Path) -> None:
    change_json(own_copy / "adapter_config.json", megatron_config={"a": 1}, megatron_core="hostile")

    with pytest.raises(UserError, match="names a module to import"):
        refuse_foreign_code(own_copy)


@pytest.mark.parametrize(("name", "kind"), [("adapter_model", "own_copy"), ("pytorch_model", "model")])
def test_weights_that_are_a_pickle_are_refused_even_if_trusted(
    own_copy: Path, tmp_path: Path, name: str, kind: str
) -> None:
    folder = own_copy if kind == "own_copy" else build_standin(tmp_path / "model")
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    torch.save({"weight": Payload(tmp_path / "ran")}, folder / f"{name}.bin")

    for trusted in (False, True):
        with pytest.raises(UserError, match=f"its weights are a pickle, {name}.bin"):
            load_checkpoint(folder, device="cpu", trust_remote_code=trusted)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [2, 4, None])
@pytest.mark.parametrize(
    "name", ["optimizer.pt", "rng_state_0.pth", "global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt"]
)
def test_a_pickle_of_a_checkpoint_to_resume_that_calls_something_is_refused_by_name(
    own_copy: Path, tmp_path: Path, name: str, protocol: int | None
) -> None:
    path = own_copy / "checkpoint-2" / name
    path.parent.mkdir(exist_ok=True)
    states = {"state": Payload(tmp_path / "ran")}
    if protocol is None:
        path.write_bytes(pickle.dumps(states))
    else:
        torch.save(states, path, pickle_protocol=protocol)

    with pytest.raises(
        UserError, match=f"{path}: a pickle that holds more than numbers and names .*--trust_remote_code True"
    ):
        refuse_foreign_pickles(own_copy / "checkpoint-2")
    assert not (tmp_path / "ran").exists()
    refuse_foreign_pickles(own_copy / "checkpoint-2", trust_remote_code=True)


def test_what_the_trainer_and_deepspeed_pickle_is_taken(own_copy: Path) -> None:
    loss_scaler = pytest.importorskip("deepspeed.runtime.fp16.loss_scaler")
    zero_config = pytest.importorskip("deepspeed.runtime.zero.config")
    fragments = pytest.importorskip("deepspeed.utils.tensor_fragment")
    states = own_copy / "checkpoint-2" / "global_step2" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    states.parent.mkdir()
    states_dict = {
        "loss_scaler": loss_scaler.LossScaler(1.0),
        "dynamic_loss_scale": loss_scaler.DynamicLossScaler(
            init_scale=4,
            scale_window=2,
            min_scale=1,
            delayed_shift=1,
            consecutive_hysteresis=False,
            raise_error_at_min_scale=True,
            dtype=torch.half,
        ),
        "zero_stage": zero_config.ZeroStageEnum.gradients,
        "param_slice_mappings": {"weight": fragments.fragment_address(numel=4, start=0)},
    }
    torch.save({"optimizer_state_dict": states_dict}, states)

    refuse_foreign_pickles(own_copy / "checkpoint-2")


def test_pickles_behind_a_link_or_another_name_are_looked_at(own_copy: Path, tmp_path: Path) -> None:
    folder = own_copy / "checkpoint-2"
    (tmp_path / "elsewhere").mkdir()
    torch.save(Payload(tmp_path / "ran"), tmp_path / "elsewhere" / "mp_rank_00_model_states.pt")

    (folder / "latest").write_text("../../elsewhere")
    with pytest.raises(UserError, match="expected a folder beside it such as global_step100"):
        refuse_foreign_pickles(folder)
    (folder / "latest").write_text("global_step2")
    (folder / "global_step2").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="mp_rank_00_model_states.pt: a pickle that holds more than"):
        refuse_foreign_pickles(folder)
