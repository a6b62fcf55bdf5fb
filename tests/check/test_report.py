import io

import numpy as np
import pytest
from PIL import Image

from qwenvl.check.report import draw_histogram, histogram_edges


@pytest.mark.parametrize("lengths", [[7], [5, 5, 6], list(range(100, 400)), [1, 100_000]])
def test_the_bins_cover_the_data_and_hold_whole_numbers_of_tokens(lengths: list[int]) -> None:
    edges = histogram_edges(np.array(lengths))

    assert edges[0] < min(lengths) and max(lengths) < edges[-1]
    widths = np.diff(edges)
    assert set(widths.tolist()) == {round(widths[0])} and len(widths) <= 80
    counts, _ = np.histogram(lengths, bins=edges)
    assert counts.sum() == len(lengths)


def test_a_distant_limit_does_not_press_the_records_to_the_edge() -> None:
    def bar_columns(limit: int) -> int:
        image = np.asarray(Image.open(io.BytesIO(draw_histogram(np.arange(100, 200), limit))).convert("RGB")).astype(
            int
        )
        blue = (image[..., 2] - image[..., 0]) > 60
        return int(blue.any(0).sum())

    assert bar_columns(1_000_000) > 0.9 * bar_columns(150) > 100
