"""The preprocessing that a network itself names."""

import pytest
import torch
from torchvision.models import ResNet50_Weights
from torchvision.transforms import v2

from lora_mnist.classifier.preprocessing import find_preprocessing
from lora_mnist.data import Folder


def require_same(keys, transform):
    noise = torch.rand(3, 300, 260, generator=torch.Generator().manual_seed(0))
    picture = v2.functional.to_pil_image(noise)
    data = Folder(classes=["cat", "dog"], **keys)
    assert torch.equal(data.normalize(data.prepare(picture)[None])[0], transform(picture))


def test_a_network_names_its_own_preprocessing():
    net, settings = torch.nn.Identity(), {"_target_": "torchvision.models.resnet50"}
    keys = find_preprocessing(net, {**settings, "weights": "IMAGENET1K_V2"}, {})
    require_same(keys, ResNet50_Weights.IMAGENET1K_V2.transforms())
    for other in (settings, {"_target_": "lora_mnist.MLP"}):
        assert find_preprocessing(net, other, {}) == {}


def test_a_network_of_timm_names_its_own_preprocessing():
    timm = pytest.importorskip("timm", reason="the extra all is not installed")
    net = timm.create_model("vit_tiny_patch16_224", num_classes=2)
    settings = {"_target_": "timm.create_model"}
    keys = find_preprocessing(net, settings, {})
    small = find_preprocessing(net, {**settings, "img_size": 32}, {})
    assert small.pop("image_size") == [32, 32]  # timm itself still names the larger one
    assert "crop_pct" in keys  # which is that of the larger one
    assert small == {key: keys[key] for key in keys if key not in ("image_size", "crop_pct")}
    require_same(keys, timm.data.create_transform(**timm.data.resolve_model_data_config(net)))
    # The command line overrides the network's values, whose mean is of three channels. Whoever
    # types a size brings pictures to it in another way.
    gray = find_preprocessing(net, {**settings, "in_chans": 1}, {})
    assert (gray["image_size"], gray["channels"]) == ([224, 224], 1)
    assert find_preprocessing(net, settings, {"image_size": 64, "channels": 1}) == {"channels": 1}
    sized = find_preprocessing(net, settings, {"image_size": 64})
    assert sized.keys() == {"channels", "mean", "std"}
