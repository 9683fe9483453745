import json
from pathlib import Path

import pytest
import torch
from composed import FEW, SMALL, composed, logged, small_net
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import lora_mnist.commands.export
from lora_mnist import MLP, remove_lora
from lora_mnist.commands.export import export
from lora_mnist.data import MNIST
from lora_mnist.errors import IncompleteError, UserError
from lora_mnist.lora.base_state import hash_tensors


def tied():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10), *[nn.Linear(10, 10)] * 2)


def run(outputs, *overrides):
    return export(composed("export", SMALL[0], *FEW, f"paths.outputs={outputs}", *overrides))


def read_safetensors(path):
    net = MLP(hidden_sizes=[16])
    net.load_state_dict(load_file(path))
    with safe_open(path, framework="pt") as file:
        return lambda images: net((images / 255 - 0.1307) / 0.3081), file.metadata()


def read_onnx(path):
    """Another program's way: it gives pixels to the file, which normalizes them itself."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(onnx.load(path))
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].type == "tensor(uint8)"

    def predict(images):
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return predict, session.get_modelmeta().custom_metadata_map


@pytest.mark.parametrize(
    ("ending", "read", "takes"),
    [
        ("safetensors", read_safetensors, "float32 (batch, 1, 28, 28): (pixel / 255 - mean) / std"),
        pytest.param("onnx", read_onnx, "uint8 (batch, 1, 28, 28): pixels", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_export_writes_each_format(with_nine, tmp_path, ending, read, takes):
    if ending == "onnx":
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package, reason="the extra onnx is not installed")
    out, data_dir = tmp_path / "new" / f"nine.{ending}", FEW[0].partition("=")[2]
    images = MNIST("MNIST", Path(data_dir)).load(train=False)[0]
    with logged("lora_mnist.commands.export") as text:
        returned = run(with_nine, "adapter=latest", f"out={out}")
    line = "base and adapter at scale 1, offset 0; same predictions as the live network on 500 "
    assert line in text.getvalue()
    network, metadata = read(out)
    net = small_net(with_nine, with_nine / "lora" / "nine" / "adapter")
    expected = net((images / 255 - 0.1307) / 0.3081)
    torch.testing.assert_close(network(images), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(network(images[:1]), expected[:1], rtol=1e-5, atol=1e-4)
    assert metadata.items() >= returned.items()
    assert metadata["base_sha256"] == hash_tensors(small_net(with_nine).state_dict())
    assert json.loads(metadata["adapter"]) == "lora/nine/adapter"
    assert json.loads(metadata["net"])["hidden_sizes"] == [16]
    assert json.loads(metadata["classes"])[9].startswith("9")
    assert (metadata["mean"], metadata["std"], metadata["input"]) == ("0.1307", "0.3081", takes)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_base_alone_with_tied_weights(tmp_path):
    """A network of one's own."""
    net, out, weights = tied(), tmp_path / "tied.safetensors", tmp_path / "mine.pt"
    torch.save(net.state_dict(), weights)
    own = ("net=custom", f"net._target_={__name__}.tied", f"base_ckpt={weights}")
    metadata = export(composed("export", *FEW, *own, f"out={out}"))
    fresh = tied()
    fresh.load_state_dict(load_file(out))
    for state in (fresh.state_dict(), net.state_dict()):
        assert hash_tensors(state) == metadata["sha256"] == metadata["base_sha256"]


def test_export_writes_no_network_that_differs(with_nine, tmp_path, monkeypatch):
    monkeypatch.setattr(lora_mnist.commands.export, "merge_lora", remove_lora)
    out = tmp_path / "made" / "by" / "nine.safetensors"
    for overrides, error in (
        (("adapter=latest",), IncompleteError),
        (("base_ckpt=no.pt",), UserError),
    ):
        with pytest.raises(error, match="not written|no such file"):
            run(with_nine, *overrides, f"out={out}")
        assert not list(tmp_path.iterdir())
