"""The benchmark's table: who is compared with whom, and what counts as reached."""

from math import inf

import pytest
import row
import tables
from contestants import fit_on, lora_net


def measured(less_is_better: bool = False, **values: list[float]) -> row.Row:
    """A row whose contestants return these values, one a round."""
    found = row.Row("work", "s", {}, less_is_better=less_is_better)
    found.measured = values
    return found


def test_contestants_are_compared_round_by_round() -> None:
    # The machine is slow in the second round, for both.
    assert measured(ours=[20.0, 2.0, 30.0], PEFT=[10.0, 1.0, 10.0]).ratios("PEFT") == [2, 2, 3]
    assert measured(True, ours=[1.0], PEFT=[3.0]).ratios("PEFT") == [3]


@pytest.mark.parametrize(
    ("count", "expected"),
    # 5 values miss the median on one side with 2/32; 8 that lack the outer two with 18/256.
    [(4, (-inf, inf)), (5, (0, 4)), (7, (0, 6)), (8, (1, 6)), (20, (5, 14))],
)
def test_an_interval_holds_the_median_with_nine_tenths(
    count: int, expected: tuple[float, float]
) -> None:
    values = [float(n) for n in range(count)]
    assert row.interval(values[::-1]) == expected


def test_a_goal_is_met_missed_or_open() -> None:
    found = [1.0, 1.1, 1.2, 1.3, 1.4]
    cells = [row.Goal("{} x PEFT", found, limit).cell() for limit in (1, 1.2, 1.5)]
    assert cells == [
        "met: 1.20 x PEFT (1.00 to 1.40; goal >= 1)",
        "too noisy to tell: 1.20 x PEFT (1.00 to 1.40; goal >= 1.2)",
        "**missed**: 1.20 x PEFT (1.00 to 1.40; goal >= 1.5)",
    ]
    verdicts = [row.Goal("{} s", found, limit, at_least=False).verdict() for limit in (1.4, 1.2, 0)]
    assert verdicts == ["met", None, "missed"]


def test_rounds_go_on_until_every_goal_is_decided() -> None:
    # The first values lie on both sides of the goal; those that follow settle it.
    ours = iter([1.0, 3.0, 3.0, 1.0, 3.0, *[3.0] * 100])
    work = row.Row("work", "s", {"PEFT": lambda: 1.0, "ours": lambda: next(ours)}, {"PEFT": 2})
    assert [goal.verdict() for goal in work.measure(seconds=60).goals()] == ["met"]
    assert 5 < len(work.measured["ours"]) < 30
    assert work.cells()[:2] == ["work", "s"]


def test_time_ends_what_cannot_be_decided() -> None:
    work = row.Row("work", "s", {"PEFT": lambda: 1.0, "ours": lambda: next(ours)}, {"PEFT": 2})
    ours = iter([1.0, 3.0] * 1000)
    assert [goal.verdict() for goal in work.measure(seconds=0).goals()] == [None]
    assert len(work.measured["ours"]) == row.LEAST_ROUNDS


def test_a_first_round_to_warm_up_does_not_count() -> None:
    turns = []

    def contestant(name: str) -> float:
        turns.append(name)
        return len(turns)

    contestants = {name: (lambda name=name: contestant(name)) for name in ("notebook", "ours")}
    work = row.Row("work", "s", contestants, warm_up=True).measure(seconds=0)
    assert turns == ["ours", *["notebook", "ours"] * row.LEAST_ROUNDS]
    assert work.measured["ours"] == [3, 5, 7, 9, 11]


def test_tables_are_markdown() -> None:
    assert tables.markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert tables.spread([3.0, 1.0, 2.0]) == "2.00 (1.00-3.00)"
    assert tables.spread([300.4, 100.0]) == "200 (100-300)"
    assert tables.spread([3.0, 1.0], 1) == "2.0 (1.0-3.0)"


def test_a_loop_on_a_device() -> None:
    assert fit_on("cpu", lora_net, steps=2, batch_size=10) > 0
