"""What a hotfix from a folder of mistakes is worth, beside a weighted fine-tuning in plain PyTorch.

    python scripts/studies/hotfix.py           # the table of docs/hotfix.md
    python scripts/studies/hotfix.py --quick   # one kind of pictures, one base: does it work?

Three kinds of corrupted digits on three bases that nothing else uses, and the example's own
classifier. Runs are kept in outputs/repair_study; called again, it does what is missing.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from hotfix_pictures import make_own_classifier, make_pictures
from jobs import OUTPUT, PROJECT, Base, composed, run, table
from tasks import fine_tune, sample
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lora_mnist import load_adapter
from lora_mnist.classifier.net import make_net
from lora_mnist.data import ImageDataModule, Images, make_data
from lora_mnist.data.mistakes import read_mistakes
from lora_mnist.disk.base import read_base

FOLDER = OUTPUT / "hotfix"
OWN = FOLDER / "own_classifier"
METHODS = (
    "base",
    "hotfix",
    "hotfix, `lora.rank=16`",
    "weighted fine-tuning",
    "without the mistakes",
)
NET = ("net.hidden_sizes=[300,100]",)
PRETRAIN = ("data.batch_size=100", "trainer.max_epochs=5")
OWN_NET = (
    "data=folder",
    f"data.data_dir={OWN / 'photos'}",
    "net=custom",
    "net._target_=my_nets.Net",
    f"paths.here={OWN}",
)


@torch.no_grad()
def wrong(net: nn.Module, images: Images, data: ImageDataModule) -> Tensor:
    """Which of ``images`` are wrong: 1.0, else 0.0."""
    batch, labels = images.take(list(range(len(images))))
    logits: Tensor = net(data.normalise(batch))
    return (logits.argmax(dim=1) != labels).float()


def compare(settings: Sequence[str], base: Path, incoming: Path, seed: int) -> Tensor:
    """Learn a base's mistakes among the pictures in ``incoming``: a row of numbers a method."""
    mistakes = FOLDER / f"{incoming.name} {seed}"
    common = [*settings, f"base_ckpt={base}"]
    command = ["predict.py", f"images={incoming}", f"mistakes={mistakes}", *common]
    subprocess.run([sys.executable, *command], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    common += ["experiment=repair", f"seed={seed}"]
    common += [f"data.mistakes={mistakes}", "data.mistakes_test=0.5"]
    cfg = composed(common)
    data = make_data(cfg, "fit")
    data.setup("test")
    (learnt, held_out), training = data.mistake_sets, data.training_images()[0]
    pictures = read_mistakes(incoming, data.class_of_folder, data.read_picture, 0)[0]
    rows, before = [], torch.empty(0)
    for method in METHODS:
        net = make_net(cfg).eval()
        read_base(base, net)
        if method == "base":
            before = wrong(net, pictures, data)
        elif method.startswith("hotfix"):
            rank = ["lora.rank=16"] if "16" in method else []
            load_adapter(net, run([*common, *rank])[0] / "adapter")
        else:
            first = training if method == "without the mistakes" else learnt
            fine_tune_half_and_half(net, first, training, data, seed)
        mended = [1 - wrong(net, part, data).mean() for part in (learnt, held_out)]
        broken = wrong(net, pictures, data)[before == 0].mean()
        test = wrong(net, data.test_set, data).sum()
        rows.append([len(learnt), len(held_out), *mended, broken, test])
    return torch.tensor(rows)


def fine_tune_half_and_half(
    net: nn.Module, mistakes: Images, training: Images, data: ImageDataModule, seed: int
) -> None:
    """100 steps on 10 mistakes and 90 training images, half of the loss for each."""

    def loss() -> Tensor:
        total = torch.zeros(())
        for images, count in ((mistakes, 10), (training, 90)):
            batch, labels = sample(images, count, data)
            total = total + 0.5 * cross_entropy(net(batch), labels)
        return total

    torch.manual_seed(seed)
    fine_tune(net, loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the least that shows that it works")
    quick = parser.parse_args().quick
    seeds = (31,) if quick else (31, 32, 33)
    rows = []
    for kind in ("slanted",) if quick else ("slanted", "turned", "thick", "own classifier"):
        incoming, runs = FOLDER / "incoming" / kind, []
        if kind == "own classifier":
            make_own_classifier(OWN, incoming)
        else:
            make_pictures(incoming, kind)
        for seed in seeds:
            if kind == "own classifier":
                runs.append(compare(OWN_NET, OWN / "mine.pt", incoming, seed))
            else:
                base = Base(seed, NET, PRETRAIN)
                base.results()
                runs.append(compare(NET, base.file, incoming, seed))
        numbers = torch.stack(runs).mean(0).tolist()
        cells = [kind, f"{numbers[0][0]:.0f} + {numbers[0][1]:.0f}"]
        for _, _, learnt, held_out, broken, test in numbers:
            cells.append(f"{learnt:.0%}, {held_out:.0%}, {broken:.0%}, {test:.0f}")
        rows.append(cells)
    print(table(["pictures", "learnt + held out", *METHODS], rows))


if __name__ == "__main__":
    main()
