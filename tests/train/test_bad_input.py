"""Every mistake of a user that training knows of: one line that tells what, where and what to do, and exit code 2."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qwenvl.train import train_qwen
from tests.train.conftest import RECIPE, REPOSITORY, command_line, conversation, write_records

GOOD = conversation("<image>\nWhat?", "A circle.", image="red.png")


@pytest.fixture
def fails(
    standin: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Return a function that runs the program with these records and flags, and returns its one line of complaint.

    No model may be loaded before the mistake is found.
    """

    def no_model(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded before the mistake was found")

    monkeypatch.setattr(train_qwen, "build_model", no_model)

    def run(content: str | list | None = None, **flags: object) -> str:
        path = tmp_path / "train.json"
        text = content if isinstance(content, str) else json.dumps(content if content is not None else [GOOD])
        path.write_text(text, encoding="utf-8")
        for name in ("red.png", "wide.png", "clip.mp4"):
            shutil.copy(media / name, tmp_path)
        arguments = {"model_name_or_path": standin, "dataset_use": path, "output_dir": tmp_path / "run"}
        arguments |= RECIPE | flags
        monkeypatch.setattr("sys.argv", ["train_qwen.py", *command_line(**arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            train_qwen.main()
        assert stopped.value.code == 2
        complaints = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(complaints) == 1
        return complaints[0]

    return run


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ["train.json", "empty"]),
        ("[]", ["train.json", "no usable record"]),
        ('[{"image": "red.png",\n  "conversations" []}]', ["train.json", "line 2", "column"]),
        ([GOOD, {"image": "red.png"}], ["train.json row 1", "conversations"]),
        ([conversation("<image><image>", "A.", image="red.png")], ["train.json row 0", "2", "1"]),
        ([conversation("<image>\nWhat?", "<image> it is.", image="red.png")], ["train.json row 0", "answer"]),
        ([conversation("<image>", "A.", image="gone.png")], ["train.json row 0", "gone.png"]),
        ([conversation("<image>", "A.", image="train.json")], ["train.json row 0", "train.json"]),
        ([conversation("<video>", "A.", video="red.png")], ["train.json row 0", "red.png"]),
        ([GOOD, conversation("<image>", "word " * 900, image="red.png")], ["train.json row 1", "512", "tokens"]),
    ],
    ids=[
        "empty file",
        "no records",
        "malformed JSON",
        "no conversations",
        "more placeholders than media",
        "placeholder in an answer",
        "missing image",
        "broken image",
        "broken video",
        "too long",
    ],
)
def test_a_bad_file_or_record_is_named_with_its_place(
    fails: Callable[..., str], content: str | list, message: list[str]
) -> None:
    complaint = fails(content)

    assert all(words in complaint for words in message), complaint


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dataset_use": "mimic_trian"}, ["mimic_trian", "mimic_train"]),
        ({"dataset_use": "nowhere/train.json"}, ["nowhere/train.json"]),
        ({"dataset_use": None}, ["--dataset_use"]),
        ({"lora_rang": 8}, ["--lora_rang is not a flag", "did you mean", "--lora_r"]),
        ({"max_pixels": "576*28*28"}, ["--max_pixels", "invalid int value"]),
        ({"tune_mm_mlp": "maybe"}, ["--tune_mm_mlp"]),
        ({"tune_mm_mlp": False}, ["--mm_projector_lr", "frozen"]),
        ({"vision_tower_lr": 1e-6}, ["--vision_tower_lr", "frozen"]),
        ({"tune_mm_llm": False}, ["--lora_enable", "--tune_mm_llm"]),
        (
            {"tune_mm_llm": False, "tune_mm_mlp": False, "lora_enable": False, "mm_projector_lr": None},
            ["nothing would be trained"],
        ),
        ({"min_pixels": 20000}, ["--min_pixels 20000 is above --max_pixels 16384"]),
        ({"attn_implementation": "fast"}, ["fast", "sdpa"]),
        ({"attn_implementation": "flash_attention_2"}, ["flash-attn is not installed"]),
        ({"model_name_or_path": "nowhere"}, ["nowhere"]),
        ({"vision_merger_path": "nowhere"}, ["--vision_merger_path nowhere", "output folder"]),
        ({"output_dir": "/proc/run"}, ["/proc/run", "cannot be written"]),
        ({"deepspeed": "zero9.json", "use_cpu": None}, ["zero9.json", "no such file"]),
        ({"optim": "adamw_8bit"}, ["--optim adamw_8bit", "install"]),
        ({"optim": "lomo"}, ["--optim lomo cannot be used here"]),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, ["cosine_with_min_lr", "min_lr_rate"]),
        ({"dataset": "train.json", "dataset_use": None}, ["--dataset is not a flag", "--dataset_use"]),
        ({"lora_r": None, "max_bad_samples": 5}, ["--max_bad_samples 5 needs --bad_sample_policy skip"]),
        ({"num_train_epochs": 0, "max_steps": None}, ["--num_train_epochs 0 trains nothing"]),
        ({"save_strategy": "steps", "save_steps": 0}, ["--save_steps 0: give a number above 0"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_bad_flag_is_named_with_what_to_do(fails: Callable[..., str], flags: dict, message: list[str]) -> None:
    complaint = fails(**flags)

    assert all(words in complaint for words in message), complaint


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen2_vl", "bert"])
def test_a_model_that_is_no_qwen3_vl_is_refused(fails: Callable[..., str], tmp_path: Path, model_type: str) -> None:
    folder = tmp_path / "qwen3-vl-4b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))

    assert f"is a {model_type} model; expected a Qwen3-VL" in fails(model_name_or_path=folder)


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("mistake", ["quantized", "pointer", "merger"])
def test_a_model_that_cannot_be_trained_from_is_refused_before_the_data_is_read(
    fails: Callable[..., str], standin: Path, tmp_path: Path, dry_run: bool, mistake: str
) -> None:
    base = shutil.copytree(standin, tmp_path / "base")
    flags: dict = {"model_name_or_path": base, "dataset_use": "nowhere.json", "dry_run": dry_run}
    if mistake == "quantized":
        config = json.loads((base / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        (base / "config.json").write_text(json.dumps(config))
    else:
        folder = base if mistake == "pointer" else tmp_path / "stage1"
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
        flags |= {"vision_merger_path": folder} if mistake == "merger" else {}

    message = "holds quantized weights (bitsandbytes)" if mistake == "quantized" else "holds pointers of Git LFS"
    assert message in fails(**flags)


@pytest.mark.parametrize("mistake", ["no such folder", "weights that are cut short", "an unknown encoder"])
def test_a_run_that_cannot_begin_makes_no_output_folder(
    fails: Callable[..., str], standin: Path, tmp_path: Path, mistake: str
) -> None:
    model, flags = tmp_path / "model", {}
    if mistake == "an unknown encoder":
        model, flags = standin, {"custom_vision_encoder": "rad_dina"}
    elif mistake == "weights that are cut short":
        shutil.copytree(standin, model)
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    fails(model_name_or_path=model, **flags)
    assert not (tmp_path / "run").exists()


def test_an_adapter_is_refused_as_a_model_and_its_base_is_named(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "models/4b"}))

    complaint = fails(model_name_or_path=tmp_path)

    assert all(words in complaint for words in (str(tmp_path), "adapter", "its base model, models/4b", "--resume"))


def test_a_folder_of_another_run_is_refused(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint-5").mkdir(parents=True)

    assert "another run's checkpoints" in fails()


def test_a_lora_target_that_matches_nothing_lists_what_there_is(fails: Callable[..., str]) -> None:
    complaint = fails(lora_target_modules="q_proj,w_pack", dataset_use="nowhere.json")

    assert "w_pack matches no linear layer of the language model; choose from down_proj, " in complaint


def test_text_alone_cannot_train_the_merger(fails: Callable[..., str]) -> None:
    assert "--tune_mm_mlp" in fails([conversation("Hello?", "Hello.")])


def test_under_skip_bad_samples_are_logged_and_the_run_goes_on(
    run_training: Callable[..., Path], media: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [conversation("<image>", "A.", image="red.png")] * 4 + [conversation("<image>", "B.", image="gone.png")]
    path = write_records(media / "one_bad.json", records)

    run_training(dataset_use=path, bad_sample_policy="skip")

    assert "row 4" in caplog.text
    assert "gone.png" in caplog.text


def test_under_skip_too_many_bad_samples_stop_the_run(fails: Callable[..., str]) -> None:
    records = [GOOD] + [conversation("<image>", "B.", image=f"gone_{i}.png") for i in range(3)]

    assert "--max_bad_samples" in fails(records, bad_sample_policy="skip", max_bad_samples=2)


def test_an_image_that_breaks_only_when_decoded_stops_the_run_with_its_name(
    run_training: Callable[..., Path], media: Path
) -> None:
    whole = (media / "wide.png").read_bytes()
    (media / "cut.png").write_bytes(whole[: len(whole) // 2])
    path = write_records(media / "cut.json", [conversation("<image>", "A.", image="cut.png")] * 2)

    with pytest.raises(ValueError, match=r"cut\.json row \d.*cut\.png"):
        run_training(dataset_use=path)


def test_an_image_that_breaks_in_a_data_worker_ends_the_program_with_one_line(
    standin: Path, media: Path, tmp_path: Path
) -> None:
    whole = (media / "wide.png").read_bytes()
    (media / "half.png").write_bytes(whole[: len(whole) // 2])
    path = write_records(media / "half.json", [conversation("<image>", "A.", image="half.png")] * 4)
    flags = {"model_name_or_path": standin, "dataset_use": path, "output_dir": tmp_path / "run"} | RECIPE
    command = [sys.executable, str(REPOSITORY / "qwenvl/train/train_qwen.py")]

    # Workers wait for more work when the main process fails: it must not wait for them in turn.
    done = subprocess.run(
        command + command_line(**flags | {"dataloader_num_workers": 2}), capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 2
    assert "half.png" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
