"""Run folders: checkpoints survive every cut and every flipped byte, logs agree with them, recipes are not mixed up."""

import copy
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from tests.lab.cut import Died, die_after
from tests.lab.tiny import recipe

from torchreaper.lab import reading, runs
from torchreaper.lab.errors import UserError
from torchreaper.lab.files import MEND, read_json
from torchreaper.lab.progress import NullProgress
from torchreaper.lab.reading import AFRESH
from torchreaper.lab.recipe import load_recipe
from torchreaper.lab.run import train
from torchreaper.lab.runs import RunFolder, folder_of, read_events, read_metrics, read_recipe, read_result, run_of

RECIPE = {"name": "tiny", "epochs": 9, "optim": {"name": "sgd", "lr": 0.1}, "seeds": 3, "scheme": {"name": "repr"}}


def folder_at(path, recipe=RECIPE, seed=0):
    folder = RunFolder(path / "run", run_of(recipe, seed=seed))
    assert folder.look() is None
    folder.open(recipe, resume=True)
    return folder


def metrics_line(epoch):
    return {
        **{"epoch": epoch, "phase": "full", "train_loss": 1 / epoch, "train_accuracy": 0.5, "test_accuracy": 0.5},
        **{"overlap": {}, "overlap_total": 0.0, "dropped": {}, "seconds": 0.1},
    }


def save(folder, epoch, events=False):
    event = [{"epoch": epoch, "kind": "drop", "filters": {}}] if events else []
    folder.save(epoch, {"weights": torch.full((3,), float(epoch))}, metrics_line(epoch), event)


def loaded(folder):
    notes = []
    state = folder.load(notes.append)
    folder.align(state, notes.append)
    return state, notes


def test_the_newest_checkpoint_is_loaded_and_the_one_before_is_kept(tmp_path):
    folder = folder_at(tmp_path)
    assert loaded(folder) == (None, [])
    for epoch in (1, 2, 3):
        save(folder, epoch)
        state, notes = loaded(folder)
        assert (state["epoch"], notes) == (epoch, [])
        assert torch.equal(state["weights"], torch.full((3,), float(epoch)))
    previous = torch.load(folder.path / "previous.pt", weights_only=True)
    assert previous["epoch"] == 2
    assert {p.name for p in folder.path.iterdir()} == {
        *("recipe.yaml", "metrics.jsonl"),
        *("last.pt", "last.pt.sha256", "previous.pt", "previous.pt.sha256"),
    }


def test_the_checksums_are_sha256sums(tmp_path):
    folder = folder_at(tmp_path)
    for epoch in (1, 2):
        save(folder, epoch)
    check = subprocess.run(
        ["sha256sum", "-c", "last.pt.sha256", "previous.pt.sha256"], cwd=folder.path, capture_output=True, text=True
    )
    assert check.stdout == "last.pt: OK\nprevious.pt: OK\n"


def test_whatever_happens_to_the_last_checkpoint_the_one_before_is_used(tmp_path):
    folder = folder_at(tmp_path)
    for epoch in (1, 2):
        save(folder, epoch)
    last, sidecar = folder.path / "last.pt", folder.path / "last.pt.sha256"
    good, checksum = last.read_bytes(), sidecar.read_bytes()
    logs = (folder.path / "metrics.jsonl").read_bytes()
    draw = random.Random(0)
    cuts = [good[: draw.randrange(len(good))] for _ in range(20)] + [b"", good + b"\0"]
    flips = []
    for _ in range(40):
        at = draw.randrange(len(good))
        flips.append(good[:at] + bytes([good[at] ^ 1 << draw.randrange(8)]) + good[at + 1 :])
    faults = [(data, checksum) for data in cuts + flips] + [(good, b""), (good, checksum[1:]), (good, None)]
    for data, digest in faults:
        last.write_bytes(data)
        sidecar.write_bytes(digest) if digest is not None else sidecar.unlink(missing_ok=True)
        (folder.path / "metrics.jsonl").write_bytes(logs)
        state, notes = loaded(folder)
        assert state["epoch"] == 1
        assert notes == [
            f"{last}: damaged, it does not agree with its checksum; put aside, using the one before",
        ]
        assert [line["epoch"] for line in read_metrics(folder.path)] == [1]
        assert not last.exists()
    # The damaged file does not push out the good one.
    save(folder, 2)
    assert torch.load(folder.path / "previous.pt", weights_only=True)["epoch"] == 1
    assert loaded(folder)[0]["epoch"] == 2


def test_with_both_checkpoints_damaged_it_starts_again_and_says_so(tmp_path):
    folder = folder_at(tmp_path)
    for epoch in (1, 2):
        save(folder, epoch, events=True)
    for name in ("last.pt", "previous.pt"):
        (folder.path / name).write_bytes(b"not a checkpoint")
    state, notes = loaded(folder)
    assert state is None
    assert [note.split("; ")[1] for note in notes] == [
        "put aside, using the one before",
        "put aside, there is no other: starting at epoch 1",
    ]
    assert read_metrics(folder.path) == read_events(folder.path) == []


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_save_cut_off_between_any_two_steps_loses_at_most_itself(tmp_path, monkeypatch, epochs):
    steps = 0
    while True:
        folder = folder_at(tmp_path / str(steps))
        for epoch in range(1, epochs):
            save(folder, epoch, events=True)
        with monkeypatch.context() as patch:
            die_after(patch, steps)
            try:
                save(folder, epochs, events=True)
                died = False
            except Died:
                died = True
        state, notes = loaded(folder)
        reached = state["epoch"] if state else 0
        assert reached in {epochs - 1, epochs}
        assert notes == []
        assert [line["epoch"] for line in read_metrics(folder.path)] == list(range(1, reached + 1))
        assert [line["epoch"] for line in read_events(folder.path)] == list(range(1, reached + 1))
        if not died:
            break
        steps += 1
    assert reached == epochs
    assert steps >= 7


@pytest.mark.parametrize("log", ["metrics.jsonl", "events.jsonl"])
def test_the_logs_end_where_the_checkpoint_does(tmp_path, log):
    folder = folder_at(tmp_path)
    for epoch in (1, 2, 3):
        save(folder, epoch, events=True)
    path = folder.path / log
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    later = lines[2].replace(b'"epoch": 3', b'"epoch": 4')
    for found in (whole[:-1], whole[:-9], b"".join(lines[:2]), whole + later, whole + later[:-4], whole):
        path.write_bytes(found)
        state, notes = loaded(folder)
        assert state["epoch"] == 3
        assert notes == []
        assert path.read_bytes() == whole


def test_lost_lines_are_told(tmp_path):
    folder = folder_at(tmp_path)
    for epoch in (1, 2, 3):
        save(folder, epoch)
    (folder.path / "metrics.jsonl").unlink()
    _, notes = loaded(folder)
    assert notes == [f"{folder.path / 'metrics.jsonl'}: the lines of epochs [1, 2] are lost; training is not affected"]
    assert [line["epoch"] for line in read_metrics(folder.path)] == [3]


def test_a_run_of_another_recipe_is_refused_and_named(tmp_path):
    folder = folder_at(tmp_path)
    save(folder, 1)
    other = copy.deepcopy(RECIPE)
    other["optim"]["lr"] = 0.05
    with pytest.raises(UserError) as error:
        folder_at(tmp_path, other)
    assert str(error.value) == (
        f"out={folder.path}: holds a run of another recipe: optim.lr is 0.1 there, 0.05 here; "
        "choose another out or name, or delete that folder"
    )


def test_what_concerns_other_runs_only_may_change(tmp_path):
    folder_at(tmp_path)
    folder_at(tmp_path, {**RECIPE, "seeds": 7, "schemes": {"dsd": {}}, "profiles": {"quick": {}}})


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    folder, other = folder_at(tmp_path / "a"), folder_at(tmp_path / "b", seed=1)
    save(other, 1)
    for name in ("last.pt", "last.pt.sha256"):
        os.replace(other.path / name, folder.path / name)
    with pytest.raises(UserError, match="another recipe: seed is 1 there, 0 here"):
        loaded(folder)


def test_a_run_begun_before_a_key_was_thought_of_goes_on_with_its_default(tmp_path):
    class Stop(NullProgress):
        def epoch(self, metrics):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe(), scheme="repr", seed=0, out=tmp_path, progress=Stop())
    folder = folder_of(tmp_path, "tiny", "repr", 0)
    values = yaml.safe_load((folder / "recipe.yaml").read_text())
    del values["schedule"]["low"], values["precision"], values["channels_last"], values["data"]["judge"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    state = torch.load(folder / "last.pt", weights_only=True)
    del state["run"]["schedule"]["low"], state["run"]["precision"], state["run"]["data"]["label_noise"]
    runs.save_checkpoint(folder, state)
    with pytest.raises(UserError, match="another recipe: precision is '32-true' there, '64-true' here"):
        train(recipe(precision="64-true"), scheme="repr", seed=0, out=tmp_path)
    result = train(recipe(), scheme="repr", seed=0, out=tmp_path)
    assert result["fingerprint"] == train(recipe(), scheme="repr", seed=0, out=tmp_path / "other")["fingerprint"]


def test_a_whole_file_that_is_no_checkpoint_is_an_error(tmp_path):
    folder = folder_at(tmp_path)
    runs.save_checkpoint(folder.path, {"weights": torch.zeros(1)})
    with pytest.raises(UserError, match=r"last\.pt: is no checkpoint of a run; delete the folder"):
        loaded(folder)


def test_a_checkpoint_is_not_unpickled(tmp_path):
    folder = folder_at(tmp_path)
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    save(folder, 1)
    runs.save_checkpoint(folder.path, {"run": folder.run, "epoch": 2, "lines": {}, "bad": Payload()})
    with pytest.raises(UserError, match=r"last\.pt: torch .* cannot read it"):
        loaded(folder)
    assert not marker.exists()


def test_a_result_finishes_a_run(tmp_path):
    folder = folder_at(tmp_path)
    assert read_result(folder.path) is None
    result = {
        **{"recipe": "tiny", "scheme": "repr", "seed": 0, "epochs": 9, "report": "last", "seconds": 1.0},
        **{"test_accuracy": 0.5, "train_accuracy": 0.75, "gap": 0.25, "validation_accuracy": None, "layers": {"a": 2}},
    }
    folder.finish(result)
    assert folder.look() == read_result(folder.path) == result
    (folder.path / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result\.json: is damaged"):
        folder.look()


def test_starting_afresh_deletes_what_a_run_wrote_and_nothing_else(tmp_path):
    folder = folder_at(tmp_path)
    for epoch in (1, 2):
        save(folder, epoch, events=True)
    folder.finish({})
    (folder.path / "notes.txt").write_text("mine")
    folder.open({**RECIPE, "epochs": 10}, resume=False)
    assert {p.name for p in folder.path.iterdir()} == {"notes.txt", "recipe.yaml"}
    assert yaml.safe_load((folder.path / "recipe.yaml").read_text())["epochs"] == 10


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "run").write_text("a file")
    folder = RunFolder(tmp_path / "run" / "inner", run_of(RECIPE, seed=0))
    with pytest.raises(UserError, match=r"^out=.*inner: .*choose a folder that can be written"):
        folder.open(RECIPE, resume=True)


def test_the_environment_keeps_the_first_machine_and_adds_the_others(tmp_path):
    folder = folder_at(tmp_path)
    folder.environment({"torch": "a"}, epoch=0)
    folder.environment({"torch": "b"}, epoch=4)
    folder.environment({"torch": "c"}, epoch=6)
    found = read_json(folder.path / "environment.json")
    assert found == {
        "torch": "a",
        "resumed": [{"after_epoch": 4, "torch": "b"}, {"after_epoch": 6, "torch": "c"}],
    }


def run_at(path, **environment):
    path.mkdir(parents=True)
    written = {**recipe().canonical(), "schemes": {}}
    (path / "recipe.yaml").write_text(yaml.safe_dump(written))
    (path / "environment.json").write_text(json.dumps(environment))
    return path


def test_the_recipe_of_a_run_is_read_back_with_the_place_of_its_data(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    values = {**recipe().canonical(), "schemes": {"repr-random": {"name": "repr", "criterion": "random", "full": 2,
              "sub": 1, "cycles": 1}}}  # fmt: skip
    (tmp_path / "recipes" / "tiny.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    loaded = load_recipe("recipes/tiny.yaml")
    for scheme in ("repr", "repr-random", "standard"):
        train(loaded, scheme=scheme, seed=0, out=tmp_path / "out")
        folder = tmp_path / "out" / "tiny" / scheme / "seed-0"
        monkeypatch.chdir("/")
        found = read_recipe(folder)
        monkeypatch.chdir(tmp_path)
        assert found.base == tmp_path / "recipes"
        assert (found.scheme, found.schemes) == (loaded.scheme_spec(scheme).model_dump(mode="json"), {})
        assert found.scheme_spec(found.scheme["name"]) == loaded.scheme_spec(scheme)
        assert found.canonical() == {**loaded.canonical(), "scheme": found.scheme, "schemes": {}}


def test_the_data_are_where_the_run_was_last_continued(tmp_path):
    assert read_recipe(run_at(tmp_path / "a", base="/one")).base == Path("/one")
    resumed = [{"after_epoch": 1, "base": "/two"}, {"after_epoch": 2}]
    assert read_recipe(run_at(tmp_path / "b", base="/one", resumed=resumed)).base == Path("/two")
    assert read_recipe(run_at(tmp_path / "c", torch="2")).base == Path()  # before this was written down


def test_what_is_no_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "no", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(UserError) as error:
            read_recipe(path)
        assert str(error.value) == (
            f"run={str(path)!r}: is no run folder, it has no recipe.yaml; name one that has, "
            "<out>/<recipe>/<scheme>/seed-<k>"
        )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "recipe.yaml",
            "[",
            f"recipe.yaml: is damaged (not a recipe); {AFRESH}",
        ),
        (
            "recipe.yaml",
            "",
            f"recipe.yaml: is damaged (not a recipe); {AFRESH}",
        ),
        (
            "recipe.yaml",
            "name: x",
            "recipe.yaml: epochs, batch, data, model, optim: are missing; use the version of torchreaper that",
        ),
        ("environment.json", "{", "environment.json: is damaged (Expecting"),
        ("environment.json", "[1]", "environment.json: is damaged (not a JSON object)"),
        ("environment.json", '{"base": 3}', f"environment.json: is damaged: base=3: must be a string; {AFRESH}"),
        (
            "environment.json",
            '{"resumed": [3]}',
            "environment.json: is damaged: resumed[0]=3: must be a mapping (key: ",
        ),
        ("environment.json", '{"resumed": 3}', f"environment.json: is damaged: resumed=3: must be a list; {AFRESH}"),
        ("environment.json", None, f"environment.json: is missing; {AFRESH}"),
    ],
)
def test_a_damaged_run_is_told_by_its_file(tmp_path, name, content, message):
    folder = run_at(tmp_path / "run", base="/one")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(UserError) as error:
        read_recipe(folder)
    assert str(error.value).startswith(f"{folder}/{message}")


def test_where_a_run_lies(tmp_path):
    assert folder_of(tmp_path, "c3", "repr", 2) == tmp_path / "c3" / "repr" / "seed-2"


def finished(tmp_path, **changes):
    """The folder of a finished run, and its result."""
    result = train(recipe(**changes), scheme="repr", seed=0, out=tmp_path)
    return folder_of(tmp_path, "tiny", "repr", 0), result


@pytest.mark.parametrize("name", ["recipe.yaml", "environment.json", "metrics.jsonl", "events.jsonl", "result.json"])
@pytest.mark.parametrize("damage", [b"{", b"", None, "digit"])
def test_a_finished_run_with_a_damaged_file_is_mended_from_its_checkpoint_and_says_so(tmp_path, name, damage, caplog):
    folder, result = finished(tmp_path)
    text = (folder / name).read_bytes()
    if damage is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(text.replace(b"5", b"6", 1) if damage == "digit" else damage)
    gone_unsaid = (name, damage) == ("result.json", None)  # that of a run that was killed before it
    again = train(recipe(), scheme="repr", seed=0, out=tmp_path)
    assert again["fingerprint"] == result["fingerprint"]
    assert again["test_accuracy"] == result["test_accuracy"]
    if not gone_unsaid and not (name == "environment.json" and damage == "digit"):
        assert (
            f"{folder / name}: is {'gone' if damage is None and name[-5:] != 'jsonl' else 'damaged'}; " in caplog.text
        )
    if name in ("recipe.yaml", "result.json"):
        assert (folder / name).read_bytes() == text
    caplog.clear()
    assert train(recipe(), scheme="repr", seed=0, out=tmp_path) == again
    assert caplog.text == ""


def test_without_a_checkpoint_a_damaged_file_is_refused_and_nothing_is_written(tmp_path):
    folder, _ = finished(tmp_path)
    for path in folder.glob("*.pt*"):
        path.unlink()
    (folder / "result.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    what = r"result\.json: is damaged \(it does not agree with its checksum\); delete the folder and run again$"
    with pytest.raises(UserError, match=what):
        train(recipe(), scheme="repr", seed=0, out=tmp_path)
    with pytest.raises(UserError, match=what):
        read_result(folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_damaged_recipe_file_hides_no_run_of_another_recipe(tmp_path):
    folder, _ = finished(tmp_path)
    (folder / "recipe.yaml").write_text("[")
    with pytest.raises(UserError, match=r"another recipe: optim\.lr is 0\.05 there, 0\.1 here"):
        train(recipe(optim__lr=0.1), scheme="repr", seed=0, out=tmp_path)
    assert (folder / "recipe.yaml").read_text() == "["


def test_lines_that_were_changed_are_told(tmp_path):
    folder = folder_at(tmp_path)
    for epoch in (1, 2, 3):
        save(folder, epoch, events=True)
    for name, (old, new) in {"metrics.jsonl": ("0.5", "0.6"), "events.jsonl": ("drop", "flop")}.items():
        path = folder.path / name
        text = path.read_text()
        path.write_text(text.replace(old, new, 1))
        assert loaded(folder)[1] == [f"{path}: was damaged, lines are lost or changed; training is not affected"]
        path.write_text(text)
        assert loaded(folder)[1] == []


def spoilt(folder):
    """Damage both checkpoints."""
    for name in ("last.pt", "previous.pt"):
        (folder / name).write_bytes(b"not a checkpoint")


@pytest.mark.parametrize("damage", [None, "{", '{"resumed": 5}'])
def test_a_good_result_is_never_thrown_away_for_what_stands_beside_it(tmp_path, damage, caplog):
    folder, result = finished(tmp_path)
    about = folder / "environment.json"
    about.unlink() if damage is None else about.write_text(damage)
    spoilt(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert train(recipe(), scheme="repr", seed=0, out=tmp_path) == result
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    what = "is gone" if damage is None else "is damaged"
    assert f"{about}: {what}; there is no checkpoint to mend it from, the result stands" in caplog.text


def test_with_both_checkpoints_damaged_a_damaged_result_is_refused_with_what_helps(tmp_path):
    folder, result = finished(tmp_path)
    path = folder / "result.json"
    path.write_text(path.read_text().replace("5", "6", 1))
    with pytest.raises(UserError, match=rf"; {MEND}$"):
        read_result(folder)
    spoilt(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for look in (lambda: train(recipe(), scheme="repr", seed=0, out=tmp_path), lambda: read_result(folder)):
        with pytest.raises(UserError, match=r"result\.json: is damaged .*; delete the folder and run again$"):
            look()
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    assert train(recipe(), scheme="repr", seed=0, out=tmp_path)["fingerprint"] == result["fingerprint"]


@pytest.mark.parametrize("text", ["", "["])
def test_a_damaged_recipe_file_is_written_anew_where_nothing_was_trained(tmp_path, text):
    folder = folder_at(tmp_path)
    folder.environment({"torch": "a"}, epoch=0)
    path, notes = folder.path / "recipe.yaml", []
    whole = path.read_text()
    path.write_text(text)
    assert folder.look(notes.append) is None
    assert notes == [f"{path}: is damaged (not a recipe); nothing was trained yet, it is written anew"]
    folder.open(RECIPE, resume=True)
    assert path.read_text() == whole


@pytest.mark.parametrize("left", ["metrics.jsonl", "last.pt", "previous.pt.damaged", "result.json", "snapshots"])
def test_a_damaged_recipe_file_is_refused_where_it_cannot_be_told_whose_run_it_is(tmp_path, left):
    folder = folder_at(tmp_path)
    path = folder.path / "recipe.yaml"
    path.write_text("")
    if left == "snapshots":
        (folder.path / left).mkdir()
    (folder.path / left / "epoch-0001.pt" if left == "snapshots" else folder.path / left).write_text("")
    with pytest.raises(UserError, match=r"recipe\.yaml: is damaged \(not a recipe\); delete the folder and run again$"):
        folder.look()


@pytest.mark.parametrize("resumed", ["5", "[5]", "null", '{"a": 1}', '[{"base": 3}]'])
def test_a_wrong_environment_stops_no_run(tmp_path, resumed, caplog):
    folder, result = finished(tmp_path)
    (folder / "environment.json").write_text(f'{{"resumed": {resumed}}}')
    assert train(recipe(), scheme="repr", seed=0, out=tmp_path) == result
    assert f"{folder / 'environment.json'}: is damaged; the run is gone on with" in caplog.text
    assert "torch" in read_json(folder / "environment.json")
    for name in ("result.json", "result.json.sha256"):  # and one that is not finished
        (folder / name).unlink()
    (folder / "environment.json").write_text(f'{{"resumed": {resumed}}}')
    assert train(recipe(), scheme="repr", seed=0, out=tmp_path)["fingerprint"] == result["fingerprint"]


def test_what_a_killed_process_was_writing_goes(tmp_path):
    folder = folder_at(tmp_path)
    for name in ("error.txt", "last.pt.sha256", "recipe.yaml"):
        (folder.path / f"{name}.0123abcd-99.tmp").touch()
    folder.open(RECIPE, resume=True)
    assert [path.name for path in folder.path.iterdir()] == ["recipe.yaml"]


def test_a_log_that_is_finished_while_it_is_read_is_not_damaged(tmp_path, monkeypatch):
    folder = folder_at(tmp_path)
    save(folder, 1)
    real, reads = reading.bytes_of, []

    def read(path):
        data = real(path)
        reads.append(path.name)
        if len(reads) == 1:
            save(folder, 2)
            folder.finish({})
        return data

    monkeypatch.setattr(reading, "bytes_of", read)
    assert [line["epoch"] for line in read_metrics(folder.path)] == [1, 2]
    reads.clear()
    monkeypatch.setattr(reading, "bytes_of", lambda path: reads.append(path.name) or real(path))
    read_metrics(folder.path)
    assert reads == ["metrics.jsonl"]
