"""How much a repair gains, and how much of it may be chance.

With K classes of n_c images, of which a repair mends r_c and breaks b_c, the balanced accuracy, the
mean over classes of the share that is right, rises by

    saved = sum over c of (r_c - b_c) / (K n_c)

Where an image is as likely to be mended as to be broken, the standard deviation of ``saved`` is

    deviation = sqrt(sum over c of (r_c + b_c) / (K n_c)^2)

For the plain accuracy, ``1 / n`` takes the place of ``1 / (K n_c)``, with n images in all. What
decides between trials, scales and offsets is the same measure, smoothed: :mod:`.dial`.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: The values of ``choose_by``.
MEASURES = ("balanced_accuracy", "accuracy")


def class_weights(images: ArrayLike, choose_by: str) -> NDArray[np.float64]:
    """How much an image of each class counts; a class without images has no part in the mean."""
    counts = np.asarray(images, float)
    if choose_by == "accuracy":
        return np.full(len(counts), 1 / counts.sum())
    weights = np.zeros_like(counts)
    weights[counts > 0] = 1 / ((counts > 0).sum() * counts[counts > 0])
    return weights


def measure(errors: ArrayLike, images: ArrayLike, choose_by: str) -> Any:
    """The balanced accuracy, or the accuracy, of errors and images per class, (..., C)."""
    return 1 - np.asarray(errors) @ class_weights(images, choose_by)


def gain(repaired: ArrayLike, broken: ArrayLike, images: ArrayLike, choose_by: str) -> Any:
    """``saved`` and ``deviation``, of counts per class, (..., C)."""
    weights = class_weights(images, choose_by)
    mended, lost = np.asarray(repaired), np.asarray(broken)
    return (mended - lost) @ weights, np.sqrt((mended + lost) @ weights**2)


def p_value(repaired: ArrayLike, broken: ArrayLike, images: ArrayLike, choose_by: str) -> float:
    """How likely chance makes a gain as large, or a loss: two-sided, of the normal distribution.

    The correction for continuity is one image, so that with equal classes it is near McNemar's.
    """
    saved, deviation = gain(repaired, broken, images, choose_by)
    changed = np.asarray(repaired) + np.asarray(broken)
    if not deviation:
        return 1.0
    an_image = deviation**2 / (changed @ class_weights(images, choose_by))
    return math.erfc(max(0.0, abs(saved) - an_image) / deviation / math.sqrt(2))
