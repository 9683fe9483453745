"""Which trainings a repair makes: its trials, each with a configuration of its own, and a refit."""

import logging
from itertools import islice

from lora_mnist.choice import AUTO, Choice
from lora_mnist.config.command import key_of
from lora_mnist.config.values import settings_of_trials
from lora_mnist.data.plan import Selection
from lora_mnist.errors import UserError
from lora_mnist.lora.weight import lora_weights
from lora_mnist.measure.dial import without_images
from lora_mnist.show.reading import number_of
from lora_mnist.training.session import Session

log = logging.getLogger(__name__)

#: A class has few images if there are fewer than these: experiment=repair then sees each of them
#: ten times or more, and tries more. docs/experiments.md has the numbers.
FEW_IMAGES = 400
#: trainer.max_steps=auto, of each of several trainings, or of the one of a class of many images.
_STEPS, _STEPS_OF_MANY = 400, 1200


def trials_of(session: Session, selection: Selection) -> dict[str, Session]:
    """A session for each of ``trials``; the first alone where validation images cannot choose.

    A key that is typed counts for all of them. Trials that say the same are one.
    """
    lora, counted = session.cfg.lora, session.images.val.labels
    asked = [f"lora.{key}=auto" for key in ("scale", "offset") if lora[key] == AUTO]
    classes = session.classifier.classes
    if asked and (unseen := without_images(counted, selection.targets)):
        raise UserError(
            f"{', '.join(asked)}: {classes[unseen[0]]} has no validation images, which decide; "
            "expected some in val/, a larger data.val_size, or lora.scale=1 lora.offset=0"
        )
    for c in selection.targets if asked else ():
        of_class = int((counted == c).sum())
        if of_class < 5:
            number = number_of(of_class, "validation image")
            few = "%s: %s has only %s, so chance decides"
            log.warning(few, ", ".join(asked), classes[c], number)
    trials: dict[str, Session] = {}
    count, is_few = few_of(session, selection)
    steps = session.cfg.trainer.max_steps
    if steps == AUTO:
        is_common = bool(selection.targets) and count >= FEW_IMAGES
        steps = _STEPS_OF_MANY if is_common else _STEPS
    # A seed that is drawn is drawn once: each training has the same order.
    common = {"trainer.max_steps": steps, "batches.seed": session.order_seed()}
    typed = [key_of(text) for text in session.run.typed or ()]
    takes_dropout = any(weight.factored_forward for weight in lora_weights(session.net).values())
    for name, values in (settings_of_trials(session.cfg, typed) or {"lora": {}}).items():
        if not takes_dropout:
            values.pop("lora.dropout", None)
        trial = session.with_settings(common | values)
        trial = trial.with_settings({"batches.augment": trial.augment})
        if any(trial.cfg == other.cfg for other in trials.values()):
            continue
        trial.data(selection)  # what does not fit is refused before anything is computed
        trials[name] = trial
    if not is_few or lora.scale == 0:
        trials = dict(islice(trials.items(), 1))
    return trials


def few_of(session: Session, selection: Selection) -> tuple[int, bool]:
    """How many images are to be learnt, of several classes of the rarest, and whether it is few.

    Few count only where validation images can decide.
    """
    if not selection.targets:
        return len(selection.target_indices), False
    counts = session.images.train.labels.bincount(minlength=len(session.classifier.classes))
    count = int(counts[selection.targets].min())
    return count, count < FEW_IMAGES and len(session.images.val) > 0


def choose_refit(session: Session, selection: Selection) -> Choice:
    """Whether one more training learns the validation images as well, as ``refit`` says."""
    refit = session.cfg.refit
    if session.cfg.lora.scale == 0:
        return Choice(False, why="nothing is trained")
    if refit != AUTO:
        return session.as_set("refit", refit)
    if session.mistakes is not None:
        return Choice(False, why="mistakes are learnt")
    if not len(session.images.val):
        return Choice(False, why="there are no validation images")
    count, is_few = few_of(session, selection)
    why = f"{count:,} images to learn, {'fewer' if is_few else 'no fewer'} than {FEW_IMAGES}"
    return Choice(is_few, [True, False], why=why)
