"""Run the quick start: train a stand-in model on real images, and evaluate it on held-out ones."""

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if not __package__:  # run by path: Python has put this folder on its path, not the repository's
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from qwenvl.errors import UserError, exit_on_user_error, exit_unless_installed

if __name__ == "__main__":
    exit_unless_installed("torch", "matplotlib", "sklearn")

import matplotlib.figure
import numpy as np
import torch
import transformers
from transformers import PreTrainedModel, ProcessorMixin

from demo.digits import DigitFiles, write_digits
from qwenvl import load_checkpoint
from qwenvl.bench.standin import build_standin, build_standin_encoder
from qwenvl.data import load_datasets
from qwenvl.data.annotations import BadSampleTracker, Record
from qwenvl.data.media.images import load_image
from qwenvl.data.messages import to_messages
from qwenvl.utils.json_text import read_json
from qwenvl.utils.tables import format_table

REPOSITORY = Path(__file__).resolve().parents[1]
MARKER = ".quickstart"
LOWEST_SCORE, HIGHEST_CONTROL = 0.90, 0.20
# A random encoder with one linear layer scores lower than Qwen3-VL's own encoder with its merger.
LOWEST_SCORE_WITH_ENCODER = 0.85
ANSWER_TOKENS = 8
GENERATION_BATCH = 99
NUM_EXAMPLES = 10
SECONDS_AFTER_CTRL_C = 30  # ending takes seconds on a busy machine
CTRL_C_EXIT_CODE = 130

# What differs from the defaults of scripts/train.sh: a small random model needs higher learning rates than a real one.
SETTINGS = {
    "NPROC_PER_NODE": "1",
    "NNODES": "1",
    "MASTER_ADDR": "",
    "MASTER_PORT": "",
    "DEEPSPEED": "none",
    "TUNE_MM_LLM": "True",
    "TUNE_MM_MLP": "True",
    "TUNE_MM_VISION": "False",
    "LORA_ENABLE": "True",
    "LORA_R": "8",
    "LORA_ALPHA": "16",
    "LEARNING_RATE": "3e-3",
    "MM_PROJECTOR_LR": "3e-3",
    "VISION_TOWER_LR": "",
    "EPOCHS": "6",
    "BATCH_SIZE": "1",
    "GRAD_ACCUM": "1",
    "MODEL_MAX_LENGTH": "1024",
    "DATA_PACKING": "True",
    "MIN_PIXELS": "4096",
    "EVAL_STEPS": "60",
    "SAVE_STEPS": "150",
    "GRADIENT_CHECKPOINTING": "False",
    # For layers this small, a second thread costs more than it saves.
    "OMP_NUM_THREADS": "1",
    "NUM_WORKERS": "1",
}
SETTINGS_WITH_ENCODER = {"MM_PROJECTOR_LR": "5e-3", "EPOCHS": "8", "MIN_PIXELS": ""}


@dataclass(frozen=True)
class Example:
    """A held-out question: its image, the model's answer, and the correct one."""

    image: str
    question: str
    answer: str
    truth: str


@dataclass(frozen=True)
class Result:
    """Results of the quick start: shares of correct answers, samples per second, GiB and seconds."""

    score: float
    control: float
    samples_per_second: float
    peak_memory: float
    train_seconds: float
    device: str
    lowest_score: float = LOWEST_SCORE
    examples: tuple[Example, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the held-out scans were read correctly, and only with their own images."""
        return self.score >= self.lowest_score and self.control <= HIGHEST_CONTROL


def prepare_folder(folder: Path) -> Path:
    """Empty the folder of an earlier quick start, or make a new one. Raises `UserError` if it has other files."""
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARKER).is_file():
            raise UserError(f"{folder} is not empty and was not made by the quick start; give another folder")
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).touch()
    except OSError as error:
        raise UserError(f"{folder}: cannot write there ({error.strerror}); give another folder") from None
    return folder


def run_training(model: Path, digits: DigitFiles, output: Path, encoder: dict[str, str] | None = None) -> None:
    """Train through scripts/train.sh, the launcher of every run. Raises `SystemExit` with its code if it fails.

    `encoder` holds the settings of a custom vision encoder.
    """
    script = REPOSITORY / "scripts/train.sh"
    # Settings that the user has exported for other runs do not apply to this one.
    settings = re.findall(r"^([A-Z_]+) +[a-z_]+", script.read_text(encoding="utf-8"), flags=re.MULTILINE)
    environment = {name: value for name, value in os.environ.items() if name not in settings} | SETTINGS
    environment |= {"PYTHON": sys.executable, "MODEL_PATH": str(model), "OUTPUT_DIR": str(output)}
    environment |= {"DATASETS": str(digits.train), "EVAL_DATASETS": str(digits.held_out)} | (encoder or {})
    training = subprocess.Popen(["bash", str(script)], env=environment)
    try:
        code = training.wait()
    except KeyboardInterrupt:  # Ctrl-C in a terminal reaches the training, too, which exits with 130
        code = _wait_or_interrupt(training)
    if code != 0:
        raise SystemExit(code)


def _wait_or_interrupt(process: subprocess.Popen) -> int:
    """Wait for a process that was probably interrupted together with this one; interrupt it if it was not."""
    try:
        return process.wait(timeout=SECONDS_AFTER_CTRL_C)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        return process.wait()


def shuffled(paths: Sequence[str], seed: int = 0) -> list[str]:
    """Return the paths in another order, in which none keeps its position."""
    order = np.random.default_rng(seed).permutation(len(paths))
    moved = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return [paths[moved[position]] for position in range(len(paths))]


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel, processor: ProcessorMixin, records: Sequence[Record], paths: Sequence[str]
) -> list[str]:
    """Return the model's answer to the question of each record about the image at the same position of `paths`."""
    answers = []
    for start in range(0, len(records), GENERATION_BATCH):
        part = slice(start, start + GENERATION_BATCH)
        prompts = [
            processor.apply_chat_template(to_messages(record)[:-1], tokenize=False, add_generation_prompt=True)
            for record in records[part]
        ]
        images = [load_image(path) for path in paths[part]]
        inputs = processor(text=prompts, images=images, padding=True, padding_side="left", return_tensors="pt")
        generated = model.generate(**inputs.to(model.device), max_new_tokens=ANSWER_TOKENS, do_sample=False)
        new_tokens = generated[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.batch_decode(new_tokens, skip_special_tokens=True)]
    return answers


def exact_match(answers: Sequence[str], records: Sequence[Record]) -> float:
    """Return the share of answers that equal their record's exactly."""
    return statistics.mean(answer == record.turns[-1].text for answer, record in zip(answers, records, strict=True))


def evaluate(output: Path, held_out: Path) -> Result:
    """Load the saved model and evaluate it on the held-out scans, with the right images and with shuffled ones."""
    records = load_datasets(str(held_out), 0, BadSampleTracker("error", 0)).records
    model, processor = load_checkpoint(output)
    paths = [record.images[0] for record in records]
    history = read_history(output)
    answers = generate_answers(model, processor, records, paths)
    return Result(
        score=exact_match(answers, records),
        control=exact_match(generate_answers(model, processor, records, shuffled(paths)), records),
        samples_per_second=statistics.median(series(history, "samples_per_second")[1]),
        peak_memory=max(series(history, "peak_memory_gib")[1]),
        train_seconds=series(history, "train_runtime")[1][-1],
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        examples=choose_examples(answers, records),
    )


def choose_examples(
    answers: Sequence[str], records: Sequence[Record], count: int = NUM_EXAMPLES
) -> tuple[Example, ...]:
    """Return evenly spaced examples of the held-out questions, with right and wrong answers."""
    chosen = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int).tolist()
    return tuple(
        Example(
            records[index].images[0],
            records[index].turns[0].text.replace("<image>", "").strip(),
            answers[index],
            records[index].turns[-1].text,
        )
        for index in chosen
    )


def read_history(output: Path) -> list[dict[str, float]]:
    """Return the entries that training logged."""
    return read_json(output / "trainer_state.json")["log_history"]


def series(history: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Return the steps at which a value was logged, and the values."""
    points = [(entry["step"], entry[name]) for entry in history if name in entry]
    return [step for step, _ in points], [value for _, value in points]


def draw_curve(history: Sequence[dict[str, float]], path: Path) -> None:
    """Plot the loss of training and of the held-out scans over the steps."""
    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*series(history, "loss"), label="training")
    axes.plot(*series(history, "eval_loss"), "o-", label="held-out scans")
    axes.set(xlabel="step", ylabel="loss (nats per answer token)", title="Quick start: LoRA and merger on digits")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def rows(result: Result, output: Path) -> list[tuple[str, str, str]]:
    """Return the table of results: name, value, and what was expected."""
    return [
        ("result", "value", "expected"),
        ("held-out scans read correctly", f"{result.score:.3f}", f">= {result.lowest_score:.2f}"),
        ("control: images shuffled", f"{result.control:.3f}", f"<= {HIGHEST_CONTROL:.2f}"),
        ("samples/s in training", f"{result.samples_per_second:.0f}", ""),
        ("peak memory", f"{result.peak_memory:.2f} GiB", ""),
        ("training took", f"{result.train_seconds:.0f} s", ""),
        ("device", result.device, ""),
        ("trained model", str(output), ""),
    ]


def write_report(
    folder: Path, table: Sequence[tuple[str, str, str]], passed: bool, examples: Sequence[Example] = ()
) -> None:
    """Write report.md: the table, the loss curve, and examples with image, answer and truth."""
    head, *body = (f"| {' | '.join(row)} |" for row in table)
    answered = [
        f"| ![scan]({os.path.relpath(each.image, folder)}) | {each.question} | {each.answer or '(nothing)'} "
        f"| {each.truth} |"
        for each in examples
    ]
    lines = [
        "# Quick start",
        "",
        "A stand-in for Qwen3-VL, a few small layers with random weights, was trained to read scanned handwritten",
        "digits with the training command of the real model: LoRA on the language model, merger trained, vision",
        "encoder frozen. It was then evaluated on scans that it had not seen.",
        "",
        f"The result is {'as expected' if passed else 'NOT as expected'}.",
        "",
        head,
        "|---|---|---|",
        *body,
        "",
        "The control asks the same questions with the images shuffled: a high score would mean that the answers do not",
        "depend on the images.",
        "",
        "![loss](loss_curve.png)",
        "",
        f"## {len(answered)} of the held-out scans",
        "",
        "| image | question | answer | truth |",
        "|---|---|---|---|",
        *answered,
        "",
        "Next, train a real model: `DATASETS=my/train.json bash scripts/sft_qwen3_4b.sh` (see README.md).",
        "",
    ]
    (folder / "report.md").write_text("\n".join(lines), encoding="utf-8")


def run_quickstart(folder: Path, encoder: str | None = None) -> Result:
    """Make model and data, train, evaluate and write the report, all in `folder`.

    `encoder` names a registered DINOv2, such as rad_dino: a small random one replaces the model's own.
    """
    prepare_folder(folder)
    model = build_standin(folder / "model")
    settings = None
    if encoder is not None:
        path = build_standin_encoder(folder / "encoder")
        settings = SETTINGS_WITH_ENCODER | {"ENCODER": encoder, "ENCODER_PATH": str(path)}
    digits = write_digits(folder / "digits")
    output = folder / "trained"
    run_training(model, digits, output, settings)
    result = evaluate(output, digits.held_out)
    if encoder is not None:
        result = replace(result, lowest_score=LOWEST_SCORE_WITH_ENCODER)
    table = rows(result, output)
    draw_curve(read_history(output), folder / "loss_curve.png")
    write_report(folder, table, result.passed, result.examples)
    print(f"\n{format_table(table)}\n\nreport and loss curve: {folder / 'report.md'}")
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the quick start; return 0 if the score and its control are as expected, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = REPOSITORY / "output/quickstart"
    parser.add_argument("folder", nargs="?", type=Path, default=default, help=f"output folder ({default})")
    parser.add_argument(
        "--encoder",
        choices=("rad_dino", "dinov2"),
        help="replace the vision encoder with a small random one",
    )
    arguments = parser.parse_args(argv)
    if not sys.stderr.isatty():  # as in training, progress bars are only for terminals
        transformers.logging.disable_progress_bar()
    result = run_quickstart(arguments.folder.resolve(), arguments.encoder)
    if not result.passed:
        sys.stderr.write("error: the score or its control is not as expected; see the table above\n")
    return 0 if result.passed else 1


if __name__ == "__main__":
    with exit_on_user_error():
        try:
            sys.exit(main())
        except KeyboardInterrupt:
            sys.stderr.write("stopped by Ctrl-C; run the quick start again to start over\n")
            sys.exit(CTRL_C_EXIT_CODE)
