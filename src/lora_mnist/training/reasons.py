"""What a repair has chosen, and why: each reason is read off its attempts."""

from collections.abc import Sequence

from lora_mnist.choice import AUTO, Choice
from lora_mnist.lora.weight import offset_of
from lora_mnist.measure.significance import name_of_measure
from lora_mnist.training.attempts import Attempt, Failure
from lora_mnist.training.fit import augment_of
from lora_mnist.training.recipe import NO_LAYER
from lora_mnist.training.session import Session

Tried = Sequence[Attempt | Failure]


def choices_of(session: Session, tried: Tried, best: Attempt, refit: Choice) -> dict[str, Choice]:
    """The choices of a repair by their names."""
    choices = {}
    if best.steps and session.cfg.trials:
        choices["trial"] = _trial(tried, best)
        choices["augment"] = _augment(session, best)
    if best.steps:
        choices["rate"] = _rate(session, tried, best)
    return choices | {"refit": refit, "point": _point(session, best)}


def _trial(tried: Tried, best: Attempt) -> Choice:
    """The trial that validation images measure best."""
    ahead: dict[str, Attempt] = {}  # of each trial
    for each in tried:
        if isinstance(each, Attempt):
            name = each.training.name
            ahead[name] = max(ahead.get(name, each), each, key=lambda attempt: attempt.score)
    why, images = "the only one", 0
    if len(ahead) > 1:
        images, by = best.images, name_of_measure(best.cfg.choose_by)
        scores = []
        for name, each in ahead.items():
            assert each.row is not None  # without validation images there is one trial
            scores.append(f"{each.score:.3f} with {name} ({by} {each.row['measure']:.1%})")
        why = f"the highest score on validation images: {', '.join(scores)}"
    for name in dict.fromkeys(each.training.name for each in tried):
        if name not in ahead:
            why += f"; {name} diverged"
    return Choice(best.training.name, list(ahead), images, why)


def _augment(session: Session, best: Attempt) -> Choice:
    """How the kept trial changed its images: ``auto`` is as in the base's training."""
    base = session.classifier.base
    assert base is not None  # open_session has loaded it
    augment = augment_of(best.cfg, session.classifier)
    if augment != augment_of(session.cfg, session.classifier):
        return Choice(augment, why="as the trial has it")
    if session.cfg.batches.augment != AUTO:
        return session.as_set("batches.augment", augment)
    if not base.record.knows_augment:
        why = "the base's file does not say how it was; augment= takes what its training had"
        return Choice(augment, why=why)
    return Choice(augment, why="as in the base's training")


def _rate(session: Session, tried: Tried, best: Attempt) -> Choice:
    """The rate of the best training, and why it is that."""
    rates = best.training.rates
    if len(rates) == 1:
        return session.as_set("optimizer.lr", best.rate)
    whys, images = [], 0
    for each in tried:
        if each.training.name == best.training.name and each.rate > best.rate:
            why, images = f"at {each.rate:g} it is behind this one", best.images
            if isinstance(each, Failure):
                why, images = each.why, 0
            whys.append(why)
    return Choice(best.rate, rates, images, "; ".join(whys) or "the first that is tried")


def _point(session: Session, best: Attempt) -> Choice:
    """The point at which the adapter is saved, and why."""
    curve, value, lora, reasons = best.curve, best.point._asdict(), session.cfg.lora, {}
    for knob in value:
        if lora[knob] != AUTO:
            reasons[knob] = session.as_set(f"lora.{knob}", lora[knob]).why
    whys = [f"the {knob} is {reason}" for knob, reason in reasons.items()]
    if len(reasons) == len(value):
        is_one = len({*reasons.values()}) == 1
        why = reasons["scale"] if is_one else "; ".join(whys)
        return Choice(value, why=why, is_set=True)
    assert curve is not None  # auto needs validation images
    assert best.row is not None
    base, by = curve["base"], name_of_measure(curve["choose_by"])
    why = f"the highest score on validation images, {best.score:.3f}, and {base['score']:.3f} of "
    why += f"the base; {by} {base['measure']:.1%} -> {best.row['measure']:.1%}"
    if behind := [f"{row['scale']:g}" for row in curve["rows"] if row["is_behind"]]:
        why += f"; not at scale {', '.join(behind)}, where it is behind beyond chance"
    if lora.offset == AUTO:
        offset = offset_of(session.net)
        if not best.training.selection.targets:
            whys.append("no offset, since there is no class to move")
        elif offset is None:
            whys.append(f"no offset, since {NO_LAYER}")
        elif not offset.direction.any():
            whys.append("no offset, since no class is rarer than another")
    return Choice(value, None, curve["images"], "; ".join([why, *whys]))
