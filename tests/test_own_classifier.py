"""A stranger's network, weights and folder of images, through every command."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import logged
from helpers.commands import ROOT, only_run, read_results
from helpers.stranger import CLASSES, config, fresh, mine, move_in
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import resnet18

from lora_mnist import add_lora, load_adapter, lora_disabled, save_adapter
from lora_mnist.config import add_configured_lora, build_net, choose_trainable
from lora_mnist.errors import UserError
from lora_mnist.evaluate import evaluate
from lora_mnist.export import export
from lora_mnist.load import load_base
from lora_mnist.lora import base_state_dict, changed_tensors
from lora_mnist.predict import predict
from lora_mnist.train import train

FIT = (
    "data.replay=10",
    "trainer=cpu",
    "trainer.max_steps=6",
    "callbacks.checkpoint=null",
    "logger=none",
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return move_in(tmp_path, monkeypatch)


def repaired(here: Path, *overrides: str) -> Path:
    folder = here / "outputs" / "lora" / "run"
    folder.mkdir(parents=True)
    train(config("train", "experiment=repair", "digit=dog", *FIT, *overrides), folder)
    return folder


# --- from the weak class to the exported network -------------------------------------------------


def test_which_class_is_weak(here: Path) -> None:
    with logged("lora_mnist.show.tables") as text:
        results = evaluate(config("eval"))
    assert results["classes"] == CLASSES
    assert results["test"]["images_per_class"] == [2, 2, 2]
    assert len(results["mean"]) == len(results["std"]) == 3
    assert all(re.search(rf"│ {name} +│ +2 │", text.getvalue()) for name in CLASSES)


@pytest.mark.parametrize("digit", ["weakest", "dog", "1", "[dog,emu]"])
def test_repair_proves_the_base_untouched(here: Path, digit: str) -> None:
    folder = repaired(here, f"digit={digit}", "logger=csv")
    results = read_results(folder)
    assert results["base_unchanged"]
    targets = results["target"] if digit.startswith("[") else [results["target"]]
    numbers = results["digit"] if digit.startswith("[") else [results["digit"]]
    assert [CLASSES[number] for number in numbers] == targets
    assert digit == "weakest" or targets == (["dog", "emu"] if digit.startswith("[") else ["dog"])
    metrics = next(folder.rglob("metrics.csv")).read_text().partition("\n")[0].split(",")
    assert "test/accuracy_per_class/dog" in metrics
    assert not [name for name in metrics if name.endswith(("/0", "/1", "/2"))]
    net, base = load_adapter(mine(), folder / "adapter"), mine()
    images = torch.randn(20, 3, 8, 8)
    for mode in (False, True):
        with torch.no_grad(), lora_disabled(net.train(mode)):
            assert torch.equal(net(images), base(images))
    assert changed_tensors(base.state_dict(), base_state_dict(net)) == []


def test_the_weakest_class_is_that_of_the_network_in_use(here: Path) -> None:
    """In train mode dropout and the batch's own statistics would answer."""
    cfg = config("train", "stage=lora")
    net = build_net(cfg)
    load_base(cfg, net)
    assert not any(module.training for module in net.modules())
    images = torch.randn(20, 3, 8, 8)
    assert torch.equal(net(images), mine()(images))


def test_what_is_trained_is_in_train_mode(here: Path) -> None:
    cfg = config("train", "stage=lora", "lora.dropout=0.5", "lora.target_modules=[conv,head]")
    net = build_net(cfg).eval()
    add_configured_lora(cfg, net)
    assert net.head.parametrizations.weight[0].training  # type: ignore[union-attr,index]
    net(torch.randn(2, 3, 8, 8))
    assert not net.get_submodule("norm").training
    assert not net.get_submodule("dropout").training
    plain = build_net(cfg).eval()
    choose_trainable(plain, "head.*")
    assert plain.get_submodule("norm").training


def test_nothing_is_kept_of_what_has_changed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in one process share what the base answers: to the same images, by the same class."""

    def base_of_a_run(name: str) -> Any:
        cfg = config("train", "stage=lora", "digit=dog", *FIT, "data.replay=0")
        return train(cfg, here / "outputs" / "lora" / name)["test_base"]

    def asked_alone() -> Any:
        return evaluate(config("eval"))["test"]

    def same(found: Any, expected: Any) -> bool:
        return bool({k: v for k, v in found.items() if k != "errors_of_target"} == expected)

    first = asked_alone()
    assert same(base_of_a_run("first"), first)
    for old, new in (("cat", "x"), ("dog", "cat"), ("x", "dog")):
        (here / "photos" / old).rename(here / "photos" / new)
    relabelled = asked_alone()
    assert relabelled != first
    assert same(base_of_a_run("relabelled"), relabelled)
    forward = type(fresh()).forward
    monkeypatch.setattr(type(fresh()), "forward", lambda net, images: -forward(net, images))
    reversed_ = asked_alone()
    assert reversed_ != relabelled
    assert same(base_of_a_run("reversed"), reversed_)


def test_a_module_that_seeds_when_it_is_imported(here: Path) -> None:
    text = (here / "nets_of_a_stranger.py").read_text()
    (here / "nets_that_seed.py").write_text("import torch\ntorch.manual_seed(7)\n" + text)
    options = ("net._target_=nets_that_seed.Net", "trainer=cpu", "+trainer.fast_dev_run=true")
    first, again = (train(config("train", "stage=pretrain", *options)) for _ in range(2))
    assert first["base_sha256"] == again["base_sha256"]


def test_pictures_have_names(here: Path) -> None:
    repaired(here)
    (both,) = predict(config("predict", "images=photos/dog/3.png", "adapter=latest"))
    assert list(both) == ["file", "base", "adapted"]
    for side in ("base", "adapted"):
        assert list(both[side]) == ["digit", "class", "probability", "probabilities"]
        assert both[side]["class"] == CLASSES[both[side]["digit"]]
        assert len(both[side]["probabilities"]) == 3


KNOWN = ("data.data_dir=null", "data.classes=[cat,dog,emu]", "data.image_size=8")
FORM = ("data.mean=[0.3,0.3,0.3]", "data.std=0.2")


def test_predictions_need_no_folder(here: Path) -> None:
    seen = config("predict", "images=photos/dog/3.png", *FORM, "picture=seen.png")
    expected = predict(seen)
    assert Image.open("seen.png").mode == "RGB"
    shutil.move("photos", "elsewhere")
    images = "images=elsewhere/dog/3.png"
    found = predict(config("predict", images, *FORM, *KNOWN))
    assert found[0]["base"] == expected[0]["base"]
    for missing, cfg in {
        "image_size": config("predict", images, *FORM, *KNOWN[:2]),
        "mean": config("predict", images, *KNOWN),
        "std": config("predict", images, *KNOWN, FORM[0]),
    }.items():
        message = f"^data.{missing}=null: expected what the network was trained with"
        with pytest.raises(UserError, match=message):
            predict(cfg)
    with pytest.raises(UserError, match="^data.data_dir=null: expected a folder of images"):
        predict(config("predict", images, *FORM, KNOWN[0]))


@pytest.mark.parametrize("without_images", [False, True])
def test_the_exported_network_is_a_plain_one(here: Path, without_images: bool) -> None:
    folder = repaired(here)
    more = (*KNOWN, *FORM) if without_images else ()
    with logged("lora_mnist.export") as text:
        export(config("export", "adapter=latest", "out=repaired.safetensors", *more))
    kind = "100 random" if without_images else "6 test"
    assert f"same predictions as the live network on {kind} images" in text.getvalue()
    net, images = fresh().eval(), torch.randn(20, 3, 8, 8)
    net.load_state_dict(load_file("repaired.safetensors"))
    live = load_adapter(mine(), folder / "adapter")
    torch.testing.assert_close(net(images), live(images), rtol=1e-4, atol=1e-4)
    with safe_open("repaired.safetensors", "pt") as file:
        about = file.metadata()
    assert json.loads(about["classes"]) == CLASSES
    assert about["input"].startswith("float32 (batch, 3, 8, 8): ")
    if without_images:
        assert [json.loads(about[key]) for key in ("mean", "std")] == [[0.3, 0.3, 0.3], 0.2]


# --- residual networks from torchvision ----------------------------------------------------------


RESNET = ("net._target_=torchvision.models.resnet18", "net.num_classes=3", "base_ckpt=resnet.pt")


@pytest.fixture
def resnet(here: Path) -> nn.Module:
    torch.manual_seed(0)
    net = resnet18(num_classes=3)
    torch.save({"state_dict": {f"module.{k}": t for k, t in net.state_dict().items()}}, "resnet.pt")
    return net


@pytest.mark.slow
def test_resnet_from_the_command_line_to_onnx(here: Path, resnet: nn.Module) -> None:
    import onnxruntime

    folder = repaired(here, *RESNET, "trainer.max_steps=2")
    assert read_results(folder)["base_unchanged"]
    options = ("adapter=latest", "format=onnx", "out=repaired.onnx")
    metadata = export(config("export", *RESNET, *options))
    session = onnxruntime.InferenceSession("repaired.onnx")
    assert session.get_modelmeta().custom_metadata_map["classes"] == json.dumps(CLASSES)
    images = torch.randn(5, 3, 8, 8)
    (found,) = session.run(None, {"images": images.numpy()})
    live = load_adapter(resnet.eval(), folder / "adapter")
    torch.testing.assert_close(torch.from_numpy(found), live(images).detach(), rtol=1e-3, atol=1e-3)
    assert metadata["adapter"] == '"outputs/lora/run"'


@pytest.mark.slow
def test_resnet_in_a_loop_of_ones_own(resnet: nn.Module, tmp_path: Path) -> None:
    """Switched off it is the base, though it was trained in train mode; the base takes it back."""
    before = {name: tensor.clone() for name, tensor in resnet.state_dict().items()}
    images = torch.randn(4, 3, 32, 32)
    expected: Tensor = resnet.eval()(images).detach()
    adam = torch.optim.Adam(p for p in add_lora(resnet).parameters() if p.requires_grad)
    for _ in range(3):
        adam.zero_grad()
        resnet.train()(torch.randn(4, 3, 32, 32)).square().mean().backward()
        adam.step()
    for mode in (False, True):
        with lora_disabled(resnet.train(mode)):
            assert torch.equal(resnet(images), expected)
    assert changed_tensors(before, base_state_dict(resnet)) == []
    again = resnet18(num_classes=3)
    again.load_state_dict(before)
    load_adapter(again, save_adapter(resnet, tmp_path / "adapter"))


# --- the example ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_example_from_the_first_command_to_the_last(tmp_path: Path) -> None:
    """Pasted into bash as its README has them, in a copy; installing is left out."""
    copy = tmp_path / "own_classifier"
    left_out = shutil.ignore_patterns("photos", "*.pt", "*.onnx", "__pycache__")
    shutil.copytree(ROOT / "examples" / "own_classifier", copy, ignore=left_out)
    blocks = re.findall(r"```bash\n(.*?)```", (copy / "README.md").read_text(), flags=re.DOTALL)
    commands = [c for block in blocks for c in block.splitlines() if not c.startswith("pip ")]
    assert len(commands) == 2 + 4 + 1
    outputs, python = tmp_path / "outputs", shlex.quote(sys.executable)
    said = {}
    for command in commands:
        line = command.replace("python ", f"{python} ", 1)
        if "../../" in line:
            line = line.replace("../../", f"{ROOT}/") + f" paths.outputs={outputs}"
        done = subprocess.run(["bash", "-c", line], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        said[command.split()[1]] = done.stdout
    results = read_results(only_run(outputs, "lora"))
    assert (results["target"], results["base_unchanged"]) == ("eight", True)
    assert results["test"]["errors_per_class"][0] < results["test_base"]["errors_per_class"][0] / 2
    assert results["test"]["errors"] < results["test_base"]["errors"]
    for script in ("../../eval.py", "../../train.py", "../../predict.py"):
        assert "eight" in said[script]
    right = 39 - results["test"]["errors_per_class"][0]
    assert f"eight {right}" in said["use_repaired.py"]
    peft = pytest.importorskip("peft")
    program = """
import sys, torch
from my_nets import Net
from peft import PeftModel
from lora_mnist import load_adapter
nets = [Net().eval() for _ in range(2)]
for net in nets:
    net.load_state_dict(torch.load("mine.pt"))
images = torch.randn(9, 3, 16, 16)
ours, theirs = load_adapter(nets[0], sys.argv[1]), PeftModel.from_pretrained(nets[1], sys.argv[1])
torch.testing.assert_close(ours(images), theirs.eval()(images), rtol=1e-4, atol=1e-4)
"""
    adapter = only_run(outputs, "lora") / "adapter"
    subprocess.run([sys.executable, "-c", program, adapter], cwd=copy, check=True)
    assert peft
