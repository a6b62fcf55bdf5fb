"""The processors of a custom tower: grids in tokens, videos frame by frame, the official tensors in mode qwen."""

import re

import pytest
import torch
from transformers import AutoConfig, AutoProcessor
from transformers.video_utils import VideoMetadata

from qwenvl.errors import UserError
from qwenvl.vision import EncoderOptions, plan_vision_config, swap_processor
from tests.vision.small_encoders import SMALL_ENCODERS, TowerOptions, ask, random_image, swap, with_encoder

NATIVE_ASPECT = EncoderOptions(resize="native", input_size=(56, 56))
MODES = ["native", "qwen"]


def video(frames: int, height: int = 48, width: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8, generator=generator)


def spans(inputs, token: int) -> list[int]:
    """Return the lengths of the runs of a token."""
    text = "".join("x" if i == token else " " for i in inputs["input_ids"][0].tolist())
    return [len(run) for run in text.split()]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_each_video_frame_has_its_own_time_and_placeholders(standin, mode, frames):
    model, processor = swap(standin, with_encoder("rad_dino", input_mode=mode))
    inputs = ask(processor, frames=video(frames))
    assert inputs["video_grid_thw"].tolist() == [[frames, 4, 4]]
    assert spans(inputs, processor.video_token_id) == [16] * frames
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    assert re.findall(r"<([\d.]+) seconds>", text) == [f"{i / 2:.1f}" for i in range(frames)]
    assert processor.video_processor.get_num_of_video_patches(frames, 48, 64, {}) == 16 * frames
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
def test_each_video_frame_is_encoded_as_that_image_would_be(standin, mode):
    model, processor = swap(standin, with_encoder("dinov2", input_mode=mode))
    still = random_image(64, 64)
    frame = torch.frombuffer(bytearray(still.tobytes()), dtype=torch.uint8).view(64, 64, 3).permute(2, 0, 1)
    # Both processors may leave the image at its size, so that mode qwen resizes the same pixels.
    for part in (processor.image_processor, processor.video_processor):
        part.size = {"shortest_edge": 64, "longest_edge": 10**7} if mode == "qwen" else part.size
    clip = torch.stack([frame, 255 - frame, frame])
    image, moving = ask(processor, [still]), ask(processor, frames=clip)
    visual = model.model.visual
    expected = visual(image["pixel_values"], image["image_grid_thw"]).pooler_output
    found = visual(moving["pixel_values_videos"], moving["video_grid_thw"]).pooler_output.view(3, 16, -1)
    assert torch.allclose(found[0], expected, atol=1e-5) and torch.allclose(found[2], expected, atol=1e-5)
    assert not torch.allclose(found[1], expected, atol=1e-3)


def test_mode_qwen_holds_the_official_pixel_values_bit_for_bit(standin):
    official = AutoProcessor.from_pretrained(standin)
    _, processor = swap(standin, with_encoder("rad_dino", input_mode="qwen"))
    images = [random_image(70, 130), random_image(64, 32, seed=1)]
    theirs = official.image_processor(images, return_tensors="pt")
    ours = processor.image_processor(images, return_tensors="pt")
    counts = theirs["image_grid_thw"].prod(-1).tolist()
    rows = ours["pixel_values"].split([1 + count for count in counts])
    assert torch.equal(torch.cat([part[1:] for part in rows]), theirs["pixel_values"])
    assert ours["image_grid_thw"].tolist() == [[1, 4, 4], [1, 4, 4]]


def test_mode_qwen_gives_nearly_the_features_of_mode_native(standin):
    native, native_processor = swap(standin, with_encoder("rad_dino"))
    qwen, qwen_processor = swap(standin, with_encoder("rad_dino", input_mode="qwen"))
    qwen.load_state_dict(native.state_dict())
    qwen_processor.image_processor.size = {"shortest_edge": 64, "longest_edge": 10**7}
    image = random_image(64, 96).resize((192, 128))
    a, b = ask(native_processor, [image]), ask(qwen_processor, [image])
    x = native.model.visual(a["pixel_values"], a["image_grid_thw"]).last_hidden_state
    y = qwen.model.visual(b["pixel_values"], b["image_grid_thw"]).last_hidden_state
    # The rest is the rounding to whole gray values that native mode does after its resize.
    assert torch.nn.functional.cosine_similarity(x, y).min() > 0.999


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", ["rad_dino", "siglip2#naflex"])
def test_images_of_different_token_counts_share_a_batch(standin, mode, case):
    options = EncoderOptions() if "naflex" in case else NATIVE_ASPECT
    model, processor = swap(standin, with_encoder(case, options=options, input_mode=mode))
    images = [random_image(30, 60), random_image(90, 40, seed=1), random_image(30, 60, seed=2)]
    inputs = ask(processor, images)
    grids = inputs["image_grid_thw"]
    assert len({tuple(grid) for grid in grids.tolist()}) == 2
    counts = [processor.image_processor.get_number_of_image_patches(image.height, image.width, {}) for image in images]
    assert spans(inputs, processor.image_token_id) == grids.prod(-1).tolist() == counts
    together = model.model.visual(inputs["pixel_values"], grids).pooler_output.split(counts)
    for image, part in zip(images, together, strict=True):
        alone = processor.image_processor([image], return_tensors="pt")
        assert torch.allclose(model.model.visual(**_renamed(alone)).pooler_output, part, atol=1e-5)


def _renamed(inputs) -> dict:
    return {"pixel_values": inputs["pixel_values"], "grid_thw": inputs["image_grid_thw"]}


@pytest.mark.parametrize("mode", MODES)
def test_area_limits_act_where_the_aspect_is_kept_and_on_official_pixels(standin, mode):
    options = EncoderOptions(resize="native", input_size=(112, 112))
    _, processor = swap(standin, with_encoder("rad_dino", options=options, input_mode=mode))
    assert processor.image_processor.takes_pixel_limits and processor.video_processor.takes_pixel_limits
    large = processor.image_processor.get_number_of_image_patches(400, 300)
    processor.image_processor.size = {"shortest_edge": 1024, "longest_edge": 64 * 64}
    assert processor.image_processor.get_number_of_image_patches(400, 300) < large
    made = processor.image_processor([random_image(400, 300)], return_tensors="pt")
    assert int(made["image_grid_thw"].prod()) == processor.image_processor.get_number_of_image_patches(400, 300)


def test_fixed_input_size_says_that_limits_do_not_act(standin):
    _, processor = swap(standin, with_encoder("rad_dino"))
    assert not processor.image_processor.takes_pixel_limits and not processor.video_processor.takes_pixel_limits


@pytest.mark.parametrize("frames", [1, 3, 8])
def test_video_volume_is_shared_by_the_frames_where_the_aspect_is_kept(standin, frames):
    model, processor = swap(standin, with_encoder("rad_dino", options=NATIVE_ASPECT))
    processor.video_processor.size = {"shortest_edge": 49, "longest_edge": 12000}
    inputs = ask(processor, frames=video(frames, 100, 70))
    grid = inputs["video_grid_thw"][0].tolist()
    assert grid[0] == frames and frames * grid[1] * grid[2] * 49 <= 12000
    assert frames * grid[1] * grid[2] == processor.video_processor.get_num_of_video_patches(frames, 100, 70)
    with torch.no_grad():
        model(**inputs)


def test_video_is_sampled_as_the_base_models_processor_samples(standin):
    base = AutoProcessor.from_pretrained(standin)
    base.video_processor.fps, base.video_processor.min_frames = 1, 2
    _, processor = swap(standin, with_encoder("rad_dino"))
    swapped = swap_processor(base, _plan(standin, base, with_encoder("rad_dino")))
    metadata = VideoMetadata(total_num_frames=40, fps=8.0)
    indices = base.video_processor.sample_frames(metadata)
    assert swapped.video_processor.sample_frames(metadata).tolist() == indices.tolist()
    made = swapped.video_processor(videos=[video(40)], video_metadata=[metadata], return_metadata=True)
    assert made["video_grid_thw"].tolist() == [[len(indices), 4, 4]]
    assert list(made["video_metadata"][0].frames_indices) == indices.tolist()


@pytest.mark.parametrize("mode", MODES)
def test_saved_processor_makes_equal_inputs(standin, tmp_path, mode):
    _, processor = swap(standin, with_encoder("rad_dino", input_mode=mode))
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    for make in (lambda p: ask(p, [random_image(60, 70)]), lambda p: ask(p, frames=video(3))):
        before, after = make(processor), make(again)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_settings_that_would_be_ignored_are_refused(standin):
    _, processor = swap(standin, with_encoder("rad_dino"))
    with pytest.raises(UserError, match="takes no do_resize, max_pixels in a call"):
        processor.image_processor([random_image(20, 20)], do_resize=False, max_pixels=100)
    with pytest.raises(UserError, match="takes frames, not paths"):
        processor.video_processor(videos=["clip.mp4"])


def test_mode_qwen_needs_the_official_processor(standin):
    base = AutoProcessor.from_pretrained(standin)
    qwen = with_encoder("rad_dino", input_mode="qwen")
    base.video_processor.image_mean = (0.1, 0.2, 0.3)
    with pytest.raises(UserError, match="normalize differently"):
        _plan(standin, base, qwen)
    _, swapped = swap(standin, with_encoder("rad_dino"))
    with pytest.raises(UserError, match="needs Qwen3-VL's own image processor"):
        _plan(standin, swapped, qwen)


def _plan(folder, processor, tower: TowerOptions):
    return plan_vision_config(AutoConfig.from_pretrained(folder), tower, processor)


def test_kept_prefix_tokens_and_a_prime_number_of_tokens_count_as_one_row(standin):
    options = EncoderOptions(keep_prefix_tokens=True)
    model, processor = swap(standin, with_encoder("rad_dino", options=options))
    inputs = ask(processor, [random_image(60, 70), random_image(20, 70)])
    assert inputs["image_grid_thw"].tolist() == [[1, 1, 17]] * 2
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def test_one_token_a_image(standin):
    config = {**SMALL_ENCODERS["rad_dino"], "image_size": 7}
    model, processor = swap(standin, TowerOptions("rad_dino", encoder_config=config))
    inputs = ask(processor, [random_image(60, 70), random_image(20, 70)])
    assert inputs["image_grid_thw"].tolist() == [[1, 1, 1]] * 2
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def test_non_square_input(standin):
    tower = with_encoder("rad_dino", options=EncoderOptions(input_size=(21, 49)))
    model, processor = swap(standin, tower)
    inputs = ask(processor, [random_image(60, 70)])
    assert inputs["image_grid_thw"].tolist() == [[1, 3, 7]]
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def test_limits_only_tighten_the_encoders_own(standin):
    _, processor = swap(standin, with_encoder("siglip2#naflex"))
    own = processor.image_processor.get_number_of_image_patches(300, 400)
    processor.image_processor.size = {"shortest_edge": 64, "longest_edge": 10**7}
    assert processor.image_processor.get_number_of_image_patches(300, 400) == own <= 16
    processor.image_processor.size = {"shortest_edge": 64, "longest_edge": 6 * 64}
    assert processor.image_processor.get_number_of_image_patches(300, 400) <= 6
