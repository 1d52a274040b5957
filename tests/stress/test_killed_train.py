"""`reaper train`, killed anywhere and as often as one likes, ends with the bits of one that was left alone."""

from __future__ import annotations

import itertools
import os
import time

import pytest
from tests.stress.killing import (
    SIGNALS,
    Command,
    check_death,
    check_left,
    left,
    moments,
    recipe,
    the_launcher,
    trapped,
    write_recipe,
)
from tests.stress.recording import lengths
from tests.stress.trap import OF_A_RUN, OF_COMPACT

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs fork, SIGKILL and /proc")

TRAIN = ["train", "tiny.yaml", "--threads", "1", "--out", "runs"]
KINDS = [("compact", "sgd"), ("masked", "sgd"), ("compact", "adamw"), ("masked", "adamw")]
EPOCHS = 24
#: For random moments, many of which are to fall into its epochs, and into those that a sub-network trains.
LONGER = {"epochs": EPOCHS, "snapshots": 4}
SUB = (4, 5, 6, 10, 11, 12, 16, 17, 18)
MOST = 3  # times that one run is killed


def longer(subnetwork, optimizer):
    values = recipe(subnetwork=subnetwork, optimizer=optimizer, **LONGER)
    return {**values, "scheme": {**values["scheme"], "full": 3, "sub": 3}}


@pytest.fixture(scope="module")
def launcher():
    return the_launcher()


@pytest.fixture(scope="module")
def undisturbed(launcher, tmp_path_factory):
    """What a run of a kind leaves that nobody disturbs, and the seconds that it takes; each is run once."""
    known = {}

    def of(values):
        kind = str(values)
        if kind not in known:
            folder = write_recipe(tmp_path_factory.mktemp("undisturbed"), values)
            begun = time.monotonic()
            ended = Command(TRAIN, folder, launcher).wait()
            seconds = time.monotonic() - begun
            assert (ended.code, ended.errors) == (0, "")
            known[kind] = left(folder / "runs"), seconds
            assert len(known[kind][0]["tiny/repr/seed-0/metrics.jsonl"]) == values["epochs"]
            assert len(known[kind][0]["tiny/repr/seed-0/events.jsonl"]) == 6
        return known[kind]

    return of


def finish(folder, launcher, whole):
    """The same command again ends well, and leaves what an undisturbed one does."""
    ended = Command(TRAIN, folder, launcher).wait()
    assert (ended.code, ended.errors) == (0, "")
    assert left(folder / "runs") == whole


class Deaths:
    """How often commands died, and where."""

    def __init__(self, count):
        self.count, self.epochs = count, []

    def check(self, ended, number, out):
        self.count.tried += 1
        check_death(ended, number, out)
        self.epochs += check_left(out) or [0]
        among = sum(epoch + 1 in SUB for epoch in self.epochs)
        self.count.note = (
            f"after {min(self.epochs)} to {max(self.epochs)} of {EPOCHS} epochs, {among} of {len(self.epochs)} while a "
            "sub-network was trained"
        )


@lengths(2, 110)
def test_at_random_moments(times, trials, launcher, undisturbed, tmp_path):
    count = trials(
        "killed",
        "`reaper train` killed at random moments by SIGKILL, SIGTERM, SIGINT, up to three times a run (compact and "
        "masked, SGD and AdamW); then given again: all files readable at each death, at last every file, tensor and "
        "metric bit-identical to the undisturbed run's",
        "kills",
    )
    deaths = Deaths(count)
    kinds, signals = itertools.cycle(KINDS[: 4 if times > 10 else 1]), itertools.cycle(SIGNALS)
    at = moments(3 * times, 1.0, seed=0)
    for number in itertools.count():
        if count.tried >= times:
            break
        values = longer(*next(kinds))
        whole, seconds = undisturbed(values)
        folder = write_recipe(tmp_path / str(number), values)
        before = count.tried
        for _ in range(MOST):
            how = next(signals)
            command = Command(TRAIN, folder, launcher)
            if command.ended(next(at) * seconds) is None:
                command.kill(how)
            ended = command.wait()
            if ended.code == 0:
                break
            deaths.check(ended, how, folder / "runs")
        finish(folder, launcher, whole)
        count.held += count.tried - before
    assert count.held == count.tried >= times


@lengths(1, 30)
def test_at_random_moments_from_the_first_import_on(times, trials, launcher, undisturbed, tmp_path):
    count = trials(
        "killed",
        "`reaper train` started afresh and killed at random moments, from the first import on: the same",
        "kills",
    )
    deaths = Deaths(count)
    values = longer(*KINDS[0])
    whole, _ = undisturbed(values)
    signals = itertools.cycle(SIGNALS[1:] if times == 1 else SIGNALS)
    began = 4.0 if times == 1 else _seconds_afresh(tmp_path / "timed", values)
    for number, moment in enumerate(moments(times, began, seed=1)):
        folder = write_recipe(tmp_path / str(number), values)
        how, command = next(signals), Command(TRAIN, folder)
        if command.ended(moment) is None:
            command.kill(how)
        ended = command.wait()
        if ended.code != 0:
            deaths.check(ended, how, folder / "runs")
            finish(folder, launcher, whole)
            count.held += 1
        else:
            count.add(left(folder / "runs") == whole)
    assert count.held == count.tried == times


def _seconds_afresh(folder, values):
    write_recipe(folder, values)
    begun = time.monotonic()
    assert Command(TRAIN, folder).wait().code == 0
    return time.monotonic() - begun


#: In the short form.
SOME = [
    ("when filters are ranked", "SIGINT"),
    ("in the middle of a restore, between two layers", "SIGTERM"),
    ("between last.pt's checksum and last.pt", "SIGKILL"),
]


@lengths(len(SOME), 10**6)
def test_at_named_points(times, trials, launcher, undisturbed, tmp_path):
    count = trials(
        "killed",
        "`reaper train` that signals itself (SIGKILL, SIGTERM, SIGINT) at named points: in an epoch, a drop, a "
        "restore, between two tensors, in and between all its files (compact, masked); given again: bit-identical",
        "kills",
    )
    every = [
        (point, how, kind)
        for kind, points in ((KINDS[0], OF_A_RUN | OF_COMPACT), (KINDS[3], OF_A_RUN))
        for point in points
        for how in SIGNALS
    ]
    if times < len(every):
        every = [one for one in every if (one[0], one[1].name) in SOME and one[2] == KINDS[0]]
        assert len(every) == times
    wrong = []
    for number, (point, how, kind) in enumerate(every):
        values = recipe(subnetwork=kind[0], optimizer=kind[1])
        whole, _ = undisturbed(values)
        folder = write_recipe(tmp_path / str(number), values)
        mark = tmp_path / f"{number}.mark"
        count.tried += 1
        try:
            ended = Command(TRAIN, folder, launcher, trapped(f"train: {point}", how, mark)).wait()
            assert mark.exists(), "never came there"
            check_death(ended, how, folder / "runs")
            check_left(folder / "runs")
            finish(folder, launcher, whole)
            count.held += 1
        except Exception as error:
            wrong.append(f"{point}, {how.name}, {' '.join(kind)}: {type(error).__name__}: {error}")
    points = len({point for point, *_ in every})
    count.note = f"{points} points"
    assert not wrong, "\n".join(wrong)
