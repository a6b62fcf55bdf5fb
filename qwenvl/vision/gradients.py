"""Find the parameters of an encoder that receive no gradient."""

import logging

import torch
from torch.func import functional_call

from qwenvl.errors import UserError
from qwenvl.vision.encoder import VisionEncoder, error_text, noise_image, pixel_dtype
from qwenvl.vision.precision import owned_tensors
from qwenvl.vision.preprocessing import Geometry

logger = logging.getLogger(__name__)

# Code may branch on the brightness of an image.
BRIGHTNESS = (1.0, 0.1)


def unreachable_parameters(encoder: VisionEncoder, geometry: Geometry) -> list[str]:
    """Return the names of parameters that the features do not depend on.

    Raises `UserError` if they depend on none. Autograd runs on the meta device, which computes nothing, or on images of
    noise if the encoder's code needs values; in float32, which every operation supports.
    """
    size = geometry.input_size(encoder.preprocessing.height, encoder.preprocessing.width)
    name = type(encoder).__name__
    own = next(encoder.parameters(), None)
    if own is None:
        raise UserError(f"--tune_mm_vision True: {name} has no parameters to train; set it False")
    try:
        return _without_gradient(encoder, size, torch.device("meta"))
    except Exception:  # user code may read values, which meta tensors do not have
        logger.debug("%s needs values", name, exc_info=True)
    device = torch.device("cpu") if own.is_meta else own.device
    try:
        found = [_without_gradient(encoder, size, device, brightness) for brightness in BRIGHTNESS]
    except Exception as error:  # user code may raise anything
        raise UserError(
            f"--tune_mm_vision True: {name} receives no gradient ({error_text(error)}); remove torch.no_grad() and "
            "detach() from its forward, or set --tune_mm_vision False"
        ) from error
    return [each for each in found[0] if all(each in others for others in found)]


def _without_gradient(
    encoder: VisionEncoder, size: tuple[int, int], device: torch.device, brightness: float = 1.0
) -> list[str]:
    copies = {id(tensor): _copy_to(tensor, device) for _, tensor in owned_tensors(encoder)}
    parameters = {name: copies[id(tensor)] for name, tensor in encoder.named_parameters()}
    wanted = {name: each for name, each in parameters.items() if each.is_floating_point() or each.is_complex()}
    for parameter in wanted.values():
        parameter.requires_grad_()
    pixels = noise_image(encoder, *size, brightness, device).to(pixel_dtype(parameters.values()))
    state = {name: copies[id(tensor)] for name, tensor in owned_tensors(encoder)}
    with torch.enable_grad():
        features = functional_call(encoder, state, (pixels,), tie_weights=False)
        gradients = torch.autograd.grad(features.sum(), list(wanted.values()), allow_unused=True)
    reached = {name for name, gradient in zip(wanted, gradients, strict=True) if gradient is not None}
    return [name for name in parameters if name not in reached]


def _copy_to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a copy on a device, in float32 instead of half precision, with random values for a meta tensor."""
    dtype = torch.float32 if tensor.dtype in (torch.bfloat16, torch.float16) else tensor.dtype
    if not tensor.is_meta or device.type == "meta":
        return tensor.detach().to(device, dtype, copy=True)
    if tensor.is_floating_point() or tensor.is_complex():
        return torch.rand(tensor.shape, dtype=dtype, device=device, generator=torch.Generator(device).manual_seed(0))
    return torch.zeros_like(tensor, device=device)
