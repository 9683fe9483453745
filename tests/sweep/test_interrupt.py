"""Real signals, to this process and to real sweeps."""

import gc
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
from helpers.sweeping import (
    FEW,
    GRID,
    TOY,
    only_sweep,
    read_summary,
    start,
    statuses,
    wait_for_results,
)

from lora_mnist.sweep import interrupt
from lora_mnist.sweep.session import conduct

NUMBERS = [signal.SIGINT, signal.SIGTERM]


def interrupted(
    tmp_path: Path, entry: str, number: signal.Signals, *arguments: str
) -> tuple[str, list[str]]:
    """What a sweep prints that is interrupted after its first job."""
    process = start(tmp_path, "-m", *arguments, entry=entry)
    wait_for_results(process, tmp_path, 1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert err.splitlines() == [
        f"interrupted by {number.name}; go on with: python {entry} -m {' '.join(arguments)} "
        f"paths.outputs={tmp_path}/outputs sweep.resume={only_sweep(tmp_path)}"
    ]
    return out, [row["status"] for row in read_summary(only_sweep(tmp_path))]


@pytest.mark.parametrize("number", NUMBERS)
def test_an_interrupted_sweep_is_summarised(tmp_path: Path, number: signal.Signals) -> None:
    out, found = interrupted(tmp_path, TOY, number, "x=1,2,4", "y=1,4", "pause=0.3")
    assert f"best: python {TOY}" in out
    assert 1 <= found.count("finished") < 6
    assert set(found) <= {"finished", "interrupted"}


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_an_interrupted_sweep_of_trainings_is_summarised(
    base_ckpt: Path, tmp_path: Path, number: signal.Signals
) -> None:
    arguments = (*FEW, f"base_ckpt={base_ckpt}", *GRID)
    out, found = interrupted(tmp_path, "train.py", number, *arguments)
    # Five steps repair too little.
    assert "no job is better than the base; the nearest: python train.py" in out
    assert 1 <= found.count("finished") < 6
    assert set(found) <= {"finished", "interrupted"}


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_joblib_can_be_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    arguments = ("x=1,2,4", "y=1,4", "pause=0.5", "launcher=joblib", "hydra.launcher.n_jobs=2")
    process = start(tmp_path, "-m", *arguments, entry=TOY)
    wait_for_results(process, tmp_path, 1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert len(err.splitlines()) == 1
    assert "finished" in statuses(only_sweep(tmp_path))


@pytest.mark.slow
def test_a_single_run_tells_too(tmp_path: Path) -> None:
    """Inside the fit, where Lightning has its own answer to an interrupt."""
    arguments = ("stage=pretrain", "logger=none")
    process = start(tmp_path, *arguments)
    assert process.stderr
    lines = [process.stderr.readline()]
    assert "training a base on" in lines[0]
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    (run,) = (tmp_path / "outputs" / "pretrain").iterdir()
    assert err.splitlines() == [
        f"interrupted by SIGINT; go on with: python train.py {' '.join(arguments)} "
        f"paths.outputs={tmp_path}/outputs resume={run}"
    ]
    assert (run / "checkpoints" / "last.ckpt").is_file()


def test_what_swallows_a_signal_does_not_stop_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interrupt.handle_signals() as received:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()
        received.hold()
        signal.raise_signal(signal.SIGINT)
    assert received.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before


class Owner:
    """Something that weak references can point to, which may say goodbye."""

    def __init__(self, goodbye: Callable[[], object] = lambda: None) -> None:
        self.goodbye = goodbye

    def __del__(self) -> None:
        self.goodbye()


def interrupt_me() -> None:
    signal.raise_signal(signal.SIGINT)


def in_del() -> None:
    Owner(interrupt_me)


def in_a_weak_callback() -> None:
    owner = Owner()
    _reference = weakref.ref(owner, lambda reference: interrupt_me())
    del owner


def in_a_weak_dictionary() -> None:
    """Where file locks, among others, are kept: the callback runs as one of them is freed."""

    class Slow(weakref.WeakValueDictionary[str, Owner]):
        @property
        def _iterating(self) -> bool:  # the callback reads it first
            interrupt_me()
            return False

        @_iterating.setter
        def _iterating(self, value: object) -> None: ...

    owner = Owner()
    Slow()["x"] = owner
    dictionary = Slow(x=owner)
    del owner
    assert "x" not in dictionary


def in_a_generator() -> None:
    def wait() -> Iterator[int]:
        try:
            yield 1
        finally:
            interrupt_me()

    next(wait())


def in_the_garbage_collector() -> None:
    one, other = Owner(interrupt_me), Owner()
    one.other, other.one = other, one  # type: ignore[attr-defined]
    del one, other
    gc.collect()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "lose",
    [in_del, in_a_weak_callback, in_a_weak_dictionary, in_a_generator, in_the_garbage_collector],
)
def test_an_interrupt_that_python_cannot_raise_comes_again(
    monkeypatch: pytest.MonkeyPatch, lose: Callable[[], object]
) -> None:
    """Python would print ``Exception ignored in ...`` and go on."""
    printed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    with interrupt.handle_signals() as received:
        with pytest.raises(KeyboardInterrupt):
            lose()
            time.sleep(30)
        assert sys.unraisablehook != printed.append
    assert received.exit_code == 130
    assert printed == []
    assert sys.unraisablehook == printed.append


def test_other_lost_exceptions_are_printed_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    with interrupt.handle_signals():
        Owner(lambda: 1 / 0)
    assert len(printed) == 1


def test_an_engine_may_take_the_handlers_place(capsys: pytest.CaptureFixture[str]) -> None:
    """As Ray does in the process that starts it."""
    with pytest.raises(SystemExit) as ended, conduct():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert capsys.readouterr().err == "interrupted by SIGTERM\n"


def test_a_signal_leaves_no_module_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the summary, which needs some of what the jobs import, would fail in its turn."""
    source = (
        f"import os, time; os.kill(os.getpid(), {signal.SIGINT}); time.sleep(0.2); whole = True"
    )
    (tmp_path / "sluggish.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with interrupt.handle_signals() as received, pytest.raises(KeyboardInterrupt):
        import_module("sluggish")
        time.sleep(30)
    assert sys.modules["sluggish"].whole
    assert received.exit_code == 130


def test_the_first_signal_waits_for_a_step_and_the_second_does_not() -> None:
    done: list[str] = []
    with interrupt.handle_signals() as received:
        with pytest.raises(KeyboardInterrupt), interrupt.finish_first():
            assert not interrupt.is_requested()
            signal.raise_signal(signal.SIGTERM)
            done.append("this step")
            assert interrupt.is_requested()
            signal.raise_signal(signal.SIGINT)
            done.append("another step")
        assert done == ["this step"]
    assert received.exit_code == 143


def test_a_signal_in_the_last_step_ends_the_command_after_it() -> None:
    done: list[str] = []
    with interrupt.handle_signals(), pytest.raises(KeyboardInterrupt):
        with interrupt.finish_first():
            signal.raise_signal(signal.SIGINT)
            done.append("the work")
        done.append("what comes after it")
    assert done == ["the work"]


def test_an_error_in_the_work_is_not_replaced() -> None:
    with interrupt.handle_signals(), pytest.raises(ZeroDivisionError), interrupt.finish_first():
        signal.raise_signal(signal.SIGINT)
        1 / 0  # noqa: B018


def test_another_handler_is_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    """As Lightning puts one in the place of ours for SIGTERM, while it trains."""
    with pytest.raises(SystemExit) as ended, conduct(), interrupt.finish_first():
        signal.signal(signal.SIGTERM, lambda number, frame: pytest.fail("ours comes first"))
        interrupt.take_over()
        interrupt.offer("python train.py resume=x")
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    said = "interrupted by SIGTERM; go on with: python train.py resume=x\n"
    assert capsys.readouterr().err == said


def test_without_a_command_python_handles_signals() -> None:
    with interrupt.finish_first():
        interrupt.take_over()
        interrupt.offer("nothing")
        assert not interrupt.is_requested()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
