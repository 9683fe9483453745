"""The search for each method's settings: candidates in stages, judged on validation images alone.

Its bases are pretrained without 10,000 of the training images. On these two shares are counted:
errors on the class, and all errors, each over the base's, the mean over bases and classes. The
rule: each share over its goal; the larger of the two quotients counts, and the candidate with the
smallest wins.

Candidates come in stages: each is a grid over some keys, and the other keys are as in the best
candidate so far. Every run tests, so the search lets it see one batch of test images, and does not
read what came of it.
"""

import shlex
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from jobs import Base, Settings, composed, errors, overrides, written

_ONE_BATCH: Settings = {"+trainer.limit_test_batches": 1}

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

    def grid(self, stage: int, best: Settings) -> Iterator[Settings]:
        """What to try in a stage when ``best`` is the best candidate so far."""
        tried = self.stages[stage]
        for values in product(*tried.values()):
            yield {**best, **dict(zip(tried, values, strict=True))}


@dataclass
class Candidate:
    """Settings, and what became of them on the validation images.

    Attributes:
        settings: values of what is searched, by key.
        shares: errors on the class and all errors over the base's, the mean over the cases.
        distance: from the goals: the larger of the shares' quotients by them.
    """

    settings: Settings
    shares: tuple[float, float]
    distance: float


def run_search(cases: list[Case], what: Search) -> list[Candidate]:
    """All candidates, best first."""
    tried: list[Candidate] = []
    best = what.start
    for stage in range(len(what.stages)):
        known = [each.settings for each in tried]
        tried += rated(cases, what, [s for s in what.grid(stage, best) if s not in known])
        tried.sort(key=lambda candidate: candidate.distance)
        best = tried[0].settings
    return tried


def rated(cases: list[Case], what: Search, candidates: list[Settings]) -> list[Candidate]:
    """What each of ``candidates`` does on the validation images."""
    shares: list[list[tuple[float, float]]] = [[] for _ in candidates]
    # One base and class after the other: what the base makes of the images is found out once.
    for base, target in cases:
        for of_candidate, settings in zip(shares, candidates, strict=True):
            results = base.run({**what.fixed, **settings, **_ONE_BATCH}, target, 0).results
            few, many = errors(results["val"], target)
            base_few, base_many = errors(results["val_base"], target)
            of_candidate.append((few / base_few, many / base_many))
    return [judged(each, of, what.goals) for each, of in zip(candidates, shares, strict=True)]


def judged(
    settings: Settings, shares: list[tuple[float, float]], goals: Mapping[str, float]
) -> Candidate:
    """A candidate, its shares those of all cases."""
    on_class, every = (statistics.mean(each) for each in zip(*shares, strict=True))
    distance = max(on_class / goals["on_class"], every / goals["all"])
    return Candidate(settings, (on_class, every), distance)


def markdown_of_search(candidates: list[Candidate], what: Search, method: Settings) -> str:
    """The candidates, best first, and which of them a method is; what all share is left out."""
    keys = [
        key for key in what.start if len({written(each.settings[key]) for each in candidates}) > 1
    ]
    heads = [*keys, "errors on the class", "all errors", "distance"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(keys)}{' ---: |' * 3}"]
    for each in candidates:
        shares = [f"{share:.1%}" for share in each.shares]
        cells = [*(written(each.settings[key]) for key in keys), *shares, f"{each.distance:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    said = composed({"digit": 9, **method})
    tried = [composed({"digit": 9, **what.fixed, **each.settings}) for each in candidates]
    place = "none of them"
    if said in tried:
        behind = candidates[tried.index(said)].distance - candidates[0].distance
        place = f"row {tried.index(said) + 1}, {behind:.3f} behind" if behind else "the first"
    return "\n".join([*lines, "", f"`{shlex.join(overrides(method))}` is {place}."])
