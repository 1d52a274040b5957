"""`reaper timm-train`: the bits of a loop that is written with timm's parts, killed and taken up, refused in a line."""

from __future__ import annotations

import csv
import inspect
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import textwrap
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import torchreaper as tr
from tests.zoo import torchvision_importable
from torchreaper.lab import cli
from torchreaper.lab.cli_timm import timm_train

torchvision_importable()
import timm  # noqa: E402
from timm.data import Mixup, create_dataset, create_loader  # noqa: E402
from timm.loss import SoftTargetCrossEntropy  # noqa: E402
from timm.models import load_checkpoint, model_parameters, resume_checkpoint  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402
from timm.scheduler import create_scheduler_v2  # noqa: E402
from timm.utils import CheckpointSaver, ModelEmaV3, random_seed  # noqa: E402
from timm.utils.agc import adaptive_clip_grad  # noqa: E402

from torchreaper.integrations.timm import Training  # noqa: E402
from torchreaper.integrations.timm_saving import LAST  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::torchreaper.OneLayerWarning"),  # small networks have few layers
    # timm's and torch's own
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning"),
]
ROOT = Path(__file__).parents[2]
MODEL, SIZE, CLASSES, EACH = "test_resnet.r160_in1k", 32, 3, 16
REPR = {"full": 2, "sub": 1, "cycles": 2}
EPOCHS = 7
ARGS = {
    **{"model": MODEL, "img_size": SIZE, "epochs": EPOCHS, "batch_size": 8, "workers": 0, "lr": 0.05},
    **{"warmup_epochs": 1, "mixup": 0.2, "model_ema": True, "model_ema_decay": 0.8, "reprob": 0.2, "clip_grad": 1.0},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of three classes that are easily told apart."""
    root, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    patterns = draw.integers(0, 255, (CLASSES, 4, 4, 3))
    for split, count in (("train", EACH), ("validation", EACH // 2)):
        for label, pattern in enumerate(patterns):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.kron(pattern, np.ones((SIZE // 4, SIZE // 4, 1))) + draw.normal(0, 30, (SIZE, SIZE, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return root


def arguments(images: Path, **more) -> Namespace:
    """The command's own, where nothing else is asked."""
    known = {name: one.default for name, one in inspect.signature(timm_train).parameters.items() if name != "data_dir"}
    known |= {"data_dir": str(images), "output": "", "device": "cpu", "model_kwargs": {}, "opt_kwargs": {}}
    return Namespace(**{**known, **ARGS, **more})


def trained(images: Path, folder: Path, *, repr_settings=REPR, **more) -> Training:
    folder.mkdir(exist_ok=True)
    run = Training(arguments(images, **more), folder, dict(repr_settings))
    list(run.epochs())
    return run


def by_hand(images: Path, mode: str, settings: Namespace) -> tuple[nn.Module, nn.Module, list[float]]:
    """The loop that docs/stacks/timm.md shows, with all that `EVERYTHING` has; the model, its average, losses."""
    random_seed(42, 0)
    data = create_dataset("", root=str(images), split="train", is_training=True)
    dropping = {"drop_rate": settings.drop or 0.0, "drop_path_rate": settings.drop_path or 0.0}
    model = timm.create_model(MODEL, num_classes=CLASSES, **dropping, **settings.model_kwargs)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    config = timm.data.resolve_data_config({"img_size": SIZE}, model=model)
    shown = {name: config[name] for name in ("mean", "std")}
    shown["interpolation"] = config["interpolation"] if settings.no_aug else "random"
    loader = create_loader(
        *(data, (3, SIZE, SIZE), 8),
        **{
            "is_training": True,
            "use_prefetcher": False,
            "num_workers": 0,
            "device": "cpu",
            "auto_augment": settings.aa,
        },
        **{name: getattr(settings, name) for name in ("hflip", "color_jitter", "no_aug")},
        **{"re_prob": settings.reprob, "re_mode": "pixel", **shown},
    )
    mixup = Mixup(settings.mixup, settings.cutmix, label_smoothing=settings.smoothing, num_classes=CLASSES)
    kwargs = {"opt": settings.opt, "lr": settings.lr, "weight_decay": settings.weight_decay, "momentum": 0.8}
    optimizer = create_optimizer_v2(model, **kwargs, **settings.opt_kwargs)
    every, windows = settings.grad_accum_steps, -(-len(loader) // settings.grad_accum_steps)
    schedule, epochs = create_scheduler_v2(
        optimizer,
        **{"sched": settings.sched, "num_epochs": settings.epochs, "cooldown_epochs": settings.cooldown_epochs},
        **{"warmup_epochs": 1, "warmup_lr": 1e-5, "min_lr": settings.min_lr, "decay_rate": settings.decay_rate},
        **{"decay_epochs": settings.decay_epochs, "updates_per_epoch": windows},
        step_on_epochs=not settings.sched_on_updates,
    )
    average = ModelEmaV3(model, decay=0.8, use_warmup=settings.model_ema_warmup)
    scheme = tr.RePr(model, optimizer, torch.zeros(2, 3, SIZE, SIZE), subnetwork=mode, **REPR)
    loss_fn, updates, losses = SoftTargetCrossEntropy(), 0, []
    half = nullcontext if not settings.amp else partial(torch.autocast, "cpu", torch.bfloat16)
    for epoch in range(epochs):
        random_seed(42 + 1 + epoch, 0)
        model.train()
        mixup.mixup_enabled = not settings.mixup_off_epoch or epoch < settings.mixup_off_epoch
        losses.append(0.0)
        left = len(loader)
        batches = iter(loader)
        while left:
            window = min(every, left)
            left -= window
            for _ in range(window):
                inputs, targets = mixup(*next(batches))
                if settings.channels_last:
                    inputs = inputs.contiguous(memory_format=torch.channels_last)
                with half():
                    loss = loss_fn(model(inputs), targets)
                (loss / window).backward()
                losses[-1] += loss.item() / len(loader)
            if settings.clip_mode == "agc":
                adaptive_clip_grad(model_parameters(model, exclude_head=True), settings.clip_grad)
            else:
                nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
            optimizer.step()
            optimizer.zero_grad()
            average.update(model, step=(updates := updates + 1))
            schedule.step_update(updates)
        scheme.step()
        schedule.step(epoch + 1)
    assert len(scheme.history) == 4
    scheme.remove()
    return model, average.module, losses


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


EVERYTHING = {
    **{"opt": "adamw", "lr": 1e-3, "amp": True, "amp_dtype": "bfloat16", "channels_last": True, "cutmix": 0.5},
    **{"grad_accum_steps": 4, "sched_on_updates": True, "model_ema_warmup": True, "clip_mode": "agc", "clip_grad": 0.1},
    **{"mixup_off_epoch": 3, "aa": "rand-m3", "drop": 0.1, "drop_path": 0.05, "weight_decay": 0.1},
}
OTHERS = {
    **{"sched": "step", "decay_epochs": 2, "decay_rate": 0.5, "cooldown_epochs": 1, "epochs": EPOCHS, "mixup": 0.0},
    **{"cutmix": 1.0, "smoothing": 0.2, "reprob": 0.0, "hflip": 0.0, "color_jitter": 0.2},
    **{"opt_kwargs": {"nesterov": False}, "model_kwargs": {"act_layer": "silu"}},
}


@pytest.mark.parametrize(
    ("mode", "more"),
    [("masked", {}), ("compact", {}), ("masked", EVERYTHING), ("compact", OTHERS), ("compact", {"no_aug": True})],
    ids=["masked", "compact", "everything", "others", "no augmentation"],
)
def test_the_bits_of_a_loop_by_hand(images, tmp_path, mode, more):
    """Every option does what its name says in timm."""
    more = {"momentum": 0.8, **more}
    settings = {**REPR, "subnetwork": mode}
    run = trained(images, tmp_path / "run", repr_settings=settings, prefetcher=False, **more)
    model, average, losses = by_hand(images, mode, arguments(images, **more))
    assert [line["train_loss"] for line in run.history] == pytest.approx(losses, rel=1e-6)
    assert same(run.parts.model.state_dict(), model.state_dict())
    assert same(run.parts.ema.module.state_dict(), average.state_dict())


def command(images: Path, output: Path, **more) -> list[str]:
    """The command line of the same run."""
    given = {**ARGS, **REPR, "device": "cpu", "threads": 1, "output": output, "experiment": "run", **more}
    flags = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in given.items()
        if value is not False
    ]
    return ["timm-train", str(images), *flags]


def started(call: list[str], *before: str, **environment: str) -> subprocess.CompletedProcess:
    mine = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment}
    script = [sys.executable, *before, "-m", "tests.integrations.timm_cli"] if not before else [sys.executable, *before]
    return subprocess.run([*script, *call], cwd=ROOT, env=mine, capture_output=True, text=True, timeout=240)


def end(folder: Path) -> dict:
    """All that a run ended with, but for its times."""
    state = torch.load(folder / LAST, weights_only=True)
    for line in [*state["history"], *state["repr"]["scheme"]["history"]]:
        del line["seconds"]
    del state["saver"]["checkpoint_files"]  # where they are
    return state


def alike(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other


def test_killed_in_a_sub_network_and_given_again(images, tmp_path):
    """A real SIGKILL in the third epoch, workers that load, and the same command: the same bits as never killed."""
    more = {"full": 1, "sub": 2, "subnetwork": "compact", "workers": 1}
    call = command(images, tmp_path, **more)
    killed = {"KILLED": str(tmp_path / "mark"), "BATCH": str(2 * 6 + 3)}
    assert started(call, **killed).returncode == -9
    state = torch.load(tmp_path / "run" / LAST, weights_only=True)
    assert len(state["history"]) == 2
    assert state["repr"]["scheme"]["dropped"]
    again = started(call, **killed)
    assert again.returncode == 0, again.stderr
    assert "2 of 7 epochs are there" in again.stdout
    assert again.stdout.splitlines()[-1] == str(tmp_path / "run")
    whole = started(command(images, tmp_path / "whole", **more))
    assert whole.returncode == 0, whole.stderr
    one, other = end(tmp_path / "run"), end(tmp_path / "whole" / "run")
    assert alike(one, other)
    rows = list(csv.DictReader((tmp_path / "run" / "summary.csv").open()))
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(EPOCHS)]
    assert [float(row["sub"]) for row in rows] == [0, 1, 1, 0, 1, 1, 0]
    assert float(rows[2]["filters_dropped"]) > 0
    finished = started(call)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "7 of 7 epochs are there" in finished.stdout


@pytest.mark.slow  # with test_killed_in_a_sub_network_and_given_again in `make test`
def test_two_processes_of_which_one_dies(images, tmp_path):
    """torchrun starts both again, and they end at the bits of those that nobody killed."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
    torchrun += ["-m", "tests.integrations.timm_cli"]
    apart = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    killed = {"KILLED": str(tmp_path / "mark"), "BATCH": str(2 * 6 + 3), **apart}
    small = {"batch_size": 4, "subnetwork": "compact", "grad_accum_steps": 1}
    whole = started(command(images, tmp_path / "whole", **small), *torchrun, **apart)
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert (tmp_path / "whole" / "run" / LAST).exists()
    died = started(command(images, tmp_path, **small), *torchrun, **killed, SECOND_DISK=str(tmp_path / "elsewhere"))
    assert died.returncode == 0, died.stderr[-3000:]
    assert (tmp_path / "mark").exists()
    one, other = end(tmp_path / "run"), end(tmp_path / "whole" / "run")
    assert alike(one, other)
    assert not (tmp_path / "elsewhere").exists(), "the second process needs no disk"
    assert "2 of 7 epochs are there" in died.stdout
    assert died.stdout.count("epoch 6 full") == 1, "one of them speaks"


def test_a_data_set_by_its_name(images, tmp_path):
    """Both splits of one are in one place; a folder of images is one for `datasets`, too."""
    named = {"dataset": f"hfds/{images}", "num_classes": CLASSES, "model_ema": False}
    call = command(tmp_path / "cache", tmp_path, **named)
    found = CliRunner().invoke(cli.app, call)
    assert found.exit_code == 0, found.output
    rows = list(csv.DictReader((tmp_path / "run" / "summary.csv").open()))
    assert max(float(row["top1"]) for row in rows) > 60, "the classes are easily told apart"
    found = CliRunner().invoke(cli.app, command(tmp_path / "cache", tmp_path / "other", **named, val_split="train"))
    assert found.exit_code == 2
    assert found.stderr.startswith("error: train_split='train', val_split='train': ")


def test_timms_checkpoints_are_of_whole_networks(images, tmp_path):
    """The best is what timm loads, and as good as the summary says."""
    run = trained(images, tmp_path / "run", model_ema=False)
    best = run.saver.best_epoch
    (line,) = (line for line in run.history if line["epoch"] == best)
    assert line["sub"] == 0
    assert line["top1"] == max(line["top1"] for line in run.history if not line["sub"])
    assert line["top1"] > 60, "they are easily told apart"
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert "checkpoint-2.pth.tar" not in names, "a sub-network's"
    assert "checkpoint-3.pth.tar" in names
    model = timm.create_model(MODEL, num_classes=CLASSES, checkpoint_path=str(tmp_path / "run" / "model_best.pth.tar"))
    model.eval()
    with torch.no_grad():
        right = sum((model(images).argmax(1) == labels).sum() for images, labels in run.parts.images.validation)
    assert 100 * right / (CLASSES * EACH // 2) == pytest.approx(line["top1"])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in run.parts.model.modules())


def test_the_lines_for_timms_script(images, tmp_path):
    """Those of docs/stacks/timm.md, with timm's own checkpoints: stopped after any epoch, the same."""
    page = (ROOT / "docs" / "stacks" / "timm.md").read_text().partition("**timm's `train.py`**")[2]
    build, step, save, load = (textwrap.dedent(lines) for lines in re.findall(r"(?:^ {4}.*\n)+", page, re.MULTILINE))

    short = SimpleNamespace(
        RePr=partial(tr.RePr, subnetwork="compact", **REPR)
    )  # as the lines stand they take more than 90 epochs

    def script(folder: Path, stop: int, *, resume: bool = False) -> dict:
        folder.mkdir(exist_ok=True)
        random_seed(42, 0)
        model = timm.create_model(MODEL, num_classes=CLASSES)
        optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3)
        parts = {"model": model, "optimizer": optimizer, "device": "cpu", "output_dir": folder, "utils": timm.utils}
        parts |= {"data_config": {"input_size": (3, SIZE, SIZE)}, "tr": short, "torch": torch, "os": os}
        parts["args"] = Namespace(rank=0, local_rank=0, log_wandb=False, resume=str(folder / "last.pth.tar"))
        exec(build, parts)
        first = 0
        if resume:
            first = resume_checkpoint(model, str(folder / "last.pth.tar"), optimizer, log_info=False)
        average = ModelEmaV3(model, decay=0.8)
        if resume:
            load_checkpoint(average.module, str(folder / "last.pth.tar"), use_ema=True)
            exec(load, parts)
        saver = CheckpointSaver(model, optimizer, model_ema=average, checkpoint_dir=str(folder))
        for epoch in range(first, stop):
            exec(step, {**parts, "epoch": epoch})
            draw = torch.Generator().manual_seed(epoch)
            for _ in range(4):
                optimizer.zero_grad()
                inputs = torch.randn(6, 3, SIZE, SIZE, generator=draw)
                nn.functional.cross_entropy(model(inputs), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
                optimizer.step()
                average.update(model)
            exec(save, parts)
            saver.save_checkpoint(epoch, metric=float(epoch))
        return {
            "model": model.state_dict(),
            "average": average.module.state_dict(),
            "optimizer": optimizer.state_dict(),
        }

    whole = script(tmp_path / "whole", EPOCHS)
    for stop in (2, 3, 5):
        script(tmp_path / str(stop), stop)
        assert alike(script(tmp_path / str(stop), EPOCHS, resume=True), whole), f"stopped after {stop}"


@pytest.mark.parametrize(
    "more",
    [
        EVERYTHING,
        pytest.param({**EVERYTHING, "prefetcher": False}, marks=pytest.mark.slow),
        pytest.param({"opt": "sgdp", "sched": "step", "decay_epochs": 2}, marks=pytest.mark.slow),
        pytest.param({"opt": "lamb", "lr": 1e-3, "sched": "none"}, marks=pytest.mark.slow),
    ],
    ids=["everything", "without a prefetcher", "sgdp", "lamb"],
)
def test_what_timm_offers_beside_it(images, tmp_path, more):
    """Stopped after the third epoch and taken up again, it is what it is in one go."""
    whole = trained(images, tmp_path / "whole", **more)
    (tmp_path / "run").mkdir()
    first = Training(arguments(images, **more), tmp_path / "run", dict(REPR))
    steps = first.epochs()
    for _ in range(3):
        next(steps)
    steps.close()
    random.seed(0)
    again = trained(images, tmp_path / "run", **more)
    assert alike(end(tmp_path / "run")["parts"], end(tmp_path / "whole")["parts"])
    assert [line["sub"] for line in again.history] == [0, 0, 1, 0, 0, 1, 0]
    assert all(np.isfinite(line["train_loss"]) for line in whole.history)


def test_compiled(images, tmp_path):
    run = trained(images, tmp_path / "run", torchcompile="eager")
    assert isinstance(run._called, torch._dynamo.OptimizedModule)
    plain = trained(images, tmp_path / "plain")
    assert same(run.parts.model.state_dict(), plain.parts.model.state_dict())


def refused(images: Path, tmp_path: Path, **more) -> str:
    found = CliRunner().invoke(cli.app, command(images, tmp_path / "out", **more))
    assert found.exit_code == 2, found.output
    assert not (tmp_path / "out").exists(), "nothing is written"
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"model": "resnet19"}, "model='resnet19': Unknown model (resnet19)"),
        ({"opt": "sdg"}, "opt='sdg': "),
        ({"opt": "lookahead_sgd"}, "optimizer=Lookahead: does not let torch's hooks see its state, "),
        ({"sched": "cosinus"}, "sched='cosinus': "),
        ({"sched": "plateau"}, "sched='plateau': timm keeps no state of it to go on from; use cosine, step or another"),
        ({"val_split": "test"}, "train_split='train', val_split='test': "),
        ({"aa": "nonsense"}, "aa='nonsense': "),
        ({"batch_size": 400}, "batch_size=400: 48 images do not make one batch; lower it"),
        ({"batch_size": 5}, "batch_size=5: mixup and cutmix pair images; use an even number"),
        ({"num_classes": 2}, "num_classes=2: "),
        ({"full": 5, "sub": 3}, "full=5, sub=3, cycles=2: training ends after 7 epochs, in a sub-network phase"),
        ({"criterion": "taylr"}, "criterion='taylr'"),
        ({"repr_kwargs": "min_filter=3"}, "min_filter=3: RePr has "),
        ({"opt_kwargs": "betas"}, "opt_kwargs='betas': must be KEY=VALUE"),
        ({"opt_kwargs": "bets=3"}, "opt='sgd': "),
        ({"model_kwargs": "width=[1"}, "model_kwargs='width=[1': '[1' is not YAML"),
        ({"torchcompile": "nonsense"}, "torchcompile='nonsense': "),
        ({"sync_bn": True}, "sync_bn=True: torch trains with it on several GPUs only; leave it out"),
        ({"device": "gpu"}, "device='gpu': choose among auto and cpu"),
    ],
)
def test_what_is_refused(images, tmp_path, more, text):
    assert refused(images, tmp_path, **more).startswith(text)


def test_a_folder_that_is_none(images, tmp_path):
    assert refused(tmp_path / "nowhere", tmp_path) == f"data_dir='{tmp_path / 'nowhere'}': there is no such folder"


@pytest.mark.parametrize(
    "more", [{"clip_mode": "nonsense"}, {"img_size": -3}, {"mixup": -1.0}, {"epochs": 0}, {"clip_grad": -1.0}]
)
def test_values_that_no_run_has(images, tmp_path, more):
    found = CliRunner().invoke(cli.app, command(images, tmp_path / "out", **more))
    assert found.exit_code == 2
    assert f"Invalid value for '--{next(iter(more)).replace('_', '-')}'" in found.stderr
    assert not (tmp_path / "out").exists()


def test_classes_that_one_split_lacks(images, tmp_path):
    """Each folder numbers its own: labels would be others."""
    shutil.copytree(images, tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "validation" / "class0")
    found = refused(tmp_path / "images", tmp_path)
    assert found == f"data_dir='{tmp_path / 'images'}': class0 is a class of training or validation alone"


def test_a_folder_of_something_else(images, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model_best.pth.tar").write_bytes(b"mine")
    found = CliRunner().invoke(cli.app, command(images, tmp_path))
    folder = tmp_path / "run"
    text = f"error: {folder}: holds model_best.pth.tar of something else; choose another --experiment\n"
    assert (found.exit_code, found.stderr) == (2, text)
    assert (folder / "model_best.pth.tar").read_bytes() == b"mine"


def test_another_run_in_the_folder(images, tmp_path):
    """Other numbers are not mixed in; another place or number of workers makes no other."""
    call = command(images, tmp_path, epochs=4, cycles=1)
    assert CliRunner().invoke(cli.app, call).exit_code == 0
    for other, text, then in [
        ({"mixup": 0.3}, "mixup=0.3: ", 0.2),
        ({"fraction": 0.2}, "fraction=0.2: ", 0.3),
        ({"repr_kwargs": "min_filters=2"}, "min_filters=2: ", None),
        ({"seed": 1, "repr_kwargs": "seed=42"}, "seed=1: ", 42),
    ]:
        found = CliRunner().invoke(cli.app, command(images, tmp_path, **{"epochs": 4, "cycles": 1, **other}))
        began = f"the run in {tmp_path / 'run'} was begun with {then!r}"
        assert (found.exit_code, found.stderr) == (2, f"error: {text}{began}; use that, or another --experiment\n")
    found = CliRunner().invoke(cli.app, command(images, tmp_path, epochs=4, cycles=1, workers=1, log_interval=7))
    assert found.exit_code == 0
    (tmp_path / "run" / LAST).write_bytes(b"half a file")
    found = CliRunner().invoke(cli.app, call)
    assert found.exit_code == 2
    assert found.stderr.startswith(f"error: {tmp_path / 'run' / LAST}: is no checkpoint that can be read (")


def test_training_that_diverges(images, tmp_path):
    call = command(images, tmp_path, lr=1e30, warmup_epochs=0, clip_grad=1e30)
    found = CliRunner().invoke(cli.app, call)
    assert found.exit_code == 1
    assert found.stderr.endswith("; use a lower lr, or clip_grad\n")
    again = CliRunner().invoke(cli.app, command(images, tmp_path, epochs=4, cycles=1))
    assert again.exit_code == 0, "of a run that came to nothing other settings may follow"


def test_a_disk_that_is_full(images, tmp_path):
    """A limit on the size of files does what a full disk does."""
    call = command(images, tmp_path, epochs=4, cycles=1)
    assert CliRunner().invoke(cli.app, command(images, tmp_path / "enough", epochs=4, cycles=1)).exit_code == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        found = CliRunner().invoke(cli.app, call)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found.exit_code == 1
    assert re.fullmatch(rf"error: {tmp_path}/run: cannot be written \(.*\); what was saved last .*\n", found.stderr)
    assert CliRunner().invoke(cli.app, call).exit_code == 0
    assert alike(end(tmp_path / "run"), end(tmp_path / "enough" / "run"))


@pytest.mark.slow  # with test_killed_in_a_sub_network_and_given_again in `make test`
def test_two_processes_of_a_slurm_job(images, tmp_path):
    """Which timm alone would let meet at no address; and a shell in a job, in which the command is alone."""
    slurm = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    slurm |= {"SLURM_JOB_ID": f"{os.getpid() % 9000 + 1000}", "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "train"}
    call = command(images, tmp_path, epochs=4, cycles=1, batch_size=4)
    ranks = [{**slurm, "SLURM_PROCID": f"{rank}", "SLURM_LOCALID": f"{rank}"} for rank in (0, 1)]
    with ThreadPoolExecutor() as both:
        ended = list(both.map(lambda rank: started(call, **rank), ranks))
    assert [one.returncode for one in ended] == [0, 0], ended[0].stderr[-2000:]
    assert "epoch 2 sub" in ended[0].stdout
    assert ended[1].stdout == ""
    assert end(tmp_path / "run")["what"]["args"]["world_size"] == 2
    shell = {**ranks[1], "SLURM_JOB_NAME": "interactive"}
    alone = started(command(images, tmp_path / "alone", epochs=4, cycles=1), **shell)
    assert alone.returncode == 0, alone.stderr[-2000:]
    assert end(tmp_path / "alone" / "run")["what"]["args"]["world_size"] == 1


def test_a_network_without_filters_to_drop(images, tmp_path):
    found = refused(images, tmp_path, model="test_vit.r160_in1k")
    assert found.startswith("model=VisionTransformer: no convolution to rank (patch_embed.proj: skipped)")


def test_layers_to_skip_are_listed(images, tmp_path):
    found = refused(images, tmp_path, skip="first, full-width,conv9")
    assert found.startswith("skip='conv9': no such layer; the layers are conv1.0, conv1.3, ")
