"""What the files of bases and adapters say, as a classifier."""

import pytest
from composed import small_adapter, small_net
from helpers.commands import refused

from lora_mnist import MLP
from lora_mnist.classifier import Classifier
from lora_mnist.disk.base import versioned_base_path, write_base
from lora_mnist.lora.base_state import fingerprint
from lora_mnist.lora.weight import lora_adapters


@pytest.fixture
def adapter(outputs):
    """An adapter; its base is the current one, and has a file of its own."""
    state = small_net(outputs).state_dict()
    write_base(state, versioned_base_path(outputs / "base", "mnist", fingerprint(state)))
    return small_adapter(outputs, "lora/nine")


def test_an_adapter_finds_its_own_base(outputs, adapter):
    """Also after another has become the current one; what is asked for wins, where it fits."""
    bases, net = outputs / "base", {"hidden_sizes": [16]}
    own, other = fingerprint(small_net(outputs).state_dict()), MLP(hidden_sizes=[16]).state_dict()
    write_base(other, bases / "mnist.ckpt")
    for folder, sha256 in ((adapter, own), (adapter.parent, own), (None, fingerprint(other))):
        classifier = Classifier.load(folder, net=net, bases=bases)
        assert classifier.base.sha256 == sha256
        assert not any(module.training for module in classifier.net.modules())
        assert bool(lora_adapters(classifier.net)) == bool(folder)

    def load(base, **options):
        return Classifier.load(adapter, base, net=net, bases=bases, **options)

    said = refused(load, bases / "mnist.ckpt")
    assert "expected the same base, or allow_other_base=true" in said
    assert load(bases / "mnist.ckpt", allow_other_base=True).adapter == adapter
    for path in bases.glob("mnist-*"):
        path.unlink()
    said = refused(load, None)
    assert f"its base is not here; expected base_ckpt=FILE, the weights with SHA-256 {own}" in said
