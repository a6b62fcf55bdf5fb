import json
import re
import subprocess
from pathlib import Path

from qwenvl.train.record import find_git_commit


def test_run_arguments_hold_the_values_that_took_effect(trained: Path) -> None:
    for folder in (trained, trained / "checkpoint-1"):
        effective = json.loads((folder / "run_arguments.json").read_text())["effective"]

        assert effective["attention"] == "sdpa"
        assert (effective["processes"], effective["gpus"]) == (1, 0)
        assert effective["video_frames"] == {"fps": 2.0, "min": 4, "max": 8}
        assert effective["image_size"] and None not in effective["image_size"].values()
        assert re.fullmatch(r"\d+\.\d+\.\d+", effective["versions"]["python"])
        assert all(effective["versions"][name] for name in ("torch", "transformers", "peft"))


def test_the_commit_is_that_of_a_checkout_which_tracks_the_folder(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    assert find_git_commit(tmp_path) is None
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").touch()
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / "ignored").mkdir()

    assert re.fullmatch("[0-9a-f]{40}", find_git_commit(tmp_path / "package"))
    assert find_git_commit(tmp_path / "ignored") is None
