"""The dial: errors of a finished adapter at several scales, and the scale to take."""

import pytest
import torch
from helpers.nets import randomize

from lora_mnist import add_lora, dial_curve, lora_disabled, set_lora_scale
from lora_mnist.lora.weight import lora_adapters
from lora_mnist.repair.dial import SCALES, advised_scale, approximate_dial, scale_of_refit
from lora_mnist.repair.predictions import evaluate


class Images:
    """Batches of images, or of those at some indices; the base gets two thirds of them right."""

    def __init__(self, net, count=600):
        self.images = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
        with lora_disabled(net), torch.no_grad():
            self.labels = net(self.images).argmax(dim=1)
        self.labels[::3] = (self.labels[::3] + 1) % 3
        self.taken = []

    def __call__(self, indices=None):
        chosen = torch.arange(len(self.images)) if indices is None else indices
        self.taken.append(len(chosen))
        return list(zip(self.images[chosen].split(70), self.labels[chosen].split(70), strict=True))


def batches(net):
    return Images(net, 90)()


@pytest.fixture
def adapted(tiny):
    return randomize(add_lora(tiny.eval(), rank=2).eval())


def test_each_scale_is_counted_as_the_network_errs_there(adapted):
    given = batches(adapted)
    curve = dial_curve(adapted, given, targets=[1], scales=[0, 0.5, 1])
    assert curve["images"] == 90
    for place, scale in enumerate(curve["scales"]):
        set_lora_scale(adapted, scale)
        errors, false_calls = [0, 0], 0
        for images, labels in given:
            predictions = adapted(images).argmax(dim=1)
            wrong = predictions != labels
            false_calls += int((wrong & (predictions == 1)).sum())
            errors[0] += int((wrong & (labels == 1)).sum())
            errors[1] += int((wrong & (labels != 1)).sum())
        assert [curve["errors_of_target"][place], curve["errors_elsewhere"][place]] == errors
        assert curve["errors"][place] == sum(errors)
        assert curve["false_calls_of_target"][place] == false_calls > 0
    assert curve["errors"][0] == 30  # the base's, bit for bit


def test_an_adapter_is_turned_from_the_scale_that_it_has(adapted):
    given = batches(adapted)
    whole = dial_curve(adapted, given, scales=[0, 0.5])
    set_lora_scale(adapted, 0.5)
    assert dial_curve(adapted, given, scales=[0, 1])["errors"] == whole["errors"]
    assert {adapter.scale for adapter in lora_adapters(adapted)} == {0.5}


def advice(errors, changed, **further):
    curve = {"scales": [0.0, 0.5, 1.0], "errors": errors, "repaired_or_broken": changed, **further}
    upside_down = {key: values[::-1] for key, values in curve.items()}
    assert advised_scale(curve) == advised_scale(upside_down)
    return advised_scale(curve)


@pytest.mark.parametrize(
    ("errors", "changed", "advised"),
    [
        ([300, 200, 260], [0, 100, 100], 0.5),  # 1 saves 40 of 100
        ([300, 200, 255], [0, 100, 100], 1.0),  # half of them, but for chance
        ([42, 43, 44], [0, 9, 25], 1.0),  # 2 errors more are half of the deviation, 5
        ([42, 43, 46], [0, 9, 25], 0.5),
        ([300, 500, 1700], [0, 400, 1900], 0.0),
    ],
)
def test_advice_is_near_1_where_that_keeps_half_of_the_gain(errors, changed, advised):
    assert advice(errors, changed) == advised


def test_a_scale_that_repairs_none_of_the_class_is_not_advised():
    errors, changed = [40, 38, 41], [0, 2, 20]
    assert advice(errors, changed, errors_of_target=[6, 5, 6]) == 0.5
    assert advice(errors, changed, errors_of_target=[6, 6, 6]) == 0
    assert advice(errors, changed, errors_of_target=[0, 0, 0]) == 1  # there is none to repair


@pytest.mark.parametrize(
    ("elsewhere", "advised"),
    [
        ([120, 132, 133], 0.5),
        ([120, 133, 133], 0.0),
        ([90, 120, 150], 1.0),  # too few to tell harm from chance
    ],
)
def test_advice_spares_other_classes(elsewhere, advised):
    assert advice([200, 180, 170], [0, 20, 30], errors_elsewhere=elsewhere) == advised


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


def test_refused(adapted):
    with pytest.raises(ValueError, match="scales=.*expected 0"):
        dial_curve(adapted, batches(adapted), scales=[0.5, 1])
    with pytest.raises(ValueError, match="batches: expected at least one"):
        dial_curve(adapted, [])
    with pytest.raises(RuntimeError):  # images of another size
        dial_curve(adapted, [*batches(adapted), (torch.zeros(1, 7), torch.zeros(1).long())])
    assert {adapter.scale for adapter in lora_adapters(adapted)} == {1.0}


@pytest.mark.parametrize("most", [60, 600])
def test_the_quick_dial_sees_few_images_and_comes_near(adapted, most):
    images = Images(adapted)
    slow = dial_curve(adapted, images(), [1])
    predictions = evaluate(adapted, images())
    images.taken.clear()
    quick = approximate_dial(adapted, images, predictions, [1], most)
    chosen, *checked = images.taken
    assert quick["images"] == 600
    assert chosen == min(most, int((predictions.before != predictions.after).sum()))
    assert checked == [600] * len(checked)  # at the scales that were advised on the way
    assert quick["forward_passes"] == 4 * chosen + sum(checked)
    place = SCALES.index(quick["advised"])
    ends = [0, place, -1]
    calls = [curve["false_calls_of_target"] for curve in (quick, slow)]
    assert [calls[0][end] for end in ends] == [calls[1][end] for end in ends]
    for key in ("errors", "errors_of_target", "errors_elsewhere"):
        assert [quick[key][end] for end in ends] == [slow[key][end] for end in ends]
        for count, right in zip(quick[key], slow[key], strict=True):
            assert abs(count - right) <= 600 * 2 / most
    assert quick["advised"] == advised_scale(quick)
    assert {adapter.scale for adapter in lora_adapters(adapted)} == {1.0}


def test_an_adapter_that_changes_nothing_has_a_flat_dial(tiny):
    net = add_lora(tiny.eval())
    images = Images(net, 90)
    predictions = evaluate(net, images())
    images.taken.clear()
    curve = approximate_dial(net, images, predictions)
    assert (curve["errors"], curve["advised"]) == ([30] * len(SCALES), 1.0)
    assert (curve["forward_passes"], images.taken) == (0, [])


def test_the_images_of_a_table_may_be_some_of_all(adapted):
    """Those at its indices are evaluated, whatever their rows are."""
    images = Images(adapted)
    some = evaluate(adapted, images()).at(torch.arange(0, 600, 7))
    curve = approximate_dial(adapted, images, some, [1])
    exact = dial_curve(adapted, images(some.index), [1])
    del curve["forward_passes"]
    assert curve == exact
