from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_mnist.data.listing import Entry, class_folders, list_images, split

Maker = Callable[..., Path]
PETS = {"dog": 2, "cat": 3}


def test_classes_are_folders_in_sorted_order(make_photos: Maker) -> None:
    root = make_photos(PETS | {"10": 1, "2": 1, "Owl": 1})
    (root / ".cache").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "readme.txt").touch()
    assert class_folders(root) == ["10", "2", "Owl", "cat", "dog"]


def test_classes_in_the_order_of_the_network(make_photos: Maker) -> None:
    root = make_photos({"1": 1, "2": 1})
    assert class_folders(root, ["2", "1"]) == ["2", "1"]
    assert class_folders(root, [2, 1]) == ["2", "1"]  # as the command line reads them
    entries = list_images(root, ["2", "1"])
    assert [(entry.path, entry.label) for entry in entries] == [("1/0.png", 1), ("2/0.png", 0)]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["dog", "cow"], r"classes=\['dog', 'cow'\]: there is no folder cow; expected \['cat', 'd"),
        (
            ["dog", "owl"],
            r"classes=\['dog', 'owl'\]: expected every folder: \['cat', 'dog', 'owl'\]",
        ),
        (["dog"], r"classes=\['dog'\]: expected two or more names, each once"),
        (["dog", "cat", "cat"], "classes=.*: expected two or more names, each once"),
        (["dog", None], "classes=.*: expected a list of names"),
        ("dog", "classes=dog: expected a list of names"),
        (5, "classes=5: expected a list of names"),
    ],
)
def test_refuses_other_classes(make_photos: Maker, classes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_folders(make_photos(PETS | {"owl": 1}), classes)


def test_a_link_to_a_folder_above_it_is_followed_once(make_photos: Maker) -> None:
    """Two of them would lead through the same folders a billion times."""
    root = make_photos(PETS)
    for name in ("a", "b"):
        (root / "cat" / name).symlink_to(".")
    (root / "dog" / "more").symlink_to(root / "cat")
    entries = list_images(root, ["cat", "dog"])
    cats = [entry.path for entry in entries if entry.label == 0]
    assert cats == [f"cat/{i}.png" for i in range(3)]
    assert len([entry for entry in entries if entry.label == 1]) == 2 + 3


def test_a_class_has_a_name_that_can_be_shown(make_photos: Maker) -> None:
    root = make_photos(PETS | {"\x1b[2Jcow": 1})
    with pytest.raises(ValueError, match=r"expected a printable name of a folder, .*x1b\[2Jcow"):
        class_folders(root)


def test_three_parts(make_photos: Maker) -> None:
    for part in ("train", "val", "test"):
        root = make_photos(PETS, part)
    assert class_folders(root) == ["cat", "dog"]
    entries = list_images(root, ["cat", "dog"])
    assert [entry.part for entry in entries] == ["train"] * 5 + ["val"] * 5 + ["test"] * 5
    assert entries[0].path == "train/cat/0.png"
    assert entries[0].size == (root / "train/cat/0.png").stat().st_size


def test_train_may_be_a_class(make_photos: Maker) -> None:
    root = make_photos({"bus": 2, "train": 3})
    assert class_folders(root) == ["bus", "train"]
    assert {entry.part for entry in list_images(root, ["bus", "train"])} == {""}


def test_folders_within_a_class_belong_to_it(make_photos: Maker) -> None:
    root = make_photos({"2023": 2, "2024": 1}, "cat")
    make_photos({"dog": 1})
    labels = Counter(entry.label for entry in list_images(root, ["cat", "dog"]))
    assert labels == {0: 3, 1: 1}


def test_other_files_are_left_out_and_named(
    make_photos: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_photos(PETS)
    (root / "cat" / ".DS_Store").touch()
    (root / "cat" / "._0.png").touch()
    (root / "dog" / "movie.heic").touch()
    assert len(list_images(root, ["cat", "dog"])) == 5
    assert "1 files left out, which are no images by their names" in caplog.text
    assert "movie.heic" in caplog.text


def test_refuses_what_is_no_folder_of_classes(tmp_path: Path, make_photos: Maker) -> None:
    with pytest.raises(ValueError, match=r"data_dir=.*nowhere: expected a folder of images; there"):
        class_folders(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"two or more classes, found none"):
        class_folders(tmp_path / "empty")
    root = make_photos({"cat": 2})
    with pytest.raises(ValueError, match="two or more classes, found only cat"):
        class_folders(root)
    (root / "dog").mkdir()
    with pytest.raises(ValueError, match=r"no images in dog; expected files that end in .jpg"):
        list_images(root, class_folders(root))


def test_refuses_parts_that_differ(make_photos: Maker) -> None:
    make_photos(PETS, "train")
    root = make_photos({"cat": 1, "cow": 1}, "test")
    with pytest.raises(ValueError, match="classes of train/ in test/ too, which lacks dog and has"):
        class_folders(root)


def test_refuses_a_part_of_another_name(make_photos: Maker) -> None:
    make_photos(PETS, "train")
    root = make_photos(PETS, "valid")
    with pytest.raises(
        ValueError, match="expected train/, val/ and test/ alone.* not valid/ besid"
    ):
        class_folders(root)


def test_refuses_a_test_without_training(make_photos: Maker) -> None:
    with pytest.raises(ValueError, match="expected train/ beside test/"):
        class_folders(make_photos(PETS, "test"))


def entries(*counts: int, part: str = "") -> list[Entry]:
    return [Entry(f"{c}/{i}", c, part, 0, 0) for c, n in enumerate(counts) for i in range(n)]


@given(
    counts=st.lists(st.integers(5, 60), min_size=2, max_size=5),
    val=st.floats(0, 0.3),
    test=st.floats(0.01, 0.3),
    seed=st.integers(0, 9),
)
def test_shares_hold_in_every_class(counts: list[int], val: float, test: float, seed: int) -> None:
    images, names = entries(*counts), [f"c{i}" for i in range(len(counts))]
    parts = split(images, names, val, test, seed)
    assert parts == split(images, names, val, test, seed)
    for c, count in enumerate(counts):
        of_class = Counter(p for e, p in zip(images, parts, strict=True) if e.label == c)
        assert of_class["test"] == max(1, round(test * count))
        assert of_class["val"] == (max(1, round(val * count)) if val else 0)


@given(counts=st.lists(st.integers(20, 60), min_size=2, max_size=5), number=st.integers(1, 30))
def test_numbers_are_shared_out_in_proportion(counts: list[int], number: int) -> None:
    images, names = entries(*counts), [f"c{i}" for i in range(len(counts))]
    parts = Counter(zip((e.label for e in images), split(images, names, 0, number, 0), strict=True))
    of_class = [parts[c, "test"] for c in range(len(counts))]
    assert sum(of_class) == number
    for c, count in enumerate(counts):
        assert abs(of_class[c] - number * count / sum(counts)) < 1


def test_the_split_depends_on_its_seed_and_little_on_new_files() -> None:
    images, names = entries(200, 200), ["cat", "dog"]
    first = split(images, names, 0.1, 0.1, 0)
    assert split(images, names, 0.1, 0.1, 1) != first
    more = split(entries(202, 200), names, 0.1, 0.1, 0)
    before = dict(zip((e.path for e in images), first, strict=True))
    after = dict(zip((e.path for e in entries(202, 200)), more, strict=True))
    assert sum(after[path] != part for path, part in before.items()) <= 4


def test_folders_stay_what_they_are() -> None:
    names = ["cat", "dog"]
    images = entries(20, 20, part="train") + entries(5, 5, part="test")
    parts = split(images, names, 0.25, 0.5, 0)
    assert Counter(parts) == {"train": 30, "val": 10, "test": 10}
    assert parts[40:] == ["test"] * 10
    images += entries(3, 3, part="val")
    assert Counter(split(images, names, 0.25, 0.5, 0)) == {"train": 40, "val": 6, "test": 10}


def test_refuses_to_hold_out_everything() -> None:
    with pytest.raises(
        ValueError, match="test_size=0: expected more, since there is no folder tes"
    ):
        split(entries(5, 5), ["cat", "dog"], 0.1, 0, 0)
    with pytest.raises(
        ValueError,
        match="val_size=0.6: expected less: of the 5 images of cat, 2 go to test and 3 go to val",
    ):
        split(entries(5, 50), ["cat", "dog"], 0.6, 0.4, 0)
    with pytest.raises(ValueError, match="test_size=99: expected less: of the 5 images of cat"):
        split(entries(5, 50), ["cat", "dog"], 0, 99, 0)
