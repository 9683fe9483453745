"""A run's times, and results.json."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_mnist.data import Images
from lora_mnist.disk.files import write_json
from lora_mnist.disk.predictions import write_predictions
from lora_mnist.disk.run_paths import RESULTS_FILE
from lora_mnist.repair.predictions import Predictions


@dataclass
class Clock:
    """Seconds since the run began, and of its measured parts."""

    started: float = field(default_factory=time.perf_counter)
    parts: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Around one part of the run; what is measured again is added."""
        started = time.perf_counter()
        yield
        self.parts[part] = self.parts.get(part, 0.0) + time.perf_counter() - started

    def seconds(self) -> dict[str, float]:
        """Seconds of each part, and in total, to the millisecond."""
        parts = {**self.parts, "total": time.perf_counter() - self.started}
        return {part: round(seconds, 3) for part, seconds in parts.items()}


def write_results(
    folder: Path, results: Mapping[str, Any], table: Predictions, images: Images
) -> None:
    """Write results.json, and the predictions for the test ``images``, into a run's folder."""
    write_json(folder / RESULTS_FILE, results)
    write_predictions(table.columns(), images.names(), folder, results["classes"])
