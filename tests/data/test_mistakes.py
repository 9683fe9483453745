from pathlib import Path

import numpy
import pytest
import torch
from composed import logged
from helpers.commands import refused
from PIL import Image
from torchvision.transforms import v2

from lora_mnist.data import Folder, Images, ImageSets
from lora_mnist.data.mistakes import append_mistakes, find_mistakes
from lora_mnist.errors import UserError

DARK = 100


def grays(*levels, on_disk=False):
    """Images of one gray each, in memory or read from files of that name."""
    labels = torch.tensor([level % 2 for level in levels], dtype=torch.int64)
    images = torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 4, 4)
    if not on_disk:
        return Images(images, labels)

    def read_files(paths, augment):
        return [torch.full((1, 4, 4), int(path.stem), dtype=torch.uint8) for path in paths]

    paths = [Path(str(level)) for level in levels]
    return Images(paths, labels, reader=read_files, digests=torch.tensor(levels))


def dataset(train=(), val=(), test=(), on_disk=False):
    """Cats and dogs of these grays."""
    cats_and_dogs = Folder(classes=["cat", "dog"], image_size=4, channels=1, mean=0, std=1)
    parts = {"train": train, "val": val, "test": test}
    parts = {part: grays(*levels, on_disk=on_disk) for part, levels in parts.items()}
    cats_and_dogs.sets = ImageSets(**parts, sha256={"all": "a"}, held_out={}, duplicates=0)
    return cats_and_dogs


def by_darkness(pictures):
    """A picture below DARK is a cat, any other a dog, whatever its folder says."""
    return torch.tensor([int(pixels[0, 0, 0]) >= DARK for pixels, _ in pictures]).long()


def neither(pictures):
    return torch.full((len(list(pictures)),), 2)


def write(folder, names):
    for name, gray in names.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numpy.full((4, 4), gray, dtype=numpy.uint8)).save(path)
    return folder


def read(folder, share=0.2, predict=by_darkness, **parts):
    """Labels by gray: of the mistakes to learn from, and of those held out."""
    mistakes, parts = find_mistakes(predict, dataset(**parts), folder, share), []
    for images in mistakes:
        grays = [int(pixels[0, 0, 0]) for pixels in images.take(range(len(images)))[0]]
        parts.append(dict(zip(grays, images.labels.tolist(), strict=True)))
    return parts


def test_wrong_pictures_leaves_out_what_the_base_has_right_or_nobody_can_read(tmp_path):
    write(tmp_path, {f"cat/{n % 2}/{n}.png": n for n in range(60, 140)})
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    write(tmp_path, {"__MACOSX/cat/1.png": 1, ".cache/1.png": 1, "cat/._60.png": 1})
    with logged("lora_mnist.data.mistakes") as log:
        train_digests, held_out = read(tmp_path)
    assert train_digests | held_out == dict.fromkeys(range(DARK, 140), 0)
    skipped, summary = log.getvalue().splitlines()
    assert skipped.startswith(f"{tmp_path}/cat/notes.txt: skipped: no readable picture")
    assert "the base has 40 of 80 pictures right already, which are excluded; of the " in summary


def test_wrong_pictures_knows_a_picture_by_its_pixels(tmp_path):
    """Neither its file, nor other pictures, nor the network has a say in what is held out."""
    grays = {f"cat/{n}.png": n for n in range(DARK, 180)}
    train_digests, held_out = read(write(tmp_path / "one", grays))
    more = write(tmp_path / "two", {name.replace("png", "bmp"): n for name, n in grays.items()})
    write(more, {**grays, **{f"dog/{n}.png": n for n in range(50)}})
    for predict in (by_darkness, neither):
        for before, after in zip(
            (train_digests, held_out), read(more, predict=predict), strict=True
        ):
            assert before.items() < after.items()
    assert read(more, 0)[1] == {}
    assert len(read(more, 0.5)[1]) > len(held_out) + 20


@pytest.mark.parametrize(
    ("name", "share", "message"),
    [
        ("1.png", 0.2, "mistakes={}: expected pictures, in a folder for each right class; f"),
        ("dogs/1.png", 0.2, "mistakes={}: expected folders named after classes, such as cat, "),
        ("cat/1.png", 0.2, "mistakes={}: expected pictures that the base gets wrong; it "),
        ("dog/1.png", 1, "mistakes_test=1: expected a smaller share, since the base gets 1"),
    ],
)
def test_refuses_a_folder_without_mistakes_to_learn(tmp_path, name, share, message):
    write(tmp_path, {name: 1})
    assert refused(read, tmp_path, share).startswith(message.format(tmp_path))
    none = tmp_path / "none"
    assert refused(read, none).startswith(f"mistakes={none}: no such folder; expected pictures, in")


def test_a_picture_in_two_classes_is_refused(tmp_path):
    folder = write(tmp_path, {"cat/one.png": 150, "dog/other.png": 150})
    with pytest.raises(UserError, match=r"one\.png and .*other\.png are one picture; expected it"):
        read(folder)


@pytest.mark.parametrize("on_disk", [False, True])
def test_no_picture_is_both_trained_on_and_tested_on(tmp_path, on_disk):
    """A training image among them is trained on; a validation or test image is refused."""
    levels = range(DARK, 140)
    write(tmp_path, {f"cat/{n}.png": n for n in levels})
    _, held_out = read(tmp_path)
    known, *unseen = held_out
    train_digests, still_held_out = read(
        tmp_path, train=(1, known), val=(2,), test=(3,), on_disk=on_disk
    )
    assert known in train_digests
    assert list(still_held_out) == unseen
    for part, name in (("val", "validation"), ("test", "test")):
        for level in (known, 139):
            with pytest.raises(UserError, match=f"/cat/{level}.png is {name} image 1; "):
                read(tmp_path, **{part: (2, level)}, on_disk=on_disk)


def test_training_mistakes_follow_the_training_images(tmp_path):
    data = dataset(train=(1, 2), val=(3,), test=(4,))
    write(tmp_path, {f"cat/{n}.png": n for n in range(DARK, 120)})
    mistakes = find_mistakes(by_darkness, data, tmp_path, 0.2)
    train = append_mistakes(data.sets, mistakes).train
    assert len(train) == 2 + len(mistakes.train)
    pixels, labels = train.take(range(3))
    assert pixels[:, 0, 0, 0].tolist() == [1, 2, int(mistakes.train.sources[0][0, 0, 0])]
    assert labels.tolist() == [1, 0, 0]


def test_mistakes_are_augmented_as_training_images_are(tmp_path):
    """Before a transform of one's own: a picture that is in both becomes the same image."""
    photos, incoming = tmp_path / "photos", tmp_path / "incoming"
    write(photos, {f"cat/{n}.png": n for n in range(9)} | {f"dog/{n}.png": n for n in range(9, 18)})
    half = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([1], [2])])
    data = Folder(photos, channels=1, transform=half)
    name = data.sets.train.names[-1]
    write(incoming, {name: int(Path(name).stem)})
    mistakes = find_mistakes(by_darkness, data, incoming, 0)
    train = append_mistakes(data.sets, mistakes).train
    train.augment = v2.RandomInvert(1)
    images, labels = train.take([len(train) - 2, len(train) - 1])
    assert labels.tolist() == [1, 1]
    assert torch.equal(*images)
