"""Told to stop, by real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from tests.lab.tiny import recipe

from torchreaper.lab import stopping
from torchreaper.lab.execution import Job, perform
from torchreaper.lab.progress import NullProgress
from torchreaper.lab.runs import ERROR
from torchreaper.lab.stopping import Stopped, asked, listening, whole

SIGNALS = [signal.SIGINT, signal.SIGTERM]


class Left(Exception):  # noqa: N818  (stands for the end of the process)
    """What `leave` raises here."""


def leave(number, _frame=None):
    raise Left(number)


def send(number):
    os.kill(os.getpid(), number)


def run(code):
    """A process that runs this code, whose exit code is minus the signal that killed it, and what it said on stderr."""
    before = "import os, signal, sys, time\nfrom torchreaper.lab import stopping\n"
    leave = "def leave(number, _=None): print('left', number, file=sys.stderr); os._exit(stopping.code(number))\n"
    send = "def send(number): os.kill(os.getpid(), number)\n"
    command = [sys.executable, "-c", before + leave + send + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stderr


@pytest.mark.parametrize("number", SIGNALS)
def test_an_order_to_stop_is_raised_once_and_remembered_as_long_as_somebody_listens(number):
    before = [signal.getsignal(one) for one in SIGNALS]
    with listening(leave):
        assert asked() is None
        with pytest.raises(Stopped):
            send(number)
        assert asked() == number
        send(number)  # timeout of GNU sends two
        send(SIGNALS[0])
        assert asked() == number
    assert asked() is None
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_a_second_order_ends_the_process(monkeypatch):
    monkeypatch.setattr(stopping, "ONCE", 0.0)
    with listening(leave):
        with pytest.raises(Stopped):
            send(signal.SIGTERM)
        time.sleep(0.01)
        with pytest.raises(Left, match="15"):
            send(signal.SIGINT)


def test_a_process_that_swallows_the_order_is_ended(monkeypatch):
    code = """
        stopping.PATIENCE = 0.2
        class Odd:
            def __del__(self): send(signal.SIGTERM)
        sys.unraisablehook = lambda _: None  # Python says it where it swallows
        with stopping.listening(leave):
            odd = Odd()
            del odd
            time.sleep(60)
    """
    assert run(code) == (143, "left 15\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_what_is_to_be_whole_is_done_first(number):
    done = []

    def work():
        with whole():
            send(number)
            done.append(asked())
            send(number)
            done.append("all")

    with listening(leave):
        with pytest.raises(Stopped):
            work()
        assert asked() == number
        assert done == [None, "all"]
        with pytest.raises(KeyError), whole():  # and errors go through
            raise KeyError


def test_what_is_to_be_whole_and_hangs_is_broken_off_by_a_second_order(monkeypatch):
    monkeypatch.setattr(stopping, "ONCE", 0.0)
    done = []

    def work():
        with whole():
            send(signal.SIGINT)
            time.sleep(0.01)
            done.append("first")
            send(signal.SIGINT)
            done.append("second")

    with listening(leave), pytest.raises(Stopped):
        work()
    assert done == ["first"]


def test_what_is_to_be_whole_and_hangs_is_ended_after_a_while():
    code = """
        stopping.PATIENCE = 0.2
        with stopping.listening(leave), stopping.whole():
            send(signal.SIGTERM)
            time.sleep(20)
    """
    assert run(code) == (143, "left 15\n")


def test_processes_that_belong_to_one_that_is_told_to_stop_are_ended_whatever_becomes_of_the_order():
    code = """
        import typer
        from torchreaper.lab.command_line import guarded
        stopping.PATIENCE = 0.2
        stopping.take_along(lambda: print("nobody listens", file=sys.stderr))
        try:
            with guarded(False):
                stopping.take_along(lambda: print("ended", file=sys.stderr))
                try:
                    send(signal.SIGTERM)
                except KeyboardInterrupt:
                    WHAT
        except typer.Exit as end:
            sys.exit(end.exit_code)
    """
    for what in ("raise RuntimeError from None", "time.sleep(20)"):  # by `guarded`; by the timer
        assert run(code.replace("WHAT", what)) == (143, "ended\nterminated\n")
    run_on = code.replace("send(signal.SIGTERM)", "pass").replace("WHAT", "pass")
    assert run(run_on) == (0, "")


def test_ctrl_c_waits_for_the_end_where_nobody_listens_too():
    done = []

    def work():
        with whole(), whole():
            send(signal.SIGINT)
            done.append("all")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all"]


def test_what_is_ignored_stays_so_and_before_a_command_begins_it_ends_at_once():
    code = """
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup, and in the background of a script
        stopping.at_once(leave)
        with stopping.listening(leave), stopping.whole():
            send(signal.SIGINT)
        send(signal.SIGTERM)
    """
    assert run(code) == (143, "left 15\n")


def test_another_thread_listens_to_nothing():
    found = []

    def listen():
        with listening(leave), whole():
            found.append([signal.getsignal(one) for one in SIGNALS])

    before = [signal.getsignal(one) for one in SIGNALS]
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [before]


def test_what_an_order_to_stop_has_become_on_its_way_does_not_fail_the_run(tmp_path, monkeypatch):
    def torn(*_):
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("unexpected pos 64 vs 0") from None  # as torch.save says when it is cut off

    monkeypatch.setattr("torchreaper.lab.training.Run._backward", torn)
    with listening(leave), pytest.raises(Stopped):
        perform(Job(recipe(), "standard", 0, tmp_path), NullProgress())
    assert not list(tmp_path.rglob(ERROR))
