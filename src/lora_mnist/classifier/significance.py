"""Is a difference in errors more than chance? Functions of counts; nothing here imports torch."""

from collections.abc import Mapping, Sequence
from math import erfc, sqrt
from typing import Any

#: A difference with a larger p-value is called neither good nor bad.
LEVEL = 0.05
#: 95% of the standard normal distribution lie between -z and z.
_Z = 1.959963984540054


def mcnemar(repaired: int, broken: int) -> float:
    """The exact two-sided p-value of McNemar's test, for two networks on the same images.

    ``p = min(1, 2 * sum(comb(n, k) for k in 0..min(repaired, broken)) / 2**n)`` with
    ``n = repaired + broken``: how likely a fair coin is to share ``n`` images out at least as
    unevenly. McNemar 1947, "Note on the sampling error of the difference between correlated
    proportions or percentages", Psychometrika 12; for classifiers Dietterich 1998, "Approximate
    Statistical Tests for Comparing Supervised Classification Learning Algorithms", section 3.1.
    """
    n = repaired + broken
    term = tail = 1
    # Each term from the one before: thousands of calls of math.comb would take seconds.
    for k in range(min(repaired, broken)):
        term = term * (n - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << n))


def wilson(errors: int, images: int) -> tuple[float, float]:
    """The 95% Wilson interval of a count of errors among ``images``.

    ``images * (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`` with
    ``p = errors / images``, ``n = images`` and ``z = 1.96``. Wilson 1927, "Probable Inference, the
    Law of Succession, and Statistical Inference", JASA 22; Newcombe 1998, "Two-sided confidence
    intervals for the single proportion", Statistics in Medicine 17, method 3.
    """
    if not images:
        return 0.0, 0.0
    scale = images / (images + _Z**2)
    centre = scale * (errors + _Z**2 / 2)
    half = scale * _Z * sqrt(errors * (images - errors) / images + _Z**2 / 4)
    return max(0.0, centre - half), min(float(images), centre + half)


def weakest(errors: Sequence[int], images: Sequence[int]) -> int:
    """The number of the class with the highest error rate that chance does not explain.

    It has the largest lower end of :func:`wilson`'s interval, as a share of its images; of equals
    it is the first. So 34 errors in 200 images are worse than 2 in 8.
    """
    rates = [wilson(e, n)[0] / n if n else 0.0 for e, n in zip(errors, images, strict=True)]
    return rates.index(max(rates))


def knows_validation(val: Mapping[str, Any], test: Mapping[str, Any]) -> bool:
    """Whether a network seems to have been trained on the validation images.

    It then errs on a smaller share of them than of the test images: by a factor of 1.5 at least and
    with ``p < 0.001`` in the two-sided z-test of two proportions,
    ``z = (b / n - a / m) / sqrt(q (1 - q) (1 / m + 1 / n))`` with ``q = (a + b) / (m + n)`` for
    ``a`` errors in ``m`` validation images and ``b`` in ``n`` test images.

    ``val`` and ``test`` have ``errors`` and ``images_per_class``, as in results.json.
    """
    images, tested = sum(val["images_per_class"]), sum(test["images_per_class"])
    errors = val["errors"] + test["errors"]
    if not images or not tested or not 0 < errors < images + tested:
        return False
    val_rate, test_rate = val["errors"] / images, test["errors"] / tested
    share = errors / (images + tested)
    z = (test_rate - val_rate) / sqrt(share * (1 - share) * (1 / images + 1 / tested))
    return test_rate >= 1.5 * val_rate and erfc(z / sqrt(2)) < 0.001


def p_text(p_value: float) -> str:
    """``p = 0.65`` or ``p < 0.001``; never rounded to the other side of :data:`LEVEL`."""
    if p_value < 0.001:
        return "p < 0.001"
    digits = 2
    while (float(f"{p_value:.{digits}g}") <= LEVEL) != (p_value <= LEVEL):
        digits += 1
    return f"p = {p_value:.{digits}g}"


def chance_text(p_value: float) -> str:
    """``may be chance, p = 0.65``, or ``p < 0.001`` alone."""
    chance = "may be chance, " if p_value > LEVEL else ""
    return f"{chance}{p_text(p_value)}"
