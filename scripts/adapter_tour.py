"""Everything that can be done with an adapter, on real runs, and how far the results agree.

    python scripts/adapter_tour.py

Pretrains a base and trains adapters on the nines and the eights through ``train.py``: LoRA, DoRA,
biases alone, the last layer alone, and one on top of another. Loads ours in PEFT, and PEFT's here;
stacks, weighs, adds up, merges and exports them, and undoes that, with PEFT's way beside it; runs
the ONNX file in onnxruntime; and reads PNG files. Prints a line for each comparison and ends with
code 1 if one of them fails. Takes about three minutes on two cores and leaves its files in
``outputs/tour``. Needs the extras ``peft`` and ``onnx``.
"""

import argparse
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.datasets import MNIST

from lora_mnist import (
    MLP,
    combine_adapters,
    load_adapter,
    lora_disabled,
    lora_summary,
    merge_lora,
    remove_lora,
    unmerge_lora,
)
from lora_mnist.lora import changed_tensors

PROJECT = Path(__file__).resolve().parents[1]


class Report:
    """Prints a line for each comparison and remembers what failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def check(self, what: str, agrees: bool) -> None:
        """Report one finding."""
        print(f"{'ok  ' if agrees else 'FAIL'} {what}", flush=True)
        if not agrees:
            self.failed.append(what)

    def compare(self, what: str, first: Tensor, second: Tensor, tolerance: float) -> None:
        """Report the largest difference of two sets of logits, and how many predictions differ."""
        others = int((first.argmax(1) != second.argmax(1)).sum())
        difference = (first - second).abs().max().item()
        # float32 keeps seven digits: 1e-5 of a large logit is what it can promise.
        agrees = torch.allclose(first, second, rtol=1e-5, atol=tolerance)
        text = f"logits to {difference:.1e}, {others} of {len(first):,} predictions"
        self.check(f"{what}: {text}", agrees)

    def differ(self, what: str, first: Tensor, second: Tensor) -> None:
        """Say how far two sets of logits are apart, where nobody promises that they agree."""
        others = int((first.argmax(1) != second.argmax(1)).sum())
        difference = (first - second).abs().max().item()
        print(f"note {what}: logits off by {difference:.2g}, {others:,} predictions", flush=True)

    def moved(self, adapted: Tensor, base: Tensor) -> None:
        """Report that the adapter does something: one that does nothing agrees with everything."""
        difference = (adapted - base).abs().max().item()
        self.check(f"  which moves the base's logits by up to {difference:.2g}", difference > 1e-2)


def command(*arguments: str) -> str:
    """Run an entry of the project; return what it prints."""
    print(f"\n$ python {' '.join(arguments)}", flush=True)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def ask(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Logits, (N, 10), of normalised images."""
    with torch.no_grad():
        return network(images)


def load_base(path: Path) -> MLP:
    """The network in a file of ``stage=pretrain``."""
    net = MLP()
    net.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    return net.eval()


def split(train: bool) -> tuple[Tensor, Tensor]:
    """Normalised images, (N, 1, 28, 28), and their labels."""
    dataset = MNIST(PROJECT / "data", train=train, download=True)
    return (dataset.data.unsqueeze(1) / 255 - 0.1307) / 0.3081, dataset.targets


def train_in_peft(base: nn.Module, folder: Path, **options: Any) -> nn.Module:
    """An adapter of PEFT's on the eights, with ``options`` of its LoraConfig, saved by PEFT."""
    from peft import LoraConfig, get_peft_model

    images, labels = split(train=True)
    eights = labels == 8
    images, labels = images[eights], labels[eights]
    torch.manual_seed(0)
    net: Any = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, lora_alpha=8, **options))
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-4)
    batches = zip(images.split(50)[:20], labels.split(50)[:20], strict=True)  # type: ignore[no-untyped-call]
    for pixels, classes in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(pixels), classes).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    net.save_pretrained(str(folder))
    peft_model: nn.Module = net.eval()
    return peft_model


def draw(folder: Path, count: int) -> list[int]:
    """Save test images as large PNG files, dark ink on light paper; return their labels."""
    folder.mkdir(exist_ok=True)
    dataset = MNIST(PROJECT / "data", train=False)
    for number, image in enumerate(dataset.data[:count]):
        picture = Image.fromarray((240 - 0.8 * image).byte().numpy())
        picture.resize((300, 300), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return dataset.targets[:count].tolist()  # type: ignore[no-any-return]


def tour(folder: Path, report: Report) -> None:
    """Make the runs in ``folder`` and report what was found."""
    import onnxruntime

    outputs = f"paths.outputs={folder}"
    command("train.py", "stage=pretrain", outputs, f"hydra.run.dir={folder}/pretrain")
    for name, digit in {"nines": 9, "eights": 8}.items():
        place = f"hydra.run.dir={folder}/{name}"
        command("train.py", "stage=lora", f"digit={digit}", outputs, place)
        results = json.loads((folder / name / "results.json").read_text())
        report.check(f"{name}: base unchanged, bit for bit", results["base_unchanged"])
    nines, eights = folder / "nines" / "adapter", folder / "eights" / "adapter"
    base, (images, _) = load_base(folder / "base" / "mnist.ckpt"), split(train=False)
    expected = ask(base, images)

    print("\nPEFT, both ways")
    ours = load_adapter(copy.deepcopy(base), nines, name="nines")
    adapted = ask(ours, images)
    in_peft(report, "our LoRA", base, nines, images)
    mixed = {"rank_pattern": {"linear3": 2}, "alpha_pattern": {"linear1": 4}}
    from_peft(report, "LoRA", base, folder, images, **mixed, use_rslora=True)
    for variant in ("dora", "bias", "last_layer"):
        run = folder / variant
        arguments = ("stage=lora", f"lora={variant}", "digit=9", outputs)
        command("train.py", *arguments, f"hydra.run.dir={run}")
        in_peft(report, f"our {variant}", base, run / "adapter", images)
    from_peft(report, "DoRA", base, folder, images, use_dora=True)
    from_peft(report, "LoRA with biases", base, folder, images, bias="all")
    whole = {"target_modules": ["linear1"], "modules_to_save": ["linear3"]}
    from_peft(report, "LoRA with a whole layer", base, folder, images, **whole)

    print("\nSeveral, switched by name")
    load_adapter(ours, eights, name="eights", scale=0.5)
    with lora_disabled(ours, "eights"):
        report.compare("nines and eights, eights off", ask(ours, images), adapted, 0)
    with lora_disabled(ours):
        report.compare("both off", ask(ours, images), expected, 0)
    both = f"adapter=[{nines},{{path: {eights}, scale: 0.5}}]"
    print(command("eval.py", both, "each=true", outputs, f"hydra.run.dir={folder}/eval").rstrip())

    in_a_row(folder, report, base, nines, images)
    add_up(folder, report, base, {"nines": nines, "eights": eights}, images)
    undo(report, ours, base, images)
    theirs_undone(report, base, nines)

    print("\nExported")
    stacked = ask(ours, images)
    out = folder / "both.onnx"
    command("export.py", both, outputs, "format=onnx", f"out={out}")
    session = onnxruntime.InferenceSession(out)
    (logits,) = session.run(None, {"images": images.numpy()})
    report.compare("ONNX in onnxruntime", torch.from_numpy(logits), stacked, 1e-4)

    labels = draw(folder / "pictures", 20)
    pictures = f"images={folder}/pictures/*.png"
    picture = f"picture={folder}/seen.png"
    printed = command("predict.py", pictures, f"adapter={nines}", outputs, picture, "json=true")
    for side, live in {"base": expected, "adapted": adapted}.items():
        digits = [found[side]["digit"] for found in json.loads(printed)]
        same = sum(a == b for a, b in zip(digits, live.argmax(1).tolist(), strict=False))
        right = sum(a == b for a, b in zip(digits, labels, strict=True))
        text = f"20 PNG files, {side}: {right} right, {same} as on MNIST's own pixels"
        report.check(text, same >= 18)


def in_peft(report: Report, what: str, base: nn.Module, adapter: Path, images: Tensor) -> None:
    """Load an adapter here and in PEFT."""
    from peft import PeftModel

    ours = ask(load_adapter(copy.deepcopy(base), adapter), images)
    theirs: Any = PeftModel.from_pretrained(copy.deepcopy(base), str(adapter)).eval()
    report.compare(f"{what} in PEFT", ask(theirs, images), ours, 1e-4)
    report.moved(ours, ask(base, images))


def from_peft(
    report: Report, what: str, base: nn.Module, folder: Path, images: Tensor, **options: Any
) -> None:
    """Train an adapter in PEFT and load it here."""
    adapter = folder / f"PEFT's {what}"
    options = {"target_modules": ["linear1", "linear2", "linear3"], **options}
    theirs = ask(train_in_peft(base, adapter, **options), images)
    loaded = load_adapter(copy.deepcopy(base), adapter)
    report.compare(f"PEFT's {what} here", ask(loaded, images), theirs, 1e-4)
    report.moved(theirs, ask(base, images))


def in_a_row(folder: Path, report: Report, base: nn.Module, nines: Path, images: Tensor) -> None:
    """Repair the eights on top of the nines, and find the nines again from the eights alone."""
    print("\nOne repair after another")
    outputs, run = f"paths.outputs={folder}", folder / "eights_on_nines"
    command(
        "train.py", "stage=lora", "digit=8", f"adapter={nines}", outputs, f"hydra.run.dir={run}"
    )
    results = json.loads((run / "results.json").read_text())
    report.check("eights on top of the nines: base unchanged", results["base_unchanged"])
    command(
        "eval.py", f"adapter={run}", outputs, "figures=false", f"hydra.run.dir={folder}/eval_row"
    )
    found = json.loads((folder / "eval_row" / "results.json").read_text())
    same = found["test"]["errors_per_class"] == results["test"]["errors_per_class"]
    report.check("eval.py of the eights finds the nines beneath: the same errors", same)
    stack = load_adapter(copy.deepcopy(base), nines, name="nines")
    before = ask(stack, images)
    load_adapter(stack, run / "adapter", name="eights")
    report.moved(ask(stack, images), before)
    with lora_disabled(stack, "eights"):
        report.compare("eights off: the nines as they were", ask(stack, images), before, 0)
    continued = ("stage=lora", "digit=9", f"adapter={nines}", "adapter_mode=continue")
    command("train.py", *continued, outputs, f"hydra.run.dir={folder}/nines_continued")
    longer = load_adapter(copy.deepcopy(base), folder / "nines_continued" / "adapter")
    report.moved(ask(longer, images), before)


def add_up(
    folder: Path, report: Report, base: nn.Module, adapters: dict[str, Path], images: Tensor
) -> None:
    """The nines less half of the eights, as one adapter: by the command, here and in PEFT."""
    from peft import PeftModel

    print("\nAdded up to one")
    scales = [1.0, -0.5]
    stack = copy.deepcopy(base)
    for (name, path), scale in zip(adapters.items(), scales, strict=True):
        load_adapter(stack, path, name=name, scale=scale)
    expected = ask(stack, images)
    several = f"adapter=[{adapters['nines']},{{path: {adapters['eights']}, scale: -0.5}}]"
    out = folder / "sum"
    command("export.py", several, f"paths.outputs={folder}", "format=adapter", f"out={out}")
    loaded = load_adapter(copy.deepcopy(base), out)
    report.compare("the sum as one adapter", ask(loaded, images), expected, 1e-4)
    theirs: Any = PeftModel.from_pretrained(copy.deepcopy(base), str(out)).eval()
    report.compare("the sum in PEFT", ask(theirs, images), expected, 1e-4)
    cut = copy.deepcopy(base)
    error = combine_adapters(cut, list(adapters.values()), scales, rank=1)
    report.differ(f"cut to rank 1, {error:.0%} of it lost", ask(cut, images), expected)
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), str(adapters["nines"]), "nines")
    theirs.load_adapter(str(adapters["eights"]), adapter_name="eights")
    for way in ("linear", "cat"):
        theirs.add_weighted_adapter(["nines", "eights"], scales, way, combination_type=way)
        theirs.set_adapter(way)
        logits = ask(theirs.eval(), images)
        report.differ(f"PEFT's add_weighted_adapter, {way}", logits, expected)


def undo(report: Report, ours: nn.Module, base: nn.Module, images: Tensor) -> None:
    """Merge the adapters of ``ours``, one of them and all, and take them out again."""
    print("\nMerged and undone")
    stacked, state = ask(ours, images), copy.deepcopy(ours.state_dict())
    merge_lora(ours, "nines")
    print(lora_summary(ours))
    report.compare("one merged", ask(ours, images), stacked, 1e-4)
    merge_lora(ours)
    report.compare("merged", ask(ours, images), stacked, 1e-4)
    moved = changed_tensors(state, unmerge_lora(ours).state_dict())
    report.check(f"unmerged: {len(state)} tensors, {len(moved)} changed", not moved)
    plain = remove_lora(copy.deepcopy(ours))
    moved = changed_tensors(base.state_dict(), plain.state_dict())
    report.check(f"removed: {len(plain.state_dict())} tensors, {len(moved)} changed", not moved)


def theirs_undone(report: Report, base: nn.Module, adapter: Path) -> None:
    """PEFT subtracts what it added."""
    from peft import PeftModel

    theirs: Any = PeftModel.from_pretrained(copy.deepcopy(base), str(adapter)).eval()
    before = copy.deepcopy(theirs.state_dict())
    theirs.merge_adapter()
    theirs.unmerge_adapter()
    after = theirs.state_dict()
    moved = changed_tensors(before, after)
    difference = max((before[key] - after[key]).abs().max().item() for key in before)
    print(f"note PEFT's unmerge_adapter: {len(moved)} tensors changed, by up to {difference:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=PROJECT / "outputs" / "tour")
    folder = parser.parse_args().folder.resolve()
    if folder.exists():
        raise SystemExit(f"--folder={folder}: exists; expected a new folder")
    for package in ("peft", "onnxscript", "onnxruntime"):
        import_module(package)  # what is missing is told before the first training
    report = Report()
    tour(folder, report)
    if report.failed:
        raise SystemExit(f"failed: {'; '.join(report.failed)}")


if __name__ == "__main__":
    main()
