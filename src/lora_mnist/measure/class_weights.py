"""Computes the weight of each class in the measure that decides, as one vector W. Plain numpy."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: The values of ``choose_by``, the default first: how much of a class's weight follows the test
#: prior.
MEASURES = {"mean_accuracy": 0.5, "balanced_accuracy": 0.0, "accuracy": 1.0}


def class_weights(
    test_prior: ArrayLike | None, choose_by: str, images: ArrayLike = ()
) -> NDArray[np.float64]:
    """Return each class's weight, ``W_c = (1 - s) / K + s m_c``, of shape (K,) and sum 1.

    ``m`` is the test prior: ``test_prior``, the number of test images of each class, as shares, or
    those of ``images`` where it is ``None``. ``s`` is 0 for the balanced accuracy, 1 for the
    accuracy under this prior, and 1/2 for the mean of both.
    """
    shares, s = np.asarray(images if test_prior is None else test_prior, float), MEASURES[choose_by]
    alike = np.full(len(shares), 1 / len(shares))
    if not shares.any():  # without images all classes are equally common
        return alike
    weights: NDArray[np.float64] = (1 - s) * alike + s * shares / shares.sum()
    return weights


def image_weights(images: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """Return the weight of an image of each class, (K,); a class without images has none."""
    counts = np.asarray(images, float)
    seen = np.where(counts > 0, weights, 0.0)
    per_image: NDArray[np.float64] = seen / ((seen.sum() or 1.0) * np.maximum(counts, 1))
    return per_image


def weighted_accuracy(errors: ArrayLike, images: ArrayLike, weights: ArrayLike) -> float:
    """Return the sum over classes of ``W_c * (right_c / images_c)``; see :func:`class_weights`."""
    return float(1 - np.asarray(errors) @ image_weights(images, weights))
