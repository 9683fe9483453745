"""What a hotfix from a folder of mistakes is worth, beside a weighted fine-tuning in plain PyTorch.

    python scripts/studies/hotfix.py   # the table of docs/hotfix.md

Three kinds of corrupted digits on three bases that nothing else uses, and the example's own
classifier. Runs are kept in outputs/repair_study; called again, it does what is missing.
"""

import subprocess
import sys
from pathlib import Path
from statistics import mean

import torch
from hotfix_pictures import make_own_classifier, make_pictures
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
METHODS = (
    "base",
    "hotfix",
    "hotfix, `lora.rank=16`",
    "weighted fine-tuning",
    "without the mistakes",
)
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
    command = [sys.executable, "predict.py", *overrides({**settings, **at})]
    subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    settings = {**settings, "base_ckpt": str(base), "experiment": "repair", "seed": seed}
    settings |= {"data.mistakes": str(mistakes), "data.mistakes_test": 0.5}
    cfg = composed(settings)
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
        elif method.startswith("hotfix"):
            rank = {"lora.rank": 16} if "16" in method else {}
            load_adapter(net, run({**settings, **rank})[0] / "adapter")
        else:
            fine_tune(net, training if "without" in method else learnt, training, data)
        wrong = [float(errors(net, of, data).mean()) for of in (learnt, held_out)]
        broken = float(errors(net, pictures, data)[before == 0].mean())
        test = float(errors(net, data.test_set, data).sum())
        rows.append([len(learnt), 1 - wrong[0], len(held_out), 1 - wrong[1], broken, test])
    return rows


def main() -> None:
    """Write the table."""
    lines = [f"| pictures | learnt + held out | {' | '.join(METHODS)} |", "| --- |" + " ---: |" * 6]
    own = FOLDER / "own_classifier"
    make_own_classifier(own, FOLDER / "incoming" / "own classifier")
    for kind in ("slanted", "turned", "thick", "own classifier"):
        incoming, settings, runs = FOLDER / "incoming" / kind, NET, []
        if kind == "own classifier":
            settings = {"data": "folder", "data.data_dir": str(own / "photos"), "net": "custom"}
            settings |= {"net._target_": "my_nets.Net", "paths.here": str(own)}
        else:
            make_pictures(incoming, kind)
        for base in (Base(seed, NET, PRETRAIN) for seed in (31, 32, 33)):
            base.results()
            file = base.file if settings is NET else own / "mine.pt"
            runs.append(compare(settings, file, incoming, base.seed))
        cells = []
        for rows in zip(*runs, strict=True):
            few, learnt, many, held_out, broken, test = map(mean, zip(*rows, strict=True))
            cells.append(f"{learnt:.0%}, {held_out:.0%}, {broken:.0%}, {test:.0f}")
        lines.append(f"| {kind} | {few:.0f} + {many:.0f} | {' | '.join(cells)} |")
    fill(PROJECT / "docs" / "hotfix.md", "hotfix", "\n".join(lines))


if __name__ == "__main__":
    main()
