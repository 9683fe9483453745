"""The dial: errors of a finished adapter at several scales, and the scale to take."""

import pytest
import torch
from helpers.nets import randomize

from lora_mnist import add_lora, dial_curve, lora_disabled, set_lora_scale
from lora_mnist.lora.weight import lora_adapters
from lora_mnist.repair import dial
from lora_mnist.repair.dial import SCALES, advised_scale, measure_dial, scale_of_refit
from lora_mnist.repair.predictions import evaluate


class Images:
    """Batches of images, or of those at some indices; the base gets two thirds of them right."""

    def __init__(self, net, count=600):
        self.images = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
        with lora_disabled(net), torch.no_grad():
            self.labels = net(self.images).argmax(dim=1)
        self.labels[::3] = (self.labels[::3] + 1) % 3

    def __call__(self, indices=None):
        chosen = torch.arange(len(self.images)) if indices is None else indices
        return list(zip(self.images[chosen].split(70), self.labels[chosen].split(70), strict=True))


@pytest.fixture
def adapted(tiny):
    return randomize(add_lora(tiny.eval(), rank=2).eval())


def test_each_scale_is_counted_as_the_network_errs_there(adapted):
    batches = Images(adapted, 90)()
    set_lora_scale(adapted, 0.5)
    curve = dial_curve(adapted, batches, targets=[1], scales=[0, 0.5, 1])
    assert {adapter.scale for adapter in lora_adapters(adapted)} == {0.5}  # its own, as before
    assert curve["images"] == 90
    for place, scale in enumerate(curve["scales"]):
        set_lora_scale(adapted, scale)
        errors, false_calls = [0, 0], 0
        for images, labels in batches:
            predictions = adapted(images).argmax(dim=1)
            wrong = predictions != labels
            false_calls += int((wrong & (predictions == 1)).sum())
            errors[0] += int((wrong & (labels == 1)).sum())
            errors[1] += int((wrong & (labels != 1)).sum())
        assert [curve["errors_of_target"][place], curve["errors_elsewhere"][place]] == errors
        assert curve["errors"][place] == sum(errors)
        assert curve["false_calls_of_target"][place] == false_calls > 0
    assert curve["errors"][0] == 30  # the base's, bit for bit
    with pytest.raises(ValueError, match="scales=.*expected 0"):
        dial_curve(adapted, batches, scales=[0.5, 1])
    with pytest.raises(ValueError, match="batches: expected at least one"):
        dial_curve(adapted, [])


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
        ([40, 38, 41], [0, 2, 20], {"errors_of_target": [6, 6, 6]}, 0.0),
        ([40, 38, 41], [0, 2, 20], {"errors_of_target": [0, 0, 0]}, 1.0),  # there is none to repair
        # Never where it harms other classes, unless these have too few errors to tell.
        ([200, 180, 170], [0, 20, 30], {"errors_elsewhere": [120, 132, 133]}, 0.5),
        ([200, 180, 170], [0, 20, 30], {"errors_elsewhere": [120, 133, 133]}, 0.0),
        ([200, 180, 170], [0, 20, 30], {"errors_elsewhere": [90, 120, 150]}, 1.0),
    ],
)
def test_advice(errors, changed, more, advised):
    curve = {"scales": [0.0, 0.5, 1.0], "errors": errors, "repaired_or_broken": changed, **more}
    upside_down = {key: values[::-1] for key, values in curve.items()}
    assert advised_scale(curve) == advised_scale(upside_down) == advised


@pytest.mark.parametrize(
    ("errors", "elsewhere", "scale"),
    [
        ([23, 23, 26], [18, 18, 20], 1.0),  # 3 errors more, and 9 images that differ: chance
        ([23, 23, 30], [18, 18, 24], 0.0),
        ([300, 200, 255], [100, 100, 111], 0.0),  # harm elsewhere
        ([300, 200, 255], [100, 100, 110], 0.5),  # 55 errors more than at 0.5
        ([300, 200, 210], [100, 100, 110], 1.0),
    ],
)
def test_a_refit_is_turned_down_only_for_harm_beyond_chance(errors, elsewhere, scale):
    advised = 0.5 if scale == 0.5 else 0.0
    curve = {"scales": [0, 0.5, 1], "errors": errors, "errors_elsewhere": elsewhere}
    curve |= {"repaired_or_broken": [0, 9, 9], "advised": advised}
    assert scale_of_refit(curve) == scale


def test_of_many_images_those_of_the_seed_are_measured(adapted, monkeypatch):
    """And at each of them what :func:`dial_curve` finds; scale 0 and 1 are not computed again."""
    images = Images(adapted)
    table = evaluate(adapted, images())
    calls = []
    adapted.register_forward_hook(lambda *_: calls.append(1))
    curve = measure_dial(adapted, images, table, [1], seed=0)
    assert len(calls) == (len(SCALES) - 2) * 9  # batches of 70
    assert curve == dial_curve(adapted, images(), [1])

    monkeypatch.setattr(dial, "MAX_IMAGES", 100)
    seen = []
    for seed in (0, 0, 1):
        some = dial.images_of_dial(len(table), seed)
        seen.append(some.tolist())
        fewer = measure_dial(adapted, images, table, [1], seed)
        assert fewer == dial_curve(adapted, images(some), [1])
    assert (len(set(seen[0])), seen[0]) == (100, seen[1])
    assert seen[0] != seen[2]
