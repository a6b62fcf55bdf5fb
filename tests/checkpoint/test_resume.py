import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qwenvl.checkpoint.manifest import write_manifest
from qwenvl.checkpoint.resume import check_encoder, check_same_data, find_resume_checkpoint, missing_files
from qwenvl.checkpoint.save import run_arguments
from qwenvl.errors import UserError
from qwenvl.train.argument import DataArguments, ModelArguments, TrainingArguments

RNG = ["rng_state_0.pth", "rng_state_1.pth"]
PLAIN = ["adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", *RNG]
ZERO2 = ["mp_rank_00_model_states.pt", *(f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2))]
ZERO3 = [f"zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt" for rank in range(2) for kind in ("model", "optim")]


def write_checkpoint(folder: Path, names: list[str], arguments: dict) -> Path:
    """Write a checkpoint whose files are empty but for those that are read; its manifest says that this is right."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
        if name.endswith((".pt", ".pth")):
            torch.save({}, folder / name)
    if "latest" in names:
        (folder / "latest").write_text("global_step2")
    (folder / "trainer_state.json").write_text("{}")
    (folder / "run_arguments.json").write_text(json.dumps(arguments))
    write_manifest(folder)
    return folder


def arguments(folder: Path, **values: object) -> dict:
    groups = (ModelArguments(), DataArguments(dataset_use="a.json"), TrainingArguments(str(folder), use_cpu=True))
    return run_arguments(*groups) | {"world_size": 2, "zero_stage": None, "trust_remote_code": True} | values


def deepspeed(names: list[str]) -> list[str]:
    files = ["adapter_config.json", "adapter_model.safetensors", "scheduler.pt", "latest", *RNG]
    return files + [f"global_step2/{name}" for name in names]


@pytest.mark.parametrize(("stage", "names"), [(None, PLAIN), (2, deepspeed(ZERO2)), (3, deepspeed(ZERO3))])
def test_every_file_that_the_run_needs_is_asked_for_by_name(
    tmp_path: Path, stage: int | None, names: list[str]
) -> None:
    now = arguments(tmp_path, zero_stage=stage)
    folder = write_checkpoint(tmp_path / "checkpoint-2", names, now)
    assert find_resume_checkpoint(str(tmp_path), "auto", now) == str(folder)
    assert missing_files(folder, now, now) == []

    for name in names:
        if name != "adapter_config.json":
            (folder / name).rename(tmp_path / "away")
            assert missing_files(folder, now, now) == [name.replace("bf16_", "")]
            (tmp_path / "away").rename(folder / name)


def test_a_checkpoint_that_lacks_a_file_is_refused_with_its_name(tmp_path: Path) -> None:
    now = arguments(tmp_path)
    write_checkpoint(tmp_path / "checkpoint-2", PLAIN[:-1], now)

    with pytest.raises(UserError, match="checkpoint-2 lacks rng_state_1.pth, without which the run cannot be resumed"):
        find_resume_checkpoint(str(tmp_path), "auto", now)


@pytest.mark.parametrize("name", ["trainer_state.json", "run_arguments.json"])
def test_a_checkpoint_that_does_not_say_what_run_it_is_of_is_refused(tmp_path: Path, name: str) -> None:
    now = arguments(tmp_path)
    folder = write_checkpoint(tmp_path / "checkpoint-2", PLAIN, now)
    (folder / name).unlink()

    with pytest.raises(UserError, match=name):
        find_resume_checkpoint(str(tmp_path), str(folder), now)


def test_shards_of_a_whole_model_are_asked_for(tmp_path: Path) -> None:
    now = arguments(tmp_path)
    names = ["config.json", "optimizer.pt", "scheduler.pt", *RNG]
    folder = write_checkpoint(tmp_path / "checkpoint-2", names, now)

    assert missing_files(folder, now, now) == ["model.safetensors"]
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-00001-of-00002.safetensors").touch()
    assert missing_files(folder, now, now) == ["model-00002-of-00002.safetensors"]


def test_other_processes_need_no_random_state_and_fp16_needs_its_scale(tmp_path: Path) -> None:
    before = arguments(tmp_path)
    folder = write_checkpoint(tmp_path / "checkpoint-2", PLAIN, before)

    assert missing_files(folder, before, before | {"world_size": 1}) == []
    assert missing_files(folder, before, before | {"fp16": True}) == ["scaler.pt"]


@pytest.mark.parametrize(
    ("before", "now", "names", "message"),
    [
        (2, None, deepspeed(ZERO2), "DeepSpeed ZeRO stage 2, and this one has no DeepSpeed.*zero2.json"),
        (None, 2, PLAIN, "no DeepSpeed, and this one has DeepSpeed ZeRO stage 2.*leave --deepspeed out"),
        (3, 2, deepspeed(ZERO3), "stage 3, and this one has DeepSpeed ZeRO stage 2"),
        (2, 3, deepspeed(ZERO2), "stage 2, and this one has DeepSpeed ZeRO stage 3"),
    ],
)
@pytest.mark.parametrize("recorded", [True, False])
def test_another_stage_of_deepspeed_is_refused_in_one_line(
    tmp_path: Path, before: int | None, now: int | None, names: list[str], message: str, recorded: bool
) -> None:
    then = arguments(tmp_path, zero_stage=before, deepspeed=None if before is None else "zero.json")
    if not recorded:  # as versions did that knew no more than the file
        del then["zero_stage"]
    write_checkpoint(tmp_path / "checkpoint-2", names, then)

    with pytest.raises(UserError, match=message) as raised:
        find_resume_checkpoint(str(tmp_path), "auto", arguments(tmp_path, zero_stage=now))
    assert "\n" not in str(raised.value)


def test_auto_does_not_start_afresh_over_superseded_checkpoints(tmp_path: Path) -> None:
    now = arguments(tmp_path)
    folder = write_checkpoint(tmp_path / "superseded" / "checkpoint-2", PLAIN, now)

    with pytest.raises(UserError, match=f"only superseded checkpoints; name the one to resume from, such as {folder}"):
        find_resume_checkpoint(str(tmp_path), "auto", now)
    assert find_resume_checkpoint(str(tmp_path), str(folder), now) == str(folder)


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    now = arguments(tmp_path)
    write_checkpoint(tmp_path / "checkpoint-16", PLAIN, now)

    with pytest.raises(UserError, match=r"checkpoint-4 is not a checkpoint of a run .*holds checkpoint-16: name one"):
        find_resume_checkpoint(str(tmp_path), str(tmp_path / "checkpoint-4"), now)


def test_a_finished_model_without_a_checkpoint_is_not_trained_over(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").touch()

    with pytest.raises(UserError, match="holds a finished model and no checkpoint"):
        find_resume_checkpoint(str(tmp_path), "auto", arguments(tmp_path))


@pytest.mark.parametrize(
    ("flag", "then", "now"), [("per_device_train_batch_size", 2, 1), ("lora_r", 4, 8)], ids=["batch", "rank"]
)
def test_a_run_with_other_flags_is_refused_with_both_values(tmp_path: Path, flag: str, then: int, now: int) -> None:
    write_checkpoint(tmp_path / "checkpoint-2", PLAIN, arguments(tmp_path, **{flag: then}))

    with pytest.raises(UserError, match=f"--{flag} {then}, this one has {now}"):
        find_resume_checkpoint(str(tmp_path), "auto", arguments(tmp_path, **{flag: now}))


DATA = {"records": 10, "tokens": 500, "sha256": "a"}


@pytest.mark.parametrize("now", [DATA | {"records": 11}, DATA | {"tokens": 501}, DATA | {"sha256": "b"}])
def test_changed_samples_are_refused_with_the_numbers_of_both_runs(tmp_path: Path, now: dict) -> None:
    before = arguments(tmp_path, data=DATA, eval_data=None)
    folder = write_checkpoint(tmp_path / "checkpoint-2", PLAIN, before)
    check_same_data(str(folder), before)

    numbers = rf"10 records of 500 tokens then, {now['records']} of {now['tokens']} now"
    with pytest.raises(UserError, match=rf"--dataset_use a.json are not those of that run \({numbers}\)"):
        check_same_data(str(folder), before | {"data": now})


def test_changed_samples_of_evaluation_are_reported_but_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = arguments(tmp_path, data=DATA, eval_data=DATA)
    folder = write_checkpoint(tmp_path / "checkpoint-2", PLAIN, before)

    with caplog.at_level("INFO", logger="qwenvl"):
        check_same_data(str(folder), before | {"eval_data": DATA | {"records": 3}})

    assert "--eval_dataset_use are not those of the run so far (10 then, 3 now)" in caplog.text


@pytest.mark.parametrize("is_same", [True, False])
def test_another_frozen_encoder_is_refused_with_both_hashes(tmp_path: Path, is_same: bool) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint-2", PLAIN, arguments(tmp_path))
    (folder / "config.json").write_text(json.dumps({"vision_config": {"encoder_sha256": "old"}}))
    vision_config = SimpleNamespace(encoder_sha256="old" if is_same else "new", encoder_weights="encoders/rad-dino")
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision_config))

    with nullcontext() if is_same else pytest.raises(UserError, match="encoders/rad-dino .*SHA-256 new, expected old"):
        check_encoder(str(folder), model)
