"""Freed memory stays with the process, and what need not be copied is not."""

import subprocess
import sys

import pytest

# Faults of new pages while a block of 16 MB is taken, written and freed ten times.
PROGRAM = """
import resource, sys
import torch
from lora_mnist.memory import keep_freed_memory
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


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again() -> None:
    assert faults("keep") < 100 < faults("as it comes")


def test_only_imports_are_kept_from_the_garbage_collector() -> None:
    program = """
import gc, sys
from lora_mnist.memory import lasting_imports
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


def test_registered_configs_are_shared_and_sources_are_not() -> None:
    program = """
import copy
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra._internal.utils import create_config_search_path
from hydra._internal.config_repository import ConfigRepository
from lora_mnist.memory import share_registered_configs
Plugins.instance()
repository = ConfigRepository(create_config_search_path(None))
share_registered_configs()
copied = copy.deepcopy(repository)
assert copied.sources is not repository.sources
stores = [s.store for r in (repository, copied) for s in r.sources if hasattr(s, "store")]
assert stores and all(store is ConfigStore.instance() for store in stores)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
