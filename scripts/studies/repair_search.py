"""The search for each method's settings: candidates in stages, judged on validation images alone.

    python scripts/studies/repair_search.py "repair, scale 1"            # a table of docs/repair.md
    python scripts/studies/repair_search.py "full fine-tuning" --quick   # does it work?

Its bases are pretrained without 10,000 of the training images. On these two shares are counted:
errors on the class, and all errors, each over the base's, the mean over bases and classes. Each
share is divided by its goal; the larger quotient counts, and the candidate with the smallest wins.

Candidates come in stages: each is a grid over some keys, and the other keys are as in the best
candidate so far. Every run tests, so the search lets it see one batch of test images, and does not
read what came of it.
"""

import argparse
import logging
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from jobs import Base, cases, composed, errors, table
from repair import METHODS, PLAN

#: Candidates that the page shows.
SHOWN = 3
SEARCHES: dict[str, Any] = PLAN["searches"]


class Candidate(NamedTuple):
    """What is searched, by key, and what became of it on the validation images."""

    settings: Mapping[str, Any]
    on_class: float  # errors on the class over the base's, the mean over the cases
    every: float  # all errors over the base's
    distance: float  # from the goals


def overrides(search: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """The overrides of a candidate with these ``settings``."""
    return [*search["fixed"].split(), *(f"{key}={value}" for key, value in settings.items())]


def run_search(of: Sequence[tuple[Base, int]], search: Mapping[str, Any]) -> list[Candidate]:
    """All candidates, each on all the cases ``of`` a base and a class; best first."""
    tried: list[Candidate] = []
    best = search["start"]
    for stage in search["stages"]:
        for values in product(*stage.values()):
            settings = {**best, **dict(zip(stage, values, strict=True))}
            if settings not in [candidate.settings for candidate in tried]:
                tried.append(rate(of, search, settings))
        tried.sort(key=lambda candidate: candidate.distance)
        best = tried[0].settings
    return tried


def rate(
    of: Sequence[tuple[Base, int]], search: Mapping[str, Any], settings: Mapping[str, Any]
) -> Candidate:
    """Run a candidate on every case."""
    few, many = [], []
    for base, digit in of:
        one_batch = "+trainer.limit_test_batches=1"
        _, results = base.run([*overrides(search, settings), one_batch], digit)
        after, before = (errors(results[key], [digit]) for key in ("val", "val_base"))
        few.append(after[0] / before[0])
        many.append(after[1] / before[1])
    on_class, every = statistics.mean(few), statistics.mean(many)
    goals = search["goals"]
    distance = max(on_class / goals["on_class"], every / goals["all"])
    return Candidate(settings, on_class, every, distance)


def markdown(candidates: Sequence[Candidate], search: Mapping[str, Any], method: str) -> str:
    """The best candidates, and which one ``method`` is; what all share is left out."""
    keys = [key for key in search["start"] if len({c.settings[key] for c in candidates}) > 1]
    lines = []
    for each in candidates[:SHOWN]:
        numbers = [f"{each.on_class:.1%}", f"{each.every:.1%}", f"{each.distance:.3f}"]
        lines.append([*(str(each.settings[key]) for key in keys), *numbers])
    place, chosen = "none of them", composed(["digit=9", *method.split()])
    for number, each in enumerate(candidates, start=1):
        if composed(["digit=9", *overrides(search, each.settings)]) == chosen:
            behind = each.distance - candidates[0].distance
            place = f"row {number}, {behind:.3f} behind" if behind else "the first"
    heads = [*keys, "errors on the class", "all errors", "distance"]
    return f"{table(heads, lines, texts=len(keys))}\n\n`{method}` is {place}."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("method", choices=SEARCHES, help="whose settings to search")
    parser.add_argument("--quick", action="store_true", help="the least that shows that it works")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # each run says the same
    search = SEARCHES[arguments.method]
    candidates = run_search(cases(PLAN["search"], arguments.quick), search)
    print(markdown(candidates, search, METHODS[arguments.method]))


if __name__ == "__main__":
    main()
