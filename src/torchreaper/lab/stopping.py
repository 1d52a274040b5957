"""Told to stop: Ctrl-C (SIGINT), and SIGTERM, which schedulers and service managers send before they kill.

A command that trains may be cut off anywhere, so that stopping is never more than leaving. Still a user is owed one
line and the exit code of the signal, no process may be left behind, and what is half written is better finished.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

#: What a command that is stopped calls itself.
WORDS = {int(signal.SIGINT): "interrupted", int(signal.SIGTERM): "terminated"}
PATIENCE = 5.0  # seconds until a command that was told to stop, and has not, is ended
ONCE = 1.0  # seconds in which several orders are one: GNU timeout and some schedulers send two

Leave = Callable[[int], NoReturn]


class Stopped(KeyboardInterrupt):
    """The command has been told to stop; raised wherever its main thread is just then."""


class _Order:
    """The first order that came while somebody listened."""

    number: int | None = None
    when = 0.0


class _Listener:
    """What is to be done about an order, while somebody listens."""

    hurry: Callable[[int], None] | None = None  # see to it that the process ends after `PATIENCE`
    others: tuple[Callable[[], None], ...] = ()  # end the processes that belong to this one


def asked() -> int | None:
    """The signal that the command was told to stop with; None: it was not, or nobody listens.

    Who catches `Exception` asks: on its way through C++ and destructors `Stopped` may become another error.
    """
    return _Order.number


def code(number: int) -> int:
    """The exit code of a command that a signal stopped, as shells tell it."""
    return 128 + number


def take_along(end: Callable[[], None]) -> None:
    """Have `end`, which ends other processes, called by `end_others` as long as somebody listens; perhaps twice."""
    if _Listener.hurry is not None:
        _Listener.others += (end,)


def end_others() -> None:
    """End the processes that `take_along` was told of: for whoever ends this one because of an order."""
    for end in _Listener.others:
        end()


def at_once(leave: Leave) -> None:
    """From now on let `leave` end the process, before and after there is anything to be cleared up."""
    for number in _heard():
        signal.signal(number, lambda number, _: leave(number))


@contextmanager
def listening(leave: Leave) -> Iterator[None]:
    """Raise `Stopped` in the block when the command is told to stop.

    A second order (after `ONCE`), or `PATIENCE` seconds, and `leave` ends the process: something holds it, be it in
    `whole`, or has swallowed the exception, as destructors do. A signal that was ignored before stays so (nohup,
    background jobs).
    """
    process, timers = os.getpid(), list[threading.Timer]()

    def hurry(number: int) -> None:
        if os.getpid() == process and not timers:
            timers.append(threading.Timer(PATIENCE, leave, [number]))
            timers[0].daemon = True
            timers[0].start()

    def stop(number: int, _: Any) -> None:
        if os.getpid() != process:  # a child that was forked with this handler, such as a reader of images
            raise KeyboardInterrupt
        if _Order.number is None:
            _Order.number, _Order.when = number, time.monotonic()
            hurry(number)
            raise Stopped
        if time.monotonic() - _Order.when > ONCE:
            leave(_Order.number)

    heard = _heard()
    if heard:
        _Listener.hurry = hurry
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in timers:
            timer.cancel()
        if heard:
            _Order.number, _Listener.hurry, _Listener.others = None, None, ()


@contextmanager
def whole() -> Iterator[None]:
    """Do the block as a whole: an order to stop waits until its end, but not for longer than `PATIENCE` seconds.

    A second order, after `ONCE`, does not wait.
    """
    came: list[tuple[int, Any, float]] = []

    def wait(number: int, frame: Any) -> None:
        if came and time.monotonic() - came[0][2] > ONCE:
            came.clear()
            before[number](number, frame)
        else:
            came.append((number, frame, time.monotonic()))
            if _Listener.hurry is not None:
                _Listener.hurry(number)

    before: dict[int, Any] = {}
    for number in _heard():
        if callable(handler := signal.getsignal(number)):
            before[number] = handler
            signal.signal(number, wait)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            number, frame, _ = came[0]
            before[number](number, frame)


def _heard() -> list[int]:
    """The signals that this thread can listen to."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in WORDS if signal.getsignal(number) is not signal.SIG_IGN]
