"""The dial: errors of a finished adapter at several scales, and the scale to take."""

import pytest
import torch
from helpers.nets import batches, randomize

from lora_mnist import add_lora, dial_curve, set_lora_scale
from lora_mnist.measure import dial
from lora_mnist.measure.dial import SCALES, advised_scale, measure_dial, scale_of_refit
from lora_mnist.measure.predictions import counts_of, predictions_of


@pytest.fixture
def adapted(tiny):
    return randomize(add_lora(tiny.eval(), rank=2).eval())


def test_dial_curve_counts_each_scale_as_the_network_errs_there(adapted):
    curve = dial_curve(adapted, batches(), targets=[1], scales=[0, 0.5, 1])
    assert curve["images"] == 50
    for place, scale in enumerate(curve["scales"]):
        set_lora_scale(adapted, scale)
        counts = counts_of(predictions_of(adapted, batches()), [1])["after"]
        for key in ("errors", "errors_of_target", "errors_elsewhere", "false_calls_of_target"):
            assert curve[key][place] == counts[key] > 0
        assert curve["repaired_or_broken"][place] == counts["repaired"] + counts["broken"]
    with pytest.raises(ValueError, match="scales=.*expected 0"):
        dial_curve(adapted, batches(), scales=[0.5, 1])


@pytest.mark.parametrize(
    ("errors", "changed", "more", "advised"),
    [
        # Near 1, where that keeps half of the gain.
        ([300, 200, 260], [0, 100, 100], {}, 0.5),  # 1 saves 40 of 100
        ([300, 200, 255], [0, 100, 100], {}, 1.0),  # half of them, but for chance
        ([42, 43, 44], [0, 9, 25], {}, 1.0),  # 2 errors more are half of the deviation, 5
        ([42, 43, 46], [0, 9, 25], {}, 0.5),
        ([300, 500, 1700], [0, 400, 1900], {}, 0.0),
        # Never where it repairs none of the class.
        ([40, 38, 41], [0, 2, 20], {"errors_of_target": [6, 5, 6]}, 0.5),
        ([40, 38, 41], [0, 2, 20], {"errors_of_target": [0, 0, 0]}, 1.0),  # there is none to repair
        # Never where it harms other classes, unless these have too few errors to tell.
        ([200, 180, 100], [0, 20, 110], {"errors_elsewhere": [120, 132, 133]}, 0.5),
        ([200, 180, 170], [0, 20, 30], {"errors_elsewhere": [90, 120, 150]}, 1.0),
    ],
)
def test_advised_scale(errors, changed, more, advised):
    curve = {"scales": [0.0, 0.5, 1.0], "errors": errors, "repaired_or_broken": changed, **more}
    upside_down = {key: values[::-1] for key, values in curve.items()}
    assert advised_scale(curve) == advised_scale(upside_down) == advised


@pytest.mark.parametrize(
    ("errors", "elsewhere", "scale"),
    [
        ([23, 20, 23], [18, 18, 20], 1.0),  # 3 errors more, and 9 images that differ: chance
        ([300, 200, 204], [100, 100, 110], 0.5),
        ([300, 200, 200], [100, 100, 110], 1.0),
        ([300, 200, 200], [100, 100, 111], 0.5),  # harm elsewhere
    ],
)
def test_scale_of_refit_turns_down_only_for_harm_beyond_chance(errors, elsewhere, scale):
    curve = {"scales": [0, 0.5, 1], "errors": errors, "errors_elsewhere": elsewhere}
    curve |= {"repaired_or_broken": [0, 9, 9], "advised": 0.5}
    assert scale_of_refit(curve) == scale


def test_measure_dial_takes_those_of_many_images_that_the_seed_gives(adapted, monkeypatch):
    """And at each of them what :func:`dial_curve` finds; scale 0 and 1 are not computed again."""

    def batches_at(indices):
        images, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
        return [(images[indices], labels[indices])]

    table = predictions_of(adapted, batches())
    calls = []
    adapted.register_forward_hook(lambda *_: calls.append(1))
    curve = measure_dial(adapted, batches_at, table, [1], seed=0)
    assert len(calls) == len(SCALES) - 2
    assert curve == dial_curve(adapted, batches(), [1])

    monkeypatch.setattr(dial, "MAX_IMAGES", 20)
    some, same, others = (dial.images_of_dial(50, seed).tolist() for seed in (0, 0, 1))
    assert len(set(some)) == 20
    assert some == same != others
    curve = measure_dial(adapted, batches_at, table, [1], seed=1)
    assert curve == dial_curve(adapted, batches_at(others), [1])
