"""Lengths: what is counted from headers is exactly what a sample has once it is made."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import ProcessorMixin

from demo.media import moving_ball, write_video
from qwenvl.data.annotations import Record, Turn
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.labels import IGNORE_INDEX
from qwenvl.data.lengths import TokenCounter, TokenCounts, read_media_sizes
from tests.data.media.test_videos import write_uneven


def count(processor: ProcessorMixin, records: list[Record], cache_dir: Path) -> TokenCounts:
    """Count records with a cache of their own."""
    return TokenCounter(RecordEncoder(processor)).count(records, read_media_sizes(records, str(cache_dir)))


def assert_exact(processor: ProcessorMixin, records: list[Record], cache_dir: Path) -> None:
    """Compare the counts with the samples that the processor makes."""
    counts = count(processor, records, cache_dir)
    encoder = RecordEncoder(processor)
    assert not counts.bad
    for place, record in enumerate(records):
        sample = encoder.encode(record)
        grids = [sample[key] for key in ("image_grid_thw", "video_grid_thw") if key in sample]
        assert counts.total[place] == len(sample["input_ids"]), record
        assert counts.supervised[place] == (sample["labels"] != IGNORE_INDEX).sum(), record
        assert counts.patches[place] == sum(int(grid.prod(dim=1).sum()) for grid in grids), record


def question(image: Path | None = None, video: Path | None = None) -> Record:
    """Return a record about one file."""
    turns = (Turn("user", f"{'<image>' * bool(image)}{'<video>' * bool(video)}What?"), Turn("assistant", "That."))
    return Record("test.json", 3, turns, (str(image),) * bool(image), (str(video),) * bool(video))


def test_counts_are_exact_for_every_kind_of_record(
    processor: ProcessorMixin, every_kind: dict[str, Record], tmp_path: Path
):
    assert_exact(processor, list(every_kind.values()), tmp_path)


def test_counts_are_exact_at_a_variable_rate_from_the_cache_too(own_processor: ProcessorMixin, tmp_path: Path):
    own_processor.video_processor.max_frames = 12
    record = question(video=Path(write_uneven(tmp_path / "uneven.mp4")))
    for _ in range(2):
        assert_exact(own_processor, [record], tmp_path)
    text = own_processor.tokenizer.decode(RecordEncoder(own_processor).encode(record)["input_ids"])
    assert "<11.2 seconds>" in text


def test_counts_are_exact_where_answers_get_thoughts(
    thinking_processor: ProcessorMixin, every_kind: dict[str, Record], tmp_path: Path
):
    assert_exact(thinking_processor, list(every_kind.values()), tmp_path)


def test_counts_follow_the_limits_of_pixels_and_frames(
    own_processor: ProcessorMixin, every_kind: dict[str, Record], tmp_path: Path
):
    own_processor.image_processor.size = {"shortest_edge": 96 * 96, "longest_edge": 128 * 128}
    video_processor = own_processor.video_processor
    video_processor.size = {"shortest_edge": 6 * 64 * 64, "longest_edge": 6 * 96 * 96}
    video_processor.fps, video_processor.min_frames, video_processor.max_frames = 3.0, 3, 5
    assert_exact(own_processor, list(every_kind.values()), tmp_path)


def test_counts_are_exact_where_every_patch_is_a_token(
    own_processor: ProcessorMixin, every_kind: dict[str, Record], tmp_path: Path
):
    own_processor.image_processor.merge_size = own_processor.video_processor.merge_size = 1
    assert_exact(own_processor, list(every_kind.values()), tmp_path)


def test_counts_are_exact_for_images_of_any_size(own_processor: ProcessorMixin, tmp_path: Path):
    own_processor.image_processor.size = {"shortest_edge": 64 * 64, "longest_edge": 160 * 160}
    sizes = np.random.default_rng(0).integers(1, 400, (30, 2)).tolist() + [[1, 1], [1, 150], [399, 2], [33, 31]]
    records = []
    for number, size in enumerate(sizes):
        path = tmp_path / f"{number}.png"
        Image.new("L", tuple(size)).save(path)
        records.append(question(image=path))
    usable = [record for record, size in zip(records, sizes, strict=True) if max(size) / min(size) <= 200]
    assert_exact(own_processor, usable, tmp_path)


@pytest.mark.parametrize(("num_frames", "fps"), [(2, 8), (5, 30), (41, 7)])
def test_counts_are_exact_for_videos_of_any_length(
    own_processor: ProcessorMixin, tmp_path: Path, num_frames: int, fps: int
):
    own_processor.video_processor.max_frames = 9
    video = write_video(tmp_path / "video.mp4", moving_ball((96, 64), num_frames), fps=fps)
    assert_exact(own_processor, [question(video=video)], tmp_path)


def test_counts_are_exact_beyond_one_chunk_and_in_order(
    processor: ProcessorMixin, make_record: Callable[..., Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("qwenvl.data.lengths._CHUNK", 7)
    records = [make_record("Count to this.", "one " * number + "end") for number in range(17)]
    assert_exact(processor, records, tmp_path)


def test_a_file_that_cannot_be_read_or_used_is_reported_and_the_others_are_counted(
    processor: ProcessorMixin, tmp_path: Path
):
    broken, thin, fine = tmp_path / "broken.png", tmp_path / "thin.png", tmp_path / "fine.png"
    broken.write_bytes(b"no image")
    Image.new("L", (1, 300)).save(thin)
    Image.new("L", (64, 64)).save(fine)
    records = [question(image=path) for path in (broken, fine, thin)]
    counts = count(processor, records, tmp_path)
    assert sorted(counts.bad) == [0, 2]
    assert str(counts.bad[0]).startswith(f"test.json row 3: {broken}: not an image")
    assert counts.bad[2].path == str(thin) and "aspect ratio" in counts.bad[2].reason
    assert counts.total.tolist() == [0, len(RecordEncoder(processor).encode(records[1])["input_ids"]), 0]


def test_nothing_to_count_gives_empty_counts(processor: ProcessorMixin, tmp_path: Path):
    assert count(processor, [], tmp_path).total.shape == (0,)
