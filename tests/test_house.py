"""The house rules: what is declared, pinned and documented fits together, and imports run downwards only."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "minidet"
NOTEBOOKS = [
    path
    for part in ("chapters", "chapters/solutions", "tests/notebooks")
    for path in sorted((ROOT / part).glob("*.ipynb"))
]

# The order of design: a part imports from the rows above its own, never from its own row or below.
LAYERS = [
    ["errors"],
    ["files", "settings"],
    ["boxes", "layers"],
    ["grid", "losses", "data"],
    ["assign"],
    ["detectors", "draw"],
    ["evaluation", "export"],
    ["explore"],
    ["training", "exercises"],
    ["bench"],
    ["__init__"],  # the public names; no part takes its tools from here
    ["cli"],
    ["__main__"],
]
ROW = {part: row for row, parts in enumerate(LAYERS) for part in parts}
# Who may know the libraries that only pictures and widgets need.
KNOWN_BY = {
    "matplotlib": {"draw", "explore"},
    "ipywidgets": {"explore"},
    "anywidget": {"explore"},
    "cv2": {"data"},  # reads and paints training pictures
}


# ---- what is installed ----------------------------------------------------------------------------------------------


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def direct_dependencies() -> list[Requirement]:
    project = pyproject()["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in project["dependencies"] + extras]


def pins(python: str) -> dict[str, list[str]]:
    """The pinned versions of every package in constraints.txt that hold for one version of Python, by name."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            (specifier,) = pin.specifier
            assert specifier.operator == "==", f"constraints.txt: '{line}' is not an exact version"
            if pin.marker is None or pin.marker.evaluate({"python_full_version": python}):
                found.setdefault(canonicalize_name(pin.name), []).append(specifier.version)
    return found


@pytest.mark.parametrize("python", ["3.10.0", "3.11.2", "3.11.9", "3.13.0", "3.14.0"])
def test_every_dependency_is_pinned_once_to_a_version_that_pyproject_allows(python):
    pinned = pins(python)
    assert {name: versions for name, versions in pinned.items() if len(versions) != 1} == {}
    for dependency in direct_dependencies():
        name = canonicalize_name(dependency.name)
        assert name in pinned, f"constraints.txt has no pin for {name} on Python {python}"
        assert dependency.specifier.contains(pinned[name][0]), f"{name}=={pinned[name][0]} does not fit {dependency}"


def test_conda_users_get_the_same_python_bound_the_same_packages_and_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, from_pip = environment["dependencies"]
    lowest = pyproject()["project"]["requires-python"]

    assert environment["name"] == "minidet"
    assert pip == "pip"
    assert lowest in re.fullmatch(r"python(.*)", python).group(1).split(",")

    constraints, editable = from_pip["pip"]
    assert constraints == "-c constraints.txt"
    path, extras = re.fullmatch(r"-e (.*)\[(.*)\]", editable).groups()
    assert path == "."  # so every name comes from pyproject.toml itself
    assert set(extras.split(",")) == set(pyproject()["project"]["optional-dependencies"])


def test_the_workflow_runs_on_three_systems_and_on_the_oldest_python_that_is_promised():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    promised = SpecifierSet(pyproject()["project"]["requires-python"])

    assert [system.split("-")[0] for system in matrix["os"]] == ["ubuntu", "macos", "windows"]
    assert f">={min(matrix['python'], key=lambda version: int(version.split('.')[1]))}" == str(promised)


def test_every_hook_runs_without_a_network():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in hooks["repos"]] == ["local"]
    assert {hook["language"] for repository in hooks["repos"] for hook in repository["hooks"]} == {"system"}


# ---- make -----------------------------------------------------------------------------------------------------------


def run_make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    if sys.platform == "win32" or shutil.which("make") is None:
        pytest.skip("make is not on this machine")
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def clone(tmp_path):
    """A folder with the Makefile and a stand-in for .venv/bin/python that only writes down how it was called."""
    for name in ["Makefile", "pyproject.toml", "constraints.txt"]:
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" >> calls\ncase "$*" in *install*) test ! -e offline ;; esac\n')
    python.chmod(0o755)
    return tmp_path


def installations(clone: Path) -> int:
    calls = clone / "calls"
    return calls.read_text().count("-m pip install -c constraints.txt -e .[notebooks,test]") if calls.exists() else 0


def age(clone: Path) -> None:
    """Makes everything a minute older, so that what is written next is newer whatever the clock's resolution."""
    for path in [*clone.iterdir(), clone / ".venv" / "installed-from"]:
        seconds = path.stat().st_mtime - 60
        os.utime(path, (seconds, seconds))


def test_setup_installs_once_and_again_only_when_what_it_needs_has_changed(clone):
    assert run_make(clone, "setup").returncode == 0
    assert installations(clone) == 1

    assert run_make(clone, "setup").returncode == 0
    assert installations(clone) == 1

    age(clone)
    (clone / "pyproject.toml").touch()  # a checkout gives files new dates
    assert run_make(clone, "setup").returncode == 0
    assert installations(clone) == 1

    age(clone)
    with (clone / "constraints.txt").open("a") as file:
        file.write("another==1.0\n")
    assert run_make(clone, "setup").returncode == 0
    assert installations(clone) == 2


def test_an_installation_that_fails_is_tried_again(clone):
    (clone / "offline").touch()
    assert run_make(clone, "setup").returncode != 0
    (clone / "offline").unlink()

    assert run_make(clone, "setup").returncode == 0
    assert installations(clone) == 2


def test_a_missing_python_is_named_and_nothing_is_left_behind(clone):
    shutil.rmtree(clone / ".venv")
    result = run_make(clone, "setup", "PYTHON=no-such-python")

    assert result.returncode != 0
    assert "'no-such-python' is not a Python 3.10 or newer" in result.stdout
    assert not (clone / ".venv").exists()


def test_make_alone_lists_every_target_and_says_what_it_does():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    listed = dict(re.findall(r"^  make (\w+) +(\S.*)$", run_make(ROOT).stdout, re.MULTILINE))

    assert set(listed) == targets
    assert targets >= {"help", "setup", "lab", "demo", "test", "clean"}


# ---- what is committed ----------------------------------------------------------------------------------------------


def test_no_tracked_file_is_larger_than_five_megabytes():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in names.split("\0") if (ROOT / name).is_file()}

    assert "pyproject.toml" in sizes
    assert {name: size for name, size in sizes.items() if size > 5_000_000} == {}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_as_it_ran_from_top_to_bottom(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = notebook["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]

    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "run: make chapters"
    assert any(cell["outputs"] for cell in code)
    # The state of widgets holds every script and picture again, and makes a page without a kernel show neither.
    assert "widgets" not in notebook["metadata"], "run: make chapters"
    for cell in code:
        if "raises-exception" not in cell["metadata"].get("tags", []):
            assert [output for output in cell["outputs"] if output["output_type"] == "error"] == []


# ---- how the package is built ---------------------------------------------------------------------------------------


def modules() -> dict[str, Path]:
    """Dotted name of every module -> its file; a package is called by its own name."""
    files = sorted(PACKAGE.rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    return dict(zip(names, files, strict=True))


def imports(name: str, source: str, is_package: bool, known: set[str]) -> set[str]:
    """Dotted names of all that a module imports, wherever the import stands; of a known package, the module in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")[: len(name.split(".")) - node.level + is_package]
                base = ".".join(parents + ([base] if base else []))
            inside = {f"{base}.{alias.name}" for alias in node.names}
            found |= (inside & known) | ({base} if inside - known else set())
    return found


def part(name: str) -> str:
    """The part of the package that a module belongs to: `minidet.data.coco` -> `data`."""
    return [*name.split("."), "__init__"][1]


def upward_imports(name: str, imported: set[str]) -> list[str]:
    ours = [other for other in imported if other.split(".")[0] == "minidet"]
    return [
        f"{name} imports {other}"
        for other in sorted(ours)
        if part(other) != part(name) and ROW[part(other)] >= ROW[part(name)]
    ]


def import_graph() -> dict[str, set[str]]:
    files = modules()
    return {
        name: imports(name, file.read_text(encoding="utf-8"), file.name == "__init__.py", set(files))
        for name, file in files.items()
    }


def test_every_module_says_in_a_docstring_what_it_is_for():
    trees = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in modules().items()}
    assert [name for name, tree in trees.items() if not ast.get_docstring(tree)] == []


def test_every_module_has_a_place_in_the_order_of_layers():
    assert {part(name) for name in modules()} - set(ROW) == set()


def test_imports_run_downwards_only():
    assert [fault for name, imported in import_graph().items() for fault in upward_imports(name, imported)] == []


@pytest.mark.parametrize(
    ("name", "source", "is_package", "faults"),
    [
        ("minidet.boxes", "def f():\n    import minidet.training.loop", False, ["minidet.training.loop"]),
        ("minidet.assign.simota", "from minidet import losses, create_model", False, ["minidet"]),
        ("minidet.assign.simota", "from ..detectors import zoo", False, ["minidet.detectors.zoo"]),
        ("minidet.detectors", "from .zoo import ZOO\nfrom ..draw import palette", True, ["minidet.draw"]),
        ("minidet.training.loop", "from minidet.data.loader import x\nfrom . import ema\nimport torch", False, []),
    ],
)
def test_an_upward_import_is_found_in_every_spelling(name, source, is_package, faults):
    known = {"minidet.losses", "minidet.detectors.zoo", "minidet.training.ema", "minidet.data.loader"}
    imported = imports(name, source, is_package, known)
    assert upward_imports(name, imported) == [f"{name} imports {fault}" for fault in faults]


def on_circles(graph: dict[str, set[str]]) -> set[str]:
    """What is left of a graph when everything that imports nothing, or that nothing imports, is taken away in turn."""
    left = set(graph)
    while True:
        importers = {name for name in left if graph[name] & left}
        imported = {other for name in left for other in graph[name]}
        if left == importers & imported:
            return left
        left &= importers & imported


def test_no_module_imports_itself_by_a_round_way():
    assert on_circles(import_graph()) == set()
    assert on_circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"torch"}}) == {"b", "c"}


def test_only_pictures_and_explorers_know_plotting_and_widget_libraries():
    faults = [
        f"{name} imports {other}"
        for name, imported in import_graph().items()
        for other in imported
        if part(name) not in KNOWN_BY.get(other.split(".")[0], {part(name)})
    ]
    assert faults == []


def test_importing_minidet_loads_no_plotting_widget_or_logging_library(record_property):
    code = (
        "import sys, time, torch, torchvision; start = time.perf_counter(); import minidet; "
        "print(time.perf_counter() - start, *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    seconds, *loaded = output.split()
    record_property("seconds that minidet takes after torch", float(seconds))  # the promise is 2; machines differ

    assert "minidet" in loaded
    heavy = {"matplotlib", "ipywidgets", "anywidget", "tensorboard", "pycocotools", "IPython", "cv2"}
    assert set(loaded) & heavy == set()
