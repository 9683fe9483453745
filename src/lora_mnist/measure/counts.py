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


def better_end(key: str) -> str:
    """``max`` for accuracies, precisions and repaired images, ``min`` for all other numbers."""
    return "max" if re.search(r"\.((mean_|balanced_)?accuracy|precision|repaired)", key) else "min"
