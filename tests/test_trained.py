"""What the documents promise of whole trainings: small ones, to their end."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

import torchreaper as tr
from tests.nets import plain


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("plan", [{"full": 20, "sub": 10, "cycles": 3}, {"epochs": 100}], ids=["20/10/3", "5/5/8"])
@pytest.mark.filterwarnings("ignore::torchreaper.OneLayerWarning")  # the network has three layers
def test_a_network_without_norms_survives_its_drops_at_a_high_rate_where_gradients_are_clipped(plan, seed):
    """Without clipping about half of these end with every ReLU at 0 (docs/faq.md)."""
    random = torch.Generator().manual_seed(0)
    images, labels = torch.randn(40, 3, 8, 8, generator=random), torch.randint(3, (40,), generator=random)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = plain(norm=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheme = tr.RePr(model, optimizer, images[:2], seed=seed, **plan)
    for _ in range(100):
        for x, y in zip(images.split(16), labels.split(16)):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        scheme.step()
    assert cross_entropy(model(images), labels) < 0.1
