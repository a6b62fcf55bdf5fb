"""Convert images to rows of patches, as the official processor lays them out, and back.

Images of different sizes can only be joined as rows of one length. A header row before the rows of each image
separates them again: it holds the patch grid and the number of frames, each as two digits of base 256, so that it is
still exact after a cast to bfloat16 or float16.

T frames, C channels, p patch size in pixels, m merge size, q temporal patch size, R rows of C * q * p * p values.
"""

from dataclasses import dataclass

import torch

BASE = 256
HEADER_FIELDS = 4


@dataclass(frozen=True)
class PatchLayout:
    """How rows of patches are cut; the official Qwen3-VL rows are (16, 2, 2)."""

    patch_size: int
    temporal_patch_size: int = 1
    merge_size: int = 1


@dataclass(frozen=True)
class PatchGrid:
    """Size of one image or video in patches, and how many of its frames are real (the rest fill the last patch)."""

    time: int
    height: int
    width: int
    frames: int

    @property
    def rows(self) -> int:
        """Number of patch rows."""
        return self.time * self.height * self.width


def patchify(frames: torch.Tensor, layout: PatchLayout) -> tuple[torch.Tensor, PatchGrid]:
    """Cut frames (T, C, H, W), T a multiple of q, into rows (R, C * q * p * p) in the order of Qwen3-VL's processor."""
    count, channels, height, width = frames.shape
    p, q, m = layout.patch_size, layout.temporal_patch_size, layout.merge_size
    grid = PatchGrid(count // q, height // p, width // p, count)
    patches = frames.reshape(grid.time, q, channels, grid.height // m, m, p, grid.width // m, m, p)
    return patches.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(grid.rows, channels * q * p * p), grid


def unpatchify(rows: torch.Tensor, grid: PatchGrid, layout: PatchLayout) -> torch.Tensor:
    """Join rows (R, C * q * p * p) to frames (T, C, H, W) again: the inverse of `patchify`, bit for bit."""
    p, q, m = layout.patch_size, layout.temporal_patch_size, layout.merge_size
    patches = rows.reshape(grid.time, grid.height // m, grid.width // m, m, m, -1, q, p, p)
    frames = patches.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)
    return frames.reshape(grid.time * q, -1, grid.height * p, grid.width * p)[: grid.frames]


def with_header(rows: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """Put the header row before an image's patch rows: (R, L) -> (1 + R, L)."""
    header = rows.new_zeros(1, rows.shape[1])
    for i, value in enumerate((grid.time, grid.height, grid.width, grid.frames)):
        header[0, 2 * i], header[0, 2 * i + 1] = value // BASE, value % BASE
    return torch.cat([header, rows])


def read_header(row: torch.Tensor) -> PatchGrid | None:
    """Read a header row (L,) back; None if the row cannot be a header."""
    digits = row[: 2 * HEADER_FIELDS].tolist()
    if any(not float(digit).is_integer() or not 0 <= digit < BASE for digit in digits):
        return None
    grid = PatchGrid(*(int(BASE * digits[2 * i] + digits[2 * i + 1]) for i in range(HEADER_FIELDS)))
    return grid if grid.rows > 0 and grid.frames > 0 else None


def split_rows(rows: torch.Tensor) -> list[tuple[torch.Tensor, PatchGrid]] | None:
    """Split joined rows with headers (sum of 1 + R, L) into (rows, grid) an image; None if they do not add up."""
    media = []
    start = 0
    while start < len(rows):
        grid = read_header(rows[start])
        if grid is None or start + 1 + grid.rows > len(rows):
            return None
        media.append((rows[start + 1 : start + 1 + grid.rows], grid))
        start += 1 + grid.rows
    return media
