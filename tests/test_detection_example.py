"""examples/detection.py as a user runs it: on COCO's files, with the small detector, and with what is wrong."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.data.boxes.conftest import coco  # noqa: F401
from torchreaper.lab.errors import UserError

EXAMPLE = Path(__file__).parents[1] / "examples" / "detection.py"


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=250,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def example():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("detection_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked(example, *arguments):
    """The arguments as `main` gets them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["detection.py", *arguments])
        return example.arguments()


def test_it_trains_with_repr_on_the_backbone_alone(coco, tmp_path):  # noqa: F811
    pytest.importorskip("pycocotools")
    files = coco()
    where = [f"--{key.replace('_', '-')}={files[key]}" for key in ("train", "train_images", "test", "test_images")]
    how = ["--model", "detector", "--size", "32", "32", "--batch", "5", "--epochs", "4", "--lr", "0.002"]
    asked = ["--repr", "--scope", "backbone", "--full", "1", "--sub", "1", "--cycles", "1"]
    done = run(*where, *how, *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "10 photographs to train on, 4 to be judged by" in done.stdout
    assert re.search(r"^neck\.merge1\.conv1 +48 .* no .*outside scope$", done.stdout, re.M)
    lines = re.findall(
        r"^epoch (\d): (full|sub), loss [\d.]+, mAP ([\d.]+), AP50 [\d.]+, AP75 [\d.]+", done.stdout, re.M
    )
    assert [phase for _, phase, _ in lines] == ["full", "sub", "full", "full"]
    assert all(0 <= float(score) <= 100 for _, _, score in lines)


def test_a_loss_that_is_not_finite_ends_it(coco, tmp_path):  # noqa: F811
    pytest.importorskip("pycocotools")
    files = coco()
    where = [f"--{key.replace('_', '-')}={files[key]}" for key in ("train", "train_images", "test", "test_images")]
    how = ["--model", "detector", "--size", "32", "32", "--batch", "5", "--epochs", "4", "--lr", "1e36"]
    done = run(*where, *how, cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(r"epoch \d: the loss is (nan|-?inf); lower --lr=1e\+36\n", done.stderr)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--model", "detector"], "train: is missing; name='coco' needs it"),
        (["--hub", "x", "--test", "y", "--size", "0", "9"], "size"),
        (["--hub", "x", "--train-images", "y"], "train_images='y': has no effect with name='hub'; leave it out"),
        (
            ["--parquet", "--train=a", "--test=b", "--test-images=c"],
            "test_images='c': has no effect with name='parquet'",
        ),
        (["--box", "xyxy", "--train=none.json", "--test=b", "--train-images=.", "--test-images=."], "data.train='none"),
    ],
)
def test_what_the_data_refuse_is_one_line(example, arguments, text):
    with pytest.raises(UserError, match=f"^{re.escape(text)}"):
        example.main(asked(example, *arguments))


def test_an_error_ends_the_program_by_one_line(tmp_path):
    done = run("--model", "detector", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: train: is missing; name='coco' needs it\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--repr", "--full=1", "--sub=1", "--cycles=1", "--epochs=2"],
            "--epochs=2: --full, --sub and --cycles need 2 and at least one more",
        ),
        (["--repr"], None),
        (["--repr", "--epochs=18"], "--epochs=18: --full, --sub and --cycles need 18 and at least one more"),
        (["--repr", "--epochs=19"], None),
        (["--epochs=1"], None),
        *(([f"--{name}=0", "--repr"], f"--{name}=0: must be 1 or more") for name in ("full", "sub", "cycles")),
        *(([f"--{name}=0"], f"--{name}=0: must be 1 or more") for name in ("batch", "epochs")),
        *(([f"--device={name}"], f"--device={name}: is no device of this machine; ") for name in ("foo", "meta", "")),
        (["--scope=backbone"], "--scope=backbone: has no effect without --repr; leave it out"),
        (["--cycles=1"], "--cycles=1: has no effect without --repr; leave it out"),
        (["--model=detector", "--weights=imagenet"], "--weights=imagenet: has no effect with --model detector; leave"),
        (["--model=detector", "--backbone=resnet18"], "--backbone=resnet18: has no effect with --model detector; l"),
        (["--backbone=resnet18", "--weights=imagenet"], None),
        (["--hub=x", "--parquet"], "--parquet=True: has no effect with --hub; leave it out"),
    ],
)
def test_arguments_are_checked_before_anything_is_loaded(capsys, example, arguments, text):
    if text is None:
        asked(example, *arguments)
        return
    with pytest.raises(SystemExit):
        asked(example, *arguments)
    assert f"error: {text}" in capsys.readouterr().err


def test_with_hub_both_parts_may_be_named(example):
    spec = example.spec_of(asked(example, "--hub=x", "--train=a", "--test=b", "--box=xyxy"))
    assert (spec.name, spec.hub, spec.train, spec.test, spec.box) == ("hub", "x", "a", "b", "xyxy")


@pytest.mark.parametrize("where", [[], ["--parquet"], ["--hub=x"]])
def test_the_form_of_boxes_is_passed_on_whatever_the_data(example, where):
    files = ["--train=a", "--test=b", *(() if where else ("--train-images=c", "--test-images=d"))]
    assert example.spec_of(asked(example, *where, *files, "--box=xyxy")).box == "xyxy"
