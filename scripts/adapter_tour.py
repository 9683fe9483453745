"""Adapters of real runs, used in every way, and how far the results agree.

    python scripts/adapter_tour.py

Trains two adapters through ``train.py``. Loads ours in PEFT, and PEFT's here; stacks, adds up,
merges and exports them, and undoes that, with PEFT's way beside it. Ends with code 1 if a
comparison fails. Takes about two minutes on two cores and leaves its files in ``outputs/tour``.
Needs the extras ``peft`` and ``onnx``.
"""

import argparse
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

from lora_mnist import (
    MLP,
    combine_adapters,
    load_adapter,
    lora_disabled,
    merge_lora,
    remove_lora,
    unmerge_lora,
)
from lora_mnist.lora import changed_tensors

PROJECT = Path(__file__).resolve().parents[1]


def split(train: bool) -> tuple[Tensor, Tensor]:
    """Normalised images, (N, 1, 28, 28), and their labels."""
    dataset = MNIST(PROJECT / "data", train=train, download=True)
    return (dataset.data.unsqueeze(1) / 255 - 0.1307) / 0.3081, dataset.targets


class Tour:
    """The runs in a folder and the comparisons, each of which prints a line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nines, self.eights = folder / "nines/adapter", folder / "eights/adapter"
        self.images, _ = split(train=False)
        self.failed: list[str] = []

    def command(self, *arguments: str) -> str:
        """Run an entry of the project; return what it prints."""
        command = [*arguments, f"paths.outputs={self.folder}"]
        print(f"\n$ python {' '.join(command)}", flush=True)
        return subprocess.check_output([sys.executable, *command], cwd=PROJECT, text=True)

    def run(self, name: str, *arguments: str) -> dict[str, Any]:
        """Run a command in the folder ``name``; return its results."""
        self.command(*arguments, f"hydra.run.dir={self.folder / name}")
        results: dict[str, Any] = json.loads((self.folder / name / "results.json").read_text())
        return results

    def base(self) -> MLP:
        """The base that the first command left."""
        net = MLP()
        file = torch.load(self.folder / "base" / "mnist.ckpt", weights_only=True)
        net.load_state_dict(file["state_dict"])
        return net.eval()

    def ours(self, adapter: Path) -> nn.Module:
        """The base with an adapter, loaded here."""
        return load_adapter(self.base(), adapter)

    def theirs(self, adapter: Path) -> Any:
        """The base with an adapter, loaded by PEFT."""
        return PeftModel.from_pretrained(self.base(), str(adapter), "first").eval()

    def stack(self, nines: float, eights: float) -> nn.Module:
        """The base with both adapters, each at its scale."""
        net = load_adapter(self.base(), self.nines, name="nines", scale=nines)
        return load_adapter(net, self.eights, name="eights", scale=eights)

    @torch.no_grad()
    def logits(self, net: nn.Module) -> Tensor:
        """Logits of the test images, (10,000, 10)."""
        logits: Tensor = net(self.images)
        return logits

    def check(self, what: str, agrees: bool) -> None:
        """Report one comparison."""
        print(f"{'ok  ' if agrees else 'FAIL'} {what}", flush=True)
        if not agrees:
            self.failed.append(what)

    def compare(self, what: str, first: Tensor, second: Tensor, tolerance: float) -> None:
        """Report the largest difference of two sets of logits, and how many predictions differ."""
        difference, others = apart(first, second)
        # float32 keeps seven digits: 1e-5 of a large logit is what it can promise.
        agrees = torch.allclose(first, second, rtol=1e-5, atol=tolerance)
        text = f"logits to {difference:.1e}, {others} of {len(first):,} predictions"
        self.check(f"{what}: {text}", agrees)

    def differ(self, what: str, first: Tensor, second: Tensor) -> None:
        """Say how far two sets of logits are apart, where nobody promises that they agree."""
        difference, others = apart(first, second)
        print(f"note {what}: logits off by {difference:.2g}, {others:,} predictions", flush=True)

    def moved(self, adapted: Tensor, base: Tensor) -> None:
        """Report that the adapter does something: one that does nothing agrees with everything."""
        difference, _ = apart(adapted, base)
        self.check(f"  which moves the base's logits by up to {difference:.2g}", difference > 1e-2)

    def take(self) -> None:
        """Make the runs and compare."""
        self.run("pretrain", "train.py", "stage=pretrain")
        for name, digit in {"nines": 9, "eights": 8}.items():
            results = self.run(name, "train.py", "stage=lora", f"digit={digit}")
            self.check(f"{name}: base unchanged, bit for bit", results["base_unchanged"])
        self.expected = self.logits(self.base())
        self.adapted = self.logits(self.ours(self.nines))
        self.peft_both_ways()
        stack = self.several_by_name()
        self.one_after_another()
        self.add_up()
        stacked = self.logits(stack)
        self.undo(stack, stacked)
        self.export(stacked)

    def peft_both_ways(self) -> None:
        """An adapter of ours in PEFT, and one that PEFT trains on the eights here."""
        print("\nPEFT, both ways")
        self.compare("ours in PEFT", self.logits(self.theirs(self.nines)), self.adapted, 1e-4)
        self.moved(self.adapted, self.expected)
        images, labels = split(train=True)
        eights = labels == 8
        images, labels = images[eights], labels[eights]
        torch.manual_seed(0)
        options: dict[str, Any] = {"rank_pattern": {"linear3": 2}, "use_rslora": True}
        layers = ["linear1", "linear2", "linear3"]
        config = LoraConfig(r=4, lora_alpha=8, target_modules=layers, **options)
        net: Any = get_peft_model(self.base(), config)
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-4)
        for start in range(0, 1000, 50):
            optimizer.zero_grad()
            logits = net(images[start : start + 50])
            F.cross_entropy(logits, labels[start : start + 50]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        adapter = self.folder / "PEFT's"
        net.save_pretrained(str(adapter))
        theirs = self.logits(net.eval())
        self.compare("PEFT's here", self.logits(self.ours(adapter)), theirs, 1e-4)
        self.moved(theirs, self.expected)

    def several_by_name(self) -> nn.Module:
        """The eights at half on top of the nines; the network with both."""
        print("\nSeveral, switched by name")
        net = self.stack(1, 0.5)
        with lora_disabled(net, "eights"):
            self.compare("nines and eights, eights off", self.logits(net), self.adapted, 0)
        with lora_disabled(net):
            self.compare("both off", self.logits(net), self.expected, 0)
        self.both = f"adapter=[{self.nines},{{path: {self.eights}, scale: 0.5}}]"
        print(self.command("eval.py", self.both, "each=true").rstrip())
        return net

    def one_after_another(self) -> None:
        """Repair the eights on top of the nines: saved is the sum, on the base alone."""
        print("\nOne repair after another")
        second = self.folder / "eights_on_nines"
        beneath = f"adapter={self.nines}"
        results = self.run(second.name, "train.py", "stage=lora", "digit=8", beneath)
        self.check("eights on top of the nines: base unchanged", results["base_unchanged"])
        row = self.run("eval_row", "eval.py", f"adapter={second}", "figures=false")
        same = row["test"]["errors_per_class"] == results["test"]["errors_per_class"]
        self.check("eval.py of what was saved: the same errors", same)

    def add_up(self) -> None:
        """The nines less half of the eights, as one adapter: by the command, here and in PEFT."""
        print("\nAdded up to one")
        scales = [1.0, -0.5]
        expected = self.logits(self.stack(*scales))
        both = f"adapter=[{self.nines},{{path: {self.eights}, scale: -0.5}}]"
        out = self.folder / "sum"
        self.command("export.py", both, "format=adapter", f"out={out}")
        self.compare("the sum as one adapter", self.logits(self.ours(out)), expected, 1e-4)
        self.compare("the sum in PEFT", self.logits(self.theirs(out)), expected, 1e-4)
        cut = self.base()
        error = combine_adapters(cut, [self.nines, self.eights], scales, rank=1)
        self.differ(f"cut to rank 1, {error:.0%} of it lost", self.logits(cut), expected)
        theirs = self.theirs(self.nines)
        theirs.load_adapter(str(self.eights), adapter_name="second")
        for way in ("linear", "cat"):
            theirs.add_weighted_adapter(["first", "second"], scales, way, combination_type=way)
            theirs.set_adapter(way)
            logits = self.logits(theirs.eval())
            self.differ(f"PEFT's add_weighted_adapter, {way}", logits, expected)

    def undo(self, net: nn.Module, stacked: Tensor) -> None:
        """Merge the adapters of ``net``, and take them out again; PEFT beside it."""
        print("\nMerged and undone")
        state = copy.deepcopy(net.state_dict())
        merge_lora(net)
        self.compare("merged", self.logits(net), stacked, 1e-4)
        moved = changed_tensors(state, unmerge_lora(net).state_dict())
        self.check(f"unmerged: {len(state)} tensors, {len(moved)} changed", not moved)
        plain = remove_lora(net).state_dict()
        moved = changed_tensors(self.base().state_dict(), plain)
        self.check(f"removed: {len(plain)} tensors, {len(moved)} changed", not moved)
        theirs = self.theirs(self.nines)
        before = copy.deepcopy(theirs.state_dict())
        theirs.merge_adapter()
        theirs.unmerge_adapter()
        after = theirs.state_dict()
        moved = changed_tensors(before, after)
        difference = max((before[key] - after[key]).abs().max().item() for key in before)
        text = f"PEFT's unmerge_adapter: {len(moved)} tensors changed"
        print(f"note {text}, by up to {difference:.1e}")

    def export(self, stacked: Tensor) -> None:
        """Both adapters as an ONNX file."""
        print("\nExported")
        out = self.folder / "both.onnx"
        self.command("export.py", self.both, "format=onnx", f"out={out}")
        session = onnxruntime.InferenceSession(out)
        (logits,) = session.run(None, {"images": self.images.numpy()})
        self.compare("ONNX in onnxruntime", torch.from_numpy(logits), stacked, 1e-4)


def apart(first: Tensor, second: Tensor) -> tuple[float, int]:
    """The largest difference of two sets of logits, and how many predictions differ."""
    others = int((first.argmax(1) != second.argmax(1)).sum())
    return (first - second).abs().max().item(), others


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=PROJECT / "outputs" / "tour")
    folder = parser.parse_args().folder.resolve()
    if folder.exists():
        raise SystemExit(f"--folder={folder}: exists; expected a new folder")
    tour = Tour(folder)
    tour.take()
    if tour.failed:
        raise SystemExit(f"failed: {'; '.join(tour.failed)}")


if __name__ == "__main__":
    main()
