"""How cost grows with the rank, with the hidden width and with the test's batch size."""

import statistics
from pathlib import Path
from typing import Any

import source_notebook
from contestants import batches_in_memory, fit_bare, lora_net, test_bare
from tables import markdown
from torch import nn
from torch.nn.utils import parametrize

from lora_mnist import MLP, add_lora
from lora_mnist.disk.files import atomic_write
from lora_mnist.process import keep_freed_memory

#: Rows by the table's title; the first column of each is what the others grow with.
Tables = dict[str, list[dict[str, Any]]]


def growth() -> Tables:
    """Measure all three, in this process."""
    keep_freed_memory()  # for both: dense products are twice as fast with it, ours no slower
    batches, rounds = batches_in_memory(60), 3

    def milliseconds(net: nn.Module) -> float:
        return 1000 / max(fit_bare(net, batches) for _ in range(rounds))

    def images_per_second(batch_size: int) -> float:
        return statistics.median(test_bare(lora_net, batch_size) for _ in range(rounds))

    def wide(factor: int) -> MLP:
        return MLP(hidden_sizes=(1000 * factor, 2000 * factor))

    return {
        "LoRA step, ms, by rank": [
            {
                "rank": rank,
                "ours": milliseconds(add_lora(MLP(), rank)),
                "dense": milliseconds(_dense(rank, MLP())),
            }
            for rank in (1, 4, 16, 64, 256)
        ],
        "LoRA step, ms, by hidden width": [
            {
                "width": f"x{factor}",
                "ours": milliseconds(add_lora(wide(factor))),
                "dense": milliseconds(_dense(1, wide(factor))),
            }
            for factor in (1, 2, 4)
        ],
        "adapted network, images/s, by test batch size": [
            {"batch": size, "ours": images_per_second(size)} for size in (10, 100, 1000, 10_000)
        ],
    }


def _dense(rank: int, net: Any) -> nn.Module:
    """The notebook's adapter on one of our networks."""
    for layer in (net.linear1, net.linear2, net.linear3):
        weight = source_notebook.DenseLoRA(layer.weight, rank)
        parametrize.register_parametrization(layer, "weight", weight)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("lora" in name)
    return net  # type: ignore[no-any-return]


def growth_tables(tables: Tables) -> str:
    """The tables as they are printed."""
    parts = []
    for title, rows in tables.items():
        cells = [[_number(value) for value in row.values()] for row in rows]
        parts.append(f"{title}\n\n{markdown(list(rows[0]), cells)}")
    return "\n\n".join(parts)


def _number(value: Any) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def draw(tables: Tables, path: Path) -> None:
    """One panel a table, both axes logarithmic."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogFormatter

    figure, panels = plt.subplots(1, len(tables), figsize=(12, 3.8), layout="constrained")
    for panel, (title, rows) in zip(panels, tables.items(), strict=True):
        by, *contestants = rows[0]
        for contestant in contestants:
            values = [row[contestant] for row in rows]
            panel.plot(range(len(rows)), values, marker="o", label=contestant)
        panel.set_xticks(range(len(rows)), [str(row[by]) for row in rows])
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        panel.set_title(title, fontsize=10)
        panel.set_xlabel(by)
        panel.grid(alpha=0.3, which="both")
        panel.legend(frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
