"""Tests of the machine check: each verdict with its remedy, the table, and the exit code."""

from importlib import metadata
from pathlib import Path

import pytest

from qwenvl.check import environment
from qwenvl.check.environment import MISSING, OK, OPTIONAL, Check

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("driver", "cuda", "status", "advice"),
    [
        ("580.95.05", "13.0", OK, ""),
        ("595.10", "12.8", OK, ""),
        ("550.54.15", "13.0", MISSING, "or install the CUDA 12 build"),
        ("525.60.13", "12.8", OK, ""),
        ("470.82.01", "12.8", MISSING, "or install the CUDA 11 build"),
        ("418.10", "13.0", MISSING, "update the driver"),
        ("580.95.05", None, MISSING, "built without CUDA"),
        (None, "13.0", OPTIONAL, "CPU"),
    ],
)
def test_the_driver_is_compared_with_the_cuda_build(driver: str | None, cuda: str | None, status: str, advice: str):
    check = environment.check_driver(driver, cuda)
    assert check.status == status
    assert advice in check.advice


def test_an_old_python_is_named():
    assert environment.check_python((3, 10, 14)).status == MISSING
    assert environment.check_python((3, 11, 0)).status == OK


def test_an_absent_package_is_missing_and_another_version_only_reported():
    assert environment.check_requirements("pytest==0.0.1\n").status == OK
    assert "tested: 0.0.1" in environment.check_requirements("pytest==0.0.1\n").found
    absent = environment.check_requirements("torch==2.11.0\nnot-there-at-all==1.0\n")
    assert (absent.status, absent.found) == (MISSING, "not installed: not-there-at-all")
    assert "requirements.txt" in absent.advice


def test_a_package_that_does_not_import_is_missing_with_its_last_line():
    check = environment.check_import("video", "no_such_module", "reads video files")
    assert (check.status, check.found) == (MISSING, "ModuleNotFoundError: No module named 'no_such_module'")


def test_videos_need_pyav(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "check_torch", lambda: [])
    (video,) = (check for check in environment.run_checks() if check.name == "video")
    assert (video.status, video.found) == (OK, f"av {metadata.version('av')}, reads video files")


def test_small_shared_memory_comes_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert environment.check_shared_memory(str(tmp_path / "absent")).status == OPTIONAL
    monkeypatch.setattr(environment, "MIN_SHARED_MEMORY_GIB", 1e9)
    assert "--shm-size" in environment.check_shared_memory(str(tmp_path)).advice


def test_a_driver_with_a_gpu_that_torch_cannot_use_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (check,) = environment.check_gpus("580.10")
    assert check.status == MISSING
    assert "CUDA_VISIBLE_DEVICES" in check.advice
    assert environment.check_gpus(None)[0].status == OPTIONAL


def test_attention_row_gives_backend_and_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert environment.check_attention() == Check("attention", OK, "sdpa: no CUDA device")
