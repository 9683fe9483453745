"""The choices of a repair with their reasons, as facts of its trainings."""

from collections.abc import Sequence

from lora_mnist.choice import AUTO, Choice, Reason
from lora_mnist.lora.weight import find_offset
from lora_mnist.training.run_training import Failure, TrainingResult
from lora_mnist.training.session import Session
from lora_mnist.training.trials import FEW_IMAGES, is_few, resolve_augment


def collect_choices(
    session: Session,
    results: Sequence[TrainingResult],
    failures: Sequence[Failure],
    best: TrainingResult,
) -> dict[str, Choice]:
    """Return the choices between trainings that validation images made, by name."""
    choices = {}
    if best.is_trained and session.cfg.get("trials"):
        choices["trial"] = explain_trial(session, results, failures, best)
        choices["augment"] = explain_augment(session, best)
    if best.is_trained:
        choices["learning_rate"] = explain_learning_rate(session, results, failures, best)
    return choices


def explain_trial(
    session: Session,
    results: Sequence[TrainingResult],
    failures: Sequence[Failure],
    best: TrainingResult,
) -> Choice:
    """Return the choice of the trial with the highest score."""
    ahead: dict[str, TrainingResult] = {}  # of each trial
    for each in results:
        name = each.training.name
        ahead[name] = max(ahead.get(name, each), each, key=lambda result: result.score)
    images, selection = 0, best.training.selection
    has_others = len(session.cfg.trials) > 1 and selection.targets and len(session.images.val)
    if len(ahead) > 1:
        images, trials = best.num_val_images, {}
        for name, each in ahead.items():
            assert each.row is not None  # without validation images there is one trial
            trials[name] = (each.score, each.row["weighted_accuracy"])
        reason = Reason("best_trial", choose_by=best.training.cfg.choose_by, trials=trials)
    elif has_others and not is_few(session, selection):
        reason = Reason("many_images_one_trial", limit=FEW_IMAGES)
    else:
        reason = Reason("only_trial")
    failed = [each.reason for each in failures if each.training.name not in ahead]
    return Choice(best.training.name, [reason, *failed], list(ahead), images)


def explain_augment(session: Session, best: TrainingResult) -> Choice:
    """Return the choice of augmentation; ``auto`` repeats the base's."""
    base = session.classifier.base
    assert base is not None  # open_session has loaded it
    augment = resolve_augment(best.training.cfg, session.classifier)
    if augment != resolve_augment(session.cfg, session.classifier):
        return Choice(augment, [Reason("augment_of_trial")])
    if session.cfg.batches.augment != AUTO:
        return Choice(augment, [session.explain_setting("batches.augment")])
    is_known = base.record.knows_augment
    return Choice(augment, [Reason("augment_of_base" if is_known else "augment_unknown")])


def explain_learning_rate(
    session: Session,
    results: Sequence[TrainingResult],
    failures: Sequence[Failure],
    best: TrainingResult,
) -> Choice:
    """Return the choice of the best training's learning rate."""
    training, lrs = best.training, best.training.lrs
    if session.cfg.optimizer.lr != AUTO:
        return Choice(training.lr, [session.explain_setting("optimizer.lr")])
    if len(lrs) == 1:
        return Choice(training.lr, [Reason("learning_rate_of_trial")])
    reasons = [each.reason for each in failures if each.training.name == training.name]
    images = 0
    for each in results:
        if each.training.name == training.name and each is not best:
            reasons.append(Reason("learning_rate_behind", learning_rate=each.training.lr))
            images = best.num_val_images
    return Choice(training.lr, reasons or [Reason("first_learning_rate")], lrs, images)


def explain_point(session: Session, best: TrainingResult) -> Choice:
    """Return the choice of the point at which the adapter is saved."""
    curve, value, lora = best.curve, best.point._asdict(), session.cfg.lora
    reasons = []
    for field in value:
        if lora[field] != AUTO:
            reasons.append(session.explain_setting(f"lora.{field}"))
    if len(reasons) == len(value):
        return Choice(value, reasons)
    assert curve is not None  # auto needs validation images
    assert best.row is not None
    base, row = curve["base"], best.row
    accuracies = (base["weighted_accuracy"], row["weighted_accuracy"])
    numbers = {"score": best.score, "base_score": base["score"], "accuracies": accuracies}
    why = [Reason("best_point", choose_by=curve["choose_by"], **numbers)]
    others = [each for each in curve["rows"] if each is not row]
    if behind := [each["scale"] for each in others if each["is_behind"]]:
        why.append(Reason("scales_behind", scales=behind))
    if lora.offset == AUTO:
        offset = find_offset(session.net)
        if not best.training.selection.targets:
            reasons.append(Reason("no_class_to_move"))
        elif offset is None:
            reasons.append(Reason("no_layer_for_offset"))
        elif not offset.direction.any():
            reasons.append(Reason("no_rare_class"))
    return Choice(value, why + reasons, None, curve["images"])
