"""The studies: what they run composes, methods are counted and compared as their page says."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jobs
import pytest
import repair
import tasks
import torch
from omegaconf import OmegaConf
from plain import Point, Shares, best, fine_tune, front, point, shares, shifted, twenty_lines
from torch import nn

from lora_mnist import add_lora

ALL_TASKS = [*tasks.SEARCH, *tasks.TASKS]


def of(target: float, every: float) -> Shares:
    return Shares(target, every, 100.0, 0.0)


@pytest.mark.parametrize("task", ALL_TASKS, ids=lambda task: f"{task.name}, {task.seed}")
def test_a_task_composes_with_every_method(task: tasks.Task) -> None:
    images = "data=folder" if task.pictures else "data=mnist"
    assert task.pictures in ("", *tasks.PICTURES)
    common = [images, *task.settings.split()]
    jobs.composed([*common, "stage=pretrain", *task.pretrain.split()])
    for settings in repair.METHODS.values():
        cfg = jobs.composed([*common, "target=1", *settings.split()])
        if cfg.trainer.max_steps == 400:
            assert cfg.data.batch_size + cfg.data.replay == 100


@pytest.mark.slow
def test_every_change_of_the_search_is_one() -> None:
    recipe = jobs.composed(["experiment=repair"])
    for change in repair.CHANGES[1:]:
        assert jobs.composed(["experiment=repair", *change.split()]) != recipe


def test_the_tables_bases_were_never_searched_on() -> None:
    assert len({task.seed for task in ALL_TASKS}) == len(ALL_TASKS)


def test_a_network_of_the_tasks_takes_an_adapter() -> None:
    net, images = tasks.ResNet().eval(), torch.randn(2, 1, 28, 28)
    expected = net(images)
    assert expected.shape == (2, 10)
    assert torch.allclose(add_lora(net)(images), expected, atol=1e-6)


def test_a_starved_task_has_fewer_pictures_of_its_class_to_train_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pictures(folder: Path) -> None:
        labels = ["a"] * 50 + ["b"] * 50
        tasks._write(folder, torch.rand(100, 4, 4).numpy(), labels)

    monkeypatch.setattr(tasks, "OUTPUT", tmp_path)
    monkeypatch.setitem(tasks.PICTURES, "few", pictures)
    task = tasks.Task("few", 0, "", "few", target="a", starved=0.5)

    def count(folder: Path, part: str) -> int:
        return len(list((folder / part).iterdir()))

    assert count(task.folder(), "train/b") == 2 * count(task.folder(), "train/a")
    known = replace(task, knows_val=True).folder()
    assert count(known, "train/b") == count(known, "val/b") + count(task.folder(), "train/b")


def test_a_run_is_done_once_and_again_after_it_was_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    def train(cfg: Any, run: Any) -> None:
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


def test_shares_are_of_the_bases_errors() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    before = nn.functional.one_hot(torch.tensor([1, 1, 0, 1, 0, 1])).float()
    after = nn.functional.one_hot(torch.tensor([0, 1, 0, 0, 0, 1])).float()
    assert shares(after, before, labels, target=0) == (50, 100, 200, pytest.approx(100 / 6))


def test_a_front_is_interpolated_and_a_point_beyond_counts() -> None:
    points = [of(60, 80), of(40, 90), of(20, 120)]
    assert front(points, 50) == 85
    assert front(points, 30) == pytest.approx(105)
    assert front([of(20, 70), of(60, 90)], 50) == 70  # fewer of both
    assert math.isnan(front([of(60, 80)], 50))


def test_the_best_point_is_chosen_on_validation_images() -> None:
    points = [Point(of(50, 90), of(1, 1), []), Point(of(20, 95), of(50, 99), [])]
    assert best(points) is points[1]


def small_case() -> tasks.Case:
    """Three classes that a linear network tells apart once it is trained; it is not yet."""
    torch.manual_seed(0)
    labels = torch.arange(300) % 3
    images = torch.randn(300, 3) + 3 * nn.functional.one_hot(labels)
    net = nn.Sequential(nn.Linear(3, 3))
    with torch.no_grad():
        before = dict.fromkeys(("val", "test"), net(images))
    parts = ("train", "val", "test")
    return tasks.Case(net, dict.fromkeys(parts, images), dict.fromkeys(parts, labels), before, 2)


def test_twenty_lines_learn_and_leave_the_base_alone() -> None:
    case = small_case()
    tuned = twenty_lines(case, rate=0.01, weight=1)
    assert tuned.test.every < 50
    assert tuned.front[0] < 50
    assert point(case, case.net).test == (100, 100, 100, 0)


def test_a_shift_of_the_class_trades_it_against_the_others() -> None:
    case = small_case()
    unmoved, *points = shifted(case, list(case.before.values()))
    assert unmoved.test == (100, 100, 100, 0)
    targets = [each.test.target for each in points]
    assert targets == sorted(targets, reverse=True)
    assert points[-1].test.others > 100
    assert unmoved.front[0] == front([each.test for each in points], 50)


def test_plain_fine_tuning_ends_at_a_rate_of_0() -> None:
    net = nn.Linear(1, 1)
    fine_tune(net, lambda: net(torch.ones(1)).sum() ** 2, rate=0.1, steps=50)
    assert abs(net(torch.ones(1)).item()) < 0.1


def test_tables_have_means_and_worst_cases() -> None:
    rows = [{"method": of(40, 70)}, {"method": of(20, 110)}]
    assert repair.methods_table(rows).splitlines()[2] == (
        "| method | 30%, 40% | 90%, 110% | 100%, 100% | 0.00% | 1 of 2 |"
    )
    fronts = [{method: [share, 80.0] for method in repair.FRONTS} for share in (70.0, 80.0)]
    lines = repair.fronts_table(tasks.TASKS[:2], fronts).splitlines()
    assert lines[2].startswith("| letters, CNN | 70.0 / 80.0 |")
    assert lines[4].startswith("| mean | 75.0 / 80.0 |")
