"""What a repair begins with: its adapter, its trials, and whether a refit follows them."""

import logging
from itertools import islice
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from lora_mnist.choice import AUTO, Choice
from lora_mnist.classifier.choose_point import Dial, refuse_undecidable
from lora_mnist.config.command import Run, is_in
from lora_mnist.config.objects import with_settings
from lora_mnist.data.plan import Selection
from lora_mnist.errors import UserError, config_group
from lora_mnist.lora.adapter import adapter_files
from lora_mnist.lora.model import add_lora, add_offset
from lora_mnist.lora.offset import last_layer, offset_for
from lora_mnist.lora.point import Point
from lora_mnist.lora.weight import adapted_weights, layers_to_adapt
from lora_mnist.show.reading import number_of
from lora_mnist.training.fit import augment_of, data_of, order_seed
from lora_mnist.training.session import Session

log = logging.getLogger(__name__)

#: Where a class has fewer images, a repair tries more: docs/experiments.md has the numbers.
FEW_IMAGES = 400
#: trainer.max_steps=auto, of each of several trainings, or of the one of a class of many images.
_STEPS, _STEPS_OF_MANY = 400, 1200
#: With fewer validation images of a class it is said that chance decides.
_TOO_FEW_TO_DECIDE = 5
#: lora.rank=auto is this, or a layer's full rank where that is smaller: docs/experiments.md.
_AUTO_RANK = 64
#: Why a network has no offset.
NO_LAYER = "no nn.Linear of the network has a bias that is added to the logits as it is"


def trains(cfg: DictConfig) -> bool:
    """Whether a repair trains; with ``lora.scale=0`` it is the offset alone."""
    return bool(cfg.lora.scale != 0)


def put_adapter(session: Session, selection: Selection) -> None:
    """Put a new adapter on the network, as ``lora`` says."""
    _refuse_undecided(session, selection)
    net, labels, classifier = session.net, session.images.train.labels, session.classifier
    arguments: Any = OmegaConf.to_container(session.cfg.lora, resolve=True)
    for knob in Point._fields:  # of the finished adapter
        del arguments[knob]
    layer = _layer_of_offset(session, selection)
    is_auto = arguments["rank"] == AUTO
    if is_auto:
        arguments["rank"] = _AUTO_RANK
    with config_group("lora"):
        ranks = {}
        for name, weight in layers_to_adapt(net, arguments["target_modules"]).items():
            full = min(weight.base.flatten(1).shape)
            if is_auto and full < _AUTO_RANK:
                ranks[f"^{name}"] = full
        # There it draws its first values: the same on every machine.
        add_lora(net.cpu(), **arguments, rank_pattern=ranks)
    if layer is not None:
        counts = labels.bincount(minlength=len(classifier.classes)).float()
        add_offset(net, layer, offset_for(counts, selection.targets))
    assert classifier.base is not None
    with config_group("lora"):  # what could not be saved is not trained
        adapter_files(net, {"base_sha256": classifier.base.sha256})


def _layer_of_offset(session: Session, selection: Selection) -> str | None:
    """The name of the layer whose bias an offset moves; ``None``: there is no offset."""
    offset, images, layer = session.cfg.lora.offset, session.images.train, None
    if offset and selection.targets:
        some = torch.linspace(0, len(images) - 1, 4).long().tolist()
        pixels = images.take(some)[0].to(session.evaluating())
        layer = last_layer(session.net, session.classifier.dataset.normalise(pixels))
    if layer is None and offset not in (0, AUTO):
        raise UserError(f"lora.offset={offset}: expected 0 or auto; {NO_LAYER}")
    return layer


def dial_of(session: Session, selection: Selection) -> Dial:
    """The dial by which the adapter is turned once it is trained."""
    cfg, val = session.cfg, session.images.val
    return Dial(session.classifier, val, selection.targets, cfg.seed, cfg.choose_by)


def _refuse_undecided(session: Session, selection: Selection) -> None:
    """Refuse ``auto`` of a class that no validation image is of; say where only few are."""
    asked = [f"lora.{knob}=auto" for knob in Point._fields if session.cfg.lora[knob] == AUTO]
    unseen = dial_of(session, selection).unseen()
    refuse_undecidable(session.classifier, session.images.val, asked, unseen)
    for c in selection.targets if asked else ():
        count = int((session.images.val.labels == c).sum())
        if count < _TOO_FEW_TO_DECIDE:
            number = number_of(count, "validation image")
            few = "%s: %s has only %s, so chance decides"
            log.warning(few, ", ".join(asked), session.classifier.classes[c], number)


def settings_of_trials(cfg: DictConfig, run: Run) -> dict[str, dict[str, Any]]:
    """What each of ``trials`` sets, by key; a key that is typed counts for all of them."""
    # augment= and batches.augment= are the same.
    typed = [key.removeprefix("batches.") for key in run.keys]
    trials: dict[str, dict[str, Any]] = {}
    for name, values in (cfg.get("trials") or {}).items():
        trials[name] = {}
        for key, value in (values or {}).items():
            own = key.removeprefix("batches.")
            if not any(is_in(own, each) or is_in(each, own) for each in typed):
                trials[name][key] = value
    return trials


def trials_of(session: Session, selection: Selection) -> dict[str, DictConfig]:
    """The configuration of each of ``trials``; of the first alone where nothing can choose."""
    cfg, classifier = session.cfg, session.classifier
    steps = cfg.trainer.max_steps
    if steps == AUTO:
        is_common = selection.targets and count_to_learn(session, selection) >= FEW_IMAGES
        steps = _STEPS_OF_MANY if is_common else _STEPS
    # A seed that is drawn is drawn once: each training has the same order.
    common = {"trainer.max_steps": steps, "batches.seed": order_seed(cfg)}
    takes_dropout = any(weight.factored_forward for weight in adapted_weights(session.net).values())
    trials: dict[str, DictConfig] = {}
    for name, values in (settings_of_trials(cfg, session.run) or {"lora": {}}).items():
        if not takes_dropout:
            values.pop("lora.dropout", None)
        trial = with_settings(cfg, common | values)
        trial = with_settings(trial, {"batches.augment": augment_of(trial, classifier)})
        if trial not in trials.values():
            data_of(session, trial, session.images, selection)  # what does not fit is refused now
            trials[name] = trial
    can_choose = is_few(session, selection) and trains(cfg)
    return trials if can_choose else dict(islice(trials.items(), 1))


def count_to_learn(session: Session, selection: Selection) -> int:
    """How many images are to be learnt; of several classes, those of the rarest."""
    if not selection.targets:
        return len(selection.target_indices)
    counts = session.images.train.labels.bincount(minlength=len(session.classifier.classes))
    return int(counts[selection.targets].min())


def is_few(session: Session, selection: Selection) -> bool:
    """Whether classes have so few images to learn that several trainings pay."""
    if not selection.targets or not len(session.images.val):  # nothing decides
        return False
    return count_to_learn(session, selection) < FEW_IMAGES


def choose_refit(session: Session, selection: Selection) -> Choice:
    """Whether one more training learns the validation images as well, as ``refit`` says."""
    refit = session.cfg.refit
    if not trains(session.cfg):
        return Choice(False, why="nothing is trained")
    if refit != AUTO:
        return session.as_set("refit", refit)
    if session.mistakes is not None:
        return Choice(False, why="mistakes are learnt")
    if not len(session.images.val):
        return Choice(False, why="there are no validation images")
    pays, count = is_few(session, selection), count_to_learn(session, selection)
    why = f"{count:,} images to learn, {'fewer' if pays else 'no fewer'} than {FEW_IMAGES}"
    return Choice(pays, [True, False], why=why)
