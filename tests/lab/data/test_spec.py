import pytest

from torchreaper.lab.data import DataSpec
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import parse

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
        ({**PARQUET, "split_seed": 3}, "data.split_seed=3: has no effect without limit, test_limit or validation"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(values, message):
    with pytest.raises(UserError) as caught:
        parse(DataSpec, values, at="data")
    assert str(caught.value) == message


def test_a_spec_is_a_key():
    assert len({parse(DataSpec, PARQUET), parse(DataSpec, PARQUET), DataSpec(name="digits")}) == 2
