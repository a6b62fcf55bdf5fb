import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from qwenvl import load_checkpoint
from qwenvl.checkpoint.manifest import MANIFEST_NAME
from qwenvl.errors import UserError
from qwenvl.train.train_qwen import train
from tests.checkpoint.test_manifest import NEEDED_TO_LOAD
from tests.train.conftest import command_line
from tests.trained_run import WAYS_TO_BREAK, Break, break_file, flipped, zeroed

QUESTIONS = ("What is shown?", "Say yes.", "Describe every part of this image, one after the other.", "Why?")


@pytest.mark.parametrize("way", WAYS_TO_BREAK)
def test_a_broken_file_is_named_before_anything_is_loaded(own_copy: Path, way: Break) -> None:
    for name in NEEDED_TO_LOAD:
        content = break_file(own_copy / name, way)
        with pytest.raises(UserError, match=f"{own_copy}: {name} .*it holds checkpoint-1, checkpoint-2: name one"):
            load_checkpoint(own_copy, device="cpu")
        (own_copy / name).write_bytes(content)


def test_a_folder_without_a_model_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)

    with pytest.raises(UserError, match="it holds checkpoint-3: name one"):
        load_checkpoint(tmp_path / "run")
    with pytest.raises(UserError, match="check the path"):
        load_checkpoint(tmp_path / "nothing")


def test_what_only_a_run_needs_may_be_missing(own_copy: Path) -> None:
    (own_copy / "checkpoint-2" / "optimizer.pt").unlink()

    load_checkpoint(own_copy / "checkpoint-2", device="cpu")


def test_an_older_checkpoint_without_a_manifest_is_loaded_if_its_files_are_valid(own_copy: Path) -> None:
    (own_copy / MANIFEST_NAME).unlink()
    load_checkpoint(own_copy, device="cpu")

    break_file(own_copy / "chat_template.jinja", zeroed)

    with pytest.raises(UserError, match="chat_template.jinja is damaged"):
        load_checkpoint(own_copy, device="cpu")


def test_a_change_made_on_purpose_is_reported_how_to_keep(own_copy: Path) -> None:
    break_file(own_copy / "processor_config.json", flipped)

    with pytest.raises(UserError, match=f"if it was changed on purpose, remove {MANIFEST_NAME}"):
        load_checkpoint(own_copy, device="cpu")


def test_prompts_in_a_batch_get_the_answers_that_each_gets_alone(trained: Path, media: Path) -> None:
    model, processor = load_checkpoint(trained, device="cpu")
    saved = json.loads((trained / "tokenizer_config.json").read_text())
    assert saved["padding_side"] == processor.tokenizer.padding_side == "left"
    with Image.open(media / "red.png") as opened:
        image = opened.convert("RGB")

    def answers(questions: tuple[str, ...]) -> list[list[int]]:
        chats = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
            for question in questions
        ]
        prompts = [processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
        inputs = processor(text=prompts, images=[image] * len(prompts), padding=True, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        return tokens[:, inputs["input_ids"].shape[1] :].tolist()

    assert answers(QUESTIONS) == [answers((question,))[0] for question in QUESTIONS]


def test_a_base_model_given_by_a_relative_path_is_found_from_any_folder(
    trained_flags: dict, standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(standin, tmp_path / "models" / "base")
    monkeypatch.chdir(tmp_path)
    flags = trained_flags | {"model_name_or_path": "models/base", "save_strategy": "no", "save_steps": None}
    train(command_line(**flags, output_dir="out"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    recorded = json.loads((tmp_path / "out" / "run_arguments.json").read_text())
    assert adapter["base_model_name_or_path"] == str(tmp_path / "models" / "base") == recorded["model_name_or_path"]
    load_checkpoint(tmp_path / "out", device="cpu")


def test_a_whole_model_is_saved_with_the_cache_that_generation_uses(trained_flags: dict, tmp_path: Path) -> None:
    flags = trained_flags | {"lora_enable": False, "max_steps": 1}
    trainer = train(command_line(**flags, output_dir=tmp_path / "run"))

    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-1"):
        config = json.loads((folder / "config.json").read_text())
        assert config.get("use_cache", True) and config["text_config"]["use_cache"]
    assert not trainer.model.config.use_cache
    model, _ = load_checkpoint(tmp_path / "run", device="cpu")
    assert isinstance(model.config.text_config.use_cache, bool) and model.config.text_config.use_cache
    assert next(model.parameters()).dtype is torch.float32
