"""Whatever one key of a config is set to, `validate` accepts it or says in a sentence why not, in milliseconds."""

import functools
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainldm.runtime.errors import UserError
from brainldm.training.config import CONFIGS, _items, validate
from brainldm.training.config_files import packaged_configs
from brainldm.training.config_rules import RULES
from brainldm.training.flags import load_config
from brainldm.training.stages import stage_class

ODD = st.sampled_from(
    [None, True, False, "", "x", "nan", "-1", "learned", "a\nb", "\0", "x" * 5000, b"x", object(), 1j, {}, {"a": 1}]
    + [0, -1, 1, 2, 3, 7, 10**6, 2**31, 2**63, 10**30, 10**400, -(10**20), 0.0, -0.0, 0.5, 1.0, 1.5, -1.0]
    + [1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf, (), (0,), (-1,), (1, 2), (2, 1), (0.2, 0.8), (1, 1)]
    + [(math.nan, 1.0), (0.0, math.inf), (1,) * 2000, ("x",), (None,), ((),), (True, False), ("age", "age"), ("x=1:2",)]
    + [("x=", "=="), ("a|b",), ("x=a|a",), ("participant_id=0:1",), (("(", "fsdp"),), (("x", "y"),), [[]]]
)


@functools.cache
def tiny_configs():
    found = {}
    for name in packaged_configs():
        config = load_config(f"{name}:tiny", {"data.path": "people"})
        found[name] = config.copy_and_resolve_references()
    return found


def tried(config, key, value):
    """The config with one value, set without the types that ml_collections looks at."""
    changed = config.copy_and_resolve_references().unlock()
    *holders, name = key.split(".")
    target = changed
    for holder in holders:
        target = target[holder]
    target._fields[name] = value
    return changed.lock()


def test_every_key_has_a_rule():
    for stage, make in CONFIGS.items():
        keys = {key for key, _ in _items(make()) if not key.startswith("covariates.ranges.")}
        assert keys == set(RULES[stage])


@pytest.mark.parametrize("stage", ["0", "gan", "", None, ("diffusion",)])
def test_a_stage_that_there_is_not_is_named(stage):
    with pytest.raises(UserError, match="config.stage is .*autoencoder or diffusion"):
        stage_class(tried(tiny_configs()["demo_ldm"], "stage", stage))


@settings(derandomize=True, max_examples=1500, deadline=None, database=None)
@given(data=st.data())
def test_one_odd_value_is_accepted_or_refused_in_a_sentence(data):
    configs = tiny_configs()
    config = configs[data.draw(st.sampled_from(sorted(configs)))]
    key = data.draw(st.sampled_from([key for key, _ in _items(config)]))
    began, value = time.thread_time(), data.draw(ODD)
    try:
        validate(tried(config, key, value))
        assert not isinstance(value, float) or math.isfinite(value)
    except UserError as error:
        assert len(str(error)) < 1000 and "\n" not in str(error)
    assert time.thread_time() - began < 1  # of the processor: others may use it, too
