import subprocess
import sys

import pytest

# Faults of new pages while a block of 16 MB is taken, written and freed ten times.
PROGRAM = """
import resource, sys
import torch
from lora_mnist.process import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
torch.ones(1 << 22)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(1 << 22)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: str) -> int:
    command = [sys.executable, "-c", PROGRAM, keep]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again() -> None:
    assert faults("keep") < 100 < faults("as it comes")


def test_only_imports_are_kept_from_the_garbage_collector() -> None:
    program = """
import gc, sys
from lora_mnist.process import lasting_imports
sys.modules.pop("colorsys", None)
with lasting_imports():
    assert not gc.isenabled()
    import colorsys
kept = gc.get_freeze_count()
assert gc.isenabled() and kept > 0
with lasting_imports():
    import colorsys
    more = [[] for _ in range(1000)]
assert gc.get_freeze_count() <= kept  # some of the kept objects may have died meanwhile
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_garbage_collector_is_left_as_it_was() -> None:
    program = """
import gc
from lora_mnist.process import lasting_imports
gc.disable()
with lasting_imports():
    pass
assert not gc.isenabled()
gc.enable()
try:
    with lasting_imports():
        raise ImportError
except ImportError:
    pass
assert gc.isenabled()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
