"""How the house is laid out, measured from its imports: rooms, arrows, circles, arrows up.

    python launch/house.py [PACKAGE]      the table; exit code 1 when something is not as it should be

A room is a folder or a file directly under brainldm/. An arrow goes from a room to each room that it imports. Arrows
point down the list ROOMS; no room imports itself in a circle of files; no room holds more than a sixth of the lines.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "brainldm"

ROOMS = (
    ("__main__", "train", "bids_app"),
    ("cli",),
    ("commands",),
    ("planning",),
    ("release",),
    ("training",),
    ("generation",),
    ("evaluation",),
    ("fingerprint",),
    ("population",),
    ("preparation",),
    ("data",),
    ("weights",),
    ("datasets",),
    ("volumes",),
    ("models",),
    ("diffusion",),
    ("parallel",),
    ("reports",),
    ("runtime",),
    ("__init__",),
)
"""From top to bottom; rooms of one line may import each other."""

LARGEST_SHARE = 1 / 6
LONGEST_FILE = 400


def main(package: Path = PACKAGE) -> int:
    """Print the table of the rooms of a package folder and return the exit code."""
    lines, imports = _read(package)
    floor = {room: number for number, names in enumerate(ROOMS) for room in names}
    arrows = {(_room(a), _room(b)) for a, names in imports.items() for b in names if _room(a) != _room(b)}
    total = sum(lines.values())
    shares = {room: sum(n for name, n in lines.items() if _room(name) == room) / total for room in floor}
    unknown = sorted({_room(name) for name in lines} - set(floor))
    up = sorted((a, b) for a, b in arrows if floor.get(a, 0) > floor.get(b, 0))
    circles = _circles(imports)
    long = {name: count for name, count in lines.items() if count > LONGEST_FILE}
    wide = {room: share for room, share in shares.items() if share > LARGEST_SHARE}

    for names in ROOMS:
        for room in names:
            to = ", ".join(sorted(b for a, b in arrows if a == room))
            print(f"{room:<12} {shares[room]:6.1%}  -> {to}")
    print(f"{len(floor)} rooms, {len(arrows)} arrows, {len(lines)} files, {total} lines")
    faults = {
        "rooms that the list does not have": unknown,
        "arrows up": [f"{a} -> {b}" for a, b in up],
        "circles": [" -> ".join(circle) for circle in circles],
        f"files over {LONGEST_FILE} lines": [f"{name} {count}" for name, count in long.items()],
        "rooms over a sixth of the lines": [f"{room} {share:.1%}" for room, share in wide.items()],
    }
    for what, found in faults.items():
        print(f"{what}: {'; '.join(found) or 'none'}")
    return int(any(faults.values()))


def _read(package: Path) -> tuple[dict[str, int], dict[str, set[str]]]:
    """Lines and imports of every module, by its dotted name below the package."""
    paths = {_name(path.relative_to(package)): path for path in sorted(package.rglob("*.py"))}
    lines, imports = {}, {}
    for name, path in paths.items():
        text = path.read_text()
        lines[name] = len(text.splitlines())
        imports[name] = {found for found in _imported(ast.parse(text)) if found in paths and found != name}
    return lines, imports


def _name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _room(name: str) -> str:
    return name.partition(".")[0]


def _imported(tree: ast.Module) -> Iterator[str]:
    """Every name below brainldm that an import statement could mean, also inside functions, not for types alone."""
    for node in _nodes(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").partition(".")[0] == "brainldm":
            base = (node.module or "").removeprefix("brainldm").lstrip(".")
            yield base or "__init__"
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("brainldm").lstrip(".") or "__init__"
                for alias in node.names
                if alias.name.partition(".")[0] == "brainldm"
            )


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree, less what stands under `if TYPE_CHECKING`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _nodes(child)


def _circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """One circle for every strongly connected group of files, and of rooms (Tarjan 1972)."""
    rooms: dict[str, set[str]] = {}
    for name, found in imports.items():
        rooms.setdefault(_room(name), set()).update(_room(other) for other in found if _room(other) != _room(name))
    return [sorted(group) for graph in (imports, rooms) for group in _groups(graph) if len(group) > 1]


def _groups(graph: dict[str, set[str]]) -> list[set[str]]:
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[set[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph.get(name, ()):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = set()
            while name not in group:
                group.add(stack.pop())
            groups.append(group)

    for name in graph:
        if name not in index:
            visit(name)
    return groups


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
