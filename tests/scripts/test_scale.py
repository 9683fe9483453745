"""The generated sweeps are read like real ones."""

import json
from pathlib import Path

import scale

from lora_mnist.sweep.records import read_jobs, write_record


def test_generated_jobs_are_finished_and_differ(tmp_path: Path) -> None:
    job = tmp_path / "job"
    (job / ".hydra").mkdir(parents=True)
    (job / ".hydra" / "config.yaml").write_text("seed: 5\n")
    write_record(job, 1, ["stage=lora", "digit=9"], [])
    (job / "results.json").write_text(json.dumps({"val": {"accuracy": 0.5}}))
    scale.generate(job, tmp_path / "sweep", size=20, grids=2)
    rows = read_jobs(tmp_path / "sweep")
    assert len(rows) == 20
    assert {row.status for row in rows} == {"finished"}
    settings = [tuple(row.swept[key] for key in ("lora.rank", "lora.alpha")) for row in rows]
    assert len(set(settings)) == 20
    # The first grid left the seed alone: it is what the configuration says.
    assert sorted(row.swept["seed"] for row in rows) == ["0"] * 10 + ["5"] * 10
