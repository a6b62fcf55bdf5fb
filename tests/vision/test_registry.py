"""Names of encoders, and the errors for invalid ones."""

import pytest
import torch

from qwenvl.errors import UserError
from qwenvl.vision import EncoderOptions, Preprocessing, VisionEncoder, build_encoder, list_encoders, register_encoder
from qwenvl.vision.encoder import check_forward
from qwenvl.vision.encoders.dinov2 import Dinov2Encoder
from qwenvl.vision.registry import encoder_class, encoder_geometry, resolve_encoder
from tests.vision.small_encoders import SMALL_ENCODERS

OWN = """
import torch
from torch import nn
from qwenvl.vision import Preprocessing, VisionEncoder

class Own(VisionEncoder):
    def __init__(self, width=8):
        super().__init__()
        self.hidden_size, self.patch_size = width, 4
        self.preprocessing = Preprocessing(16, 8, "squash")
        self.patches = nn.Conv2d(3, width, 4, 4)

    def forward(self, pixel_values):
        return self.patches(pixel_values).flatten(2).transpose(1, 2)

class NoEncoder(nn.Module):
    pass

class NoWidth(VisionEncoder):
    pass

class NoPatch(VisionEncoder):
    def __init__(self):
        super().__init__()
        self.hidden_size, self.preprocessing = 8, Preprocessing()

class NeedsArgument(VisionEncoder):
    def __init__(self, width):
        super().__init__()

class WrongShape(Own):
    def forward(self, pixel_values):
        return self.patches(pixel_values)

class Fails(Own):
    def forward(self, pixel_values):
        return self.patches(pixel_values[:, :2])
"""


@pytest.fixture
def own_file(tmp_path):
    path = tmp_path / "own_encoder.py"
    path.write_text(OWN)
    return path


def test_required_encoders_are_registered():
    assert set(list_encoders()) >= {
        *("rad_dino", "rad_dino_maira2", "dinov2", "dinov3", "siglip", "siglip2", "medsiglip"),
        *("clip", "biomedclip", "aimv2", "c_radio"),
    }


def test_unknown_name_lists_the_known_and_the_nearest():
    with pytest.raises(UserError, match="'rad_din'; did you mean rad_dino.*Known: aimv2, .*siglip2; or hf:ORG/MODEL"):
        encoder_class("rad_din")


def test_near_name_is_found_whatever_its_case_and_dashes():
    with pytest.raises(UserError, match=r"'RAD-DINO'; did you mean rad_dino .*\? Known: aimv2,"):
        encoder_class("RAD-DINO")
    with pytest.raises(UserError, match="'zzzz'; known: aimv2,"):
        encoder_class("zzzz")


@pytest.mark.parametrize("name", ["hf:", "timm:", "other:thing"])
def test_form_without_argument_or_unknown_form_is_refused(name):
    with pytest.raises(UserError, match="there is no vision encoder"):
        encoder_class(name)


def test_duplicate_name_is_refused():
    with pytest.raises(UserError, match="'rad_dino' is already registered by RadDinoEncoder"):
        register_encoder("rad_dino")(Dinov2Encoder)


def test_class_that_is_no_encoder_is_refused_with_the_contract(own_file):
    with pytest.raises(UserError, match="'NoEncoder' is not an encoder; an encoder is a subclass of .*hidden_size"):
        resolve_encoder(f"{own_file}:NoEncoder")
    with pytest.raises(UserError, match="is not an encoder"):
        register_encoder("linear")(torch.nn.Linear)


def test_own_file_gives_an_encoder_that_is_rebuilt_from_its_spec(own_file):
    spec = resolve_encoder(f"{own_file}:Own", config={"width": 12})
    encoder = build_encoder(spec)
    assert encoder_geometry(encoder).grid(500, 3) == (4, 2)
    assert check_forward(encoder, 16, 8).shape == (1, 8, 12)
    assert build_encoder(spec).hidden_size == 12


def test_own_file_loads_weights_strictly(own_file, tmp_path):
    source = build_encoder(f"{own_file}:Own")
    torch.save(source.state_dict(), tmp_path / "own.pt")
    loaded = build_encoder(resolve_encoder(f"{own_file}:Own", path=str(tmp_path / "own.pt")))
    assert torch.equal(loaded.patches.weight, source.patches.weight)
    torch.save({"patches.weight": source.patches.weight}, tmp_path / "part.pt")
    with pytest.raises(UserError, match="part.pt: these weights do not match Own: .*patches.bias"):
        build_encoder(resolve_encoder(f"{own_file}:Own", path=str(tmp_path / "part.pt")))
    with pytest.raises(UserError, match="absent.pt: no such file"):
        build_encoder(resolve_encoder(f"{own_file}:Own", path=str(tmp_path / "absent.pt")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Absent", "has no class 'Absent'; it has .*Own"),
        ("NoWidth", "NoWidth has no `hidden_size` of type int"),
        ("NoPatch", "NoPatch has neither `patch_size` nor its own `token_grid`"),
        ("NeedsArgument", "NeedsArgument cannot be built from its defaults: .*width"),
    ],
)
def test_error_names_what_an_incomplete_encoder_lacks(own_file, name, message):
    with pytest.raises(UserError, match=message):
        resolve_encoder(f"{own_file}:{name}")


def test_wrong_shape_is_named_with_what_was_expected(own_file):
    encoder = build_encoder(f"{own_file}:WrongShape")
    with pytest.raises(UserError, match=r"\(1, 3, 16, 8\) returned \(1, 8, 4, 2\), expected \(1, 8, 8\).*4 x 2 tokens"):
        check_forward(encoder, 16, 8)
    with pytest.raises(UserError, match="Fails: forward of one image .* failed"):
        check_forward(build_encoder(f"{own_file}:Fails"), 16, 8)


def test_missing_file_and_broken_file_are_named(tmp_path):
    with pytest.raises(UserError, match="absent.py is not a file"):
        resolve_encoder(f"{tmp_path}/absent.py:Own")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(UserError, match="broken.py cannot be imported: ModuleNotFoundError"):
        resolve_encoder(f"{tmp_path}/broken.py:Own")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(UserError, match="leaves.py cannot be imported: SystemExit: 3"):
        resolve_encoder(f"{tmp_path}/leaves.py:Own")


def test_own_file_without_its_class_is_refused_with_its_classes_and_does_not_run(tmp_path, monkeypatch):
    path = tmp_path / "own_encoder.py"
    path.write_text(f"{OWN}\nraise RuntimeError('it ran')\n")
    monkeypatch.chdir(tmp_path)
    for name in ("own_encoder.py", str(path), f"{path}:"):
        with pytest.raises(UserError, match=r"encoder.py names a file without its class; give .*own_encoder.py:Own"):
            resolve_encoder(name)
    with pytest.raises(UserError, match="absent.py: .*absent.py is not a file; give path/to/file.py:CLASS"):
        resolve_encoder("absent.py")


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        ("rad_dino", {"input_size": (30, 28)}, "30x28 is not a multiple of the patch of 7 pixels; .*28x28"),
        ("rad_dino", {"layer": 0}, "layer 0: expected -1"),
        ("rad_dino", {"layer": -4}, "layer -4 of 3; expected -1 .last. to -3"),
        ("timm:resnet18", {"layer": -9}, "layer -9 of 5"),
        ("rad_dino", {"resize": "stretch"}, "'stretch': expected one of encoder, crop, pad"),
        (
            "rad_dino",
            {"resize": "naflex"},
            "not trained with it; expected one of encoder, crop, pad, squash, native$",
        ),
        ("siglip2", {"resize": "naflex"}, "Siglip2Encoder was not trained with it"),
        ("aimv2", {"input_size": (64, 64)}, "takes images of 32x32 pixels only, got 64x64"),
        ("aimv2", {"resize": "native"}, "takes images of 32x32 pixels only, got resize policy native"),
        ("c_radio", {"final_norm": True}, "CRadioEncoder has no final norm"),
        ("hf:vit", {"final_norm": True}, "has no option final_norm"),
        ("dinov3#convnext", {"layer": -2}, "last stage only"),
    ],
)
def test_option_that_does_not_fit_is_refused(case, options, message):
    with pytest.raises(UserError, match=message):
        resolve_encoder(case.partition("#")[0], config=SMALL_ENCODERS[case], options=EncoderOptions(**options))


def test_naflex_may_be_asked_of_an_encoder_trained_with_it():
    spec = resolve_encoder("siglip2", config=SMALL_ENCODERS["siglip2#naflex"], options=EncoderOptions(resize="naflex"))
    assert spec.preprocessing == resolve_encoder("siglip2", config=SMALL_ENCODERS["siglip2#naflex"]).preprocessing


def test_own_encoder_without_the_option_is_named(own_file):
    with pytest.raises(UserError, match="has no option layer, keep_prefix_tokens"):
        resolve_encoder(f"{own_file}:Own", options=EncoderOptions(layer=-2, keep_prefix_tokens=True))


@pytest.mark.parametrize("case", ["rad_dino", "dinov3", "siglip", "clip", "c_radio", "aimv2#native"])
def test_other_input_size_interpolates_positions(case):
    size = (56, 24) if SMALL_ENCODERS[case]["patch_size"] == 8 else (56, 21)
    spec = resolve_encoder(case.partition("#")[0], config=SMALL_ENCODERS[case], options=EncoderOptions(input_size=size))
    encoder = build_encoder(spec)
    patch = encoder.patch_size
    assert (encoder.preprocessing.height, encoder.preprocessing.width) == size
    assert check_forward(encoder, *size).shape[1] == (size[0] // patch) * (size[1] // patch)


def test_aspect_cannot_be_kept_by_an_encoder_of_irregular_tokens():
    class Pooled(VisionEncoder):
        any_size = True

        def __init__(self):
            super().__init__()
            self.hidden_size, self.patch_size = 3, 8
            self.preprocessing = Preprocessing(resize="native")

        def token_grid(self, height, width):
            return 1, 1

    with pytest.raises(UserError, match="cannot keep an image's aspect"):
        encoder_geometry(Pooled())


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ("(123.675, 116.28, 103.53), std=(58.4, 57.1, 57.4)", r"divide them by 255: mean=\(0.485, 0.456, 0.406\)"),
        ("(0.5,) * 3, std=(127.5,) * 3", r"divide them by 255: std=\(0.5, 0.5, 0.5\)"),
        ("(0.5,) * 3, std=(0.0, 0.5, 0.5)", "with every std above 0"),
        ("(float('nan'),) * 3, std=(0.5,) * 3", "cannot normalize an image"),
        ("('0.5',) * 3, std=(0.5,) * 3", "cannot normalize an image"),
    ],
)
def test_a_mean_or_std_that_is_not_of_colors_in_0_to_1_is_refused(tmp_path, numbers, message):
    path = tmp_path / "own_encoder.py"
    path.write_text(OWN.replace('Preprocessing(16, 8, "squash")', f'Preprocessing(16, 8, "squash", mean={numbers})'))
    with pytest.raises(UserError, match=f"^Own: mean .*{message}"):
        resolve_encoder(f"{path}:Own")
