"""The one refusal of what validation images are to decide, where there are none."""

from collections.abc import Sequence

import torch

from lora_mnist.classifier.classifier import Classifier
from lora_mnist.data.images import Images
from lora_mnist.errors import UserError


def refuse_undecidable(
    classifier: Classifier, val: Images, asked: Sequence[str], unseen: Sequence[str] = ()
) -> None:
    """Refuse what is ``asked`` of validation images if there are none, or none of ``unseen``."""
    if not asked or (len(val) and not unseen):
        return
    sets, learnt = classifier.images, classifier.learnt.get("base")
    is_learnt = learnt is not None and bool(torch.isin(sets.train.digests, learnt).all())
    expected = f"validation images of {', '.join(unseen)}" if unseen else "validation images"
    remedy = "a larger data.val_size, or images in val/ that are not in train/"
    if len(sets.val) and not len(val):
        remedy = "trainer.limit_val_batches > 0"
    elif (
        is_learnt and not len(sets.val) and "test" not in (*sets.held_out, sets.held_out.get("val"))
    ):
        remedy = "data.val_from=test, since the base has learnt all others"
    elif "val" in sets.left_out:
        remedy += f"; {sets.left_out['val']['line']}"
    raise UserError(f"{', '.join(asked)}: expected {expected}: {remedy}")
