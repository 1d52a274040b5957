"""RePr in a loop with Accelerate: no adapter is needed, and everything that it does holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import torchreaper as tr
from tests.integrations.accelerated import EPOCHS, SETTINGS, data, network, train

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _fresh():
    """Accelerate keeps its state for the whole process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def plain(mode: str, accumulate: int = 1) -> dict[str, torch.Tensor]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheme = tr.RePr(model, optimizer, data()[0][0][None], subnetwork=mode, **SETTINGS)
    for _ in range(EPOCHS):
        for number, (images, labels) in enumerate(DataLoader(data(), batch_size=6), 1):
            (nn.functional.cross_entropy(model(images), labels) / accumulate).backward()
            if number % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
        scheme.step()
    return model.state_dict()


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mode", ["masked", "compact"])
@pytest.mark.parametrize("after", [False, True])
def test_the_bits_of_a_plain_loop_with_the_scheme_built_before_or_after(mode, after):
    assert same(train(mode, after=after)[0], plain(mode))


def test_accumulated_gradients():
    assert same(train("compact", gradient_accumulation_steps=2)[0], plain("compact", accumulate=2))


@pytest.mark.parametrize("after", [False, True])
def test_mixed_precision_which_replaces_the_models_forward(after):
    """The channels are found through it; the numbers are those of bfloat16."""
    end, filters = train("masked", after=after, mixed_precision="bf16")
    assert len(filters) == 4
    assert all(torch.isfinite(value).all() for value in end.values())


def test_two_processes_and_a_fresh_one_that_goes_on(tmp_path):
    whole, filters = train("compact", save={epoch: tmp_path / f"saved-{epoch}" for epoch in (1, 2, 3)})
    script = ["-m", "tests.integrations.accelerated", str(tmp_path)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    for command in ([*torchrun, *script], script):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, env=environment, timeout=200)
    for end in torch.load(tmp_path / "again.pt").values():
        assert same(end, whole)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for mode in ("masked", "compact"):
        (mine, dropped), (theirs, theirs_dropped) = (rank[mode] for rank in ranks)
        assert dropped == theirs_dropped
        assert [list(one) for one in dropped] == [list(one) for one in ranks[0]["masked"][1]]
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]) or "running" in name
            assert torch.allclose(value, ranks[0]["masked"][0][name], rtol=0, atol=1e-10)
    assert len(filters) == len(dropped) == 4


def test_loading_in_a_phase_says_what_to_do(tmp_path):
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheme = tr.RePr(model, optimizer, data()[0][0][None], **{**SETTINGS, "full": 1})
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(scheme)
    scheme.step()
    accelerator.save_state(str(tmp_path))
    with pytest.raises(tr.ReaperError, match=r"sub-network phase.*call scheme\.restore\(\)"):
        accelerator.load_state(str(tmp_path))
    scheme.restore()
    accelerator.load_state(str(tmp_path))
    assert scheme.phase == "sub"
