"""Tests of the launcher with small scripts in the trainer's place."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

USER_MISTAKE = "import sys; sys.stderr.write('error: no such data set\\n'); sys.exit(2)"
RANK_ONE_FAILS = """
import os, sys, time
if os.environ["RANK"] == "1":
    sys.exit(7)
time.sleep(60)
"""
KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
RECORDS_ITS_FLAGS = """
import os, pathlib, sys
pathlib.Path(sys.argv[1], os.environ["RANK"]).write_text(os.environ["WORLD_SIZE"] + " " + " ".join(sys.argv[2:]))
"""
ENDS_ON_CTRL_C = """
import pathlib, sys, time
try:
    pathlib.Path(sys.argv[1], "ready").touch()
    time.sleep(60)
except KeyboardInterrupt:
    sys.stderr.write("stopped by Ctrl-C\\n")
    sys.exit(130)
"""
DOES_NOT_END_ON_CTRL_C = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGINT, lambda *_: (folder / "interrupted").touch())
(folder / "ready").touch()
end = time.monotonic() + 60
while time.monotonic() < end:
    time.sleep(0.02)
"""
# A trainer that looks for its launcher, and saves on the SIGTERM that it then sends itself.
WATCHES_ITS_LAUNCHER = """
import pathlib, signal, sys, time
from qwenvl.train.signals import watch_launcher
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: ((folder / "saved").touch(), sys.exit(0)))
watch_launcher()
(folder / "ready").touch()
time.sleep(60)
"""
# A trainer with a helper process of its own, as a data loader has; it saves when asked to stop.
SAVES_ON_SIGTERM = """
import os, pathlib, signal, subprocess, sys, time
folder, rank = pathlib.Path(sys.argv[1]), os.environ["RANK"]
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
stop = []
for each in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(each, lambda *_: stop.append(1))
(folder / f"ready-{rank}").touch()
while not stop:
    time.sleep(0.02)
time.sleep(0.2)  # the save, in which a launcher that ends its processes at once would end the helper
(folder / f"saved-{rank}").write_text("helper alive" if helper.poll() is None else "helper dead")
helper.kill()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
"""


def launch(tmp_path: Path, source: str, *flags: str, processes: int = 1) -> subprocess.Popen:
    script = tmp_path / "trainer.py"
    script.write_text(source)
    command = [sys.executable, "-m", "qwenvl.train.launch", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [*command, str(script), *flags], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_a_users_mistake_exits_2_with_its_one_line_and_nothing_else(tmp_path: Path):
    assert finish(launch(tmp_path, USER_MISTAKE)) == (2, "error: no such data set\n")


def test_exit_code_is_that_of_the_rank_that_failed_not_of_those_ended_for_it(tmp_path: Path):
    code, errors = finish(launch(tmp_path, RANK_ONE_FAILS, processes=2))
    assert (code, errors) == (7, "")


def test_a_killed_process_is_named_with_its_signal(tmp_path: Path):
    code, errors = finish(launch(tmp_path, KILLED))
    assert code == 128 + signal.SIGKILL
    assert "rank 0 was killed by SIGKILL" in errors
    assert "Traceback" not in errors


def test_a_crash_keeps_its_traceback_and_exit_code_1(tmp_path: Path):
    code, errors = finish(launch(tmp_path, "raise RuntimeError('defect')"))
    assert code == 1
    assert errors.count("Traceback") == 1
    assert "RuntimeError: defect" in errors


def test_flags_after_the_script_reach_every_process(tmp_path: Path):
    code, _ = finish(launch(tmp_path, RECORDS_ITS_FLAGS, str(tmp_path), "--max_steps", "10", processes=2))
    assert code == 0
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2 --max_steps 10"] * 2


def wait_for(folder: Path, pattern: str, count: int = 1) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(list(folder.glob(pattern))) == count


def test_ctrl_c_exits_130_with_the_trainings_one_line(tmp_path: Path):
    launcher = launch(tmp_path, ENDS_ON_CTRL_C, str(tmp_path))
    wait_for(tmp_path, "ready")
    launcher.send_signal(signal.SIGINT)
    assert finish(launcher) == (130, "stopped by Ctrl-C\n")


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path):
    launcher = launch(tmp_path, DOES_NOT_END_ON_CTRL_C, str(tmp_path))
    wait_for(tmp_path, "ready")
    launcher.send_signal(signal.SIGINT)
    wait_for(tmp_path, "interrupted")
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGINT)
    code, errors = finish(launcher)
    assert code == 130
    assert "Traceback" not in errors


def test_a_killed_launcher_takes_its_training_along_after_it_has_saved(tmp_path: Path):
    launcher = launch(tmp_path, WATCHES_ITS_LAUNCHER, str(tmp_path))
    wait_for(tmp_path, "ready")
    launcher.kill()
    wait_for(tmp_path, "saved")
    _, errors = launcher.communicate(timeout=60)  # ends when the training has closed its side, too
    assert errors == "the launcher of this run has ended: saving and exiting, as on SIGTERM\n"


def test_signals_after_the_save_change_nothing(tmp_path: Path):
    launcher = launch(tmp_path, SAVES_ON_SIGTERM, str(tmp_path))
    wait_for(tmp_path, "ready-*")
    while launcher.poll() is None:  # up to its last moment
        launcher.send_signal(signal.SIGTERM)
        time.sleep(0.005)
    assert finish(launcher) == (0, "")
    assert (tmp_path / "saved-0").exists()


@pytest.mark.parametrize(("processes", "signum"), [(1, signal.SIGTERM), (2, signal.SIGTERM), (1, signal.SIGHUP)])
def test_a_signal_lets_every_process_save_with_its_helpers_alive_and_exits_0(
    tmp_path: Path, processes: int, signum: signal.Signals
):
    launcher = launch(tmp_path, SAVES_ON_SIGTERM, str(tmp_path), processes=processes)
    wait_for(tmp_path, "ready-*", processes)
    launcher.send_signal(signum)
    assert finish(launcher) == (0, "")
    assert [path.read_text() for path in tmp_path.glob("saved-*")] == ["helper alive"] * processes
