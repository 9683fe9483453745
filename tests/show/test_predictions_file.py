"""What predictions.csv says of each test image."""

import torch
from helpers.runs import CLASSES, at, images, predictions

from lora_mnist.show.predictions_file import write_test_predictions


def write_rows(folder, table, names):
    write_test_predictions(table, names, folder, CLASSES)
    return (folder / "predictions.csv").read_text().splitlines()


def test_a_row_an_image_for_anybody(tmp_path):
    """An image keeps its name in a part of the test set."""
    table = at(predictions(), torch.arange(3))
    test_set = images([f"{n},.png" for n in range(6)])
    lines = write_rows(tmp_path, table, test_set.subset(torch.arange(3, 6)).names)
    assert lines[0] == "file,label,before,before_probability,after,after_probability,outcome"
    assert lines[3] == '"5,.png",dog,cat,0.600000,dog,0.600000,repaired'


def test_no_name_is_a_formula(tmp_path):
    """A number is none."""
    names = ["=1+1/a.png", "+b.png", "-c.png", "@d.png", "-1.5", "e=.png"]
    lines = write_rows(tmp_path, predictions(), names)
    files = [line.partition(",")[0] for line in lines[1:]]
    assert files == ["'=1+1/a.png", "'+b.png", "'-c.png", "'@d.png", "-1.5", "e=.png"]


def test_a_base_alone_has_a_prediction(tmp_path):
    lines = write_rows(tmp_path, predictions(pair=False), range(6))
    assert lines[0] == "index,label,prediction,probability,outcome"
    assert lines[2] == "1,cat,dog,0.500000,wrong"
