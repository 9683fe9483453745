"""What a hotfix from a folder of mistakes is worth, beside a weighted fine-tuning in plain PyTorch.

    python scripts/studies/hotfix.py   # the table of docs/hotfix.md

Three kinds of corrupted digits on three bases that nothing else uses, and the example's own
classifier. Runs are kept in outputs/repair_study; called again, it does what is missing.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean

import torch
from hotfix_pictures import make_pictures
from jobs import OUTPUT, PROJECT, Base, Settings, composed, overrides, run
from repair_table import fill
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lora_mnist import load_adapter
from lora_mnist.config import build_data, build_net
from lora_mnist.data import ImageDataModule, Images
from lora_mnist.data.mistakes import read_mistakes
from lora_mnist.disk.base import read_base

FOLDER = OUTPUT / "hotfix"
METHODS = ("base", "hotfix", "weighted fine-tuning", "without the mistakes")
NET: Settings = {"net.hidden_sizes": [300, 100]}
PRETRAIN: Settings = {"data.batch_size": 100, "trainer.max_epochs": 5}


def fine_tune(net: nn.Module, mistakes: Images, training: Images, data: ImageDataModule) -> None:
    """The usual way: 100 steps on 10 mistakes and 90 training images, half of the loss for each."""
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)  # as docs/repair.md's full fine-tuning
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
def errors(net: nn.Module, images: Images, data: ImageDataModule) -> Tensor:
    """Which of ``images`` are wrong: 1.0, else 0.0."""
    batch, labels = images.__getitems__(list(range(len(images))))
    wrong: Tensor = net(data.normalise(batch)).argmax(dim=1) != labels
    return wrong.float()


def compare(settings: Settings, base: Path, incoming: Path, seed: int) -> list[list[float]]:
    """For each method the numbers in its row of the table."""
    mistakes = FOLDER / f"{incoming.name} {seed}"
    at = {"images": str(incoming), "mistakes": str(mistakes), "base_ckpt": str(base)}
    at |= {key: value for key, value in settings.items() if key != "lora.scale"}
    command = [sys.executable, "predict.py", *overrides(at)]
    subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    settings = {**settings, "base_ckpt": str(base), "experiment": "repair", "seed": seed}
    settings |= {"data.mistakes": str(mistakes), "data.mistakes_test": 0.5}
    (folder, _), cfg = run(settings), composed(settings)
    data = build_data(cfg, "fit")
    data.setup("test")
    (learnt, held_out), training = data.mistake_sets, data.training_images()[0]
    pictures = read_mistakes(incoming, data.class_of_folder, data.read_picture, 0)[0]
    rows, before = [], torch.empty(0)
    for method in METHODS:
        net = build_net(cfg).eval()
        read_base(base, net)
        torch.manual_seed(seed)
        if method == "base":
            before = errors(net, pictures, data)
        elif method == "hotfix":
            load_adapter(net, folder / "adapter")
        else:
            fine_tune(net, training if "without" in method else learnt, training, data)
        wrong = [float(errors(net, of, data).mean()) for of in (learnt, held_out)]
        broken = float(errors(net, pictures, data)[before == 0].mean())
        test = float(errors(net, data.test_set, data).sum())
        rows.append([len(learnt), 1 - wrong[0], len(held_out), 1 - wrong[1], broken, test])
    return rows


def main() -> None:
    """Write the table."""
    lines = [
        "| pictures | method | learnt: right | held out: right | others broken | test errors |"
    ]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: |"]
    own = FOLDER / "own_classifier"
    shutil.copytree(PROJECT / "examples" / "own_classifier", own, dirs_exist_ok=True)
    for script in () if (own / "mine.pt").exists() else ("make_images.py", "train_plain.py"):
        subprocess.run([sys.executable, script], cwd=own, check=True, stdout=subprocess.DEVNULL)
    for kind in ("slanted", "turned", "thick", "val"):
        incoming, settings, runs = own / "photos" / "val", NET, []
        if kind == "val":
            settings = {"data": "folder", "data.data_dir": str(own / "photos"), "net": "custom"}
            settings |= {"net._target_": "my_nets.Net", "paths.here": str(own), "lora.scale": 1}
        else:
            incoming = FOLDER / "incoming" / kind
            make_pictures(incoming, kind)
        for base in (Base(seed, NET, PRETRAIN) for seed in (31, 32, 33)):
            base.results()
            file = own / "mine.pt" if kind == "val" else base.file
            runs.append(compare(settings, file, incoming, base.seed))
        for method, rows in zip(METHODS, zip(*runs, strict=True), strict=True):
            few, learnt, many, held_out, broken, test = map(mean, zip(*rows, strict=True))
            cells = [kind, method, f"{learnt:.0%} of {few:.0f}", f"{held_out:.0%} of {many:.0f}"]
            lines.append(f"| {' | '.join(cells)} | {broken:.0%} | {test:.0f} |")
    fill(PROJECT / "docs" / "hotfix.md", "hotfix", "\n".join(lines))


if __name__ == "__main__":
    main()
