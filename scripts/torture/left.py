"""What two runs have left, and where they differ."""

import json
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def left_by(outputs: Path) -> dict[str, Any]:
    """What a command leaves, but for its times and what is drawn."""
    left: dict[str, Any] = {path.name: path.read_bytes() for path in outputs.glob("base/*.ckpt")}
    jobs = [f for f in outputs.glob("multirun/*/*") if f.is_dir()]
    runs = [f for stage in ("pretrain", "lora") for f in sorted(outputs.glob(f"{stage}/*"))[-1:]]
    for run in [*runs, *jobs]:
        name = run.name if run in jobs else run.parent.name
        for file in (*run.glob("adapter/*"), *run.glob("answers.safetensors")):
            left[f"{name}/{file.name}"] = file.read_bytes()
        results = json.loads((run / "results.json").read_text())
        left[f"{name}/results.json"] = {k: v for k, v in results.items() if k != "seconds"}
        left |= {f"{name}/{tag}": points for tag, points in _curves(run).items()}
    return left


def _curves(run: Path) -> dict[str, Any]:
    """Every logged value, by tag and step, as text: NaN equals nothing.

    A point that is there twice, with the same value, is one point to whoever looks at the curve.
    """
    files = sorted(run.rglob("events.out.tfevents.*"))
    if not files:
        return {}
    events = EventAccumulator(str(files[0].parent), {"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    return {
        tag: list(dict.fromkeys((e.step, repr(e.value)) for e in events.Scalars(tag)))
        for tag in tags
    }


def difference(found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """Where two runs differ; ``None``: nowhere."""
    others = [k for k in sorted(found | expected) if found.get(k) != expected.get(k)]
    if not others:
        return None
    first = [str(left.get(others[0]))[:300] for left in (found, expected)]
    return f"{len(others)} differ, {others[0]}: {first[0]} instead of {first[1]}"
