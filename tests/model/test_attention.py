from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, ProcessorMixin

from qwenvl.errors import UserError
from qwenvl.model.attention import Attention, resolve_attention, sample_boundaries

ON_GPU = torch.cuda.is_available()
# (backend, device, precision, tolerance): bf16 rounds to 3 digits.
BACKENDS = [("sdpa", "cpu", torch.float32, 1e-5), ("eager", "cpu", torch.float32, 1e-5)]
if ON_GPU:
    BACKENDS += [("sdpa", "cuda", torch.bfloat16, 0.1), ("varlen", "cuda", torch.bfloat16, 0.1)]


def _samples(processor: ProcessorMixin, media: Path) -> list[dict]:
    samples = []
    for names in (["wide.png"], [], ["red.png", "tall.png"]):
        parts = [{"type": "image"} for _ in names] + [{"type": "text", "text": f"Compare these {len(names)} images."}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
        images = [Image.open(media / name) for name in names]
        samples.append(dict(processor(text=[text], images=images or None, return_tensors="pt")))
    return samples


def _flatten(model: torch.nn.Module, samples: list[dict]) -> dict:
    """Join samples into one row by hand: the 4 rows of position ids are text, time, height and width."""
    positions = []
    for sample in samples:
        spatial, _ = model.model.get_rope_index(
            sample["input_ids"], sample["mm_token_type_ids"], sample.get("image_grid_thw")
        )
        length = sample["input_ids"].shape[1]
        positions.append(torch.cat([torch.arange(length).view(1, 1, -1), spatial.cpu()]))
    joined = {
        "input_ids": torch.cat([sample["input_ids"] for sample in samples], dim=1),
        "position_ids": torch.cat(positions, dim=2),
    }
    for name in ("pixel_values", "image_grid_thw"):
        joined[name] = torch.cat([sample[name] for sample in samples if name in sample])
    return joined


def _to(batch: dict, device: str) -> dict:
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}


def _leak(model: torch.nn.Module, samples: list[dict], device: str, **changes: object) -> float:
    """Return the largest difference between the logits of samples that share a row and of the same samples alone."""
    with torch.no_grad():
        separate = [model(**_to(sample, device), use_cache=False).logits for sample in samples]
        joined = _flatten(model, samples) | {"use_cache": False} | changes
        together = model(**_to({k: v for k, v in joined.items() if v is not None}, device)).logits
    return (together - torch.cat(separate, dim=1)).abs().max().item()


def _load(standin: Path, backend: str, device: str, dtype: torch.dtype) -> torch.nn.Module:
    attention = Attention(backend, "test").per_subconfig
    model = AutoModelForImageTextToText.from_pretrained(standin, attn_implementation=attention, dtype=dtype)
    return model.to(device).eval()


@pytest.mark.parametrize(("backend", "device", "dtype", "tolerance"), BACKENDS)
def test_samples_of_one_row_give_the_logits_that_they_give_alone(
    standin: Path,
    processor: ProcessorMixin,
    media: Path,
    backend: str,
    device: str,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    model = _load(standin, backend, device, dtype)

    assert _leak(model, _samples(processor, media), device) < tolerance


def test_each_known_way_to_leak_is_seen_by_this_measure(standin: Path, processor: ProcessorMixin, media: Path) -> None:
    model = _load(standin, "sdpa", "cpu", torch.float32)
    samples = _samples(processor, media)
    joined = _flatten(model, samples)

    assert _leak(model, samples, "cpu", position_ids=joined["position_ids"][1:]) > 1e-2
    assert _leak(model, samples, "cpu", use_cache=True) > 1e-2
    assert _leak(model, samples, "cpu", attention_mask=torch.ones_like(joined["input_ids"])) > 1e-2


def test_boundaries_are_where_text_positions_restart() -> None:
    boundaries, longest = sample_boundaries(torch.tensor([[0, 1, 2, 0, 0, 1]]))

    assert boundaries.tolist() == [0, 3, 4, 6]
    assert boundaries.dtype == torch.int32
    assert longest == 3


@pytest.mark.skipif(ON_GPU, reason="tells what a machine without a GPU does")
def test_auto_takes_sdpa_without_a_gpu_and_the_fast_kernels_are_refused_with_a_way_out() -> None:
    assert resolve_attention("auto") == ("sdpa", "no CUDA device")
    with pytest.raises(UserError, match="use auto or sdpa"):
        resolve_attention("varlen")
    with pytest.raises(UserError, match="is unknown; choose from auto"):
        resolve_attention("flash")


@pytest.mark.skipif(not ON_GPU, reason="the variable-length kernel runs on CUDA alone")
def test_auto_takes_the_variable_length_kernel_on_a_gpu_without_flash_attn() -> None:
    assert resolve_attention("auto").backend in ("varlen", "flash_attention_2")
    assert resolve_attention("auto", half_precision=False).backend == "sdpa"


@pytest.mark.skipif(not ON_GPU, reason="the variable-length kernel runs on CUDA alone")
def test_the_variable_length_kernel_generates_and_takes_padded_rows_like_sdpa(
    standin: Path, processor: ProcessorMixin, media: Path
) -> None:
    texts = ["What is shown in the image?", "Yes."]
    padded = processor.tokenizer(texts, return_tensors="pt", padding=True, padding_side="right").to("cuda")
    models = [_load(standin, backend, "cuda", torch.bfloat16) for backend in ("sdpa", "varlen")]

    with torch.no_grad():
        logits = [model(**padded).logits[padded["attention_mask"].bool()] for model in models]
        sample = _to(_samples(processor, media)[0], "cuda")
        written = [model.generate(**sample, max_new_tokens=4, do_sample=False) for model in models]

    assert (logits[0] - logits[1]).abs().max() < 0.1
    assert torch.equal(written[0], written[1])
