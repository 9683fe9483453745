import csv

import pytest
import torch
from helpers.runs import CLASSES, images, predictions

from lora_mnist.data import ImageTensors
from lora_mnist.data.images import Subset
from lora_mnist.disk.predictions import kinds_of, read_predictions, write_predictions


def written(folder, tensors, of, classes=CLASSES):
    test_set = ImageTensors(of, torch.zeros(len(of), dtype=torch.int64))
    write_predictions(tensors, test_set, folder, classes)
    return read_predictions(folder, classes)


def test_what_is_written_is_read_again(tmp_path):
    assert read_predictions(tmp_path, CLASSES) is None
    tensors = predictions()
    content = written(tmp_path, tensors, images())
    for name in ("label", "base", "adapted"):
        assert content[name].tolist() == tensors[name].tolist()
    for name in ("base_probability", "adapted_probability"):
        assert content[name].tolist() == pytest.approx(tensors[name].tolist(), abs=1e-6)
    places = {kind: of_kind.tolist() for kind, of_kind in kinds_of(content).items()}
    # The highest probability first; of broken ones the base's, here 1.0 and 0.8.
    assert places == {"repaired": [2], "broken": [4, 5], "wrong": [1]}
    assert [int(image.max()) for image in content["broken.images"]] == [40, 50]
    # Others may read it, though safetensors' own save_file makes files for their owner alone.
    (tmp_path / "plain").touch()
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1


def test_a_row_an_image_for_anybody(tmp_path):
    """An image keeps its name in a part of the test set; an earlier repair is no base."""
    tensors = {key: values[:3] for key, values in predictions().items()}
    label = torch.zeros(6, dtype=torch.int64)
    test_set = Subset(ImageTensors(images(), label, [f"{n},.png" for n in range(6)]), label + 3)
    write_predictions(tensors, test_set, tmp_path, CLASSES, "before")
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    pair = {"label": "dog", "before": "cat", "before_probability": "0.600000"}
    pair |= {"adapted": "dog", "adapted_probability": "0.600000", "outcome": "repaired"}
    assert rows[2] == {"file": "3,.png", **pair}
    assert [row["outcome"] for row in rows] == ["right", "wrong", "repaired"]
    assert read_predictions(tmp_path, CLASSES)["base"].tolist() == [0, 1, 0]
