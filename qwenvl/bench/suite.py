"""Run the rows of the suite, each as a training command in processes of its own."""

import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from qwenvl.bench.flops import SampleSizes, sample_flops
from qwenvl.bench.gpu_idle import IDLE_SHARE
from qwenvl.bench.machine import Machine
from qwenvl.bench.observe import StopRule, Trace, observe, read_log
from qwenvl.bench.results import Result, judge, summarize
from qwenvl.bench.rows import RECIPE, ROWS, Row
from qwenvl.bench.workspace import Workspace
from qwenvl.data import load_datasets
from qwenvl.data.annotations import BadSampleTracker
from qwenvl.data.arguments import DataArguments
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.lengths import TokenCounter, read_media_sizes
from qwenvl.errors import UserError
from qwenvl.model.arguments import ModelArguments
from qwenvl.train.prepare import prepare_base
from qwenvl.vision import custom_config

logger = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[2]
_PROGRAM, _IDLE_PROGRAM = (str(_ROOT / "qwenvl" / name) for name in ("train/train_qwen.py", "bench/gpu_idle.py"))
_START_LIMIT = 540  # seconds for starting, compiling and the warm-up
_COUNTED_RECORDS = 2000
_ONLY_START_STEPS = 3


def run_suite(
    rows: Sequence[Row],
    workspace: Workspace,
    machine: Machine,
    *,
    minutes: float,
    profiles: bool,
    known: Iterable[Result] = (),
) -> Iterator[list[Result]]:
    """Run the rows one after the other, each timed for so many minutes after its warm-up.

    Yields, after each row, all results so far in the order of the table, with those of earlier calls on this machine
    (`known`), which the rows are compared with. A row that the machine is too small for is skipped, and a row that
    fails does not stop the others. Raises `UserError` if there is no GPU for the real shapes.
    """
    if not machine.gpus and not workspace.is_standin:
        raise UserError("--suite trains models of 4 and 8 billion parameters and needs a CUDA GPU; there is none here")
    results = {result.name: result for result in known}
    for row in rows:
        result = Result(row.name, row.recipe, asdict(row.aim), row.gpus, problem=_why_skipped(row, machine))
        if result.problem is not None:
            result.status = "skipped"
        else:
            logger.info("row %s: %s", row.name, row.recipe)
            _measure_row(result, RowRun(row, workspace, minutes, machine), profiles)
        judge(result, row, results)
        results[row.name] = result
        logger.info("row %s: %s", row.name, summarize(result))
        yield [results[each.name] for each in ROWS if each.name in results]


def _why_skipped(row: Row, machine: Machine) -> str | None:
    if row.gpus > max(machine.gpus, 1):
        return f"needs {row.gpus} GPUs, {machine.gpus} here"
    # Cards report a little less than their name says.
    if machine.gpus and machine.gpu_gib < 0.9 * row.card_gib:
        return f"needs a GPU of {row.card_gib:g} GiB, {machine.gpu_gib:g} here"
    return None


class RowRun:
    """The commands of a row, and where they leave what they write."""

    def __init__(self, row: Row, workspace: Workspace, minutes: float, machine: Machine) -> None:
        scale = workspace.scale
        self.row, self.workspace, self.minutes, self.machine = row, workspace, minutes, machine
        self.output_dir = workspace.folder / "runs" / row.name
        self.model = workspace.model(row.shape)
        self.records = workspace.dataset(row.num_records or scale.num_records * row.gpus * max(1, math.ceil(minutes)))
        self.warmup = StopRule(60 * minutes, scale.warmup_steps, 0.0 if workspace.is_standin else row.warmup_seconds)
        flags = RECIPE | row.flags | scale.flags
        if "custom_vision_encoder" in flags:
            folders = {"encoder": str(workspace.encoder()), "cache": str(workspace.folder / "features")}
            flags = {name: value.format(**folders) for name, value in flags.items()}
            # Limits of pixels are refused with an encoder of a fixed size.
            flags = {name: value for name, value in flags.items() if name not in ("max_pixels", "min_pixels")}
        self.flags = flags

    def command(self) -> list[str]:
        """Return the training command."""
        scale_flags = self.workspace.scale.flags
        if self.row.script is not None:
            return ["bash", str(_ROOT / self.row.script), "--logging_first_step", "True", *_as_arguments(scale_flags)]
        flags = self.flags | {
            "logging_first_step": "True",
            "model_name_or_path": str(self.model),
            "dataset_use": str(self.records),
            "output_dir": str(self.output_dir),
        }
        if self.row.only_start:
            flags["max_steps"] = str(_ONLY_START_STEPS)
        launcher = []
        if self.row.gpus > 1:
            launcher = ["-m", "qwenvl.train.launch", "--standalone", "--nproc_per_node", str(self.row.gpus)]
        return [sys.executable, *launcher, _PROGRAM, *_as_arguments(flags)]

    def environment(self) -> dict[str, str]:
        """Return the environment of the command: as many GPUs as the row asks for, and what a script reads."""
        environment = dict(os.environ)
        if self.machine.gpus:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(self.machine.gpus)))).split(",")
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible[: self.row.gpus])
        if self.row.script is not None:
            environment |= self._script_variables() | {"PYTHON": sys.executable}
        if self.row.only_start:
            cache = self.workspace.folder / "compile_cache"
            if self.row.starts_cold:
                shutil.rmtree(cache, ignore_errors=True)
            environment["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
        return environment

    def as_typed(self) -> list[str]:
        """Return the command as a user would type it, with the variables that a script is given."""
        if self.row.script is None:
            return self.command()
        return [*(f"{name}={value}" for name, value in self._script_variables().items()), *self.command()]

    def _script_variables(self) -> dict[str, str]:
        return {"MODEL_PATH": str(self.model), "DATASETS": str(self.records), "OUTPUT_DIR": str(self.output_dir)}

    def observe(self) -> Trace:
        """Train until the timed minutes are over."""
        return observe(
            self.command(),
            self.environment(),
            self._clear(self.output_dir),
            stop=None if self.row.only_start else self.warmup,
            limit=_START_LIMIT + 180 * self.minutes,
            cwd=_ROOT,
        )

    def observe_idle(self, trace: Trace) -> float | None:
        """Run the same command for some steps with a profiler, and return the GPU's idle share; None if that fails."""
        folder = self.output_dir.with_name(f"{self.row.name}-profile")
        command = [_IDLE_PROGRAM if part == _PROGRAM else part for part in trace.command]
        profiled = observe(
            [*command, "--output_dir", str(folder)],
            trace.environment,
            self._clear(folder),
            limit=_START_LIMIT,
            cwd=_ROOT,
        )
        state = folder / "trainer_state.json"
        history = json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.is_file() else []
        share = next((entry[IDLE_SHARE] for entry in history if IDLE_SHARE in entry), None)
        if share is None:
            reason = profiled.failure or "it ended before the steps to be profiled"
            logger.warning("row %s: the profiled run gave no share of idle time: %s", self.row.name, reason)
        shutil.rmtree(folder, ignore_errors=True)
        return share

    def flops(self, trace: Trace) -> float:
        """Return the operations of a mean sample."""
        model_args = ModelArguments(
            model_name_or_path=str(self.model),
            custom_vision_encoder=self.flags.get("custom_vision_encoder"),
            custom_vision_pretrained_path=self.flags.get("custom_vision_pretrained_path"),
        )
        limits = {name: int(self.flags[name]) for name in ("max_pixels", "min_pixels") if name in self.flags}
        base = prepare_base(model_args, DataArguments(**limits))
        records = load_datasets(str(self.records), 0, BadSampleTracker()).records[:_COUNTED_RECORDS]
        counts = TokenCounter(RecordEncoder(base.processor)).count(records, read_media_sizes(records))
        config = base.config if base.vision_config is None else custom_config(base.config, base.vision_config)
        sizes = SampleSizes.of(counts.total, counts.supervised, counts.patches)
        lora_rank = int(trace.command[trace.command.index("--lora_r") + 1])
        return sample_flops(config, sizes, lora_rank, encodes="cache_vision_features" not in self.flags)

    @staticmethod
    def _clear(folder: Path) -> Path:
        """Remove an output folder of an earlier call, and return the path of the log beside it."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        return folder.with_suffix(".log")


def _as_arguments(flags: Mapping[str, str]) -> list[str]:
    return [part for name, value in flags.items() for part in (f"--{name}", value)]


def _measure_row(result: Result, run: RowRun, profiles: bool) -> None:
    """Run a row and fill in its result."""
    trace = run.observe()
    result.command, result.program = run.as_typed(), trace.command
    result.estimated_gib, result.problem = trace.estimated_gib, trace.failure
    if result.problem is None:
        log = read_log(run.output_dir)
        result.problem = result.fill_in(log, trace.step_times, None if run.row.only_start else run.warmup)
    # A run that was stopped has left a checkpoint with its optimizer.
    shutil.rmtree(run.output_dir, ignore_errors=True)
    if result.problem is not None:
        result.status = "failed"
    elif not run.row.only_start:
        flops = run.flops(trace) * result.samples_per_second / run.row.gpus
        result.matmul_share = flops / (run.machine.matmul_tflops * 1e12)
        if profiles and run.machine.gpus:
            result.gpu_idle_share = run.observe_idle(trace)
