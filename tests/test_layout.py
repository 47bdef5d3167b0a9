"""The house: floors, who may know asyncio, what an import costs, and that everything says what it is for."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import trioagg

PACKAGE = Path(trioagg.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
FOREIGN = {"asyncio", "aiokafka", "trio_asyncio"}


def tree_of(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def floor_plan() -> list[list[str]]:
    """The floors of the comment in ``trioagg/__init__.py``, each from left to right; a name may end with a star."""
    floors = []
    for line in (trioagg.__doc__ or "").splitlines():
        if found := re.match(r" {4}(\d+)  (\S.*)", line):
            assert int(found[1]) == len(floors), "the floors are numbered from below"
            floors.append(re.split(r" {2,}", found[2])[0].split())
    return floors


def place_of(module: str) -> tuple[int, int]:
    places = [
        (floor, place)
        for floor, patterns in enumerate(floor_plan())
        for place, pattern in enumerate(patterns)
        if fnmatchcase(module, pattern)
    ]
    assert len(places) == 1, f"{module} must have one place in the floor plan and has {len(places)}"
    return places[0]


def own_imports(module: str) -> set[str]:
    """The modules of ours that a module imports, anywhere in it and for type checking too."""
    names = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom):
            if node.level == 1:
                names |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
            elif (node.module or "").split(".")[0] == "trioagg":
                names |= {(node.module + ".").split(".")[1]}
        elif isinstance(node, ast.Import):
            names |= {(alias.name + ".").split(".")[1] for alias in node.names if alias.name.split(".")[0] == "trioagg"}
    assert "" not in names, f"{module} imports the package as a whole"
    return names


def test_every_module_has_a_place_and_every_place_a_module() -> None:
    for module in MODULES:
        place_of(module)
    for pattern in [pattern for floor in floor_plan() for pattern in floor]:
        assert any(fnmatchcase(module, pattern) for module in MODULES), f"there is no {pattern}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward_or_to_the_left_on_the_same_floor(module: str) -> None:
    for other in own_imports(module):
        # One place may be a family: _kafka* is several modules.
        assert place_of(other) <= place_of(module), f"{module} imports {other}"


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {module: own_imports(module) for module in MODULES}
    while leaves := [module for module, others in graph.items() if not others & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert not graph


@pytest.mark.parametrize("module", MODULES)
def test_only_the_bridge_knows_asyncio(module: str) -> None:
    imported = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            imported.add(node.module.split(".")[0])
    if module != "_aio" and not module.startswith("_kafka"):
        assert not imported & FOREIGN


@pytest.mark.parametrize("module", ["_collector", "_errors", "_records", "_encoding", "_stations", "_watermark"])
def test_the_modules_without_io_do_not_know_trio(module: str) -> None:
    source = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) (trio|time|threading|socket)\b", source, re.MULTILINE)


def test_an_import_brings_no_client_and_starts_nothing() -> None:
    code = """
import json, logging, multiprocessing, sys, threading
before = set(threading.enumerate())
import trioagg
print(json.dumps({
    "foreign": sorted({"aiokafka", "trio_asyncio"} & set(sys.modules)),
    "threads": len(set(threading.enumerate()) - before),
    "processes": len(multiprocessing.active_children()),
    "handlers": len(logging.getLogger("trioagg").handlers) + len(logging.getLogger().handlers),
    "level": logging.getLogger("trioagg").level,
}))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout) == {"foreign": [], "threads": 0, "processes": 0, "handlers": 0, "level": 0}


@pytest.mark.parametrize("module", ["__init__", *MODULES])
def test_every_module_says_what_it_is_for(module: str) -> None:
    docstring = ast.get_docstring(tree_of(module))
    assert docstring
    assert len(docstring.splitlines()[0]) > 20


def test_the_public_names_are_sorted_and_are_there() -> None:
    assert list(trioagg.__all__) == sorted(trioagg.__all__)
    assert all(hasattr(trioagg, name) for name in trioagg.__all__)


@pytest.mark.parametrize("name", trioagg.__all__)
def test_every_public_name_says_what_it_is(name: str) -> None:
    thing = getattr(trioagg, name)
    assert (thing.__doc__ or "").strip(), f"{name} has no docstring"
    if inspect.isclass(thing):
        generated = f"{name}("  # what a dataclass writes by itself
        assert not thing.__doc__.startswith(generated)
        for member_name, member in vars(thing).items():
            if not member_name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                assert (member.__doc__ or "").strip(), f"{name}.{member_name} has no docstring"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_a_heap(module: str) -> None:
    assert not re.search("util|common|base|manager|helper|misc", module)
