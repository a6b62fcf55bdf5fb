"""Choose the precision in which an encoder is held and computes, by testing it on one image.

Half precision (bfloat16, float16) is for parameters; buffers stay in float32, which positions and running statistics
need. Some code cannot mix the two, some operations have no half-precision kernel, and some features overflow float16.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.func import functional_call

from qwenvl.errors import UserError
from qwenvl.vision.encoder import VisionEncoder, error_text, noise_image, pixel_dtype

logger = logging.getLogger(__name__)

# What is held in half precision, in the order of the tests: parameters; buffers too; nothing.
PARAMETERS, ALL, NONE = "parameters", "all", "none"
HALF_PRECISION = (PARAMETERS, ALL, NONE)
HALF_DTYPES = (torch.bfloat16, torch.float16)


def choose_half_precision(encoder: VisionEncoder, size: tuple[int, int], dtype: torch.dtype, start: str | None) -> str:
    """Return what of a frozen encoder can be held in `dtype`: the first of `HALF_PRECISION`, from `start`, that works.

    It must work with autocast, as in training, and without, as in inference and under DeepSpeed.
    """
    if start == NONE:
        return NONE
    for held in HALF_PRECISION[HALF_PRECISION.index(start or PARAMETERS) : -1]:
        reasons = [failure(encoder, size, held_dtypes(encoder, held, dtype), autocast) for autocast in (None, dtype)]
        if reasons == [None, None]:
            return held
    logger.warning(
        "%s cannot compute in %s (%s), so it stays in float32, which is slower and takes twice the memory",
        type(encoder).__name__,
        _name(dtype),
        next(reason for reason in reasons if reason is not None),
    )
    return NONE


def works_under_autocast(encoder: VisionEncoder, size: tuple[int, int], dtype: torch.dtype) -> bool:
    """Whether an encoder in float32, as it is for training, can compute under autocast in `dtype`; warns if not."""
    reason = failure(encoder, size, held_dtypes(encoder, NONE, dtype), dtype)
    if reason is not None:
        logger.warning(
            "%s cannot compute under autocast in %s (%s), so it is trained without autocast, which is slower",
            type(encoder).__name__,
            _name(dtype),
            reason,
        )
    return reason is None


def check_works_in_half(encoder: VisionEncoder, size: tuple[int, int], dtype: torch.dtype) -> None:
    """Raise `UserError` if an encoder cannot compute as under DeepSpeed: cast to `dtype` as a whole, no autocast."""
    reason = failure(encoder, size, held_dtypes(encoder, ALL, dtype), None)
    if reason is not None:
        raise UserError(
            f"--deepspeed casts the whole encoder to {_name(dtype)}, in which {type(encoder).__name__} cannot compute "
            f"({reason}); train without --deepspeed, or without --bf16 and --fp16"
        )


def hold(encoder: nn.Module, held: str, dtype: torch.dtype) -> None:
    """Cast an encoder's floating-point tensors in place; complex numbers and integers stay as they are."""
    dtypes = held_dtypes(encoder, held, dtype)
    for name, tensor in owned_tensors(encoder):
        if name in dtypes:
            tensor.data = tensor.data.to(dtypes[name])


def held_dtypes(encoder: nn.Module, held: str, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the precision of each floating-point parameter and buffer by name; float64 stays."""
    # The weights of a normalization are used together with its statistics, and are few.
    with_buffers = {
        prefix
        for prefix, module in encoder.named_modules()
        if any(buffer.is_floating_point() for buffer in module.buffers(recurse=False))
    }
    found = {}
    for name, tensor in owned_tensors(encoder):
        if tensor.is_floating_point() and tensor.dtype != torch.float64:
            full = held == NONE or (held == PARAMETERS and name.rpartition(".")[0] in with_buffers)
            found[name] = torch.float32 if full else dtype
    return found


def failure(
    encoder: VisionEncoder, size: tuple[int, int], dtypes: dict[str, torch.dtype], autocast: torch.dtype | None
) -> str | None:
    """Return why an encoder whose tensors are cast to `dtypes` cannot encode one image of `size`; None if it can."""
    state = {name: tensor.detach().to(dtypes.get(name, tensor.dtype)) for name, tensor in owned_tensors(encoder)}
    pixels = noise_image(encoder, *size)
    pixels = pixels.to(pixel_dtype(state[name] for name, _ in encoder.named_parameters()))
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad(), autocast_in(pixels.device, autocast):
            features = functional_call(encoder, state, (pixels,), tie_weights=False)
        return None if features.isfinite().all() else "its features become infinite or NaN"
    except Exception as error:  # user code may raise anything
        return error_text(error)
    finally:
        encoder.train(was_training)


def autocast_in(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    """Return a context of autocast in `dtype`, or one that changes nothing if that is None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def owned_tensors(encoder: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters and buffers of each module: a shared module once, a shared tensor under each owner.

    These are the names for `functional_call(..., tie_weights=False)`. With `tie_weights=True` it leaves the
    replacements in a module that has two names: https://github.com/pytorch/pytorch/issues/164759. Can go once that is
    fixed.
    """
    for prefix, module in encoder.named_modules():
        yield from module.named_parameters(prefix, recurse=False, remove_duplicate=False)
        yield from module.named_buffers(prefix, recurse=False, remove_duplicate=False)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
