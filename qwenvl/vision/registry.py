"""Register encoders, find them by name, and build them with their weights."""

import ast
import difflib
import importlib.util
import logging
import math
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from qwenvl.errors import UserError
from qwenvl.vision.encoder import CONTRACT, EncoderSpec, VisionEncoder, check_contract, error_text
from qwenvl.vision.options import ENCODER_RESIZE, LAST_LAYER, MERGER_OPTIONS, EncoderOptions
from qwenvl.vision.preprocessing import NAFLEX, RESIZE_POLICIES, UNKNOWN, WHITE, Geometry, Preprocessing, TokenRule
from qwenvl.vision.trust import FILE_FORM, encoder_file, refuse_untrusted_file, trust_encoder_file

logger = logging.getLogger(__name__)

_ENCODERS: dict[str, type[VisionEncoder]] = {}


def register_encoder(name: str) -> Callable[[type[VisionEncoder]], type[VisionEncoder]]:
    """Register an encoder class under an exact name; a name that ends in a colon takes an argument (`timm:NAME`).

    Raises `UserError` if the name is taken or the class is not an encoder.
    """

    def register(encoder_class: type[VisionEncoder]) -> type[VisionEncoder]:
        if name in _ENCODERS:
            raise UserError(
                f"encoder {name!r} is already registered by {_ENCODERS[name].__name__}; choose another name"
            )
        _ENCODERS[name] = _require_encoder(encoder_class, name)
        return encoder_class

    return register


def list_encoders() -> list[str]:
    """Return the registered names in alphabetical order, without those that take an argument."""
    return sorted(name for name in _ENCODERS if not name.endswith(":"))


def encoder_class(name: str) -> type[VisionEncoder]:
    """Return the class of a name: a registered one, `hf:org/model`, `timm:NAME` or `path/file.py:CLASS`.

    Raises `UserError` for an unknown name, with the known and the closest ones, and for a file that may not run
    (`qwenvl.vision.trust`).
    """
    if name in _ENCODERS and not name.endswith(":"):
        return _ENCODERS[name]
    if FILE_FORM in name:
        refuse_untrusted_file(name)
        return _class_from_file(name)
    if name.endswith(".py"):
        raise UserError(_missing_class_message(name))
    form, colon, argument = name.partition(":")
    if colon and argument and form + colon in _ENCODERS:
        return _ENCODERS[form + colon]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), list_encoders(), n=3, cutoff=0.5)
    guess = f"; did you mean {' or '.join(near)}? Known: " if near else "; known: "
    raise UserError(
        f"there is no vision encoder {name!r}{guess}{', '.join(list_encoders())}; or hf:ORG/MODEL, timm:MODEL_NAME, "
        "or path/to/file.py:CLASS for your own"
    )


def registered_classes() -> list[type[VisionEncoder]]:
    """Return the registered classes in the order of registration, without the forms that take an argument."""
    return [cls for name, cls in _ENCODERS.items() if not name.endswith(":")]


def resolve_encoder(
    name: str, path: str | None = None, config: dict | None = None, options: EncoderOptions | None = None
) -> EncoderSpec:
    """Return the complete spec of an encoder, without loading its weights.

    A file that the caller names here may run: it is trusted from now on. If `config` is given, the encoder is built
    from it, with random weights unless `path` names some. Otherwise the configuration is read from `path` (folder, file
    or hub name; default: the encoder's own hub name). Raises `UserError` for an option that does not fit the encoder.
    """
    options = EncoderOptions() if options is None else options
    trust_encoder_file(name)
    cls = encoder_class(name)
    if FILE_FORM in name:
        name = f"{encoder_file(name)}:{name.rpartition(':')[2]}"
    if path is not None and Path(path).expanduser().exists():
        # Absolute, since a checkpoint stores it. Links are not resolved: their targets may have no suffix.
        path = str(Path(path).expanduser().absolute())
    if config is None:
        if path is None and cls.card is not None:
            path = cls.card.default_path
        spec = cls.read_source(path, name.partition(":")[2] or None)
    else:
        spec = EncoderSpec(config, weights=path)
    spec = replace(spec, name=name, options=options)
    cls = cls.for_config(spec.config)
    _check_options(cls, name, options)
    shape = _build_on_meta(cls, spec)
    published = spec.preprocessing or cls.default_preprocessing(spec.config)
    if published is not None:
        shape.preprocessing = published
    check_contract(shape)
    preprocessing = _apply_options(shape, options)
    _check_normalization(cls.__name__ if spec.weights is None else spec.weights, preprocessing)
    if not preprocessing.keeps_aspect:
        shape.token_grid(preprocessing.height, preprocessing.width)
    return replace(spec, preprocessing=preprocessing)


def build_encoder(spec: EncoderSpec | str, *, with_weights: bool = True) -> VisionEncoder:
    """Build an encoder from a name or a spec, with the weights that the spec names or with random ones."""
    if isinstance(spec, str):
        spec = resolve_encoder(spec)
    cls = encoder_class(spec.name).for_config(spec.config)
    if torch.get_default_device().type == "meta":
        encoder = _build_on_meta(cls, spec)
    else:
        encoder = cls.build(spec.config, spec.options, spec.weights if with_weights else None)
    encoder.preprocessing = spec.preprocessing
    check_contract(encoder)
    return encoder


def build_on_meta(spec: EncoderSpec) -> VisionEncoder:
    """Build an encoder without its weights, to read its sizes."""
    encoder = _build_on_meta(encoder_class(spec.name).for_config(spec.config), spec)
    encoder.preprocessing = spec.preprocessing
    return encoder


def encoder_geometry(encoder: VisionEncoder) -> Geometry:
    """Return the geometry that the processor and the tower share.

    Raises `UserError` if images keep their aspect and the encoder does not return one token per patch.
    """
    wanted = encoder.preprocessing
    if not wanted.keeps_aspect:
        fixed = tuple(encoder.token_grid(wanted.height, wanted.width))
        return Geometry(wanted, TokenRule(getattr(encoder, "patch_size", 0), encoder.prefix_tokens, fixed))
    rule = TokenRule(encoder.patch_size, encoder.prefix_tokens)
    for rows, columns in ((1, 1), (2, 3), (5, 1)):
        size = rows * rule.patch_size, columns * rule.patch_size
        if tuple(encoder.token_grid(*size)) != rule.grid(*size):
            raise UserError(
                f"{type(encoder).__name__} cannot keep an image's aspect: its token_grid{size} is "
                f"{tuple(encoder.token_grid(*size))}, expected one token per patch, {rule.grid(*size)}; use resize "
                "policy pad, squash or crop"
            )
    return Geometry(wanted, rule)


def _build_on_meta(cls: type[VisionEncoder], spec: EncoderSpec) -> VisionEncoder:
    """Build an encoder to read its sizes, on the meta device or, if its code needs values, on the CPU."""
    try:
        with torch.device("meta"):
            return cls.build(spec.config, spec.options, None)
    except Exception:  # user code may read values, which meta tensors do not have
        logger.debug("%s cannot be built on the meta device", cls.__name__, exc_info=True)
    try:
        with torch.device("cpu"):
            return cls.build(spec.config, spec.options, None)
    except UserError:
        raise
    except Exception as error:  # libraries raise many kinds for sizes that do not fit together
        raise UserError(
            f"{spec.weights or spec.name}: {cls.__name__} cannot be built from its configuration: {error_text(error)}; "
            "correct the values there"
        ) from error


def _require_encoder(candidate: object, name: str) -> type[VisionEncoder]:
    if isinstance(candidate, type) and issubclass(candidate, VisionEncoder):
        return candidate
    raise UserError(
        f"{name}: {getattr(candidate, '__name__', candidate)!r} is not an encoder; an encoder is {CONTRACT}"
    )


def _class_from_file(name: str) -> type[VisionEncoder]:
    path, class_name = encoder_file(name), name.rpartition(":")[2]
    if not path.is_file():
        raise UserError(f"{name}: {path} is not a file; give path/to/file.py:CLASS, where CLASS is {CONTRACT}")
    if not class_name:
        raise UserError(_missing_class_message(str(path)))
    module_name = f"qwenvl_user_encoder_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        module = importlib.util.module_from_spec(spec)
        # Dataclasses, and pickling to loader processes, look up the module of a class by its name.
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise UserError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, class_name):
        own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module_name]
        found = [value.__name__ for value in own if isinstance(value, type)]
        raise UserError(f"{path} has no class {class_name!r}; it has {', '.join(found) or 'none'}")
    return _require_encoder(getattr(module, class_name), name)


def _missing_class_message(file: str) -> str:
    """Return the error message for a file without a class: the classes in the file, found without running it."""
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        return f"{file}: {path} is not a file; give path/to/file.py:CLASS, where CLASS is {CONTRACT}"
    try:
        body = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError) as error:
        return f"{path} cannot be imported: {type(error).__name__}: {error}"
    classes = [node.name for node in body if isinstance(node, ast.ClassDef)]
    if not classes:
        return f"{file} has no class; an encoder is {CONTRACT}"
    return f"{file} names a file without its class; give {' or '.join(f'{file}:{each}' for each in classes)}"


def _check_options(cls: type[VisionEncoder], name: str, options: EncoderOptions) -> None:
    if options.layer > LAST_LAYER:
        raise UserError(f"layer {options.layer}: expected -1 (last), -2 (the one before) and so on")
    # Resizing is done by the preprocessing; the options of what is read from the encoder need support in its code.
    asked = [name for name in MERGER_OPTIONS if getattr(options, name) != getattr(EncoderOptions, name)]
    refused = [name for name in asked if name not in cls.supported_options]
    if refused:
        raise UserError(
            f"encoder {name} ({cls.__name__}) has no option {', '.join(refused)}; leave it out, or list it in "
            "`supported_options` if your own encoder supports it"
        )
    if options.resize not in (ENCODER_RESIZE, *RESIZE_POLICIES):
        raise UserError(f"resize policy {options.resize!r}: expected one of {', '.join(_resize_choices())}")


def _apply_options(encoder: VisionEncoder, options: EncoderOptions) -> Preprocessing:
    """Return the encoder's preprocessing with the options applied; raises `UserError` for what it cannot take."""
    published = encoder.preprocessing
    wanted = published
    if options.resize == NAFLEX and published.resize != NAFLEX:
        raise UserError(
            f"resize policy {NAFLEX!r}: {type(encoder).__name__} was not trained with it; expected one of "
            f"{', '.join(_resize_choices())}"
        )
    if options.resize == ENCODER_RESIZE and published.resize == UNKNOWN:
        raise UserError(
            f"{type(encoder).__name__}: the preprocessing published with the weights resizes images in a way that no "
            "resize policy does, such as a shorter side without a crop; choose --vision_resize squash, crop or pad"
        )
    if options.resize != ENCODER_RESIZE:
        wanted = replace(wanted, resize=options.resize, resize_edge=None)
    if options.input_size is not None:
        height, width = options.input_size
        wanted = replace(wanted, height=height, width=width, resize_edge=None)
        if wanted.keeps_aspect:
            # Only the area of the size applies, since an image that keeps its aspect has no fixed side.
            wanted = replace(wanted, min_pixels=None, max_pixels=height * width)
    other_size = (wanted.height, wanted.width) != (published.height, published.width)
    if not encoder.any_size and (other_size or wanted.keeps_aspect):
        asked = f"resize policy {wanted.resize}" if wanted.keeps_aspect else f"{wanted.height}x{wanted.width} pixels"
        raise UserError(
            f"{type(encoder).__name__} takes images of {published.height}x{published.width} pixels only, got {asked}"
        )
    return wanted


def _check_normalization(source: str, wanted: Preprocessing) -> None:
    """Raise `UserError` for a mean or std that cannot be of colors in 0..1, such as those of colors in 0..255."""
    mean, std = wanted.mean, wanted.std
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
        raise UserError(
            f"{source}: mean {mean} and std {std} cannot normalize an image; expected three numbers each for red, "
            "green and blue in 0..1, with every std above 0"
        )
    if max(mean) > 1 or max(std) > 1:
        named = " and ".join(
            f"{name}=({', '.join(f'{value / WHITE:.4g}' for value in values)})"
            for name, values in (("mean", mean), ("std", std))
            if max(values) > 1
        )
        raise UserError(
            f"{source}: mean {mean} and std {std} are not of colors in 0..1, which a Preprocessing takes; if they are "
            f"of 0..255, divide them by 255: {named}"
        )


def _resize_choices() -> list[str]:
    """Return the resize policies of every encoder."""
    return [ENCODER_RESIZE, *(policy for policy in RESIZE_POLICIES if policy != NAFLEX)]
