"""The adapter at the start of a repair: its rank and initialization, and its offset's layer."""

import logging
import re
from collections import Counter
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from lora_mnist.choice import AUTO
from lora_mnist.classifier.choose_point import POINT_FIELDS, require_validation_images
from lora_mnist.data.plan import Selection
from lora_mnist.errors import UserError, report_group_errors
from lora_mnist.lora.adapter import adapter_files
from lora_mnist.lora.model import add_lora, add_offset, remove_lora
from lora_mnist.lora.offset import build_offset, find_last_layer
from lora_mnist.lora.target_modules import layers_to_adapt
from lora_mnist.lora.weight import adapters_on
from lora_mnist.show.run_results import format_count
from lora_mnist.training.session import Session
from lora_mnist.training.trials import LAST_LINEAR

log = logging.getLogger(__name__)

#: With fewer validation images of a class a warning says that chance decides.
_TOO_FEW_TO_DECIDE = 5
#: lora.rank=auto is this, or a layer's full rank where that is smaller: docs/experiments.md.
_AUTO_RANK = 64
#: The reason that a network's last layer is not trained alone.
NO_HEAD = "no nn.Linear of the network returns the logits of an image unchanged"
#: The reason that a network has no offset.
NO_LAYER = "no nn.Linear of the network has a bias that is added to the logits unchanged"


def add_adapter(session: Session, selection: Selection) -> None:
    """Put a new adapter on the network, as ``lora`` says; with ``lora.scale=0`` an offset alone.

    It replaces an adapter that is already there.
    """
    net, classifier = session.net, session.classifier
    if adapters_on(net):
        remove_lora(net)
    layer = _find_offset_layer(session, selection)
    net.cpu()  # where LoRA draws its first values: the same on every machine
    if session.trains:
        _add_lora(session)
    elif layer is None:
        raise UserError(f"lora.scale=0: expected another number or auto; {NO_LAYER}")
    if layer is not None:
        labels = session.images.train.labels
        counts = labels.bincount(minlength=len(classifier.classes)).float()
        add_offset(net, layer, build_offset(counts, selection.targets))
    assert classifier.base is not None
    with report_group_errors("lora"):  # an adapter that cannot be saved is not trained
        adapter_files(net, {"base_sha256": classifier.base.sha256})


def _add_lora(session: Session) -> None:
    """Put LoRA on the layers that ``lora.target_modules`` names."""
    net = session.net
    arguments: Any = OmegaConf.to_container(session.cfg.lora, resolve=True)
    del arguments["scale"], arguments["offset"]  # of the finished adapter
    if arguments["dropout"] == AUTO:  # of each training, which sets it
        arguments["dropout"] = 0.0
    if arguments["target_modules"] == LAST_LINEAR:
        name = find_last_linear(session)
        if name is None:
            raise UserError(f"lora.target_modules={LAST_LINEAR}: expected other layers; {NO_HEAD}")
        arguments["target_modules"] = re.escape(name)
    is_auto = arguments["rank"] == AUTO
    if is_auto:
        arguments["rank"] = _AUTO_RANK
    with report_group_errors("lora"):
        ranks = {}
        for name, weight in layers_to_adapt(net, arguments["target_modules"]).items():
            full = min(weight.original.flatten(1).shape)
            if is_auto and full < _AUTO_RANK:
                ranks[f"^{name}"] = full
        add_lora(net, **arguments, rank_pattern=ranks)


def _find_offset_layer(session: Session, selection: Selection) -> str | None:
    """Return the layer whose bias the offset moves, or None if there is no offset."""
    offset, layer = session.cfg.lora.offset, None
    if offset and selection.targets:
        layer = find_last_layer(session.net, _some_images(session))
    if layer is None and offset not in (0, AUTO):
        raise UserError(f"lora.offset={offset}: expected 0 or auto; {NO_LAYER}")
    return layer


@torch.no_grad()
def find_last_linear(session: Session) -> str | None:
    """Return the name of the ``nn.Linear`` whose output is the logits, or None if there is none.

    It is called once, with an input of shape (N, D).
    """
    calls: list[tuple[str, int, Tensor]] = []
    hooks = []
    for name, module in session.net.named_modules():
        if name and isinstance(module, nn.Linear):

            def keep(_: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
                calls.append((name, inputs[0].ndim, output))

            hooks.append(module.register_forward_hook(keep))
    logits = session.net(_some_images(session))
    for hook in hooks:
        hook.remove()
    names = Counter(name for name, _, _ in calls)
    for name, dimensions, output in calls:
        if names[name] == 1 and dimensions == 2 and torch.equal(output, logits):
            return name
    return None


def _some_images(session: Session) -> Tensor:
    """Return four training images as the network takes them, on its device, in eval mode."""
    images = session.images.train
    some = torch.linspace(0, len(images) - 1, 4).long().tolist()
    pixels = images.take(some)[0].to(session.switch_to_eval())
    return session.classifier.dataset.normalize(pixels)


def check_auto_point(session: Session, selection: Selection) -> None:
    """Refuse ``auto`` for a class without validation images; warn if it has only a few."""
    asked = [f"lora.{field}=auto" for field in POINT_FIELDS if session.cfg.lora[field] == AUTO]
    if not asked:
        return
    classes, val = session.classifier.classes, session.images.val
    numbers = val.labels.bincount(minlength=len(classes)).tolist()
    unseen = [classes[c] for c in selection.targets if not numbers[c]]
    require_validation_images(session.classifier, val, asked, unseen)
    for c in selection.targets:
        if numbers[c] < _TOO_FEW_TO_DECIDE:
            number = format_count(numbers[c], "validation image")
            few = "%s: %s has only %s, so chance decides"
            log.warning(few, ", ".join(asked), classes[c], number)
