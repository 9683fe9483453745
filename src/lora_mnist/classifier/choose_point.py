"""The operating point of an adapter: set, as saved, or advised by validation images.

A training saves its adapter at the point that :meth:`PointSearch.advise` returns;
:func:`apply_point` moves a saved adapter to another point.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_mnist.choice import AUTO, Choice, Reason
from lora_mnist.classifier.classifier import Classifier
from lora_mnist.data.images import Images
from lora_mnist.errors import UserError
from lora_mnist.lora.model import lora_point, set_lora_point
from lora_mnist.lora.point import BASE, Point
from lora_mnist.lora.weight import adapters_on, point_fields
from lora_mnist.measure.scale_curve import (
    SCALES,
    row_at,
    scale_curve,
    score_images,
    select_search_images,
)

#: The requested value of each field of a point: a number, auto or, for a saved adapter, null.
POINT_FIELDS = Point._fields


class PointSearch(NamedTuple):
    """The images and classes by which an operating point is chosen for an adapter."""

    classifier: Classifier
    images: Images  # validation images
    targets: Sequence[int]
    seed: int  # selects images, if there are many
    choose_by: str

    def advise(
        self, asked: Mapping[str, float | str], scales: Sequence[float] = SCALES
    ) -> tuple[Point, dict[str, Any]]:
        """Return the operating point, with each ``auto`` of ``asked`` resolved, and the curve.

        The search tries ``scales``, and the scale in ``asked`` if there is one.
        """
        classifier = self.classifier
        some = select_search_images(self.images.labels, self.seed)
        numbers = {field: float(value) for field, value in asked.items() if value != AUTO}
        scale, offset = numbers.get("scale"), numbers.get("offset")
        if "scale" not in point_fields(classifier.net):  # an offset alone
            scales = ()
        curve = scale_curve(
            classifier.net.eval(),
            classifier.dataset.batches(self.images, classifier.device, some, "scales"),
            self.targets,
            scales=scales if scale is None else sorted({*scales, scale}),
            offsets=None if offset is None else [offset],
            choose_by=self.choose_by,
            test_prior=classifier.test_prior,
        )
        row = curve["advised"] if scale is None else row_at(curve, scale)
        point = Point(row["scale"], row["offset"] if offset is None else offset)
        return point, curve

    def score_images(self, point: Point, offset: float | str) -> tuple[float, Tensor]:
        """Return the score at the point's scale, and each image's term in it, (N,).

        The offset is ``point``'s, or the best one where ``offset`` is ``auto``.
        """
        classifier, some = self.classifier, select_search_images(self.images.labels, self.seed)
        return score_images(
            classifier.net.eval(),
            classifier.dataset.batches(self.images, classifier.device, some, "scales"),
            point,
            offset == AUTO,
            self.choose_by,
            classifier.test_prior,
        )


def apply_point(
    classifier: Classifier, asked: Mapping[str, float | str | None], val: Images | None = None
) -> dict[str, Choice]:
    """Set an adapter to numbers, to the advised point (``auto``), or to the saved one (``None``).

    ``val`` has the run's validation images; ``None`` stands for all. Return the
    choice ``point``; without an adapter there is none.
    """
    if not adapters_on(classifier.net):
        return {}
    saved, own = lora_point(classifier.net), point_fields(classifier.net)
    scale, offset = asked["scale"], asked["offset"]
    if scale == AUTO:  # auto for each field that is not set
        scale = AUTO if "scale" in own else None  # of an offset alone that is the offset
        offset = AUTO if offset is None and "offset" in own else offset
    if scale == 1 and "scale" not in own:
        scale = None  # an offset alone is as trained at its saved value
    for field, value in (("scale", scale), ("offset", offset)):
        if field not in own and value not in (None, 0):
            raise UserError(f"{field}={value}: expected null, since the adapter has none")
    wanted = {
        "scale": saved.scale if scale is None else scale,
        "offset": saved.offset if offset is None else offset,
    }
    autos = [field for field, value in wanted.items() if value == AUTO]
    numbers = {field: float(value) for field, value in wanted.items() if field not in autos}
    point = saved._replace(**numbers)
    images, reasons = 0, [Reason("saved" if point == saved else "asked")]
    if autos:
        record, val = classifier.record, classifier.images.val if val is None else val
        targets = [c for c, name in enumerate(classifier.classes) if name in record.targets]
        search = PointSearch(classifier, val, targets, record.seed, record.choose_by)
        if reason := _why_not_advised(search, autos[0]):
            reasons.append(reason)
        else:
            point, curve = search.advise(wanted)
            images, reasons = curve["images"], [Reason("advised")]
    set_lora_point(classifier.net, point)
    if not point.scale and point != BASE:
        reasons.append(Reason("offset_alone"))
    return {"point": Choice(point._asdict(), reasons, None, images)}


def _why_not_advised(search: PointSearch, key: str) -> Reason | None:
    """Return the reason why validation images may not decide, or None if they may.

    Raise UserError if there are none.
    """
    classifier = search.classifier
    if classifier.record.is_refit:
        return Reason("trained_on_validation_images")
    if not len(classifier.images.val) and "val" in classifier.images.excluded:
        excluded = classifier.images.excluded["val"]
        return Reason("validation_images_excluded", images=excluded["images"], of=excluded["of"])
    require_validation_images(classifier, search.images, [f"{key}=auto"])
    numbers = [c for c in search.targets if not (search.images.labels == c).any()]
    unseen = [classifier.classes[c] for c in numbers]
    return Reason("unseen", classes=unseen) if unseen else None


def require_validation_images(
    classifier: Classifier, val: Images, asked: Sequence[str], unseen: Sequence[str] = ()
) -> None:
    """Raise if ``asked`` needs validation images, and there are none, or none of ``unseen``."""
    if not asked or (len(val) and not unseen):
        return
    sets, train_digests = classifier.images, classifier.train_digests.get("base")
    is_trained_on = train_digests is not None and bool(
        torch.isin(sets.train.digests, train_digests).all()
    )
    expected = f"validation images of {', '.join(unseen)}" if unseen else "validation images"
    remedy = "a larger data.val_size, or images in val/ that are not in train/"
    if len(sets.val) and not len(val):
        remedy = "trainer.limit_val_batches > 0"
    elif is_trained_on and not len(sets.val) and sets.can_validate_on_test:
        remedy = "data.val_from=test, since the base was trained on all others"
    elif "val" in sets.excluded:
        remedy += f"; {sets.excluded['val']['line']}"
    raise UserError(f"{', '.join(asked)}: expected {expected}: {remedy}")
