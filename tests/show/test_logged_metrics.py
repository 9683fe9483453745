"""The tags that loggers get."""

import pytest
from helpers.logits import AFTER, BEFORE, make_table

from lora_mnist.measure.counts import count_by_split
from lora_mnist.show.loggers import logged_metrics


def test_logged_metrics_of_classes():
    """Before a training its validation images have no curve of a class; many classes have none."""
    outcomes = count_by_split({"val": make_table(BEFORE, AFTER)}, [1])
    tags = logged_metrics(outcomes, ["a/b", "c", "d", "e"], [1])
    curves = {tag for tag in tags if "per_class" in tag}
    assert curves == {"val/accuracy_per_class/a-b", "val/accuracy_per_class/c"}
    assert [tags[tag] for tag in curves] == pytest.approx([2 / 3, 2 / 3])
    assert (tags["val/repaired"], tags["val/errors_elsewhere"]) == (2, 1)
    assert (tags["val_base/precision_of_target"], tags["val/precision_of_target"]) == (2 / 3, 2 / 3)
    for tag, number in tags.items():  # by the keys of results.json
        part, _, key = tag.partition("/")
        assert "per_class" in key or outcomes[part][key] == number
    many = logged_metrics(outcomes, ["x"] * 17, [1])
    assert [tag for tag in many if "per_class" in tag] == ["val/accuracy_per_class/x"]
