"""Significance tests and intervals: docs/reference.md has the reasons for each.

The functions take counts and need no torch. scipy is imported late, since ``--help`` need not wait.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from lora_mnist.measure.class_weights import image_weights

#: A difference with a larger p-value counts as neither good nor bad.
LEVEL = 0.05
#: Standard deviations of a clear and of a certain difference: p is about LEVEL and 0.001.
CLEAR, CERTAIN = 2, 3.3


def mcnemar(repaired: int, broken: int) -> float:
    """Return the exact two-sided p-value of McNemar's test, for two networks on the same images."""
    # McNemar 1947, Psychometrika 12; for classifiers Dietterich 1998, Neural Computation 10.
    from scipy.stats import binomtest

    if not repaired + broken:
        return 1.0
    return float(binomtest(repaired, repaired + broken).pvalue)


def p_value_of_accuracy(
    repaired: ArrayLike, broken: ArrayLike, images: ArrayLike, weights: ArrayLike
) -> float:
    """Return the two-sided p-value of a weighted accuracy's change, by a normal approximation."""
    # If an image of class c has the weight w_c, the rise is the sum over c of w_c (repaired_c -
    # broken_c). If a fair coin decides, its variance is the sum of w_c^2 (repaired_c + broken_c).
    per_image = image_weights(images, weights)
    mended, lost = np.asarray(repaired), np.asarray(broken)
    saved, variance = (mended - lost) @ per_image, (mended + lost) @ per_image**2
    if not variance:
        return 1.0
    # The correction for continuity is one image: with equal classes p is near McNemar's.
    an_image = variance / ((mended + lost) @ per_image)
    return math.erfc(max(0.0, abs(saved) - an_image) / math.sqrt(2 * variance))


def wilson(errors: int, images: int) -> tuple[float, float]:
    """Return the 95% interval of a count of errors among ``images``: Wilson 1927, JASA 22."""
    from scipy.stats import binomtest

    if not images:
        return 0.0, 0.0
    share = binomtest(errors, images).proportion_ci(method="wilson")
    return images * float(share.low), images * float(share.high)


def find_weakest(errors: Sequence[int], images: Sequence[int]) -> int:
    """Return the class whose interval has the highest lower end: 34 of 200 rather than 2 of 8."""
    rates = [wilson(e, n)[0] / n if n else 0.0 for e, n in zip(errors, images, strict=True)]
    return rates.index(max(rates))


def find_weak(errors: Sequence[int], images: Sequence[int]) -> dict[int, float]:
    """Return the p-values of classes that are weaker than the rest in Fisher's exact test."""
    from scipy.stats import hypergeom

    found = {}
    for c, (wrong, count) in enumerate(zip(errors, images, strict=True)):
        p_value = float(hypergeom.sf(wrong - 1, sum(images), sum(errors), count))
        if p_value <= LEVEL / len(errors):  # Bonferroni
            found[c] = p_value
    return found
