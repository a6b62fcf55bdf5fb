"""Owns the question which parameters of an encoder a gradient can reach at all."""

import logging

import torch
from torch import nn
from torch.func import functional_call

from qwenvl.errors import UserError
from qwenvl.vision.encoder import VisionEncoder
from qwenvl.vision.geometry import Geometry

logger = logging.getLogger(__name__)


def unreachable_parameters(encoder: VisionEncoder, geometry: Geometry) -> list[str]:
    """Return the names of parameters that the features do not depend on.

    Raises `UserError` if they depend on none. It is asked of autograd on the meta device, which computes nothing, or
    with real numbers where the encoder's code needs them.
    """
    size = geometry.input_size(encoder.preprocessing.height, encoder.preprocessing.width)
    name = type(encoder).__name__
    own = next(encoder.parameters(), None)
    if own is None:
        raise UserError(f"--tune_mm_vision True: {name} has no parameters to train; set it False")
    try:
        return _without_gradient(encoder, size, torch.device("meta"))
    except Exception:  # whatever its code makes of numbers that are not there
        logger.debug("%s needs real numbers", name, exc_info=True)
    try:
        return _without_gradient(encoder, size, torch.device("cpu") if own.is_meta else own.device)
    except RuntimeError as error:
        raise UserError(
            f"--tune_mm_vision True: no gradient reaches {name} ({' '.join(str(error).split())}); take torch.no_grad() "
            "and detach() out of its forward, or set --tune_mm_vision False"
        ) from error


def _without_gradient(encoder: nn.Module, size: tuple[int, int], device: torch.device) -> list[str]:
    names = [name for name, _ in encoder.named_parameters()]
    parameters = {
        name: _on(tensor, device).requires_grad_(tensor.is_floating_point())
        for name, tensor in encoder.named_parameters()
    }
    buffers = {name: _on(buffer, device) for name, buffer in encoder.named_buffers()}
    dtype = next(iter(parameters.values())).dtype
    pixels = torch.zeros(1, 3, *size, device=device, dtype=dtype)
    with torch.enable_grad():
        features = functional_call(encoder, {**parameters, **buffers}, (pixels,))
        gradients = torch.autograd.grad(features.sum(), [parameters[name] for name in names], allow_unused=True)
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]


def _on(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device, zeros for one that has no numbers."""
    return torch.zeros_like(tensor, device=device) if tensor.is_meta else tensor.detach().to(device)
