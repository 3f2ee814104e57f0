"""What may import what: dependencies point one way, and optional libraries stay optional."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONAL, MODULES = "hmm_functional", "pytorch_hmm"

# A module imports from its own layer and those before it. An entry stands for what lies below it, too, unless that
# has an entry of its own; "*" stands for the rest, "" for the package's __init__. "package.__init__" is that file.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("_types", "_check"),
    ("backend",),
    ("numerics",),
    ("semiring",),
    ("structure",),
    ("edges",),
    ("transition",),
    ("kernels.registry", "kernels.__init__"),
    ("recursion", "associative", "kernels"),
    ("*",),
    ("learning",),
    ("",),
)
# Stricter than their layer; each imports these, and itself.
ONLY = {"emissions": ("numerics", "backend", "_check", "_types", "kernels.gaussians")}
ARRAY_LIBRARIES = {"torch", "jax", "jaxlib", "triton", "array_api_compat.torch"}
ARRAY_LIBRARIES_IN = ("backend", "kernels")
OPTIONAL = {"jax", "jaxlib", "matplotlib", "librosa", "praatio", "soundfile", "tqdm"}


@dataclass(frozen=True)
class Import:
    line: int
    target: str
    is_deferred: bool
    """In a function's body."""
    is_typing_only: bool


@cache
def files(package: str) -> dict[str, Path]:
    """Files by module name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(module: str, path: Path) -> Iterator[Import]:
    """Absolute targets; `from a import b` is a.b where that is a module of ours, else a."""
    here = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    ours = files(FUNCTIONAL) | files(MODULES)

    def visit(node: ast.AST, is_deferred: bool, is_typing_only: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, is_deferred, is_typing_only)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            source = ".".join([*base, *((node.module or "").split(".") if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names]
            for target in dict.fromkeys(n if n in ours or n in ARRAY_LIBRARIES else source for n in names):
                yield Import(node.lineno, target, is_deferred, is_typing_only)
        elif is_type_checking(node):
            assert isinstance(node, ast.If)
            for child in node.body:
                yield from visit(child, is_deferred, True)
            for child in node.orelse:
                yield from visit(child, is_deferred, is_typing_only)
        else:
            inside = is_deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, inside, is_typing_only)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False, False)


def is_within(name: str, entry: str) -> bool:
    return name == entry or name.startswith(entry + ".")


def inner(module: str) -> str:
    """A module's name within hmm_functional, an __init__ below the top by its full name."""
    name = module.removeprefix(FUNCTIONAL).removeprefix(".")
    path = files(FUNCTIONAL).get(module)
    return f"{name}.__init__" if name and path is not None and path.name == "__init__.py" else name


def layer_of(name: str) -> int:
    matches = [(len(entry), i) for i, layer in enumerate(LAYERS) for entry in layer if entry and is_within(name, entry)]
    if matches:
        return max(matches)[1]
    rest = "*" if name else ""
    return next(i for i, layer in enumerate(LAYERS) if rest in layer)


def internal_imports() -> Iterator[tuple[str, str, Path, Import]]:
    for module, path in files(FUNCTIONAL).items():
        for found in imports(module, path):
            if is_within(found.target, FUNCTIONAL):
                yield inner(module), inner(found.target), path, found


def where(path: Path, found: Import) -> str:
    return f"{path.relative_to(ROOT)}:{found.line} imports {found.target}"


def test_dependencies_point_one_way() -> None:
    wrong = [
        where(path, found)
        for source, target, path, found in internal_imports()
        if not found.is_typing_only and layer_of(target) > layer_of(source)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {}
    for module, path in files(FUNCTIONAL).items():
        edges = graph.setdefault(module, set())
        for found in imports(module, path):
            if not is_within(found.target, FUNCTIONAL) or found.is_typing_only or found.is_deferred:
                continue
            parts = found.target.split(".")
            # importing a.b.c runs a and a.b first
            passed = {".".join(parts[: n + 1]) for n in range(len(parts))}
            edges |= {name for name in passed if not is_within(module, name)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


def test_emissions_see_only_numerics() -> None:
    wrong = [
        where(path, found)
        for source, target, path, found in internal_imports()
        for entry, allowed in ONLY.items()
        if is_within(source, entry) and not any(is_within(target, name) for name in (entry, *allowed))
    ]
    assert not wrong, "\n".join(wrong)


def test_functions_know_nothing_of_modules() -> None:
    wrong = [
        where(path, found)
        for module, path in files(FUNCTIONAL).items()
        for found in imports(module, path)
        if is_within(found.target, MODULES)
    ]
    assert not wrong, "\n".join(wrong)


def test_array_libraries_stay_in_their_rooms() -> None:
    wrong = [
        where(path, found)
        for module, path in files(FUNCTIONAL).items()
        for found in imports(module, path)
        if any(is_within(found.target, library) for library in ARRAY_LIBRARIES)
        and not any(is_within(inner(module), room) for room in ARRAY_LIBRARIES_IN)
    ]
    assert not wrong, "\n".join(wrong)


def present_packages() -> list[str]:
    return [package for package in (FUNCTIONAL, MODULES) if package in files(package)]


@pytest.mark.parametrize("are_blocked", [False, True], ids=["installed", "blocked"])
def test_import_needs_no_optional_library(are_blocked: bool) -> None:
    code = f"""
import sys, warnings
import array_api_compat, numpy, torch  # what these import is not our doing

optional = {sorted(OPTIONAL)}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in optional:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

before = set(sys.modules)
if {are_blocked}:
    for name in [n for n in sys.modules if n.partition(".")[0] in optional]:
        del sys.modules[name]
    sys.meta_path.insert(0, Blocker())
warnings.simplefilter("error")
for package in {present_packages()}:
    __import__(package)
found = sorted({{n.partition(".")[0] for n in set(sys.modules) - before}} & set(optional))
if found:
    sys.exit(f"imported: {{found}}")
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_every_folder_is_a_package() -> None:
    missing = {
        str(path.parent.relative_to(ROOT))
        for package in present_packages()
        for path in files(package).values()
        if not (path.parent / "__init__.py").exists()
    }
    assert not missing


def test_public_functions_say_what_they_return() -> None:
    if FUNCTIONAL not in present_packages():
        return
    package = importlib.import_module(FUNCTIONAL)
    public = {name: getattr(package, name) for name in getattr(package, "__all__", ())}
    silent = [
        name
        for name, value in public.items()
        if inspect.isfunction(value) and not re.search(r"^\s*Returns:", value.__doc__ or "", re.M)
    ]
    assert not silent
