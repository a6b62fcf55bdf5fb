"""The cache of features: equal logits, no second pass, and never another encoder's features."""

import pickle

import pytest
import torch
from PIL import Image

from qwenvl.errors import UserError
from qwenvl.vision import EncoderOptions
from qwenvl.vision.feature_cache import FeatureCache, estimate_bytes, fill_cache
from tests.vision.small_encoders import ask, picture, swap, with_encoder

SIZES = [(40, 64), (90, 30), (40, 64)]


@pytest.fixture
def pictures(tmp_path):
    paths = []
    for i, size in enumerate(SIZES):
        paths.append(tmp_path / f"{i}.png")
        picture(*size, seed=i).save(paths[-1])
    return paths


def open_rgb(path: str) -> Image.Image:
    return Image.open(path).convert("RGB")


def filled(model, processor, pictures, folder, **share) -> FeatureCache:
    tower, images = model.model.visual, processor.image_processor
    cache = FeatureCache(folder, tower, images)
    fill_cache(cache, tower, images, pictures, open_rgb, batch_size=2, **share)
    return cache


@pytest.mark.parametrize(
    "tower",
    [
        with_encoder("rad_dino"),
        with_encoder("rad_dino", input_mode="qwen"),
        with_encoder("rad_dino", options=EncoderOptions(keep_prefix_tokens=True)),
        with_encoder("siglip2#naflex"),
    ],
    ids=["native", "qwen", "prefix tokens", "naflex"],
)
def test_logits_with_the_cache_equal_those_without(standin, pictures, tmp_path, tower):
    model, processor = swap(standin, tower)
    cache = filled(model, processor, pictures, tmp_path / "cache")
    plain = ask(processor, [open_rgb(path) for path in pictures])
    cached = ask(processor, [cache.load(path) for path in pictures])
    assert torch.equal(plain["input_ids"], cached["input_ids"])
    assert torch.equal(plain["image_grid_thw"], cached["image_grid_thw"])
    with torch.no_grad():
        assert torch.allclose(model(**plain).logits, model(**cached).logits, atol=1e-5)


def test_second_run_computes_nothing(standin, pictures, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    filled(model, processor, pictures, tmp_path / "cache")
    again = FeatureCache(tmp_path / "cache", model.model.visual, processor.image_processor)
    assert again.missing(pictures) == []
    model.model.visual.encoder.forward = None
    assert fill_cache(again, model.model.visual, processor.image_processor, pictures, open_rgb) == 0


def test_content_counts_not_the_name(standin, pictures, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    cache = filled(model, processor, pictures, tmp_path / "cache")
    copy = tmp_path / "copy.png"
    copy.write_bytes(pictures[0].read_bytes())
    assert torch.equal(cache.load(copy), cache.load(pictures[0]))
    picture(50, 50, seed=9).save(pictures[0])
    assert pictures[0] not in cache and cache.missing([pictures[0], *pictures]) == [pictures[0]]
    with pytest.raises(UserError, match="0.png: no features of it in .*; fill the cache before training"):
        cache.load(pictures[0])


def test_other_weights_layer_or_preprocessing_never_share_features(standin, pictures, tmp_path):
    folders = set()
    towers = [
        with_encoder("rad_dino"),
        with_encoder("rad_dino", options=EncoderOptions(layer=-2)),
        with_encoder("rad_dino", options=EncoderOptions(resize="pad")),
        with_encoder("rad_dino", options=EncoderOptions(input_size=(35, 28))),
        with_encoder("rad_dino", input_mode="qwen"),
    ]
    for tower in towers:
        model, processor = swap(standin, tower)
        folders.add(FeatureCache(tmp_path, model.model.visual, processor.image_processor).folder)
    model.model.visual.encoder.model.layernorm.weight.data += 1
    folders.add(FeatureCache(tmp_path, model.model.visual, processor.image_processor).folder)
    model.model.visual.to(torch.bfloat16)
    folders.add(FeatureCache(tmp_path, model.model.visual, processor.image_processor).folder)
    assert len(folders) == len(towers) + 2


def test_several_processes_share_the_work(standin, pictures, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    tower, images = model.model.visual, processor.image_processor
    caches = [FeatureCache(tmp_path / "cache", tower, images) for _ in range(2)]
    added = [
        fill_cache(cache, tower, images, pictures, open_rgb, rank=rank, world_size=2)
        for rank, cache in enumerate(caches)
    ]
    caches[0].reload()
    assert sum(added) >= len(pictures) and caches[0].missing(pictures) == []


def test_unfinished_shard_is_no_shard(standin, pictures, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    cache = filled(model, processor, pictures, tmp_path / "cache")
    (cache.folder / "rank0-00001.unfinished").write_bytes(b"half")
    cache.reload()
    assert cache.missing(pictures) == []


def test_estimate_is_the_size_on_disk(standin, pictures, tmp_path):
    model, processor = swap(standin, with_encoder("siglip2#naflex"))
    cache = filled(model, processor, pictures, tmp_path / "cache")
    estimate = estimate_bytes(SIZES, model.model.visual, processor.image_processor)
    stored = sum(cache.load(path).nbytes for path in pictures)
    assert estimate == stored
    on_disk = sum(shard.stat().st_size for shard in cache.folder.glob("*.safetensors"))
    assert stored <= on_disk < stored + 2000


def test_cache_travels_to_loader_processes(standin, pictures, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    cache = filled(model, processor, pictures, tmp_path / "cache")
    expected = cache.load(pictures[0])
    assert torch.equal(pickle.loads(pickle.dumps(cache)).load(pictures[0]), expected)


def test_trained_encoder_is_refused(standin, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    model.model.visual.set_encoder_trainable(True)
    with pytest.raises(UserError, match="--cache_vision_features keeps features of a frozen encoder"):
        FeatureCache(tmp_path, model.model.visual, processor.image_processor)


def test_pixels_and_features_do_not_mix(standin, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    blank = processor.image_processor.blank_features(50, 60)
    assert blank.shape == (4, 4, 32)
    with pytest.raises(UserError, match="a batch holds one kind only"):
        processor.image_processor([blank, picture(40, 40)])
