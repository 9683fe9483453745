"""The score: the number on validation images that decides between trials, scales and offsets.

For classes c of weight ``W_c`` (:func:`.class_weights.class_weights`) with n images of logits z, at
the offset o it is

    sum over c of W_c * (sum over its images of p^q + u_c^q) / (n + 1)
    p = softmax((z + o * direction) / T) at c,  u_c = softmax(o * direction / T) at c,  q = 0.25

- The accuracy of a class with five images jumps. With ``q = 1`` the score would be the expected
  accuracy of predictions drawn from the probabilities; near ``q = 0`` it ranks like the
  cross-entropy, in which a few confident errors outweigh all other images. Up to a factor it is one
  minus the generalized cross-entropy: Zhang and Sabuncu 2018, arXiv:1805.07836, equation 6.
- ``u_c`` is one more image of each class, with equal logits, as in Laplace's rule of succession:
  otherwise a class with a few right images would allow any offset.
- ``T`` is the temperature that minimizes the cross-entropy at this scale (Guo et al. 2017,
  arXiv:1706.04599): otherwise a less confident network would have a higher score without being
  better.

docs/experiments.md compares other numbers.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lora_mnist.measure.predictions import refuse_nan

#: q of the score.
_POWER = 0.25
#: The smallest and the largest temperature.
_TEMPERATURES = (0.2, 8.0)


def compute_scores(
    logits: Tensor,
    label: Tensor,
    direction: Tensor,
    offsets: Sequence[float],
    weights: NDArray[np.float64],
) -> Tensor:
    """Return the score of logits, (N, K), at each offset, float64, (O,)."""
    refuse_nan(logits.softmax(dim=1))
    temperature = fit_temperature(logits, label)
    shares = (logits.double() / temperature).softmax(dim=1)
    # With an offset o a probability is p_y exp(o d_y) / sum over c of p_c exp(o d_c).
    moves = torch.outer(direction.double(), torch.tensor(offsets).double()) / temperature
    factors = (moves - moves.max(dim=0).values).exp()
    right = shares.gather(1, label[:, None]) * factors[label] / (shares @ factors)
    unknown = factors / factors.sum(dim=0)  # of the additional image of each class
    sums = (unknown**_POWER).index_add(0, label, right**_POWER)
    images = label.bincount(minlength=logits.shape[1])
    return torch.from_numpy(weights) @ (sums / (images + 1)[:, None])


def compute_image_scores(
    logits: Tensor, label: Tensor, direction: Tensor, offset: float, weights: NDArray[np.float64]
) -> Tensor:
    """Return each image's term in the score of logits, (N, K), at an offset, float64, (N,)."""
    moved = (logits.double() + offset * direction.double()) / fit_temperature(logits, label)
    right = moved.softmax(dim=1).gather(1, label[:, None])[:, 0]
    images = label.bincount(minlength=logits.shape[1])
    return (torch.from_numpy(weights) / (images + 1))[label] * right**_POWER


@torch.no_grad()
def fit_temperature(logits: Tensor, label: Tensor) -> float:
    """Return the temperature that minimizes the cross-entropy."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        cooled = logits.double() / math.exp(log_temperature)
        return F.cross_entropy(cooled, label).item()

    least, most = map(math.log, _TEMPERATURES)
    return math.exp(minimize_scalar(loss, bounds=(least, most), method="bounded").x)
