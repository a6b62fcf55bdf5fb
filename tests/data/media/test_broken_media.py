"""Tests of media that no decoder should be trusted with: damaged at random, bombs, pipes, devices and links."""

import os
import random
import resource
import signal
import socket
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import Qwen3VLVideoProcessor

from demo.media import moving_ball, write_video
from qwenvl.check.duplicates import media_ids
from qwenvl.data.media.images import ImageError, image_size, load_image
from qwenvl.data.media.videos import load_video, video_info
from qwenvl.errors import UserError
from qwenvl.medical.convert_image import ImageOptions, ImageTask, convert_image
from tests.data.deep_files import png16, tiff

pydicom = pytest.importorskip("pydicom")
from tests.data.dicom_files import make_dicom, rle_dicom  # noqa: E402

DAMAGED_COPIES = 40
NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
SAMPLES = np.random.default_rng(0).integers(0, 4096, (20, 30, 3)).astype(np.uint16)


def load_frames(path: str) -> None:
    """Read a video as training does."""
    load_video(path, Qwen3VLVideoProcessor())


READERS = {"image": (image_size, load_image), "video": (video_info, load_frames)}


@contextmanager
def seconds(limit: int) -> Iterator[None]:
    """Fail instead of hanging."""
    previous = signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"still reading after {limit} s"))
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def originals(folder: Path) -> dict[str, bytes]:
    """Return the bytes of one small file of each kind, by name."""
    for suffix in ("png", "jpg", "tif", "bmp", "gif", "webp"):
        Image.fromarray(NOISE).save(folder / f"a.{suffix}")
    Image.fromarray(NOISE).save(folder / "lzw.tif", compression="tiff_lzw")
    (folder / "deep.png").write_bytes(png16(SAMPLES))
    (folder / "deep.tif").write_bytes(tiff(SAMPLES, 2, ">", deflated=True))
    (folder / "alpha.tif").write_bytes(tiff(SAMPLES[..., :2], 0, ">", extra=2))
    make_dicom(SAMPLES[..., 0], 12).save_as(folder / "a.dcm", enforce_file_format=True)
    rle_dicom(folder / "rle.dcm")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return the bytes cut, with a part zeroed or made garbage, with bits flipped, or with bytes put in."""
    start = chance.randrange(len(data))
    end = min(len(data), start + chance.choice([1, 4, 64, len(data) // 4 + 1]))
    kind = chance.randrange(5)
    if kind == 0:
        return data[:start]
    if kind == 1:
        return data[:start] + bytes(end - start) + data[end:]
    if kind == 2:
        return data[:start] + chance.randbytes(end - start) + data[end:]
    if kind == 3:
        return data[:start] + bytes([data[start] ^ 1 << chance.randrange(8)]) + data[start + 1 :]
    return data[:start] + chance.randbytes(chance.choice([1, 8, 100])) + data[start:]


def num_refused(path: Path, data: bytes, kind: str, chance: random.Random) -> int:
    """Read damaged copies of a file; return how many readings were refused, which must be in one line."""
    refused = 0
    for _ in range(DAMAGED_COPIES):
        path.write_bytes(damaged(data, chance))
        for read in READERS[kind]:
            try:
                with seconds(20):
                    read(str(path))
            except UserError as error:
                refused += 1
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    return refused


@pytest.mark.filterwarnings("ignore")
def test_an_image_damaged_at_random_is_read_or_refused_in_one_line(tmp_path: Path):
    chance = random.Random(8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = sum(
        num_refused(tmp_path / f"broken{Path(name).suffix}", data, "image", chance)
        for name, data in originals(tmp_path).items()
    )
    assert refused > 6 * DAMAGED_COPIES
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 800 * 1024


def test_a_video_damaged_at_random_is_read_or_refused_in_one_line(tmp_path: Path):
    data = write_video(tmp_path / "whole.mp4", moving_ball((128, 96), 8), fps=4).read_bytes()
    refused = num_refused(tmp_path / "broken.mp4", data, "video", random.Random(8))
    assert DAMAGED_COPIES / 4 < refused < 2 * DAMAGED_COPIES


def test_a_panic_of_a_decoder_is_an_error_that_names_the_file(tmp_path: Path):
    assert load_image(rle_dicom(tmp_path / "whole.dcm")).size == (64, 64)
    path = rle_dicom(tmp_path / "broken.dcm", runs=33)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(BaseException) as panic:
            pydicom.pixels.pixel_array(pydicom.dcmread(path))
    if isinstance(panic.value, Exception):
        pytest.skip("this decoder does not panic")
    with pytest.raises(
        ImageError, match="broken.dcm: cannot read the image .the pixel data cannot be decoded"
    ) as error:
        load_image(path)
    assert error.value.__cause__ is None or isinstance(error.value.__cause__, Exception)


@pytest.mark.parametrize("damage", [KeyboardInterrupt, MemoryError])
def test_what_is_no_damage_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: type):
    def interrupted(*_: object, **__: object) -> None:
        raise damage

    monkeypatch.setattr(pydicom.pixels, "pixel_array", interrupted)
    with pytest.raises(KeyboardInterrupt if damage is KeyboardInterrupt else ImageError):
        load_image(rle_dicom(tmp_path / "x.dcm"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00IS"),  # Rows as decimal text
        (b"\x28\x00\x02\x00US", b"\x28\x00\x02\x00DS"),  # samples per pixel
        (b"\x28\x00\x00\x01US", b"\x28\x00\x00\x01FD"),  # bits allocated
    ],
)
def test_a_header_whose_values_cannot_be_converted_is_refused(tmp_path: Path, old: bytes, new: bytes):
    make_dicom(SAMPLES[..., 0], 12).save_as(tmp_path / "x.dcm", enforce_file_format=True)
    data = (tmp_path / "x.dcm").read_bytes()
    assert old in data
    (tmp_path / "x.dcm").write_bytes(data.replace(old, new))
    with pytest.raises(ImageError, match="x.dcm: "):
        load_image(str(tmp_path / "x.dcm"))
    assert convert_image(ImageTask(str(tmp_path / "x.dcm"), str(tmp_path / "out.png"), ImageOptions())) is not None


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        # The name of a socket has little room.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)


SPECIAL: list[tuple[str, Callable[[Path], object], str]] = [
    ("pipe", _fifo, "a named pipe .FIFO., expected one"),
    ("zero", lambda path: path.symlink_to("/dev/zero"), "a device, expected one"),
    ("folder", lambda path: path.mkdir(), "a folder, expected one"),
    ("socket", _socket, "a socket, expected one"),
    ("circle", lambda path: path.symlink_to(path), "a link that leads back to itself"),
    ("dangling", lambda path: path.symlink_to("gone"), "a link to gone, which does not exist"),
    ("missing", lambda path: None, "no such (image|video) file"),
    ("empty", lambda path: path.touch(), "is empty .0 bytes."),
]


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(("name", "make", "reason"), SPECIAL, ids=[each[0] for each in SPECIAL])
def test_what_is_no_regular_file_is_refused_before_it_is_opened(tmp_path: Path, name, make, reason: str, kind: str):
    path = tmp_path / (name + {"image": ".png", "video": ".mp4"}[kind])
    make(path)
    for read in READERS[kind]:
        with seconds(10), pytest.raises(UserError, match=f"{path}: .*{reason}") as error:
            read(str(path))
        assert "\n" not in str(error.value)
    with seconds(10):
        assert convert_image(ImageTask(str(path), str(tmp_path / "out.png"), ImageOptions())) is not None


def test_pipes_are_not_opened_to_look_for_duplicates(tmp_path: Path):
    pipes = [str(tmp_path / name) for name in "ab"]
    for pipe in pipes:
        os.mkfifo(pipe)
    with seconds(10):
        assert len(set(media_ids(pipes).values())) == 2


@pytest.mark.parametrize("name", ["a\0b.png", "n" * 300 + ".png"])
@pytest.mark.parametrize("kind", READERS)
def test_a_path_that_no_file_can_have_is_refused(tmp_path: Path, name: str, kind: str):
    for read in READERS[kind]:
        with pytest.raises(UserError, match="NUL character|File name too long"):
            read(str(tmp_path / name))


def test_a_file_larger_than_its_pixels_allow_is_refused_unread(tmp_path: Path):
    with open(tmp_path / "x.dcm", "wb") as file:
        file.truncate(2**40)
    for read in READERS["image"]:
        with seconds(10), pytest.raises(ImageError, match="x.dcm: 1,099,511,627,776 bytes are more than"):
            read(str(tmp_path / "x.dcm"))


def test_a_deflate_bomb_in_a_dicom_is_refused_without_inflating_it(tmp_path: Path):
    dataset = make_dicom(SAMPLES[..., 0], 12)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    assert load_image(str(tmp_path / "x.dcm")).size == (30, 20)
    data = (tmp_path / "x.dcm").read_bytes()
    start = 128 + 4 + 12 + pydicom.dcmread(tmp_path / "x.dcm").file_meta.FileMetaInformationGroupLength
    content = zlib.decompress(data[start:], -zlib.MAX_WBITS)
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [
        data[:start],
        packer.compress(content),
        *(packer.compress(bytes(2**20)) for _ in range(40)),
        packer.flush(),
    ]
    (tmp_path / "x.dcm").write_bytes(b"".join(parts))
    # 17.6 MB for 100,000 pixels.
    for read in READERS["image"]:
        with pytest.raises(ImageError, match="x.dcm: .*its deflated data grow to more than 17,577,216 bytes"):
            read(str(tmp_path / "x.dcm"), 100_000)


def test_a_dicom_header_that_asks_for_more_than_its_pixels_is_refused(tmp_path: Path):
    rle_dicom(tmp_path / "x.dcm")
    dataset = pydicom.dcmread(tmp_path / "x.dcm")
    dataset.SamplesPerPixel = 60_000
    dataset.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    with pytest.raises(ImageError, match="damaged DICOM header: 60000 samples of 16 bits a pixel"):
        load_image(str(tmp_path / "x.dcm"))
