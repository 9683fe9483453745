import base64
import csv
from io import BytesIO

import torch
from helpers.runs import CLASSES, images, predictions
from PIL import Image

from lora_mnist.disk.predictions import write_predictions
from lora_mnist.show.report import first_pictures


def rows_of(folder, table, names):
    write_predictions(table.columns(), names, folder, CLASSES)
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_an_image_for_anybody(tmp_path):
    """An image keeps its name in a part of the test set."""
    table = predictions().at(torch.arange(3))
    test_set = images([f"{n},.png" for n in range(6)])
    rows = rows_of(tmp_path, table, test_set.subset(torch.arange(3, 6)).names)
    pair = {"label": "dog", "before": "cat", "before_probability": "0.600000"}
    pair |= {"after": "dog", "after_probability": "0.600000", "outcome": "repaired"}
    assert rows[2] == {"file": "5,.png", **pair}


def test_a_base_alone_has_a_prediction(tmp_path):
    rows = rows_of(tmp_path, predictions(pair=False), range(6))
    row = {"label": "cat", "prediction": "dog", "probability": "0.500000", "outcome": "wrong"}
    assert rows[1] == {"index": "1", **row}


def test_the_surest_pictures_of_each_kind_come_first():
    """Of broken ones those of which the base was surest, here 1.0 and 0.8."""
    shown = first_pictures(predictions().columns(), images(), CLASSES)
    names = {kind: [picture.name for picture in pictures] for kind, pictures in shown.items()}
    assert names == {"broken": ["4", "5"], "wrong": ["1"], "repaired": ["2"]}
    first = shown["broken"][0]
    assert (first.label, first.predictions) == (CLASSES[2], [(CLASSES[2], 1.0), ("cat", 0.25)])
    png = base64.b64decode(first.address.partition(",")[2])
    assert Image.open(BytesIO(png)).getcolors() == [(16, 40)]
