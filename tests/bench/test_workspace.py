"""Tests of what the suite trains with: it is made once, and the samples have the tokens of the peers' rows."""

from pathlib import Path

import pytest
from transformers import AutoConfig

from qwenvl.bench.workspace import Workspace
from qwenvl.data import load_datasets
from qwenvl.data.annotations import BadSampleTracker
from qwenvl.data.arguments import DataArguments
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.lengths import TokenCounter, read_media_sizes
from qwenvl.model.arguments import ModelArguments
from qwenvl.train.prepare import prepare_base


def test_everything_is_made_once(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, is_standin=True)
    made = [workspace.model("8b"), workspace.encoder(), workspace.dataset(3)]
    assert [AutoConfig.from_pretrained(folder).model_type for folder in made[:2]] == ["qwen3_vl", "dinov2"]
    times = [path.stat().st_mtime_ns for path in made]
    again = Workspace(tmp_path, is_standin=True)
    assert [again.model("8b"), again.encoder(), again.dataset(3)] == made
    assert [path.stat().st_mtime_ns for path in made] == times


def test_what_was_cut_off_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "xrays_2.unfinished").mkdir()
    assert Workspace(tmp_path, is_standin=True).dataset(2).is_file()
    assert not (tmp_path / "xrays_2.unfinished").exists()


def test_a_sample_has_about_537_tokens(standin: Path, tmp_path: Path) -> None:
    path = Workspace(tmp_path).dataset(100)  # each of the different images once
    records = load_datasets(str(path), 0, BadSampleTracker()).records
    base = prepare_base(ModelArguments(model_name_or_path=str(standin)), DataArguments(max_pixels=451584))
    counts = TokenCounter(RecordEncoder(base.processor)).count(records, read_media_sizes(records))
    assert counts.total.mean() == pytest.approx(537, abs=10)
