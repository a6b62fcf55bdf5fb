import zipfile
from pathlib import Path

import pytest

from qwenvl.bench.standin import build_standin
from qwenvl.checkpoint.manifest import MANIFEST_NAME, find_fault
from tests.trained_run import WAYS_TO_BREAK, Break, break_file, deleted, flipped, half, zeroed

# What a file without a manifest does not show: a shorter template is a template, and a letter may be any.
UNSEEN = {(half, "chat_template.jinja"), (deleted, "run_arguments.json")}


@pytest.mark.parametrize("way", [way for way in WAYS_TO_BREAK if way is not flipped])
def test_broken_files_of_a_checkpoint_without_a_manifest_are_named(own_copy: Path, way: Break) -> None:
    folder = own_copy / "checkpoint-2"
    (folder / MANIFEST_NAME).unlink()
    assert find_fault(folder, for_resume=True) is None

    for path in [path for path in folder.iterdir() if path.name != "README.md"]:
        content = break_file(path, way)
        if (way, path.name) not in UNSEEN:
            assert path.name in find_fault(folder, for_resume=True)
        path.write_bytes(content)


def test_a_flipped_byte_in_a_state_is_found_by_its_own_checksum(own_copy: Path) -> None:
    folder = own_copy / "checkpoint-2"
    (folder / MANIFEST_NAME).unlink()

    optimizer = folder / "optimizer.pt"
    with zipfile.ZipFile(optimizer) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    content = bytearray(optimizer.read_bytes())
    content[largest.header_offset + 200] ^= 1  # beyond the record's header, which pads it to 64 bytes
    optimizer.write_bytes(content)

    assert find_fault(folder, for_resume=True).startswith("optimizer.pt is damaged")
    assert find_fault(folder, for_resume=False) is None


def test_a_missing_description_of_the_encoder_is_not_blamed_on_its_weights(own_copy: Path) -> None:
    (own_copy / MANIFEST_NAME).unlink()

    (own_copy / "config.json").unlink()

    assert find_fault(own_copy, for_resume=False) == (
        "config.json, which describes the encoder rad_dino of that run, is missing"
    )


def test_a_whole_model_and_files_of_the_users_own_are_no_fault(standin: Path, tmp_path: Path) -> None:
    folder = build_standin(tmp_path / "model")
    (folder / "predictions.json").write_text("[1, 2")

    assert find_fault(folder, for_resume=False) is None
    break_file(folder / "model.safetensors", zeroed)
    assert find_fault(folder, for_resume=False).startswith("model.safetensors is damaged")


def test_the_states_of_every_process_of_deepspeed_are_asked_for(own_copy: Path) -> None:
    folder = own_copy / "checkpoint-2"
    for name in (MANIFEST_NAME, "optimizer.pt"):
        (folder / name).unlink()
    assert find_fault(folder, for_resume=True) == "optimizer.pt or latest is missing"

    (folder / "latest").write_text("global_step2")

    assert "0 of the 1 files *_optim_states.pt" in find_fault(folder, for_resume=True)
