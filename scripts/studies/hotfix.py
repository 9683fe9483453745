"""What a hotfix from a folder of mistakes is worth, beside a weighted fine-tuning in plain PyTorch.

    python scripts/studies/hotfix.py                     # the table of docs/hotfix.md
    python scripts/studies/hotfix.py pictures incoming   # slanted digits, incoming/<digit>/*.png

Each base, used for nothing else, gets 500 slanted, turned or thick digits, made of validation
images. Those that it gets wrong are its mistakes; half are learnt. The example's own classifier
gets photos/val. Runs are kept in outputs/repair_study; called again, it does what is missing.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from jobs import OUTPUT, PROJECT, Base, Settings, composed, overrides, run
from PIL import Image, ImageFilter
from repair_table import fill
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lora_mnist import load_adapter
from lora_mnist.config import build_data, build_net
from lora_mnist.data import ImageDataModule, Images, load_images
from lora_mnist.data.mistakes import read_mistakes
from lora_mnist.disk.base import read_base

PAGE = PROJECT / "docs" / "hotfix.md"
SLANT = (1, 0.8, -45, 0, 1, 0)  # x + 0.8 y - 45
KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "slanted": lambda p: p.transform(p.size, Image.Transform.AFFINE, SLANT, fillcolor=255),
    "turned by 30 degrees": lambda p: p.rotate(30, fillcolor=255),
    "thick": lambda p: p.filter(ImageFilter.MinFilter(9)),
}
#: A network with five epochs behind it: further training alone mends little.
MNIST: Settings = {"net.hidden_sizes": [300, 100]}
PRETRAIN: Settings = {"data.batch_size": 100, "trainer.max_epochs": 5}


def make_pictures(folder: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    """Write 500 validation images as black on white PNG files, four times their size."""
    images, labels = load_images("MNIST", PROJECT / "data", train=True)
    for number in range(55_000, 55_500):
        picture = Image.fromarray(255 - images[number, 0].numpy()).resize((112, 112))
        path = folder / str(int(labels[number])) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        change(picture).save(path)


def fine_tune(net: nn.Module, mistakes: Images, training: Images, data: ImageDataModule) -> None:
    """The usual way: 100 steps on 10 mistakes and 90 training images, half of the loss for each.

    The learning rate is that of docs/repair.md's full fine-tuning.
    """
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, 100)
    for _ in range(100):
        loss = torch.zeros(())
        for images, count in ((mistakes, 10), (training, 90)):
            batch, labels = images.__getitems__(torch.randint(len(images), (count,)).tolist())
            loss = loss + 0.5 * cross_entropy(net(data.normalise(batch)), labels)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        schedule.step()


@torch.no_grad()
def right(net: nn.Module, images: Images, data: ImageDataModule) -> Tensor:
    """Which of ``images`` are right."""
    batch, labels = images.__getitems__(list(range(len(images))))
    parts = [net(data.normalise(part)).argmax(dim=1) for part in torch.split(batch, 1000)]
    return torch.cat(parts) == labels


def compare(name: str, settings: Settings, base: Path, incoming: Path, seed: int) -> list[Any]:
    """A hotfix and a fine-tuning of ``base``: their numbers, in the order of the table."""
    mistakes = OUTPUT / "hotfix" / f"{name} {seed}"
    if not mistakes.exists():
        at = {"images": str(incoming), "mistakes": str(mistakes), "base_ckpt": str(base)}
        command = [sys.executable, "predict.py", *overrides({**settings, **at})]
        subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    settings = {**settings, "base_ckpt": str(base), "experiment": "repair", "seed": seed}
    settings |= {"data.mistakes": str(mistakes), "data.mistakes_test": 0.5}
    folder, _ = run(settings)
    cfg = composed(settings)
    data = build_data(cfg, "fit")
    data.setup("test")
    learnt, held_out = data.mistake_sets
    (pictures, _) = read_mistakes(incoming, data.class_of_folder, data.read_picture, 0)
    nets = [build_net(cfg).eval() for _ in range(3)]
    for net in nets:
        read_base(base, net)
    load_adapter(nets[1], folder / "adapter")
    torch.manual_seed(seed)
    fine_tune(nets[2], learnt, data.training_images()[0], data)
    before = right(nets[0], pictures, data)
    rows = []
    for net in nets:
        broken = int((before & ~right(net, pictures, data)).sum())
        shares = [100 * right(net, of, data).float().mean().item() for of in (learnt, held_out)]
        errors = int((~right(net, data.test_set, data)).sum())
        rows.append([len(learnt), len(held_out), *shares, 100 * broken / int(before.sum()), errors])
    return rows


def main() -> None:
    if sys.argv[1:2] == ["pictures"]:
        make_pictures(Path(sys.argv[2]), KINDS["slanted"])
        return
    runs: dict[str, list[Any]] = {}
    for kind, change in KINDS.items():
        incoming = OUTPUT / "hotfix" / "incoming" / kind
        if not incoming.exists():
            make_pictures(incoming, change)
        for seed in (31, 32, 33):
            base = Base(seed, MNIST, PRETRAIN)
            base.results()
            runs.setdefault(kind, []).append(compare(kind, MNIST, base.file, incoming, seed))
    own = OUTPUT / "hotfix" / "own_classifier"
    if not (own / "mine.pt").exists():
        shutil.copytree(PROJECT / "examples" / "own_classifier", own, dirs_exist_ok=True)
        for script in ("make_images.py", "train_plain.py"):
            subprocess.run([sys.executable, script], cwd=own, check=True, stdout=subprocess.DEVNULL)
    settings = {"data": "folder", "data.data_dir": str(own / "photos"), "net": "custom"}
    settings |= {"net._target_": "my_nets.Net", "paths.here": str(own)}
    for seed in (0, 1, 2):
        compared = compare("own classifier", settings, own / "mine.pt", own / "photos/val", seed)
        runs.setdefault("own classifier", []).append(compared)
    heads = ["mistakes", "learnt", "held out", "others broken", "test errors"]
    lines = [f"| pictures | method | {' | '.join(heads)} |", f"| --- | --- |{' ---: |' * 5}"]
    for name, of in runs.items():
        for place, method in enumerate(("base", "hotfix", "weighted fine-tuning")):
            few, many, *shares, errors = (
                mean(values) for values in zip(*[one[place] for one in of], strict=True)
            )
            cells = [f"{few:.0f} + {many:.0f}", *(f"{share:.0f}%" for share in shares)]
            lines.append(f"| {name} | {method} | {' | '.join(cells)} | {errors:.0f} |")
    fill(PAGE, "hotfix", "\n".join(lines))


if __name__ == "__main__":
    main()
