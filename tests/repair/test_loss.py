import torch
import torch.nn.functional as F

from lora_mnist.repair.loss import Loss

LABELS = torch.tensor([2, 2, 2, 0, 1, 1, 0])
#: The last ones of the batch are replayed.
REPLAYED = 4


def logits():
    return 3 * torch.randn(len(LABELS), 3, generator=torch.Generator().manual_seed(0))


def test_target_weight_is_the_share_of_the_images_to_learn():
    losses = F.cross_entropy(logits(), LABELS, reduction="none")
    expected = 0.2 * losses[:-REPLAYED].mean() + 0.8 * losses[-REPLAYED:].mean()
    torch.testing.assert_close(Loss(target_weight=0.2)(logits(), LABELS, REPLAYED), expected)


def test_by_default_and_in_a_batch_of_one_kind_each_image_counts_alike():
    expected = F.cross_entropy(logits(), LABELS)
    assert torch.equal(Loss()(logits(), LABELS, REPLAYED), expected)
    for replayed in (0, len(LABELS)):
        assert torch.equal(Loss(target_weight=0.2)(logits(), LABELS, replayed), expected)
