"""Everything that can be done with an adapter, on real runs, and how far the results agree.

    python scripts/adapter_tour.py

Pretrains a base and trains adapters on the nines and the eights through ``train.py``; loads one in
PEFT, and PEFT's own here; stacks, weighs, merges and exports them; runs the ONNX file in
onnxruntime; and reads PNG files. Prints a line for each comparison and ends with code 1 if one of
them fails. Takes about two minutes on two cores. What it leaves is in ``outputs/tour``.
"""

import argparse
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from torch import Tensor, nn

from lora_mnist import MLP, load_adapter, lora_disabled, merge_lora
from lora_mnist.data import load_images

ROOT = Path(__file__).parents[1]
_failed: list[str] = []


def command(*arguments: str) -> str:
    """Run an entry of the repository; return what it prints."""
    print(f"\n$ python {' '.join(arguments)}", flush=True)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def compare(what: str, first: Tensor, second: Tensor, tolerance: float) -> None:
    """Print the largest difference of two sets of logits, and how many predictions differ."""
    others = int((first.argmax(1) != second.argmax(1)).sum())
    difference = (first - second).abs().max().item()
    # float32 keeps seven digits: 1e-5 of a large logit is what it can promise.
    agrees = torch.allclose(first, second, rtol=1e-5, atol=tolerance)
    check(f"{what}: logits to {difference:.1e}, {others} of {len(first):,} predictions", agrees)


def check(what: str, agrees: bool) -> None:
    print(f"{'ok  ' if agrees else 'FAIL'} {what}", flush=True)
    if not agrees:
        _failed.append(what)


def moved(adapted: Tensor, base: Tensor) -> None:
    """An adapter that does nothing would agree with everything."""
    difference = (adapted - base).abs().max().item()
    check(f"  which moves the base's logits by up to {difference:.2g}", difference > 1e-2)


def ask(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images)


def load_base(path: Path) -> MLP:
    state = torch.load(path, weights_only=True)["state_dict"]
    net = MLP()
    net.load_state_dict({key.removeprefix("net."): tensor for key, tensor in state.items()})
    return net.eval()


def split(train: bool) -> tuple[Tensor, Tensor]:
    images, labels = load_images("MNIST", ROOT / "data", train)
    return (images / 255 - 0.1307) / 0.3081, labels


def train_in_peft(base: nn.Module, folder: Path) -> nn.Module:
    """A PEFT adapter of mixed ranks on the eights, saved by PEFT."""
    images, labels = split(train=True)
    eights = labels == 8
    images, labels = images[eights], labels[eights]
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        use_rslora=True,
        target_modules=["linear1", "linear2", "linear3"],
        rank_pattern={"linear3": 2},
        alpha_pattern={"linear1": 4},
    )
    net: Any = get_peft_model(copy.deepcopy(base), config)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-4)
    for batch, target in zip(images.split(50)[:20], labels.split(50)[:20], strict=True):  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        F.cross_entropy(net(batch), target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    net.save_pretrained(str(folder))
    peft_model: nn.Module = net.eval()
    return peft_model


def draw(folder: Path, count: int) -> list[int]:
    """Save test images as large PNG files, dark ink on light; return their labels."""
    folder.mkdir(exist_ok=True)
    images, labels = load_images("MNIST", ROOT / "data", train=False)
    for number, image in enumerate(images[:count, 0]):
        picture = Image.fromarray((240 - 0.8 * image).byte().numpy())
        picture.resize((300, 300), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return labels[:count].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description="Everything that can be done with an adapter.")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "tour")
    folder = parser.parse_args().folder.resolve()
    if folder.exists():
        parser.error(f"--folder {folder} is there already; expected a new folder")
    base_ckpt = f"base_ckpt={folder}/base.ckpt"
    command("train.py", "stage=pretrain", base_ckpt, f"hydra.run.dir={folder}/pretrain")
    for name, digit in {"nines": 9, "eights": 8}.items():
        run = f"hydra.run.dir={folder}/{name}"
        command("train.py", "stage=lora", f"digit={digit}", base_ckpt, run)
        results = json.loads((folder / name / "results.json").read_text())
        check(f"{name}: base unchanged, bit for bit", results["base_unchanged"])
    nines, eights = folder / "nines" / "adapter", folder / "eights" / "adapter"
    base, (images, _) = load_base(folder / "base.ckpt"), split(train=False)
    expected = ask(base, images)

    print("\nPEFT, both ways")
    ours = load_adapter(copy.deepcopy(base), nines, name="nines")
    adapted = ask(ours, images)
    theirs: Any = PeftModel.from_pretrained(copy.deepcopy(base), str(nines)).eval()
    compare("our adapter in PEFT", ask(theirs, images), adapted, 1e-5)
    moved(adapted, expected)
    theirs = train_in_peft(base, folder / "peft")
    loaded = load_adapter(copy.deepcopy(base), folder / "peft")
    compare("PEFT's adapter here", ask(loaded, images), ask(theirs, images), 1e-5)
    moved(ask(loaded, images), expected)

    print("\nSeveral, switched by name")
    load_adapter(ours, eights, name="eights", weight=0.5)
    with lora_disabled(ours, "eights"):
        compare("nines and eights, eights off", ask(ours, images), adapted, 0)
    with lora_disabled(ours):
        compare("both off", ask(ours, images), expected, 0)
    both = f"adapter=[{nines},{{path: {eights}, weight: 0.5}}]"
    print(command("eval.py", both, "each=true", base_ckpt, f"hydra.run.dir={folder}/eval").rstrip())

    print("\nMerged and exported")
    stacked = ask(ours, images)
    compare("merged", ask(merge_lora(copy.deepcopy(ours)), images), stacked, 1e-4)
    out = folder / "both.onnx"
    command("scripts/export.py", both, base_ckpt, "format=onnx", f"out={out}")
    session = onnxruntime.InferenceSession(out)
    (logits,) = session.run(None, {"images": images.numpy()})
    compare("ONNX in onnxruntime", torch.from_numpy(logits), stacked, 1e-4)

    labels = draw(folder / "pictures", 20)
    pictures = f"images={folder}/pictures/*.png"
    picture = f"picture={folder}/seen.png"
    printed = command(
        "scripts/predict.py", pictures, f"adapter={nines}", base_ckpt, picture, "json=true"
    )
    for side, live in {"base": expected, "adapted": adapted}.items():
        digits = [found[side]["digit"] for found in json.loads(printed)]
        same = sum(a == b for a, b in zip(digits, live.argmax(1).tolist(), strict=False))
        right = sum(a == b for a, b in zip(digits, labels, strict=True))
        check(f"20 PNG files, {side}: {right} right, {same} as on MNIST's own pixels", same >= 18)
    raise SystemExit(f"failed: {'; '.join(_failed)}" if _failed else 0)


if __name__ == "__main__":
    main()
