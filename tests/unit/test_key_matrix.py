"""No key is decoration: each acts and is shown to act, or says in a sentence why it does not."""

from pathlib import Path

import pytest

from danlu.core import schema
from tests.key_effects import BEYOND, EFFECTS, PROVEN_BY, RESOURCES

ROOT = Path(__file__).resolve().parents[2]
ACTIVE = sorted(key for key, spec in schema.keys().items() if spec["x-status"] == "active")


@pytest.mark.parametrize("key", ACTIVE)
def test_every_active_key_is_shown_to_act(key: str) -> None:
    """A key with one value only, all others refused by name, cannot act and need not."""
    spec = schema.keys()[key]
    tables = [name for name, table in (
        ("EFFECTS", EFFECTS), ("PROVEN_BY", PROVEN_BY), ("RESOURCES", RESOURCES), ("BEYOND", BEYOND)) if key in table]
    if len(spec.get("enum", ())) == 1:
        assert spec["x-refused"] and not tables
    else:
        assert len(tables) == 1, f"say in tests/key_effects.py how {key} is shown to change a run; found in {tables}"


def test_the_tables_name_active_keys_only() -> None:
    named = [*EFFECTS, *PROVEN_BY, *RESOURCES, *BEYOND]
    assert len(named) == len(set(named))
    assert not sorted(set(named) - set(ACTIVE))
    for key, effect in EFFECTS.items():
        assert key in effect.given, key


@pytest.mark.parametrize(("key", "path"), sorted(PROVEN_BY.items()))
def test_the_tests_named_exist_and_use_the_key(key: str, path: str) -> None:
    assert key in (ROOT / path).read_text("utf-8")


def test_every_other_key_says_why() -> None:
    """A sentence, not a word; aliases lead somewhere."""
    for key, spec in schema.keys().items():
        if spec["x-status"] in ("no_effect", "out_of_scope"):
            assert len(spec["x-notice"].split()) >= 3, key
