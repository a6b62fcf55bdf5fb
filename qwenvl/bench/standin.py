"""Build a stand-in for a Qwen3-VL folder: the same files as the real one, few small layers, random weights."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    Dinov2Config,
    Dinov2Model,
    GenerationConfig,
    PreTrainedConfig,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
    Qwen3VLMoeTextConfig,
    Qwen3VLMoeVisionConfig,
    Qwen3VLTextConfig,
    Qwen3VLVisionConfig,
)

HEAD_DIM = 32
MROPE_SECTION = [6, 5, 5]  # of HEAD_DIM / 2, in the proportions of Qwen3-VL's [24, 20, 20] of 64
MAX_POSITIONS = 32768
BPE_VOCABULARY = 640

# Hidden from decoded text with skip_special_tokens, as in the real tokenizer.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# One token each, but part of the visible text, as in the real tokenizer.
PLAIN_ADDED_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)

PRETOKENIZE_REGEX = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TOKENIZER_TEXT = """system user assistant
You are a helpful assistant. You answer questions about pictures.
Which digit is written in this picture? Answer with one digit: 0 1 2 3 4 5 6 7 8 9.
What is shown in the image? Describe the picture in one sentence. How many shapes are there, and what colour are they?
The picture shows a red circle, a green square and a blue triangle on a white background.
Where is the red circle? Give its bounding box as JSON: [{"bbox_2d": [10, 20, 300, 400], "label": "circle"}]
What happens in the video? The ball moves from left to right, then from top to bottom, and becomes larger.
Write the findings and the impression of this chest radiograph.
Findings: The heart size is normal. The lungs are clear. There is no pleural effusion or pneumothorax.
Impression: No acute cardiopulmonary process. Mild cardiomegaly. Small left pleural effusion. Right lower lobe opacity.
Compared with the prior study, the endotracheal tube is in standard position. There is no focal consolidation.
Thank you. Yes. No. First, second, third; the first image is brighter than the second image.
Let me look at the picture step by step before I answer. The shape is round, so the answer is the circle.
"""

_CONTENT_MACRO = """\
{%- macro render(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part.type == 'video' or 'video' in part -%}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- elif 'text' in part -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
"""

# Tools stand at the head of the chat, calls and results in tags of their own, as in the real templates.
_TOOLS_BLOCK = """\
{%- if tools -%}
    {{- '<|im_start|>system\\n' -}}
    {%- if messages[0].role == 'system' -%}{{- render(messages[0].content) + '\\n\\n' -}}{%- endif -%}
    {{- '# Tools\\n\\nCall them as JSON between <tool_call> and </tool_call>:\\n<tools>' -}}
    {%- for tool in tools -%}{{- '\\n' + tool | tojson -}}{%- endfor -%}
    {{- '\\n</tools><|im_end|>\\n' -}}
{%- endif -%}
"""

# What a message becomes, apart from an answer's thought, which the loop around it puts into `text`.
_MESSAGE_BLOCK = """\
    {%- if message.role == 'tool' -%}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
        {{- '\\n<tool_response>\\n' + text + '\\n</tool_response>' -}}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
    {%- elif not (tools and loop.first and message.role == 'system') -%}
        {{- '<|im_start|>' + message.role + '\\n' + text -}}
        {%- for call in message.tool_calls or [] -%}
            {%- set call = call.function or call -%}
            {{- '\\n' if spoken or not loop.first else '' -}}
            {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' -}}
            {{- call.arguments if call.arguments is string else call.arguments | tojson -}}
            {{- '}\\n</tool_call>' -}}
        {%- endfor -%}
        {{- '<|im_end|>\\n' -}}
    {%- endif -%}
"""

INSTRUCT_TEMPLATE = (
    _CONTENT_MACRO
    + _TOOLS_BLOCK
    + """\
{%- for message in messages -%}
    {%- set text = render(message.content) -%}
    {%- set spoken = text -%}
"""
    + _MESSAGE_BLOCK
    + """\
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
)

# Thoughts are kept only in answers after the last question; the last answer always has a (perhaps empty) thought.
THINKING_TEMPLATE = (
    _CONTENT_MACRO
    + _TOOLS_BLOCK
    + """\
{%- set last = namespace(question=-1) -%}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}{%- set last.question = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- set text = render(message.content) -%}
    {%- if message.role == 'assistant' -%}
        {%- set thought = '' -%}
        {%- if message.reasoning_content is string -%}
            {%- set thought = message.reasoning_content -%}
        {%- elif '</think>' in text -%}
            {%- set thought = text.split('</think>')[0].split('<think>')[-1] -%}
            {%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
        {%- endif -%}
        {%- set spoken = text -%}
        {%- if loop.index0 > last.question and (loop.last or thought.strip('\\n')) -%}
            {%- set text = '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + text.lstrip('\\n') -%}
        {%- endif -%}
    {%- endif -%}
"""
    + _MESSAGE_BLOCK
    + """\
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n<think>\\n' -}}
{%- endif -%}
"""
)


def build_standin(
    folder: str | Path,
    *,
    seed: int = 0,
    moe: bool = False,
    thinking: bool = False,
    tie_word_embeddings: bool = True,
    hidden_size: int = 64,
    vision_hidden_size: int = 64,
    num_layers: int = 3,
) -> Path:
    """Write a small Qwen3-VL folder with random weights that the Auto classes load like the real one.

    `hidden_size` is the language model's and `vision_hidden_size` the vision tower's; both are multiples of 32.
    The same arguments always give the same files. Returns the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    token_ids = _write_tokenizer(folder, THINKING_TEMPLATE if thinking else INSTRUCT_TEMPLATE)
    _write_preprocessors(folder)
    config = _config(token_ids, moe, tie_word_embeddings, _sizes(hidden_size, vision_hidden_size, num_layers))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(
        bos_token_id=token_ids["<|endoftext|>"],
        eos_token_id=[token_ids["<|im_end|>"], token_ids["<|endoftext|>"]],
        pad_token_id=token_ids["<|endoftext|>"],
    )
    model.save_pretrained(folder)
    return folder


def build_standin_encoder(folder: str | Path, *, seed: int = 0) -> Path:
    """Write a small DINOv2 folder with random weights, in the layout of microsoft/rad-dino; 4 tokens of 32 pixels."""
    config = Dinov2Config(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        mlp_ratio=2,
        image_size=64,
        patch_size=32,
        initializer_range=128**-0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Dinov2Model(config).save_pretrained(folder)
    return Path(folder)


def _write_tokenizer(folder: Path, chat_template: str) -> dict[str, int]:
    """Train a byte-level BPE on our own text, write it with its chat template and return every token's id."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(PRETOKENIZE_REGEX, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_VOCABULARY,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TOKENIZER_TEXT.splitlines(keepends=True), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_ADDED_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_bos_token": False,
            "add_prefix_space": False,
            "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": MAX_POSITIONS,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "unk_token": None,
        },
    )
    _write_json(folder / "chat_template.json", {"chat_template": chat_template})
    return vocabulary


def _write_preprocessors(folder: Path) -> None:
    """Write the image and video processors' files, with Qwen3-VL's geometry and lower pixel floors."""
    geometry = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    normalisation = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    _write_json(
        folder / "preprocessor_config.json",
        {
            "size": {"longest_edge": 16777216, "shortest_edge": 1024},
            "processor_class": "Qwen3VLProcessor",
            "image_processor_type": "Qwen2VLImageProcessorFast",
            **geometry,
            **normalisation,
        },
    )
    _write_json(
        folder / "video_preprocessor_config.json",
        {
            "size": {"longest_edge": 25165824, "shortest_edge": 4096},
            "processor_class": "Qwen3VLProcessor",
            "video_processor_type": "Qwen3VLVideoProcessor",
            **geometry,
            **normalisation,
        },
    )


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _sizes(hidden_size: int, vision_hidden_size: int, num_layers: int) -> tuple[dict, dict]:
    """Return the text and vision sizes that the dense and the MoE configuration share."""
    text = {
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": MAX_POSITIONS,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5000000.0,
            "mrope_section": MROPE_SECTION,
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": 4,
        "deepstack_visual_indexes": [1, 2],
        "hidden_size": vision_hidden_size,
        "intermediate_size": 2 * vision_hidden_size,
        "num_heads": vision_hidden_size // 16,
        "num_position_embeddings": 256,
        "out_hidden_size": hidden_size,
        "initializer_range": vision_hidden_size**-0.5,
    }
    return text, vision


def _config(
    token_ids: dict[str, int], moe: bool, tie_word_embeddings: bool, sizes: tuple[dict, dict]
) -> PreTrainedConfig:
    """Return the dense or the MoE configuration, whose special ids are those of our tokenizer."""
    text, vision = sizes
    text |= {
        "vocab_size": -(-len(token_ids) // 64) * 64,
        "bos_token_id": token_ids["<|endoftext|>"],
        "eos_token_id": token_ids["<|im_end|>"],
        "pad_token_id": token_ids["<|endoftext|>"],
        # Small layers need larger weights than 0.02 for a random network to pass on what it sees.
        "initializer_range": text["hidden_size"] ** -0.5,
        "tie_word_embeddings": tie_word_embeddings,
    }
    if moe:
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": text["hidden_size"]}
        config_class, text_class, vision_class = Qwen3VLMoeConfig, Qwen3VLMoeTextConfig, Qwen3VLMoeVisionConfig
    else:
        config_class, text_class, vision_class = Qwen3VLConfig, Qwen3VLTextConfig, Qwen3VLVisionConfig
    return config_class(
        text_config=text_class(**text).to_dict(),
        vision_config=vision_class(**vision).to_dict(),
        image_token_id=token_ids["<|image_pad|>"],
        video_token_id=token_ids["<|video_pad|>"],
        vision_start_token_id=token_ids["<|vision_start|>"],
        vision_end_token_id=token_ids["<|vision_end|>"],
        tie_word_embeddings=tie_word_embeddings,
        dtype="float32",
    )
