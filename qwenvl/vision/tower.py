"""Join an encoder and a merger behind the interface of Qwen3-VL's `model.visual`.

B images, T frames of a video, N tokens of an image, D_vis encoder width, D_llm text width, H x W image in pixels.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from qwenvl.errors import UserError
from qwenvl.vision.encoder import EncoderSpec, VisionEncoder, pixel_dtype
from qwenvl.vision.gradients import unreachable_parameters
from qwenvl.vision.merger import build_merger
from qwenvl.vision.options import INPUT_MODES, NATIVE, EncoderOptions, InputMode, MergerName, ResizePolicy, TowerOptions
from qwenvl.vision.patches import PatchGrid, PatchLayout, split_rows, unpatchify
from qwenvl.vision.precision import (
    HALF_DTYPES,
    HALF_PRECISION,
    NONE,
    check_works_in_half,
    choose_half_precision,
    hold,
    works_under_autocast,
)
from qwenvl.vision.preprocessing import WHITE, Geometry, Preprocessing, TokenRule
from qwenvl.vision.registry import build_encoder, encoder_geometry

logger = logging.getLogger(__name__)

# A long video is encoded in pieces to limit the memory of activations; a trained encoder keeps them anyway.
FROZEN_ENCODER_BATCH = 64


class CustomVisionConfig(PreTrainedConfig):
    """All that rebuilds a custom tower: the encoder and its options, its preprocessing, the merger, the input mode.

    encoder_weights and encoder_sha256 identify a frozen encoder that a checkpoint does not copy. encoder_half: what of
    it is held in half precision (`qwenvl.vision.precision`; None: not tested yet). token_grid: (rows, columns) of an
    encoder with one input size. qwen_pixels: the official processor's patches and normalization, for input mode "qwen".
    """

    model_type = "qwenvl_custom_vision"
    base_config_key = "vision_config"

    encoder: str = "rad_dino"
    encoder_config: dict | None = None
    encoder_weights: str | None = None
    encoder_sha256: str | None = None
    encoder_half: str | None = None
    # Transformers saves the annotated names of the class itself; a test compares these with the options.
    layer: int = EncoderOptions.layer
    final_norm: bool | None = EncoderOptions.final_norm
    keep_prefix_tokens: bool = EncoderOptions.keep_prefix_tokens
    resize: ResizePolicy = EncoderOptions.resize
    input_size: list[int] | None = None
    preprocessing: dict | None = None
    token_grid: list[int] | None = None
    prefix_tokens: int = 0
    patch_size: int = 14
    input_mode: InputMode = TowerOptions.input_mode
    qwen_pixels: dict | None = None
    merger: MergerName = TowerOptions.merger
    hidden_size: int = 768
    out_hidden_size: int = 2560
    initializer_range: float = 0.02
    # What the rest of Qwen3-VL reads from its tower's configuration: no merge of tokens and no DeepStack.
    spatial_merge_size: int = 1
    temporal_patch_size: int = 1
    deepstack_visual_indexes: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.deepstack_visual_indexes = []
        if self.input_mode not in INPUT_MODES:
            raise UserError(f"--custom_vision_input {self.input_mode}: expected {' or '.join(INPUT_MODES)}")
        if self.encoder_half not in (None, *HALF_PRECISION):
            raise UserError(
                f"encoder_half {self.encoder_half!r} in config.json: expected {' or '.join(HALF_PRECISION)}"
            )
        super().__post_init__(**kwargs)

    def encoder_spec(self) -> EncoderSpec:
        """Return what `build_encoder` takes."""
        return EncoderSpec(
            name=self.encoder,
            config=self.encoder_config or {},
            preprocessing=Preprocessing(**(self.preprocessing or {})),
            options=EncoderOptions.of_config(self),
            weights=self.encoder_weights,
        )

    def geometry(self) -> Geometry:
        """Return the mapping from image sizes to token grids, which the processor shares."""
        fixed = None if self.token_grid is None else tuple(self.token_grid)
        rule = TokenRule(self.patch_size, self.prefix_tokens, fixed)
        return Geometry(Preprocessing(**(self.preprocessing or {})), rule)


class CustomVisionTower(PreTrainedModel):
    """Any encoder and its merger, used as `model.visual`.

    `pixel_values` may be (B, 3, h, w), preprocessed for the encoder; rows of patches with a header row before each
    image, for images of several sizes or from the official processor; or features (tokens, 1, D_vis) from a cache.
    """

    config: CustomVisionConfig
    config_class = CustomVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image", "video")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: CustomVisionConfig, encoder: VisionEncoder | None = None) -> None:
        super().__init__(config)
        self.spatial_merge_size = config.spatial_merge_size
        self.geometry = config.geometry()
        self._features_were_finite: torch.Tensor | None = None
        self.merger = build_merger(config.merger, config.hidden_size, config.out_hidden_size)
        # The encoder is attached after `post_init`, which would initialize its loaded weights again:
        # https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/modeling_utils.py#L3098
        # Can go once `post_init` skips modules that come with their weights.
        self.post_init()
        self.encoder = build_encoder(config.encoder_spec(), with_weights=False) if encoder is None else encoder
        _keep_all_buffers(self)
        self._tied_weights_keys = _tied_names(self)
        self.all_tied_weights_keys.update(self._tied_weights_keys)
        if config.encoder_half is not None and torch.get_default_dtype() in HALF_DTYPES:
            # `from_pretrained` keeps the precision that a parameter is built in, and builds all in the model's:
            # https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/core_model_loading.py#L1781-L1783
            # Can go once a configuration can name a precision for each module.
            hold(self.encoder, config.encoder_half, torch.get_default_dtype())

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the pixels that the tower takes: float32, so that resizing and normalizing lose nothing."""
        # Qwen3-VL casts the pixels to `visual.dtype` before it calls the tower:
        # https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/models/qwen3_vl/modeling_qwen3_vl.py#L1027
        # Can go once the tower itself is left to cast them.
        return torch.float32

    @property
    def encoder_is_frozen(self) -> bool:
        """Whether no parameter of the encoder is trained."""
        return not any(parameter.requires_grad for parameter in self.encoder.parameters())

    @property
    def gave_finite_features(self) -> bool:
        """Whether all features so far were finite; reading it waits for the device."""
        return self._features_were_finite is None or bool(self._features_were_finite)

    def train(self, mode: bool = True) -> "CustomVisionTower":
        """Set the mode; a frozen encoder stays in eval mode, without dropout and stochastic depth."""
        super().train(mode)
        if self.encoder_is_frozen:
            self.encoder.eval()
        return self

    def hold_encoder_in(self, dtype: torch.dtype) -> None:
        """Cast a frozen encoder to half precision, as far as its code can compute in it; float32 casts nothing.

        The weights must be loaded, and not partitioned.
        """
        if dtype in HALF_DTYPES:
            start = self.config.encoder_half
            self.config.encoder_half = choose_half_precision(self.encoder, self._trial_size(), dtype, start)
            hold(self.encoder, self.config.encoder_half, dtype)

    def prepare_for_autocast(self, dtype: torch.dtype) -> None:
        """Prepare an encoder for training under autocast in half precision; parameters are cast to float32 later."""
        if dtype not in HALF_DTYPES:
            return
        for buffer in self.encoder.buffers():
            if buffer.dtype in HALF_DTYPES:
                buffer.data = buffer.data.float()
        if not works_under_autocast(self.encoder, self._trial_size(), dtype):
            self.config.encoder_half = NONE
            hold(self.encoder, NONE, dtype)

    def check_for_deepspeed(self, dtype: torch.dtype) -> None:
        """Raise `UserError` if the encoder cannot compute as DeepSpeed casts it."""
        if dtype in HALF_DTYPES:
            check_works_in_half(self.encoder, self._trial_size(), dtype)

    def _trial_size(self) -> tuple[int, int]:
        wanted = self.encoder.preprocessing
        return encoder_geometry(self.encoder).input_size(wanted.height, wanted.width)

    def _own_precision(self) -> AbstractContextManager:
        """Return the context in which the encoder computes: without autocast where it cannot."""
        if self.config.encoder_half != NONE:
            return nullcontext()
        return torch.autocast(self.merger.proj.weight.device.type, enabled=False)

    def set_encoder_trainable(self, trainable: bool) -> list[str]:
        """Train or freeze the encoder; return the names of parameters that `freeze_unreachable` has frozen again."""
        for parameter in self.encoder.parameters():
            # Integers, such as quantized weights, have no gradient.
            parameter.requires_grad_(trainable and (parameter.is_floating_point() or parameter.is_complex()))
        self.encoder.train(trainable and self.training)
        return self.freeze_unreachable() if trainable else []

    def freeze_unreachable(self) -> list[str]:
        """Freeze the trainable parameters of the encoder that receive no gradient; log and return their names.

        These are mask tokens and, with an inner layer, the blocks and the norm after it. If they stayed trainable,
        distributed training would wait for their gradients forever.
        """
        unreachable = []
        for name in unreachable_parameters(self.encoder, self.geometry):
            parameter = self.encoder.get_parameter(name)
            if parameter.requires_grad:
                parameter.requires_grad_(False)
                unreachable.append(name)
        if unreachable:
            logger.info("encoder parameters that receive no gradient stay frozen: %s", ", ".join(unreachable))
        return unreachable

    def forward(
        self,
        pixel_values: torch.Tensor,
        grid_thw: torch.Tensor,
        layout: Sequence[tuple[int, int, int]] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithDeepstackFeatures:
        """Encode images and videos; `grid_thw` (number of media, 3) counts frames, rows and columns of tokens.

        `layout` is the same as a list, which spares the GPU a wait.
        `pooler_output` is (all tokens, D_llm) in the order of the media, `last_hidden_state` (all tokens, D_vis).
        Raises `UserError` if pixels, grid and features do not agree.
        """
        grids = grids_of(grid_thw) if layout is None else layout
        if pixel_values.ndim == 3:
            features = self._check_cached_features(pixel_values, grids)
        else:
            features = self.encode(self._split_media(pixel_values, grids), grids)
        weight = self.merger.proj.weight
        return BaseModelOutputWithDeepstackFeatures(
            last_hidden_state=features, pooler_output=self.merger(features.to(weight.dtype)), deepstack_features=[]
        )

    def encode(self, media: Sequence[torch.Tensor], grids: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        """Encode preprocessed media, each (T, 3, h, w), into (all tokens, D_vis); media of one size share a batch."""
        by_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, pixels in enumerate(media):
            by_size[tuple(pixels.shape[-2:])].append(i)
        frozen = self.encoder_is_frozen
        if frozen and self.encoder.training:
            self.encoder.eval()
        found: list[torch.Tensor] = [torch.empty(0)] * len(media)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            for members in by_size.values():
                features = self._encode_equal(torch.cat([media[i] for i in members]), frozen)
                counts = [len(media[i]) for i in members]
                for i, part in zip(members, features.split(counts), strict=True):
                    found[i] = self._flatten(part, grids[i], media[i])
            features = torch.cat(found)
            finite = features.detach().isfinite().all()
            before = self._features_were_finite
            self._features_were_finite = finite if before is None else before.to(finite.device) & finite
        return features

    def _encode_equal(self, pixels: torch.Tensor, frozen: bool) -> torch.Tensor:
        # An adapter holds the original weights next to the trained copy, which may have a higher precision.
        trained_first = sorted(self.encoder.parameters(), key=lambda parameter: not parameter.requires_grad)
        pixels = pixels.to(pixel_dtype(trained_first, pixels.dtype))
        pieces = pixels.split(FROZEN_ENCODER_BATCH) if frozen else (pixels,)
        with self._own_precision():
            return torch.cat([self.encoder(piece) for piece in pieces])

    def _flatten(self, features: torch.Tensor, grid: tuple[int, int, int], pixels: torch.Tensor) -> torch.Tensor:
        """Return features (T, N, D_vis) as (T * N, D_vis); raises `UserError` if the processor counted other ones."""
        frames, rows, columns = grid
        expected = (frames, rows * columns, self.config.hidden_size)
        if tuple(features.shape) != expected:
            raise UserError(
                f"encoder {self.config.encoder} returned {tuple(features.shape)} for {tuple(pixels.shape)} pixels, "
                f"but the processor counted {expected} (images, tokens, width) and wrote as many placeholders; its "
                "token_grid and its forward must agree, and the processor must be the one saved with this model"
            )
        return features.flatten(0, 1)

    def _check_cached_features(self, values: torch.Tensor, grids: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        expected = (sum(t * h * w for t, h, w in grids), 1, self.config.hidden_size)
        if tuple(values.shape) != expected:
            raise UserError(
                f"cached features have shape {tuple(values.shape)}, expected {expected} (tokens, 1, width) for "
                f"{len(grids)} media; build the cache again with this encoder and processor"
            )
        return values.squeeze(1)

    def _split_media(self, values: torch.Tensor, grids: Sequence[tuple[int, int, int]]) -> list[torch.Tensor]:
        """Return the preprocessed pixels of each image or video, (T, 3, h, w)."""
        frames = [t for t, _, _ in grids]
        if values.ndim == 4:
            if len(values) != sum(frames):
                raise UserError(
                    f"{len(values)} images in pixel_values, but the grid counts {sum(frames)}; pass both as the "
                    "processor returns them"
                )
            return list(values.split(frames))
        media = split_rows(values) if values.ndim == 2 else None
        if media is None or [grid.frames for _, grid in media] != frames:
            raise UserError(
                f"pixel_values of shape {tuple(values.shape)} do not hold the {len(grids)} media of the grid; use the "
                f"processor saved with this model (input mode {self.config.input_mode}), not the base model's"
            )
        if self.config.input_mode == NATIVE:
            layout = PatchLayout(self.config.patch_size)
            return [unpatchify(rows, grid, layout) for rows, grid in media]
        return [self.geometry.prepare(self._official_pixels(rows, grid)) for rows, grid in media]

    def _official_pixels(self, rows: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
        """Undo the official processor's patches and normalization: frames (T, 3, H, W) in 0..255."""
        made = self.config.qwen_pixels
        frames = unpatchify(
            rows, grid, PatchLayout(made["patch_size"], made["temporal_patch_size"], made["merge_size"])
        )
        mean = torch.tensor(made["mean"], device=rows.device).view(3, 1, 1)
        std = torch.tensor(made["std"], device=rows.device).view(3, 1, 1)
        return (frames.float() * std + mean) * WHITE


def grids_of(grid_thw: torch.Tensor) -> list[tuple[int, int, int]]:
    """Return the frames, rows and columns of tokens of each medium, from (number of media, 3)."""
    return [tuple(grid) for grid in grid_thw.tolist()]


def _tied_names(tower: PreTrainedModel) -> dict[str, str]:
    """Return {other name: first name} of the encoder's parameters that have several names.

    Transformers saves a shared parameter once, and refuses one whose other names it does not know:
    https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/modeling_utils.py#L436
    Can go once it finds shared parameters by itself.
    """
    named = tower.encoder.named_parameters("encoder", remove_duplicate=False)
    first: dict[int, str] = {}
    return {name: first[id(tensor)] for name, tensor in named if first.setdefault(id(tensor), name) != name}


def _keep_all_buffers(tower: PreTrainedModel) -> None:
    """Put every buffer into the state dict, since `from_pretrained` loses the values of non-persistent ones.

    It builds on the meta device and fills such buffers with uninitialized memory. Can go once that is fixed:
    https://github.com/huggingface/transformers/issues/48892
    """
    for name, buffer in list(tower.named_non_persistent_buffers()):
        parent, _, last = name.rpartition(".")
        owner: nn.Module = tower.get_submodule(parent)
        owner.register_buffer(last, buffer, persistent=True)


AutoConfig.register(CustomVisionConfig.model_type, CustomVisionConfig)
AutoModel.register(CustomVisionConfig, CustomVisionTower)
