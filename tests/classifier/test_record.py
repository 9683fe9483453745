"""Records: what is written is read again, and what cannot be used is refused."""

import pytest
import torch

from lora_mnist.classifier.record import NO_RECORD, Record, read_record

RING: dict = {}
RING["itself"] = RING
RECORD = Record("mnist", {"_target_": "lora_mnist.MLP"}, {"mean": 0.1})


@pytest.mark.parametrize(
    "more", [{}, {"base_sha256": "0" * 64, "targets": ["9"], "train_digests": None}]
)
def test_a_record_is_read_as_it_was_written(more):
    record = Record("mnist", RECORD.net, RECORD.prepare, made={"seed": 3, "refit": True}, **more)
    assert read_record(record.content()) == record
    assert (record.seed, record.is_refit, record.knows_augment) == (3, True, False)
    assert read_record({}) == NO_RECORD


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"version": 0}, "the version 0, of another"),
        ({"prepare": {}}, "prepare is missing"),  # images would be measured, with other numbers
        ({"net": "a text"}, "net=a text: expected dict"),
        ({"made": {"seed": "x"}}, "seed=x: expected int"),
        ({"prepare": {"mean": torch.ones(2)}}, "its record is damaged: "),
        ({"prepare": RING}, "its record is damaged: "),
    ],
)
def test_a_record_that_cannot_be_used_is_refused(changed, expected):
    with pytest.raises(ValueError, match=expected):
        read_record(RECORD.content() | changed)
