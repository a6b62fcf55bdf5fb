"""Bring gray levels of any depth to 8 bits: modality LUT, VOI LUT or window, chosen range, MONOCHROME1.

Shapes: H, W are the rows and columns of one image. pydicom (the extra `medical`) is imported only by functions that
take a pydicom dataset. The DICOM rules are those of PS3.3 C.7.6.3, C.11.1 and C.11.2.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from qwenvl.errors import UserError

RANGES = ("minmax", "percentile", "window", "bits")
MEDICAL_EXTRA = 'pip install -e ".[medical]"'
# Enough levels for a percentile that is exact to one of 256 steps, whatever the size of the X-ray.
_PERCENTILE_SAMPLES = 1_000_000


@dataclass(frozen=True)
class GrayRange:
    """Which gray levels become black and white.

    `minmax`: the smallest and the largest one. `percentile`: the two `percentiles`. `bits`: all levels that `bits` bits
    (or the file's own depth) can hold. `window`: `window` = (center, width) if given, else the file's VOI LUT or
    window, else `minmax`. Raises `UserError` for numbers that are not a valid range.
    """

    kind: str = "window"
    percentiles: tuple[float, float] = (0.5, 99.5)
    window: tuple[float, float] | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in RANGES:
            raise UserError(f"range {self.kind!r} is unknown; choose one of {', '.join(RANGES)}")
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise UserError(
                f"percentiles {low:g} and {high:g} are not a range; give two numbers, 0 <= low < high <= 100"
            )
        if self.window is not None and not self.window[1] > 0:
            raise UserError(f"window width {self.window[1]:g} is not above 0; give a center and a width in gray levels")
        if self.bits is not None and not 1 <= self.bits <= 32:
            raise UserError(f"{self.bits} bits is not the depth of an image; give 1 to 32")


def levels_to_uint8(levels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map `low`..`high` linearly onto 0..255 and clip the rest; NaN becomes black. Any shape."""
    if levels.dtype.kind == "u" and levels.dtype.itemsize <= 2:
        # Mapping each possible level once, 65,536 of them, is faster than mapping millions of pixels.
        table = _scaled(np.arange(2 ** (8 * levels.dtype.itemsize), dtype=np.float32), low, high)
        return table[levels]
    return _scaled(levels.astype(np.float32 if levels.dtype.itemsize <= 2 else np.float64), low, high)


def _scaled(levels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map as `levels_to_uint8` does, in the precision of floating-point `levels`."""
    kind = levels.dtype.type
    with np.errstate(invalid="ignore"):
        gray = levels - kind(low)
        gray /= kind(high) - kind(low) if high > low else kind(np.inf)
    gray *= kind(255)
    np.nan_to_num(gray, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    np.clip(gray, 0, 255, out=gray)
    return np.rint(gray, out=gray).astype(np.uint8)


def gray_to_uint8(levels: np.ndarray, gray_range: GrayRange, depth: int | None = None) -> np.ndarray:
    """Map gray levels (H, W) that have no window of their own to 8 bits.

    `depth` is the number of bits that the levels were stored with; by default that of their type. Raises `UserError`
    for the range `bits` on floats, which have no depth.
    """
    return levels_to_uint8(levels, *limits_of(levels, gray_range, depth))


def limits_of(levels: np.ndarray, gray_range: GrayRange, depth: int | None = None) -> tuple[float, float]:
    """Return the two levels that become black and white; `levels` of any shape have no window of their own.

    `depth` and errors are as in `gray_to_uint8`. Raises `UserError` where no level is finite, too.
    """
    if gray_range.kind == "window" and gray_range.window is not None:
        return _window_limits(*gray_range.window)
    if gray_range.kind == "bits":
        return _depth_limits(levels.dtype, gray_range.bits or depth)
    return _occupied_limits(levels, gray_range)


def window_to_uint8(levels: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Apply a DICOM window (PS3.3 C.11.2.1.2 and .3) to levels of any shape; `function` is the VOI LUT Function.

    Raises `UserError` for an unknown function or a width that it does not allow.
    """
    if function == "SIGMOID" and width > 0:
        with np.errstate(over="ignore"):
            return levels_to_uint8(1 / (1 + np.exp(-4 * (levels.astype(np.float64) - center) / width)), 0, 1)
    return levels_to_uint8(levels, *_window_limits(center, width, function))


def dicom_to_uint8(dataset: Any, gray_range: GrayRange, frame: int | None = None) -> np.ndarray:
    """Render a pydicom dataset as a viewer does: gray (H, W) or color (H, W, 3), uint8.

    `frame` (from 0) picks one of several. Raises `UserError` for no pixels, for several frames of which none is picked,
    for a syntax without a decoder, and for a damaged header or pixel data.
    """
    try:
        return _rendered(dataset, gray_range, frame)
    except UserError:
        raise
    # pydicom and its decoders raise many types of exception for damaged files.
    except Exception as error:
        raise UserError(f"damaged DICOM: {_one_line(error)}") from error


def _rendered(dataset: Any, gray_range: GrayRange, frame: int | None) -> np.ndarray:
    pixels = _decoded_pixels(dataset, frame)
    kind = dataset.get("PhotometricInterpretation", "MONOCHROME2")
    if kind == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        pixels = apply_color_lut(pixels, dataset)[..., :3]
        return levels_to_uint8(pixels, 0, np.iinfo(pixels.dtype).max)
    if pixels.ndim == 3:
        return levels_to_uint8(pixels, 0, 2 ** int(dataset.BitsStored) - 1)
    gray = _monochrome_to_uint8(dataset, pixels, gray_range)
    return 255 - gray if kind == "MONOCHROME1" else gray


def _monochrome_to_uint8(dataset: Any, pixels: np.ndarray, gray_range: GrayRange) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut

    levels = apply_modality_lut(pixels, dataset)
    if gray_range.kind == "window" and gray_range.window is None:
        if dataset.get("VOILUTSequence"):
            return _voi_lut_to_uint8(levels, dataset.VOILUTSequence[0])
        if dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
            function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
            return window_to_uint8(levels, _first(dataset.WindowCenter), _first(dataset.WindowWidth), function)
    if gray_range.kind == "bits":
        ends = np.array(_depth_limits(pixels.dtype, gray_range.bits or int(dataset.BitsStored)), dtype=pixels.dtype)
        return levels_to_uint8(levels, *sorted(apply_modality_lut(ends, dataset).tolist()))
    if gray_range.kind == "window" and gray_range.window is not None:
        return window_to_uint8(levels, *gray_range.window)
    visible = levels[~_padding(dataset, pixels)]
    return levels_to_uint8(levels, *_occupied_limits(visible if visible.size else levels, gray_range))


def _decoded_pixels(dataset: Any, frame: int | None) -> np.ndarray:
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise UserError(f"a DICOM object without pixels (modality {dataset.get('Modality', 'unknown')}); leave it out")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frame is None and frames > 1:
        raise UserError(f"{frames} frames in one file; pick one with --frame 0 to {frames - 1}")
    if frame is not None and frame >= frames:
        raise UserError(f"frame {frame} is not there: the file has {frames}; pick one below that")
    from pydicom.pixels import pixel_array

    try:
        return pixel_array(dataset, index=frame or 0)
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except RuntimeError as error:
        syntax = dataset.file_meta.TransferSyntaxUID.name
        if find_spec("pylibjpeg") is None:
            raise UserError(f"no decoder for the transfer syntax {syntax!r}; install one: {MEDICAL_EXTRA}") from error
        raise UserError(f"the pixel data ({syntax}) cannot be decoded: {_one_line(error)}") from error
    except Exception:
        raise
    # pylibjpeg-rle, written in Rust, panics on damaged data. PyO3's PanicException is not an Exception, its class
    # cannot be imported, and its objects cannot be pickled in a worker. Can go when it is an Exception:
    # https://github.com/PyO3/pyo3/issues/2783
    except BaseException as error:
        raise UserError(f"the pixel data cannot be decoded: {_one_line(error)}") from None


def _voi_lut_to_uint8(levels: np.ndarray, item: Any) -> np.ndarray:
    """Look levels up in a VOI LUT item and scale its output depth to 8 bits.

    pydicom's `apply_voi` stores the indices in the type of the output, which wraps for tables of more than 256 entries
    of 8 bits. Can go when it does not: https://github.com/pydicom/pydicom/blob/v3.0.2/src/pydicom/pixels/processing.py#L673
    """
    entries, first, depth = (int(value) for value in item.LUTDescriptor)
    data = item.LUTData
    table = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data, dtype=np.int64)
    indices = np.clip(np.rint(levels) - first, 0, min(entries or 2**16, table.size) - 1)
    return levels_to_uint8(table[indices.astype(np.int64)], 0, 2**depth - 1)


def _padding(dataset: Any, pixels: np.ndarray) -> np.ndarray:
    """Mark the pixels (H, W) that only pad the frame around the X-ray (PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(pixels.shape, dtype=bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return (pixels >= low) & (pixels <= high)


def _occupied_limits(levels: np.ndarray, gray_range: GrayRange) -> tuple[float, float]:
    finite = levels[np.isfinite(levels)] if levels.dtype.kind == "f" else levels.reshape(-1)
    if not finite.size:
        raise UserError("no pixel has a finite value; replace the file")
    if gray_range.kind == "percentile":
        low, high = np.percentile(finite[:: finite.size // _PERCENTILE_SAMPLES + 1], gray_range.percentiles)
        return float(low), float(high)
    return float(finite.min()), float(finite.max())


def _depth_limits(dtype: np.dtype, bits: int | None) -> tuple[float, float]:
    if dtype.kind not in "iu":
        raise UserError("--range bits on an image of floats, which has no depth; use minmax or percentile")
    depth = bits or dtype.itemsize * 8
    return (-(2 ** (depth - 1)), 2 ** (depth - 1) - 1) if dtype.kind == "i" else (0, 2**depth - 1)


def _window_limits(center: float, width: float, function: str = "LINEAR") -> tuple[float, float]:
    if function == "LINEAR" and width >= 1:
        return _step_or_ramp(center - 0.5, width - 1)
    if function == "LINEAR_EXACT" and width > 0:
        return _step_or_ramp(center, width)
    raise UserError(
        f"window of width {width:g} with VOI LUT function {function!r} is not valid DICOM; use --range minmax"
    )


def _step_or_ramp(middle: float, width: float) -> tuple[float, float]:
    """Return the levels that become black and white; a window of no width is a step just above `middle`."""
    half = max(width / 2, 1e-6)
    return middle - half, middle + half


def _first(value: Any) -> float:
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
