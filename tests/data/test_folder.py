import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from helpers.commands import ROOT
from helpers.trainers import trainer_of
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from torch import nn

from lora_mnist.data import FolderDataModule, folder
from lora_mnist.data.folder import _load

Maker = Callable[..., Path]
PETS = {"cat": 20, "dog": 30, "owl": 50}


def fitted(root: Path, **changes: Any) -> FolderDataModule:
    data = FolderDataModule(root, **changes)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def test_one_folder_a_class_is_split(make_photos: Maker) -> None:
    data = fitted(make_photos(PETS))
    assert (data.name, data.classes) == ("photos", ["cat", "dog", "owl"])
    sets = (data.train_set, data.val_set, data.test_set)
    assert [s.labels.bincount().tolist() for s in sets] == [[16, 24, 40], [2, 3, 5], [2, 3, 5]]
    assert data.train_set.images.shape == (80, 3, 8, 8)
    assert data.train_set.images.dtype == torch.uint8
    whole = torch.cat([s.images for s in sets]).flatten(1)
    assert len(whole.unique(dim=0)) == 100


def test_three_folders_stay_what_they_are(make_photos: Maker) -> None:
    make_photos({"cat": 3, "dog": 2}, "train")
    make_photos({"cat": 1, "dog": 1}, "val")
    root = make_photos({"cat": 2, "dog": 1}, "test")
    data = fitted(root)
    sets = (data.train_set, data.val_set, data.test_set)
    assert [s.labels.tolist() for s in sets] == [[0, 0, 0, 1, 1], [0, 1], [0, 0, 1]]
    pixels = numpy.asarray(Image.open(root / "test" / "cat" / "1.png"))
    assert torch.equal(data.test_set.images[1], torch.tensor(pixels).permute(2, 0, 1))
    assert len(fitted(root, target="dog").train_set) == 2


def test_the_split_is_not_the_seeds_affair(make_photos: Maker) -> None:
    root = make_photos(PETS)
    first, other_seed, other_split = (
        fitted(root, **changes).test_set.images for changes in ({}, {"seed": 1}, {"split_seed": 1})
    )
    assert torch.equal(first, other_seed)
    assert not torch.equal(first, other_split)


@pytest.mark.parametrize("target", ["owl", 2, ["owl"], ["dog", 2]])
def test_targets_by_name_or_number(make_photos: Maker, target: Any) -> None:
    data = fitted(make_photos(PETS), target=target, replay=6)
    assert data.target == target
    assert data.targets == [{"dog": 1, "owl": 2}.get(t, t) for t in data.targets or []]
    assert set(data.train_set.labels.tolist()) == set(data.targets or [])
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (16, 3, 8, 8)
    others = labels[10:].bincount(minlength=3)
    assert others.sum() == 6
    assert others[data.targets].sum() == 0


def test_labels_follow_the_order_of_the_network(make_photos: Maker) -> None:
    root = make_photos(PETS)
    plain, turned = fitted(root), fitted(root, classes=["owl", "dog", "cat"], target="owl")
    assert turned.targets == [0]
    assert torch.equal(turned.test_set.labels, 2 - plain.test_set.labels)
    assert torch.equal(turned.test_set.images, plain.test_set.images)


def test_mean_and_std_are_measured_on_the_training_images(make_photos: Maker) -> None:
    root = make_photos(PETS)
    data = fitted(root, target="cat")
    pixels = fitted(root).train_set.images.double().div(255).transpose(0, 1).flatten(1)
    assert data.mean == [round(value, 4) for value in pixels.mean(1).tolist()]
    assert data.std == [round(value, 4) for value in pixels.std(1, correction=0).tolist()]
    given = fitted(root, target="cat", mean=data.mean, std=data.std)
    batches = [next(iter(d.val_dataloader())) for d in (data, given)]
    ours, same = (
        d.on_after_batch_transfer(b, 0)[0] for d, b in zip((data, given), batches, strict=True)
    )
    assert ours.dtype == torch.float32
    assert torch.equal(ours, same)
    assert fitted(root, mean=0.5).mean == 0.5
    assert fitted(root, mean=0.5).std == data.std
    grey = fitted(root, channels=1)
    assert isinstance(grey.mean, float)
    assert grey.train_set.images.shape == (80, 1, 8, 8)


def test_images_all_alike_cannot_be_normalised(make_photos: Maker) -> None:
    root = make_photos({"cat": 5, "dog": 5})
    for path in root.rglob("*.png"):
        Image.new("RGB", (8, 8), "red").save(path)
    with pytest.raises(ValueError, match="std=.*: the training images are all alike"):
        fitted(root)


def test_the_first_batch_measures_what_nobody_has_measured(make_photos: Maker) -> None:
    root = make_photos(PETS)
    data = FolderDataModule(root)
    image = data.read_picture(root / "cat" / "0.png")
    batch, _ = data.on_after_batch_transfer((image[None], torch.tensor([0])), 0)
    assert batch.shape == (1, 3, 8, 8)
    assert data.mean == fitted(root).mean


def test_images_keep_their_own_size_if_it_is_one_for_all(make_photos: Maker) -> None:
    root = make_photos({"cat": 5}, size=(9, 7))
    make_photos({"dog": 5}, size=(9, 7))
    assert fitted(root).train_set.images.shape == (6, 3, 7, 9)
    (root / "cat" / "0.png").write_bytes(b"broken")
    assert fitted(root).train_set.images.shape[1:] == (3, 7, 9)
    Image.new("1", (9_000, 9_000)).save(root / "cat" / "0.png")  # more than is decoded
    assert fitted(root).train_set.images.shape[1:] == (3, 7, 9)
    make_photos({"owl": 5}, size=(4, 6))
    with pytest.raises(
        ValueError, match=r"image_size=null: .* but owl/0.png is 6x4 and another 7x9"
    ):
        fitted(root)
    assert fitted(root, image_size=5).train_set.images.shape == (8, 3, 5, 5)
    assert fitted(root, image_size=[4, 6]).train_set.images.shape == (8, 3, 4, 6)


def test_broken_images_are_counted(make_photos: Maker) -> None:
    root = make_photos(PETS)
    for i in range(4):
        (root / "owl" / f"{i}.png").write_bytes(b"broken")
    data = fitted(root)
    assert re.fullmatch("[0-9a-f]{64}", data.sha256["all"])
    assert sorted(data.skipped) == [f"owl/{i}.png" for i in range(4)]
    assert sum(len(s) for s in (data.train_set, data.val_set, data.test_set)) == 96


def test_a_class_of_broken_images_is_refused(make_photos: Maker) -> None:
    root = make_photos({"cat": 5, "dog": 5})
    for path in (root / "cat").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="data_dir=.*: none of the images in cat can be read"):
        fitted(root)
    for path in (root / "dog").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="data_dir=.*: none of the images can be read"):
        fitted(root)
    with pytest.raises(ValueError, match="data_dir=.*: none of the images in cat can be read"):
        fitted(root, image_size=8)


def test_what_does_not_fit_in_memory_is_refused_before_reading(
    make_photos: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "free_memory", lambda: 600_000)
    monkeypatch.setattr(folder, "read_pictures", None)
    with pytest.raises(
        ValueError,
        match=r"image_size=\[100, 100\]: expected at most about 31: 100 images of 3x100x100 take "
        r"0.0 GB while they are read, and 0.0 GB of memory are free",
    ):
        fitted(make_photos(PETS), image_size=100)


def test_the_jobs_of_a_sweep_share_one_copy(make_photos: Maker) -> None:
    root = make_photos(PETS)
    _load.cache_clear()
    first, second = fitted(root), fitted(root, seed=3)
    assert first.test_set.images.data_ptr() == second.test_set.images.data_ptr()
    Image.new("RGB", (8, 8)).save(root / "cat" / "new.png")
    assert len(fitted(root, val_size=0).train_set) == 91


def test_a_picture_from_elsewhere_is_brought_to_the_same_form(
    make_photos: Maker, tmp_path: Path
) -> None:
    root = make_photos(PETS)
    Image.new("L", (40, 90), 77).save(tmp_path / "x.jpg")
    data = FolderDataModule(root)
    assert data.read_picture(tmp_path / "x.jpg").shape == (3, 8, 8)
    (tmp_path / "y.jpg").write_bytes(b"broken")
    with pytest.raises(ValueError, match="no readable picture"):
        data.read_picture(tmp_path / "y.jpg")


def test_pictures_can_be_read_without_a_folder(tmp_path: Path) -> None:
    Image.new("RGB", (40, 90), "red").save(tmp_path / "x.png")
    data = FolderDataModule(
        None, classes=["cat", "dog"], image_size=8, mean=0.5, std=0.25, target="dog"
    )
    assert (data.name, data.targets) == ("folder", [1])
    image = data.read_picture(tmp_path / "x.png")
    assert data.on_after_batch_transfer((image[None], torch.zeros(1)), 0)[0].max() == 2
    with pytest.raises(ValueError, match="data_dir=null: expected a folder of images"):
        data.prepare_data()
    with pytest.raises(ValueError, match="image_size=null: expected a size"):
        FolderDataModule(None, classes=["cat", "dog"]).read_picture(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_dir": None}, "data_dir=null: expected a folder of images"),
        ({"data_dir": None, "classes": ["cat"]}, r"classes=\['cat'\]: expected two or more names"),
        ({"data_dir": None, "classes": "cat"}, "classes=cat: expected a list of names"),
        ({"data_dir": "nowhere"}, "data_dir=nowhere: expected a folder of images; there is none"),
        ({"classes": ["cat", "cow"]}, "there is no folder cow"),
        ({"target": "cow"}, "target=cow: expected null, a class from 0 to 2.*cat, dog, owl"),
        ({"channels": 2}, "channels=2: expected 1 or 3"),
        ({"channels": True}, "channels=True: expected 1 or 3"),
        ({"resize": "fit"}, "resize=fit: expected crop or stretch"),
        ({"image_size": 0}, "image_size=0: expected null, a number of pixels from 1"),
        ({"image_size": [8]}, r"image_size=\[8\]: expected null, a number of pixels"),
        ({"image_size": "8"}, "image_size=8: expected null, a number of pixels"),
        ({"image_size": True}, "image_size=True: expected null, a number of pixels"),
        ({"image_size": 10**6}, "image_size=1000000: expected null, a number of pixels from 1 to"),
        ({"val_size": 1.5}, "val_size=1.5: expected a number of images or a share"),
        ({"test_size": -1}, "test_size=-1: expected a number of images or a share"),
        ({"split_seed": None}, "split_seed=None: expected an integer >= 0"),
        ({"mean": [0.5, 0.5]}, r"mean=\[0.5, 0.5\]: expected a number from 0 to 1, or 3 of them"),
        ({"channels": 1, "std": [1, 1, 1]}, r"std=\[1, 1, 1\]: expected a number > 0"),
    ],
)
def test_refuses_bad_arguments(make_photos: Maker, changes: dict[str, Any], message: str) -> None:
    arguments = {"data_dir": make_photos(dict.fromkeys(PETS, 1)), **changes}
    with pytest.raises(ValueError, match=message):
        FolderDataModule(**arguments)


def test_rating_works_on_colours(make_photos: Maker) -> None:
    data = fitted(make_photos(PETS), target="cat", replay=4, hardness=0.5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    data.draw_weights = data.rate(net)
    assert data.draw_weights.target.sum().item() == pytest.approx(1)
    assert len(next(iter(data.train_dataloader()))[1]) == 14


def test_processes_share_each_batch(make_photos: Maker) -> None:
    root = make_photos(PETS)
    whole = next(iter(fitted(root, target="owl").train_dataloader()))[0]
    halves = []
    for rank in range(2):
        data = fitted(root, target="owl")
        data.trainer = trainer_of(rank, processes=2)
        halves.append(next(iter(data.train_dataloader()))[0])
    assert torch.equal(torch.stack(halves, dim=1).flatten(0, 1), whole)


def test_the_configuration_builds_one(make_photos: Maker, tmp_path: Path) -> None:
    root = make_photos(PETS)
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        for augment in ("none", "shift", "flip"):
            cfg = compose(
                overrides=[
                    *("+data=folder", f"+augment={augment}", f"data.data_dir={root}"),
                    *("data.mean=[0.5,0.5,0.5]", f"+paths.outputs={tmp_path}/outputs"),
                ]
            )
            data = instantiate(cfg.data, target=["cat", 1], _convert_="all")
            assert isinstance(data, FolderDataModule)
            assert (data.targets, data.mean) == ([0, 1], [0.5] * 3)
            assert (data.augment is None) == (augment == "none")
            data.setup("fit")
    assert list((tmp_path / "outputs" / "cache").glob("photos-*.safetensors"))
