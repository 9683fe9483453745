"""Networks and transforms from their arguments."""

import random
import sys

import pytest
from helpers.commands import refused
from torchvision.transforms import v2

from lora_mnist.classifier.build import build, build_network
from lora_mnist.project import import_from_here


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
    with import_from_here():
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
    with pytest.raises(ZeroDivisionError), import_from_here():
        _ = 1 / 0
    assert sys.path == path


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"_target_": "builtins.dict"}, "returned a dict"),
        ({"_target_": "nowhere.Net"}, "ModuleNotFoundError: No module named 'nowhere'"),
        ({"_target_": "lora_mnist.MLP", "depth": 3}, "TypeError: MLP.__init__() got an unexpected"),
    ],
)
def test_build_network_refuses_what_is_no_network_by_name(settings, reason):
    said = refused(build_network, settings)
    assert said.startswith(f"net._target_={settings['_target_']}: {reason}")


def test_a_missing_timm_is_answered_with_its_extra(monkeypatch):
    monkeypatch.setattr("lora_mnist.errors.find_spec", lambda _: None)
    said = refused(build_network, {"_target_": "timm.create_model", "model_name": "resnet18"})
    assert said.endswith('pip install -e ".[timm]"')
    assert refused(build, {"transform": {"_target_": "timm.data.create_transform"}})


def test_an_error_in_code_of_ones_own_is_no_refusal():
    """It passes, with its own traceback; the key is a note."""
    with pytest.raises(TypeError) as caught:
        build_network({"_target_": "helpers.nets.Counting", "nope": 1})
    assert caught.traceback[-1].path.name == "nets.py"
    (note,) = caught.value.__notes__
    assert note.startswith("net._target_=helpers.nets.Counting: ")
