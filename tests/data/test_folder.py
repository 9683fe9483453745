import multiprocessing
import os
import re
import shutil
import struct
import sys
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from helpers.commands import refused
from helpers.stranger import take_pictures
from PIL import Image, JpegImagePlugin
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from lora_mnist.data import Folder, digest_cache, folder
from lora_mnist.data.digests import compute_digests
from lora_mnist.data.pictures import examine, open_picture
from lora_mnist.errors import PictureError
from lora_mnist.project import import_from_here


@pytest.fixture
def make_photos(tmp_path):
    """``make_photos({"cat": 5}, "train")``: five images of noise, from train/cat/0.png on."""
    root = tmp_path / "photos"

    def make(counts, *below, size=(8, 8)):
        take_pictures(root.joinpath(*below), counts, size, seed=len(list(root.rglob("*"))))
        return root

    return make


def read(root, **changes):
    """Images and labels of training, validation and test."""
    sets = Folder(root, **changes).sets
    return [part.take(range(len(part))) for part in (sets.train, sets.val, sets.test)]


def counts(root, **changes):
    """How many images of each class are for training, validation and test."""
    return [labels.bincount().tolist() for _, labels in read(root, **changes)]


OWN_TRANSFORMS = """
from torchvision.transforms.v2.functional import hflip, pil_to_tensor
def prepare(picture): return pil_to_tensor(picture) / 255
def augment(picture): return hflip(picture)
"""
#: To test on, of the odd pictures below: chosen when each was decoded to see whether it counts.
TESTED = ["cat/1.png", "cat/12.png", "cat/13.png", "dog/17.png", "dog/18.png"]
LANCZOS = [v2.Resize(18, InterpolationMode.LANCZOS), v2.CenterCrop(16)]


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        ({"resize": "stretch", "image_size": [48, 64]}, [v2.Resize((48, 64))]),
        ({"crop_pct": 0.889, "interpolation": "lanczos"}, LANCZOS),  # a rounded share
    ],
)
def test_folder_reads_what_torchvision_reads(make_photos, keys, steps):
    parts = ("train", "validation", "test")
    for part in parts:
        root = make_photos({"cat": 2, "cat-a": 1, "cat2": 1}, part, size=(40, 30))
    ours = read(root, **{"image_size": 16, **keys})
    for part, (images, labels) in zip(parts, ours, strict=True):
        theirs = ImageFolder(str(root / part), v2.Compose([*steps, v2.PILToTensor()]))
        by_path = sorted(range(len(theirs)), key=lambda i: theirs.imgs[i][0])
        assert labels.tolist() == [theirs[i][1] for i in by_path]
        assert torch.equal(images, torch.stack([theirs[i][0] for i in by_path]))


@pytest.mark.parametrize("limit", [0, folder.MAX_IN_MEMORY])
def test_a_file_is_decoded_at_the_first_pass_and_when_it_is_used(make_photos, monkeypatch, limit):
    """At the next pass it is known. One that is broken inside is excluded from the first on."""
    monkeypatch.setattr(folder, "MAX_IN_MEMORY", limit)
    monkeypatch.setattr("lora_mnist.data.digest_cache._IN_DOUBT", 0)
    root, decoded = make_photos({"cat": 12, "dog": 12}, size=(14, 9)), []
    for path in sorted(root.rglob("*.png")):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    broken = root / "cat" / "0.jpg"
    content = broken.read_bytes()
    tables = content.index(b"\xff\xc4")  # Huffman's
    broken.write_bytes(content[: tables + 4] + bytes(20) + content[tables + 24 :])

    def load_and_note(picture):
        decoded.append(picture)
        return load(picture)

    load = JpegImagePlugin.JpegImageFile.load
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", load_and_note)
    for passes in (24, 1):
        sets = Folder(root, image_size=8, mean=0, std=1).sets
        assert len(set(map(id, decoded))) == passes
        assert len(sets.train) + len(sets.val) + len(sets.test) == 23
        assert "cat/0.jpg" not in {*sets.train.names, *sets.val.names, *sets.test.names}
        decoded.clear()
    for images in (sets.test, sets.test.subset(torch.tensor([1, 0]))):
        images.take([0, 1])
    assert len(set(map(id, decoded))) == (2 if limit else 4)


def odd_pictures(folder):
    """Files of all kinds that there are to judge: of some not all can be read."""
    noise = Image.effect_noise((40, 30), 80)
    noise.save(folder / "cut.jpg")
    noise.save(folder / "ends.jpg")
    (folder / "more.jpg").write_bytes((folder / "ends.jpg").read_bytes() + b"a camera's own")
    noise.convert("CMYK").save(folder / "cmyk.jpg")
    for name in ("cut.png", "wrong.png"):
        noise.convert("RGB").save(folder / name)
    Image.new("RGBA", (9, 9), (0, 0, 0, 90)).save(folder / "even.png")
    drawn = Image.new("LA", (9, 9))
    drawn.paste((0, 255), (2, 2, 5, 5))
    drawn.save(folder / "alpha.png")
    Image.new("F", (9, 9)).save(folder / "light.tif")
    Image.new("LAB", (9, 9)).save(folder / "lab.tif")
    header, rows = (
        struct.pack(">IIBBBBB", 9, 9, 8, 0, 0, 0, 0),
        zlib.compress(os.urandom(4 * 10))[:20],
    )
    with (folder / "few_rows.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, chunk in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")):
            checksum = struct.pack(">I", zlib.crc32(kind + chunk))
            file.write(struct.pack(">I", len(chunk)) + kind + chunk + checksum)
    Image.frombytes("I;16", (2, 1), b"abcd").save(folder / "deep.png")
    for name in ("whole.webp", "whole.bmp", "cut.bmp"):
        noise.save(folder / name)
    for name in ("cut.jpg", "cut.png", "cut.bmp"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-300])
    content = bytearray((folder / "wrong.png").read_bytes())
    content[len(content) // 2] ^= 255
    (folder / "wrong.png").write_bytes(content)
    (folder / "empty.png").touch()
    os.mkfifo(folder / "pipe.png")


def test_the_files_that_count_for_the_split_are_those_that_can_be_decoded(make_photos):
    root = make_photos({"cat": 20, "dog": 20})
    odd_pictures(root / "cat")
    sets, readable = Folder(root, image_size=8, mean=0, std=1).sets, set()
    for path in root.rglob("*.*"):
        with suppress(PictureError):  # also of the pipe, which nobody writes to
            open_picture(path)
            readable.add(path.relative_to(root).as_posix())
    kept = {"ends.jpg", "more.jpg", "cmyk.jpg", "even.png", "deep.png", "whole.webp", "whole.bmp"}
    assert {Path(name).name for name in readable} >= kept
    assert len(readable) == 40 + len(kept)
    assert {*sets.train.names, *sets.val.names, *sets.test.names} == readable
    assert sorted(sets.test.names) == TESTED


def test_folder_read_from_the_disk_is_as_in_memory(make_photos, monkeypatch):
    root = make_photos({"cat": 20, "dog": 30}, size=(14, 9))
    jpeg = root / "dog" / "3.jpg"  # cut short; Pillow verifies the head of a JPEG alone
    Image.open(root / "dog" / "3.png").resize((140, 90)).save(jpeg)
    (root / "dog" / "3.png").unlink()
    jpeg.write_bytes(jpeg.read_bytes()[:-300])
    form = {"image_size": [6, 8], "channels": 1, "resize": "stretch"}
    in_memory = Folder(root, **form).sets.train
    monkeypatch.setattr(folder, "MAX_IN_MEMORY", 0)
    on_disk = Folder(root, **form).sets.train
    for taken, expected in zip(on_disk.take(range(39)), in_memory.take(range(39)), strict=True):
        assert torch.equal(taken, expected)
    on_disk.sources[1].write_bytes(b"broken meanwhile")
    with pytest.raises(ValueError, match=f"{on_disk.sources[1]}: no readable picture"):
        on_disk.take([1])


def test_folder_knows_which_files_are_images_of_which_class(make_photos, caplog):
    root = make_photos({"cat": 3}, "cat", "2024")
    make_photos({"dog": 4, "train": 5})  # no folder of classes: the class of the trains
    for hidden in (".cache", "__MACOSX"):
        (root / hidden).mkdir()
    make_photos({".thumbnails": 2}, "dog")
    for name in (".DS_Store", "._0.png", "film.heic"):
        (root / "dog" / name).touch()
    Image.new("F", (8, 8)).save(root / "dog" / "light.tif")
    for number, size in ((0, 60), (1, 0)):  # broken
        path = root / "train" / f"{number}.png"
        path.write_bytes(path.read_bytes()[:size])
    labels = torch.cat([labels for _, labels in read(root)])
    assert labels.bincount().tolist() == [3, 4, 3]
    for name in ("film.heic", "light.tif", "0.png", "1.png"):
        assert name in caplog.text


def test_of_links_in_a_circle_each_folder_is_read_once(make_photos):
    """Links are followed: a class may be made of them."""
    for part in ("train", "test"):
        root = make_photos({"cat": 7, "dog": 7}, part)
    make_photos({"emu": 5}, "..")
    links = {"cat/again": "../cat", "cat/itself": "itself"}
    links |= dict.fromkeys(("dog/more", "dog/more_of_them"), root.parent / "emu")
    for link, there in links.items():
        (root / "train" / link).symlink_to(there)
    sets = Folder(root).sets
    names = [*sets.train.names, *sets.val.names, *sets.test.names]
    folders = dict.fromkeys(("train/cat", "train/dog", "test/cat", "test/dog"), 7)
    expected = {**folders, "train/dog/more": 5}
    assert Counter(name.rpartition("/")[0] for name in names) == expected


def test_the_sha256_changes_with_the_images(make_photos):
    root = make_photos({"cat": 5, "dog": 5})
    hashes = {Folder(root, split_seed=seed).sets.sha256["all"] for seed in (0, 1)}
    make_photos({"cat": 1})  # replaced by other noise
    hashes.add(Folder(root).sets.sha256["all"])
    (root / "cat" / "0.png").rename(root / "dog" / "9.png")
    hashes.add(Folder(root).sets.sha256["all"])
    hashes.add(Folder(root, classes=["dog", "cat"]).sets.sha256["all"])
    assert len(hashes) == 4


def test_images_keep_their_own_size_if_it_is_one_for_all(make_photos):
    root = make_photos({"cat": 5, "dog": 5}, size=(9, 7))
    (root / "cat" / "0.png").write_bytes(b"broken")
    assert read(root)[0][0].shape[1:] == (3, 7, 9)
    Image.new("L", (40, 90)).save(root.parent / "x.jpg")
    assert Folder(root).read_picture(root.parent / "x.jpg").shape == (3, 7, 9)
    make_photos({"owl": 5}, size=(4, 6))
    with pytest.raises(ValueError, match=r"image_size=None: expected .* is 6x4, another 7x9$"):
        read(root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transform": v2.Resize(4), "image_size": 8}, "transform=Resize"),
        ({"val_size": "abc"}, "val_size=abc: "),
        ({"image_size": 64.5}, "image_size=64.5: expected null, pixels, or "),
        ({"image_size": 2**70}, f"image_size={2**70}: expected null, pixels, or "),
        ({"name": ["a", 3]}, "name=.*: expected a name without /"),
        ({"test_size": 0}, "test_size=0: expected a share above 0"),
    ],
)
def test_folder_refuses_bad_arguments(make_photos, changes, message):
    arguments = {"data_dir": make_photos({"cat": 4, "dog": 4}), **changes}
    with pytest.raises(ValueError, match=message):
        _ = Folder(**arguments).sets


def test_each_class_has_a_folder_of_its_name_with_images_to_train_on(make_photos):
    root = make_photos({"Flöte": 2}, "train")
    with pytest.raises(ValueError, match="expected a folder for each of two classes"):
        Folder(root)
    make_photos({"Oboe": 2}, "train")
    with pytest.raises(ValueError, match=r"^classes=.*Floete.*: \[Flöte,Oboe\]"):
        _ = Folder(root, classes=["Floete", "Oboe"]).sets
    make_photos({"Floete": 2, "Oboe": 2}, "test")
    with pytest.raises(ValueError, match=r"^data_dir=.*/test: .*Floete"):
        _ = Folder(root).sets
    (root / "test" / "Floete").rename(root / "train" / "Floete")
    for path in (root / "train" / "Floete").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"^data_dir=.*; Floete has "):
        _ = Folder(root).sets


def test_no_name_is_a_command_to_a_terminal(make_photos, caplog):
    """Such as red, from there on; a class may not have it, and a file is named without."""
    root = make_photos({"cat": 9, "dog": 9})
    (root / "cat" / "\x1b[31m.png").write_bytes(b"broken")
    (root / "cat" / "\x1b[31m.txt").touch()
    _ = Folder(root).sets
    assert caplog.text.count("\\x1b[31m") == 2
    assert "\x1b" not in caplog.text
    make_photos({"\x1b[31mowl": 2})
    with pytest.raises(ValueError, match=r"^classes='\\x1b\[31mowl': "):
        Folder(root)


def test_a_class_named_like_an_interpolation_is_refused(make_photos):
    """A record would name other code than its maker's: OmegaConf replaces it."""
    with pytest.raises(ValueError, match=r"^classes='\$\{net\}': "):
        Folder(make_photos({"cat": 9, "${net}": 9}))


def test_test_images_that_are_trained_on_are_excluded(make_photos, caplog):
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
    assert [sum(part) for part in counts(root)] == [19, 9, 10]
    (message,) = caplog.messages
    assert message.startswith("4 images are excluded, since another split has them: ")


def test_parts_go_by_name_in_any_case(make_photos, caplog):
    root = make_photos({"cat": 9, "dog": 9}, "Training")
    make_photos({"cat": 10, "dog": 30}, "TEST")
    for name in ("valid", "validation"):
        make_photos({"cat": 2, "dog": 1}, name)
    (root / "emu").mkdir()  # beside these it is no class
    assert counts(root) == [[9, 9], [4, 2], [10, 30]]
    assert "emu is ignored" in caplog.text
    # Of the test images, and those of val/ are trained on.
    assert counts(root, val_from="test", val_size=0.3) == [[13, 11], [3, 9], [7, 21]]


def test_a_transform_gives_a_tensor():
    for strange in ("wxyz", {"cat": 0}, ["cat", None]):  # as a stranger's record may have it
        with pytest.raises(ValueError, match="^classes=.*: expected a list of names"):
            Folder(classes=strange, transform=v2.Resize(4))
    data = Folder(classes=["cat", "dog"], transform=v2.Resize(4))
    assert refused(data.read_picture, Image.new("RGB", (9, 9))).startswith("prepare.transform: ")


@pytest.mark.slow
@pytest.mark.parametrize("method", [pytest.param("spawn", marks=pytest.mark.nightly), "forkserver"])
def test_workers_that_are_not_forked_import_what_lies_where_the_user_stands(
    make_photos, tmp_path, monkeypatch, method
):
    """As on macOS and Windows: a transform, and what augments, of one's own."""
    (tmp_path / "transforms_for_workers.py").write_text(OWN_TRANSFORMS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "transforms_for_workers", raising=False)
    with import_from_here():
        own = import_module("transforms_for_workers")
    data = Folder(make_photos({"cat": 5, "dog": 5}), transform=own.prepare, num_workers=1)
    images = replace(data.sets.train, augment=own.augment)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        ((batch, labels),) = data.loader(images, batch_size=len(images))
    finally:
        multiprocessing.set_start_method(before, force=True)
    expected, expected_labels = images.take(range(len(images)))
    assert torch.equal(batch, expected)
    assert torch.equal(labels, expected_labels)


def test_a_folder_is_read_only_where_it_has_to_be(tmp_path):
    """Somebody else's adapter names classes, size, mean and deviation; its folder is not here."""
    known = {"classes": ["cat", "dog"], "image_size": 8, "mean": 0.5, "std": 0.25}
    data = Folder(tmp_path / "none", **known, name=0)
    assert data.name == "0"
    assert data.read_picture(Image.new("RGB", (9, 9))).shape == (3, 8, 8)
    with pytest.raises(ValueError, match="none: no such folder "):
        _ = data.sets
    for key in known:
        others = {name: known[name] for name in known if name != key}
        with pytest.raises(Exception, match="data_dir=.*: expected a folder of images"):
            Folder(**others).preprocessing()


def test_images_to_validate_and_to_test_need_no_others(make_photos):
    make_photos({"cat": 2, "dog": 3}, "val")
    root = make_photos({"cat": 4, "dog": 5}, "test")
    options = {"image_size": 8, "mean": 0.5, "std": 0.5}
    assert counts(root, **options) == [[], [2, 3], [4, 5]]


@pytest.mark.parametrize("limit", [0, folder.MAX_IN_MEMORY])
def test_images_are_known_by_content_whatever_their_times_say(make_photos, monkeypatch, limit):
    """Also where other images were laid over them by ``cp -p``; in memory, or on the disk."""
    monkeypatch.setattr(folder, "MAX_IN_MEMORY", limit)
    monkeypatch.setattr(digest_cache, "_IN_DOUBT", 0)
    root = make_photos({"cat": 9, "dog": 9}, size=(14, 9))
    for picture in sorted(root.rglob("*.png")):  # of one size, and of one age
        Image.open(picture).save(picture.with_suffix(".bmp"))
        picture.unlink()
        os.utime(picture.with_suffix(".bmp"), ns=(1, 1))
    form = {"image_size": 8, "mean": 0, "std": 1}
    first = Folder(root, **form).sets
    train_digests, tested = root / first.train.names[0], root / first.test.names[0]
    shutil.copy2(train_digests, tested)
    again = Folder(root, **form).sets
    assert again.duplicates == 1
    assert tested.relative_to(root).as_posix() not in again.test.names


def test_what_files_hold_is_known_from_command_to_command(make_photos, monkeypatch, tmp_path):
    """Digests are cached if images are not held in memory; uncertain files are read again."""
    root, cache, hashed = make_photos({"cat": 9, "dog": 9}, size=(14, 9)), tmp_path / "cache", []
    beside = sorted(root.rglob("*"))

    def examine_and_note(path):
        hashed.append(path.relative_to(root).as_posix())
        return examine(path)

    def hashed_by():
        hashed.clear()
        sets = Folder(root, image_size=8, mean=0, std=1).sets
        assert torch.equal(sets.test.digests, compute_digests(sets.test.sources))
        return sorted(hashed), sets.sha256

    monkeypatch.setattr(digest_cache, "examine", examine_and_note)
    pictures = sorted(path for path in root.rglob("*.png"))
    names = [path.relative_to(root).as_posix() for path in pictures]
    monkeypatch.setattr(folder, "MAX_IN_MEMORY", 0)
    assert hashed_by()[0] == hashed_by()[0] == names  # so new that they may still change
    monkeypatch.setattr(digest_cache, "_IN_DOUBT", 0)
    first, sha256 = hashed_by()
    assert (first, hashed_by()) == (names, ([], sha256))
    pictures[2].write_bytes(pictures[1].read_bytes()[:-1] + b"x")
    pictures[0].unlink()
    changed, of_changed = hashed_by()
    assert (changed, of_changed == sha256) == (names[2:3], False)
    assert hashed_by() == ([], of_changed)
    (file,) = cache.rglob("*.json")
    whole = file.read_text()
    for damaged in (whole[:100], re.sub(r"\[.*?\]", "[7]", whole)):
        file.write_text(damaged)
        assert hashed_by() == (names[1:], of_changed)
        assert hashed_by() == ([], of_changed)
    assert {*root.rglob("*")} == {*beside} - {pictures[0]}
