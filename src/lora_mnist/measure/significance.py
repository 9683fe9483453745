"""Is a difference in errors more than chance? Functions of counts; nothing here imports torch.

scipy is imported where it is needed: ``--help`` does not wait for it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

#: A difference with a larger p-value is called neither good nor bad.
LEVEL = 0.05


def mcnemar(repaired: int, broken: int) -> float:
    """The exact two-sided p-value of McNemar's test, for two networks on the same images.

    How likely a fair coin is to share ``repaired + broken`` images out at least as unevenly:
    McNemar 1947, Psychometrika 12; for classifiers Dietterich 1998, Neural Computation 10.
    """
    from scipy.stats import binomtest

    if not repaired + broken:
        return 1.0
    return float(binomtest(repaired, repaired + broken).pvalue)


def wilson(errors: int, images: int) -> tuple[float, float]:
    """The 95% interval of a count of errors among ``images``: Wilson 1927, JASA 22."""
    from scipy.stats import binomtest

    if not images:
        return 0.0, 0.0
    share = binomtest(errors, images).proportion_ci(method="wilson")
    return images * float(share.low), images * float(share.high)


def weakest(errors: Sequence[int], images: Sequence[int]) -> int:
    """The class with the highest lower end of its interval: 34 errors of 200 before 2 of 8."""
    rates = [wilson(e, n)[0] / n if n else 0.0 for e, n in zip(errors, images, strict=True)]
    return rates.index(max(rates))


def precision(counts: Mapping[str, Any], targets: Sequence[int]) -> float | None:
    """The share of a group's own images among all that get one of its names; None if none does."""
    called = 0
    for c in targets:
        called += counts["images_per_class"][c] - counts["errors_per_class"][c]
        called += counts["false_calls_per_class"][c]
    return (called - counts["false_calls_of_target"]) / called if called else None


def knows_validation(val: Mapping[str, Any], test: Mapping[str, Any]) -> bool:
    """Whether errors are rarer on validation images by a factor of 1.5, and that is no chance."""
    from scipy.stats import chi2_contingency

    images, tested = sum(val["images_per_class"]), sum(test["images_per_class"])
    errors = val["errors"] + test["errors"]
    if not images or not tested or not 0 < errors < images + tested:
        return False
    if test["errors"] / tested < 1.5 * val["errors"] / images:
        return False
    table = [[val["errors"], images - val["errors"]], [test["errors"], tested - test["errors"]]]
    return bool(chi2_contingency(table, correction=False).pvalue < 0.001)


def is_near_chance(errors: Sequence[int], images: Sequence[int]) -> bool:
    """Whether the mean share of right images of a class is hardly better than that of guessing.

    That is up to 1.25 times as large, or no larger beyond chance, in the one-sided binomial test.
    """
    from scipy.stats import binomtest

    shares = [1 - e / n for e, n in zip(errors, images, strict=True) if n]
    chance, count = 1 / len(images), sum(images)
    right = sum(shares) / len(shares)
    if right <= 1.25 * chance:
        return True
    test = binomtest(round(right * count), count, chance, alternative="greater")
    return bool(test.pvalue > LEVEL)


def chance_text(p_value: float) -> str:
    """``may be chance, p = 0.65``, or ``p < 0.001``; never rounded past :data:`LEVEL`."""
    if p_value < 0.001:
        return "p < 0.001"
    digits = 2
    while (float(f"{p_value:.{digits}g}") <= LEVEL) != (p_value <= LEVEL):
        digits += 1
    chance = "may be chance, " if p_value > LEVEL else ""
    return f"{chance}p = {p_value:.{digits}g}"
