"""Choose the attention backend of a run, and register one made of PyTorch's variable-length kernel."""

import importlib.util
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from qwenvl.errors import UserError

BACKENDS = ("auto", "flash_attention_2", "varlen", "sdpa", "eager")


class Attention(NamedTuple):
    """A backend and why it was chosen."""

    backend: str
    reason: str

    @property
    def per_subconfig(self) -> dict[str, str]:
        """The backend of each sub-configuration, for `from_pretrained(attn_implementation=...)`.

        The variable-length kernel serves the language model; the vision tower, whose images never share a row, keeps
        PyTorch's own attention.
        """
        vision = "sdpa" if self.backend == "varlen" else self.backend
        return {"": vision, "text_config": self.backend, "vision_config": vision}


def resolve_attention(name: str, half_precision: bool = True) -> Attention:
    """Choose the attention backend: the requested one, or for "auto" the fastest that runs on this machine.

    `half_precision` says whether the model computes in bf16 or fp16, which both fast kernels need. Raises `UserError`
    for an unknown name and for a backend that cannot run here.
    """
    if name not in BACKENDS:
        raise UserError(f"--attn_implementation {name!r} is unknown; choose from {', '.join(BACKENDS)}")
    on_gpu = torch.cuda.is_available()
    has_flash_attn = importlib.util.find_spec("flash_attn") is not None
    if name == "auto":
        if not on_gpu:
            return Attention("sdpa", "no CUDA device")
        if not half_precision:
            return Attention("sdpa", "the faster kernels need --bf16 True or --fp16 True")
        if has_flash_attn:
            return Attention("flash_attention_2", "flash-attn is installed")
        return Attention("varlen", "PyTorch's variable-length kernel, no flash-attn installed")
    if name == "flash_attention_2" and not has_flash_attn:
        raise UserError(
            "--attn_implementation flash_attention_2: flash-attn is not installed; `pip install flash-attn "
            "--no-build-isolation`, or use --attn_implementation auto, which packs samples without it"
        )
    if name in ("varlen", "flash_attention_2") and not (on_gpu and half_precision):
        missing = "a CUDA device" if not on_gpu else "--bf16 True (or --fp16 True)"
        raise UserError(f"--attn_implementation {name} needs {missing}; use auto or sdpa")
    return Attention(name, "requested")


def sample_boundaries(position_ids: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Find where the samples of a flattened row start, from text positions that restart at each sample.

    `position_ids` is (1, L). Returns the cumulative lengths, int32 (n + 1,), and the longest sample's length.
    """
    positions = position_ids.flatten()
    starts = torch.nonzero(torch.diff(positions, prepend=positions[:1] - 2) != 1).flatten()
    boundaries = torch.cat([starts, starts.new_tensor([positions.numel()])]).to(torch.int32)
    return boundaries, int(boundaries.diff().max())


def varlen_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    text_cu_seqlens: torch.Tensor | None = None,
    text_max_seqlen: int | None = None,
    position_ids: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each sample of a flattened row with `torch.nn.attention.varlen.varlen_attn`.

    `query` is (1, H, L, D), `key` and `value` (1, H_kv, L, D); the output is (1, L, H, D). `text_cu_seqlens` (n + 1,)
    and `text_max_seqlen` come with the batch; without them the boundaries are read from `position_ids` (1, L). Padded
    batches (which come with a mask), several rows, and decoding with a cache go to PyTorch's ordinary attention.
    """
    flattened = attention_mask is None and query.shape[0] == 1 and query.shape[2] == key.shape[2] > 1
    if not flattened or (text_cu_seqlens is None and position_ids is None):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if text_cu_seqlens is None:
        text_cu_seqlens, text_max_seqlen = sample_boundaries(position_ids)
    output = varlen_attn(
        # Norms trained in float32 return float32 queries and keys; the values keep the compute precision.
        *(states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value)),
        text_cu_seqlens,
        text_cu_seqlens,
        text_max_seqlen,
        text_max_seqlen,
        scale=scaling,
        window_size=(-1, 0),
    )
    return output.unsqueeze(0), None


def varlen_mask(*, q_length: int, kv_length: int, batch_size: int, attention_mask: Any = None, **kwargs: Any) -> Any:
    """Return no mask for a flattened row, whose boundaries the kernel knows, and PyTorch's ordinary one otherwise."""
    if attention_mask is None and batch_size == 1 and q_length == kv_length:
        return None
    return sdpa_mask(
        q_length=q_length, kv_length=kv_length, batch_size=batch_size, attention_mask=attention_mask, **kwargs
    )


AttentionInterface.register("varlen", varlen_attention)
AttentionMaskInterface.register("varlen", varlen_mask)
