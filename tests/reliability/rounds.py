"""Kill runs and resume them until they are finished, and compare each with the run that nobody disturbed."""

import json
import random
import re
import shutil
import signal
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file

from demo.media import draw_shapes
from qwenvl.bench.standin import build_standin
from tests.reliability.faults import SmallDisk, break_file
from tests.reliability.starts import Ending, ForkServer, Kill, start_launcher

STEPS, SAVE_STEPS, EVAL_STEPS = 24, 4, 6
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PHASES = ("start", "step", "save", "evaluation", "end")
MOST_KILLS_A_RUN = 4
# How often a start goes through the launcher, a run has a file of its newest checkpoint broken, or a disk that is full.
LAUNCHER_SHARE, BROKEN_SHARE, FULL_DISK_SHARE = 0.08, 0.15, 0.05
_EXPECTED_CODES = {
    signal.SIGKILL: {-9, 137},
    signal.SIGTERM: {0, -15, 143},
    signal.SIGINT: {-2, 130},
}


@dataclass
class Tally:
    """What has happened: kills by (signal, phase), and each fault in words."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    through_launcher: int = 0
    runs: int = 0
    resumes: int = 0
    broken_files: int = 0
    small_disks: int = 0
    disks_refused: int = 0
    full_disks: int = 0
    tracebacks: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """How many kills there were."""
        return self.kills.total()


class LostError(Exception):
    """A run that cannot be finished, or has lost what was saved."""


class KillRounds:
    """Runs of one small training; `play` kills and resumes one of them.

    `launcher` lets some starts go through the real launcher, `faults` breaks files and fills disks now and then.
    """

    def __init__(
        self, folder: Path, server: ForkServer, seed: int, tally: Tally, launcher: bool = True, faults: bool = True
    ) -> None:
        self._folder = folder
        self._server = server
        self._random = random.Random(seed)
        self._launcher_share = LAUNCHER_SHARE if launcher else 0.0
        self._broken_share, self._full_disk_share = (BROKEN_SHARE, FULL_DISK_SHARE) if faults else (0.0, 0.0)
        self.tally = tally
        # Checkpoints that we have broken. A new one may get the name, and on some disks the inode, of one that is gone.
        self._broken: set[tuple[int, int]] = set()
        self._flags = _write_inputs(folder)
        self.reference = folder / "reference"
        ending = server.start(self._arguments(self.reference))
        if not ending.is_finished:
            raise RuntimeError(f"the undisturbed run has failed: {ending.output[-3000:]}")
        self._durations = _durations(server.marks)
        if missing := [phase for phase in PHASES if phase not in self._durations]:
            raise RuntimeError(f"the undisturbed run shows no {', '.join(missing)}: the marks have lost sight of it")

    def play(self, kills: int | None = None) -> None:
        """Train one run to its end through some kills, compare it, and note the outcome."""
        self.tally.runs += 1
        name = f"run-{self.tally.runs:03}"
        kills = kills or self._random.randint(1, MOST_KILLS_A_RUN)
        disk = None
        if self._random.random() < self._full_disk_share:
            disk = SmallDisk.mount(self._folder / name, mib=self._random.uniform(2, 12))
            self.tally.small_disks += disk is not None
            self.tally.disks_refused += disk is None
        try:
            self._train(self._folder / name / "out", kills, disk)
        except LostError as error:
            self.tally.lost.append(f"{name}: {error}")
        finally:
            if disk is not None:
                disk.unmount()
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def _train(self, output_dir: Path, kills: int, disk: SmallDisk | None) -> None:
        planned: list[Kill | None] = [self._plan() for _ in range(kills)]
        history = []
        while True:
            may_be_killed = bool(planned)
            kill = planned.pop(0) if planned else None
            saved = self._newest_step(output_dir)
            ending, kill = self._start(output_dir, kill)
            history.append(_describe(kill, ending))
            # A data worker whose trainer was ended by SIGKILL may say so: nobody is left to say it in one line.
            by_sigkill = ending.killed and kill.signal == signal.SIGKILL
            if "Traceback" in ending.output and not by_sigkill:
                shown = ending.output[ending.output.index("Traceback") :]
                self.tally.tracebacks.append(f"{output_dir.parent.name}, {history[-1]}: {shown[:4000]}")
            if disk is not None and disk.is_small and ending.code == 2:
                self.tally.full_disks += 1
                disk.enlarge()
                continue
            self._check(ending, kill, saved, output_dir, history)
            if ending.is_finished:
                break
            if not may_be_killed and not ending.killed:
                raise LostError(f"it ends with {ending.code} and is not finished; {' > '.join(history)}")
            self.tally.resumes += 1
            self._break_something(output_dir, history)
        if flaw := self.compare(output_dir):
            self.tally.wrong.append(f"{output_dir.parent.name}: {flaw}; {' > '.join(history)}")

    def _start(self, output_dir: Path, kill: Kill | None) -> tuple[Ending, Kill | None]:
        """Train with a planned kill, through the launcher with one at another moment; return the kill that it was."""
        arguments = self._arguments(output_dir)
        if kill is None or self._random.random() >= self._launcher_share:
            ending = self._server.start(arguments, kill)
        else:
            phase = "start" if kill.phase == "start" else "step"
            delay = self._random.uniform(0, 8 if phase == "start" else 0.3)
            occurrence = self._random.randint(1, SAVE_STEPS)
            kill = Kill(kill.signal, phase, occurrence, delay)
            log = output_dir.parent.with_suffix(".launcher.log")
            ending, is_gone = start_launcher(arguments, output_dir, log, kill)
            self.tally.through_launcher += ending.killed
            if not is_gone:
                raise LostError(f"{kill.signal.name} to the launcher in {phase} leaves processes behind")
        if ending.killed:
            self.tally.kills[kill.signal.name, kill.phase] += 1
        return ending, kill

    def _check(self, ending: Ending, kill: Kill | None, saved: int, output_dir: Path, history: list[str]) -> None:
        """Raise `LostError` for an exit code that the signal does not explain, and for what was saved and is gone."""
        told = " > ".join(history)
        expected = _EXPECTED_CODES[kill.signal] if ending.killed else set()
        if not (ending.is_finished or ending.was_stopped or ending.code in expected - {0}):
            raise LostError(f"{_last_line(ending.output)}; {told}")
        begin = ending.first_step
        if begin is not None and begin != saved + 1:
            raise LostError(f"checkpoint-{saved} was there, and training began with step {begin}; {told}")
        now = self._newest_step(output_dir)
        last = _last_step(ending.output)
        if ending.was_stopped and now != last:
            raise LostError(f"it said that step {last} was saved, and the newest checkpoint is {now}; {told}")
        if now < saved:
            raise LostError(f"checkpoint-{saved} was there, and now the newest is {now}; {told}")

    def _break_something(self, output_dir: Path, history: list[str]) -> None:
        """Now and then, break a file of the newest of several checkpoints: the run goes on from the one before."""
        checkpoints = _checkpoints(output_dir)
        if len(checkpoints) < 2 or self._random.random() >= self._broken_share:
            return
        what = break_file(checkpoints[-1], self._random)
        self.tally.broken_files += 1
        history.append(what)
        self._broken.add(_identity(checkpoints[-1]))

    def _newest_step(self, output_dir: Path) -> int:
        """Return the step of the newest checkpoint that we have not broken; 0 if there is none."""
        whole = [each for each in _checkpoints(output_dir) if _identity(each) not in self._broken]
        return int(whole[-1].name.partition("-")[2]) if whole else 0

    def _plan(self) -> Kill:
        """Choose a signal and a moment at random, each phase as likely as the others."""
        phase = self._random.choice(PHASES)
        occurrence = 1
        if phase == "step":
            occurrence = self._random.randint(1, STEPS // 2)
        elif phase in ("save", "evaluation"):
            occurrence = self._random.randint(1, 2)
        delay = self._random.uniform(0, self._durations[phase])
        return Kill(self._random.choice(SIGNALS), phase, occurrence, delay)

    def compare(self, output_dir: Path) -> str | None:
        """Return how a finished run differs from the undisturbed one: its weights, or the steps that it trained."""
        steps, expected = (_steps(folder) for folder in (output_dir, self.reference))
        if steps != expected:
            return f"trained the steps {steps}, expected {expected}"
        weights, reference = (
            load_file(folder / "adapter_model.safetensors") for folder in (output_dir, self.reference)
        )
        if weights.keys() != reference.keys():
            return "holds other weights"
        differing = [name for name in reference if not torch.equal(weights[name], reference[name])]
        return f"{len(differing)} of {len(reference)} weights differ" if differing else None

    def _arguments(self, output_dir: Path) -> list[str]:
        return [*self._flags, "--output_dir", str(output_dir), "--resume_from_checkpoint", "auto"]


def _write_inputs(folder: Path) -> list[str]:
    """Write the stand-in and its data; return the flags of a run of few seconds with saves and evaluations."""
    records = []
    for index in range(20):
        draw_shapes((64, 64), [("circle", "red", (8, 8, 40, 20 + index))]).save(folder / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": f"The number {index}."}]
        records.append({"image": f"{index}.png", "conversations": turns})
    (folder / "train.json").write_text(json.dumps(records))
    (folder / "eval.json").write_text(json.dumps(records[:8]))
    flags = f"""
        --model_name_or_path {build_standin(folder / "standin")} --dataset_use {folder / "train.json"}
        --eval_dataset_use {folder / "eval.json"} --eval_strategy steps --eval_steps {EVAL_STEPS}
        --save_strategy steps --save_steps {SAVE_STEPS} --save_total_limit 3 --max_steps {STEPS}
        --tune_mm_llm True --tune_mm_mlp True --lora_enable True --lora_r 4 --lora_alpha 8 --lora_dropout 0.1
        --learning_rate 1e-3 --lr_scheduler_type constant --model_max_length 256 --max_pixels 4096 --min_pixels 1024
        --per_device_train_batch_size 2 --per_device_eval_batch_size 1 --dataloader_num_workers 1
        --media_cache_dir {folder / "cache"} --report_to none --use_cpu True
    """
    return flags.split()


def _durations(marks: list[tuple[float, str]]) -> dict[str, float]:
    """Return how long each phase takes, in seconds, from the moments at which phases have begun."""
    lengths: dict[str, list[float]] = {}
    for (begin, phase), (end, _) in pairwise(marks):
        lengths.setdefault(phase, []).append(end - begin)
    return {phase: statistics.median(values) for phase, values in lengths.items()}


def _identity(checkpoint: Path) -> tuple[int, int]:
    """Return what tells a folder from one that takes its name or inode later; a broken one is not changed any more."""
    state = checkpoint.stat()
    return state.st_ino, state.st_ctime_ns


def _checkpoints(output_dir: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest last."""
    return sorted(output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))


def _steps(output_dir: Path) -> list[int]:
    """Return the steps whose loss a finished run has logged, as its state says."""
    state = json.loads((output_dir / "trainer_state.json").read_text(encoding="utf-8"))
    return [entry["step"] for entry in state["log_history"] if "loss" in entry] + [state["global_step"]]


def _last_step(output: str) -> int:
    found = re.findall(r"^\S+ step (\d+) of \d+: loss", output, re.MULTILINE)
    return int(found[-1]) if found else 0


def _last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing was said"


def _describe(kill: Kill | None, ending: Ending) -> str:
    what = f"{kill.signal.name} in {kill.phase}" if kill is not None and ending.killed else "left alone"
    return f"{what}: {'hung' if ending.code is None else ending.code}"


def play_rounds(rounds: KillRounds, kills: int) -> Iterator[Tally]:
    """Play runs until there were so many kills; yield the tally after each."""
    while rounds.tally.total < kills:
        rounds.play()
        yield rounds.tally
