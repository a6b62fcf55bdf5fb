"""Tests of the shell scripts: the commands that they assemble, and what they say where something is missing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = REPOSITORY / "scripts"
PRESETS = sorted(path.name for path in SCRIPTS.glob("sft_*.sh"))
SETTINGS_OF_OTHERS = ("MIMIC_DIR", "DATASETS", "NNODES", "MASTER_ADDR", "MASTER_PORT", "DEEPSPEED", "NPROC_PER_NODE")

# Stands in Python's place: tells the number of GPUs when asked, and else shows the command that it would run.
FAKE_PYTHON = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then echo "${FAKE_GPUS:-0} True"; else printf '%s\\n' "$@"; fi
"""


@pytest.fixture
def python(tmp_path: Path) -> str:
    path = tmp_path / "python"
    path.write_text(FAKE_PYTHON)
    path.chmod(0o755)
    return str(path)


def start(python: str, script: str | Path, *flags: str, **settings: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS_OF_OTHERS}
    return subprocess.run(
        ["bash", str(SCRIPTS / script), *flags],
        env=environment | {"PYTHON": python} | settings,
        cwd=Path(python).parent,
        capture_output=True,
        text=True,
    )


def command(*args: str, **settings: str) -> list[str]:
    result = start(*args, **settings)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def value(words: list[str], flag: str) -> str | None:
    """Return what the trainer's parser takes for `flag`: the last one wins."""
    found = [after for before, after in zip(words, words[1:], strict=False) if before == f"--{flag}"]
    return found[-1] if found else None


def values(words: list[str], *flags: str) -> list[str | None]:
    return [value(words, flag) for flag in flags]


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")) + [REPOSITORY / ".ci/run"], ids=lambda path: path.name)
def test_every_script_parses(script: Path):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).stderr == b""


@pytest.mark.parametrize("preset", [name for name in PRESETS if "mimic" in name])
def test_a_mimic_preset_without_data_says_how_to_make_it_and_exits_2(python: str, preset: str):
    result = start(python, preset, MIMIC_DIR="nowhere")
    assert result.returncode == 2
    assert result.stderr.startswith("error: nowhere/mimic_train.json is not there yet")
    assert "tools/prepare_mimic_cxr.py --jpg_root" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("files", [["mimic_train.json"], ["mimic_train.json", "mimic_valid.json"]])
def test_a_mimic_preset_takes_the_data_that_is_there(python: str, tmp_path: Path, files: Iterable[str]):
    for name in files:
        (tmp_path / name).touch()
    words = command(python, "sft_mimic_4b.sh", MIMIC_DIR=str(tmp_path))
    assert value(words, "dataset_use") == "mimic_train"
    with_eval = "mimic_valid.json" in files
    assert values(words, "eval_dataset_use", "eval_strategy") == (["mimic_valid", "steps"] if with_eval else [None] * 2)


def test_a_preset_without_any_data_named_says_so_and_exits_2(python: str):
    result = start(python, "sft_qwen3_4b.sh")
    assert result.returncode == 2
    assert "DATASETS=" in result.stderr


def test_a_number_of_processes_that_is_none_is_named(python: str):
    result = start(python, "train.sh", DATASETS="x", NPROC_PER_NODE="2x")
    assert result.returncode == 2
    assert "NPROC_PER_NODE=2x: give the number" in result.stderr


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_documented_defaults(python: str, preset: str):
    words = command(python, preset, DATASETS="x.json")
    assert value(words, "model_name_or_path") == f"Qwen/Qwen3-VL-{'8B' if '8b' in preset else '4B'}-Instruct"
    assert values(words, "lora_enable", "lora_r", "lora_alpha", "lora_dropout") == ["True", "8", "16", "0.0"]
    assert values(words, "tune_mm_llm", "tune_mm_mlp", "tune_mm_vision") == ["True", "True", "False"]
    swapped = "custom_vision" in preset  # a fresh merger learns at a higher rate
    assert value(words, "custom_vision_encoder") == ("rad_dino" if swapped else None)
    merger_rate = "2e-5" if swapped else "1e-5"
    assert values(words, "learning_rate", "mm_projector_lr", "vision_tower_lr") == ["2e-5", merger_rate, None]
    assert values(words, "lr_scheduler_type", "warmup_ratio") == ["cosine", "0.03"]
    assert values(words, "bf16", "deepspeed", "nproc_per_node") == [None, None, "1"]


def test_two_stages_train_the_merger_alone_at_its_own_rate_and_go_on_from_it(python: str, tmp_path: Path):
    words = command(python, "sft_mimic_4b_custom_vision_two_stage.sh", DATASETS="x.json", OUTPUT_DIR="out")
    second = words.index("-m", words.index("-m") + 1)
    stage_one, stage_two = words[:second], words[second:]
    switches = ("tune_mm_llm", "lora_enable", "tune_mm_mlp", "mm_projector_lr", "vision_merger_path", "output_dir")
    assert values(stage_one, *switches) == ["False", "False", "True", "1e-3", None, "out/stage1"]
    assert values(stage_two, *switches) == ["True", "True", "True", "2e-5", "out/stage1", "out/stage2"]

    (tmp_path / "out/stage1").mkdir(parents=True)
    (tmp_path / "out/stage1/adapter_config.json").touch()
    words = command(python, "sft_mimic_4b_custom_vision_two_stage.sh", DATASETS="x.json", OUTPUT_DIR="out")
    assert "stage 1 is finished: out/stage1" in words
    assert words.count("-m") == 1


@pytest.mark.parametrize(("gpus", "deepspeed"), [("1", None), ("4", str(SCRIPTS / "zero2.json"))])
def test_gpus_give_bf16_a_process_each_and_zero2_if_several(python: str, gpus: str, deepspeed: str | None):
    words = command(python, "train.sh", DATASETS="x.json", FAKE_GPUS=gpus)
    assert values(words, "bf16", "nproc_per_node", "deepspeed") == ["True", gpus, deepspeed]


def test_deepspeed_can_be_chosen_by_name_or_left_out(python: str):
    zero3 = command(python, "train.sh", DATASETS="x", FAKE_GPUS="1", DEEPSPEED="scripts/zero3.json")
    assert value(zero3, "deepspeed") == str(SCRIPTS.parent / "scripts/zero3.json")
    assert value(command(python, "train.sh", DATASETS="x", FAKE_GPUS="2", DEEPSPEED="none"), "deepspeed") is None


def test_processes_without_a_gpu_are_told_so_unless_deepspeed_joins_them(python: str):
    assert value(command(python, "train.sh", DATASETS="x", NPROC_PER_NODE="2"), "use_cpu") == "True"
    assert value(command(python, "train.sh", DATASETS="x", FAKE_GPUS="1"), "use_cpu") is None
    assert value(command(python, "train.sh", DATASETS="x", DEEPSPEED="zero2.json"), "use_cpu") is None
    assert value(command(python, "train.sh", "--deepspeed", "mine.json", DATASETS="x"), "use_cpu") is None


def test_settings_come_from_the_environment_with_their_spaces_and_empty_ones_drop_their_flag(python: str):
    words = command(
        python, "train.sh", DATASETS="my data%50,b", LORA_R="64", MAX_PIXELS="100352", LORA_DROPOUT="", REPORT_TO="none"
    )
    assert values(words, "dataset_use", "lora_r", "max_pixels") == ["my data%50,b", "64", "100352"]
    assert values(words, "lora_dropout", "report_to") == [None, "none"]


def test_flags_of_the_user_come_last_and_win(python: str):
    words = command(python, "sft_mimic_4b.sh", "--max_steps", "10", "--dataset_use", "mine.json", "--lora_r", "4")
    assert words[-6:] == ["--max_steps", "10", "--dataset_use", "mine.json", "--lora_r", "4"]
    assert values(words, "dataset_use", "lora_r") == ["mine.json", "4"]


@pytest.mark.parametrize(
    ("flags", "settings"),
    [(["--tune_mm_mlp", "False"], {}), (["--tune_mm_mlp=False"], {}), ([], {"TUNE_MM_MLP": "False"})],
)
def test_a_frozen_merger_gets_no_learning_rate(python: str, flags: list[str], settings: dict[str, str]):
    assert value(command(python, "train.sh", *flags, DATASETS="x", **settings), "mm_projector_lr") is None


@pytest.mark.parametrize(
    ("flags", "settings", "left_out"),
    [
        (["--lora_enable", "False"], {}, ["lora_r", "lora_alpha", "lora_dropout"]),
        ([], {"LORA_ENABLE": "False"}, ["lora_r", "lora_alpha", "lora_dropout"]),
        ([], {"LORA_ENABLE": ""}, ["lora_enable", "lora_r", "lora_alpha", "lora_dropout"]),
        ([], {"TUNE_MM_MLP": ""}, ["tune_mm_mlp", "mm_projector_lr"]),
        ([], {"LR_SCHEDULER": "constant"}, ["warmup_ratio"]),
        (["--lr_scheduler_type", "greedy"], {}, ["warmup_ratio"]),
        (["--warmup_steps", "5"], {}, ["warmup_ratio"]),
        (["--logging_strategy", "epoch"], {}, ["logging_steps"]),
        (["--eval_strategy", "epoch"], {"EVAL_DATASETS": "y"}, ["eval_steps"]),
    ],
)
def test_a_default_that_would_do_nothing_is_left_out(
    python: str, flags: list[str], settings: dict[str, str], left_out: list[str]
):
    words = command(python, "train.sh", *flags, DATASETS="x", **settings)
    assert values(words, *left_out) == [None] * len(left_out)


def test_a_setting_that_would_do_nothing_is_passed_on_to_be_refused(python: str):
    words = command(python, "train.sh", DATASETS="x", LORA_ENABLE="False", LORA_R="4", LR_SCHEDULER="constant")
    assert values(words, "lora_r", "lora_alpha") == ["4", None]
    words = command(python, "train.sh", DATASETS="x", LR_SCHEDULER="constant", WARMUP_RATIO="0.1")
    assert value(words, "warmup_ratio") == "0.1"


def test_settings_of_lora_reach_stage_two_alone(python: str):
    flags = ["--lora_r", "4", "--max_steps", "3", "--lora-alpha=8", "--lora_enable", "--seed", "1"]
    words = command(
        python, "sft_mimic_4b_custom_vision_two_stage.sh", *flags, DATASETS="x", OUTPUT_DIR="out", LORA_DROPOUT="0.1"
    )
    second = words.index("-m", words.index("-m") + 1)
    stage_one, stage_two = words[:second], words[second:]
    assert [word for word in stage_one if word.startswith(("--lora_", "--lora-"))] == ["--lora_enable"]
    assert values(stage_one, "lora_enable", "max_steps", "seed") == ["False", "3", "1"]
    assert stage_two[-len(flags) :] == flags
    assert value(stage_two, "lora_dropout") == "0.1"


def test_several_machines_need_an_address_and_pass_it_on(python: str):
    assert "MASTER_ADDR" in start(python, "train.sh", DATASETS="x", NNODES="2").stderr
    words = command(python, "train.sh", DATASETS="x", NNODES="2", NODE_RANK="1", MASTER_ADDR="a", MASTER_PORT="7")
    assert values(words, "nnodes", "node_rank", "master_addr", "master_port") == ["2", "1", "a", "7"]
    assert "--standalone" not in words


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_run_through_the_official_repositorys_paths(python: str, preset: str):
    through_link = REPOSITORY / "qwen-vl-finetune/scripts" / preset
    assert command(python, through_link, DATASETS="x") == command(python, preset, DATASETS="x")


def test_a_python_without_torch_is_told_what_to_do(tmp_path: Path):
    path = tmp_path / "python"
    path.write_text("#!/usr/bin/env bash\nexit 1\n")
    path.chmod(0o755)
    result = start(str(path), "train.sh", DATASETS="x")
    assert result.returncode == 2
    assert "no working PyTorch" in result.stderr


def test_every_flag_of_the_launcher_script_exists_and_no_setting_stands_twice():
    from qwenvl.train.argument import DataArguments, ModelArguments, TrainingArguments

    table = (SCRIPTS / "train.sh").read_text().split("SETTINGS='\n")[1].split("'")[0]
    rows = [line.split() for line in table.splitlines()]
    flags = {field.name for group in (ModelArguments, DataArguments, TrainingArguments) for field in fields(group)}
    assert [row[1] for row in rows if row[1] not in flags] == []
    assert len({row[0] for row in rows}) == len({row[1] for row in rows}) == len(rows)


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3), ("zero3_offload", 3)])
def test_deepspeed_files_leave_sizes_to_the_flags(name: str, stage: int):
    config = json.loads((SCRIPTS / f"{name}.json").read_text())
    assert config["zero_optimization"]["stage"] == stage
    assert config["train_micro_batch_size_per_gpu"] == config["gradient_accumulation_steps"] == "auto"
    assert ("offload_param" in config["zero_optimization"]) == name.endswith("offload")
    assert "optimizer" not in config  # an optimizer here would replace the components' own learning rates


def make_repository(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/setup.sh", "requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    return tmp_path


def test_setup_makes_an_environment_once_and_installs_again_only_when_the_requirements_change(tmp_path: Path):
    repository = make_repository(tmp_path)
    script = f"""set -euo pipefail
    source {repository}/scripts/setup.sh
    setup_environment demo,dev
    echo "python=$PYTHON"
    """
    pip = repository / "pip-calls"
    environment = {
        "PATH": f"{sys.base_prefix}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(repository),
    }
    (repository / "pip.py").write_text(f"import sys; open({str(pip)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))")

    def run() -> subprocess.CompletedProcess:
        return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)

    first = run()
    made = f"python={repository}/.venv/bin/python"
    assert f"making {repository}/.venv" in first.stdout
    assert first.stdout.splitlines()[-1] == made
    assert pip.read_text().splitlines() == [
        f"install --disable-pip-version-check --quiet -r {repository}/requirements.txt -e {repository}[demo,dev]"
    ]
    assert run().stdout == f"{made}\n"
    assert len(pip.read_text().splitlines()) == 1
    with (repository / "requirements.txt").open("a") as requirements:
        requirements.write("# changed\n")
    run()
    assert len(pip.read_text().splitlines()) == 2
