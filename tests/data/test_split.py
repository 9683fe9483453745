"""Which images are held out, by the names of their files."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_mnist.data.listing import ImageFile
from lora_mnist.data.split import split_files


def shares(val=0.1, test=0.1, seed=0):
    return {"val_size": val, "test_size": test, "split_seed": seed, "val_from": "train"}


def files(*select_classes):
    """Images of train/: so many of each class."""
    return [
        ImageFile(f"{c}/{i}", c, "train") for c, n in enumerate(select_classes) for i in range(n)
    ]


@given(
    sizes=st.lists(st.integers(5, 60), min_size=2, max_size=5),
    val=st.floats(0, 0.3),
    test=st.floats(0.01, 0.3),
    seed=st.integers(0, 9),
)
def test_split_holds_its_shares_in_every_class(sizes, val, test, seed):
    images, names = files(*sizes), [f"c{i}" for i in range(len(sizes))]
    parts, held_out = split_files(images, names, shares(val, test, seed))
    assert held_out == {"val": "train", "test": "train"}
    assert parts == split_files(images[::-1], names, shares(val, test, seed))[0]
    for c, count in enumerate(sizes):
        of_class = Counter(part for file, part in parts.items() if file.label == c)
        assert of_class["test"] == max(1, round(test * count))
        assert of_class["val"] == (max(1, round(val * count)) if val else 0)


def test_split_is_stable():
    images, more, names = files(200, 200), files(202, 200), ["cat", "dog"]
    first, _ = split_files(images, names, shares())
    assert split_files(images, names, shares(seed=1))[0] != first
    after, _ = split_files(more, names, shares())
    assert len([file for file in images if after[file] != first[file]]) <= 4
    # Another choice here would test old bases on images that they were trained on.
    tested = [file.path for file in images if first[file] == "test"]
    assert tested[:3] == ["0/14", "0/21", "0/31"]


@pytest.mark.parametrize(
    ("count", "settings", "key"),
    [
        (2, shares(0.0001, 0.0001), "val_size"),  # no share but 0 is small enough
        (1, shares(0, 0.1), "test_size"),
        (9, shares(0.05, 0.94), "val_size"),
    ],
)
def test_a_class_of_which_nothing_would_be_left_is_named(count, settings, key):
    with pytest.raises(ValueError, match=f"^{key}=.* of rare .* train, which has {count}; "):
        split_files(files(99, count), ["cat", "rare"], settings)
