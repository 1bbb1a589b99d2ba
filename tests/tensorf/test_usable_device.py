"""Devices that PyTorch knows and that are of no use here. torch is told what to say of GPUs."""

import pytest
import torch

from tensorf.devices import usable_device
from tensorf.errors import UserError


@pytest.fixture()
def gpu(monkeypatch):
    """A function that makes torch say: there is a GPU of this capability, and PyTorch was built for these."""

    def pretend(capability, built):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GTX 1080")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)

    return pretend


@pytest.mark.parametrize(
    ("capability", "built"),
    [
        ((8, 6), ["sm_75", "sm_80", "sm_90"]),
        ((9, 0), ["sm_90a"]),
        ((12, 1), ["sm_75", "sm_120"]),
        ((12, 0), ["sm_75", "compute_90"]),
        ((9, 0), ["gfx90a", "gfx942"]),
        ((6, 1), []),
    ],
)
def test_a_gpu_that_pytorch_was_built_for(gpu, capability, built):
    gpu(capability, built)
    assert usable_device("auto") == usable_device("cuda") == torch.device("cuda")
    assert usable_device(torch.device("cuda:1")) == torch.device("cuda:1")


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
@pytest.mark.parametrize(
    ("capability", "built", "other"),
    [
        ((6, 1), ["sm_75", "compute_90"], "PyTorch for an older CUDA"),
        ((7, 0), ["sm_75", "sm_80"], "PyTorch for an older CUDA"),
        ((12, 0), ["sm_50", "sm_90a"], "a newer PyTorch"),
    ],
)
def test_a_gpu_that_pytorch_was_not_built_for_is_told_before_anything_runs(gpu, name, capability, built, other):
    gpu(capability, built)
    told = f"^device={name} cannot be used .*GTX 1080, sm_.*: try device=cpu, or install {other}$"
    with pytest.raises(UserError, match=told) as error:
        usable_device(name)
    assert "\n" not in str(error.value)
    assert usable_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["mps", "xpu", "meta"])
def test_other_kinds_of_devices_are_refused(name):
    for device in (name, torch.device(name)):
        with pytest.raises(UserError, match=f"^device={name} cannot be used .*: try device=cpu$"):
            usable_device(device)
