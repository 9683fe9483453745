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


def weak(errors: Sequence[int], images: Sequence[int]) -> dict[int, float]:
    """The classes that are weaker than the rest beyond chance, and their p-values.

    A class is weak if so many of all errors are unlikely to be its own, in Fisher's exact test,
    one-sided, at :data:`LEVEL` over the number of classes (Bonferroni).
    """
    from scipy.stats import hypergeom

    found = {}
    for c, (wrong, count) in enumerate(zip(errors, images, strict=True)):
        p_value = float(hypergeom.sf(wrong - 1, sum(images), sum(errors), count))
        if p_value <= LEVEL / len(errors):
            found[c] = p_value
    return found


def precision(counts: Mapping[str, Any], targets: Sequence[int]) -> float | None:
    """Of the images that get the name of one of some classes, the share that are of it."""
    right = sum(counts["images_per_class"][c] - counts["errors_per_class"][c] for c in targets)
    called = right + sum(counts["false_calls_per_class"][c] for c in targets)
    return right / called if called else None


def expected_errors(val: Mapping[str, Any], test: Mapping[str, Any]) -> tuple[float, float]:
    """The errors of a base on validation images at its error rates on test images, by class.

    And their standard deviation by chance.
    """
    expected, variance = 0.0, 0.0
    of_test = zip(test["errors_per_class"], test["images_per_class"], strict=True)
    for count, (errors, images) in zip(val["images_per_class"], of_test, strict=True):
        if images:
            rate = errors / images
            expected += count * rate
            variance += count * rate * (1 - rate) * (1 + count / images)
    return expected, float(variance**0.5)


def knows_validation(val: Mapping[str, Any], test: Mapping[str, Any]) -> bool:
    """Whether errors are rarer on validation images by a factor of 1.5, and that is no chance."""
    expected, deviation = expected_errors(val, test)
    return bool(1.5 * val["errors"] <= expected and expected - val["errors"] > 3.3 * deviation)


def other_mix(val: Sequence[int], test: Sequence[int]) -> tuple[int, tuple[float, float]] | None:
    """The class whose share differs most between two sets of images, where that is no chance."""
    from scipy.stats import chi2_contingency

    table = [(v, t) for v, t in zip(val, test, strict=True) if v + t]
    if len(table) < 2 or chi2_contingency(table, correction=False).pvalue > 0.001:
        return None
    shares = [(v / sum(val), t / sum(test)) for v, t in zip(val, test, strict=True)]
    most = max(range(len(shares)), key=lambda c: abs(shares[c][0] - shares[c][1]))
    return most, shares[most]


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
