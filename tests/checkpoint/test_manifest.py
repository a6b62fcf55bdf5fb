import contextlib
import os
from pathlib import Path

import pytest

from qwenvl.checkpoint import manifest
from qwenvl.checkpoint.manifest import MANIFEST_NAME, find_fault, replace_file, write_manifest
from tests.trained_run import WAYS_TO_BREAK, Break, break_file, deleted, flipped

NEEDED_TO_LOAD = {
    *("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "config.json"),
    *("processor_config.json", "run_arguments.json", "tokenizer.json", "tokenizer_config.json"),
}
NEEDED_TO_GO_ON = {"optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"}


def test_a_checkpoint_and_the_finished_model_have_a_manifest_of_every_file(trained: Path) -> None:
    names = {path.name for path in (trained / "checkpoint-2").iterdir()}

    assert names == NEEDED_TO_LOAD | NEEDED_TO_GO_ON | {"README.md", MANIFEST_NAME}
    assert find_fault(trained / "checkpoint-2", for_resume=True) is None
    assert (trained / MANIFEST_NAME).is_file()
    assert find_fault(trained, for_resume=False) is None


@pytest.mark.parametrize("way", WAYS_TO_BREAK)
def test_a_broken_file_is_named_whichever_it_is_and_however_it_is_broken(own_copy: Path, way: Break) -> None:
    folder = own_copy / "checkpoint-2"

    for name in NEEDED_TO_LOAD | NEEDED_TO_GO_ON:
        content = break_file(folder / name, way)

        assert find_fault(folder, for_resume=True).startswith(f"{name} ")
        assert (find_fault(folder, for_resume=False) is None) == (name in NEEDED_TO_GO_ON)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("way", [way for way in WAYS_TO_BREAK if way is not deleted])
def test_a_broken_manifest_is_named_itself(own_copy: Path, way: Break) -> None:
    break_file(own_copy / MANIFEST_NAME, way)

    assert find_fault(own_copy, for_resume=False) == f"{MANIFEST_NAME} is damaged"


def test_the_model_card_may_be_edited(own_copy: Path) -> None:
    (own_copy / "README.md").write_text("My model.")

    assert find_fault(own_copy, for_resume=True) is None


def test_files_in_inner_folders_are_described_as_well(tmp_path: Path) -> None:
    states = tmp_path / "global_step2" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    states.parent.mkdir()
    states.write_bytes(b"states")
    write_manifest(tmp_path)

    states.write_bytes(b"stated")

    assert find_fault(tmp_path, for_resume=True).startswith(f"global_step2/{states.name} is damaged")
    assert find_fault(tmp_path, for_resume=False) is None


def test_a_flipped_byte_in_any_block_of_a_large_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "BLOCK_BYTES", 1000)
    large = tmp_path / "model.safetensors"
    content = bytes(i % 251 for i in range(4500))
    large.write_bytes(content)
    write_manifest(tmp_path)
    assert '"crc32"' in (tmp_path / MANIFEST_NAME).read_text()
    assert find_fault(tmp_path, for_resume=False) is None

    for start in range(0, 4500, 900):
        large.write_bytes(content[:start] + flipped(content[start : start + 900]) + content[start + 900 :])
        assert find_fault(tmp_path, for_resume=False).startswith("model.safetensors is damaged")


@pytest.mark.parametrize("killed_before", ["os.replace", "the second manifest", None])
def test_a_file_of_a_finished_checkpoint_is_replaced_without_a_moment_of_disagreement(
    own_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_before: str | None
) -> None:
    folder = own_copy / "checkpoint-2"
    new = tmp_path / "state.json"
    new.write_text("{}", encoding="utf-8")
    replace, done = os.replace, []

    def killed(source: Path, target: Path) -> None:
        if (killed_before == "os.replace" and target == folder / "trainer_state.json") or (
            killed_before == "the second manifest" and done.count(folder / MANIFEST_NAME) == 1 and source != new
        ):
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with contextlib.suppress(KeyboardInterrupt):
        replace_file(folder, "trainer_state.json", new)

    assert find_fault(folder, for_resume=True) is None
    assert (new.exists(), (folder / "trainer_state.json").read_text() == "{}") == (
        (True, False) if killed_before == "os.replace" else (False, True)
    )
    (folder / "trainer_state.json").write_text("[]", encoding="utf-8")
    assert find_fault(folder, for_resume=True).startswith("trainer_state.json")
