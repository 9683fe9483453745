import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import lora_mnist.export
from lora_mnist import MLP, load_adapter
from lora_mnist.adapter import fingerprint
from lora_mnist.data import load_images
from lora_mnist.export import logits


@pytest.fixture
def images() -> Tensor:
    images, _ = load_images("MNIST", ROOT / "data", train=False)
    return (images / 255 - 0.1307) / 0.3081


def live(base_ckpt: Path, *adapters: Path) -> MLP:
    net = MLP()
    state = torch.load(base_ckpt, weights_only=True)["state_dict"]
    net.load_state_dict({key.removeprefix("net."): tensor for key, tensor in state.items()})
    for number, adapter in enumerate(adapters):
        load_adapter(net, adapter, name=str(number))
    return net


def run_safetensors(path: Path) -> tuple[Any, dict[str, str]]:
    net = MLP()
    net.load_state_dict(load_file(path))
    with safe_open(path, "pt") as file:
        return net, file.metadata()


def run_torch_export(path: Path) -> tuple[Any, dict[str, str]]:
    extra = {"metadata.json": ""}
    with path.open("rb") as file:
        program = torch.export.load(file, extra_files=extra)
    return program.module(), json.loads(extra["metadata.json"])


def run_onnx(path: Path) -> tuple[Any, dict[str, str]]:
    onnx.checker.check_model(onnx.load(path))
    session = onnxruntime.InferenceSession(path)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return run, session.get_modelmeta().custom_metadata_map


@pytest.mark.parametrize("read", [run_safetensors, run_torch_export, run_onnx])
def test_each_format(
    cli: Any, base_ckpt: Path, lora_run: Path, tmp_path: Path, images: Tensor, read: Any
) -> None:
    out, adapter = tmp_path / "new" / "nine", lora_run / "adapter"
    form = read.__name__.removeprefix("run_")
    base = f"base_ckpt={base_ckpt}"
    done = cli("scripts/export.py", f"adapter={adapter}", base, f"format={form}", f"out={out}")
    assert done.code == 0, done.err
    assert "base + lora; same predictions as the live network on 10,000 test images" in done.err
    run, metadata = read(out)
    net = live(base_ckpt, adapter)
    expected = logits(net, images)
    found = logits(run, images)
    assert torch.equal(found.argmax(1), expected.argmax(1))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(logits(run, images[:1]), expected[:1], rtol=1e-5, atol=1e-4)
    assert metadata["base_sha256"] == fingerprint(live(base_ckpt).state_dict())
    assert json.loads(metadata["adapter"]) == str(adapter)
    assert json.loads(metadata["net"])["hidden_sizes"] == [1000, 2000]
    assert (metadata["dataset"], metadata["mean"], metadata["std"]) == ("mnist", "0.1307", "0.3081")
    assert out.stat().st_size < 12e6
    assert [path.name for path in out.parent.iterdir()] == ["nine"]
    assert not (ROOT / "export.log").exists()


def test_the_base_alone(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    out = tmp_path / "base.safetensors"
    done = cli("scripts/export.py", f"base_ckpt={base_ckpt}", f"out={out}")
    assert done.code == 0, done.err
    net, metadata = run_safetensors(out)
    assert metadata["sha256"] == metadata["base_sha256"] == fingerprint(net.state_dict())
    assert metadata["adapter"] == "null"


def test_several_adapters(
    cli: Any, base_ckpt: Path, lora_run: Path, tmp_path: Path, images: Tensor
) -> None:
    out, adapter = tmp_path / "two.safetensors", lora_run / "adapter"
    both = f"adapter=[{adapter},{{path: {adapter}, name: again}}]"
    done = cli("scripts/export.py", both, f"base_ckpt={base_ckpt}", f"out={out}")
    assert done.code == 0, done.err
    expected = logits(live(base_ckpt, adapter, adapter), images[:500])
    torch.testing.assert_close(
        logits(run_safetensors(out)[0], images[:500]), expected, rtol=1e-4, atol=1e-4
    )


def test_a_network_that_differs_is_not_written(
    cli: Any, base_ckpt: Path, lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_mnist.export, "merge_lora", lora_mnist.remove_lora)
    out = tmp_path / "out" / "nine.safetensors"
    adapter = f"adapter={lora_run}/adapter"
    done = cli("scripts/export.py", adapter, f"base_ckpt={base_ckpt}", f"out={out}")
    assert done.code == 1
    assert "the written network differs from the live one" in done.err
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "out=null: expected a file to write"),
        (("out={tmp}",), "out={tmp}: expected a file to write"),
        (("out=/dev/null/x",), "out=/dev/null/x: expected a file that can be written"),
        (("format=tf", "out=x"), "format=tf: expected one of safetensors, onnx, torch_export"),
        (("adapter={tmp}", "out={tmp}/x"), "adapter={tmp}: expected a readable adapter_config"),
        (("base_ckpt={tmp}/none", "out={tmp}/x"), "base_ckpt={tmp}/none: no such file"),
    ],
)
def test_bad_input(
    cli: Any, base_ckpt: Path, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    overrides = tuple(override.format(tmp=tmp_path) for override in overrides)
    done = cli("scripts/export.py", f"base_ckpt={base_ckpt}", *overrides)
    assert done.code == 2
    assert message.format(tmp=tmp_path) in done.err
    assert len(done.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
