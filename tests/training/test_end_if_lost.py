"""The early end of a training that is behind beyond chance and does not rise."""

from unittest.mock import Mock

import pytest
import torch

from lora_mnist.training.end_if_lost import EndIfLost

BEST = torch.full((100,), 0.9)
FAR_BEHIND, ONE_IMAGE = torch.full((100,), 0.5), torch.cat([torch.zeros(1), BEST[1:]])


@pytest.mark.parametrize(
    ("looks", "ends"),
    [
        ([(0.6, FAR_BEHIND), (0.5, FAR_BEHIND)], True),
        ([(0.5, FAR_BEHIND), (0.6, FAR_BEHIND)], False),  # it rises: a slow training may win
        ([(0.5, FAR_BEHIND)], False),  # nobody knows yet whether it rises
        ([(0.9, BEST), (0.8, ONE_IMAGE)], False),  # which is chance
        ([(0.6, FAR_BEHIND), (0.5, BEST + 0.05)], False),  # it is ahead
    ],
)
def test_a_training_ends_if_it_is_behind_and_does_not_rise(looks, ends):
    trainer = Mock(sanity_checking=False, global_step=20, max_steps=40, should_stop=False)
    trainer.strategy.broadcast = lambda value: value
    callback = EndIfLost(Mock(score_images=Mock(side_effect=looks)), "auto", ("plain", BEST))
    for _ in looks:
        callback.on_validation_end(trainer, Mock())
    assert trainer.should_stop == bool(callback.lost) == ends


def test_the_last_validation_ends_nothing():
    """Then the search for the operating point decides."""
    trainer = Mock(sanity_checking=False, global_step=40, max_steps=40, should_stop=False)
    EndIfLost(Mock(), "auto", ("plain", BEST)).on_validation_end(trainer, Mock())
    assert not trainer.should_stop
