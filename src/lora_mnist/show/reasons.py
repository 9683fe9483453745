"""The reasons of choices in words, for the log, the report and the loggers."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lora_mnist.choice import Choice
from lora_mnist.errors import format_value
from lora_mnist.show.run_results import RunResults, format_measure, format_p_value

log = logging.getLogger(__name__)

#: The keys that set choices of other names.
_KEYS = {"learning_rate": "optimizer.lr", "augment": "batches.augment"}


def log_choices(choices: Mapping[str, Choice], is_repair: bool = False) -> None:
    """Log the choices that nobody has set."""
    for name, choice in choices.items():
        if not choice.is_set:
            log.info("%s", format_choice(name, choice.record, is_repair))


def choice_lines(results: RunResults) -> list[str]:
    """Return a line for each choice of a run, with its reasons."""
    is_repair = results.stage == "lora"
    return [format_choice(name, record, is_repair) for name, record in results.choices.items()]


def format_choice(name: str, record: Mapping[str, Any], is_repair: bool = False) -> str:
    """Return a choice's key, value and reasons: ``optimizer.lr=0.003: the first that is tried``."""
    value, why = record["value"], "; ".join(map(format_reason, record["reasons"]))
    if name == "point":
        prefix = "lora." if is_repair else ""
        keys = [f"{prefix}{field}={number:g}" for field, number in value.items()]
        return f"{' '.join(keys)}: {why}"
    shown = ", ".join(value) if isinstance(value, list) else format_value(value)
    return f"{_KEYS.get(name, name)}={shown}: {why}"


def format_reason(record: Mapping[str, Any]) -> str:
    """Return the words of a reason."""
    facts = {name: fact for name, fact in record.items() if name != "code"}
    words = WORDS[record["code"]]
    return words.format(**facts) if isinstance(words, str) else words(**facts)


def _set(key: str, where: str) -> str:
    text = f"set {'in' if where == 'configuration' else 'on'} the {where}"
    return f"{key} is {text}" if key.startswith("lora.") else text  # one of two numbers


def _weakest(errors: int, images: int, unseen: Sequence[str]) -> str:
    text = f"the weakest class, {errors} of its {images} validation images are wrong "
    text += f"({errors / images:.1%})"
    return f"{text}; without any, nothing is known of {', '.join(unseen)}" if unseen else text


def _weak(classes: Mapping[str, tuple[int, int, float]]) -> str:
    each = []
    for name, (errors, images, p_value) in classes.items():
        each.append(f"{name} {errors} of {images} ({format_p_value(p_value)})")
    return f"weaker than the rest beyond chance, errors of validation images: {', '.join(each)}"


def _best_trial(choose_by: str, trials: Mapping[str, tuple[float, float]]) -> str:
    each = []
    for name, (score, accuracy) in trials.items():
        each.append(f"{score:.3f} with {name} ({format_measure(choose_by)} {accuracy:.1%})")
    return f"the highest score on validation images: {', '.join(each)}"


def _best_point(
    choose_by: str, score: float, base_score: float, accuracies: tuple[float, float]
) -> str:
    before, after = accuracies
    text = f"the highest score on validation images, {score:.3f} (the base: {base_score:.3f})"
    return f"{text}; {format_measure(choose_by)} {before:.1%} -> {after:.1%}"


def _scales_behind(scales: Sequence[float]) -> str:
    return f"worse beyond chance at scale {', '.join(f'{scale:g}' for scale in scales)}"


def _unseen(classes: Sequence[str]) -> str:
    return f"not advised, since there are no validation images of {', '.join(classes)}"


#: The words of each code: a format of its facts, or a function that takes them.
WORDS: Mapping[str, str | Callable[..., str]] = {
    "set": _set,
    # the target
    "weakest": _weakest,
    "weak": _weak,
    # the trial, and what happened to others
    "best_trial": _best_trial,
    "only_trial": "the only one",
    "many_images_one_trial": "the only one, since each target class has {limit} images or more",
    "diverged": "{trial}: {error}",
    "lost": "{trial}: ended at step {step}, since its score, {score:.3f}, does not rise, and is "
    "behind the score with {best} beyond chance",
    # the learning rate
    "first_learning_rate": "the first that was tried",
    "learning_rate_of_trial": "set by the trial",
    "learning_rate_behind": "better than with {learning_rate:g}",
    # augmentation
    "augment_of_trial": "the trial has no augmentation",
    "augment_of_base": "as in the base's training",
    "augment_unknown": "the base's file does not name one; set augment= if its training had one",
    # the refit
    "nothing_trained": "nothing is trained",
    "mistakes_trained_on": "mistakes are trained on",
    "no_validation_images": "there are no validation images",
    "few_images": "{images:,} images to learn, fewer than {limit}",
    "many_images": "{images:,} images to learn, {limit} or more",
    "trial_adds_nothing": "the trial gains nothing on validation images",
    "refit_behind": "its score is {score:.3f} on its own validation images, and the base's is "
    "{base_score:.3f}",
    # the operating point
    "best_point": _best_point,
    "scales_behind": _scales_behind,
    "no_class_to_move": "no offset, since mistakes have no target class",
    "no_layer_for_offset": "no offset, since no layer of the network can take one",
    "no_rare_class": "no offset, since no class is rarer than another",
    "saved": "as saved",
    "asked": "as set",
    "offset_alone": "scale=0 offset=0 is the base",
    "advised": "advised by validation images",
    "trained_on_validation_images": "not advised, since the adapter was trained on validation "
    "images",
    "validation_images_excluded": "not advised, since {images:,} of {of:,} validation images are "
    "excluded: base or adapter was trained on them",
    "unseen": _unseen,
}
