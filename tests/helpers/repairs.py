"""What repairs of few images are asked for, and in what two of them differ."""

from composed import FEW, SMALL, load_adapter_tensors

from lora_mnist.lora.base_state import changed_tensors

#: 350 nines are few.
RECIPE = (
    *("stage=lora", "digit=9", "batches.replay=20", "trainer.max_steps=12", "optimizer.lr=0.003"),
    *("lora.rank=8", "lora.init=pissa", "lora.scale=auto", *SMALL, *FEW),
)
AUTO = ("lora.dropout=auto", "optimizer.lr=auto")
LOW = "low: {lora.dropout: 0.05, optimizer.lr: 0.003}"
TRIALS = (*AUTO, f"+trials={{high: {{lora.dropout: 0.3, optimizer.lr: 0.01}}, {LOW}}}")
QUIET = ("callbacks=none", "logger=none")


def changed(one, other):
    """The names of the tensors in which two runs' adapters differ."""
    return changed_tensors(load_adapter_tensors(one), load_adapter_tensors(other))
