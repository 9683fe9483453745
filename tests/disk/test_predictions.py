from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import confusion, images, predictions, results

from lora_mnist.data import ImageTensors
from lora_mnist.disk.predictions import Predictions, read_predictions, write_predictions


def written(
    folder: Path, tensors: dict[str, torch.Tensor], of: torch.Tensor, **splits: Any
) -> Predictions:
    splits = splits or results("lora" if "adapted" in tensors else "pretrain")
    test_set = ImageTensors(of, torch.zeros(len(of), dtype=torch.int64))
    write_predictions(tensors, test_set, folder, splits)
    found = read_predictions(folder)
    assert found is not None
    return found


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    assert read_predictions(tmp_path) is None
    tensors = predictions()
    found = written(tmp_path, tensors, images())
    for name in ("label", "base", "adapted"):
        assert getattr(found, name).tolist() == tensors[name].tolist()
    for name in ("base_probability", "adapted_probability"):
        assert getattr(found, name).tolist() == pytest.approx(tensors[name].tolist(), abs=1e-3)
    repaired, broken = found.galleries["repaired"], found.galleries["broken"]
    assert (repaired.index.tolist(), repaired.total) == ([2], 1)
    assert (broken.index.tolist(), broken.total) == ([5, 4], 2)  # the highest probability first
    assert [int(image.max()) for image in broken.images] == [50, 40]
    assert list(found.galleries) == ["repaired", "broken", "confused_base", "confused_adapted"]
    confused = [found.galleries[f"confused_{side}"] for side in ("base", "adapted")]
    assert [gallery.index.tolist() for gallery in confused] == [[1, 2], [1, 4, 5]]
    assert found.confusion(found.base, 3).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 2]]


def test_of_a_base_alone_what_is_wrong(tmp_path: Path) -> None:
    found = written(tmp_path, predictions(pair=False), images())
    assert found.adapted is None
    assert found.galleries.keys() == {"wrong", "confused_base"}
    assert found.galleries["wrong"].index.tolist() == [2, 1]


def test_a_gallery_is_small(tmp_path: Path) -> None:
    label = torch.tensor([0] * 40 + [999])
    tensors = {
        "index": torch.arange(41),
        "label": label,
        "base": 999 - label,
        "base_probability": torch.linspace(0.99, 0.5, 41),
    }
    test = {"confusions": [confusion(0, 999, 40), confusion(999, 0)]}
    gallery = written(tmp_path, tensors, torch.zeros(41, 3, 200, 100, dtype=torch.uint8), test=test)
    assert gallery.galleries["confused_base"].index.tolist() == [*range(8), 40]
    wrong = gallery.galleries["wrong"]
    assert wrong.index.tolist()[:3] == [0, 1, 2]
    assert (wrong.images.shape, wrong.total) == ((16, 3, 50, 25), 41)


def test_images_come_from_where_they_are(tmp_path: Path) -> None:
    """A test on part of the images, as with limit_test_batches and several processes."""
    found = written(tmp_path, {key: of[::2] for key, of in predictions().items()}, images())
    assert [int(image.max()) for image in found.galleries["broken"].images] == [40]
