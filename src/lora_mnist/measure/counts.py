"""The names of what is counted, as results.json has them. Plain Python."""

import re

#: The parts of which predictions are counted; those of the base alone are ``test_base`` and so on.
PARTS = ("val", "test", "mistakes", "mistakes_test")
#: The values of ``choose_by``, the default first: how much of what a class counts follows the mix
#: of the test images. See :func:`.significance.class_weights`.
MEASURES = {"mean_accuracy": 0.5, "balanced_accuracy": 0.0, "accuracy": 1.0}
#: What is counted at each scale of the dial; without targets the first alone.
OF_DIAL = ("errors", "errors_of_target", "errors_elsewhere", "false_calls_of_target")
#: The counts that loggers get.
LOGGED = (*MEASURES, "loss", "repaired", "broken", *OF_DIAL, "precision_of_target")
#: What is counted of a part; lists have a number for each class.
COUNTS = (
    *(*LOGGED, "negative_flip_rate"),
    *("errors_per_class", "called_per_class", "false_calls_per_class", "images_per_class"),
    *("repaired_per_class", "broken_per_class"),
    *("p_value", "p_value_of_target", "p_value_elsewhere"),
    *(f"p_value_{measure}" for measure in MEASURES),
)


def better_end(key: str) -> str:
    """``max`` for accuracies, precisions and repaired images, ``min`` for all other numbers."""
    return "max" if re.search("accuracy|precision|repaired", key) else "min"
