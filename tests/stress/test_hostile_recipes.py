"""Recipes that would run code, take all memory, or write elsewhere than they may."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import yaml
from PIL import Image
from tests.lab.tiny import TINY
from tests.stress.memory import Peak
from tests.stress.recording import lengths

from torchreaper.lab.errors import UserError
from torchreaper.lab.files import read_yaml
from torchreaper.lab.inspection import options_of_network
from torchreaper.lab.recipe import load_recipe
from torchreaper.lab.yaml_text import MOST, YAMLProblem, parse_yaml

ROOT = Path(__file__).parents[2]
CALLS = {
    "os.system": "!!python/object/apply:os.system ['touch {0}']",
    "subprocess": "!!python/object/apply:subprocess.call [['touch', '{0}']]",
    "eval": "!!python/object/apply:builtins.eval [\"open('{0}', 'w')\"]",
    "new": "!!python/object/new:pathlib.PosixPath ['{0}']",
    "module": "!!python/module:antigravity ''",
    "name": "!!python/name:os.system ''",
    "object": "!!python/object:subprocess.Popen {{args: [touch, '{0}']}}",
    "state": "!!python/object/new:type {{args: [z, !!python/tuple [], {{extend: !!python/name:exec }}], "
    "listitems: \"open('{0}', 'w')\"}}",
    "tuple": "!!python/tuple [!!python/object/apply:os.system ['touch {0}']]",
    "binary": "!!binary |\n    Y29zCnN5c3RlbQo=\n  x: !!python/object/apply:os.system ['touch {0}']",
    "own tag": "!touch {0}",
    "directive": "!e!object/apply:os.system ['touch {0}']",
}


def bombs():
    """A few lines each, which stand for billions of values, or for one that cannot be."""
    lists = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    maps = "a0: &a0 {k0: x, k1: x, k2: x, k3: x, k4: x}\n"
    merges = "a0: &a0 {k0: 1}\n"
    for k in range(1, 12):
        lists += f"a{k}: &a{k} [{', '.join(10 * [f'*a{k - 1}'])}]\n"
        maps += f"a{k}: &a{k} {{{', '.join(f'k{i}: *a{k - 1}' for i in range(5))}}}\n"
        merges += f"a{k}: &a{k} {{<<: [{', '.join(8 * [f'*a{k - 1}'])}], k{k}: 1}}\n"
    return {
        "lists of lists": f"{lists}name: *a11\n",
        "maps of maps": f"{maps}name: *a11\n",
        "options": f"{lists}model: {{name: 'a.b:c', options: {{x: *a11}}}}\n",
        "merges": f"{merges}name: *a11\n",
        "itself": "name: &a [*a]\n",
        "itself in a map": "name: &a {x: *a}\n",
        "very deep": f"name: {'[' * 50_000}{']' * 50_000}\n",
        "deep maps": f"name: {'{a: ' * 5_000}1{'}' * 5_000}\n",
        "a number of 100,000 digits": f"epochs: {'9' * 100_000}\n",
        "base 60": f"epochs: {'59:' * 30_000}59\n",
        "no date": "name: 2001-99-99\n",
        "no time": "name: 2001-01-01 25:61:61\n",
        "very long": f"name: {'x' * 3_000_000}\n",
        "very many": "name: [" + "x," * 200_000 + "]\n",
    }


def read_everywhere(text, folder):
    """Every way that YAML of others is read; each must refuse it."""
    (folder / "recipe.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(folder / "recipe.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    with pytest.raises(UserError):
        load_recipe(ROOT / "recipes" / "demo.yaml", overrides=[f"data={text}"])
    with suppress(UserError):  # what is too large for a recipe may be an option
        options_of_network([f"name={text}"])


@lengths(12, 300)
def test_no_tag_of_yaml_makes_anything_but_plain_values(times, trials, tmp_path):
    count = trials(
        "hostile files",
        "recipes and --set with YAML tags that call, import or build (python/object/apply and the like), at any depth: "
        "refused in one line, nothing called",
        "texts",
    )
    canary, draw = tmp_path / "canary", random.Random(times)
    modules = set(sys.modules)
    for number in range(times):
        name = list(CALLS)[number % len(CALLS)]
        value = CALLS[name].format(canary)
        for _ in range(number // len(CALLS) % 5):
            value = draw.choice(("[1, {}]", "{{a: {}}}", "[{}, 1]")).format(value) if "\n" not in value else value
        head = "%TAG !e! tag:yaml.org,2002:python/\n---\n" if name == "directive" else ""
        key = draw.choice(("name", "model", "scheme", "profiles", "? !!python/name:os.system x\n: y\nname"))
        with count.one():
            read_everywhere(f"{head}epochs: 1\n{key}: {value}\n", tmp_path)
            assert not canary.exists(), value
    assert "antigravity" not in set(sys.modules) - modules


@lengths(14, 28)
def test_no_aliases_take_all_memory(times, trials, tmp_path):
    count = trials(
        "hostile files",
        "recipes whose aliases, depth or numbers take gigabytes or hours elsewhere: refused in a line, 10 s, 200 MB",
        "texts",
    )
    kinds = bombs()
    for number in range(times):
        name = list(kinds)[number % len(kinds)]
        with count.one():
            peak, start = Peak(), time.process_time()
            read_everywhere(kinds[name], tmp_path)
            (tmp_path / "kept.yaml").write_text(kinds[name])
            with suppress(UserError):  # plain values, which a run's folder may hold, are read
                read_yaml(tmp_path / "kept.yaml")
            assert time.process_time() - start < 10, name
            assert peak.taken() < 200, name


def test_aliases_that_people_write_are_read():
    text = "a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, x: 2}\nc: [*a, *a]\n"
    assert parse_yaml(text) == {
        "a": {"x": 1, "y": [1, 2]},
        "b": {"x": 2, "y": [1, 2]},
        "c": [{"x": 1, "y": [1, 2]}] * 2,
    }
    assert parse_yaml("") is None
    assert len(parse_yaml(f"[{'1,' * (MOST - 10)}]")) == MOST - 10
    with pytest.raises(
        YAMLProblem, match=rf"^its aliases stand for more than {MOST:,} values; write out what is meant$"
    ):
        parse_yaml(f"[{'1,' * MOST}]")


NAMES = [
    *(
        "../../x",
        "../x",
        "/tmp/hostile-x",
        "a/b",
        "a/../../../x",
        "a\\b",
        "..\\..\\x",
        "..",
        ".",
        "",
        " ",
        "a\0b",
        "con",
    ),
    *("NUL.txt", "com1", "~", "~/x", "$HOME/x", "%TEMP%", "a b", "x" * 300, "-rf", "--out", "\u202ename", "<script>"),
    *("a\nb", "é", "..%2f..%2fx", "name.", "C:\\x", "\\\\host\\share", "file:///tmp/x", "{{7*7}}", "${x}", "`id`"),
    *(";id", "|id", "\x1b[31mred", "a:b", "os:system", "a+..", "+", "repr+../x", "kd+/x", ".hidden", "seed-0", "all"),
]


def hostile(draw, folder):
    """The arguments of a command, with a recipe whose names would lead it elsewhere."""
    values = deepcopy(TINY) | {"epochs": 4}
    name = draw.choice(NAMES)
    teacher = {"model": {"name": "cnet", "options": {"depth": 2, "width": draw.randint(3, 5)}}}
    working = [
        lambda: values.update(name=draw.choice(["a..b", "a+b", "seed-0", "analysis", "comparison.json"])),
        lambda: values.update(schemes={"a..b": {"name": "repr", "full": 1, "sub": 1, "cycles": 1}}),
        lambda: values.update(scheme={"name": "kd", "teacher": teacher}),
        lambda: values.update(data={"name": "folder", "train": "images", "test": "images", "size": 8}),
        lambda: values.update(data={"name": "folder", "train": "../recipes/images", "test": "images", "memory": False}),
        lambda: values.update(snapshots=1),
    ]
    if draw.random() < 0.4:
        changes = working
    else:
        changes = [
            lambda: values.update(name=name),
            lambda: values.update(schemes={name: {"name": "repr", "full": 1, "sub": 1, "cycles": 1}}),
            lambda: values.update(scheme={**values["scheme"], "name": name}),
            lambda: values.update(scheme={"name": "kd", "teacher": {**teacher, "name": name}}),
            lambda: values.update(scheme={"name": "kd", "teacher": {"model": {"name": name}}}),
            lambda: values.update(profiles={name: {"epochs": 5}, "quick": {"name": name}}),
            lambda: values.update(model={"name": name}),
            lambda: values.update(data={"name": "parquet", "train": name, "test": name}),
            lambda: values.update(data={"name": "folder", "train": name, "test": name}),
            lambda: values.update(out=name),
        ]
    for change in draw.sample(changes, draw.randint(1, 2)):
        change()
    path = folder / "recipes" / f"{draw.randrange(10**9)}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(values, allow_unicode=True))
    more = [
        *([] for _ in range(6)),
        ["--set", f"name={name}"],
        ["--set", f"schemes={{'{name}': {{name: repr}}}}"],
        ["--profile", draw.choice([name, "quick"])],
    ]
    args = [*draw.choice(more), "--out", str(folder / "out"), "--quiet", "--device", "cpu"]
    train = [
        "train",
        str(path),
        *draw.choice([[], [], [], ["--scheme", name], ["--scheme", "a..b"]]),
        "--seed",
        str(draw.randrange(3)),
        *args,
    ]
    compare = [
        "compare",
        str(path),
        *draw.choice([[], [], ["--schemes", f"standard,{name}"], ["--schemes", "all"]]),
        "--seeds",
        "1",
        *args,
    ]
    return draw.choice([train, train, compare, ["inspect", str(path)], ["recipes", str(path.parent)]])


def run_recorded(cases, folder, allowed):
    """What `tests.stress.recorded` says of each."""
    (folder / "cases").write_text("\n".join(map(json.dumps, cases)))
    home = folder / "home"
    home.mkdir(exist_ok=True)
    here = {
        **os.environ,
        "ALLOWED": os.pathsep.join(map(str, [*allowed, home, matplotlib.get_cachedir()])),
        "MPLCONFIGDIR": matplotlib.get_cachedir(),  # or it would look for fonts each time
        **dict.fromkeys(("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME"), str(home)),
        **{"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"},
    }
    command = [sys.executable, "-m", "tests.stress.recorded", str(folder / "cases")]
    ended = subprocess.run(command, cwd=folder / "work", env=here, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


@lengths(4, 120)
def test_whatever_a_recipe_says_all_is_written_below_out(times, trials, tmp_path):
    count = trials(
        "hostile files",
        "commands on recipes with names such as ../../x, /x, NUL, con: every file, folder and rename below --out, no "
        "process but git and uname, no network; one line where refused",
        "commands",
    )
    (tmp_path / "work").mkdir()
    for kind in "ab":
        (tmp_path / "recipes" / "images" / kind).mkdir(parents=True)
        for number in range(40):
            pixels = np.full((8, 8), 100 * (kind == "a") + number, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "recipes" / "images" / kind / f"{number}.png")
    draw = random.Random(times)
    cases = [hostile(draw, tmp_path) for _ in range(times - 1)]
    plain = tmp_path / "recipes" / "plain.yaml"  # one that trains in any case
    plain.write_text(yaml.safe_dump(TINY))
    cases.append(["train", str(plain), "--out", str(tmp_path / "out"), "--quiet", "--device", "cpu"])
    told = run_recorded(cases, tmp_path, [tmp_path / "out"])
    assert len(told) == times
    for case, one in zip(cases, told):
        with count.one():
            assert one["strange"] == [], (case, one)
            assert one["raised"] in ("", "SystemExit"), (case, one)
            assert one["code"] in (0, 1, 2), (case, one)
            if one["code"] == 2:
                assert one["err"].count("\n") == 1, (case, one)
                assert one["err"].startswith("error: ")
            assert (one["out"] + one["err"]).replace("\n", "").isprintable(), (case, one)
    assert told[-1]["inside"] > 20, "the recorder sees nothing"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases", "home", "out", "recipes", "work"]
    assert list((tmp_path / "work").iterdir()) == []
    ended = [one["code"] for one in told]
    count.note = f"{ended.count(0)} went through, {len(ended) - ended.count(0)} were refused or failed"
