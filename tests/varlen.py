"""A stand-in for PyTorch's variable-length attention kernel, which runs on GPUs alone."""

import torch
from torch.nn.functional import scaled_dot_product_attention


def attend_within_samples(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """PyTorch's variable-length kernel, which needs a GPU, in operations that are traced without knowing a length."""
    rows = torch.arange(len(query))
    sample = torch.bucketize(rows, cu_seq_q[1:], right=True)
    distance = rows[:, None] - rows
    mask = (sample[:, None] == sample) & (distance.abs() < max_q)
    if window_size == (-1, 0):
        mask &= distance >= 0
    states = (each.transpose(0, 1) for each in (query, key, value))
    output = scaled_dot_product_attention(*states, attn_mask=mask, scale=scale, enable_gqa=len(query[0]) != len(key[0]))
    return output.transpose(0, 1)
