"""The studies: what they run composes, methods are counted and compared as their page says."""

import json
import math

import jobs
import pytest
import repair
import tasks
import torch
from omegaconf import OmegaConf
from plain import Point, Shares, best, front, point, shares, shifted, twenty_lines
from torch import nn

ALL_TASKS = [*tasks.SEARCH, *tasks.TASKS]


def of(target, every):
    return Shares(target, every, 100.0, 0.0)


@pytest.mark.parametrize("task", ALL_TASKS, ids=lambda task: f"{task.name}, {task.seed}")
def test_a_task_composes_with_every_method(task):
    images = "data=folder" if task.pictures else "data=mnist"
    assert task.pictures in ("", *tasks.PICTURES)
    common = [images, *task.settings.split()]
    jobs.composed([*common, "stage=pretrain", *task.pretrain.split()])
    for settings in repair.METHODS.values():
        cfg = jobs.composed([*common, "target=1", *settings.split()])
        if cfg.trainer.max_steps == 400:
            assert cfg.data.batch_size + cfg.data.replay == 100


def test_the_tables_bases_were_never_searched_on():
    assert len({task.seed for task in ALL_TASKS}) == len(ALL_TASKS)


def test_a_run_is_done_once_and_again_after_it_was_cut_short(tmp_path, monkeypatch):
    done = []

    def train(cfg, run):
        assert not list(run.folder.iterdir())
        done.append(cfg.digit)
        (run.folder / "results.json").write_text(json.dumps({"digit": cfg.digit}))

    monkeypatch.setattr(jobs, "OUTPUT", tmp_path)
    monkeypatch.setattr(jobs, "train", train)
    monkeypatch.setattr(jobs, "composed", OmegaConf.from_dotlist)
    eight, nine = (["stage=lora", f"digit={digit}"] for digit in (8, 9))
    assert jobs.run(eight) == jobs.run(eight)
    folder, results = jobs.run(nine)
    assert results == {"digit": 9}
    (folder / "results.json").rename(folder / "torn")
    assert jobs.run(nine)[1] == {"digit": 9}
    assert done == [8, 9, 9]


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


def test_the_best_point_is_chosen_on_validation_images():
    points = [Point(of(50, 90), of(1, 1), []), Point(of(20, 95), of(50, 99), [])]
    assert best(points) is points[1]


def small_case():
    """Three classes that a linear network tells apart once it is trained; it is not yet."""
    torch.manual_seed(0)
    labels = torch.arange(300) % 3
    images = torch.randn(300, 3) + 3 * nn.functional.one_hot(labels)
    net = nn.Sequential(nn.Linear(3, 3))
    with torch.no_grad():
        before = dict.fromkeys(("val", "test"), net(images))
    parts = ("train", "val", "test")
    return tasks.Case(net, dict.fromkeys(parts, images), dict.fromkeys(parts, labels), before, 2)


def test_twenty_lines_learn_and_leave_the_base_alone():
    case = small_case()
    tuned = twenty_lines(case, rate=0.01, weight=1)
    assert tuned.test.every < 50
    assert tuned.front[0] < 50
    assert point(case, case.net).test == (100, 100, 100, 0)


def test_a_shift_of_the_class_trades_it_against_the_others():
    case = small_case()
    unmoved, *points = shifted(case, list(case.before.values()))
    assert unmoved.test == (100, 100, 100, 0)
    targets = [each.test.target for each in points]
    assert targets == sorted(targets, reverse=True)
    assert points[-1].test.others > 100
    assert unmoved.front[0] == front([each.test for each in points], 50)
