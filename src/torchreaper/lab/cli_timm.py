"""The command ``reaper timm-train``: timm's training script made of timm's parts, with RePr in it."""

from __future__ import annotations

import csv
import io
import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from torchreaper.lab import console as screen
from torchreaper.lab.command_line import FAILED, Debug, Quiet, Threads, check_out, fail, guarded, use_threads
from torchreaper.lab.errors import UserError
from torchreaper.lab.launched import rank, started
from torchreaper.lab.yaml_text import YAMLProblem, parse_yaml

if TYPE_CHECKING:
    from torchreaper.integrations.timm import Training

EXAMPLE_TIMM = """\b
Examples:
  reaper timm-train imagenet --model resnet50 --batch-size 256 --amp
  reaper timm-train flowers --model resnet18 --img-size 128 --opt adamw --lr 1e-3 --mixup 0.2 --model-ema
  torchrun --nproc-per-node 8 $(which reaper) timm-train imagenet --model resnet50 --amp
"""
SUMMARY = "summary.csv"
BASE_LR, BASE_BATCH = 0.1, 256  # timm's
_SETTINGS = ("full", "sub", "cycles", "fraction", "criterion", "reinit", "subnetwork", "skip")
_OURS = {*_SETTINGS, "threads", "debug", "quiet", "repr_kwargs"}


def _option(
    text: str, metavar: str = "X", default: str | None = None, least: float | None = None, most: float | None = None
) -> Any:
    shown: dict[str, Any] = {} if default is None else {"show_default": default}
    return typer.Option(metavar=metavar, help=text, min=least, max=most, **shown)


def timm_train(
    data_dir: Annotated[
        str, typer.Argument(metavar="DATA", help="Folder of the images: train/ and val/ in it.", show_default=False)
    ],
    model: Annotated[str, _option("Architecture.", "NAME")] = "resnet50",
    full: Annotated[int, _option("Epochs with all filters before filters go (S1).", "N")] = 20,
    sub: Annotated[int, _option("Epochs without them (S2).", "N")] = 10,
    cycles: Annotated[int, _option("How often (N).", "N")] = 3,
    fraction: Annotated[float, _option("Share of the ranked filters that goes (p).")] = 0.30,
    criterion: Annotated[str, _option("What ranks the filters.", "NAME")] = "orthogonality",
    reinit: Annotated[str, _option("How they come back.", "NAME")] = "orthogonal",
    subnetwork: Annotated[str, _option("auto, compact or masked.", "NAME")] = "auto",
    skip: Annotated[str, _option("Layers whose filters stay; none: all may go.", "A,B,...")] = "first",
    repr_kwargs: Annotated[list[str] | None, _option("More of RePr's, such as min_filters=4.", "KEY=VALUE")] = None,
    dataset: Annotated[str, _option("timm's name, such as hfds/NAME or torch/cifar10.", "NAME", "a folder")] = "",
    train_split: Annotated[str, _option("Split to train on.", "NAME")] = "train",
    val_split: Annotated[str, _option("Split to validate on.", "NAME")] = "validation",
    num_classes: Annotated[int | None, _option("Classes.", "N", "the folder's, or the model's", least=1)] = None,
    img_size: Annotated[int | None, _option("Pixels a side.", "N", "the model's", least=1)] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Start from timm's weights.")] = False,
    model_kwargs: Annotated[list[str] | None, _option("For create_model; repeatable.", "KEY=VALUE")] = None,
    drop: Annotated[float | None, _option("Dropout.", default="the model's")] = None,
    drop_path: Annotated[float | None, _option("Stochastic depth.", default="the model's")] = None,
    epochs: Annotated[int, _option("Epochs, without those of --cooldown-epochs.", "N", least=1)] = 300,
    batch_size: Annotated[int, typer.Option("-b", "--batch-size", metavar="N", min=1, help="Images a process.")] = 128,
    grad_accum_steps: Annotated[int, typer.Option(metavar="N", min=1, help="Batches for one update.")] = 1,
    opt: Annotated[str, _option("Optimizer.", "NAME")] = "sgd",
    lr: Annotated[float | None, _option("Learning rate.", default="timm's: 0.1 for 256 images an update")] = None,
    weight_decay: Annotated[float, _option("Weight decay.")] = 2e-5,
    momentum: Annotated[float, _option("Momentum.")] = 0.9,
    opt_kwargs: Annotated[list[str] | None, _option("For create_optimizer_v2; repeatable.", "KEY=VALUE")] = None,
    clip_grad: Annotated[float | None, _option("Clip gradients.", default="no", least=0)] = None,
    clip_mode: Annotated[Literal["norm", "value", "agc"], _option("norm, value or agc.", "NAME")] = "norm",
    sched: Annotated[str, _option("Learning rate schedule.", "NAME")] = "cosine",
    sched_on_updates: Annotated[
        bool, typer.Option("--sched-on-updates", help="It moves with updates, not epochs.")
    ] = False,
    warmup_epochs: Annotated[int, _option("Epochs of warm-up.", "N", least=0)] = 5,
    warmup_lr: Annotated[float, _option("Learning rate it begins with.")] = 1e-5,
    min_lr: Annotated[float, _option("Lowest learning rate.")] = 0.0,
    decay_epochs: Annotated[float, _option("Epochs between the steps of step.", "N")] = 90,
    decay_rate: Annotated[float, _option("What a step multiplies by.")] = 0.1,
    cooldown_epochs: Annotated[int, _option("Epochs at the lowest rate after the schedule.", "N", least=0)] = 0,
    smoothing: Annotated[float, _option("Label smoothing.", least=0)] = 0.1,
    mixup: Annotated[float, _option("Mixup's alpha; 0: none.", least=0)] = 0.0,
    cutmix: Annotated[float, _option("Cutmix's alpha; 0: none.", least=0)] = 0.0,
    mixup_off_epoch: Annotated[int, _option("Epoch from which neither mixes; 0: never.", "N", least=0)] = 0,
    aa: Annotated[str | None, _option("AutoAugment policy, such as rand-m9-mstd0.5.", "NAME", "none")] = None,
    reprob: Annotated[float, _option("Probability of random erasing.", least=0)] = 0.0,
    hflip: Annotated[float, _option("Probability of a horizontal flip.")] = 0.5,
    color_jitter: Annotated[float, _option("Colour jitter.")] = 0.4,
    no_aug: Annotated[bool, typer.Option("--no-aug", help="No augmentation at all.")] = False,
    model_ema: Annotated[bool, typer.Option("--model-ema", help="Average the weights, and judge the average.")] = False,
    model_ema_decay: Annotated[float, _option("Its decay.", least=0, most=1)] = 0.9998,
    model_ema_warmup: Annotated[bool, typer.Option("--model-ema-warmup", help="A lower decay at first.")] = False,
    amp: Annotated[bool, typer.Option("--amp", help="Mixed precision.")] = False,
    amp_dtype: Annotated[Literal["float16", "bfloat16"], _option("float16 or bfloat16.", "NAME")] = "float16",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Memory layout NHWC.")] = False,
    torchcompile: Annotated[str | None, _option("Compile by a backend, such as inductor.", "NAME", "no")] = None,
    sync_bn: Annotated[bool, typer.Option("--sync-bn", help="BatchNorm over all processes (GPU).")] = False,
    workers: Annotated[
        int, typer.Option("-j", "--workers", metavar="N", min=0, help="Processes that load images.")
    ] = 4,
    prefetcher: Annotated[bool, typer.Option("--prefetcher/--no-prefetcher", help="timm's own, of loaders.")] = True,
    seed: Annotated[int, _option("Of weights, order and augmentation.", "N", least=0, most=2**31)] = 42,
    log_interval: Annotated[int, typer.Option(metavar="N", min=1, help="Batches between two looks at the loss.")] = 50,
    checkpoint_hist: Annotated[int, typer.Option(metavar="N", min=1, help="Checkpoints of timm's to keep.")] = 10,
    output: Annotated[Path, _option("Where the runs are.", "FOLDER")] = Path("output/train"),
    experiment: Annotated[str | None, _option("Folder of this run in it.", "NAME", "model and image size")] = None,
    device: Annotated[str, _option("auto, cpu or cuda.", "NAME")] = "auto",
    threads: Threads = None,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Train a timm model by timm's own parts, with RePr. Given again, goes on where it was killed."""
    given = dict(locals())
    with guarded(debug, resumable=True):
        folder = output / (experiment or "-".join([model.replace("/", "_"), *([str(img_size)] if img_size else [])]))
        if folder.parent != output or folder.name == "..":
            raise UserError(f"experiment={experiment or model!r}: must be one name; the folder it lies in is --output")
        check_out(folder)
        args = Namespace(**{name: value for name, value in given.items() if name not in _OURS})
        for name in ("model_kwargs", "opt_kwargs"):
            setattr(args, name, pairs(name, given[name]))
        args.output, args.experiment = str(output), folder.name
        args.lr = base_rate(args) if lr is None else lr
        settings = {name: given[name] for name in _SETTINGS} | pairs("repr_kwargs", repr_kwargs)
        layers = [part.strip() for part in skip.split(",")]
        settings["skip"] = None if skip == "none" else layers if len(layers) > 1 else skip
        if torchcompile and subnetwork == "compact" and started():
            raise UserError(
                "subnetwork='compact': several processes wrap the model anew, which compiled code does not see"
            )
        use_threads(threads)
        _meet()
        args.device = _device(device)
        try:
            _train(args, folder, settings, quiet=quiet)
        except FloatingPointError as error:
            fail(str(error), FAILED, debug=debug)


def pairs(argument: str, given: list[str] | None) -> dict[str, Any]:
    """What ``--opt-kwargs KEY=VALUE`` and its like say; values are read as YAML."""
    found = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"{argument}={text!r}: must be KEY=VALUE")
        try:
            found[name] = parse_yaml(value)
        except YAMLProblem as error:
            raise UserError(f"{argument}={text!r}: {value!r} is not YAML ({error})") from error
    return found


def base_rate(args: Namespace) -> float:
    """timm's own choice: 0.1 for 256 images an update, in proportion; by the square root for adaptive optimizers."""
    devices, nodes = started() or (1, 1)
    ratio = float(args.batch_size * args.grad_accum_steps * devices * nodes / BASE_BATCH)
    return BASE_LR * (ratio**0.5 if any(name in args.opt.lower() for name in ("ada", "lamb")) else ratio)


def _meet() -> None:
    """Tell timm of a Slurm job what torchrun would tell, and nothing of a shell in one, in which a command is alone."""
    if started() is None:
        for name in ("SLURM_NTASKS", "SLURM_PROCID", "WORLD_SIZE"):
            os.environ.pop(name, None)
    elif "TORCHELASTIC_RUN_ID" not in os.environ:
        from lightning_fabric.plugins.environments import SLURMEnvironment

        job = SLURMEnvironment()
        os.environ.setdefault("MASTER_ADDR", job.main_address)
        os.environ.setdefault("MASTER_PORT", str(job.main_port))


def _device(name: str) -> str:
    import torch

    there = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not there):
        found = "auto, cpu and cuda" if there else "auto and cpu: there is no CUDA"
        raise UserError(f"device={name!r}: choose among {found}")
    return "cuda" if name != "cpu" and there else "cpu"


def _train(args: Namespace, folder: Path, settings: dict[str, Any], *, quiet: bool) -> None:
    try:
        from torchreaper.integrations.timm import Training
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit torch
        raise UserError(f"timm cannot be imported ({error}); pip install 'torchreaper[timm]'") from error
    from torchreaper.lab.progress import Silent

    console, speaks = screen.stdout(), rank() == 0
    with screen.progress_on(console, quiet=quiet or not speaks) as bar:
        progress = bar if speaks else Silent()
        run = Training(args, folder, settings, lambda epoch, *batch: progress.batch(epoch + 1, batch[0], batch[2]))
        if speaks:
            folder.mkdir(parents=True, exist_ok=True)
        total, done = run.parts.epochs, len(run.history)
        progress.start_run(folder.name, total, len(run.parts.images.training), done)
        if speaks and done and not quiet:
            screen.say(console, f"{folder}: {done} of {total} epochs are there")
        for line in run.epochs():
            progress.epoch({"epoch": line["epoch"] + 1, "phase": phase(line)})
            if speaks:
                _write_summary(run, folder)
                if not quiet:
                    screen.say(console, epoch_line(line))
        progress.leave()
    if speaks:
        _write_summary(run, folder)
        screen.show_paths(console, [folder])


def phase(line: dict[str, Any]) -> str:
    """That which the epoch was trained in."""
    return "sub" if line["sub"] else "full"


def epoch_line(line: dict[str, Any]) -> str:
    """An epoch's numbers; it is counted from 0, as timm does."""
    average = [f"average {line['ema_top1']:.2f} %"] if "ema_top1" in line else []
    gone = [f"{line['filters_dropped']:.0f} filters out"] if line["sub"] else []
    known = [f"loss {line['train_loss']:.4f}", f"top-1 {line['top1']:.2f} %", *average]
    return f"epoch {line['epoch']} {phase(line):<4}  " + "  ".join(
        [*known, f"lr {line['lr']:.3g}", f"{line['seconds']:.1f} s", *gone]
    )


def _write_summary(run: Training, folder: Path) -> None:
    from torchreaper.lab.files import write_whole

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(run.history[-1]))
    writer.writeheader()
    writer.writerows(run.history)
    write_whole(folder / SUMMARY, text.getvalue().encode())
