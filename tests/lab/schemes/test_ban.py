"""Born-again networks: each generation from scratch, taught by the one before."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.schemes.setups import attach, hooks_on, network, same, setup, train_epoch, train_step, weights_of
from tests.lab.tiny import recipe

from torchreaper.lab.errors import UserError
from torchreaper.lab.run import train
from torchreaper.lab.runs import folder_of, read_metrics
from torchreaper.lab.schemes.ban import BANSpec


@given(epochs=st.integers(2, 200), generations=st.integers(2, 9), each=st.booleans())
def test_generations_share_the_epochs_or_have_all_of_them_each(epochs, generations, each):
    spec = BANSpec(generations=generations, each=each)
    if epochs < generations and not each:
        with pytest.raises(UserError, match=rf"^scheme\.generations={generations}: more than the {epochs} epochs"):
            spec.check(epochs)
        return
    spec.check(epochs)
    lengths = spec.lengths(epochs)
    assert len(lengths) == generations
    assert sum(lengths) == epochs * (generations if each else 1)
    assert list(lengths) == sorted(lengths)
    assert 1 <= lengths[0] <= lengths[-1] <= lengths[0] + 1


def test_at_the_end_of_a_generation_the_network_becomes_the_teacher_and_is_drawn_anew():
    model = network()
    on = setup(model, lengths=(2, 2, 3))
    scheme = BANSpec().attach(on)
    drawn = [weights_of(model)]
    for epoch in range(1, 8):
        assert scheme.counts == (epoch > 4)
        train_epoch(scheme, on)
        trained = weights_of(model)
        assert on.optimizer.state
        assert scheme.step() is None
        if epoch in (2, 4):
            assert same(weights_of(scheme._teacher), trained)
            assert not any(module.training for module in scheme._teacher.modules())
            assert not any(parameter.requires_grad for parameter in scheme._teacher.parameters())
            fresh = weights_of(model)
            assert not on.optimizer.state
            assert torch.equal(fresh["1.running_mean"], torch.zeros(8, dtype=torch.float64))
            assert not any(torch.equal(fresh["0.weight"], other["0.weight"]) for other in [*drawn, trained])
            drawn.append(fresh)
        else:
            assert same(weights_of(model), trained)
    scheme.close()
    assert hooks_on(model) == 0


def test_the_loss_is_cross_entropy_and_the_divergence_with_the_same_weight():
    model = network()
    on = setup(model, lengths=(1, 1))
    scheme = BANSpec(generations=2).attach(on)
    images, targets = next(on.drawn(0, 1))
    batch, loss = train_step(scheme, on, images, targets)
    assert loss == F.cross_entropy(batch.outputs, targets)
    scheme.step()
    teacher = weights_of(scheme._teacher)
    model.train()
    batch, loss = train_step(scheme, on, images, targets)
    ours, theirs = batch.outputs.detach().softmax(1), scheme._teacher(images).softmax(1)
    expected = -ours[range(16), targets].log().mean() + (theirs * (theirs / ours).log()).sum() / 16
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert same(weights_of(scheme._teacher), teacher)


def test_the_state_holds_the_teacher():
    on = setup(network(), lengths=(1, 1, 2))
    scheme = BANSpec().attach(on)
    other = attach(BANSpec(), network(), lengths=(1, 1, 2))
    other.load_state_dict(scheme.state_dict())
    assert other._teacher is None
    train_epoch(scheme, on)
    scheme.step()
    other.load_state_dict(scheme.state_dict())
    assert (other.epoch, other.counts) == (1, False)
    assert same(weights_of(other._teacher), weights_of(scheme._teacher))
    assert not other._teacher.training
    assert not any(parameter.requires_grad for parameter in other._teacher.parameters())


@pytest.mark.parametrize("seed", range(3))
def test_with_validation_only_the_last_generation_is_chosen(seed, tmp_path, one_thread):
    what = recipe(report="validation", epochs=8, optim__lr=0.2, schemes={"ban": {"generations": 4}})
    result = train(what, scheme="ban", seed=seed, out=tmp_path)
    assert result["reported_epoch"] > 6
    lines = read_metrics(folder_of(tmp_path, "tiny", "ban", seed))
    assert [line["counts"] for line in lines] == [False] * 6 + [True] * 2
    assert result["test_accuracy"] == lines[result["reported_epoch"] - 1]["test_accuracy"]
