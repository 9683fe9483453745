import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import answers, images
from safetensors.numpy import save_file

from lora_mnist.disk.predictions import ANSWERS_FILE, read_answers, write_answers


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_answers(answers(), images(), tmp_path)
    found = read_answers(tmp_path)
    assert found is not None
    assert found.label.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.adapted is not None
    assert found.adapted.tolist() == [0, 1, 1, 1, 0, 1]
    assert found.adapted_probability is not None
    assert found.adapted_probability.tolist() == pytest.approx(
        [0.9, 0.5, 0.6, 0.7, 0.25, 0.75], abs=1e-3
    )
    repaired, broken = found.galleries["repaired"], found.galleries["broken"]
    assert (repaired.index.tolist(), repaired.total) == ([2], 1)
    assert (broken.index.tolist(), broken.total) == ([5, 4], 2)  # the surest first
    assert [int(image.max()) for image in broken.images] == [50, 40]


def test_confusions_follow_from_it(tmp_path: Path) -> None:
    write_answers(answers(), images(), tmp_path)
    found = read_answers(tmp_path)
    assert found is not None
    assert found.confusion("base", 3).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 2]]
    assert found.confusion("adapted", 3).tolist() == [[1, 1, 0], [0, 2, 0], [1, 1, 0]]


def test_of_a_base_alone_what_is_wrong(tmp_path: Path) -> None:
    write_answers(answers(pair=False), images(), tmp_path)
    found = read_answers(tmp_path)
    assert found is not None
    assert found.adapted is None
    assert found.galleries.keys() == {"wrong"}
    assert found.galleries["wrong"].index.tolist() == [2, 1]


def test_classes_take_turns(tmp_path: Path) -> None:
    label = torch.tensor([0] * 40 + [1])
    told = {
        "index": torch.arange(41),
        "label": label,
        "base": 1 - label,
        "base_probability": torch.linspace(0.99, 0.5, 41),
    }
    write_answers(told, torch.zeros(41, 1, 2, 2, dtype=torch.uint8), tmp_path)
    found = read_answers(tmp_path)
    assert found is not None
    gallery = found.galleries["wrong"]
    assert gallery.index.tolist()[:3] == [0, 40, 1]
    assert (len(gallery.index), gallery.total) == (32, 41)


def test_images_come_from_where_they_are(tmp_path: Path) -> None:
    """A test on part of the images, as with limit_test_batches and several processes."""
    told = {key: tensor[::2] for key, tensor in answers().items()}
    write_answers(told, images(), tmp_path)
    found = read_answers(tmp_path)
    assert found is not None
    assert [int(image.max()) for image in found.galleries["broken"].images] == [40]


def test_large_images_are_kept_small(tmp_path: Path) -> None:
    write_answers(answers(), images(channels=3, side=200), tmp_path)
    found = read_answers(tmp_path)
    assert found is not None
    assert found.galleries["broken"].images.shape == (2, 3, 50, 50)


def test_small_files(tmp_path: Path) -> None:
    n = 10_000
    told = {"index": torch.arange(n), "label": torch.zeros(n, dtype=torch.int64)}
    for side in ("base", "adapted"):
        told |= {side: torch.zeros(n, dtype=torch.int64), f"{side}_probability": torch.ones(n)}
    write_answers(told, torch.zeros(n, 1, 28, 28, dtype=torch.uint8), tmp_path)
    assert (tmp_path / ANSWERS_FILE).stat().st_size < 80_000
    many = {**told, "label": torch.full((n,), 999)}
    write_answers(many, torch.zeros(n, 1, 28, 28, dtype=torch.uint8), tmp_path)
    found = read_answers(tmp_path)
    assert found is not None
    assert np.unique(found.label).tolist() == [999]


def test_there_may_be_none(tmp_path: Path) -> None:
    assert read_answers(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"torn", b"\x02\0\0\0\0\0\0\0{}"])
def test_what_cannot_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ANSWERS_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"^answers\.safetensors: damaged"):
        read_answers(tmp_path)


def test_a_strangers_answers_take_no_more_memory_than_they_may(tmp_path: Path) -> None:
    told = {"label": np.array([2**31 - 1, 0], dtype=np.int32), "base": np.zeros(2, dtype=np.uint8)}
    told |= {"wrong.index": np.zeros(0), "wrong.images": np.zeros((0, 1, 2, 2), dtype=np.uint8)}
    save_file({**told, "base_probability": np.ones(2)}, tmp_path / ANSWERS_FILE)
    found = read_answers(tmp_path)
    assert found is not None
    with pytest.raises(ValueError, match=r"answers\.safetensors: answers beyond the 10 classes"):
        found.confusion("base", 10)
    (tmp_path / ANSWERS_FILE).unlink()
    os.mkfifo(tmp_path / ANSWERS_FILE)
    with pytest.raises(ValueError, match=r"^answers\.safetensors: damaged"):
        read_answers(tmp_path)
