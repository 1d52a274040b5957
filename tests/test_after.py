"""After training: a scheme taken off leaves a plain model, and nobody exports one before by mistake."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import safetensors.torch
import torch
from torch import nn

import torchreaper as tr
from tests.nets import build, inputs

SETTINGS = {"full": 1, "sub": 1, "cycles": 2, "fraction": 0.3, "max_per_layer": 0.6, "skip": None}
MODES = ("masked", "compact")
NETS = ("plain", "residual")
EXAMPLE = inputs()[0]


def attached(net: str, mode: str) -> tuple[nn.Module, torch.optim.Optimizer, tr.RePr]:
    model, _ = build(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return model, optimizer, tr.RePr(model, optimizer, EXAMPLE, subnetwork=mode, **SETTINGS)


def trained(net: str, mode: str) -> nn.Module:
    """Two cycles of it, and the scheme taken off."""
    model, optimizer, scheme = attached(net, mode)
    for epoch in range(5):
        images, labels = inputs(epoch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        scheme.step()
    scheme.remove()
    assert len(scheme.history) == 4
    return model


@pytest.fixture(autouse=True)
def nothing_compiled():
    """What other tests have compiled counts as well: past the limit torch would compile the same code no more."""
    torch._dynamo.reset()


@pytest.fixture(scope="module", params=[(net, mode) for net in NETS for mode in MODES], ids=" ".join)
def model(request) -> nn.Module:
    return trained(*request.param).eval()


def hooks_of(module: nn.Module) -> list[object]:
    return [hook for name, hooks in vars(module).items() if name.endswith("hooks") for hook in (hooks or {}).values()]


def test_it_is_a_model_like_one_that_never_had_a_scheme(model):
    fresh, _ = build("plain" if isinstance(model, nn.Sequential) else "residual")
    fresh.load_state_dict(model.state_dict())
    for (name, mine), (same, theirs) in zip(model.named_modules(), fresh.named_modules(), strict=True):
        assert name == same
        assert vars(mine).keys() == vars(theirs).keys()
        assert not hooks_of(mine)
    for (name, mine), (same, theirs) in zip(model.named_parameters(), fresh.named_parameters(), strict=True):
        assert name == same
        assert type(mine) is nn.Parameter
        assert mine.is_contiguous()
        assert mine.stride() == theirs.stride()
        assert mine.storage_offset() == 0
        assert mine.untyped_storage().nbytes() == theirs.untyped_storage().nbytes()
        assert not mine._backward_hooks
        assert mine.requires_grad
    assert torch.equal(model(EXAMPLE), fresh.eval()(EXAMPLE))


def test_the_optimizer_has_no_hooks_either():
    _, optimizer, scheme = attached("residual", "compact")
    scheme.remove()
    assert not [name for name, value in vars(optimizer).items() if name.endswith("hooks") and value]


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance)


def test_torch_export(model):
    several = {0: torch.export.Dim("batch", min=2, max=64)}
    exported = torch.export.export(model, (EXAMPLE,), dynamic_shapes=(several,)).module()
    for images in (EXAMPLE, EXAMPLE[:3]):
        assert close(exported(images), model(images))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the exporter's own packages
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_onnx(model, tmp_path):
    import onnxruntime

    path = str(tmp_path / "model.onnx")
    torch.onnx.export(model, (EXAMPLE,), path, dynamo=True, verbose=False, input_names=["images"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": EXAMPLE.numpy()})
    assert close(torch.from_numpy(logits), model(EXAMPLE), 1e-4)


def test_safetensors(model, tmp_path):
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    fresh, _ = build("plain" if isinstance(model, nn.Sequential) else "residual", seed=9)
    safetensors.torch.load_model(fresh, str(tmp_path / "model.safetensors"))
    assert torch.equal(fresh.eval()(EXAMPLE), model(EXAMPLE))


def test_copies_and_pickles(model):
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same(EXAMPLE), model(EXAMPLE))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_torchscript(model):
    for compiled in (torch.jit.trace(model, EXAMPLE), torch.jit.script(model)):
        assert close(compiled(EXAMPLE), model(EXAMPLE))


def test_compile_for_training_and_evaluation(model):
    model = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert close(compiled(EXAMPLE), model(EXAMPLE))
    model.train()
    compiled(EXAMPLE).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_quantization_of_weights(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries for other devices
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        small = copy.deepcopy(model)
        quantize_(small, Int8WeightOnlyConfig())
        linear = next(module for module in small.modules() if isinstance(module, nn.Linear))
        assert type(linear.weight.data) is not torch.Tensor
        assert close(small(EXAMPLE), model(EXAMPLE), 0.05)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # by torchao's imports
def test_quantization_of_convolutions(model):
    """Weights and activations in 8 bits, norms folded, calibrated: within 3 % of the largest output on these images."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(model, (EXAMPLE,)).module(), quantizer)
    for seed in range(8):
        prepared(inputs(seed)[0])
    quantized = convert_pt2e(prepared)
    weights = {name: tensor for name, tensor in quantized.named_buffers() if tensor.dtype == torch.int8}
    filters = sorted(module.weight.shape for module in model.modules() if isinstance(module, nn.Conv2d))
    assert sorted(tensor.shape for tensor in weights.values() if tensor.ndim == 4) == filters
    expected = model(EXAMPLE)
    worst = (quantized(EXAMPLE) - expected).abs().max()
    assert 0 < worst < 0.03 * expected.abs().max()


EXPORTS = {
    "torch.export": lambda model: torch.export.export(model, (EXAMPLE,)),
    "strict": lambda model: torch.export.export(model, (EXAMPLE,), strict=True),
    "onnx": lambda model: torch.onnx.export(model, (EXAMPLE,), dynamo=True, verbose=False),
    "trace": lambda model: torch.jit.trace(model, EXAMPLE),
}


def told(error: BaseException | None) -> str:
    """All that a user reads: an error and what it came from."""
    return "" if error is None else f"{error}\n{told(error.__cause__ or error.__context__)}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [pytest.param(0, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_with_a_scheme_is_not_exported(export, steps, mode):
    model, _, scheme = attached("residual", mode)
    model.eval()
    for _ in range(steps):
        scheme.step()
    with pytest.raises(Exception) as caught:  # noqa: PT011  (each exporter has errors of its own)
        EXPORTS[export](model)
    assert "call scheme.remove() before" in told(caught.value)
    with torch.no_grad():
        torch.compile(model, backend="aot_eager", fullgraph=True)(EXAMPLE)  # not an export


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_fails_before_the_scheme_is_taken_off():
    """In words of its own: it compiles the hooks, and cannot."""
    model, _, _ = attached("plain", "masked")
    with pytest.raises((RuntimeError, torch.jit.frontend.NotSupportedError)):
        torch.jit.script(model)


@pytest.mark.parametrize("mode", MODES)
def test_a_state_dict_may_be_saved_at_any_time(mode, tmp_path):
    model, _, scheme = attached("residual", mode)
    scheme.step()
    assert scheme.phase == "sub"
    safetensors.torch.save_file(model.state_dict(), tmp_path / "phase.safetensors")
    fresh, _ = build("residual")
    fresh.load_state_dict(safetensors.torch.load_file(tmp_path / "phase.safetensors"))
