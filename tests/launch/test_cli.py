"""How a command ends: exit codes that a scheduler can rely on."""

import os
import signal
import time

import pytest

from launch import cli
from research.errors import NonFiniteError, Preempted, SaveError, UserError


def ended(main) -> int:
    with pytest.raises(SystemExit) as end:
        cli.run(main, [])
    return end.value.code


@pytest.mark.parametrize(
    "error, code",
    [
        (UserError("words"), 2),
        (NonFiniteError("words"), 3),
        (SaveError("words"), 74),
        (Preempted("words"), 75),
    ],
)
def test_what_is_foreseen_has_its_code_and_one_line(capsys, error, code):
    def main() -> None:
        raise error

    assert ended(main) == code
    told = capsys.readouterr()
    assert told.out == "" and told.err == f"{type(error).__name__}: words\n"


def test_what_is_not_foreseen_has_a_traceback(capsys):
    def main() -> None:
        raise ZeroDivisionError

    assert ended(main) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told and "ZeroDivisionError" in told

    def interrupted() -> None:
        raise KeyboardInterrupt

    assert ended(interrupted) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_the_end_is_zero_or_what_the_command_says():
    def says_nothing() -> None: ...

    def says_one() -> int:
        return 1

    assert ended(says_nothing) == 0 and ended(says_one) == 1


def test_sigterm_outside_the_steps_is_a_preemption_too(capsys):
    """While it imports, restores or compiles: the scheduler has to start it again."""

    def main() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    before = signal.getsignal(signal.SIGTERM)
    assert ended(main) == 75
    assert capsys.readouterr().err.startswith("Preempted: SIGTERM: ")
    assert signal.getsignal(signal.SIGTERM) is before
