"""One line of the benchmark's table: contestants, goals, and whether these are met."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb, inf

from processes import Contestant
from tables import spread

#: How sure a verdict is.
CONFIDENCE = 0.9
#: With fewer rounds no interval of the median is that sure.
LEAST_ROUNDS = 5


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Between which two of ``values`` the true median lies, with a probability of at least 90%.

    Each value is as likely above the median as below it, whatever its distribution; so of n values
    all but k at either end hold it with probability ``1 - 2 * P(Binomial(n, 1/2) <= k)`` (the sign
    test's interval).
    """
    n, found = len(values), (-inf, inf)
    ordered, outside = sorted(values), 0.0
    for k in range(n // 2):
        outside += 2 * comb(n, k) / 2**n
        if 1 - outside < CONFIDENCE:
            break
        found = ordered[k], ordered[n - 1 - k]
    return found


@dataclass
class Goal:
    """What one number must reach, and what was found in each round.

    Attributes:
        what: the number, in words, with a place for its median: ``{} x PEFT``.
        values: of the rounds.
        limit: the number that is just good enough.
        at_least: whether more is better.
    """

    what: str
    values: Sequence[float]
    limit: float
    at_least: bool = True

    def verdict(self) -> str | None:
        """``met``, ``missed``, or ``None`` where the rounds differ too much to tell."""
        low, high = interval(self.values)
        worst, best = (low, high) if self.at_least else (-high, -low)
        limit = self.limit if self.at_least else -self.limit
        if worst >= limit:
            return "met"
        return "missed" if best < limit else None

    def cell(self) -> str:
        """The verdict and the numbers behind it, as the table has them."""
        sign = ">=" if self.at_least else "<="
        low, high = interval(self.values)
        told = {"met": "met", "missed": "**missed**", None: "too noisy to tell"}[self.verdict()]
        median = self.what.format(f"{statistics.median(self.values):.2f}")
        return f"{told}: {median} ({low:.2f} to {high:.2f}; goal {sign} {self.limit:.3g})"


@dataclass
class Row:
    """Contestants that do the same work.

    Attributes:
        name: of the work.
        unit: of what the contestants return.
        contestants: by name; one of them is ``ours``.
        at_least: for other contestants, the smallest ratio of ours to theirs that is good enough.
        at_most: the largest value of ours that is good enough.
        less_is_better: whether a smaller value is better.
        warm_up: whether a first round does not count.
        measured: what each contestant returned, a value a round.
    """

    name: str
    unit: str
    contestants: dict[str, Contestant]
    at_least: dict[str, float] = field(default_factory=dict)
    at_most: float | None = None
    less_is_better: bool = False
    warm_up: bool = False
    measured: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, seconds: float) -> "Row":
        """Let the contestants take turns until every goal is decided; return the same row.

        Args:
            seconds: how long to try. The least number of rounds takes what it takes.
        """
        self.measured = {name: [] for name in self.contestants}
        if self.warm_up:
            for name, contestant in self.contestants.items():
                if name != "notebook":  # it has a new process every time: nothing stays warm
                    contestant()
        end = time.monotonic() + seconds
        for done in range(1000):
            if done >= LEAST_ROUNDS:
                decided = all(goal.verdict() for goal in self.goals())
                if decided or time.monotonic() > end:
                    break
            for name, contestant in self.contestants.items():
                self.measured[name].append(contestant())
        return self

    def ratios(self, other: str) -> list[float]:
        """Ours to ``other``, round by round; above 1 where ours is better."""
        pairs = zip(self.measured["ours"], self.measured[other], strict=True)
        return [b / a if self.less_is_better else a / b for a, b in pairs]

    def goals(self) -> list[Goal]:
        """What must be reached, with what was found."""
        found = [Goal(f"{{}} x {n}", self.ratios(n), least) for n, least in self.at_least.items()]
        if self.at_most is not None:
            found.append(Goal(f"{{}} {self.unit}", self.measured["ours"], self.at_most, False))
        return found

    def cells(self) -> list[str]:
        """The row as it is printed."""
        values = [f"{name} {spread(values)}" for name, values in self.measured.items()]
        goals = [goal.cell() for goal in self.goals()]
        return [self.name, self.unit, "<br>".join(values), "<br>".join(goals)]
