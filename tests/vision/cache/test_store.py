"""The cache of features: equal logits, no second pass, and never another encoder's features."""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from qwenvl.errors import UserError
from qwenvl.utils.files import written_whole
from qwenvl.vision import EncoderOptions, TowerOptions
from qwenvl.vision.cache import store
from qwenvl.vision.cache.store import FeatureCache, estimate_bytes
from tests.vision.cache.filled_cache import OWN_ENCODER, SIZES, fill, filled
from tests.vision.small_encoders import ask, random_image, swap, with_encoder


@pytest.mark.parametrize("num_workers", [0, 2], ids=["read here", "loader processes"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "tower",
    [
        with_encoder("rad_dino"),
        with_encoder("rad_dino", input_mode="qwen"),
        with_encoder("rad_dino", options=EncoderOptions(keep_prefix_tokens=True)),
        with_encoder("rad_dino", merger="norm_linear"),
        with_encoder("siglip2#naflex"),
    ],
    ids=["native", "qwen", "prefix tokens", "norm before the merger", "naflex"],
)
def test_logits_with_the_cache_equal_those_without(standin, images, tmp_path, tower, precision, num_workers):
    model, processor = swap(standin, tower)
    autocast = None
    if precision != torch.float32:
        # As training does: frozen weights in half precision, the merger in float32, and autocast.
        model, autocast = model.to(precision), precision
        model.model.visual.merger.float()
    cache = filled(model, processor, images, tmp_path / "cache", autocast, num_workers=num_workers)
    plain = ask(processor, [Image.open(path).convert("RGB") for path in images])
    cached = ask(processor, [cache.load(path) for path in images])
    assert torch.equal(plain["input_ids"], cached["input_ids"])
    assert torch.equal(plain["image_grid_thw"], cached["image_grid_thw"])
    with torch.no_grad(), torch.autocast("cpu", autocast, enabled=autocast is not None):
        assert torch.allclose(model(**plain).logits, model(**cached).logits, atol=1e-5)


def test_half_precision_takes_half_the_room(standin, images, tmp_path):
    for tower, dtype in (
        (with_encoder("rad_dino"), torch.bfloat16),
        (with_encoder("rad_dino", merger="norm_linear"), torch.float32),
    ):
        model, processor = swap(standin, tower)
        cache = filled(model, processor, images, tmp_path / "cache", torch.bfloat16)
        estimate = estimate_bytes(SIZES, model.model.visual, processor.image_processor, torch.bfloat16)
        assert {cache.load(path).dtype for path in images} == {dtype}
        assert estimate == sum(cache.load(path).nbytes for path in images)


def test_known_files_are_not_read_again(standin, images, tmp_path, monkeypatch):
    model, processor = swap(standin, with_encoder("rad_dino"))
    filled(model, processor, images, tmp_path / "cache")
    again = FeatureCache(tmp_path / "cache", model.model.visual, processor.image_processor)
    monkeypatch.setattr(Path, "read_bytes", None)
    assert again.missing(images) == {}


def test_content_counts_not_the_name(standin, images, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    cache = filled(model, processor, images, tmp_path / "cache")
    copy = str(tmp_path / "copy.png")
    shutil.copy(images[0], copy)
    assert torch.equal(cache.load(copy), cache.load(images[0]))
    random_image(50, 50, seed=9).save(images[0])
    assert images[0] not in cache
    assert list(cache.missing([images[0], *images]).values()) == [images[0]]
    with pytest.raises(UserError, match="0.png: it has no features in .* it was changed since"):
        cache.load(images[0])


def change_config(name, value):
    def change(model, processor):
        setattr(model.model.visual.config, name, value)

    change.__name__ = name
    return change


def change_weights(model, processor):
    model.model.visual.encoder.model.layernorm.weight.data += 1


def change_buffer(model, processor):
    model.model.visual.encoder.register_buffer("scale", torch.ones(1))


def change_precision(model, processor):
    model.model.visual.encoder.to(torch.bfloat16)


def change_merger_precision(model, processor):
    model.model.visual.merger.to(torch.bfloat16)


def change_pixel_limits(model, processor):
    processor.image_processor.size = {"shortest_edge": 1024, "longest_edge": 2048}


def change_geometry(model, processor):
    wanted = processor.image_processor.geometry["preprocessing"]
    processor.image_processor.geometry["preprocessing"] = {**wanted, "interpolation": "bilinear"}


def change_official_resize(model, processor):
    processor.image_processor.official["resample"] = "nearest"


QWEN = {"input_mode": "qwen"}
NATIVE_SIZE = {"options": EncoderOptions(resize="native")}


@pytest.mark.parametrize(
    ("tower", "change"),
    [
        ({}, change_config("encoder", "dinov2")),
        ({}, change_config("encoder_config", {"hidden_size": 32})),
        ({}, change_config("layer", -2)),
        ({}, change_config("final_norm", False)),
        ({}, change_config("keep_prefix_tokens", True)),
        ({}, change_config("preprocessing", {"height": 14})),
        ({}, change_config("token_grid", [1, 16])),
        ({}, change_config("prefix_tokens", 1)),
        ({}, change_config("patch_size", 14)),
        ({}, change_config("input_mode", "qwen")),
        (QWEN, change_config("qwen_pixels", {"patch_size": 14})),
        ({}, change_weights),
        ({}, change_buffer),
        ({}, change_precision),
        ({}, change_merger_precision),
        (QWEN, change_pixel_limits),
        (NATIVE_SIZE, change_pixel_limits),
        ({}, change_geometry),
        (QWEN, change_official_resize),
    ],
    ids=lambda value: getattr(value, "__name__", ",".join(value) if isinstance(value, dict) else None),
)
def test_whatever_decides_the_features_is_in_the_fingerprint(standin, tmp_path, tower, change):
    model, processor = swap(standin, with_encoder("rad_dino", **tower))
    before = FeatureCache(tmp_path, model.model.visual, processor.image_processor).folder
    assert FeatureCache(tmp_path, model.model.visual, processor.image_processor).folder == before
    change(model, processor)
    assert FeatureCache(tmp_path, model.model.visual, processor.image_processor).folder != before


def test_autocast_and_versions_are_in_the_fingerprint(standin, tmp_path, monkeypatch):
    model, processor = swap(standin, with_encoder("rad_dino", merger="norm_linear"))
    made = model.model.visual, processor.image_processor
    folders = {FeatureCache(tmp_path, *made, autocast).folder for autocast in (None, torch.bfloat16, torch.float16)}
    monkeypatch.setattr(store, "FORMAT", store.FORMAT + 1)
    folders.add(FeatureCache(tmp_path, *made).folder)
    monkeypatch.setattr(store.importlib.metadata, "version", lambda name: "0")
    folders.add(FeatureCache(tmp_path, *made).folder)
    assert len(folders) == 5


def test_limits_that_do_not_act_on_a_fixed_input_size_are_not_in_the_fingerprint(standin, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    before = FeatureCache(tmp_path, model.model.visual, processor.image_processor).folder
    change_pixel_limits(model, processor)
    assert FeatureCache(tmp_path, model.model.visual, processor.image_processor).folder == before


def test_an_edited_encoder_file_never_shares_features_with_what_it_was(standin, tmp_path, own_encoder):
    model, processor = swap(standin, TowerOptions(f"{own_encoder}:Own"))
    made = model.model.visual, processor.image_processor
    before = FeatureCache(tmp_path, *made).folder
    own_encoder.write_text(OWN_ENCODER.replace("* 1.0", "* 50.0"))
    assert FeatureCache(tmp_path, *made).folder != before
    digest = hashlib.sha256(own_encoder.read_bytes()).hexdigest()
    assert digest in (FeatureCache(tmp_path, *made).folder / "encoder.json").read_text()


def test_an_edited_file_of_a_layer_that_the_encoder_imports_changes_the_fingerprint(
    standin, tmp_path, own_encoder, monkeypatch
):
    layers = tmp_path / "own_layers.py"
    layers.write_text("import torch\n\nclass Pool(torch.nn.AvgPool2d):\n    pass\n")
    text = OWN_ENCODER.replace("import torch\n", "import torch\nfrom own_layers import Pool\n", 1)
    text = text.replace("super().__init__()\n", "super().__init__()\n        self.pool = Pool(8)\n")
    own_encoder.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    model, processor = swap(standin, TowerOptions(f"{own_encoder}:Own"))
    made = model.model.visual, processor.image_processor
    before = FeatureCache(tmp_path, *made).folder
    layers.write_text(layers.read_text() + "# changed\n")
    assert FeatureCache(tmp_path, *made).folder != before


def test_unfinished_shard_is_no_shard(standin, images, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    cache = filled(model, processor, images, tmp_path / "cache")
    (cache.folder / "00001.safetensors.unfinished").write_bytes(b"half")
    cache.reload()
    assert cache.missing(images) == {}


def test_what_killed_fillings_left_is_removed_and_what_living_ones_write_is_not(standin, images, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    cache = filled(model, processor, images, tmp_path / "cache")
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    with written_whole(cache.folder / "a.safetensors") as living:
        living.write_bytes(b"half")
        left = living.with_name(living.name.replace(f"-{os.getpid()}.", f"-{dead.stdout.strip()}."))
        left.write_bytes(b"half")
        FeatureCache(tmp_path / "cache", model.model.visual, processor.image_processor)
        assert living.exists() and not left.exists()
        living.unlink()
        living.write_bytes(next(cache.folder.glob("*[0-9a-f].safetensors")).read_bytes())


def test_a_flipped_bit_in_cached_features_is_found(standin, images, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    cache = filled(model, processor, images, tmp_path / "cache")
    shard = next(cache.folder.glob("*.safetensors"))
    whole = shard.read_bytes()
    data = 8 + int.from_bytes(whole[:8], "little")
    for at in (data, (data + len(whole)) // 2, len(whole) - 1):
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        again = FeatureCache(tmp_path / "cache", model.model.visual, processor.image_processor)
        with pytest.raises(UserError, match=f"{shard}: .* do not have the checksum that .* were written with.*remove"):
            for path in images:
                again.load(path)


def test_features_of_a_time_before_checksums_are_still_read(standin, images, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    cache = filled(model, processor, images, tmp_path / "cache")
    expected = cache.load(images[0])
    shard = next(cache.folder.glob("*.safetensors"))
    save_file(load_file(shard), shard)
    again = FeatureCache(tmp_path / "cache", model.model.visual, processor.image_processor)
    assert torch.equal(again.load(images[0]), expected)


def test_a_tensor_that_is_no_features_is_named(standin, images, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    cache = filled(model, processor, images, tmp_path / "cache")
    shard = next(cache.folder.glob("*.safetensors"))
    keys = list(load_file(shard))
    for wrong in (torch.ones(4, 32), torch.ones(4, 4, 31), torch.ones(4, 4, 32, dtype=torch.int32)):
        save_file({key: wrong.clone() for key in keys}, shard)
        again = FeatureCache(tmp_path / "cache", model.model.visual, processor.image_processor)
        with pytest.raises(UserError, match=r"cannot be read \(it holds .*, expected \(rows, columns, 32\) of torch"):
            again.load(images[0])


def test_a_list_of_known_files_of_another_kind_is_named(standin, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    made = model.model.visual, processor.image_processor
    known = FeatureCache(tmp_path, *made).folder / "0.paths.json"
    entries = ("7", "null", "[1, 2]", "[1, 2, 3]", f'["1", 2, "{"0" * 64}"]', '[1, 2, "short"]', '{"0": 1}')
    for content in ("[]", "7", "null", '"text"', "[" * 100_000, *(f'{{"a.png": {entry}}}' for entry in entries)):
        known.write_text(content)
        with pytest.raises(UserError, match=f"{known}: this file of cached features cannot be read .* remove it"):
            FeatureCache(tmp_path, *made)


@pytest.mark.parametrize("name", ["*.safetensors", "*.paths.json"])
def test_a_truncated_file_of_the_cache_is_named(standin, images, tmp_path, name):
    model, processor = swap(standin, with_encoder("rad_dino"))
    cache = filled(model, processor, images, tmp_path / "cache")
    broken = next(cache.folder.glob(name))
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"{broken}: this file of cached features cannot be read .* remove it"):
        FeatureCache(tmp_path / "cache", model.model.visual, processor.image_processor)


def test_a_shard_that_vanishes_while_training_is_named(standin, images, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    cache = filled(model, processor, images, tmp_path / "cache")
    shutil.rmtree(cache.folder)
    with pytest.raises(UserError, match="safetensors: this file of cached features cannot be read"):
        cache.load(images[0])


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_file_in_the_place_of_the_folder_is_one_line(standin, tmp_path, folder):
    model, processor = swap(standin, with_encoder("rad_dino"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to .*file.* give a folder"):
        FeatureCache(tmp_path / folder, model.model.visual, processor.image_processor)


def test_a_shard_that_cannot_be_written_is_one_line(standin, images, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    cache = FeatureCache(tmp_path / "cache", model.model.visual, processor.image_processor)
    shutil.rmtree(cache.folder)
    with pytest.raises(UserError, match=f"cannot write to {cache.folder} .* enough space"):
        fill(cache, model, processor, images)


def test_estimate_is_the_size_on_disk(standin, images, tmp_path):
    model, processor = swap(standin, with_encoder("siglip2#naflex"))
    cache = filled(model, processor, images, tmp_path / "cache")
    estimate = estimate_bytes(SIZES, model.model.visual, processor.image_processor)
    stored = sum(cache.load(path).nbytes for path in images)
    assert estimate == stored
    on_disk = sum(shard.stat().st_size for shard in cache.folder.glob("*.safetensors"))
    assert stored <= on_disk < stored + 2000


def test_cache_travels_to_loader_processes(standin, images, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    cache = filled(model, processor, images, tmp_path / "cache")
    expected = cache.load(images[0])
    assert torch.equal(pickle.loads(pickle.dumps(cache)).load(images[0]), expected)


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
        processor.image_processor([blank, random_image(40, 40)])
