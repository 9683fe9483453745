"""What a hotfix from a folder of mistakes is worth, beside a weighted fine-tuning in plain PyTorch.

    python scripts/studies/hotfix.py                  # a table of docs/worth.md
    python scripts/studies/hotfix.py FOLDER slanted   # just corrupted digits, or turned, or thick

Corrupted digits on a base that nothing else uses, and the example's own classifier. Runs are kept
in outputs/repair_study; called again, it does what is missing.
"""

import copy
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from jobs import OUTPUT, PROJECT, composed, run
from PIL import Image, ImageFilter
from rival import fine_tune, in_memory, table
from tasks import EXAMPLE, Task
from torch import Tensor, nn

from lora_mnist import load_adapter
from lora_mnist.config.command import Run
from lora_mnist.config.values import checked_copy
from lora_mnist.data import MNIST, ImageDataset
from lora_mnist.training.opening import open_session

FOLDER = OUTPUT / "hotfix"
OWN = FOLDER / "own_classifier"
SEED = 31
NET = "net.hidden_sizes=[300,100]"
PRETRAIN = "batches.batch_size=100 trainer.max_epochs=5"
OWN_NET = f"data=folder data.data_dir={OWN}/photos net=custom net._target_=my_nets.Net"


def compare(settings: str, base: Path, incoming: Path) -> list[str]:
    """Learn a base's mistakes among the pictures in ``incoming``: cells of the table."""
    common = [*settings.split(), f"base_ckpt='{base}'", "experiment=repair", f"seed={SEED}"]
    common += [f"mistakes='{incoming}'", "mistakes_test=0.5"]
    session = open_session(checked_copy(composed(common)), Run(FOLDER))
    assert session.mistakes is not None
    net, dataset = session.net, session.classifier.dataset
    learnt, held_out = (in_memory(dataset, part) for part in session.mistakes)
    training = in_memory(dataset, dataset.sets.train)
    test = in_memory(dataset, session.images.test)
    pictures = all_pictures(incoming, dataset)

    hotfix = load_adapter(copy.deepcopy(net), run(common)[0] / "adapter")
    tuned, trained = (half_and_half(net, images, training) for images in (learnt, training))
    was_right = wrong(net, pictures) == 0
    cells = [f"{len(learnt[1])} + {len(held_out[1])}"]
    for each in (net, hotfix, tuned, trained):
        mended, generalised = (1 - wrong(each, part).mean() for part in (learnt, held_out))
        broken, errors = wrong(each, pictures)[was_right].mean(), wrong(each, test).sum()
        cells.append(f"{mended:.0%}, {generalised:.0%}, {broken:.0%}, {errors:.0f}")
    return cells


def all_pictures(folder: Path, dataset: ImageDataset) -> tuple[Tensor, Tensor]:
    """The pictures in ``folder``, right or wrong, normalised, and their labels."""
    images, labels = [], []
    for path in sorted(folder.glob("*/*")):
        images.append(dataset.read_picture(path))
        labels.append(dataset.classes.index(path.parent.name))
    return dataset.normalise(torch.stack(images)), torch.tensor(labels)


@torch.no_grad()
def wrong(net: nn.Module, images: tuple[Tensor, Tensor]) -> Tensor:
    """Which of ``images`` are wrong: 1.0, else 0.0."""
    logits: Tensor = net(images[0])
    return (logits.argmax(dim=1) != images[1]).float()


def half_and_half(
    base: nn.Module, mistakes: tuple[Tensor, Tensor], training: tuple[Tensor, Tensor]
) -> nn.Module:
    """Fine-tune a copy on 10 mistakes and 90 training images a step, half of the loss for each."""
    net = copy.deepcopy(base)

    def loss() -> Tensor:
        total = torch.zeros(())
        for (images, labels), count in ((mistakes, 10), (training, 90)):
            chosen = torch.randint(len(labels), (count,))
            total = total + 0.5 * F.cross_entropy(net(images[chosen]), labels[chosen])
        return total

    torch.manual_seed(SEED)
    fine_tune(net, loss)
    return net


def make_pictures(folder: Path, kind: str) -> None:
    """Write 500 validation images of MNIST, black on white, four times their size."""
    images, labels = MNIST("MNIST", PROJECT / "data").load(train=True)
    for number in range(55_000, 55_500):
        picture = Image.fromarray(255 - images[number, 0].numpy()).resize((112, 112))
        if kind == "slanted":
            slant = (1, 0.8, -45, 0, 1, 0)  # x + 0.8 y - 45
            picture = picture.transform(picture.size, Image.Transform.AFFINE, slant, fillcolor=255)
        elif kind == "turned":
            picture = picture.rotate(30, fillcolor=255)
        elif kind == "thick":
            picture = picture.filter(ImageFilter.MinFilter(9))
        else:
            raise SystemExit(f"{kind}: expected slanted, turned or thick")
        path = folder / str(int(labels[number])) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def make_own_classifier(folder: Path, incoming: Path) -> None:
    """A copy of the example with its network trained; two thirds of its photos/val come in."""
    if folder.exists():
        return
    shutil.copytree(EXAMPLE, folder)
    for script in ("make_images.py", "train_plain.py"):
        subprocess.run([sys.executable, script], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for path in folder.glob("photos/val/*/1[12]*.png"):
        place = incoming / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)


def main() -> None:
    if len(sys.argv) > 1:
        make_pictures(Path(sys.argv[1]), sys.argv[2])
        return
    rows = []
    for kind in ("slanted", "turned", "thick", "own classifier"):
        incoming = FOLDER / "incoming" / kind
        if kind == "own classifier":
            make_own_classifier(OWN, incoming)
            cells = compare(OWN_NET, OWN / "mine.pt", incoming)
        else:
            make_pictures(incoming, kind)
            base = Task("hotfix", SEED, NET, pretrain=PRETRAIN).base()
            cells = compare(NET, base, incoming)
        rows.append([kind, *cells])
    methods = ["base", "hotfix", "weighted fine-tuning", "without the mistakes"]
    print(table(["pictures", "learnt + held out", *methods], rows))


if __name__ == "__main__":
    main()
