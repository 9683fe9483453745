import json
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import composed, logged, small_base
from helpers.commands import ROOT
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import lora_mnist.export
from lora_mnist import MLP, add_lora, load_adapter, lora_parameters, remove_lora, save_adapter
from lora_mnist.data import load_images
from lora_mnist.errors import UserError
from lora_mnist.export import export, logits
from lora_mnist.lora import WEIGHTS_NAME, fingerprint

NET = "net.hidden_sizes=[16]"


@pytest.fixture
def images() -> Tensor:
    images, _ = load_images("MNIST", ROOT / "data", train=False)
    return (images / 255 - 0.1307) / 0.3081


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and an adapter on it."""
    outputs = tmp_path_factory.mktemp("outputs")
    small_base(outputs)
    net = live(outputs)
    torch.manual_seed(0)
    for parameter in lora_parameters(add_lora(net)):
        torch.nn.init.normal_(parameter, std=0.05)
    save_adapter(net, adapter_of(outputs))
    return outputs


def adapter_of(outputs: Path) -> Path:
    return outputs / "lora" / "nine" / "adapter"


def live(outputs: Path, *adapters: Path) -> MLP:
    net = MLP(hidden_sizes=[16])
    base = outputs / "base" / "mnist.ckpt"
    net.load_state_dict(torch.load(base, weights_only=True)["state_dict"])
    for number, adapter in enumerate(adapters):
        load_adapter(net, adapter, name=str(number))
    return net


def run(outputs: Path, *overrides: str) -> dict[str, str]:
    cfg = composed("export", NET, f"paths.outputs={outputs}", *overrides)
    before = OmegaConf.to_yaml(cfg)
    try:
        return export(cfg)
    finally:
        assert OmegaConf.to_yaml(cfg) == before


def read_safetensors(path: Path) -> tuple[Any, dict[str, str]]:
    net = MLP(hidden_sizes=[16])
    net.load_state_dict(load_file(path))
    with safe_open(path, "pt") as file:
        return net, file.metadata()


def read_torch_export(path: Path) -> tuple[Any, dict[str, str]]:
    extra = {"metadata.json": ""}
    with path.open("rb") as file:
        program = torch.export.load(file, extra_files=extra)
    return program.module(), json.loads(extra["metadata.json"])


def read_onnx(path: Path) -> tuple[Any, dict[str, str]]:
    import onnx
    import onnxruntime

    onnx.checker.check_model(onnx.load(path))
    session = onnxruntime.InferenceSession(path)

    def answer(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return answer, session.get_modelmeta().custom_metadata_map


@pytest.mark.parametrize(
    ("form", "read"),
    [
        ("safetensors", read_safetensors),
        pytest.param("torch_export", read_torch_export, marks=pytest.mark.slow),
        pytest.param("onnx", read_onnx, marks=pytest.mark.slow),
    ],
)
def test_each_format(outputs: Path, tmp_path: Path, images: Tensor, form: str, read: Any) -> None:
    out = tmp_path / "new" / "nine"
    with logged("lora_mnist.export") as text:
        returned = run(outputs, "adapter=latest", f"format={form}", f"out={out}")
    said = "base + nine; same predictions as the live network on 10,000 test images"
    assert said in text.getvalue()
    answer, metadata = read(out)
    net = live(outputs, adapter_of(outputs))
    expected = logits(net, images)
    found = logits(answer, images)
    assert torch.equal(found.argmax(1), expected.argmax(1))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(logits(answer, images[:1]), expected[:1], rtol=1e-5, atol=1e-4)
    assert metadata.items() >= returned.items()
    assert metadata["base_sha256"] == fingerprint(live(outputs).state_dict())
    assert json.loads(metadata["adapter"]) == f"{outputs}/lora/nine"
    assert json.loads(metadata["net"])["hidden_sizes"] == [16]
    assert json.loads(metadata["classes"])[9].startswith("9")
    assert (metadata["dataset"], metadata["mean"], metadata["std"]) == ("mnist", "0.1307", "0.3081")
    assert out.stat().st_size < 200_000
    assert [path.name for path in out.parent.iterdir()] == ["nine"]


def test_the_command_leaves_one_file(cli: Any, outputs: Path, tmp_path: Path) -> None:
    options = (f"adapter={outputs}/lora/nine", f"base_ckpt={outputs}/base/mnist.ckpt")
    done = cli("export.py", NET, *options, f"out={tmp_path}/nine.safetensors")
    assert done.code == 0, done.err
    assert f"{tmp_path}/nine.safetensors: base + nine; same predictions" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["nine.safetensors"]
    assert not (ROOT / "export.log").exists()


def test_the_base_alone(outputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "base.safetensors"
    run(outputs, f"out={out}")
    net, metadata = read_safetensors(out)
    assert metadata["sha256"] == metadata["base_sha256"] == fingerprint(net.state_dict())
    assert metadata["adapter"] == "null"


def test_several_adapters(outputs: Path, tmp_path: Path, images: Tensor) -> None:
    out, adapter = tmp_path / "two.safetensors", adapter_of(outputs)
    run(outputs, f"adapter=[{adapter},{{path: {adapter}, name: again}}]", f"out={out}")
    expected = logits(live(outputs, adapter, adapter), images[:500])
    found = logits(read_safetensors(out)[0], images[:500])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_network_that_differs_is_not_written(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_mnist.export, "merge_lora", remove_lora)
    out = tmp_path / "nine.safetensors"
    out.write_text("before")
    with pytest.raises(RuntimeError, match="the written network differs from the live one"):
        run(outputs, "adapter=latest", f"out={out}")
    assert out.read_text() == "before"
    assert list(tmp_path.iterdir()) == [out]


def test_a_missing_extra_is_named(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r'format=onnx: .* pip install -e "\.\[onnx\]"$'):
        run(outputs, "format=onnx", f"out={tmp_path}/x")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "out=null: expected a file to write"),
        (("out={tmp}",), "out={tmp}: expected a file to write"),
        (("out=/dev/null/x",), "out=/dev/null/x: expected a file that can be written"),
        (("out={tmp}/x.onnx",), "out={tmp}/x.onnx: expected another ending, or format=onnx"),
        (("format=tf", "out=x"), "format=tf: expected one of safetensors, onnx, torch_export"),
        (("adapter={tmp}", "out={tmp}/x"), f"adapter={{tmp}}: expected a readable {WEIGHTS_NAME}"),
        (("base_ckpt={tmp}/none", "out={tmp}/x"), "base_ckpt={tmp}/none: no such file"),
        (("+seed=1", "out={tmp}/x"), "seed=1: nothing reads this key with stage=export"),
    ],
)
def test_refuses(outputs: Path, tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    overrides = tuple(override.replace("{tmp}", str(tmp_path)) for override in overrides)
    with pytest.raises(UserError) as caught:
        run(outputs, *overrides)
    assert str(caught.value).startswith(message.replace("{tmp}", str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_defines_nothing_that_it_does_not_use() -> None:
    keys = {"stage", "data", "net", "base_name", "base_ckpt", "adapter", "allow_other_base"}
    assert set(composed("export")) == {*keys, "paths", "format", "out"}
