"""Adapters of real runs, used in every way, and how far the results agree.

    python scripts/adapter_tour.py

Trains two adapters through ``train.py``. Loads ours in PEFT, and PEFT's here; stacks, adds up,
merges and exports them, and undoes that. Ends with code 1 if a comparison fails. Takes about two
minutes on two cores and leaves its files in ``outputs/tour``. Needs the extras ``peft`` and
``onnx``.
"""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torchvision.datasets import MNIST

from lora_mnist import MLP, load_adapter, lora_disabled, merge_lora, remove_lora, unmerge_lora
from lora_mnist.lora import changed_tensors

PROJECT = Path(__file__).resolve().parents[1]
FOLDER = PROJECT / "outputs" / "tour"
NINES, EIGHTS = FOLDER / "nines/adapter", FOLDER / "eights/adapter"

failed: list[str] = []


def images_and_labels(train: bool) -> tuple[Tensor, Tensor]:
    """Normalised images of MNIST, (N, 1, 28, 28), and their labels."""
    dataset = MNIST(PROJECT / "data", train=train, download=True)
    return (dataset.data.unsqueeze(1) / 255 - 0.1307) / 0.3081, dataset.targets


def command(*arguments: str) -> None:
    """Run an entry of the project; what it prints is not shown."""
    line = [*arguments, f"paths.outputs={FOLDER}"]
    print(f"\n$ python {' '.join(line)}", flush=True)
    subprocess.check_output([sys.executable, *line], cwd=PROJECT)


def run(name: str, *arguments: str) -> dict[str, Any]:
    """Run a command in the folder ``name``; return its results."""
    command(*arguments, f"hydra.run.dir={FOLDER / name}")
    results: dict[str, Any] = json.loads((FOLDER / name / "results.json").read_text())
    return results


def base() -> MLP:
    """The base that the first command left."""
    net = MLP()
    file = torch.load(FOLDER / "base" / "mnist.ckpt", weights_only=True)
    net.load_state_dict(file["state_dict"])
    return net.eval()


def stack(nines: float, eights: float) -> nn.Module:
    """The base with both adapters, each at its scale."""
    net = load_adapter(base(), NINES, name="nines", scale=nines)
    return load_adapter(net, EIGHTS, name="eights", scale=eights)


def in_peft(adapter: Path) -> Any:
    """The base with an adapter, loaded by PEFT."""
    return PeftModel.from_pretrained(base(), str(adapter), "first").eval()


@torch.no_grad()
def logits_of(net: nn.Module) -> Tensor:
    """Logits of the test images, (10,000, 10)."""
    logits: Tensor = net(images_and_labels(train=False)[0])
    return logits


def check(what: str, agrees: bool) -> None:
    """Report one comparison."""
    print(f"{'ok  ' if agrees else 'FAIL'} {what}", flush=True)
    if not agrees:
        failed.append(what)


def compare(what: str, first: Tensor, second: Tensor, tolerance: float = 1e-4) -> None:
    """Report the largest difference of two sets of logits, and how many predictions differ."""
    difference = (first - second).abs().max().item()
    others = int((first.argmax(1) != second.argmax(1)).sum())
    text = f"{what}: logits to {difference:.1e}, {others:,} of {len(first):,} predictions"
    # float32 keeps seven digits: 1e-5 of a large logit is what it can promise.
    check(text, torch.allclose(first, second, rtol=1e-5, atol=tolerance))


def peft_both_ways() -> None:
    """An adapter of ours in PEFT, and one that PEFT trains on the eights here."""
    ours = logits_of(load_adapter(base(), NINES))
    compare("ours in PEFT", logits_of(in_peft(NINES)), ours)
    distance = (ours - logits_of(base())).abs().max().item()
    check(f"  which moves the base's logits by up to {distance:.2g}", distance > 1e-2)
    images, labels = images_and_labels(train=True)
    eights = labels == 8
    images, labels = images[eights], labels[eights]
    torch.manual_seed(0)
    options: dict[str, Any] = {"rank_pattern": {"linear3": 2}, "use_rslora": True}
    layers = ["linear1", "linear2", "linear3"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=layers, **options)
    net: Any = get_peft_model(base(), config)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-4)
    for start in range(0, 1000, 50):
        optimizer.zero_grad()
        logits = net(images[start : start + 50])
        F.cross_entropy(logits, labels[start : start + 50]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    net.save_pretrained(str(FOLDER / "PEFT's"))
    theirs = logits_of(net.eval())
    compare("PEFT's here", logits_of(load_adapter(base(), FOLDER / "PEFT's")), theirs)


def add_up() -> None:
    """The nines less half of the eights as one adapter: by the command, here and in PEFT."""
    expected = logits_of(stack(1, -0.5))
    both = f"adapter=[{NINES},{{path: {EIGHTS}, scale: -0.5}}]"
    out = FOLDER / "sum"
    command("export.py", both, "format=adapter", f"out={out}")
    compare("the sum as one adapter", logits_of(load_adapter(base(), out)), expected)
    compare("the sum in PEFT", logits_of(in_peft(out)), expected)
    theirs = in_peft(NINES)
    theirs.load_adapter(str(EIGHTS), adapter_name="second")
    theirs.add_weighted_adapter(["first", "second"], [1, -0.5], "sum", combination_type="linear")
    theirs.set_adapter("sum")
    others = int((logits_of(theirs.eval()).argmax(1) != expected.argmax(1)).sum())
    print(f"note PEFT's add_weighted_adapter, linear: {others:,} other predictions", flush=True)


def main() -> None:
    if FOLDER.exists():
        raise SystemExit(f"{FOLDER}: exists; expected to make it")
    run("pretrain", "train.py", "stage=pretrain")
    for name, digit in {"nines": 9, "eights": 8}.items():
        results = run(name, "train.py", "stage=lora", f"digit={digit}")
        check(f"{name}: base unchanged, bit for bit", results["base_unchanged"])
    peft_both_ways()

    net = stack(1, 0.5)
    with lora_disabled(net, "eights"):
        ours = logits_of(load_adapter(base(), NINES))
        compare("nines and eights, eights off", logits_of(net), ours, 0)
    with lora_disabled(net):
        compare("both off", logits_of(net), logits_of(base()), 0)

    results = run("on_top", "train.py", "stage=lora", "digit=8", f"adapter={NINES}")
    tested = run("tested", "eval.py", f"adapter={FOLDER / 'on_top'}", "figures=false")
    same = tested["test"]["errors_per_class"] == results["test"]["errors_per_class"]
    check("eights on top of the nines: eval.py of what was saved counts the same errors", same)
    add_up()

    stacked, state = logits_of(net), copy.deepcopy(net.state_dict())
    merge_lora(net)
    compare("merged", logits_of(net), stacked)
    moved = changed_tensors(state, unmerge_lora(net).state_dict())
    check(f"unmerged: {len(state)} tensors, {len(moved)} changed", not moved)
    plain = remove_lora(net).state_dict()
    moved = changed_tensors(base().state_dict(), plain)
    check(f"removed: {len(plain)} tensors, {len(moved)} changed", not moved)

    out = FOLDER / "both.onnx"
    both = f"adapter=[{NINES},{{path: {EIGHTS}, scale: 0.5}}]"
    command("export.py", both, "format=onnx", f"out={out}")
    images = images_and_labels(train=False)[0].numpy()
    (logits,) = onnxruntime.InferenceSession(out).run(None, {"images": images})
    compare("ONNX in onnxruntime", torch.from_numpy(logits), stacked)
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
