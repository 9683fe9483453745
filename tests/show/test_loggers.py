"""What TensorBoard reads of a run."""

import re
from collections import defaultdict

import pytest
import yaml
from helpers.commands import only_run, read_results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lora_mnist.show.run_results import RunResults
from lora_mnist.show.verdict import describe_run

pytestmark = pytest.mark.slow


def test_every_pattern_of_the_custom_page_finds_curves(made):
    """TensorBoard looks for a pattern at the beginning of a tag."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(made)).Reload()
    tags, charts = [], defaultdict(set)
    for run, kinds in runs.Runs().items():
        tags += [f"{run}: {tag}" for tag in kinds["scalars"]]
    base, name = sorted(runs.Runs(), reverse=True)
    for run in (base, name):
        layout = runs.Tensors(run, "custom_scalars__config__")[0].tensor_proto.string_val[0]
        for category in Layout.FromString(layout).category:
            for chart in category.chart:
                for pattern in chart.multiline.tag:
                    found = {tag for tag in tags if re.match(pattern, tag.partition(": ")[2])}
                    assert found, pattern
                    charts[chart.title] |= found
    losses = {f"{run}: {split}/loss" for run in (base, name) for split in ("train", "val")}
    assert charts["loss"] == losses
    curves = {f"{name}: {split}/errors_of_target" for split in ("val", "val_base")}
    assert charts["errors on the target"] == curves
    curves = {f"{run}: val/accuracy_per_class/{c}" for run in (base, name) for c in range(10)}
    assert charts["accuracy of each class"] == curves


def test_every_logger_gets_curves_verdict_figures_and_the_run_in_hparams(made):
    """Under the names of results.json, the same in TensorBoard as in CSV."""
    repair = only_run(made, "lora")
    folder = repair / "target=9,rank=1"
    events = EventAccumulator(str(folder), {"tensors": 0, "images": 0}).Reload()
    (metrics,) = repair.rglob("metrics.csv")
    names = set(metrics.read_text().partition("\n")[0].split(",")) - {"step"}
    assert names <= set(events.Tags()["scalars"])
    assert {"val/accuracy_per_class/9", "test/accuracy_per_class/9"} <= names
    assert len(events.Scalars("train/loss")) == 3
    results = read_results(repair)
    for split in ("val", "val_base", "test"):
        for key in ("accuracy", "errors", "errors_of_target"):
            value = events.Scalars(f"{split}/{key}")[-1].value
            assert value == pytest.approx(results[split][key])
    said = " ".join(sentence.text for sentence in describe_run(RunResults(results)))
    text = events.Tensors("verdict/text_summary")[0].tensor_proto.string_val[0].decode()
    (written,) = (repair / "csv").rglob("hparams.yaml")
    assert text == yaml.safe_load(written.read_text())["verdict"] == said
    figures = {"figures/classes", "figures/confusion", "figures/scale_curve"}
    assert {*events.Tags()["images"]} == figures
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["lora/rank"].number_value == 1
