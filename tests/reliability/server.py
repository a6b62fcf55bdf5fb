"""Fork trainings off a process that has imported everything: a start takes a second instead of ten.

Reads one job a line from standard input and answers with its process id, then with its exit code.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from qwenvl.train import run, train_qwen


class Marks:
    """Notes each phase of a training in a file, and sends this process the planned signal in the planned phase.

    `kill` holds the `phase`, its `occurrence` (from 1), the `delay` from its begin in seconds, and the `signal`.
    """

    def __init__(self, path: str, kill: dict[str, Any] | None) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._kill = kill
        self._left = kill["occurrence"] if kill else 0

    def mark(self, phase: str) -> None:
        """Note that a phase begins."""
        os.write(self._file, f"{time.monotonic():.6f} {phase}\n".encode())
        if self._kill and phase == self._kill["phase"]:
            self._left -= 1
            if self._left == 0:
                threading.Thread(target=self._send, daemon=True).start()

    def _send(self) -> None:
        time.sleep(self._kill["delay"])
        os.write(self._file, f"{time.monotonic():.6f} killed\n".encode())
        os.kill(os.getpid(), self._kill["signal"])


def marked(trainer_class: type, marks: Marks) -> type:
    """Return the trainer with marks where its steps, evaluations and saves begin."""

    class MarkedTrainer(trainer_class):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            marks.mark("step")
            return super().training_step(*args, **kwargs)

        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            marks.mark("evaluation")
            metrics = super().evaluate(*args, **kwargs)
            marks.mark("evaluated")
            return metrics

        def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
            marks.mark("save" if "checkpoint-" in str(output_dir) else "end")
            super().save_model(output_dir, *args, **kwargs)

    return MarkedTrainer


def run_job(job: dict[str, Any]) -> int:
    """Train in this forked process as the program does, with its output in the job's log; return the exit code."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(descriptor, target)
    try:
        marks = Marks(job["marks"], job["kill"])
        marks.mark("start")
        run.QwenVLTrainer = marked(run.QwenVLTrainer, marks)
        sys.argv = ["train_qwen.py", *job["arguments"]]
        train_qwen.main()
        marks.mark("done")
        Path(job["modules"]).write_text("\n".join(sys.modules), encoding="utf-8")
    except SystemExit as error:
        return int(error.code or 0)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def import_modules(path: str) -> None:
    """Import what an earlier training has imported on its way, so that the next has it from the start."""
    if not Path(path).exists():
        return
    for name in Path(path).read_text(encoding="utf-8").splitlines():
        if name not in sys.modules and name.partition(".")[0] in ("transformers", "peft", "accelerate", "qwenvl"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def main() -> None:
    """Serve jobs until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    print(json.dumps({"threads": threading.active_count()}), file=answers, flush=True)
    for line in sys.stdin:
        import_modules(json.loads(line)["modules"])
        pid = os.fork()
        if pid == 0:
            os._exit(run_job(json.loads(line)))
        print(json.dumps({"pid": pid}), file=answers, flush=True)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # its data workers, which look for their trainer only now and then
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), file=answers, flush=True)
    os._exit(0)  # there is nothing to tidy up, and libraries take seconds for it


if __name__ == "__main__":
    main()
