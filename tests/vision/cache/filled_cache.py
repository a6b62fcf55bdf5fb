"""What tests of the feature cache share: a small encoder of its own file, and filling a cache."""

from qwenvl.data.media.images import load_image
from qwenvl.vision.cache.filling import Work, fill_cache, hash_files
from qwenvl.vision.cache.store import FeatureCache

SIZES = [(40, 64), (90, 30), (40, 64)]
OWN_ENCODER = """
import torch
from qwenvl.vision import Preprocessing, VisionEncoder

class Own(VisionEncoder):
    def __init__(self, hidden_size: int = 3) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.patch_size = 8
        self.preprocessing = Preprocessing(height=16, width=16, resize="squash")

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(pixel_values, 8).flatten(2).transpose(1, 2) * 1.0
"""


def never(path: str, reason: str) -> None:
    raise AssertionError(f"{path} should be readable: {reason}")


def fill(cache, model, processor, images, report=never, **work) -> int:
    parts = model.model.visual, processor.image_processor
    return fill_cache(cache, *parts, cache.missing(images), load_image, report, Work(batch_size=2, **work))


def filled(model, processor, images, folder, autocast=None, **work) -> FeatureCache:
    cache = FeatureCache(folder, model.model.visual, processor.image_processor, autocast)
    hash_files(cache, images, Work(**work))
    fill(cache, model, processor, images, **work)
    cache.reload()
    return cache
