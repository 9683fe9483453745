"""The studies: what they run composes, methods are counted and compared as their page says."""

import math

import jobs
import pytest
import repair
import tasks
import torch
from plain import Shares, front, shares
from torch import nn

ALL_TASKS = [*tasks.SEARCH, *tasks.TASKS]


def of(target, every):
    return Shares(target, every, 100.0, 0.0)


def test_every_task_and_every_method_composes():
    for task in ALL_TASKS:
        assert task.pictures in ("", *tasks.PICTURES)
        images = "data=folder" if task.pictures else "data=mnist"
        pretrain = ("stage=pretrain", *task.pretrain.split())
        jobs.composed([images, *task.settings.split(), *pretrain])
    for settings in repair.METHODS.values():
        cfg = jobs.composed(["target=1", *settings.split()])
        if cfg.trainer.max_steps == 400:
            assert cfg.data.batch_size + cfg.data.replay == 100


def test_the_tables_bases_were_never_searched_on():
    assert len({task.seed for task in ALL_TASKS}) == len(ALL_TASKS)


def test_shares_are_of_the_bases_errors():
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    before = nn.functional.one_hot(torch.tensor([1, 1, 0, 1, 0, 1])).float()
    after = nn.functional.one_hot(torch.tensor([0, 1, 0, 0, 0, 1])).float()
    assert shares(after, before, labels, target=0) == (50, 100, 200, pytest.approx(100 / 6))


def test_a_front_is_interpolated_and_a_point_beyond_counts():
    points = [of(60, 80), of(40, 90), of(20, 120)]
    assert front(points, 50) == 85
    assert front(points, 30) == pytest.approx(105)
    assert front([of(20, 70), of(60, 90)], 50) == 70  # fewer of both
    assert math.isnan(front([of(60, 80)], 50))
