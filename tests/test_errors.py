import errno
import logging
import threading
from typing import Any

import pytest
from hydra.errors import CompactHydraException, HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora_mnist.errors import (
    IncompleteError,
    TrainingError,
    UserError,
    config_group,
    described,
    exit_on_user_error,
    full_disk,
    is_full_error_wanted,
    missing_extra,
    one_line,
    used_up,
)


def raised_by(call: Any) -> UserError:
    with pytest.raises(UserError) as caught, config_group("lora"):
        call()
    return caught.value


def fail(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("rank=0: expected more"), "lora.rank=0: expected more"),
        (ValueError("Invalid\n learning rate"), "lora: Invalid learning rate"),
        (ValueError("target=10: expected less"), "digit=10: expected less"),
        (ValueError("targets=10: expected less"), "lora.targets=10: expected less"),
        (TypeError("f() got 'nope'"), "lora: f() got 'nope'"),
    ],
)
def test_the_config_group_stands_in_front(error: Exception, message: str) -> None:
    found = raised_by(lambda: fail(error))
    assert str(found) == message
    assert found.__cause__ is error
    assert found.exit_code == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"_target_": "lora_mnist.classifier.loss.Loss", "fit": "l1"},
            "lora.fit=l1: expected one of cross_entropy, hinge",
        ),
        (
            {"_target_": "lora_mnist.classifier.loss.Lost"},
            "lora: Error loading 'lora_mnist.classifier.loss.Lost'",
        ),
        (
            {"_target_": "lora_mnist.classifier.loss.Loss", "nope": 1},
            "unexpected keyword argument 'nope'",
        ),
    ],
)
def test_the_config_group_sees_through_instantiate(config: dict[str, Any], message: str) -> None:
    found = str(raised_by(lambda: instantiate(OmegaConf.create(config))))
    assert message in found
    assert found.startswith("lora")
    assert "\n" not in found


def test_other_errors_are_no_users() -> None:
    with pytest.raises(RuntimeError), config_group("lora"):
        raise RuntimeError


def test_a_missing_extra_is_named_with_the_command_that_brings_it() -> None:
    error = missing_extra("format=onnx", "onnx", ModuleNotFoundError(name="onnxscript"))
    assert str(error) == (
        "format=onnx: the package onnxscript is missing; "
        'expected the extra onnx: pip install -e ".[onnx]"'
    )


def test_one_line() -> None:
    assert one_line(ValueError("a\n  b\tc ")) == "a b c"


def test_described() -> None:
    assert described(UserError("key=1: expected\n2")) == "key=1: expected 2"
    assert described(HydraException("x")) == "HydraException: x"
    assert described(ZeroDivisionError("by\nzero")) == "ZeroDivisionError: by zero"


def test_described_says_what_hydra_and_omegaconf_say() -> None:
    with pytest.raises(CompactHydraException) as caught:
        try:
            OmegaConf.create({"a": "${b}"}).a  # noqa: B018
        except OmegaConfBaseException as error:
            raise CompactHydraException("Error merging override a=1") from error
    assert described(caught.value).startswith("Error merging override a=1: Interpolation key 'b'")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("kind", ["__cause__", "__context__"])
def test_a_full_disk_is_found_behind_other_errors(number: int, kind: str) -> None:
    error, full = RuntimeError("could not write"), OSError(number, "No space")
    setattr(error, kind, full)
    assert full_disk(error) is full_disk(full) is full
    assert described(error) == f"OSError: [Errno {number}] No space"
    assert full_disk(OSError(errno.EACCES, "")) is None
    assert full_disk(None) is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no more"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("Storage size calculation overflowed with sizes=[9, 9]"),
    ],
)
def test_too_little_memory_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    assert str(raised_by(lambda: fail(error))) == f"lora: {error}"
    with pytest.raises(SystemExit) as caught, exit_on_user_error():
        raise error
    assert caught.value.code == 1


def test_an_error_behind_itself_has_an_end() -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__context__, second.__context__ = second, first
    assert used_up(first) is None


@pytest.mark.parametrize("text", ["cannot open <x>: Too many open files (24)", "I/O (os error 24)"])
def test_what_rust_and_c_say_has_the_number_in_its_text(text: str) -> None:
    lacking = used_up(RuntimeError(text))
    assert lacking is not None
    assert lacking.errno == errno.EMFILE
    assert used_up(RuntimeError("of 24 images (25)")) is None


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE]
)
def test_what_the_machine_lacks_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    said: list[str] = []
    log = logging.getLogger("lora_mnist.errors")
    monkeypatch.setattr(log, "error", lambda text, *values: said.append(text % values))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    lacking = OSError(number, "No more", "/file")
    assert used_up(lacking) is lacking

    def fail() -> None:
        raise lacking

    hook = threading.excepthook
    with pytest.raises(SystemExit) as caught, exit_on_user_error():
        thread = threading.Thread(target=fail)  # such as TensorBoard's
        thread.start()
        thread.join()
        raise RuntimeError("could not write") from lacking
    assert caught.value.code == 1
    assert said == ["/file: No more; what was there before is whole"]
    assert capsys.readouterr().err == ""
    assert threading.excepthook is hook
    assert used_up(OSError(errno.EACCES, "")) is None
    with pytest.raises(OSError, match="denied"), exit_on_user_error():
        raise OSError(errno.EACCES, "denied")
    with pytest.raises(SystemExit), exit_on_user_error():
        raise OSError(errno.EACCES, "denied", "/file")
    with pytest.raises(SystemExit) as caught, exit_on_user_error():
        _ = OmegaConf.create({"a": {"b": "${nope}"}}).a.b
    assert caught.value.code == 2
    assert said[1:] == [
        "/file: denied; what was there before is whole",
        "a.b: Interpolation key 'nope' not found",
    ]


@pytest.mark.parametrize(("value", "wanted"), [(None, False), ("0", False), ("1", True)])
def test_full_error(monkeypatch: pytest.MonkeyPatch, value: str | None, wanted: bool) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if value is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", value)
    assert is_full_error_wanted() is wanted


@pytest.mark.parametrize(
    ("kind", "code"), [(UserError, 2), (IncompleteError, 1), (TrainingError, 1)]
)
def test_a_users_mistake_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, kind: type[UserError], code: int
) -> None:
    said: list[str] = []
    log = logging.getLogger("lora_mnist.errors")
    monkeypatch.setattr(log, "error", lambda text, *values: said.append(text % values))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as caught, exit_on_user_error():
        raise kind("key=1: expected 2")
    assert caught.value.code == code
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(kind), exit_on_user_error():
        raise kind("key=1: expected 2")
    assert said == ["key=1: expected 2"] * 2
