import os
import shutil
from collections import Counter

import numpy
import pytest
import torch
from composed import logged
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from lora_mnist.data import Folder, folder
from lora_mnist.data.image_files import Entry, ImageFiles, Preparation
from lora_mnist.data.pictures import open_picture
from lora_mnist.data.split import split

PETS = {"cat": 20, "dog": 30, "owl": 50}


@pytest.fixture
def make_photos(tmp_path):
    """``make_photos({"cat": 5, "dog": 3}, "train", size=(8, 6))``: that many images a class.

    The images are noise; they are cat/0.png, cat/1.png, ... in tmp_path/photos/train.
    """

    def make(counts, *below, size=(8, 8)):
        root = tmp_path / "photos"
        generator = numpy.random.default_rng(len(list(root.rglob("*"))))
        for name, count in counts.items():
            folder = root.joinpath(*below, name)
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
        return root

    return make


def sets(root, **changes):
    """The data set, and images and labels of training, validation and test."""
    data = Folder(root, **changes)
    return data, [part.take(list(range(len(part)))) for part in parts_of(data)]


def parts_of(data):
    return data.sets.train, data.sets.val, data.sets.test


CROP, TENSOR = v2.CenterCrop(16), v2.PILToTensor()
#: How images are prepared: keys beside image_size=16, and what torchvision has for them.
WAYS = {
    "crop": ({}, [v2.Resize(16), CROP, TENSOR]),
    "stretch": ({"resize": "stretch"}, [v2.Resize((16, 16)), TENSOR]),
    "two sides": ({"resize": "stretch", "image_size": [16, 24]}, [v2.Resize((16, 24)), TENSOR]),
    "a rounded share": (
        {"crop_pct": 0.889, "interpolation": "lanczos"},
        [v2.Resize(18, InterpolationMode.LANCZOS), CROP, TENSOR],
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [(40, 30), (7, 5)])
def test_reads_what_torchvision_reads(make_photos, way, size):
    for part in ("train", "validation", "test"):
        root = make_photos({"cat": 2, "cat-a": 1, "cat2": 1}, part, size=size)
    keys, steps = WAYS[way]
    _, ours = sets(root, **{"image_size": 16, **keys})
    for part, (images, labels) in zip(("train", "validation", "test"), ours, strict=True):
        theirs = ImageFolder(str(root / part), v2.Compose(steps))
        by_path = sorted(range(len(theirs)), key=lambda i: theirs.imgs[i][0])
        assert labels.tolist() == [theirs[i][1] for i in by_path]
        assert torch.equal(images, torch.stack([theirs[i][0] for i in by_path]))


def test_from_the_disk_is_as_in_memory(make_photos, monkeypatch):
    """Also with another way to resize than the configured one."""
    root = make_photos(PETS, size=(14, 9))
    (root / "owl" / "3.png").write_bytes(b"broken")
    changes = {"image_size": [6, 8], "channels": 1}
    _, held = sets(root, resize="stretch", **changes)
    cropped, _ = sets(root, **changes)
    with monkeypatch.context() as patched:
        patched.setattr(folder, "MAX_IN_MEMORY", 0)
        data, _ = sets(root, resize="stretch", **changes)
    on_disk = [*parts_of(data), *cropped.prepared(resize="stretch")]
    for expected, files in zip([*held, *held[:2]], on_disk, strict=True):
        images, labels = files.take(list(range(len(files))))
        assert torch.equal(images, expected[0])
        assert torch.equal(labels, expected[1])
        assert files.take([])[0].shape == (0, 1, 6, 8)
    assert not isinstance(sets(root)[0].sets.test, ImageFiles)
    large = Folder(root, image_size=9_999, mean=0.5, std=0.5).sets.test
    assert isinstance(large, ImageFiles)
    (large.root / large.files[1]).write_bytes(b"broken meanwhile")
    with pytest.raises(ValueError, match=f"{large.root / large.files[1]}: no readable picture"):
        large.take([1])


def test_other_files_are_left_out_and_named(make_photos, caplog):
    root = make_photos({"cat": 3}, "cat", "2024")
    make_photos({"dog": 4})
    for hidden in (".cache", "__MACOSX"):
        (root / hidden).mkdir()
    for name in (".DS_Store", "._0.png", "film.heic"):
        (root / "dog" / name).touch()
    (root / "train").mkdir()  # no folder of classes: the class of the trains
    make_photos({"train": 5})
    labels = torch.cat([labels for _, labels in sets(root)[1]])
    assert labels.bincount().tolist() == [3, 4, 5]
    (record,) = caplog.records
    assert "film.heic" in record.getMessage()


def test_broken_images_are_named_and_left_out(make_photos, caplog):
    root = make_photos({"cat": 20, "dog": 20})
    for i in range(12):
        path = root / "cat" / f"{i}.png"
        path.write_bytes(path.read_bytes()[:60] if i else b"no picture")
    _, parts = sets(root)
    assert [labels.bincount().tolist() for _, labels in parts] == [[6, 16], [1, 2], [1, 2]]
    assert f"{root}/cat/0.png: skipped: no readable picture (" in caplog.text
    assert len(caplog.records) == 12
    for path in (root / "cat").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="some images of cat to train on, and to test on; 0 of"):
        sets(root)


def test_a_picture_of_more_than_sixteen_bits_is_named_and_left_out(make_photos, caplog):
    root = make_photos({"cat": 20, "dog": 20})
    Image.fromarray(numpy.full((8, 8), 70000, numpy.int32)).save(root / "cat" / "wide.tif")
    assert sum(len(labels) for _, labels in sets(root)[1]) == 40
    assert "wide.tif: skipped: no readable picture (more than 16 bits" in caplog.text


def test_the_sha256_changes_with_the_images(make_photos):
    root = make_photos({"cat": 5, "dog": 5})
    hashes = {sets(root, split_seed=seed)[0].sets.sha256["all"] for seed in (0, 1)}
    make_photos({"cat": 1})  # replaced by other noise
    hashes.add(sets(root)[0].sets.sha256["all"])
    (root / "cat" / "0.png").rename(root / "dog" / "9.png")
    hashes.add(sets(root)[0].sets.sha256["all"])
    hashes.add(sets(root, classes=["dog", "cat"])[0].sets.sha256["all"])
    assert len(hashes) == 4


def test_images_keep_their_own_size_if_it_is_one_for_all(make_photos):
    root = make_photos({"cat": 5, "dog": 5}, size=(9, 7))
    (root / "cat" / "0.png").write_bytes(b"broken")
    data, parts = sets(root)
    assert parts[0][0].shape[1:] == (3, 7, 9)
    Image.new("L", (40, 90)).save(root.parent / "x.jpg")
    assert data.read_picture(root.parent / "x.jpg").shape == (3, 7, 9)
    make_photos({"owl": 5}, size=(4, 6))
    with pytest.raises(ValueError, match=r"image_size=null: expected .* is 6x4 and another 7x9$"):
        sets(root)


@pytest.mark.parametrize(
    ("mode", "file"),
    [("I;16", "x.png"), ("I;16", "x.tif"), ("I;16B", "x.tif"), ("I;16", "x.pgm"), ("I", "x.tif")],
)
def test_sixteen_bits_are_not_clipped(tmp_path, mode, file):
    levels = torch.linspace(0, 65535, 81).view(9, 9).int().numpy()
    kind = {"I": "<i4", "I;16": "<u2", "I;16B": ">u2"}[mode]
    if file.endswith("pgm"):
        (tmp_path / file).write_bytes(b"P5 9 9 65535\n" + levels.astype(">u2").tobytes())
    else:
        Image.frombytes(mode, (9, 9), levels.astype(kind).tobytes()).save(tmp_path / file)
    image = Preparation(1, (9, 9))(open_picture(tmp_path / file))
    assert numpy.array_equal(image[0].numpy(), levels >> 8)


def test_a_test_folder_alone_is_enough_to_test(make_photos):
    root = make_photos({"cat": 5, "dog": 5}, "test")
    data = Folder(root, mean=0.5, std=0.5, image_size=8)
    assert [len(part) for part in parts_of(data)] == [0, 0, 10]
    images, labels = data.sets.test.take([])
    assert (images.shape, labels.shape) == ((0, 3, 8, 8), (0,))


def test_a_name_that_is_no_unicode_is_named_and_left_out(make_photos):
    root = make_photos({"cat": 5, "dog": 5})
    source = os.fsencode(root / "cat" / "0.png")
    shutil.copy(source, os.fsencode(root) + b"/cat/\xff.png")
    with logged("lora_mnist") as log:
        assert sum(len(part) for part in parts_of(Folder(root))) == 10
    assert "is left out: its name is not UTF-8" in log.getvalue()


def entries(*of_classes, part="train"):
    return [Entry(f"{c}/{i}", c, part) for c, count in enumerate(of_classes) for i in range(count)]


@given(
    sizes=st.lists(st.integers(5, 60), min_size=2, max_size=5),
    val=st.floats(0, 0.3),
    test=st.floats(0.01, 0.3),
    seed=st.integers(0, 9),
)
def test_shares_hold_in_every_class(sizes, val, test, seed):
    images, names = entries(*sizes), [f"c{i}" for i in range(len(sizes))]
    parts = split(images, names, val, test, seed)
    assert parts == split(images[::-1], names, val, test, seed)
    for c, count in enumerate(sizes):
        of_class = Counter(part for entry, part in parts.items() if entry.label == c)
        assert of_class["test"] == max(1, round(test * count))
        assert of_class["val"] == (max(1, round(val * count)) if val else 0)


def test_the_split_is_stable():
    images, more, names = entries(200, 200), entries(202, 200), ["cat", "dog"]
    first = split(images, names, 0.1, 0.1, 0)
    assert split(images, names, 0.1, 0.1, 1) != first
    after = split(more, names, 0.1, 0.1, 0)
    assert len([entry for entry in images if after[entry] != first[entry]]) <= 4
    # Another choice here would test old bases on images that they were trained on.
    tested = [entry.path for entry in images if first[entry] == "test"]
    assert tested[:3] == ["0/14", "0/21", "0/31"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["cat", "cow"]}, r"classes=.*: expected every folder of .* once: \['cat', "),
        ({"classes": [1.1, "dog"]}, "classes=1.1: expected names, quoted"),
        ({"transform": v2.Resize(4), "image_size": 8}, "image_size=8: expected null, since transf"),
        ({"transform": v2.Resize(4), "resize": "stretch"}, "resize=stretch: expected null, since "),
        ({"test_size": 0}, "test_size=0: expected more, since there is no folder test/"),
        ({"val_size": 0.7, "test_size": 0.4}, "val_size=0.7 test_size=0.4: expected to leave "),
    ],
)
def test_refuses_bad_arguments(make_photos, changes, message):
    arguments = {"data_dir": make_photos(dict.fromkeys(PETS, 4)), **changes}
    with pytest.raises(ValueError, match=message):
        _ = Folder(**arguments).sets


def test_there_are_two_classes_and_each_has_images_to_train_on(make_photos):
    root = make_photos({"cat": 2}, "train")
    with pytest.raises(ValueError, match="expected a folder for each of two classes"):
        Folder(root)
    make_photos({"dog": 2}, "train")
    make_photos({"emu": 2}, "val")
    with pytest.raises(ValueError, match="to leave some images of emu to train on, and to test on"):
        _ = Folder(root).sets


def test_images_to_test_on_that_are_trained_on_are_left_out(make_photos, caplog):
    root = make_photos({"cat": 9, "dog": 9}, "train")
    make_photos({"cat": 5, "dog": 5}, "val")
    make_photos({"cat": 6, "dog": 6}, "test")
    for copied, copy in (
        ("train/cat/1.png", "test/cat/copy.png"),
        ("train/cat/2.png", "test/dog/2.png"),
        ("val/cat/1.png", "test/cat/1.png"),
        ("train/dog/3.png", "val/dog/3.png"),
        ("train/dog/3.png", "train/dog/more.png"),
    ):
        shutil.copy(root / copied, root / copy)
    _, parts = sets(root)
    assert [len(labels) for _, labels in parts] == [19, 9, 10]
    (message,) = caplog.messages
    assert message.startswith(f"{root}: 4 validation or test images are left out ")
    shutil.rmtree(root / "test")
    shutil.copytree(root / "train", root / "test")
    with pytest.raises(ValueError, match="expected test images that are not trained on"):
        sets(root)


def test_folders_go_by_name_in_any_case(make_photos):
    root = make_photos({"cat": 9, "dog": 9}, "Training")
    make_photos({"cat": 2, "dog": 3}, "TEST")
    for name in ("valid", "validation"):
        make_photos({"cat": 2, "dog": 1}, name)
    (root / "emu").mkdir()
    with logged("lora_mnist.data.image_files") as text:
        data, parts = sets(root)
    assert data.classes == ["cat", "dog"]
    assert [labels.bincount().tolist() for _, labels in parts] == [[9, 9], [4, 2], [2, 3]]
    assert text.getvalue() == f"{root}: emu is ignored, as it is no train/, val/ or test/\n"


def test_validation_images_may_come_from_the_test_images(make_photos):
    root = make_photos({"cat": 20, "dog": 20}, "train")
    make_photos({"cat": 10, "dog": 30}, "test")
    make_photos({"cat": 4, "dog": 4}, "val")  # is trained on then
    _, parts = sets(root, val_from="test", val_size=0.3)
    counts = [labels.bincount().tolist() for _, labels in parts]
    assert counts == [[24, 24], [3, 9], [7, 21]]


def test_a_folder_is_read_only_where_it_has_to_be(make_photos, tmp_path):
    """Somebody else's adapter names classes, size, mean and deviation; its folder is not here."""
    known = {"classes": ["cat", "dog"], "image_size": 8, "mean": 0.5, "std": 0.25}
    data = Folder(tmp_path / "none", **known)
    assert data.read_picture(Image.new("RGB", (9, 9))).shape == (3, 8, 8)
    with pytest.raises(ValueError, match="none: expected a folder of images; there is none"):
        _ = data.sets
    for key in known:
        with pytest.raises(ValueError, match="none: expected a folder of images; there is none"):
            Folder(tmp_path / "none", **{name: known[name] for name in known if name != key})
    with pytest.raises(ValueError, match="data_dir=null: expected a folder of images, or classes"):
        Folder(classes=["cat", "dog"])


def test_a_transform_of_ones_own_makes_the_networks_input(make_photos):
    steps = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    data, ((images, _), *_) = sets(make_photos({"cat": 5, "dog": 5}), transform=steps)
    assert isinstance(data.sets.train, ImageFiles)
    assert images.dtype == torch.float32
    assert images.max() <= 1
    assert torch.equal(data.normalise(images), images)
    assert data.preprocessing() == {"classes": ["cat", "dog"], "channels": 3}
