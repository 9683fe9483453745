"""What an adapter begins as, and the point at which it is saved: its scale and its offset."""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from lora_mnist.choice import AUTO, Choice
from lora_mnist.data.plan import Selection
from lora_mnist.errors import UserError, config_group
from lora_mnist.lora.adapter import adapter_files
from lora_mnist.lora.base_state import lora_state_dict
from lora_mnist.lora.model import add_lora, add_offset, set_lora_point
from lora_mnist.lora.offset import last_layer, offset_for
from lora_mnist.lora.point import Point
from lora_mnist.lora.weight import layers_to_adapt, lora_adapters, offset_of
from lora_mnist.measure.dial import advise, dial_curve, images_of_dial
from lora_mnist.training.session import Session

log = logging.getLogger(__name__)

#: lora.rank=auto is this, or a layer's full rank where that is smaller: docs/experiments.md.
_AUTO_RANK = 64
#: Why a network has no offset.
_NO_LAYER = "no nn.Linear of the network has a bias that is added to the logits as it is"


def put_adapter(session: Session, selection: Selection) -> None:
    """Put a new adapter on the network, as ``lora`` says."""
    net, images, dataset = session.net, session.images.train, session.classifier.dataset
    arguments: Any = OmegaConf.to_container(session.cfg.lora, resolve=True)
    del arguments["scale"]  # of the finished adapter
    offset, layer = arguments.pop("offset"), None
    if offset and selection.targets:
        some = torch.linspace(0, len(images) - 1, 4).long().tolist()
        pixels = images.take(some)[0].to(session.evaluating())
        layer = last_layer(net, dataset.normalise(pixels))
    if layer is None and offset not in (0, AUTO):
        raise UserError(f"lora.offset={offset}: expected 0 or auto; {_NO_LAYER}")
    is_auto = arguments["rank"] == AUTO
    if is_auto:
        arguments["rank"] = _AUTO_RANK
    with config_group("lora"):
        ranks = arguments["rank_pattern"] = dict(arguments["rank_pattern"] or {})
        for name, weight in layers_to_adapt(net, arguments["target_modules"]).items():
            full = min(weight.base.flatten(1).shape)
            if is_auto and full < _AUTO_RANK:
                ranks.setdefault(f"^{name}", full)  # the user's own patterns come first
        # There it draws its first values: the same on every machine.
        add_lora(net.cpu(), **arguments)
    if layer is not None:
        counts = images.labels.bincount(minlength=len(dataset.classes)).float()
        own = offset_for(counts, selection.targets)
        add_offset(net, layer, own.direction, own.most)
    assert session.classifier.base is not None
    with config_group("lora"):  # what could not be saved is not trained
        adapter_files(net, {"base_sha256": session.classifier.base.sha256})


def turn_dial(
    session: Session, selection: Selection, at: Point | None = None
) -> tuple[Point, dict[str, Any] | None]:
    """The point that ``lora`` sets or validation images advise, or ``at``, and the dial's curve."""
    cfg, lora, images = session.cfg, session.cfg.lora, session.images.val
    if not len(images):
        return Point(float(lora.scale), float(lora.offset)), None
    log.info("dial: the adapter at several scales on validation images")
    some = images_of_dial(images.labels, cfg.seed, cfg.choose_by)
    batches = session.classifier.dataset.batches(images, session.evaluating(), some, "dial")
    net, targets = session.net, selection.targets
    if at is not None:
        return at, dial_curve(net, batches, targets, [at.scale], [at.offset], cfg.choose_by)
    return advise(net, batches, targets, lora.scale, lora.offset, cfg.choose_by)


def point_choice(
    session: Session, selection: Selection, point: Point, dial: Mapping[str, Any] | None
) -> Choice:
    """The point at which the adapter is saved, and why."""
    lora, value, whys = session.cfg.lora, point._asdict(), []
    for knob in point._fields:
        if lora[knob] != AUTO:
            whys.append(f"the {knob} is {session.as_set(f'lora.{knob}', None).why}")
    if len(whys) == len(point):
        both = {session.as_set(f"lora.{knob}", None).why for knob in point._fields}
        return Choice(value, why=both.pop() if len(both) == 1 else "; ".join(whys))
    assert dial is not None  # auto needs validation images
    place = dial["scales"].index(point.scale)
    why = f"the highest {name_of_measure(session)} on validation images, smoothed: "
    why += f"{dial['smoothed'][place]:.1%}, and {dial['base']['smoothed']:.1%} of the base"
    if lora.offset == AUTO:
        offset = offset_of(session.net)
        if not selection.targets:
            whys.append("no offset, since there is no class to move")
        elif offset is None:
            whys.append(f"no offset, since {_NO_LAYER}")
        elif not offset.direction.any():
            whys.append("no offset, since no class is rarer than another")
    return Choice(value, None, dial["images"], "; ".join([why, *whys]))


def name_of_measure(session: Session) -> str:
    """What decides, in a sentence."""
    return str(session.cfg.choose_by).replace("_", " ")


def factors_of(net: nn.Module) -> dict[str, Tensor]:
    """A copy of all tensors of the adapters on ``net``."""
    return copy.deepcopy(lora_state_dict(net))


def set_factors(net: nn.Module, factors: Mapping[str, Tensor], dropout: float) -> None:
    """Put these tensors into the adapters, at scale 1 and offset 0, to be trained with dropout."""
    net.load_state_dict(factors, strict=False)  # the base stays
    net.zero_grad()
    for adapter in lora_adapters(net):
        adapter.dropout = dropout
    set_lora_point(net, Point(1.0))
