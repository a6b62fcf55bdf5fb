"""Handle parameters that DeepSpeed ZeRO-3 has partitioned over the processes.

Such a parameter is empty between uses; its `ds_*` attributes describe the whole one:
https://github.com/deepspeedai/DeepSpeed/blob/v0.19.8/deepspeed/runtime/zero/partition_parameters.py
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor


def is_partitioned(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter that ZeRO-3 has partitioned."""
    return hasattr(tensor, "ds_id")


def full_numel(tensor: Tensor) -> int:
    """Return the number of elements of a tensor, of the whole one if it is partitioned."""
    return getattr(tensor, "ds_numel", tensor.numel())


def full_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor, of the whole one if it is partitioned."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def gathered(tensors: Iterable[Tensor], *, modified: bool = False) -> AbstractContextManager:
    """Gather the partitioned ones among the tensors inside a `with` block; without any, do nothing.

    Every process has to enter the block. With `modified` the values of the first process at its end are kept, in all
    processes; otherwise changes made inside are lost.
    """
    partitioned = [tensor for tensor in tensors if is_partitioned(tensor)]
    if not partitioned:
        return nullcontext()
    import deepspeed  # in use already if there are such parameters; its import takes seconds

    return deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0 if modified else None)
