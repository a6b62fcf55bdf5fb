"""Refuse files by kind and size before a byte of them is read: reading a pipe or a device would never end."""

import errno
import os
import stat

# 16 bits of each of four channels, the maximum in the formats that are read.
_BYTES_PER_PIXEL = 8
# For metadata.
_SPARE_BYTES = 2**24

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def max_file_bytes(max_pixels: int) -> int:
    """Return the largest plausible size of a file of at most `max_pixels` pixels."""
    return max_pixels * _BYTES_PER_PIXEL + _SPARE_BYTES


def file_flaw(path: str, what: str, max_bytes: int | None = None, may_be_empty: bool = False) -> str | None:
    """Return why `path` is not a readable regular file of 1 to `max_bytes` bytes, with the remedy; None if it is one.

    `what` names what is expected, such as "image file". The path itself is not part of the text.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        return _stat_flaw(path, what, error)
    except ValueError:
        return "the path holds a NUL character; correct the path"
    kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), None)
    if kind is not None:
        return f"{kind}, expected one {what}; correct the path"
    if not status.st_size and not may_be_empty:
        return f"the {what} is empty (0 bytes); replace it"
    if max_bytes is not None and status.st_size > max_bytes:
        return f"{status.st_size:,} bytes are more than the {max_bytes:,} that one {what} may have; replace it"
    return None


def _stat_flaw(path: str, what: str, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if os.path.islink(path):
            return f"a link to {os.readlink(path)}, which does not exist; correct the link"
        return f"no such {what}; correct the path"
    if error.errno == errno.ELOOP:
        return "a link that leads back to itself; give the file"
    return f"cannot open the {what} ({error.strerror}); correct the path or its permissions"
