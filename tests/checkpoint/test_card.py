from pathlib import Path

from huggingface_hub import ModelCard

from qwenvl.checkpoint.card import model_card, write_model_card

ARGUMENTS = {"model_name_or_path": "Qwen/Qwen3-VL-4B-Instruct", "dataset_use": "a.json,b", "lora_r": 4}


def test_every_checkpoint_has_a_card_of_its_own_run(trained: Path) -> None:
    for folder in (trained, trained / "checkpoint-1"):
        text = (folder / "README.md").read_text(encoding="utf-8")

        assert ModelCard(text).data.library_name == "peft"
        for words in (
            "| vision encoder | rad_dino |",
            "| merger | simple |",
            "checkpoint_records.json",
            "load_checkpoint",
        ):
            assert words in text
        assert "More Information Needed" not in text


def test_a_card_says_where_loading_runs_code() -> None:
    for encoder, is_code in (("rad_dino", False), (None, False), ("/mine/encoder.py:Mine", True)):
        text = model_card(ARGUMENTS | {"custom_vision_encoder": encoder}, [], is_adapter=True)
        assert ("trust_remote_code=True" in text) == is_code


def test_a_card_of_a_whole_model_names_its_base_and_its_last_scores() -> None:
    history = [{"step": 1, "eval_loss": 9.0}, {"step": 2, "eval_loss": 0.5, "eval_token_accuracy": 0.75}, {"step": 3}]
    text = model_card(ARGUMENTS, history, is_adapter=False)

    head = ModelCard(text).data
    assert (head["base_model"], head["library_name"]) == ("Qwen/Qwen3-VL-4B-Instruct", "transformers")
    assert "| step | 2 |\n| eval_loss | 0.5000 |\n| eval_token_accuracy | 0.7500 |" in text
    assert "## Scores" not in model_card(ARGUMENTS, [], is_adapter=False)


def test_a_new_card_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("template")
    write_model_card(tmp_path, ARGUMENTS, [])

    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert "a.json,b" in (tmp_path / "README.md").read_text()
