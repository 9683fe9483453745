"""Training images are recognized by content: they neither test nor choose anything."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from composed import composed, run
from helpers.commands import read_csv, refused
from helpers.stranger import CLASSES, take_pictures
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms.v2.functional import pil_to_tensor

from lora_mnist import MLP
from lora_mnist.classifier.base import read_base_sha256, write_base
from lora_mnist.classifier.train_digests_file import (
    TRAIN_DIGESTS_FILE,
    read_train_digests,
    write_train_digests,
)
from lora_mnist.classifier.weights_file import read_base
from lora_mnist.commands import evaluate, train
from lora_mnist.config.run import Run
from lora_mnist.errors import UserError
from lora_mnist.lora.adapter import read_metadata
from lora_mnist.training.module import ClassifierModule
from lora_mnist.training.opening import open_session

SIZES = {"in_features": 192, "hidden_sizes": [16], "num_classes": 3}
PHOTOS = (
    *("data=folder", "data.data_dir=photos", "net=custom", "net._target_=lora_mnist.MLP"),
    *("net.in_features=192", "net.hidden_sizes=[16]", "net.num_classes=3"),
    *("trainer=cpu", "logger=none", "figures=false", "paths.outputs=outputs"),
)
IN_MEMORY = ("prepare.image_size=8", "prepare.mean=0", "prepare.std=1")
ON_DISK = ("prepare.transform={_target_: helpers.nets.as_floats}",)
#: Each step has all images to learn.
TRAIN = ("callbacks.checkpoint=null", "trainer.max_steps=1", "batches.batch_size=500")
LORA = ("stage=lora", "target=dog", "batches.replay=auto", "lora.scale=1")
COMMANDS = {
    "pretrain": (
        *(TRAIN[0], TRAIN[2], "stage=pretrain", "base_ckpt=base.ckpt"),
        *("trainer.max_epochs=20", "optimizer.lr=0.01", "+trainer.check_val_every_n_epoch=20"),
    ),
    "repair": (*TRAIN, *LORA, "base_ckpt=base.ckpt", "refit=false"),
    "refit": (*TRAIN, *LORA, "base_ckpt=base.ckpt", "refit=true"),
    "repair of a stranger's": (*TRAIN, *LORA, "base_ckpt=mine.safetensors"),
    "hotfix": (*TRAIN, LORA[0], *LORA[2:], "base_ckpt=base.ckpt", "mistakes=incoming"),
    "eval": ("base_ckpt=base.ckpt",),
    "eval of latest": ("adapter=latest", "scale=auto"),
    "eval of a hotfix": ("adapter=latest", "mistakes=incoming"),
}


def hash_pixels(image):
    """What an image is known by here: the hash of its pixels."""
    pixels = (image * 255).round() if image.is_floating_point() else image
    return hashlib.sha256(pixels.to(torch.uint8).numpy().tobytes()).hexdigest()


class World:
    """A folder of photos, commands on it, and what each base and adapter has really seen."""

    def __init__(self, folder, monkeypatch, form):
        monkeypatch.chdir(folder)
        take_pictures(folder / "photos", dict.fromkeys(CLASSES, 9))
        # Each in the folder of another class, so that the base gets them wrong.
        take_pictures(folder / "incoming", dict.fromkeys(["dog", "emu", "cat"], 8), seed=1)
        torch.manual_seed(0)
        save_file(MLP(**SIZES).state_dict(), "mine.safetensors")
        self.form, self.count, self.sessions = form, 0, []
        self.drawn = set()  # by the training that goes on
        self.seen = {"mine.safetensors": set()}  # by each base, and by the latest adapter with it

        def open_and_keep(*arguments):
            self.sessions.append(open_session(*arguments))
            return self.sessions[-1]

        step = ClassifierModule.training_step

        def step_and_note(module, batch, *arguments):
            self.drawn |= set(map(hash_pixels, batch[0]))
            return step(module, batch, *arguments)

        monkeypatch.setattr(train, "open_session", open_and_keep)
        monkeypatch.setattr(evaluate, "open_session", open_and_keep)
        monkeypatch.setattr(ClassifierModule, "training_step", step_and_note)

    def run(self, command, *overrides):
        """The results of a command, after a look at what it has tested, or chosen by."""
        overrides = (*PHOTOS, *self.form, *COMMANDS[command], *overrides)
        self.count += 1
        self.drawn = set()
        entry, stage = ("eval", "eval") if "eval" in command else ("train", "lora")
        folder = Path("outputs", stage, f"{self.count}").absolute()
        function = train.train if entry == "train" else evaluate.evaluate
        results = function(composed(entry, *overrides), Run(folder))
        base, session = "latest", self.sessions[-1]
        for text in overrides:
            if "base_ckpt=" in text:
                base = text.removeprefix("base_ckpt=")
        known = set() if command == "pretrain" else self.seen[base]
        self.look(session.images.val, known)
        if session.mistakes is not None:
            self.look(session.mistakes.test, known | self.drawn)
        for row in read_csv(folder / "predictions.csv"):
            with Image.open(Path("photos", row["file"])) as picture:
                assert hash_pixels(pil_to_tensor(picture)) not in known | self.drawn
        if command == "pretrain":
            self.seen[base] = self.drawn
        elif entry == "train":
            self.seen["latest"] = known | self.drawn
        return results

    def look(self, images, known):
        """None of these images is known."""
        if len(images):
            assert not known & set(map(hash_pixels, images.take(range(len(images)))[0]))

    def move(self, way, number):
        """Change where images lie."""
        files = sorted(Path("photos").rglob("*.png"))
        file = files[number % len(files)]
        if way == "copy":
            shutil.copy(file, file.with_name(f"{number}-copy.png"))
        elif way == "rename":
            file.rename(file.with_name(f"{number}-moved.png"))
        elif way == "incoming":
            shutil.copy(file, Path("incoming", CLASSES[number % 3], file.name))
        elif way == "pictures":
            for name in CLASSES:
                target = file.parents[1] / name / f"{number}.png"
                shutil.copy(Path("incoming", name, f"{number % 8}.png"), target)
        elif Path("photos", "train").exists():
            Path("photos", "train").rename("moved")
            Path("photos").rmdir()
            Path("moved").rename("photos")
        else:
            Path("photos").rename("moved")
            Path("photos").mkdir()
            Path("moved").rename("photos/train")


MORE = ("data.test_size=0.5",)
SPLITS = st.sampled_from(
    [(), ("data.split_seed=1",), MORE, ("data.val_size=0.3", "data.test_size=0.2")]
)
MOVES = st.tuples(
    st.sampled_from(["copy", "rename", "incoming", "pictures", "train"]), st.integers(0, 50)
)
STEPS = st.tuples(st.sampled_from([*COMMANDS]), SPLITS, st.lists(MOVES, max_size=2))


@pytest.fixture(params=[IN_MEMORY, ON_DISK], ids=["in memory", "on disk"])
def begin(request, tmp_path, monkeypatch):
    """``begin()`` is a world where a base and a repair have just been made, as often as called."""
    here, then = tmp_path / "here", tmp_path / "then"
    here.mkdir()
    world = World(here, monkeypatch, request.param)
    world.run("pretrain")
    world.run("repair")
    shutil.copytree(here, then)
    seen = world.seen.copy()

    def back():
        shutil.rmtree(here)
        shutil.copytree(then, here)
        monkeypatch.chdir(here)
        world.seen = seen.copy()
        return world

    return back


@pytest.mark.slow
@settings(
    max_examples=3,
    phases=[Phase.explicit, Phase.generate],  # to shrink one would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@example(steps=[("refit", (), []), ("eval of latest", MORE, [])])
@given(steps=st.lists(STEPS, min_size=2, max_size=4))
def test_no_image_is_both_trained_on_and_tested_on(begin, steps):
    """Whatever the splits, the order of the commands, and the images' ways in between."""
    world = begin()
    for command, split, moves in steps:
        for move in moves:
            world.move(*move)
        said = "data"
        try:
            world.run(command, *split)
        except UserError as error:  # such as: no test image is left
            said = str(error)
        assert said.startswith(("data", "mistakes", "optimizer.lr=", "refit=true"))


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch, IN_MEMORY)


def test_trained_on_images_are_counted_and_logged(world, caplog):
    """In the log, in results.json and in the report."""
    caplog.set_level("INFO", "lora_mnist")
    world.run("repair of a stranger's")
    assert "excluded" not in caplog.text
    results = world.run("eval of latest", "data.test_size=0.5", "figures=true")
    about = results["excluded"]["test"]
    assert about["images"] + sum(results["test"]["images_per_class"]) == about["of"] == 12
    line = f"{about['images']} of 12 test images are excluded: the adapter was trained on them"
    assert line == about["line"]
    assert line in caplog.text
    (report,) = Path("outputs").rglob("report.html")
    assert line in report.read_text()
    assert results["unknown_train_digests"] == ["base"]


def test_without_unseen_images_nothing_is_tested_or_chosen(world):
    """The key that would mend it is named; the scale is the saved one."""
    world.run("repair of a stranger's", "lora.scale=0.5")
    images, known = world.sessions[-1].images, Path("known")
    for name in images.train.names:
        (known / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path("photos", name), known / name)
    said = refused(world.run, "eval of latest", "data.data_dir=known")
    assert said.startswith("data.data_dir=known: 3 of 3 test images are excluded: the adapter ")
    for name in CLASSES:
        (known / "train").mkdir(exist_ok=True)
        (known / name).rename(known / "train" / name)
    for name in images.test.names:
        (known / "test" / name).parent.mkdir(parents=True)
        shutil.copy(Path("photos", name), known / "test" / name)
    Path("photos").rename("old")
    known.rename("photos")
    results = world.run("eval of latest")
    assert results["point"]["scale"] == 0.5
    *_, last = results["choices"]["point"]["reasons"]
    assert last == {"code": "validation_images_excluded", "images": 3, "of": 3}


def test_each_adapter_has_its_own_digests(world, caplog):
    """Not those of one before it in its folder, or of another; PEFT's has none."""
    world.run("repair of a stranger's")
    (adapter,) = Path("outputs").rglob("adapter")
    sha256 = read_metadata(adapter)["train_digests"]
    digests = read_train_digests(adapter, sha256)
    assert torch.equal(digests, world.sessions[-1].images.train.digests.sort().values)
    assert read_train_digests(adapter, None) is None
    assert "not known" not in caplog.text
    write_train_digests(adapter, digests[1:])
    assert read_train_digests(adapter, sha256) is None
    (adapter / TRAIN_DIGESTS_FILE).write_text("damaged")
    assert read_train_digests(adapter, sha256) is None
    (adapter / TRAIN_DIGESTS_FILE).unlink()
    assert read_train_digests(adapter, sha256) is None
    assert caplog.text.count("not known") == 3
    assert world.run("eval of latest")["unknown_train_digests"] == ["base", "adapter"]


def test_a_base_is_its_weights_alone(world, tmp_path):
    """Its digests go where its file goes, and its SHA-256 does not include them."""
    world.run("pretrain")
    (own,) = Path("outputs", "base").glob("*.ckpt")
    file = read_base(own)
    assert torch.equal(file.train_digests, world.sessions[-1].images.train.digests.sort().values)
    assert torch.equal(read_base(Path("base.ckpt")).train_digests, file.train_digests)
    write_base(file.tensors, tmp_path / "bare.ckpt", file.record)
    assert read_base(tmp_path / "bare.ckpt").train_digests is None
    assert read_base_sha256(tmp_path / "bare.ckpt") == read_base_sha256(own) == file.sha256


def test_a_base_trained_on_all_other_images_is_validated_on_test_images(tmp_path):
    """As the notebook's: no share of the training images is new to it."""
    base = ("data.val_size=0", "batches.batch_size=200", "trainer.max_steps=20")
    run(tmp_path, "stage=pretrain", *base, "optimizer.lr=0.01")
    for more in ((), ("data.val_size=0",)):
        said = refused(run, tmp_path, "stage=lora", "target=9", "lora.scale=auto", *more)
        assert said.startswith("lora.scale=auto: expected validation images: data.val_from=test, ")
    results = run(
        tmp_path,
        "stage=lora",
        "target=9",
        "lora.scale=auto",
        "data.val_from=test",
        "data.val_size=100",
    )
    assert results["validation_images"] == 100
