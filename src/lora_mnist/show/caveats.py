"""Caveats about a run's numbers, and the images they come from."""

from collections.abc import Mapping
from typing import Any

from lora_mnist.measure.significance import CERTAIN
from lora_mnist.show.run_results import RunResults, Sentence, format_count

#: The ratio of expected to actual errors that shows that a base was trained on images.
_FACTOR = 1.5


def find_caveats(results: RunResults) -> list[Sentence]:
    """Return sentences with reasons to distrust a run's numbers."""
    texts = []
    images = results.counts["test"]["images_per_class"]
    if untested := [c for c in results.every if not images[c]]:
        classes = results.name_classes(untested)
        texts.append(f"No test image is of {classes}: all numbers are of other classes.")
    if text := _caveat_about_choices(results):
        texts.append(text)
    if "test" in results.held_out and "base" in results.unknown_train_digests:
        text = "The test images were held out of this folder just now: if the base was trained on "
        texts.append(f"{text}the whole folder, they prove nothing.")
    return [Sentence(text) for text in texts]


def _caveat_about_choices(results: RunResults) -> str:
    """Return a caveat if the base was trained on the validation images, so choices may be wrong."""
    held_out = results.held_out
    decided = [name for name, choice in results.choices.items() if choice["images"]]
    if not decided:
        return ""
    val, test = results.counts.get("val_base"), results.counts.get("test_base")
    if val and test and (expected := estimate_unseen_errors(val, test)):
        text = (
            f"The base has {format_count(val['errors'], 'validation image')} wrong; at its error "
        )
        text += f"rates on test images, class by class, it would be {expected:,.0f}. Unless the "
        text += "test images are harder, it was trained on the validation images"
    elif held_out.get("val") == "train" and "base" in results.unknown_train_digests:
        text = "The validation images were held out of those to train on, and the base may have "
        text += "been trained on all of them"
    else:
        return ""
    text += f", and what they decided may be wrong: {', '.join(decided)}."
    if results.val_from == "train" and "test" in held_out:
        text += " No image here is certainly new to the base."
    elif results.val_from == "train":
        text += " data.val_from=test takes them from the test images, so that fewer are left to "
        text += "test on."
    return text


def estimate_unseen_errors(val: Mapping[str, Any], test: Mapping[str, Any]) -> float | None:
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


def describe_test_images(results: RunResults) -> list[Sentence]:
    """Return where the test images come from, and whether they are new to the model."""
    held_out, lines = results.held_out, []
    for split, name in {"test": "test", "val": "validation"}.items():
        source = f"the {name} split of the data set {results.dataset}"
        if split in held_out:
            source = f"held out of the {held_out[split]} split"
        if split in results.counts:
            lines.append(f"{results.change(split=split).images:,} {name} images: {source}.")
    if results.choices.get("refit", {}).get("value"):
        text = "The refit was trained on the validation images, too. Their numbers here are of the "
        lines.append(f"{text}training before it, which had not seen them.")
    text = (
        f"{format_count(results.duplicates, 'identical file')} in two of training, validation and "
    )
    lines.append(f"{text}test, excluded from one; similar ones were not searched for.")
    lines += [f"{about['line']}." for about in results.excluded.values()]
    text = "By content, no test image is among the images that were trained on."
    if unknown := results.unknown_train_digests:
        text = f"The training images of the {' and the '.join(unknown)} are unknown: test images "
        text += "among them prove nothing."
    lines.append(text)
    sentences = [Sentence(line) for line in lines]
    if keys := results.better_preprocessing:
        text = f"The base most likely had another preprocessing in its training: {' '.join(keys)}."
        sentences.append(Sentence(f"{text} Test it again with that.", "worse"))
    return sentences
