"""The argument of a config file, `FILE.py:ARG`: typed, and what is unknown is refused (the idea of big_vision)."""

from __future__ import annotations

import difflib
from types import SimpleNamespace
from typing import Any

from brainldm.runtime.errors import UserError


def parse_arg(arg: str, **defaults: Any) -> SimpleNamespace:
    """The parts of `arg` as attributes: `parse_arg("tiny,spacing=2", tiny=False, spacing=4)` has tiny True, spacing 2.

    Each keyword is a part with its default, whose type (bool, int, float or str) its values have; a tuple holds the
    choices of a string, the first of which is the default. Parts are divided by commas, and a bool may leave out
    `=true`. Raises UserError for a part that is not among them (the nearest one is named), one given twice, and a
    value of another type or outside the choices.
    """
    values = {name: default[0] if isinstance(default, tuple) else default for name, default in defaults.items()}
    given = set()
    for part in filter(None, (text.strip() for text in (arg or "").split(","))):
        name, equals, text = part.partition("=")
        if name not in defaults:
            raise UserError(f"the config has no argument {name!r}.{_known(name, defaults)}")
        if name in given:
            raise UserError(f"the config's argument {name!r} is given twice.")
        given.add(name)
        values[name] = _value(name, text if equals else None, defaults[name])
    return SimpleNamespace(**values)


def _value(name: str, text: str | None, default: Any) -> Any:
    if isinstance(default, bool):
        found = {None: True, "true": True, "1": True, "false": False, "0": False}.get(text and text.lower())
        wanted = "true or false"
    elif isinstance(default, tuple):
        found, wanted = (text if text in default else None), f"one of {', '.join(default)}"
    else:
        kind = type(default)
        wanted = {int: "a whole number", float: "a number"}.get(kind, "a text")
        try:
            found = None if text is None else kind(text)
        except ValueError:
            found = None
    if found is None:
        got = "has no value" if text is None else f"is {text!r}"
        raise UserError(f"the config's argument {name!r} {got}; {wanted} is wanted, as in {name}=VALUE.")
    return found


def _known(name: str, defaults: dict[str, Any]) -> str:
    if not defaults:
        return " It takes none."
    near = difflib.get_close_matches(name.lower(), defaults, 1)
    return (f" Did you mean {near[0]!r}?" if near else "") + f" It takes {', '.join(defaults)}."
