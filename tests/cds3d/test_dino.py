"""Structure distance on a small random vision transformer, against the formula in numpy on keys worked out by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from judges import save_clip, save_dino
from transformers import ViTModel

from cds3d.metrics.dino import Dino
from tensorf.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_dino(tmp_path_factory.mktemp("judges") / "dino")


@pytest.fixture(scope="module")
def dino(folder):
    return Dino(str(folder), CPU)


def picture(height, width, seed=0):
    small = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(small, (height, width), mode="bilinear")[0].permute(1, 2, 0)


def keys_by_hand(folder, image, size, antialias=True):
    """The hidden states before the last layer, its norm, and its key projection, without a hook. (tokens, D)"""
    model = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    x = F.interpolate(image.permute(2, 0, 1)[None], size, mode="bilinear", antialias=antialias)
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        1, 3, 1, 1
    )
    with torch.no_grad():
        hidden = model(x, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-2]
        last = model.layers[-1]
        normed = last.layernorm_before(hidden)
        return F.linear(normed, last.attention.k_proj.weight, last.attention.k_proj.bias)[0].numpy()


def distance_in_numpy(a, b):
    def gram(keys):
        unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
        return unit @ unit.T

    return float(np.mean((gram(a) - gram(b)) ** 2))


# 224 pixels on the shorter side, 28 a patch: 8 patches; the longer side is cut to 480 pixels, 17 patches.
@pytest.mark.parametrize(
    "height, width, size, tokens",
    [(100, 100, (224, 224), 65), (90, 120, (224, 298), 81), (120, 90, (298, 224), 81), (50, 200, (120, 480), 69)],
)
def test_keys_of_the_last_layer_with_the_class_token(folder, dino, height, width, size, tokens):
    image = picture(height, width)
    keys = dino.keys(image)
    assert keys.shape == (tokens, 16)
    np.testing.assert_allclose(keys.numpy(), keys_by_hand(folder, image, size), rtol=1e-3, atol=1e-4)


def test_structure_distance_against_numpy(folder, dino):
    one, other = picture(96, 128, 1), picture(96, 128, 2)
    expected = distance_in_numpy(*(keys_by_hand(folder, x, (224, 298)) for x in (one, other)))
    without_class = distance_in_numpy(*(keys_by_hand(folder, x, (224, 298))[1:] for x in (one, other)))
    found = dino.structure_distance(one, other)
    assert found == pytest.approx(expected, rel=1e-3)
    assert found != pytest.approx(without_class, rel=1e-3)
    assert dino.structure_distance(one, one) == pytest.approx(0, abs=1e-10)
    assert dino.structure_distance(other, one) == pytest.approx(found, rel=1e-5)


def test_resizing_with_and_without_antialiasing(folder):
    image = torch.rand(600, 600, 3, generator=torch.Generator().manual_seed(0))
    smooth, plain = (Dino(str(folder), CPU, antialias=a).keys(image).numpy() for a in (True, False))
    np.testing.assert_allclose(plain, keys_by_hand(folder, image, (224, 224), antialias=False), rtol=1e-3, atol=1e-3)
    assert np.abs(smooth - plain).max() > 0.1


def test_pictures_of_two_sizes_are_refused(dino):
    with pytest.raises(ValueError, match="one size"):
        dino.structure_distance(picture(60, 60), picture(60, 61))


def test_nothing_stays_on_the_model(dino):
    dino.keys(picture(60, 60))
    assert not any(m._forward_hooks for m in dino._model.modules())


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(UserError, match="--dino ./nowhere: no such folder"):
        Dino("./nowhere", CPU)
    with pytest.raises(UserError, match="is not a ViTModel.*facebook/dino-vitb8"):
        Dino(str(save_clip(tmp_path / "clip")), CPU)


def test_pickles_are_not_run(tmp_path):
    folder = save_dino(tmp_path / "dino")
    (folder / "model.safetensors").unlink()

    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"cls_token": Harm()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        Dino(str(folder), CPU)
    assert not (tmp_path / "harm").exists()
