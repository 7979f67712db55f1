"""docs/reliability.md names tests, and they are there."""

import ast
import re


def test_every_promise_names_a_test_that_exists(repository):
    page = (repository / "docs/reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", page)
    assert len(named) > 30
    for file, name in named:
        tree = ast.parse((repository / "tests" / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
    for line in page.splitlines():
        if line.startswith("| ") and "proved by" not in line:
            assert "::" in line, f"no test: {line}"
