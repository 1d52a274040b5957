"""RePr on ImageNet, or on images of your own, in plain PyTorch: DDP, mixed precision, channels_last, resume.

    python examples/imagenet.py hf:uoft-cs/cifar10 --arch resnet18 --size 32
    torchrun --nproc-per-node 8 examples/imagenet.py /data/imagenet --batch 1024 --lr 0.4 --amp bf16 --channels-last
The same command goes on where it was stopped: on the CPU, with as many processes and workers, to the same bits.
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset
from torchvision import datasets, models
from torchvision.transforms import v2

import torchreaper as tr

RANK, LOCAL, WORLD = (int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", LOCAL) if CUDA else torch.device("cpu")
AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def arguments(argv):
    """The settings on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data", help="a folder with train/ and val/, in both a folder for each class; one with parquet; or hf:NAME")
    add("--out", default="runs/imagenet", help="folder of checkpoint.pt, which holds the model (%(default)s)")
    add("--resume", choices=["auto", "no"], default="auto", help="auto, the default: go on from OUT/checkpoint.pt")
    known = models.list_models(models, exclude=("googlenet", "inception_v3"))  # which have several outputs
    add("--arch", default="resnet50", metavar="NAME", choices=known, help="one of torchvision's")
    add("--size", type=int, default=224, help="height and width of the crops, pixels (%(default)s)")
    add("--epochs", type=int, default=100, help="(%(default)s)")
    add("--batch", type=int, default=256, help="images in a step, of all processes together (%(default)s)")
    add("--lr", type=float, default=0.1, help="of SGD, momentum 0.9; rises for 5 epochs, then falls to 0 (%(default)s)")
    add("--weight-decay", type=float, default=1e-4, help="(%(default)s)")
    add("--workers", type=int, default=8, help="of each process; with another number crops differ (%(default)s)")
    add("--seed", type=int, default=0, help="of weights, order and crops (%(default)s)")
    add("--amp", choices=list(AMP), default="none", help="precision of autocast (%(default)s)")
    add("--channels-last", action="store_true", help="the memory format that tensor cores like")
    add("--sync-bn", action="store_true", help="BatchNorm over the images of all processes; on GPUs only")
    add("--full", type=int, default=20, help="epochs of the whole network before each drop (%(default)s)")
    add("--sub", type=int, default=10, help="epochs without the dropped filters (%(default)s)")
    add("--cycles", type=int, default=3, help="how often filters go; 0 is standard training (%(default)s)")
    add("--fraction", type=float, default=0.30, help="share of the filters that goes (%(default)s)")
    add("--subnetwork", choices=["auto", "compact", "masked"], default="auto", help="auto: masked in many processes")
    args = parser.parse_args(argv)
    if args.batch % WORLD:
        sys.exit(f"--batch {args.batch}: {WORLD} processes cannot share it evenly; use a multiple of that")
    if args.sync_bn and not (CUDA and WORLD > 1):
        sys.exit("--sync-bn: torch trains with it on several GPUs only; leave it out")
    if args.cycles and args.epochs <= args.cycles * (args.full + args.sub):
        sys.exit(f"--epochs {args.epochs}: must be more than --cycles x (--full + --sub), so that it ends whole")
    return args


class Rows(Dataset):
    """Rows of a Hugging Face data set, as an ImageFolder gives them."""

    def __init__(self, rows, transform):
        names = {type(kind).__name__: name for name, kind in rows.features.items()}
        self.rows, self.transform, self.columns = rows, transform, (names["Image"], names["ClassLabel"])
        self.classes = rows.features[names["ClassLabel"]].names

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        image, label = (self.rows[index][name] for name in self.columns)
        return self.transform(image.convert("RGB")), label


def load(data, size):
    """Training and validation images, uint8 [3, size, size], with their classes."""
    crops = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    centre = v2.Compose([v2.Resize(size * 256 // 224), v2.CenterCrop(size), v2.PILToTensor()])
    try:
        if data.startswith("hf:") or any(any(Path(data).glob(name)) for name in ("*.parquet", "*/*.parquet")):
            from datasets import load_dataset

            parts = load_dataset(data.removeprefix("hf:"))
            train, val = Rows(parts["train"], crops), Rows(parts.get("validation", parts.get("test")), centre)
        else:
            train, val = (datasets.ImageFolder(Path(data, n), w) for n, w in (("train", crops), ("val", centre)))
    except (OSError, ValueError) as error:
        sys.exit(f"data={data}: {str(error).splitlines()[0]}")
    except (KeyError, AttributeError):
        sys.exit(f"data={data}: needs splits train and validation or test, with features Image and ClassLabel")
    if odd := set(train.classes) ^ set(val.classes):
        sys.exit(f"data={data}: classes of training or validation alone: {', '.join(sorted(odd)[:5])}")
    return train, val


def one_pass(model, loader, dtype, optimizer=None, scaler=None):
    """Train on the loader's images, or judge by them where there is no optimizer; mean loss and accuracy."""
    mean, std = (torch.tensor(v, device=DEVICE).view(3, 1, 1) for v in ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4)))
    sums = torch.zeros(3, device=DEVICE, dtype=torch.float64)  # losses, right answers, images
    model.train(optimizer is not None)
    for images, labels in loader:
        images, labels = (x.to(DEVICE, non_blocking=True) for x in (images, labels))
        with torch.autocast(DEVICE.type, dtype, enabled=dtype is not None):
            logits = model((images - mean) / std)
            loss = torch.nn.functional.cross_entropy(logits, labels)
        if optimizer is not None:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        right = (logits.detach().argmax(1) == labels).sum()
        sums += torch.stack([loss.detach() * len(labels), right, torch.full_like(right, len(labels))])
    if WORLD > 1:
        dist.all_reduce(sums)
    return (sums[:2] / sums[2]).tolist()


def main(argv=None):
    """Train, from the start or from where an earlier process was stopped."""
    args = arguments(argv)
    if CUDA:
        torch.cuda.set_device(DEVICE)
    if WORLD > 1:
        dist.init_process_group("nccl" if CUDA else "gloo")
    train, val = load(args.data, args.size)
    if len(train) < args.batch:
        sys.exit(f"--batch {args.batch}: more than the {len(train)} images there are to train on")
    torch.manual_seed(args.seed)
    model = models.get_model(args.arch, weights=None, num_classes=len(train.classes))
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model) if args.sync_bn else model
    model.to(DEVICE, memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=args.weight_decay)
    chosen = {name: getattr(args, name) for name in ("full", "sub", "cycles", "fraction", "subnetwork")}
    try:
        scheme = tr.RePr(model, optimizer, torch.zeros(2, 3, args.size, args.size, device=DEVICE), **chosen)
    except tr.ReaperError as error:
        sys.exit(str(error))
    schedule = LambdaLR(optimizer, lambda e: min((e + 1) / 5, (1 + math.cos(math.pi * e / args.epochs)) / 2))
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=args.amp == "fp16")
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler, "scheme": scheme}
    settings = {k: v for k, v in vars(args).items() if k not in ("data", "out", "resume", "workers")}
    settings["classes"], path, begin = train.classes, Path(args.out, "checkpoint.pt"), 1
    path.parent.mkdir(parents=True, exist_ok=True)
    there = RANK == 0 and args.resume == "auto" and path.exists()
    try:
        held = [torch.load(path, map_location="cpu", weights_only=True) if there else {}]
    except Exception:
        sys.exit(f"{path}: cannot be read; move it away, or give --resume no")
    if WORLD > 1:
        dist.broadcast_object_list(held)  # from the first process, whose disk the others need not see
    if state := held[0]:
        if odd := [f"{k} was {was}, is {v}" for k, v in settings.items() if (was := state["settings"].get(k)) != v]:
            sys.exit(f"{path}: is of other settings: {'; '.join(odd)}; give --out another folder, or --resume no")
        for name, part in parts.items():  # the scheme last: it leaves the dropped filters out again
            part.load_state_dict(state[name])
        begin = state["epoch"] + 1
    if RANK == 0:
        print(f"{path}: goes on after epoch {begin - 1}" if begin > 1 else scheme, flush=True)
    called = DistributedDataParallel(model, device_ids=[LOCAL] if CUDA else None) if WORLD > 1 else model
    common = {"batch_size": args.batch // WORLD, "num_workers": args.workers, "pin_memory": CUDA}
    order = DistributedSampler(train, WORLD, RANK, seed=args.seed)
    loader = DataLoader(train, sampler=order, drop_last=True, generator=torch.Generator(), **common)
    judged = DataLoader(Subset(val, range(RANK, len(val), WORLD)), **common)
    for epoch in range(begin, args.epochs + 1):
        start, phase, rate = time.perf_counter(), scheme.phase, schedule.get_last_lr()[0]
        order.set_epoch(epoch)
        for generator in (torch, loader.generator):  # all that is random begins anew: no state of it to save
            generator.manual_seed(args.seed << 40 | epoch << 20 | RANK)
        loss, trained = one_pass(called, loader, AMP[args.amp], optimizer, scaler)
        if not math.isfinite(loss):
            sys.exit(f"epoch {epoch}: the training loss is {loss}; lower --lr ({path} is of the epoch before)")
        for buffer in model.buffers() if WORLD > 1 else ():
            dist.broadcast(buffer, src=0)  # running statistics of the first process, as DDP has them
        right = torch.no_grad()(one_pass)(model, judged, AMP[args.amp])[1]
        schedule.step()
        if (what := scheme.step()) and WORLD > 1:
            called = tr.rewrapped(called)  # compact phases need it
        gone = f"  {what.kind} {sum(map(len, what.filters.values()))} filters" if what else ""
        told = f"epoch {epoch:3d}  {phase:4s}  lr {rate:.4f}  loss {loss:.4f}  train {trained:.2%}  val {right:.2%}"
        if RANK == 0:
            with open(path.with_suffix(".part"), "wb") as file:  # whole or not at all, whenever this process dies
                torch.save({n: p.state_dict() for n, p in parts.items()} | {"epoch": epoch, "settings": settings}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(file.name, path)
            print(f"{told}  {time.perf_counter() - start:.1f} s{gone}", flush=True)
    scheme.remove()
    if WORLD > 1:
        dist.barrier()  # gloo may hang if a process leaves while its last collective is being tidied up
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
