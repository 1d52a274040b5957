"""The same recipe on the same machine gives the same bits, whatever else is different."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lab.schemes.test_resume import OTHERS, SETTINGS, WITH_REPR
from tests.lab.tiny import ADAMW, TINY
from tests.stress.recording import ROOT, lengths
from tests.stress.repeating import Job, repeat

from torchreaper.lab.measures import fingerprint
from torchreaper.lab.runs import read_result

NETWORKS = [
    {"name": "cnet", "options": {"depth": 2, "width": 6, "batch_norm": True, "dropout": 0.2}},
    {"name": "cnet", "options": {"depth": 3, "width": 9}},
    {"name": "resnet20"},
]
VARIATIONS: list[dict] = [
    {},
    {"optim": ADAMW, "augment": "crop-flip", "grad_clip": 0.5},
    {"schedule": {"name": "cosine", "warmup": 1}, "precision": "bf16-mixed"},
    {"schedule": {"name": "halving", "every": 4}, "precision": "64-true", "report": "validation"},
    {"augment": "crop-flip", "optim": {"name": "rmsprop", "lr": 0.01, "momentum": 0.5}},
]


def jobs(count: int) -> list[Job]:
    """Every scheme and combination in turn, each with a network and other settings by lot."""
    draw, found = random.Random(0), []
    for number in range(count):
        scheme = ("repr", "standard", *OTHERS, *WITH_REPR)[number % (2 + len(OTHERS) + len(WITH_REPR))]
        network = draw.choice(NETWORKS if count > 10 else NETWORKS[:2])
        changes = {"schemes": SETTINGS, "model": network, **draw.choice(VARIATIONS)}
        mode = {"scheme__subnetwork": draw.choice(["masked", "compact", "auto"])}
        found.append((scheme, {**changes, **mode}))
    return found


def elsewhere(out: Path, threads: int, noise: int, what: list[Job], stops: list[int]) -> list[str]:
    """The same in a process of its own, with another hash seed and another working folder."""
    asked = {"out": str(out), "threads": threads, "noise": noise, "jobs": what, "stops": stops}
    here = out.parent / f"folder-{noise}"
    here.mkdir()
    found = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONHASHSEED": str(noise), "PYTHONPATH": found}
    command = [sys.executable, "-m", "tests.stress.repeating", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here, env=environment, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@lengths(1, 24)
def test_the_same_recipe_gives_the_same_bits(times, trials, tmp_path):
    what, draw = jobs(times), random.Random(1)
    place = elsewhere if times > 10 else repeat  # a process takes seconds to start
    found = {}
    for threads in (1, 2) if times > 10 else (1,):  # two threads on a busy machine wait for each other
        count = trials(
            "determinism",
            f"every scheme, networks, precisions and augmentations, {threads} thread{'s' * (threads > 1)}: again in "
            "another process, folder, hash seed and random state, and stopped and taken up: result, logs and "
            "checkpoint have the same bits",
            "pairs of runs",
        )
        stops = [draw.randrange(0, 5) for _ in what]
        first = place(tmp_path / f"first-{threads}", threads, 10 * threads, what, [0] * len(what))
        again = place(tmp_path / f"again-{threads}", threads, 10 * threads + 1, what, stops)
        same = [count.add(first[k : k + 2] == again[k : k + 2]) for k in range(0, len(first), 2)]
        assert all(same), [what[k] for k, one in enumerate(same) if not one]
        found[threads] = first[1::2]
    if times <= 10:
        return
    others = sum(one != two for one, two in zip(found[1], found[2]))
    count.note = f"with 2 threads other weights than with 1 in {others} of {len(what)} recipes"


@pytest.mark.stress
@pytest.mark.timeout(0)
def test_runs_side_by_side_are_runs_one_by_one(trials, tmp_path):
    """The short form is tests/lab/execution/test_workers.py."""
    count = trials(
        "determinism",
        "`reaper compare` with one job and with two at once, 1 or 2 threads each, in processes of their own: the same "
        "fingerprints",
        "pairs of runs",
    )
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "schemes": SETTINGS}))
    script = "from torchreaper.lab.cli import main; main()"
    for number in range(3):
        threads = str(1 + number % 2)
        names, prints = f"standard,repr,{('kd', 'dsd', 'repr+ema')[number]}", []
        for jobs_at_once in ("1", "2"):
            out = tmp_path / f"{number}-{jobs_at_once}"
            options = [
                "--seeds",
                "2",
                "--jobs",
                jobs_at_once,
                "--threads",
                threads,
                "--out",
                str(out),
                "--schemes",
                names,
            ]
            command = [sys.executable, "-c", script, "compare", str(path), *options]
            subprocess.run(command, check=True, capture_output=True, timeout=1800)
            results = {folder.relative_to(out): read_result(folder) for folder in sorted(out.glob("tiny/*/seed-*"))}
            prints.append({str(folder): (one["fingerprint"], one["threads"]) for folder, one in results.items()})
        assert len(prints[0]) == 6
        for folder in prints[0]:
            assert count.add(prints[0][folder] == prints[1].get(folder)), folder


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8)


@st.composite
def states(draw):
    """A state dict of random bits: shapes with and without dimensions, empty ones too."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    found = {}
    for number in range(draw(st.integers(1, 5))):
        shape = draw(st.lists(st.integers(0 if number else 1, 4), max_size=4))
        dtype = draw(st.sampled_from(DTYPES))
        size = torch.empty(shape, dtype=dtype).nbytes
        raw = torch.randint(256, (size,), dtype=torch.uint8, generator=generator)
        found[f"layer{number}.weight"] = raw.view(dtype).reshape(shape)
    return found


@lengths(30, 3_000)
def test_a_fingerprint_sees_any_bit_and_nothing_else(times, trials):
    count = trials(
        "determinism",
        "state dicts of random bits in seven types: a fingerprint changes with any single bit, name, type or shape, "
        "and not with order or memory layout",
        "state dicts",
    )

    @settings(max_examples=times, database=None)
    @given(states(), st.data())
    def holds(state, data):
        name = data.draw(st.sampled_from([name for name, value in state.items() if value.numel()]))
        raw = state[name].reshape(-1).view(torch.uint8).clone()
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        with count.one():
            whole = fingerprint(state)
            assert fingerprint({**state, name: raw.view(state[name].dtype).reshape(state[name].shape)}) != whole
            assert fingerprint(dict(reversed(state.items()))) == whole
            assert fingerprint({f"{name}." if one == name else one: value for one, value in state.items()}) != whole
            value = state[name]
            assert fingerprint({**state, name: value[None]}) != whole
            if value.ndim > 1:
                moved = value.transpose(0, -1).contiguous().transpose(0, -1)
                assert fingerprint({**state, name: moved}) == whole

    holds()
