"""Networks from their settings, and the preprocessing that a network itself names."""

import copy
import random
import re
import sys

import pytest
import torch
from helpers.commands import refused
from torch import nn
from torchvision.models import ResNet50_Weights
from torchvision.transforms import v2

from lora_mnist import CNN, MLP, ResNet, add_lora, save_adapter
from lora_mnist.classifier.base import write_base
from lora_mnist.classifier.networks import (
    build,
    build_network,
    check_outputs,
    device_of,
    lay_out,
    outputs_key,
    own_preprocessing,
)
from lora_mnist.data import Folder
from lora_mnist.errors import UserError
from lora_mnist.lora.base_state import changed_tensors
from lora_mnist.project import importable


def test_networks_have_the_documented_sizes():
    """The MLP is the notebook's."""
    assert MLP().linear2.weight.shape == (2000, 1000)
    for net, count in ((MLP(), 2_807_010), (CNN(), 20_490)):
        assert sum(parameter.numel() for parameter in net.parameters()) == count
        assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_resnet_is_the_papers():
    """Its table 6 names 0.27 and 0.46 million weights; doubled channels halve the image."""
    for depth, count in ((20, 269_722), (32, 464_154)):
        net = ResNet(depth).eval()
        assert sum(parameter.numel() for parameter in net.parameters()) == count
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    images = torch.rand(2, 16, 8, 8)
    block = ResNet(8).eval().block2
    nn.init.zeros_(block.bn2.weight)
    assert torch.equal(block(images)[:, :16], images[:, :, ::2, ::2])
    assert not block(images)[:, 16:].any()
    assert refused(build_network, {"_target_": "lora_mnist.ResNet", "depth": 21}).endswith(
        "depth=21: expected 6 n + 2, such as 20, 32 or 56"
    )


def test_the_number_of_outputs_has_a_key_where_the_network_takes_one():
    for target in ("lora_mnist.MLP", "torchvision.models.resnet18"):
        assert outputs_key({"_target_": target}) == "net.num_classes"
    assert outputs_key({"_target_": "helpers.nets.TinyNet"}) is None


def test_build_calls_each_target_with_the_values_beside_it():
    """Inner ones first; lists and plain values are left as they are."""
    settings = {
        "_target_": "torchvision.transforms.v2.Compose",
        "_convert_": "all",
        "transforms": [
            {"_target_": "torchvision.transforms.v2.Resize", "size": [4, 5]},
            {"_target_": "torchvision.transforms.v2.PILToTensor"},
        ],
    }
    resize, to_tensor = build(settings).transforms
    assert (type(resize), resize.size, type(to_tensor)) == (v2.Resize, [4, 5], v2.PILToTensor)
    assert settings["_convert_"] == "all"  # nothing is taken out of it
    later = build({"_target_": "random.Random", "_partial_": True, "x": 3})
    assert later().random() == random.Random(3).random()
    assert build({"a": [1, {"b": None}], "c": "text"}) == {"a": [1, {"b": None}], "c": "text"}


OWN_CODE = """
from torch import nn
from torchvision.transforms import v2
def small(width): return nn.Linear(width, 2)
def function(picture, times=2): return picture * times
def maker(times=2): return lambda picture: function(picture, times)
module = v2.Compose([v2.Lambda(function)])
class Class:
    def __init__(self, times=2): self.times = times
    def __call__(self, picture): return function(picture, self.times)
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """A module in the folder where the user stands; its name."""
    monkeypatch.delitem(sys.modules, "code_in_a_folder", raising=False)
    (tmp_path / "code_in_a_folder.py").write_text(OWN_CODE)
    monkeypatch.chdir(tmp_path)
    return "code_in_a_folder"


def test_a_transform_is_a_function_of_a_picture_or_makes_one(own_code):
    """Functions, objects, classes and functions that make one, with their other arguments."""
    with importable():
        for name in ("function", "maker", "Class"):
            settings = {"_target_": f"{own_code}.{name}"}
            assert build({"transform": settings})["transform"](3) == 6
            assert build({"transform": {**settings, "times": 5}})["transform"](3) == 15
        settings = {"_target_": f"{own_code}.module"}
        assert build({"transform": settings})["transform"](3) == 6
        inner = {"_target_": f"{own_code}.function", "times": 5}
        both = {"_target_": "torchvision.transforms.v2.Compose", "transforms": [inner, inner]}
        assert build({"transform": both})["transform"](3) == 75
        with pytest.raises(TypeError):
            build(inner)  # elsewhere it is called


def test_a_network_is_made_in_eval_mode_of_code_in_a_folder(own_code):
    path = [*sys.path]
    net = build_network({"_target_": f"{own_code}.small", "width": 3})
    assert (net.in_features, net.training) == (3, False)
    assert sys.path == path
    with pytest.raises(ZeroDivisionError), importable():
        _ = 1 / 0
    assert sys.path == path


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"_target_": "builtins.dict"}, "gives a dict"),
        ({"_target_": "nowhere.Net"}, "ModuleNotFoundError: No module named 'nowhere'"),
        ({"_target_": "lora_mnist.MLP", "depth": 3}, "TypeError: MLP.__init__() got an unexpected"),
    ],
)
def test_build_network_refuses_what_is_no_network_by_name(settings, reason):
    said = refused(build_network, settings)
    assert said.startswith(f"net._target_={settings['_target_']}: {reason}")


def test_an_error_in_code_of_ones_own_is_no_refusal():
    """It passes, with its own traceback; the key is a note."""
    with pytest.raises(TypeError) as caught:
        build_network({"_target_": "helpers.nets.Counting", "nope": 1})
    assert caught.traceback[-1].path.name == "nets.py"
    (note,) = caught.value.__notes__
    assert note.startswith("net._target_=helpers.nets.Counting: ")


def require_same(keys, transform):
    noise = torch.rand(3, 300, 260, generator=torch.Generator().manual_seed(0))
    picture = v2.functional.to_pil_image(noise)
    data = Folder(classes=["cat", "dog"], **keys)
    assert torch.equal(data.normalise(data.prepare(picture)[None])[0], transform(picture))


def test_a_network_names_its_own_preprocessing():
    net, settings = torch.nn.Identity(), {"_target_": "torchvision.models.resnet50"}
    keys = own_preprocessing(net, {**settings, "weights": "IMAGENET1K_V2"}, {})
    require_same(keys, ResNet50_Weights.IMAGENET1K_V2.transforms())
    for other in (settings, {"_target_": "lora_mnist.MLP"}):
        assert own_preprocessing(net, other, {}) == {}


def test_a_network_that_timm_has_not_names_those_that_are_called_so():
    pytest.importorskip("timm", reason="the extra all is not installed")
    wrong = {"_target_": "timm.create_model", "model_name": "regnetx_02"}
    assert "regnetx_002" in refused(build_network, wrong)


def test_a_network_of_timm_names_its_own_preprocessing():
    timm = pytest.importorskip("timm", reason="the extra all is not installed")
    net = timm.create_model("vit_tiny_patch16_224", num_classes=2)
    settings = {"_target_": "timm.create_model"}
    keys = own_preprocessing(net, settings, {})
    small = own_preprocessing(net, {**settings, "img_size": 32}, {})
    assert small.pop("image_size") == [32, 32]  # timm itself still names the larger one
    assert "crop_pct" in keys  # which is that of the larger one
    assert small == {key: keys[key] for key in keys if key not in ("image_size", "crop_pct")}
    require_same(keys, timm.data.create_transform(**timm.data.resolve_model_data_config(net)))
    # Values that are typed go before the network's own, whose mean is of three channels. Whoever
    # types a size brings pictures to it in another way.
    grey = own_preprocessing(net, {**settings, "in_chans": 1}, {})
    assert (grey["image_size"], grey["channels"]) == ([224, 224], 1)
    assert own_preprocessing(net, settings, {"image_size": 64, "channels": 1}) == {"channels": 1}
    sized = own_preprocessing(net, settings, {"image_size": 64})
    assert sized.keys() == {"channels", "mean", "std"}


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.log_softmax(1), None),  # a constant more, which softmax takes away
        (lambda x: x.half().float(), None),
        (lambda x: x.softmax(1), "its outputs sum to 1, as after a softmax; expected logits"),
        (lambda x: x / 0, "gives NaN or infinity"),
        (lambda x: x.squeeze(), "gives an image another output when it is asked alone"),
        (lambda x: x - x.mean(0), "gives an image another output"),
        (lambda x: x[:, :2], "gives (4, 2) for images of shape (4, 1, 2, 2)"),
    ],
)
def test_check_outputs_refuses_what_are_no_logits(function, reason):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), v2.Lambda(function)).eval()
    images = torch.randn(4, 1, 2, 2)
    if reason is None:
        check_outputs(net, images, 3, "photos")
    else:
        with pytest.raises(UserError, match=f"^net: {re.escape(reason)}"):
            check_outputs(net, images, 3, "photos")


class Viewed(CNN):
    """It takes the pixels of an image to lie beside each other."""

    def forward(self, x):
        return self.linear1(self.pool2(self.relu2(self.conv2(self.conv1(x)))).view(len(x), -1))


def test_convolutions_are_laid_out_as_they_compute_fastest():
    images = torch.randn(4, 1, 28, 28)
    for make, is_last in ((CNN, True), (Viewed, False)):
        torch.manual_seed(0)
        net = make(channels=[3, 5], image_size=28 if is_last else 56)
        with torch.no_grad():
            expected, before = net(images), copy.deepcopy(net.state_dict())
        lay_out(net, images)
        assert net.conv2.weight.is_contiguous(memory_format=torch.channels_last) is is_last
        assert net.conv2.weight.is_contiguous() is not is_last
        assert changed_tensors(before, net.state_dict()) == []
        torch.testing.assert_close(net(images), expected)


def test_files_of_such_a_network_are_as_those_of_any_other(tmp_path):
    """And an adapter lies as its layer, and is drawn as on any other."""
    torch.manual_seed(0)
    net, plain = CNN(channels=[3, 5]), CNN(channels=[3, 5])
    plain.load_state_dict(net.state_dict())
    lay_out(net, torch.randn(4, 1, 28, 28))
    files = []
    for each, name in ((net, "last"), (plain, "plain")):
        write_base(each.state_dict(), tmp_path / f"{name}.ckpt")
        torch.manual_seed(1)
        save_adapter(add_lora(each, rank=2), tmp_path / name)
        weights = tmp_path / name / "adapter_model.safetensors"
        files.append([path.read_bytes() for path in (tmp_path / f"{name}.ckpt", weights)])
    assert files[0] == files[1]
    lora_A = net.conv2.parametrizations.weight[0].lora_A
    assert lora_A.is_contiguous(memory_format=torch.channels_last)
    assert not lora_A.is_contiguous()


@pytest.mark.parametrize(
    ("own", "devices"),
    [
        (None, {"auto": "cpu", "cpu": "cpu", "gpu": "no GPU", "mps": "no GPU"}),
        ("cuda", {"auto": "cuda", "cpu": "cpu", "gpu": "cuda", "mps": "a cuda device"}),
        ("mps", {"auto": "mps", "cpu": "cpu", "gpu": "mps", "mps": "mps"}),
    ],
)
def test_a_device_goes_by_lightnings_word(own, devices, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: own is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(own))
    for word, expected in devices.items():
        if " " in expected:
            line = refused(device_of, word)
            assert line.startswith(f"accelerator={word}: ")
            assert line.endswith(f"this machine has {expected}")
        else:
            assert device_of(word).type == expected
