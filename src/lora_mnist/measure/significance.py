"""Is a difference in errors more than chance? Functions of counts; nothing here imports torch.

scipy is imported where it is needed: ``--help`` does not wait for it.
"""

from collections.abc import Sequence

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


def chance_text(p_value: float) -> str:
    """``may be chance, p = 0.65``, or ``p < 0.001``; never rounded past :data:`LEVEL`."""
    if p_value < 0.001:
        return "p < 0.001"
    digits = 2
    while (float(f"{p_value:.{digits}g}") <= LEVEL) != (p_value <= LEVEL):
        digits += 1
    chance = "may be chance, " if p_value > LEVEL else ""
    return f"{chance}p = {p_value:.{digits}g}"
