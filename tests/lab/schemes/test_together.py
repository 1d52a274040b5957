"""Schemes together: which can be, in what order, with which options, and one line for what is wrong."""

import json
import re
from itertools import combinations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.lab.schemes.setups import hooks_on, network, setup, train_epoch, train_step
from tests.lab.tiny import TINY, recipe

from torchreaper.lab import settings
from torchreaper.lab.errors import UserError
from torchreaper.lab.inspection import inspect
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.schemes import SCHEMES, Attached, Spec, TogetherSpec, options_of, parse

TEACHER = {"model": {"name": "cnet", "options": {"depth": 2, "width": 8}}, "epochs": 2}
NEEDED = {
    "kd": {"teacher": TEACHER},
    "self-kd": {"start": 1},
    "repr": {"full": 1, "sub": 1, "cycles": 1},
    "dsd": {"dense": 1, "sparse": 1},
}
ALONE = {
    **dict.fromkeys(combinations(["repr", "dsd", "ban", "sfp", "grafting"], 2), "weights"),
    ("ban", "kd"): "the teacher",
    ("ban", "self-kd"): "the teacher",
    ("kd", "self-kd"): "the teacher",
    ("ban", "ema"): "the average",
    ("ban", "swa"): "the average",
    ("ban", "longer"): "the epochs",
    ("ban", "shorter"): "the epochs",
    ("longer", "shorter"): "the epochs",
    ("ema", "swa"): "the average",
    ("mixup", "cutmix"): "the images",
}
KEYS = [key for key in SCHEMES if key != "standard"]


def together(*keys, **options):
    return parse({"name": "+".join(keys), "parts": {k: v for k, v in (NEEDED | options).items() if k in keys}})


@pytest.mark.parametrize(("first", "second"), list(combinations(KEYS, 2)))
def test_pairs_that_change_the_same_are_refused_and_all_others_taken(first, second):
    thing = ALONE.get((first, second)) or ALONE.get((second, first))
    if thing is None:
        together(first, second).check(100)
        return
    text = f"scheme='{first}+{second}': {first} and {second} cannot be combined, both change {thing}; leave one out"
    with pytest.raises(UserError) as error:
        together(first, second).check(100)
    assert str(error.value) == text


def test_standard_is_nothing_to_add():
    with pytest.raises(UserError, match=r"^scheme='standard\+ema': standard is what there is without a scheme"):
        parse({"name": "standard+ema"}).check(10)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "repr+rep"}, "scheme.parts.rep.name='rep': unknown scheme; did you mean 'repr'?"),
        ({"name": "repr+"}, "scheme.name='repr+': a scheme is missing beside a plus sign; such as repr+kd"),
        ({"name": "ema+ema"}, "scheme.name='ema+ema': ema stands there twice; name each once"),
        ({"name": "repr+kd", "fraction": 0.2}, "scheme.fraction: unknown key; options belong under scheme.parts.<"),
        ({"name": "repr+kd", "parts": []}, "scheme.parts=[]: must be a mapping of schemes to their options"),
        ({"name": "repr+kd", "parts": {"kd": 3}}, "scheme.parts={'kd': 3}: must be a mapping of schemes to"),
        ({"name": "repr+kd", "parts": {"kdd": {}}}, "scheme.parts.kdd: is not in 'repr+kd'; did you mean 'kd'?"),
        ({"name": "repr+kd", "parts": {"kd": {"weight": 2}}}, "scheme.parts.kd.weight=2: must be at most 1"),
        ({"name": "repr+kd", "parts": {"repr": {"fration": 1}}}, "scheme.parts.repr.fration: unknown key; did you"),
        ({"name": "repr+kd", "parts": {"kd": {"teacher": {"epochs": 2}}}}, "scheme.parts.kd.teacher.model: is missing"),
    ],
)
def test_what_is_wrong_is_named(options, text):
    with pytest.raises(UserError) as error:
        parse(options)
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


def read(**changes):
    return settings.parse(Recipe, {**TINY, **changes})


def test_the_place_in_a_recipe_is_named_too():
    with pytest.raises(UserError, match=r"^schemes\.repr\+kd\.parts\.kd\.temperature=-1: must be greater than 0"):
        read(schemes={"repr+kd": {"parts": {"kd": {"teacher": TEACHER, "temperature": -1}}}})
    bad = {"model": {"name": "cnet", "options": {"depth": -2}}}
    with pytest.raises(UserError, match=r"^schemes\.repr\+kd: scheme\.teacher: model\.options\.depth=-2: "):
        read(schemes={"repr+kd": {"parts": {"kd": {"teacher": bad}}}})
    with pytest.raises(UserError, match=r"^schemes\.ema\+swa: scheme='ema\+swa': ema and swa cannot be combined"):
        read(schemes={"ema+swa": {}})


def test_a_part_asks_for_the_epochs_that_there_will_be():
    spec = together("repr", "longer", repr={"full": 2, "sub": 2, "cycles": 2}, longer={"factor": 2.0})
    spec.check(5)  # ten, of which RePr needs nine
    assert spec.lengths(5) == (10,)
    with pytest.raises(UserError, match="need 8 epochs, the recipe has 6"):
        spec.check(3)
    spec = together("shorter", "repr", repr={"full": 2, "sub": 2, "cycles": 8}, shorter={"factor": 0.4})
    said = "need 32 epochs, the recipe has 16; raise epochs or lower cycles (it has 40, of which shorter makes 16)"
    with pytest.raises(UserError, match=re.escape(said)):
        spec.check(40)
    spec = together("ban", "mixup")
    assert spec.lengths(10) == (3, 3, 4)


options = st.fixed_dictionaries({}, optional={"decay": st.floats(0.1, 0.9)})
rhos = st.fixed_dictionaries({}, optional={"rho": st.floats(0.01, 1)})


@given(own=options, others=st.none() | options, here=st.none() | options, rho=st.none() | rhos, where=st.booleans())
def test_options_come_from_parts_then_the_recipes_scheme_then_its_schemes_then_the_defaults(
    own, others, here, rho, where
):
    scheme = {"name": "ema", **own} if where else {"name": "standard"}
    schemes = {} if others is None else {"ema": others}
    if rho is not None:
        schemes["sam"] = rho
    if here is not None:
        schemes["ema+sam"] = {"parts": {"ema": here}}
    expected = here if here is not None else own if where else (others or {})
    spec = parse(options_of("ema+sam", scheme, schemes))
    assert spec.parts["ema"] == parse({"name": "ema", **expected})
    assert spec.parts["sam"] == parse({"name": "sam", **(rho or {})})


@given(
    keys=st.lists(st.sampled_from(KEYS), min_size=2, max_size=4, unique=True),
    own=st.booleans(),
    parts=st.booleans(),
)
def test_a_recipe_is_what_it_says_of_itself(keys, own, parts):
    assume(not any({*pair} <= {*keys} for pair in ALONE))
    name = "+".join(keys)
    chosen = {key: NEEDED.get(key, {}) for key in keys} if parts else {}
    schemes = {key: options for key, options in NEEDED.items() if key != "repr"}
    section = {"parts": chosen} if parts else {}
    # So many that half of them are enough for `swa+shorter`.
    if own:
        what = recipe(epochs=16, scheme={"name": name, **section}, schemes={**schemes, "repr": NEEDED["repr"]})
    else:
        what = recipe(epochs=16, scheme={"name": "repr", **NEEDED["repr"]}, schemes={**schemes, name: section})
    plain = json.loads(json.dumps(what.canonical()))
    again = Recipe.model_validate(plain)
    assert again == what
    assert again.fingerprint() == what.fingerprint()
    spec = what.scheme_spec(name)
    assert isinstance(spec, TogetherSpec)
    assert again.scheme_spec(name) == spec
    assert parse(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec
    assert list(spec.parts) == keys


class Noted(Attached):
    """Writes down what is asked of it."""

    def __init__(self, key, log):
        self.key, self.log = key, log

    def loss(self, batch, loss):
        self.log.append((self.key, "loss"))
        return loss

    def stepped(self, batch):
        self.log.append((self.key, "stepped"))

    def ended(self, epoch):
        self.log.append((self.key, f"ended {epoch}"))

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.log.append((self.key, f"loaded {state['epoch']}"))

    def close(self):
        self.log.append((self.key, "closed"))


def noted(key, place, log):
    class NotedSpec(Spec):
        turn = place
        name: str = key

        def attach(self, setup):
            log.append((key, "attached"))
            return Noted(key, log)

    return NotedSpec()


def test_they_are_attached_by_turns_and_work_in_the_order_of_their_names():
    log = []
    spec = TogetherSpec(name="late+early", parts={"late": noted("late", 2, log), "early": noted("early", 0, log)})
    on = setup(network())
    scheme = spec.attach(on)
    images, targets = next(on.drawn(0, 1))
    train_step(scheme, on, images, targets)
    scheme.step()
    scheme.load_state_dict(scheme.state_dict())
    scheme.close()
    assert log == [
        *(("early", "attached"), ("late", "attached")),
        *(("late", "loss"), ("early", "loss"), ("late", "stepped"), ("early", "stepped")),
        *(("late", "ended 1"), ("early", "ended 1"), ("early", "loaded 1"), ("late", "loaded 1")),
        *(("late", "closed"), ("early", "closed")),
    ]


def test_what_one_part_changes_the_whole_has():
    on = setup(network(), teacher=network(seed=1).eval())
    keys = ("repr", "label-smoothing", "ema", "dropout", "kd", "sam", "mixup", "ol")
    scheme = together(*keys, repr={"full": 1, "sub": 1, "cycles": 1, "fraction": 0.4}).attach(on)
    assert (scheme.label_smoothing, scheme.lr_factor, scheme.phase, scheme.network) == (0.1, 1.0, "full", None)
    assert scheme.bank is not None
    train_epoch(scheme, on)
    transition = scheme.step()
    assert transition.kind == "drop"
    assert scheme.phase == "sub"
    assert scheme.dropped == {name: tuple(filters) for name, filters in transition.filters.items() if filters}
    assert scheme.network is not None
    assert not scheme.counts
    train_epoch(scheme, on)
    assert scheme.step().kind == "restore"
    assert scheme.counts
    scheme.close()
    assert hooks_on(on.model) == hooks_on(scheme.network) == 0
    spec = together("dsd", "label-smoothing", dsd={"dense": 1, "sparse": 1, "cycles": 1, "final_lr": 0.2})
    on = setup(network(torch.float32))
    scheme = spec.attach(on)
    for _ in range(2):
        train_epoch(scheme, on)
        scheme.step()
    assert scheme.lr_factor == 0.2


def test_inspect_previews_repr_with_its_own_options_alone_and_together():
    def gone(**changes):
        _, preview = inspect(recipe(**changes))
        return sum(map(len, preview.filters.values()))

    alone = gone(scheme={"name": "repr", "full": 1, "sub": 1, "cycles": 1, "fraction": 0.6})
    options = {"repr": {"full": 1, "sub": 1, "cycles": 1, "fraction": 0.6}}
    assert gone(scheme={"name": "ol+repr", "parts": options}) == alone == 3
    assert gone(scheme={"name": "sfp", "fraction": 0.6}) == gone(scheme={"name": "standard"}) == 1
