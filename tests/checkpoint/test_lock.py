import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwenvl.checkpoint import lock
from qwenvl.checkpoint.lock import LOCK_NAME, check_lock, lock_output_dir, release_output_dirs
from qwenvl.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from qwenvl.checkpoint import lock
lock._boot_id = lambda: sys.argv[2] or lock.socket.gethostname()
lock.lock_output_dir(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    """Let no test keep a folder."""
    with release_output_dirs():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def hold_elsewhere(folder: Path, boot: str) -> subprocess.Popen:
    """Start a process that holds a folder, and return it when it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), boot],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def write_lock_of_another_machine(folder: Path, age: float = 0.0) -> Path:
    """Leave the lock of a run on another machine, renewed so many seconds ago; no kernel lock goes with it."""
    folder.mkdir()
    path = folder / LOCK_NAME
    holder = {"host": "node7", "pid": 4711, "boot": "another", "process_started": 1.0, "nonce": "0"}
    path.write_text(json.dumps(holder | {"started": "2026-01-01 00:00:00"}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_second_run_is_refused_with_the_first_ones_host_and_process_until_that_is_killed(folder: Path) -> None:
    first = hold_elsewhere(folder, lock._boot_id())

    with pytest.raises(UserError, match=f"is in use by a run: process {first.pid} on {lock.socket.gethostname()}"):
        lock_output_dir(str(folder))
    first.kill()
    first.wait()
    assert (folder / LOCK_NAME).is_file()
    lock_output_dir(str(folder))
    check_lock(str(folder))

    assert json.loads((folder / LOCK_NAME).read_text())["pid"] == os.getpid()


def test_one_process_does_not_run_twice_in_a_folder(folder: Path) -> None:
    lock_output_dir(str(folder))

    with pytest.raises(UserError, match="is in use by this process"):
        lock_output_dir(f"{folder}/../run")


def test_the_end_of_a_run_releases_the_folder_and_leaves_nothing_behind(folder: Path) -> None:
    with release_output_dirs():
        lock_output_dir(str(folder / "inner"))
    assert not folder.exists()

    with release_output_dirs():
        lock_output_dir(str(folder / "inner"))
        (folder / "inner" / "model").touch()
    assert [path.name for path in folder.rglob("*")] == ["inner", "model"]


def test_a_job_requeued_on_another_machine_waits_for_the_dead_one_and_takes_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.3)
    write_lock_of_another_machine(folder)

    started = time.monotonic()
    lock_output_dir(str(folder))

    assert time.monotonic() - started > 0.3
    assert "taking over the lock of a run that is dead: process 4711 on node7" in caplog.text


def test_a_lock_not_renewed_for_long_is_taken_over_at_once(folder: Path) -> None:
    write_lock_of_another_machine(folder, age=3600)

    started = time.monotonic()
    lock_output_dir(str(folder))

    assert time.monotonic() - started < 1.0


def test_a_living_run_on_another_machine_is_seen_by_its_heartbeat(folder: Path) -> None:
    path = write_lock_of_another_machine(folder, age=30)
    heartbeat = threading.Timer(0.2, os.utime, [path])
    heartbeat.start()

    with pytest.raises(UserError, match="process 4711 on node7, since 2026-01-01"):
        lock_output_dir(str(folder))
    heartbeat.join()


def test_a_kernel_lock_that_outlives_its_machine_is_replaced_and_a_living_holder_notices(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.3)
    first = hold_elsewhere(folder, "another")

    lock_output_dir(str(folder))
    first.stdin.close()
    first.wait()

    # It has left alone what is not its own any more.
    check_lock(str(folder))
    (folder / LOCK_NAME).rename(folder / "old")
    (folder / LOCK_NAME).touch()
    with pytest.raises(UserError, match="has been taken over by another run"):
        check_lock(str(folder))


def test_where_the_file_system_has_no_locks_a_living_process_is_still_seen(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_try_kernel_lock", lambda descriptor: "unsupported")
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: None)
    first = hold_elsewhere(folder, lock._boot_id())

    with pytest.raises(UserError, match=f"process {first.pid} on"):
        lock_output_dir(str(folder))
    first.kill()
    first.wait()

    lock_output_dir(str(folder))


def test_the_holder_renews_its_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    lock_output_dir(str(folder))
    os.utime(folder / LOCK_NAME, (0, 0))

    deadline = time.monotonic() + 10
    while (folder / LOCK_NAME).stat().st_mtime == 0 and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert (folder / LOCK_NAME).stat().st_mtime > 0
