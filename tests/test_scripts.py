"""Tests of the shell scripts: the commands that they build, and their messages if something is missing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import pytest

from qwenvl.check.environment import MIN_PYTHON

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = REPOSITORY / "scripts"
TWO_STAGE = "sft_mimic_4b_custom_vision_two_stage.sh"
PATH = f"{sys.base_prefix}/bin:{os.environ['PATH']}"
PRESETS = sorted(path.name for path in SCRIPTS.glob("sft_*.sh"))
SETTINGS_OF_OTHERS = (
    "MIMIC_DIR",
    "ENCODER",
    "DATASETS",
    "NNODES",
    "MASTER_ADDR",
    "MASTER_PORT",
    "DEEPSPEED",
    "NPROC_PER_NODE",
)

# Replaces Python: prints the number of GPUs if asked for it, and otherwise the command that it would run.
FAKE_PYTHON = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then echo "${FAKE_GPUS:-0} True"; exit; fi
printf '%s\\n' "$@"
while (($#)); do
    if [[ $1 == --output_dir && -n ${FAKE_TRAINS-} ]]; then mkdir -p "$2"; touch "$2/adapter_config.json"; fi
    shift
done
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
def test_a_mimic_preset_without_data_names_the_command_that_prepares_it_and_exits_2(python: str, preset: str):
    result = start(python, preset, MIMIC_DIR="nowhere")
    assert result.returncode == 2
    assert result.stderr.startswith("error: nowhere/mimic_train.json does not exist yet")
    assert "tools/prepare_mimic_cxr.py --jpg_root" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("files", [["mimic_train.json"], ["mimic_train.json", "mimic_valid.json"]])
def test_a_mimic_preset_uses_the_prepared_data(python: str, tmp_path: Path, files: Iterable[str]):
    for name in files:
        (tmp_path / name).touch()
    words = command(python, "sft_mimic_4b.sh", MIMIC_DIR=str(tmp_path))
    assert value(words, "dataset_use") == "mimic_train"
    with_eval = "mimic_valid.json" in files
    assert values(words, "eval_dataset_use", "eval_strategy") == (["mimic_valid", "steps"] if with_eval else [None] * 2)


def test_a_preset_without_a_dataset_is_refused_and_exits_2(python: str):
    result = start(python, "sft_qwen3_4b.sh")
    assert result.returncode == 2
    assert "DATASETS=" in result.stderr


def test_an_invalid_number_of_processes_is_refused(python: str):
    result = start(python, "train.sh", DATASETS="x", NPROC_PER_NODE="2x")
    assert result.returncode == 2
    assert "NPROC_PER_NODE=2x: give the number" in result.stderr


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_documented_defaults(python: str, preset: str):
    words = command(python, preset, DATASETS="x.json", FAKE_TRAINS="1")
    assert value(words, "model_name_or_path") == f"Qwen/Qwen3-VL-{'8B' if '8b' in preset else '4B'}-Instruct"
    assert values(words, "lora_enable", "lora_r", "lora_alpha", "lora_dropout") == ["True", "8", "16", "0.0"]
    assert values(words, "tune_mm_llm", "tune_mm_mlp", "tune_mm_vision") == ["True", "True", "False"]
    swapped = "custom_vision" in preset  # a new merger has a higher learning rate
    assert value(words, "custom_vision_encoder") == ("rad_dino" if swapped else None)
    merger_rate = "2e-5" if swapped else "1e-5"
    assert values(words, "learning_rate", "mm_projector_lr", "vision_tower_lr") == ["2e-5", merger_rate, None]
    assert values(words, "lr_scheduler_type", "warmup_ratio") == ["cosine", "0.03"]
    assert values(words, "bf16", "deepspeed", "nproc_per_node") == [None, None, "1"]


def test_two_stages_train_only_the_merger_first_at_its_own_rate_and_then_start_from_it(python: str, tmp_path: Path):
    words = command(
        python, TWO_STAGE, "--lora_r", "4", "--seed", "1", DATASETS="x.json", OUTPUT_DIR="out", FAKE_TRAINS="1"
    )
    second = words.index("-m", words.index("-m") + 1)
    stage_one, stage_two = words[:second], words[second:]
    switches = ("tune_mm_llm", "lora_enable", "tune_mm_mlp", "mm_projector_lr", "vision_merger_path", "output_dir")
    assert values(stage_one, *switches) == ["False", "False", "True", "1e-3", None, "out/stage1"]
    assert values(stage_two, *switches) == ["True", "True", "True", "2e-5", "out/stage1", "out/stage2"]
    assert values(stage_one, "lora_r", "lora_alpha", "seed") == [None, None, "1"]  # it has no LoRA to set
    assert values(stage_two, "lora_r", "lora_alpha", "seed") == ["4", "16", "1"]

    words = command(python, TWO_STAGE, DATASETS="x.json", OUTPUT_DIR="out")
    assert "stage 1 is finished: out/stage1" in words
    assert words.count("-m") == 1


def test_two_stages_stop_if_stage_one_was_stopped_and_print_how_to_continue(python: str):
    stopped = start(python, TWO_STAGE, DATASETS="x.json", OUTPUT_DIR="out")
    assert stopped.returncode == 0
    assert stopped.stdout.count("train_qwen.py") == 1
    assert "continue with the same command and --resume_from_checkpoint auto" in stopped.stdout.splitlines()[-1]

    words = command(
        python, TWO_STAGE, "--resume_from_checkpoint", "auto", DATASETS="x.json", OUTPUT_DIR="out", FAKE_TRAINS="1"
    )
    assert words.count("out/stage1") == 2 and value(words, "output_dir") == "out/stage2"


def test_two_stages_pass_sigterm_on_to_stage_one_and_wait_for_it(tmp_path: Path):
    path = tmp_path / "python"
    path.write_text(
        "#!/usr/bin/env bash\nif [[ $1 == -c ]]; then echo 0 True; exit; fi\n"
        f"trap 'sleep 0.3; touch {tmp_path}/saved; exit 0' TERM\ntouch {tmp_path}/ready\n"
        "while true; do sleep 0.05; done\n"
    )
    path.chmod(0o755)
    environment = os.environ | {"PYTHON": str(path), "DATASETS": "x", "OUTPUT_DIR": str(tmp_path / "out")}
    script = subprocess.Popen(["bash", str(SCRIPTS / TWO_STAGE)], env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    script.send_signal(signal.SIGTERM)
    printed, _ = script.communicate(timeout=30)
    assert script.returncode == 0
    assert (tmp_path / "saved").exists()
    assert "stage 2 is not started" in printed


def test_two_stages_end_with_the_code_of_a_stage_one_that_fails(tmp_path: Path):
    path = tmp_path / "python"
    path.write_text("#!/usr/bin/env bash\nif [[ $1 == -c ]]; then echo 0 True; exit; fi\necho trained; exit 7\n")
    path.chmod(0o755)
    result = start(str(path), TWO_STAGE, DATASETS="x", OUTPUT_DIR="out")
    assert (result.returncode, result.stdout) == (7, "trained\n")


def test_two_stages_refuse_one_output_folder_for_both(python: str):
    assert "set OUTPUT_DIR" in start(python, TWO_STAGE, "--output_dir", "x", DATASETS="x").stderr


def test_a_dry_run_of_two_stages_ends_after_the_first(python: str):
    result = start(python, TWO_STAGE, "--dry_run", DATASETS="x", OUTPUT_DIR="out")
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1].startswith("a dry run: stage 2")


@pytest.mark.parametrize("preset", ["sft_mimic_4b.sh", "sft_mimic_8b.sh"])
def test_an_exported_encoder_is_refused_by_a_preset_of_the_native_one(python: str, preset: str):
    result = start(python, preset, DATASETS="x", ENCODER="rad_dino")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "ENCODER=rad_dino is set" in result.stderr and "unset ENCODER" in result.stderr
    assert value(command(python, preset, DATASETS="x", ENCODER=""), "custom_vision_encoder") is None


@pytest.mark.parametrize(
    ("flags", "settings", "rate"),
    [
        ([], {"ENCODER": "rad_dino"}, "2e-5"),
        (["--custom-vision-encoder", "dinov2"], {}, "2e-5"),
        ([], {}, "1e-5"),
        ([], {"ENCODER": "rad_dino", "MM_PROJECTOR_LR": "3e-4"}, "3e-4"),
        (["--tune_mm_mlp", "no"], {"ENCODER": "rad_dino"}, None),
    ],
)
def test_the_new_merger_of_another_encoder_gets_a_higher_rate(
    python: str, flags: list[str], settings: dict[str, str], rate: str | None
):
    assert value(command(python, "sft_qwen3_4b.sh", *flags, DATASETS="x", **settings), "mm_projector_lr") == rate


@pytest.mark.parametrize(
    ("flags", "dropped"),
    [
        (["--lora_enable", "False"], ["lora_r", "lora_alpha", "lora_dropout"]),
        (["--warmup_steps", "5"], ["warmup_ratio"]),
        (["--lr_scheduler_type=constant"], ["warmup_ratio"]),
        (["--save_strategy", "epoch"], ["save_steps"]),
        (["--fp16"], ["bf16"]),
        (["--use_cpu"], ["bf16", "deepspeed"]),
    ],
)
def test_defaults_that_a_flag_makes_pointless_are_left_out(python: str, flags: list[str], dropped: list[str]):
    assert None not in values(command(python, "train.sh", DATASETS="x", FAKE_GPUS="2"), *dropped)
    assert values(command(python, "train.sh", *flags, DATASETS="x", FAKE_GPUS="2"), *dropped) == [None] * len(dropped)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--tune_mm_mlp False", "False"),
        ("--tune-mm-mlp=0", "0"),
        ("--tune_mm_mlp False --tune-mm-mlp yes", "yes"),
        ("--tune_mm_mlp --seed 1", "True"),
        ("--tune_mm_mlp", "True"),
        ("--tune_mm_mlp=a=b", "a=b"),
        ("--not_tune_mm_mlp 1", "none"),
    ],
)
def test_flags_are_read_as_the_program_reads_them(arguments: str, expected: str):
    script = f"source {SCRIPTS}/setup.sh; given tune_mm_mlp {arguments} || echo none"
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout.strip() == expected


@pytest.mark.parametrize("value", ["True", "TRUE", "tRue", "1", "yes", "Y", "t", "False", "0", "no", "n", "f", "", "x"])
def test_true_is_what_the_program_takes_for_true(value: str):
    script = f"source {SCRIPTS}/setup.sh; is_true '{value}'"
    is_true = subprocess.run(["bash", "-c", script]).returncode == 0
    assert is_true == (value.lower() in ("yes", "true", "t", "y", "1"))  # transformers.hf_argparser.string_to_bool


@pytest.mark.parametrize(("gpus", "deepspeed"), [("1", None), ("4", str(SCRIPTS / "zero2.json"))])
def test_gpus_give_bf16_a_process_each_and_zero2_if_several(python: str, gpus: str, deepspeed: str | None):
    words = command(python, "train.sh", DATASETS="x.json", FAKE_GPUS=gpus)
    assert values(words, "bf16", "nproc_per_node", "deepspeed") == ["True", gpus, deepspeed]


def test_deepspeed_can_be_chosen_by_name_or_left_out(python: str):
    zero3 = command(python, "train.sh", DATASETS="x", FAKE_GPUS="1", DEEPSPEED="scripts/zero3.json")
    assert value(zero3, "deepspeed") == str(SCRIPTS.parent / "scripts/zero3.json")
    assert value(command(python, "train.sh", DATASETS="x", FAKE_GPUS="2", DEEPSPEED="none"), "deepspeed") is None


def test_processes_without_a_gpu_get_use_cpu_unless_deepspeed_joins_them(python: str):
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
        python,
        "sft_mimic_4b_custom_vision_two_stage.sh",
        *flags,
        DATASETS="x",
        OUTPUT_DIR="out",
        LORA_DROPOUT="0.1",
        FAKE_TRAINS="1",
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


def test_a_python_without_torch_is_refused_with_what_to_do(tmp_path: Path):
    path = tmp_path / "python"
    path.write_text("#!/usr/bin/env bash\nexit 1\n")
    path.chmod(0o755)
    result = start(str(path), "train.sh", DATASETS="x")
    assert result.returncode == 2
    assert "no working PyTorch" in result.stderr


def test_every_flag_of_the_launcher_script_exists_and_no_setting_is_listed_twice():
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


def find_python(repository: Path, **environment: str) -> str:
    script = f"source {repository}/scripts/setup.sh; find_python; echo $PYTHON"
    answer = subprocess.run(["bash", "-c", script], env=environment | {"PATH": PATH}, capture_output=True, text=True)
    return answer.stdout.strip()


def test_condas_base_is_never_installed_into_and_a_named_environment_is(tmp_path: Path):
    repository = make_repository(tmp_path)
    system = find_python(repository)
    (tmp_path / "conda/condabin").mkdir(parents=True)
    assert find_python(repository, CONDA_PREFIX=str(tmp_path / "conda"), CONDA_DEFAULT_ENV="base") == system
    assert find_python(repository, CONDA_PREFIX=str(tmp_path / "conda")) == system
    named = tmp_path / "conda/envs/xray"
    assert find_python(repository, CONDA_PREFIX=str(named), CONDA_DEFAULT_ENV="xray") == f"{named}/bin/python"
    assert (
        find_python(repository, VIRTUAL_ENV="/v", CONDA_PREFIX=str(named), CONDA_DEFAULT_ENV="xray") == "/v/bin/python"
    )


def test_every_file_names_the_same_oldest_python():
    declared = re.search(r'requires-python = ">=([\d.]+)"', (REPOSITORY / "pyproject.toml").read_text())[1]
    assert f'target-version = "py{declared.replace(".", "")}"' in (REPOSITORY / "pyproject.toml").read_text()
    setup = (SCRIPTS / "setup.sh").read_text()
    assert f"sys.version_info < ({declared.replace('.', ', ')})" in setup
    assert set(re.findall(r"not (?:is|of)? ?Python (3\.\d+)|no Python (3\.\d+)", setup)) <= {
        (declared, ""),
        ("", declared),
    }
    assert tuple(map(int, declared.split("."))) == MIN_PYTHON
    assert f"Python {declared}" in (REPOSITORY / "README.md").read_text()


def test_setup_creates_an_environment_once_and_installs_again_only_when_the_requirements_change(tmp_path: Path):
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
    assert f"creating {repository}/.venv" in first.stdout
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
