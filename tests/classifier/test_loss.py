import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lora_mnist.classifier.loss import Loss, distillation, hinge, weighted_mean

LABELS = torch.tensor([2, 2, 2, 0, 1, 1, 0])
#: The last ones of the batch are replayed.
REPLAYED = 4
IS_REPLAYED = torch.arange(7) >= 3


def logits(seed=0):
    return 3 * torch.randn(len(LABELS), 3, generator=torch.Generator().manual_seed(seed))


def gradient(loss):
    z = logits().requires_grad_()
    loss(z).backward()
    return z.grad


def test_the_default_is_torchs_cross_entropy_gradient_bit_for_bit():
    ours = gradient(lambda z: Loss()(z, LABELS, None))
    assert torch.equal(ours, gradient(lambda z: F.cross_entropy(z, LABELS)))


@given(seed=st.integers(0, 1000), margin=st.floats(0, 10))
def test_hinge_equals_a_plain_loop(seed, margin):
    z = logits(seed)
    for row, label, loss in zip(z, LABELS, hinge(z, LABELS, margin), strict=True):
        best_other = max(v for c, v in enumerate(row.tolist()) if c != label)
        expected = max(0.0, margin - (row[label].item() - best_other))
        assert loss.item() == pytest.approx(expected, abs=1e-5)


@given(seed=st.integers(0, 1000))
def test_distillation_is_zero_at_the_base_and_positive_elsewhere(seed):
    z, base = logits(seed), logits(seed + 1)
    assert distillation(z, z).abs().max() < 1e-5
    p, q = (F.softmax(v, dim=1).double() for v in (base, z))
    expected = (p * (p / q).log()).sum(dim=1)
    torch.testing.assert_close(distillation(z, base), expected.float(), rtol=1e-3, atol=1e-4)
    assert (distillation(z, base) > -1e-5).all()


def test_distils_on_images_that_are_not_replayed():
    z, base = logits(), logits(1)
    distilled = distillation(z, base) * ~IS_REPLAYED
    expected = (F.cross_entropy(z, LABELS, reduction="none") + 0.5 * distilled).mean()
    torch.testing.assert_close(Loss(distill=0.5)(z, LABELS, base, REPLAYED), expected)


def test_target_weight_is_the_targets_share_and_without_others_the_plain_mean():
    z = logits()
    losses = F.cross_entropy(z, LABELS, reduction="none")
    expected = 0.2 * losses[~IS_REPLAYED].mean() + 0.8 * losses[IS_REPLAYED].mean()
    torch.testing.assert_close(Loss(target_weight=0.2)(z, LABELS, None, REPLAYED), expected)
    losses = torch.tensor([1.0, 3.0], requires_grad=True)
    for is_target in (torch.tensor([True, True]), torch.tensor([False, False])):
        losses.grad = None
        weighted_mean(losses, is_target, 0.2).backward()
        assert losses.grad.tolist() == [0.5, 0.5]
