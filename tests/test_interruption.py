"""A run that is asked to stop ends at its next checkpoint, with the exit code of the signal."""

from __future__ import annotations

import signal

import pytest

from experiments import cli, interruption


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_at_the_next_checkpoint(number, code, capfd):
    former = signal.getsignal(number)
    with interruption.deferred():
        interruption.check()
        signal.raise_signal(number)
        assert "stopping at the next checkpoint; once more: at once" in capfd.readouterr().err
        with pytest.raises(interruption.Interrupted) as stopped:
            interruption.check()
    assert stopped.value.exit_code == code
    assert signal.getsignal(number) is former
    interruption.check()  # nobody asks any more


def test_the_command_line_ends_with_the_code_of_the_signal_and_no_traceback(capsys):
    with pytest.raises(SystemExit) as stop, cli.reported():
        signal.raise_signal(signal.SIGTERM)
        interruption.check()
    assert stop.value.code == 143
    assert capsys.readouterr().err == "stopped, what was done is saved: the same command goes on from there\n"


def test_a_second_signal_ends_it_at_once():
    with interruption.deferred(), pytest.raises(interruption.Interrupted):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")
