"""Published convnets, and one check that asks every promise of the method of each of them.

What the architectures do is told here, what they are is told by torchvision and timm: everything is built from those
packages as they are, with weights of its own seed instead of trained ones.
"""

from __future__ import annotations

import gc
import importlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import torchreaper as tr
from torchreaper.flow.operations import CONVOLUTIONS

CLASSES = 10
FRACTION = 0.30
TOLERANCE = 1e-10
"""Of the difference between masked and compact, relative to the largest value of the tensor."""
HUGE = 1e30
IN_MEMORY = 2**30
"""Bytes of a snapshot from which it is kept in a file."""

_torchvision_library: list[torch.library.Library] = []


def torchvision_importable() -> None:
    """Make ``import torchvision`` work beside a torch of another build; harmless where it works anyhow.

    Its compiled operators are missing then, and the import fails at the first one that it registers a fake kernel for.
    Their schemas are enough: no classification network calls them.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _torchvision_library:
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _torchvision_library.append(library)  # its definitions live as long as it does
        importlib.import_module("torchvision")


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        name: "torchvision:resnet18", "timm:dla34"; "torchvision.segmentation:" and "torchvision.video:".
        size: height and width of the pictures, the smallest that makes sense.
        batch: pictures in a batch.
        frames: of a film, before height and width; 0: pictures.
    """

    name: str
    size: int = 64
    batch: int = 4
    frames: int = 0

    def build(self, seed: int = 0) -> nn.Module:
        """The network in float64 and train mode: random weights, every shift on, no chance in its steps."""
        torchvision_importable()
        package, name = self.name.split(":")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _timm(name) if package == "timm" else _torchvision(name)
            without_chance(model)
            with_every_shift(model)
        _refuse_too_large(model)
        return model.double().train()

    def inputs(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        sizes = [self.frames] * (self.frames > 0) + [self.size, self.size]
        images = torch.randn(self.batch, 3, *sizes, generator=generator, dtype=torch.float64)
        return images, torch.randint(CLASSES, (self.batch,), generator=generator)


def _torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model

    settings: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    if name.startswith(("fcn", "deeplab", "lraspp")):
        settings = (
            {"weights_backbone": None} if name.startswith("lraspp") else {"weights_backbone": None, "aux_loss": True}
        )
    return get_model(name, weights=None, num_classes=CLASSES, **settings)


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=CLASSES)


def without_chance(model: nn.Module) -> None:
    """Switch off what draws random numbers in train mode: Dropout, stochastic depth."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
        if hasattr(module, "drop_rate"):
            module.drop_rate = 0.0


@torch.no_grad()
def with_every_shift(model: nn.Module) -> None:
    """Random values for what starts constant: gains, shifts, layer scales, statistics.

    A gain of 0 or 1e-6 at the end of a block, as published networks start, would hide every error inside the block.
    """
    for name, parameter in model.named_parameters():
        if not parameter.numel() or not (parameter == parameter.flatten()[0]).all():
            continue
        start = float(parameter.flatten()[0])
        if start == 0 and name.endswith("bias"):
            nn.init.normal_(parameter, std=0.5)
        elif abs(start) < 0.1:
            nn.init.uniform_(parameter, 0.2, 0.6)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5).mul_(start)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2.0)


def _entries(package: str, names: str, **settings: int) -> list[Entry]:
    return [Entry(f"{package}:{name}", **settings) for name in names.split()]


TORCHVISION = [
    *_entries("torchvision", "alexnet convnext_tiny convnext_small convnext_base"),
    *_entries("torchvision", "convnext_large", batch=2),
    *_entries("torchvision", "densenet121 densenet161 densenet169 densenet201"),
    *_entries("torchvision", " ".join(f"efficientnet_b{k}" for k in range(6))),
    *_entries("torchvision", "efficientnet_b6 efficientnet_b7 efficientnet_v2_l", batch=2),
    *_entries("torchvision", "efficientnet_v2_s efficientnet_v2_m googlenet"),
    *_entries("torchvision", "inception_v3", size=299, batch=2),
    *_entries("torchvision", "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3"),
    *_entries("torchvision", "mobilenet_v2 mobilenet_v3_large mobilenet_v3_small"),
    *_entries("torchvision", "regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf"),
    *_entries("torchvision", "regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf"),
    *_entries("torchvision", "regnet_x_16gf regnet_x_32gf regnet_y_16gf regnet_y_32gf regnet_y_128gf", batch=2),
    *_entries("torchvision", "resnet18 resnet34 resnet50 resnet101 resnet152"),
    *_entries("torchvision", "resnext50_32x4d resnext101_32x8d resnext101_64x4d wide_resnet50_2 wide_resnet101_2"),
    *_entries("torchvision", "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0"),
    *_entries("torchvision", "squeezenet1_0 squeezenet1_1"),
    *_entries("torchvision", "vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn", batch=2),
]

TIMM = [
    # Residual: deep stems, antialiasing, GroupNorm, squeeze-and-excitation and other gates.
    *_entries("timm", "test_resnet resnet18 resnet26d resnet26t resnet50 resnet50_gn resnetblur18 resnetaa34d"),
    *_entries("timm", "resnext26ts resnext50_32x4d wide_resnet50_2 seresnet18 seresnet33ts seresnext26d_32x4d"),
    *_entries("timm", "ecaresnet26t ecaresnet50t eca_resnet33ts gcresnet33ts gcresnext26ts"),
    *_entries("timm", "legacy_seresnet18 legacy_seresnext26_32x4d skresnet18 skresnext50_32x4d"),
    *_entries("timm", "resnest14d resnest26d res2net50_26w_4s res2next50 tresnet_l"),
    *_entries("timm", "resnetv2_18 resnetv2_50 resnetv2_50t resnetv2_50d_gn resnetv2_50d_evos"),
    # At 64 pixels its last maps are so small that rounding errors alone change its outputs by 1e-7.
    *_entries("timm", "resnetv2_50d_frn", size=96),
    *_entries("timm", "resnetv2_50x1_bit nf_regnet_b0 nf_resnet26 nf_seresnet26 nf_ecaresnet26"),
    *_entries("timm", "test_nfnet nfnet_l0 eca_nfnet_l0"),
    *_entries("timm", "dm_nfnet_f0", batch=2),
    # Chains and dense connections.
    *_entries("timm", "densenet121 densenetblur121d rdnet_tiny dpn48b dpn68 dpn68b"),
    *_entries("timm", "vgg11 vgg11_bn", batch=2),
    *_entries("timm", "ese_vovnet19b_slim_dw ese_vovnet19b_dw eca_vovnet39b vovnet39a hgnet_tiny hgnetv2_b0"),
    *_entries("timm", "dla34 dla46_c dla46x_c dla60x_c dla60_res2net hrnet_w18_small"),
    *_entries("timm", "darknet17 darknet53 darknetaa53 sedarknet21 cspresnet50 cspresnext50 cspdarknet53"),
    *_entries("timm", "cs3darknet_s cs3darknet_focus_s cs3sedarknet_xdw cspnext_tiny selecsls42 selecsls60 gernet_s"),
    # Inception and Xception.
    *_entries("timm", "inception_v3 inception_v4 inception_resnet_v2", size=96, batch=2),
    *_entries("timm", "inception_next_atto xception41 xception41p legacy_xception"),
    # Inverted residuals.
    *_entries("timm", "mobilenetv1_100 mobilenetv1_100h mobilenetv2_050 mobilenetv2_100 mobilenetv3_small_050"),
    *_entries("timm", "mobilenetv3_large_100 mobilenetv4_conv_small_050 mobilenetv4_conv_medium"),
    *_entries("timm", "mobilenetv4_hybrid_medium mobilenet_edgetpu_100 test_efficientnet test_efficientnet_gn"),
    *_entries("timm", "test_efficientnet_ln efficientnet_b0 efficientnet_lite0 efficientnet_es efficientnetv2_rw_t"),
    *_entries("timm", "tf_efficientnet_b0 tf_efficientnet_lite0 tf_efficientnetv2_b0 tf_efficientnet_cc_b0_4e"),
    *_entries("timm", "gc_efficientnetv2_rw_t mixnet_s tf_mixnet_s mnasnet_050 mnasnet_small semnasnet_050 fbnetc_100"),
    *_entries("timm", "fbnetv3_b spnasnet_100 hardcorenas_a tinynet_e lcnet_050 lcnetv2_small rexnet_100 rexnetr_100"),
    *_entries("timm", "ghostnet_050 ghostnet_100 ghostnetv2_100 ghostnetv3_050"),
    *_entries("timm", "regnetx_002 regnety_002 regnetz_005 regnetz_b16 regnetz_c16_evos regnetv_040"),
    # Several branches in training, one after it.
    *_entries("timm", "repvgg_a0 repvgg_b1g4 repvgg_d2se mobileone_s0 mobileone_s4 repghostnet_050 repvit_m0_9"),
    *_entries("timm", "fastvit_t8"),
    # After ConvNeXt, LayerNorm and layer scales; a few with attention in the last stages.
    *_entries(
        "timm", "test_convnext convnext_atto convnext_atto_ols convnext_atto_rms convnextv2_atto convmixer_768_32"
    ),
    *_entries("timm", "starnet_s050 starnet_s1 mambaout_femto fasternet_t0 shvit_s1 poolformer_s12"),
    *_entries("timm", "convformer_s18 focalnet_tiny_srf edgenext_xx_small swiftformer_xs efficientvit_b0"),
    *_entries("timm", "visformer_tiny", size=224, batch=2),
    *_entries("timm", "nasnetalarge pnasnet5large", size=96, batch=2),
]

OTHERS = [
    *_entries("torchvision.segmentation", "fcn_resnet50 fcn_resnet101", batch=2),
    *_entries("torchvision.segmentation", "deeplabv3_resnet50 deeplabv3_resnet101", batch=2),
    *_entries("torchvision.segmentation", "deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large", batch=2),
    *_entries("torchvision.video", "r3d_18 mc3_18 r2plus1d_18", size=32, batch=2, frames=4),
    *_entries("torchvision.video", "s3d", batch=2, frames=16),
]

ZOO: dict[str, Entry] = {entry.name: entry for entry in [*TORCHVISION, *TIMM, *OTHERS]}


@dataclass(frozen=True)
class Row:
    """What the check of one architecture found.

    Attributes:
        name: the entry's.
        parameters, convolutions: of the network, counted without the package.
        ranked: convolutions whose filters are ranked.
        narrow, scatter, masked: how the ranked ones are left out in compact mode.
        share: multiply-adds of the sub-network over those of the network, 30 % of the filters of every ranked
            layer left out.
        seconds: the whole check took.
        result: "ok", or what failed in one line.
    """

    name: str
    parameters: int = 0
    convolutions: int = 0
    ranked: int = 0
    narrow: int = 0
    scatter: int = 0
    masked: int = 0
    share: float = 1.0
    seconds: float = 0.0
    result: str = ""


def check(entry: Entry, seed: int = 0) -> Row:
    """Every promise of the method, asked of one architecture; a failure is a result."""
    start = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        found["result"] = "ok"
        _check(entry, seed, found)
    except MemoryError as error:
        found["result"] = f"not run: {error}"
    except Exception as error:  # whatever it is: the sweep goes on, the table says it
        text = str(error).strip().splitlines()
        found["result"] = f"{type(error).__name__}: {text[0] if text else ''}"
    gc.collect()
    return Row(entry.name, **found, seconds=time.perf_counter() - start)


def _refuse_too_large(model: nn.Module) -> None:
    """Raise MemoryError where the check would not fit: to try could end other processes of the machine too."""
    memory = Path("/proc/meminfo")
    if memory.exists():
        # Weight, gradient, momentum, and moments when some of them are copied; five snapshots unless they are in files.
        size = 8 * sum(p.numel() for p in model.parameters()) / 2**30
        needed = size * (6 if 2 * size > IN_MEMORY / 2**30 else 16) + 1
        free = next(int(line.split()[1]) for line in memory.read_text().splitlines() if line.startswith("MemAvailable"))
        if needed > free / 2**20:
            raise MemoryError(f"needs {needed:.0f} GiB of memory")


def uniform(bank: tr.FilterBank, fraction: float = FRACTION) -> dict[str, list[int]]:
    """The same fraction of the filters of every ranked layer, evenly spread, so that groups lose equally many."""
    chosen = {}
    for layer in bank.ranked:
        count = int(fraction * layer.filters)
        chosen[layer.name] = [i * layer.filters // count for i in range(count)]
    return {name: indices for name, indices in chosen.items() if indices}


def _check(entry: Entry, seed: int, found: dict[str, Any]) -> None:
    model = entry.build(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    found["parameters"] = sum(p.numel() for p in model.parameters())
    found["convolutions"] = sum(isinstance(m, CONVOLUTIONS) for m in model.modules())
    train_step(model, optimizer, entry, 0)  # a momentum for the drop to keep
    bank = tr.find_filters(model, entry.inputs()[0], skip="first", seed=seed)
    routes = [layer.route for layer in bank.ranked]
    found["ranked"] = len(bank.ranked)
    found |= {route: routes.count(route) for route in ("narrow", "scatter", "masked")}
    chosen = uniform(bank)
    if chosen:
        found["share"] = bank.cost(chosen).multiply_adds / bank.cost({}).multiply_adds
    dropped = bank.preview(FRACTION, "random", max_per_layer=0.8).filters
    with tempfile.TemporaryDirectory() as folder:
        start = snapshot(model, optimizer, Path(folder) / "start")
        own, masked = _phase(bank, optimizer, entry, dropped, start, "masked", Path(folder))
        put_back(model, optimizer, start)
        mode = bank.resolve("auto")[0]
        if mode == "masked":  # nothing can be smaller: compact refuses, and says so
            assert set(routes) == {"masked"}, f"auto is masked: {bank.resolve('auto')[1]}"
            found["result"] = "ok (masked only)"
        else:
            _, compact = _phase(bank, optimizer, entry, dropped, start, "compact", Path(folder), own)
            try:
                for moment in masked:
                    compare(masked[moment], compact[moment], moment)
            except AssertionError as error:
                beside = perturbed(start)
                put_back(model, optimizer, beside)
                _, again = _phase(bank, optimizer, entry, dropped, beside, "masked", Path(folder), own)
                found["result"] = f"{error}; {sensitivity(masked, again)}"
                return
        _with_new_values(bank, optimizer, entry, dropped, start, mode)


def _phase(
    bank: tr.FilterBank,
    optimizer: torch.optim.Optimizer,
    entry: Entry,
    dropped: Mapping[str, tuple[int, ...]],
    start: dict[str, Tensor],
    mode: str,
    folder: Path,
    own: dict[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """One drop, one step, and the return of the filters as they were.

    Returns:
        Which entries of the model were taken out (found in the first phase, masked, and given to the second); and what
        there is to compare with the other mode, by moment.
    """
    model = bank.model
    bank.attach(optimizer)
    bank.drop(dropped, mode=mode)
    if own is None:
        own = taken_out(start, held(model))
        for layer, indices in dropped.items():
            weight = bank[layer].module.weight
            if layer in bank.flow.kept_values:  # the weight is computed from it: zeros would not be finite
                continue
            dim = 1 if bank[layer].module.transposed else 0
            rows = (slice(None),) * dim + (list(indices),)
            assert not weight[rows].any(), f"{mode}: {layer} still holds dropped filters"
            own.setdefault(f"{layer}.weight", torch.zeros_like(weight, dtype=torch.bool))[rows] = True
        check_absent(model, entry, own)
    seen: dict[str, dict[str, Tensor]] = {}
    seen["outputs in training"] = train_step(model, optimizer, entry, 1)
    if mode == "masked":
        for name, parameter in model.named_parameters():
            if name in own and parameter.grad is not None:
                assert not parameter.grad[own[name]].any(), f"a gradient enters the dropped part of {name}"
    seen["outputs in evaluation"] = outputs_of(model.eval(), entry.inputs(2)[0])
    model.train()
    seen["state in the phase"] = snapshot(model, optimizer, folder / f"{mode}-phase")
    same_shapes(start, seen["state in the phase"], f"{mode}, in the phase")
    bank.restore()
    seen["state after the return"] = snapshot(model, optimizer, folder / f"{mode}-return")
    same_shapes(start, seen["state after the return"], f"{mode}, after the return")
    for name, mask in own.items():
        for key in (name, f"momentum of {name}"):
            if key in start:
                now = seen["state after the return"][key]
                assert torch.equal(now[mask], start[key][mask]), f"{mode}: {key} of dropped filters did not come back"
    bank.detach()
    return own, seen


def _with_new_values(
    bank: tr.FilterBank,
    optimizer: torch.optim.Optimizer,
    entry: Entry,
    dropped: Mapping[str, tuple[int, ...]],
    start: Mapping[str, Tensor],
    mode: str,
) -> None:
    """A phase after which the filters start anew, and a step of the whole network."""
    bank.attach(optimizer)
    bank.drop(dropped, mode=mode)
    train_step(bank.model, optimizer, entry, 3)
    bank.restore(reinit="orthogonal")
    train_step(bank.model, optimizer, entry, 4)
    bank.detach()
    after = state_of(bank.model, optimizer)
    same_shapes(start, after, "after a return with new values")
    for name, value in after.items():
        finite = not value.numel() or torch.stack(value.aminmax()).isfinite().all()
        assert finite, f"{name} is not finite after a return with new values"


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, entry: Entry, seed: int) -> dict[str, Tensor]:
    """One step of training; the outputs. Nothing here depends on how large the outputs are."""
    images, labels = entry.inputs(seed)
    optimizer.zero_grad()
    outputs = [o for o in tree_leaves(model.train()(images)) if isinstance(o, Tensor)]
    loss = sum(F.cross_entropy(o / o.detach().abs().amax().clamp(min=1e-300), _everywhere(labels, o)) for o in outputs)
    assert isinstance(loss, Tensor)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return {f"output {k}": o.detach() for k, o in enumerate(outputs)}


def _everywhere(labels: Tensor, output: Tensor) -> Tensor:
    """A label for every position of the output, where it has positions and there is one for each sample."""
    if labels.ndim > 1:
        return labels
    return labels.view(-1, *[1] * (output.ndim - 2)).expand(len(output), *output.shape[2:])


@torch.no_grad()
def outputs_of(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    return {f"output {k}": o for k, o in enumerate(tree_leaves(model(images))) if isinstance(o, Tensor)}


def held(model: nn.Module) -> dict[str, Tensor]:
    """What the modules hold now, at the shapes they hold now; a state_dict says what they will hold again."""
    return {n: t.detach() for n, t in [*model.named_parameters(), *model.named_buffers()]}


def taken_out(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks of the entries that a drop has set to 0."""
    masks = {name: (after[name] == 0) & (value != 0) for name, value in before.items() if name in after}
    return {name: mask for name, mask in masks.items() if mask.any()}


def check_absent(model: nn.Module, entry: Entry, own: Mapping[str, Tensor]) -> None:
    """Whatever stands where the dropped filters were, and in the later weights that read them, no output changes."""
    images = entry.inputs(5)[0]

    def found() -> dict[str, Tensor]:
        results = {}
        for training in (True, False):
            model.train(training)
            with buffers_kept(model):
                results |= {f"{n} (training: {training})": o for n, o in outputs_of(model, images).items()}
        return results

    expected, now = found(), held(model)
    for name, mask in own.items():
        now[name].masked_fill_(mask, HUGE)
    changed = found()
    for name, mask in own.items():
        now[name].masked_fill_(mask, 0.0)
    for name, value in expected.items():
        assert torch.equal(value, changed[name]), f"dropped filters are seen at {name}"


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Running statistics as they were, after forward passes in train mode."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    yield
    for buffer, value in before:
        buffer.copy_(value)


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What a checkpoint would hold now: the model's state, and the optimizer's by the names of the parameters."""
    state = dict(model.state_dict())
    names = [name for name, _ in model.named_parameters()]
    for index, entries in optimizer.state_dict()["state"].items():
        if isinstance(entries.get("momentum_buffer"), Tensor):
            state[f"momentum of {names[index]}"] = entries["momentum_buffer"]
    return state


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> dict[str, Tensor]:
    """A copy of the state; of a big network in a file, read where it is needed: several do not fit into memory."""
    state = state_of(model, optimizer)
    if sum(value.nbytes for value in state.values()) < IN_MEMORY:
        return {name: value.clone() for name, value in state.items()}
    torch.save(state, path)
    return torch.load(path, mmap=True)


def put_back(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """The opposite of :func:`snapshot`; gradients go too."""
    own = {name: value for name, value in state.items() if not name.startswith("momentum of ")}
    whole = model.state_dict()  # with what else it carries: some models look at its version
    whole.update(own)
    model.load_state_dict(whole)
    optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        momentum = state.get(f"momentum of {name}")
        optimizer.state[parameter] = {} if momentum is None else {"momentum_buffer": momentum.clone()}


def same_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], when: str) -> None:
    assert list(expected) == list(found), f"{when}: other keys: {sorted(set(expected) ^ set(found))[:3]}"
    for name, value in expected.items():
        assert value.shape == found[name].shape, f"{when}: {name} is {list(found[name].shape)}, not {list(value.shape)}"


def perturbed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same state, every weight off by one part in 1e15: what rounding does in any case."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: value * (1 + 1e-15 * torch.randn(value.shape, generator=generator, dtype=torch.float64))
        if value.is_floating_point() and value.numel()
        else value
        for name, value in state.items()
    }


def sensitivity(masked: Mapping[str, Mapping[str, Tensor]], again: Mapping[str, Mapping[str, Tensor]]) -> str:
    """How far rounding errors carry in this network: the worst difference of two masked phases."""
    worst = 0.0
    for moment, tensors in masked.items():
        if moment.startswith("outputs"):
            for name, value in tensors.items():
                worst = max(worst, float((value - again[moment][name]).abs().max() / value.abs().max()))
    return f"masked differs from itself by {worst:.1e} when weights are off by 1e-15"


def compare(masked: Mapping[str, Tensor], compact: Mapping[str, Tensor], moment: str) -> None:
    """The two ways to be without filters give the same numbers."""
    same_shapes(masked, compact, f"compact, {moment}")
    # A tensor whose true value is 0 (the momentum of a bias in front of BatchNorm) holds nothing but rounding errors.
    floors = {"momentum": 0.0, "": 0.0}
    kind: Callable[[str], str] = lambda name: "momentum" if name.startswith("momentum of ") else ""  # noqa: E731
    for name, value in masked.items():
        floors[kind(name)] = max(floors[kind(name)], 1e-3 * float(value.abs().max()) if value.numel() else 0.0)
    for name, value in masked.items():
        if not value.numel() or not value.is_floating_point():
            assert torch.equal(value, compact[name]), f"{moment}: {name}: masked and compact differ"
            continue
        scale = max(float(value.abs().max()), floors[kind(name)])
        difference = float((value - compact[name]).abs().max())
        assert difference <= TOLERANCE * scale, (
            f"{moment}: {name}: masked and compact differ by {difference / scale:.1e} of {scale:.1e}"
        )
