"""What a network is asked before it is used."""

import copy
import re

import pytest
import torch
from helpers.commands import refused
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.transforms import v2

from lora_mnist import CNN, add_lora, save_adapter
from lora_mnist.classifier.base import write_base
from lora_mnist.classifier.check import check_outputs, use_channels_last
from lora_mnist.errors import UserError
from lora_mnist.lora.base_state import changed_tensors


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.log_softmax(1), None),  # a constant more, which softmax takes away
        (lambda x: x.half().float(), None),
        (lambda x: x.softmax(1), "its outputs sum to 1, as after a softmax; expected logits"),
        (lambda x: x / 0, "gives NaN or infinity"),
        (lambda x: x.squeeze(), "an image's output depends on the rest of its batch"),
        (lambda x: x - x.mean(0), "an image's output depends on the rest of its batch"),
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


def test_a_librarys_own_line_says_which_images_its_network_takes():
    net = VisionTransformer(32, 8, 1, 2, 8, 8, num_classes=3).eval()
    said = refused(check_outputs, net, torch.zeros(4, 3, 40, 40), 3, "photos")
    assert "prepare.image_size" in said
    assert said.endswith("Expected 32 but got 40!")


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
        use_channels_last(net, images)
        assert net.conv2.weight.is_contiguous(memory_format=torch.channels_last) is is_last
        assert net.conv2.weight.is_contiguous() is not is_last
        assert changed_tensors(before, net.state_dict()) == []
        torch.testing.assert_close(net(images), expected)


def test_files_of_such_a_network_are_as_those_of_any_other(tmp_path):
    """And an adapter lies as its layer, and is drawn as on any other."""
    torch.manual_seed(0)
    net, plain = CNN(channels=[3, 5]), CNN(channels=[3, 5])
    plain.load_state_dict(net.state_dict())
    use_channels_last(net, torch.randn(4, 1, 28, 28))
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
