"""What the checks on a GPU share."""

import pytest
import torch

DEVICE = torch.device("cuda")
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference as a share of the expected norm."""
    assert found.shape == expected.shape
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()
