"""The swap: any Qwen3-VL base, its own language model, no DeepStack, and plain loading afterwards."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from qwenvl.bench.standin import build_standin
from qwenvl.errors import UserError
from qwenvl.vision import custom_config, plan_vision_config, swap_processor, swap_vision_tower
from qwenvl.vision.modeling import CUSTOM_MODEL_TYPES
from tests.vision.small_encoders import ask, random_image, swap, with_encoder

BASES = {
    "dense, tied": {},
    "dense, untied, wider": {"tie_word_embeddings": False, "hidden_size": 96, "seed": 1},
    "MoE": {"moe": True},
    "MoE, untied": {"moe": True, "tie_word_embeddings": False},
}


@pytest.fixture(scope="module", params=BASES)
def base(request, tmp_path_factory):
    return build_standin(tmp_path_factory.mktemp("base") / "model", **BASES[request.param])


def question(processor):
    return ask(processor, [random_image(40, 64), random_image(70, 30, seed=1)])


def test_swapped_model_keeps_every_weight_of_the_language_model(base):
    model, _ = swap(base, with_encoder("rad_dino"))
    original = AutoModelForImageTextToText.from_pretrained(base)
    before, after = original.state_dict(), model.state_dict()
    kept = {name for name in before if ".visual." not in name}
    assert kept == {name for name in after if ".visual." not in name}
    assert all(torch.equal(before[name], after[name]) for name in kept)
    tied = original.config.tie_word_embeddings
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_text_alone_gives_the_logits_of_the_base_model(base):
    model, processor = swap(base, with_encoder("rad_dino"))
    original = AutoModelForImageTextToText.from_pretrained(base).eval()
    inputs = ask(processor)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, original(**inputs).logits)


def test_save_and_load_through_auto_classes_gives_equal_logits_and_text(base, tmp_path):
    model, processor = swap(base, with_encoder("rad_dino"))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    inputs = question(AutoProcessor.from_pretrained(tmp_path))
    assert loaded.config.model_type in CUSTOM_MODEL_TYPES
    assert loaded.config.vision_config.deepstack_visual_indexes == []
    assert loaded.config.text_config.hidden_size == loaded.config.vision_config.out_hidden_size
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, loaded(**inputs).logits)
    texts = [m.generate(**inputs, max_new_tokens=4, do_sample=False) for m in (model, loaded)]
    assert torch.equal(*texts) and texts[0].shape[1] > inputs["input_ids"].shape[1]


def test_cached_generation_continues_as_a_whole_forward_would(standin):
    model, processor = swap(standin, with_encoder("rad_dino"))
    inputs = question(processor)
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    ids = inputs["input_ids"]
    for _ in range(generated.shape[1] - ids.shape[1]):
        whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        whole["mm_token_type_ids"] = torch.nn.functional.pad(
            inputs["mm_token_type_ids"], (0, ids.shape[1] - inputs["input_ids"].shape[1])
        )
        with torch.no_grad():
            ids = torch.cat([ids, model(**whole).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(ids, generated)


def test_early_layers_get_no_deepstack_features(standin):
    for tower in (None, with_encoder("rad_dino")):
        if tower is None:
            model, processor = (
                AutoModelForImageTextToText.from_pretrained(standin),
                AutoProcessor.from_pretrained(standin),
            )
        else:
            model, processor = swap(standin, tower)
        given, entered, left = [], [], []
        text_model = model.model.language_model
        text_model.register_forward_pre_hook(
            lambda module, args, kwargs, given=given: given.append(kwargs["deepstack_visual_embeds"]), with_kwargs=True
        )
        for layer in text_model.layers:
            layer.register_forward_pre_hook(lambda module, args, entered=entered: entered.append(args[0].clone()))
            layer.register_forward_hook(lambda module, args, output, left=left: left.append(output.clone()))
        with torch.no_grad():
            model(**question(processor))
        untouched = [torch.equal(a, b) for a, b in zip(left, entered[1:], strict=False)]
        if tower is None:
            # The same hooks do see the official tower's features, so the check below is worth something.
            assert len(given[0]) > 0 and not all(untouched)
        else:
            assert given == [[]] and all(untouched)
            assert not any("deepstack" in name for name, _ in model.named_parameters())


def test_rotary_positions_follow_the_token_grid(standin):
    model, processor = swap(standin, with_encoder("rad_dino"))
    inputs = ask(processor, [random_image(40, 64)])
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
    )
    placed = positions[:, inputs["input_ids"] == processor.image_token_id]
    placed = placed - placed[:, :1]
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    assert torch.equal(placed, torch.stack([torch.zeros(16, dtype=torch.long), rows.flatten(), columns.flatten()]))


def test_swap_between_bases_of_other_width_and_head_differs_by_the_folder_alone(tmp_path):
    small = build_standin(tmp_path / "4b")
    large = build_standin(tmp_path / "8b", hidden_size=96, tie_word_embeddings=False)
    for folder in (small, large):
        model, processor = swap(folder, with_encoder("dinov2"))
        width = AutoConfig.from_pretrained(folder).text_config.hidden_size
        assert model.model.visual.merger.proj.weight.shape == (width, 32)
        with torch.no_grad():
            assert model(**question(processor)).logits.isfinite().all()


def test_swapped_model_can_be_swapped_again(standin):
    model, processor = swap(standin, with_encoder("rad_dino"))
    vision_config = plan_vision_config(model.config, with_encoder("clip", merger="mlp2"), processor)
    again, other = swap_vision_tower(model, vision_config), swap_processor(processor, vision_config)
    with torch.no_grad():
        assert again(**question(other)).logits.isfinite().all()
    assert again.config.vision_config.encoder == "clip"


def test_tower_of_another_width_and_base_of_another_kind_are_refused(standin, tmp_path):
    wide = build_standin(tmp_path / "wide", hidden_size=96)
    base = AutoProcessor.from_pretrained(standin)
    vision_config = plan_vision_config(AutoConfig.from_pretrained(standin), with_encoder("rad_dino"), base)
    with pytest.raises(UserError, match="tokens of width 64, the language model takes 96"):
        swap_vision_tower(AutoModelForImageTextToText.from_pretrained(wide), vision_config)
    qwen2 = Qwen2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=8)
    with pytest.raises(UserError, match="needs a Qwen3-VL base model .* got a qwen2"):
        swap_vision_tower(Qwen2ForCausalLM(qwen2), vision_config)
    with pytest.raises(UserError, match="needs a Qwen3-VL base model"):
        plan_vision_config(qwen2, with_encoder("rad_dino"), base)


def test_model_is_built_without_weights_on_the_meta_device(base):
    config = AutoConfig.from_pretrained(base)
    processor = AutoProcessor.from_pretrained(base)
    for case in ("rad_dino", "biomedclip", "siglip2#naflex", "timm:swin_tiny_patch4_window7_224"):
        custom = custom_config(config, plan_vision_config(config, with_encoder(case), processor))
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(custom)
        swapped, _ = swap(base, with_encoder(case))
        shapes = {name: value.shape for name, value in model.named_parameters()}
        assert shapes == {name: value.shape for name, value in swapped.named_parameters()}
        assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("merger", ["norm_linear", "mlp2"])
def test_other_mergers_are_saved_and_loaded(standin, tmp_path, merger):
    model, processor = swap(standin, with_encoder("c_radio", merger=merger))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    inputs = question(processor)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, loaded(**inputs).logits)


def test_half_precision_casts_parameters_and_leaves_rotary_tables_exact(standin):
    base = AutoProcessor.from_pretrained(standin)
    model = AutoModelForImageTextToText.from_pretrained(standin, dtype=torch.bfloat16)
    model = swap_vision_tower(model, plan_vision_config(model.config, with_encoder("dinov3"), base))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.visual.encoder.model.rope_embeddings.inv_freq.dtype == torch.float32
    kept = AutoModelForImageTextToText.from_pretrained(standin, dtype=torch.bfloat16)
    kept = swap_vision_tower(kept, plan_vision_config(kept.config, with_encoder("dinov3"), base), dtype=torch.float32)
    assert {parameter.dtype for parameter in kept.model.visual.parameters()} == {torch.float32}


def test_official_pixels_stay_exact_up_to_the_encoder_in_half_precision(standin):
    model, processor = swap(standin, with_encoder("rad_dino", input_mode="qwen"))
    inputs, reached = question(processor), []
    model.model.visual.encoder.register_forward_pre_hook(lambda module, args: reached.append(args[0]))
    with torch.no_grad():
        model(**inputs)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        model(**inputs)
    assert torch.equal(reached[0].to(torch.bfloat16), reached[1])


def test_half_precision_model_loads_with_exact_rotary_tables(standin, tmp_path):
    model, processor = swap(standin, with_encoder("dinov3"))
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    table = loaded.model.visual.encoder.model.rope_embeddings.inv_freq
    assert table.isfinite().all() and table.abs().sum() > 0
    inputs = question(processor)
    with torch.no_grad():
        assert loaded(**inputs).logits.isfinite().all()


def test_first_loss_is_hardly_above_that_of_the_text_without_images(standin):
    base = AutoProcessor.from_pretrained(standin)
    model = AutoModelForImageTextToText.from_pretrained(standin)
    answer = torch.tensor([base.tokenizer("the heart is of normal size and the lungs are clear")["input_ids"]])
    prompt = ask(base)["input_ids"]
    _teach(model, prompt, answer)
    text_loss = _answer_loss(model, {"input_ids": prompt}, answer)
    words = model.get_input_embeddings().weight.detach().square().mean().sqrt().item()
    vision_config = plan_vision_config(model.config, with_encoder("c_radio"), base)
    swapped, processor = swap_vision_tower(model, vision_config).eval(), swap_processor(base, vision_config)
    pictured = ask(processor, [random_image(64, 64)])
    tokens = swapped.model.visual(pictured["pixel_values"], pictured["image_grid_thw"]).pooler_output
    assert 0.5 < tokens.square().mean().sqrt().item() / words < 2
    assert text_loss < 0.5
    assert _answer_loss(swapped, pictured, answer) < text_loss + 0.2


def _teach(model, prompt, answer) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        # Words before the prompt, as many as the image will have tokens, so that the distance is nothing new.
        noise = torch.randint(0, 300, (4, int(torch.randint(0, 80, (), generator=generator))), generator=generator)
        row = torch.cat([prompt, answer], dim=1).expand(4, -1)
        ids = torch.cat([noise, row], dim=1)
        labels = torch.cat([torch.full_like(ids[:, : -answer.shape[1]], -100), answer.expand(4, -1)], dim=1)
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@torch.no_grad()
def _answer_loss(model, inputs, answer) -> float:
    ids = torch.cat([inputs["input_ids"], answer], dim=1)
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), answer], dim=1)
    extra = {key: value for key, value in inputs.items() if key.startswith(("pixel", "image"))}
    types = torch.nn.functional.pad(
        inputs.get("mm_token_type_ids", torch.zeros_like(inputs["input_ids"])), (0, answer.shape[1])
    )
    return model(input_ids=ids, labels=labels, mm_token_type_ids=types, **extra).loss.item()


@pytest.mark.parametrize("train_encoder", [False, True])
def test_adapter_with_whole_merger_and_encoder_loads_to_equal_logits(standin, tmp_path, train_encoder):
    modules = ["visual.merger"] + ["visual.encoder"] * train_encoder
    lora = LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj", modules_to_save=modules)
    model, processor = swap(standin, with_encoder("rad_dino"))
    peft_model = get_peft_model(model, lora)
    tower = peft_model.get_base_model().model.visual
    assert tower.freeze_unreachable() == train_encoder * ["modules_to_save.default.model.embeddings.mask_token"]
    inputs = question(processor)
    peft_model.train()
    peft_model(**inputs, labels=inputs["input_ids"]).loss.backward()
    without = [name for name, value in peft_model.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []
    torch.optim.SGD([p for p in peft_model.parameters() if p.requires_grad], lr=0.1).step()
    peft_model.save_pretrained(tmp_path)
    fresh, _ = swap(standin, with_encoder("rad_dino"))
    loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, peft_model.eval()(**inputs).logits)


def test_attention_backend_of_the_language_model_is_kept(standin):
    model = AutoModelForImageTextToText.from_pretrained(standin, attn_implementation="eager")
    vision_config = plan_vision_config(model.config, with_encoder("rad_dino"), AutoProcessor.from_pretrained(standin))
    swapped = swap_vision_tower(model, vision_config)
    assert swapped.model.language_model.config is swapped.config.text_config
    assert swapped.config.text_config._attn_implementation == "eager"
    assert swapped.config is swapped.model.config
