"""Check the disk that checkpoints are written to: free space, errors in one line, no partial folders left."""

import contextlib
import errno
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from qwenvl.checkpoint.manifest import MANIFEST_NAME, folder_bytes
from qwenvl.errors import UserError
from qwenvl.model.components import named_component_parameters
from qwenvl.utils.distributed import is_first_process
from qwenvl.utils.zero3 import full_numel

logger = logging.getLogger(__name__)

_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG),
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ESTALE),
)
# Rust's errors, as raised by safetensors, and those of PyTorch's writer, which does not give the cause:
# https://github.com/pytorch/pytorch/blob/v2.11.0/caffe2/serialize/inline_container.cc
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_SHORT_WRITE = re.compile(r"unexpected pos|PytorchStreamWriter|file write failed|inline_container")
# AdamW's two moments in float32; DeepSpeed keeps float32 weights beside them.
_MOMENT_BYTES = 8
_DEEPSPEED_BYTES = 12
# The tokenizer, configurations and random states.
_SMALL_FILES_BYTES = 1 << 16


class CheckpointDisk:
    """The disk under the folder in which checkpoints are written."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.needed = 0

    def check_room(self, needed: int) -> None:
        """Raise `UserError` if the disk has less than `needed` bytes free for the next save."""
        self.needed = needed
        if self._free() < needed:
            raise UserError(self._describe("too little space for the next save"))

    def warn_if_short(self, checkpoint: int, checkpoints: int) -> None:
        """Warn before the first step if `checkpoints` more, of `checkpoint` bytes each, do not fit."""
        if self._free() < checkpoint * checkpoints:
            logger.warning(
                "%s: %d checkpoints of about %s are to come, the disk %s has %s free; free space, lower "
                "--save_total_limit or save less often",
                self.folder.parent,
                checkpoints,
                format_bytes(checkpoint),
                _mount_point(self.folder),
                format_bytes(self._free()),
            )

    @contextlib.contextmanager
    def explain_errors(self) -> Iterator[None]:
        """Turn the errors of a full, broken or read-only disk into a `UserError`, and remove partial folders."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            half_written = [path for path in _folders_in(self.folder) if not (path / MANIFEST_NAME).is_file()]
            reason = self._disk_reason(error, is_saving=bool(half_written))
            if reason is None:
                raise
            if not is_first_process():
                time.sleep(2.0)  # the other processes write there too, and report their own error
            self.needed = max(self.needed, *(folder_bytes(path) for path in half_written), 0)
            message = self._describe(reason)
            for path in half_written:
                shutil.rmtree(path, ignore_errors=True)
            raise UserError(message) from error

    def _describe(self, reason: str) -> str:
        return (
            f"--output_dir {self.folder.parent}: the checkpoint could not be written: {reason} (disk "
            f"{_mount_point(self.folder)}: {format_bytes(self.needed)} or more needed, {format_bytes(self._free())} "
            "free); earlier checkpoints are untouched: free space or make it writable, then continue with the same "
            "command and --resume_from_checkpoint auto"
        )

    def _free(self) -> int:
        return shutil.disk_usage(existing_folder(self.folder)).free

    def _disk_reason(self, error: BaseException, *, is_saving: bool) -> str | None:
        """Return the disk's error, or None if the error is of another kind, or of another disk."""
        chain: BaseException | None = error
        while chain is not None:
            if isinstance(chain, OSError) and chain.errno in _DISK_ERRORS:
                is_here = is_saving or str(chain.filename).startswith(str(self.folder.parent))
                # Some writers, such as TensorBoard's, do not name the file; shared memory may be full as well.
                if is_here or (chain.filename is None and self._try_to_write() is not None):
                    return os.strerror(chain.errno)
            if is_saving and (found := _RUST_ERROR.search(str(chain))):
                return os.strerror(int(found[1]))
            if is_saving and _SHORT_WRITE.search(str(chain)):
                return self._try_to_write() or "a file was written only in part"
            chain = chain.__cause__ or chain.__context__
        return None

    def _try_to_write(self) -> str | None:
        """Return why a file of 1 MiB cannot be written to the disk, or None if it can."""
        try:
            with tempfile.TemporaryFile(dir=existing_folder(self.folder)) as probe:
                probe.write(bytes(1 << 20))
                probe.flush()
                os.fsync(probe.fileno())
        except OSError as error:
            return os.strerror(error.errno)
        return None


def checkpoint_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None, *, deepspeed: bool) -> int:
    """Return the approximate size in bytes of a checkpoint of model and optimizer; without an optimizer, the model's.

    Before the first step, an optimizer is assumed to keep two moments for each trained parameter.
    """
    parameters = [(name, parameter) for _, name, parameter in named_component_parameters(model)]
    if isinstance(model, PeftModel):
        parameters = [each for each in parameters if each[1].requires_grad or ".modules_to_save." in each[0]]
    weights = sum(full_numel(parameter) * parameter.element_size() for _, parameter in parameters)
    if optimizer is None:
        return weights + _SMALL_FILES_BYTES
    trained = sum(full_numel(parameter) for _, parameter in parameters if parameter.requires_grad)
    if deepspeed:
        return 2 * weights + _DEEPSPEED_BYTES * trained + _SMALL_FILES_BYTES
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    moments = sum(tensor.nbytes for tensor in tensors) if tensors else _MOMENT_BYTES * trained
    return weights + moments + _SMALL_FILES_BYTES


def is_checkpoint_folder(path: Path) -> bool:
    """Whether a folder has the name of a checkpoint of the Trainer."""
    return path.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-")


def format_bytes(count: int) -> str:
    """Return a number of bytes in readable units: 512 bytes, 1.5 MiB, 12.0 GiB."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"


def _folders_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def existing_folder(path: Path) -> Path:
    """Return a path if it exists, else its nearest existing parent."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def _mount_point(path: Path) -> str:
    folder = existing_folder(path).resolve()
    return str(next(each for each in (folder, *folder.parents) if each.is_mount()))
