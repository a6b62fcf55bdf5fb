"""Start commands faster."""

import atexit
import gc
import sys


def answer_help_without_collection() -> None:
    """Turn garbage collection off for a process that only answers `--help`, to be called before its imports.

    The flags of training come from Transformers, whose import with PyTorch takes seconds. It creates many objects that
    stay: looking for garbage among them takes a sixth of the time. So does the interpreter's last collection, which
    `gc.disable` leaves on and `gc.freeze` spares: https://docs.python.org/3.11/library/gc.html#gc.freeze
    """
    if {"-h", "--help"} & set(sys.argv):
        gc.disable()
        atexit.register(gc.freeze)
