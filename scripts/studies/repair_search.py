"""The search for each method's settings: candidates in stages, judged on validation images alone.

Its bases are pretrained without 10,000 of the training images. On these two shares are counted:
errors on the class, and all errors, each over the base's, the mean over bases and classes. Each
share is divided by its goal; the larger quotient counts, and the candidate with the smallest wins.

Candidates come in stages: each is a grid over some keys, and the other keys are as in the best
candidate so far. Every run tests, so the search lets it see one batch of test images, and does not
read what came of it.
"""

import shlex
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from jobs import Base, Settings, composed, errors, overrides, written

#: Candidates that the page shows.
_SHOWN = 3
#: A base, and what to repair on it.
Case = tuple[Base, list[int]]


@dataclass(frozen=True)
class Search:
    """A staged search for the settings of one method.

    Attributes:
        goals: for the share of errors on the class, ``on_class``, and for that of ``all`` errors.
        fixed: settings of all candidates.
        start: the first candidate: every key that is searched, and its value.
        stages: grids, in order: some of these keys, and the values to try.
    """

    goals: Mapping[str, float]
    fixed: Settings
    start: Settings
    stages: list[Mapping[str, list[Any]]]

    def grid(self, stage: int, best: Settings) -> list[Settings]:
        """What to try in a stage when ``best`` is the best candidate so far."""
        keys = self.stages[stage]
        return [{**best, **dict(zip(keys, v, strict=True))} for v in product(*keys.values())]


@dataclass
class Candidate:
    """Settings, and what became of them on the validation images.

    Attributes:
        settings: values of what is searched, by key.
        on_class: errors on the class over the base's, the mean over the cases.
        every: all errors over the base's.
        distance: from the goals: the larger of the shares' quotients by them.
    """

    settings: Settings
    on_class: float
    every: float
    distance: float


def run_search(cases: list[Case], search: Search) -> list[Candidate]:
    """All candidates, best first."""
    tried: list[Candidate] = []
    best = search.start
    for stage in range(len(search.stages)):
        known = [each.settings for each in tried]
        for settings in search.grid(stage, best):
            if settings not in known:
                tried.append(rate(cases, search, settings))
        tried.sort(key=lambda candidate: candidate.distance)
        best = tried[0].settings
    return tried


def rate(cases: list[Case], search: Search, settings: Settings) -> Candidate:
    """Run a candidate on every case."""
    one_batch = {"+trainer.limit_test_batches": 1}
    few, many = [], []
    for base, target in cases:
        _, results = base.run({**search.fixed, **settings, **one_batch}, target, 0)
        after, before = (errors(results[key], target) for key in ("val", "val_base"))
        few.append(after[0] / before[0])
        many.append(after[1] / before[1])
    on_class, every = statistics.mean(few), statistics.mean(many)
    distance = max(on_class / search.goals["on_class"], every / search.goals["all"])
    return Candidate(settings, on_class, every, distance)


def markdown_of_search(candidates: list[Candidate], search: Search, method: Settings) -> str:
    """The best candidates, and which one a method is; what all share is left out."""
    keys = [k for k in search.start if len({written(c.settings[k]) for c in candidates}) > 1]
    heads = [*keys, "errors on the class", "all errors", "distance"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(keys)}{' ---: |' * 3}"]
    place = "none of them"
    said = composed({"digit": 9, **method})
    for number, each in enumerate(candidates, start=1):
        numbers = [f"{each.on_class:.1%}", f"{each.every:.1%}", f"{each.distance:.3f}"]
        cells = [*(written(each.settings[key]) for key in keys), *numbers]
        if number <= _SHOWN:
            lines.append(f"| {' | '.join(cells)} |")
        if composed({"digit": 9, **search.fixed, **each.settings}) == said:
            behind = each.distance - candidates[0].distance
            place = f"row {number}, {behind:.3f} behind" if behind else "the first"
    return "\n".join([*lines, "", f"`{shlex.join(overrides(method))}` is {place}."])
