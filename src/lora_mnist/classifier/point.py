"""The point of a saved adapter: as it was saved, as it is typed, or as validation images advise."""

import logging

from lora_mnist.choice import AUTO, Choice, line_of
from lora_mnist.classifier.classifier import Classifier
from lora_mnist.errors import UserError
from lora_mnist.lora.model import lora_point, set_lora_point
from lora_mnist.lora.point import Point
from lora_mnist.lora.weight import adapters_on, offset_of
from lora_mnist.measure.dial import advise, images_of_dial, without_images

log = logging.getLogger(__name__)


def turn_adapter(
    classifier: Classifier, scale: float | str | None = None, offset: float | str | None = None
) -> Choice | None:
    """Turn the adapter of a classifier to a point; return that, and why; ``None`` without one.

    Scale 0 and offset 0 are the base, scale 1 is the adapter as trained, ``None`` as it was saved.
    With ``auto`` validation images decide, as in training: with ``scale="auto"`` over an offset of
    ``None``, too.
    """
    of_net = offset_of(classifier.net)
    if not adapters_on(classifier.net):
        return None
    if offset not in (None, 0) and of_net is None:
        raise UserError(f"offset={offset}: expected null, since the adapter has none")
    saved = lora_point(classifier.net)
    if offset is None:
        offset = AUTO if scale == AUTO and of_net is not None else saved.offset
    scale = saved.scale if scale is None else scale
    point = Point(
        saved.scale if scale == AUTO else float(scale),
        saved.offset if offset == AUTO else float(offset),
    )
    images, why = 0, "as saved" if point == saved else "as set"
    if AUTO not in (scale, offset):
        pass
    elif reason := _why_not_advised(classifier, scale == AUTO):
        why = f"as saved{reason}"
    else:
        targets, images_of_val = _targets(classifier), classifier.images.val
        seed, choose_by = classifier.record.get("made", {}).get("seed", 0), classifier.choose_by
        some = images_of_dial(images_of_val.labels, seed, choose_by)
        net = classifier.net.eval()
        batches = classifier.dataset.batches(images_of_val, classifier.device, some, "scale=auto")
        point, _ = advise(net, batches, targets, scale, offset, choose_by)
        images, why = len(some), "advised by validation images"
    set_lora_point(classifier.net, point)
    log.info("%s", line_of("point", point._asdict(), why))
    if point.offset and not point.scale:
        log.info("scale=0 leaves the offset on; offset=0 beside it is the base")
    return Choice(point._asdict(), None, images, why)


def _targets(classifier: Classifier) -> list[int]:
    """The classes that the adapter repairs, by number."""
    return [c for c, name in enumerate(classifier.classes) if name in classifier.targets]


def _why_not_advised(classifier: Classifier, asks_scale: bool) -> str:
    """Why validation images may not decide; "": they may. UserError where there are none."""
    images = classifier.images.val
    if classifier.record.get("made", {}).get("refit"):
        return ", since the adapter has learnt validation images"
    if not len(images) and "val" in classifier.images.left_out:
        return f": {classifier.images.left_out['val']['line']}"
    if not len(images):
        raise UserError(
            f"{'scale' if asks_scale else 'offset'}=auto: expected data.val_size > 0, or images in "
            "val/ that are not in train/, since validation images decide"
        )
    unseen = [classifier.classes[c] for c in without_images(images.labels, _targets(classifier))]
    return f", since there are no validation images of {', '.join(unseen)}" if unseen else ""
