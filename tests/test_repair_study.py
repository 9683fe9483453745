"""The study's overrides compose, and its rule chooses as it says."""

import sys
from typing import Any

import pytest
from conftest import ROOT

from lora_mnist.summary import Row

sys.path.insert(0, str(ROOT / "scripts"))
import repair_study as study


@pytest.mark.parametrize("overrides", study.METHODS.values(), ids=study.METHODS.keys())
def test_a_method_keeps_to_100_steps_of_100_images(overrides: list[str]) -> None:
    cfg = study.compose_config(overrides)
    assert cfg["trainer"]["max_steps"] == 100
    assert cfg["data"]["batch_size"] == 10
    assert cfg["data"]["replay"] in (0, 90)


@pytest.mark.parametrize("what", study.SEARCHES.values(), ids=study.SEARCHES.keys())
def test_a_search_composes_and_searches_what_it_starts_from(what: study.Search) -> None:
    start = [*what.fixed, *(f"{key}={value}" for key, value in what.start.items())]
    for grid in what.stages:
        assert grid.keys() <= what.start.keys()
        first = [f"{key}={values.split(',')[0]}" for key, values in grid.items()]
        study.compose_config([*start, *first])


def test_every_search_is_for_a_method() -> None:
    assert study.SEARCHES.keys() <= study.METHODS.keys()


def job(rate: str, base: str, of_class: int, every: int) -> Row:
    """A job on a base with 50 errors on class 9 and 200 in all."""
    results: dict[str, Any] = {"digit": 9}
    for split, (few, many) in {"val": (of_class, every), "val_base": (50, 200)}.items():
        results |= {f"{split}.errors_per_class.9": few, f"{split}.errors": many}
    overrides = {"base_ckpt": base, "optimizer.lr": rate}
    return Row("folder", "finished", None, 1, overrides, [], results)


def test_the_goal_that_is_farther_off_counts() -> None:
    what = study.Search([], {"optimizer.lr": "1"}, [], goals=(0.2, 0.5))
    rows = [job("1", "a", 10, 150), job("2", "a", 20, 90), job("3", "a", 13, 130)]
    rows += [job("1", "b", 10, 150), job("2", "b", 20, 110), job("3", "b", 11, 110)]
    best, *others = study.ranked(rows, what)
    assert best.settings == {"optimizer.lr": "3"}
    assert best.shares == pytest.approx((0.24, 0.6))
    assert best.distance == pytest.approx(1.2)
    assert [other.distance for other in others] == pytest.approx([1.5, 2.0])


def test_the_picture_and_the_table_of_a_study(tmp_path: Any) -> None:
    rows = [job("1", "a", 10, 150), job("1", "b", 20, 110)]
    for row in rows:
        row.results |= {"parameters.trainable": 7, "seconds.fit": 0.5}
        row.results |= {"val.repaired": 60, "val.broken": 40}
    table = {"base": study.columns(rows, "val_base"), "method": study.columns(rows, "val")}
    assert study.markdown(table).splitlines()[2:] == [
        "| base | 50 (100%) | 150 | 200 (100%) | 0 | 0 | 0 | 0.0 |",
        "| method | 15 ± 7 (30%) | 115 ± 35 | 130 ± 28 (65%) | 60 | 40 | 7 | 0.5 |",
    ]
    study.draw(table, tmp_path / "repair.png")
    assert (tmp_path / "repair.png").stat().st_size > 10_000
