"""What a hotfix from a folder of mistakes is worth, beside a weighted fine-tuning in plain PyTorch.

    python scripts/studies/hotfix.py           # the table of docs/hotfix.md
    python scripts/studies/hotfix.py --quick   # one kind of pictures: does it work?

Corrupted digits on a base that nothing else uses, and the example's own classifier. Runs are kept
in outputs/repair_study; called again, it does what is missing.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from hotfix_pictures import make_own_classifier, make_pictures
from jobs import OUTPUT, PROJECT, composed, run, table
from plain import fine_tune
from tasks import Task
from torch import Tensor, nn

from lora_mnist import load_adapter
from lora_mnist.classifier.net import make_net
from lora_mnist.data import Images, make_data
from lora_mnist.data.mistakes import read_mistakes
from lora_mnist.disk.base import read_base

FOLDER = OUTPUT / "hotfix"
OWN = FOLDER / "own_classifier"
METHODS = ("base", "hotfix", "weighted fine-tuning", "without the mistakes")
SEED = 31
NET = "net.hidden_sizes=[300,100]"
PRETRAIN = "data.batch_size=100 trainer.max_epochs=5"
OWN_NET = (
    f"data=folder data.data_dir={OWN}/photos net=custom net._target_=my_nets.Net paths.here={OWN}"
)


def compare(settings: str, base: Path, incoming: Path) -> Tensor:
    """Learn a base's mistakes among the pictures in ``incoming``: a row of numbers a method."""
    mistakes = FOLDER / f"{incoming.name} {SEED}"
    common = [*settings.split(), f"base_ckpt='{base}'"]
    command = ["predict.py", f"images={incoming}", f"mistakes={mistakes}", *common]
    subprocess.run([sys.executable, *command], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    common += ["experiment=repair", f"seed={SEED}"]
    common += [f"data.mistakes={mistakes}", "data.mistakes_test=0.5"]
    cfg = composed(common)
    data = make_data(cfg, "fit")
    data.setup("test")

    def in_memory(images: Images) -> tuple[Tensor, Tensor]:
        batches = list(data.batches(images))
        return torch.cat([batch for batch, _ in batches]), torch.cat([each for _, each in batches])

    learnt, held_out = (in_memory(images) for images in data.mistake_sets)
    training, test = in_memory(data.train_set), in_memory(data.test_set)
    pictures = in_memory(read_mistakes(incoming, data.class_of_folder, data.read_picture, 0)[0])
    rows, before = [], torch.empty(0)
    for method in METHODS:
        net = make_net(cfg).eval()
        read_base(base, net)
        if method == "base":
            before = wrong(net, pictures)
        elif method == "hotfix":
            load_adapter(net, run(common)[0] / "adapter")
        else:
            torch.manual_seed(SEED)
            half_and_half(net, training if method == "without the mistakes" else learnt, training)
        mended = [1 - wrong(net, part).mean() for part in (learnt, held_out)]
        broken = wrong(net, pictures)[before == 0].mean()
        rows.append([len(learnt[1]), len(held_out[1]), *mended, broken, wrong(net, test).sum()])
    return torch.tensor(rows)


@torch.no_grad()
def wrong(net: nn.Module, images: tuple[Tensor, Tensor]) -> Tensor:
    """Which of ``images`` are wrong: 1.0, else 0.0."""
    logits: Tensor = net(images[0])
    return (logits.argmax(dim=1) != images[1]).float()


def half_and_half(
    net: nn.Module, mistakes: tuple[Tensor, Tensor], training: tuple[Tensor, Tensor]
) -> None:
    """Fine-tune on 10 mistakes and 90 training images a step, half of the loss for each."""

    def loss() -> Tensor:
        total = torch.zeros(())
        for (images, labels), count in ((mistakes, 10), (training, 90)):
            chosen = torch.randint(len(labels), (count,))
            total = total + 0.5 * F.cross_entropy(net(images[chosen]), labels[chosen])
        return total

    fine_tune(net, loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the least that shows that it works")
    quick = parser.parse_args().quick
    rows = []
    for kind in ("slanted",) if quick else ("slanted", "turned", "thick", "own classifier"):
        incoming = FOLDER / "incoming" / kind
        if kind == "own classifier":
            make_own_classifier(OWN, incoming)
            numbers = compare(OWN_NET, OWN / "mine.pt", incoming).tolist()
        else:
            make_pictures(incoming, kind)
            base = Task("hotfix", SEED, NET, pretrain=PRETRAIN).base()
            numbers = compare(NET, base, incoming).tolist()
        cells = [kind, f"{numbers[0][0]:.0f} + {numbers[0][1]:.0f}"]
        for _, _, learnt, held_out, broken, test in numbers:
            cells.append(f"{learnt:.0%}, {held_out:.0%}, {broken:.0%}, {test:.0f}")
        rows.append(cells)
    print(table(["pictures", "learnt + held out", *METHODS], rows))


if __name__ == "__main__":
    main()
