from datetime import date

import pytest

from torchreaper.lab.data import DataSpec
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import parse

FOLDER = {"name": "folder", "train": "a", "test": "b"}
PARQUET = {"name": "parquet", "train": "a", "test": "b"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"name": "digit"},
            "data.name='digit': unknown data; did you mean 'digits'? known: digits, folder, parquet, hub, "
            "package.module:callable",
        ),
        ({"name": "digits", "train": "x"}, "data.train='x': has no effect with name='digits'; leave it out"),
        ({"name": "digits", "label": "y"}, "data.label='y': has no effect with name='digits'; leave it out"),
        ({"name": "parquet", "train": "x"}, "data.test: is missing; name='parquet' needs it"),
        ({**PARQUET, "hub": "x"}, "data.hub='x': has no effect with name='parquet'; leave it out"),
        ({"name": "hub"}, "data.hub: is missing; name='hub' needs it"),
        ({**PARQUET, "limit": 0}, "data.limit=0: must be at least 1"),
        ({**PARQUET, "test_limit": 0}, "data.test_limit=0: must be at least 1"),
        ({**PARQUET, "validation": -1}, "data.validation=-1: must be at least 0"),
        ({**PARQUET, "limits": 3}, "data.limits: unknown key; did you mean data.limit?"),
        ({"name": "folder", "train": "x"}, "data.test: is missing; name='folder' needs it"),
        ({**FOLDER, "label": "x"}, "data.label='x': has no effect with name='folder'; leave it out"),
        ({**FOLDER, "options": {"a": 1}}, "data.options={'a': 1}: has no effect with name='folder'; leave it out"),
        ({"name": "digits", "size": 8}, "data.size=8: has no effect with name='digits'; leave it out"),
        ({"name": "digits", "memory": False}, "data.memory=False: digits are always in memory; leave it out"),
        (
            {**FOLDER, "workers": 4},
            "data.workers=4: has no effect with memory=True; leave it out or set memory: false",
        ),
        ({**FOLDER, "memory": 0}, "data.memory=0: must be true or false"),
        ({"name": "a.b:c", "train": "x"}, "data.train='x': has no effect with name='a.b:c'; leave it out"),
        (
            {"name": "a.b:c", "options": {"since": date(2020, 1, 1)}},
            "data.options={'since': datetime.date(2020, 1, 1)}: since must be text, a number, true, false, null, or "
            "lists and mappings of those, not datetime.date(2020, 1, 1)",
        ),
        ({"name": "digits", "classes": "ab"}, "data.classes='ab': must be a list of names"),
        ({"name": "digits", "classes": 3}, "data.classes=3: must be a list of names"),
        (
            {**PARQUET, "judge": "validation"},
            "data.judge='validation': needs something held out to judge on; set validation to how much",
        ),
        ({**PARQUET, "judge": "train"}, "data.judge='train': must be 'test' or 'validation'"),
        ({**PARQUET, "label_noise": 1.0}, "data.label_noise=1.0: must be less than 1"),
        ({**PARQUET, "label_noise": -0.1}, "data.label_noise=-0.1: must be at least 0"),
        (
            {**PARQUET, "split_seed": 3},
            "data.split_seed=3: has no effect without limit, test_limit, validation or label_noise",
        ),
    ],
)
def test_wrong_settings_are_refused_in_one_line(values, message):
    with pytest.raises(UserError) as caught:
        parse(DataSpec, values, at="data")
    assert str(caught.value) == message


def test_a_spec_is_a_key():
    assert len({parse(DataSpec, PARQUET), parse(DataSpec, PARQUET), DataSpec(name="digits")}) == 2
    own = {"name": "a.b:c", "options": {"sizes": [1, {"x": None}]}}
    assert len({parse(DataSpec, own), parse(DataSpec, own), parse(DataSpec, {"name": "a.b:c"})}) == 2


def test_the_seed_of_the_noise_may_be_chosen_without_anything_else():
    assert parse(DataSpec, {**PARQUET, "label_noise": 0.1, "split_seed": 3}).split_seed == 3


@pytest.mark.parametrize("values", [PARQUET, FOLDER, {"name": "a.b:c", "options": {"x": 1}}, {"name": "digits"}])
def test_a_spec_reads_itself_back(values):
    spec = parse(DataSpec, values)
    assert parse(DataSpec, spec.model_dump(mode="json")) == spec
