import base64
from io import BytesIO

import torch
from helpers.runs import CLASSES, images, predictions
from PIL import Image

from lora_mnist.disk.predictions import write_predictions
from lora_mnist.show.report import first_pictures


def lines_of(folder, table, names):
    write_predictions(table, names, folder, CLASSES)
    return (folder / "predictions.csv").read_text().splitlines()


def test_a_row_an_image_for_anybody(tmp_path):
    """An image keeps its name in a part of the test set."""
    table = predictions().at(torch.arange(3))
    test_set = images([f"{n},.png" for n in range(6)])
    lines = lines_of(tmp_path, table, test_set.subset(torch.arange(3, 6)).names)
    assert lines[0] == "file,label,before,before_probability,after,after_probability,outcome"
    assert lines[3] == '"5,.png",dog,cat,0.600000,dog,0.600000,repaired'


def test_a_base_alone_has_a_prediction(tmp_path):
    lines = lines_of(tmp_path, predictions(pair=False), range(6))
    assert lines[0] == "index,label,prediction,probability,outcome"
    assert lines[2] == "1,cat,dog,0.500000,wrong"


def test_the_surest_pictures_of_each_kind_come_first():
    """Of broken ones those of which the base was surest, here 1.0 and 0.8."""
    shown = first_pictures(predictions(), images(), CLASSES)
    names = {kind: [picture.name for picture in pictures] for kind, pictures in shown.items()}
    assert names == {"broken": ["4", "5"], "wrong": ["1"], "repaired": ["2"]}
    first = shown["broken"][0]
    assert (first.label, first.predictions) == (CLASSES[2], [(CLASSES[2], 1.0), ("cat", 0.25)])
    png = base64.b64decode(first.address.partition(",")[2])
    assert Image.open(BytesIO(png)).getcolors() == [(16, 40)]
