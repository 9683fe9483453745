"""Which adapter a repair begins with: its rank and start, and the layer of its offset."""

import logging
from typing import Any

import torch
from omegaconf import OmegaConf

from lora_mnist.choice import AUTO
from lora_mnist.classifier.choose_point import KNOBS, refuse_undecidable
from lora_mnist.data.plan import Selection
from lora_mnist.errors import UserError, config_group
from lora_mnist.lora.adapter import adapter_files
from lora_mnist.lora.model import add_lora, add_offset
from lora_mnist.lora.offset import last_layer, offset_for
from lora_mnist.lora.target_modules import layers_to_adapt
from lora_mnist.show.reading import number_of
from lora_mnist.training.session import Session

log = logging.getLogger(__name__)

#: With fewer validation images of a class it is said that chance decides.
_TOO_FEW_TO_DECIDE = 5
#: lora.rank=auto is this, or a layer's full rank where that is smaller: docs/experiments.md.
_AUTO_RANK = 64
#: Why a network has no offset.
NO_LAYER = "no nn.Linear of the network has a bias that is added to the logits as it is"


def put_adapter(session: Session, selection: Selection) -> None:
    """Put a new adapter on the network, as ``lora`` says; with ``lora.scale=0`` an offset alone."""
    net, classifier = session.net, session.classifier
    _refuse_undecided(session, selection)
    layer = _layer_of_offset(session, selection)
    net.cpu()  # where LoRA draws its first values: the same on every machine
    if session.trains:
        _put_lora(session)
    elif layer is None:
        raise UserError(f"lora.scale=0: expected another number or auto; {NO_LAYER}")
    if layer is not None:
        labels = session.images.train.labels
        counts = labels.bincount(minlength=len(classifier.classes)).float()
        add_offset(net, layer, offset_for(counts, selection.targets))
    assert classifier.base is not None
    with config_group("lora"):  # what could not be saved is not trained
        adapter_files(net, {"base_sha256": classifier.base.sha256})


def _put_lora(session: Session) -> None:
    """Put LoRA on the layers that ``lora.target_modules`` names."""
    net = session.net
    arguments: Any = OmegaConf.to_container(session.cfg.lora, resolve=True)
    del arguments["scale"], arguments["offset"]  # of the finished adapter
    if arguments["dropout"] == AUTO:  # of each training, which sets it
        arguments["dropout"] = 0.0
    is_auto = arguments["rank"] == AUTO
    if is_auto:
        arguments["rank"] = _AUTO_RANK
    with config_group("lora"):
        ranks = {}
        for name, weight in layers_to_adapt(net, arguments["target_modules"]).items():
            full = min(weight.original.flatten(1).shape)
            if is_auto and full < _AUTO_RANK:
                ranks[f"^{name}"] = full
        add_lora(net, **arguments, rank_pattern=ranks)


def _layer_of_offset(session: Session, selection: Selection) -> str | None:
    """The name of the layer whose bias an offset moves; ``None``: there is no offset."""
    offset, images, layer = session.cfg.lora.offset, session.images.train, None
    if offset and selection.targets:
        some = torch.linspace(0, len(images) - 1, 4).long().tolist()
        pixels = images.take(some)[0].to(session.to_evaluate())
        layer = last_layer(session.net, session.classifier.dataset.normalise(pixels))
    if layer is None and offset not in (0, AUTO):
        raise UserError(f"lora.offset={offset}: expected 0 or auto; {NO_LAYER}")
    return layer


def _refuse_undecided(session: Session, selection: Selection) -> None:
    """Refuse ``auto`` of a class that no validation image is of; say where only few are."""
    asked = [f"lora.{knob}=auto" for knob in KNOBS if session.cfg.lora[knob] == AUTO]
    if not asked:
        return
    classes, val = session.classifier.classes, session.images.val
    numbers = val.labels.bincount(minlength=len(classes)).tolist()
    unseen = [classes[c] for c in selection.targets if not numbers[c]]
    refuse_undecidable(session.classifier, val, asked, unseen)
    for c in selection.targets:
        if numbers[c] < _TOO_FEW_TO_DECIDE:
            number = number_of(numbers[c], "validation image")
            few = "%s: %s has only %s, so chance decides"
            log.warning(few, ", ".join(asked), classes[c], number)
