"""PNG and TIFF files of more than 8 bits, written byte by byte: Pillow writes few of them and reads fewer in full."""

import struct
import zlib

import numpy as np

PNG_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_TIFF_TYPE = {"u": 1, "i": 2, "f": 3}


def png16(samples: np.ndarray, interlaced: bool = False, key: tuple[int, ...] | None = None) -> bytes:
    """Return a 16-bit PNG of (H, W, channels): gray, gray and alpha, RGB, RGBA; `key` is the transparent color."""
    height, width, channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOR_TYPES[channels], 0, 0, interlaced)
    passes = [samples]
    if interlaced:
        starts_and_steps = (
            (0, 0, 8, 8),
            (0, 4, 8, 8),
            (4, 0, 8, 4),
            (0, 2, 4, 4),
            (2, 0, 4, 2),
            (0, 1, 2, 2),
            (1, 0, 2, 1),
        )
        passes = [samples[y::dy, x::dx] for y, x, dy, dx in starts_and_steps]
    rows = [b"\0" + row.astype(">u2").tobytes() for part in passes if part.size for row in part]
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    if key is not None:
        chunks.insert(1, (b"tRNS", struct.pack(f">{len(key)}H", *key)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def tiff(
    samples: np.ndarray,
    photometric: int,
    order: str = "<",
    *,
    deflated: bool = False,
    separate: bool = False,
    extra: int | None = None,
) -> bytes:
    """Return a TIFF of one strip (one a plane if `separate`) of (H, W, channels); `extra` is the kind of alpha."""
    height, width, channels = samples.shape
    size = samples.dtype.itemsize
    stored = samples.astype(samples.dtype.newbyteorder(order))
    planes = [stored[..., index] for index in range(channels)] if separate else [stored]
    strips = [zlib.compress(plane.tobytes()) if deflated else plane.tobytes() for plane in planes]
    entries = {
        256: [width],
        257: [height],
        258: [size * 8] * channels,
        259: [8 if deflated else 1],
        262: [photometric],
        273: [0] * len(strips),
        277: [channels],
        278: [height],
        279: [len(strip) for strip in strips],
        284: [2 if separate else 1],
        339: [_TIFF_TYPE[samples.dtype.kind]] * channels,
    }
    if extra is not None:
        entries[338] = [extra]
    # Everything is a LONG or SHORT; lists longer than fit lie behind the directory.
    data_start = 8 + 2 + 12 * len(entries) + 4
    tail = b""
    starts = data_start + sum(4 * len(values) for values in entries.values() if len(values) > 1)
    entries[273] = [starts + sum(map(len, strips[:index])) for index in range(len(strips))]
    directory = struct.pack(order + "H", len(entries))
    for tag, values in sorted(entries.items()):
        kind, letter = (4, "I") if tag in (256, 257, 273, 278, 279) else (3, "H")
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(packed) > 4:
            directory += struct.pack(order + "HHII", tag, kind, len(values), data_start + len(tail))
            tail += packed + bytes(4 * len(values) - len(packed))
        else:
            directory += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
            tail += bytes(4 * len(values)) if len(values) > 1 else b""
    magic = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return magic + directory + bytes(4) + tail + b"".join(strips)
