"""Caveats about a run's numbers, and the images they come from."""

from collections.abc import Mapping
from typing import Any

from lora_mnist.measure.significance import CERTAIN
from lora_mnist.show.reading import Reading, Sentence, number_of

#: A base has learnt images on which it errs less by this factor, and with certainty.
_FACTOR = 1.5


def doubts(reading: Reading) -> list[Sentence]:
    """Return the reasons to distrust a run's numbers."""
    texts = []
    images = reading.counts["test"]["images_per_class"]
    if untested := [c for c in reading.every if not images[c]]:
        classes = reading.named(untested)
        texts.append(f"No test image is of {classes}: what is said here is of other classes.")
    if text := _doubt_of_choices(reading):
        texts.append(text)
    if "test" in reading.held_out and "base" in reading.learnt_unknown:
        text = "The test images were held out of this folder just now: if the base was trained on "
        texts.append(f"{text}the whole folder, they prove nothing.")
    return [Sentence(text) for text in texts]


def _doubt_of_choices(reading: Reading) -> str:
    """Return a caveat if the base was trained on the validation images, so choices may be wrong."""
    held_out = reading.held_out
    decided = [name for name, choice in reading.choices.items() if choice["images"]]
    if not decided:
        return ""
    val, test = reading.counts.get("val_base"), reading.counts.get("test_base")
    if val and test and (expected := errors_if_new(val, test)):
        text = f"The base has {number_of(val['errors'], 'validation image')} wrong; at its error "
        text += f"rates on test images, class by class, it would be {expected:,.0f}. Unless the "
        text += "test images are of a harder kind, it was trained on the others"
    elif held_out.get("val") == "train" and "base" in reading.learnt_unknown:
        text = "The validation images were held out of those to train on, and the base may have "
        text += "learnt all of them"
    else:
        return ""
    text += f", and what they decided may be wrong: {', '.join(decided)}."
    if reading.val_from == "train" and "test" in held_out:
        text += " No image here is certainly new to the base."
    elif reading.val_from == "train":
        text += " data.val_from=test takes them from the test images, of which fewer are left to "
        text += "test on."
    return text


def errors_if_new(val: Mapping[str, Any], test: Mapping[str, Any]) -> float | None:
    """Return validation errors at the base's test error rates, or None if not clearly more."""
    expected, variance = 0.0, 0.0
    of_test = zip(test["errors_per_class"], test["images_per_class"], strict=True)
    for count, (errors, images) in zip(val["images_per_class"], of_test, strict=True):
        if images:
            unsure = (errors + 1) / (images + 2)  # no rate is certainly 0 or 1
            expected += count * (errors / images)
            variance += count * unsure * (1 - unsure) * (1 + count / images)
    is_clear = expected - val["errors"] > CERTAIN * variance**0.5
    return expected if is_clear and expected >= _FACTOR * val["errors"] else None


def belief(reading: Reading) -> list[Sentence]:
    """Return where the test images come from, and whether they are new to the model."""
    held_out, lines = reading.held_out, []
    for part, name in {"test": "test", "val": "validation"}.items():
        source = f"the {name} part of the data set {reading.dataset}"
        if part in held_out:
            source = f"held out of the {held_out[part]} part"
        if part in reading.counts:
            lines.append(f"{reading.change(part=part).images:,} {name} images: {source}.")
    if reading.choices.get("refit", {}).get("value"):
        text = "The last training learnt the validation images, too. What is said here of them "
        lines.append(f"{text}is of the training before, which had not seen them.")
    text = f"{number_of(reading.copies, 'identical file')} in two of training, validation and "
    lines.append(f"{text}test, left out of one; similar ones were not searched for.")
    lines += [f"{about['line']}." for about in reading.left_out.values()]
    text = "Each test image was compared by content with all that was learnt: it is none of it."
    if unknown := reading.learnt_unknown:
        text = f"What the {' and the '.join(unknown)} learnt elsewhere is not known: test images "
        text += "among it prove nothing."
    lines.append(text)
    sentences = [Sentence(line) for line in lines]
    if keys := reading.better_preprocessing:
        text = f"The base most likely had another preprocessing in its training: {' '.join(keys)}."
        sentences.append(Sentence(f"{text} Test it again with that.", "worse"))
    return sentences
