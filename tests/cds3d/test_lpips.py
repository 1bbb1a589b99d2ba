"""LPIPS with random trunks, against torchmetrics' own code on a trunk that is put together here."""

import re

import pytest
import torch
from judges import _SHAPES, save_trunk
from torch import nn

from cds3d.metrics.lpips import Lpips
from tensorf.errors import UserError

CPU = torch.device("cpu")
NETS = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}


@pytest.fixture(scope="module")
def trunks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trunks")
    return {net: save_trunk(folder / f"{net}{'.safetensors' if net == 'vgg' else '.pth'}", net) for net in NETS}


class Fire(nn.Module):
    def __init__(self, name, get):
        super().__init__()
        self.parts = [
            (get(f"{name}.{p}.weight"), get(f"{name}.{p}.bias")) for p in ("squeeze", "expand1x1", "expand3x3")
        ]

    def forward(self, x):
        squeeze, one, three = self.parts
        x = torch.relu(torch.conv2d(x, *squeeze))
        return torch.relu(torch.cat([torch.conv2d(x, *one), torch.conv2d(x, *three, padding=1)], 1))


def torchvision_features(net, path):
    """nn.Sequential with torchvision's numbering: what is not in the file is a ReLU after a convolution, or a pool."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        weights = load_file(path)
    else:
        weights = torch.load(path, weights_only=True)
    how = {"vgg": {}, "alex": {"0": (4, 2), "3": (1, 2)}, "squeeze": {"0": (2, 0)}}[net]  # stride, padding
    layers = []
    for number in range({"vgg": 31, "alex": 13, "squeeze": 13}[net]):
        name = str(number)
        if name in _SHAPES[net]:
            out, into, size, _ = _SHAPES[net][name]
            stride, padding = how.get(name, (1, 1))
            layer = nn.Conv2d(into, out, size, stride, padding)
            layer.load_state_dict({k: weights[f"features.{name}.{k}"] for k in ("weight", "bias")})
        elif f"{name}.squeeze" in _SHAPES[net]:
            layer = Fire(f"features.{name}", weights.__getitem__)
        elif str(number - 1) in _SHAPES[net]:
            layer = nn.ReLU()
        else:
            layer = nn.MaxPool2d(2) if net == "vgg" else nn.MaxPool2d(3, 2, ceil_mode=net == "squeeze")
        layers.append(layer)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("net", NETS)
def test_distance_is_torchmetrics(net, trunks, monkeypatch):
    from torchmetrics.functional.image import lpips as theirs

    features = torchvision_features(net, trunks[net])
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda name, pretrained: features)
    reference = theirs._LPIPS(pretrained=True, net=net, pnet_rand=False)
    torch.manual_seed(0)
    one, other = torch.rand(2, 67, 50, 3)
    other[:30] = one[:30]
    with torch.no_grad():
        expected = reference(*(x.permute(2, 0, 1)[None] for x in (one, other)), normalize=True).item()
    judge = Lpips(trunks[net], CPU)
    assert judge.net == net
    assert judge.distance(one, other) == pytest.approx(expected, rel=1e-4)
    assert judge.distance(other, one) == pytest.approx(expected, rel=1e-4)
    assert judge.distance(one, one) == 0


def test_the_map_is_of_the_place(trunks):
    judge = Lpips(trunks["vgg"], CPU)
    torch.manual_seed(0)
    one = torch.rand(64, 48, 3)
    other = one.clone()
    other[:8] = torch.rand(8, 48, 3)
    where = judge.distance_map(one, other)
    assert where.shape == (64, 48)
    assert where[:8].mean() > 5 * where[56:].mean()
    # Bilinear resizing keeps means where layers are cut evenly, but for its border.
    assert where.mean().item() == pytest.approx(judge.distance(one, other), rel=0.1)


def test_pictures_that_do_not_fit(trunks):
    judge = Lpips(trunks["alex"], CPU)
    with pytest.raises(ValueError, match="one size"):
        judge.distance(torch.zeros(40, 40, 3), torch.zeros(40, 41, 3))
    with pytest.raises(UserError, match="at least 32x32"):
        judge.distance(torch.zeros(40, 31, 3), torch.zeros(40, 31, 3))
    assert judge.distance(torch.zeros(32, 32, 3), torch.ones(32, 32, 3)) > 0


def test_files_that_are_no_trunk(tmp_path, trunks):
    def refused(path, text):
        with pytest.raises(UserError, match=re.escape(str(path))) as error:
            Lpips(path, CPU)
        assert text in str(error.value) and "vgg16" in str(error.value) and "\n" not in str(error.value)

    refused(tmp_path / "none.pth", "no such file")
    (tmp_path / "torn.pth").write_bytes(b"torn")
    refused(tmp_path / "torn.pth", "cannot be read")
    torch.save({"features.0.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.pth")
    refused(tmp_path / "resnet.pth", "neither")
    deeper = torch.load(trunks["alex"], weights_only=True)
    deeper["features.12.weight"] = torch.zeros(3)
    torch.save(deeper, tmp_path / "deeper.pth")
    refused(tmp_path / "deeper.pth", "no alex")


def test_pickles_are_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"features.0.weight": Harm()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="cannot be read"):
        Lpips(tmp_path / "bad.pth", CPU)
    assert not (tmp_path / "harm").exists()
