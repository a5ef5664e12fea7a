"""The diagram of the package holds: imports point down and make no circle.
Source: the table in README.md (How it is built)."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

import yolov4

FLOORS = (
    "files cfg graph networks recipe",
    "boxes decoding schedule metrics",
    "loss yolov5_loss layers model weights export",
    "augment data labels anchors",
    "plots detector protocols evaluation",
    "video report runs distributed training",
    "cli",
    "__main__",
)
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules.split()}
LEAVES = FLOORS[0].split()  # the standard library only
MODULES = sorted(path for path in (ROOT / "yolov4").glob("*.py") if path.stem != "__init__")
SCRIPTS = sorted(ROOT.glob("*.py"))


def imports_of(path):
    """(modules of the package, top-level names of all else) that a file imports anywhere"""
    own, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            assert node.names[0].name != "*", f"{path.name}:{node.lineno}: star import"
            names = (
                [f"yolov4.{alias.name}" for alias in node.names]
                if node.module == "yolov4"
                else [node.module]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            own.add(rest.split(".")[0]) if package == "yolov4" and rest else others.add(package)
    return own & FLOOR.keys(), others


IMPORTS = {path.stem: imports_of(path) for path in MODULES}


def test_no_import_points_up():
    arrows = [(module, other) for module, (own, _) in IMPORTS.items() for other in own]
    assert not [f"{a} -> {b}" for a, b in arrows if FLOOR[b] > FLOOR[a]]


def test_no_imports_make_a_circle():
    left = {module: set(own) for module, (own, _) in IMPORTS.items()}
    while free := [module for module, own in left.items() if not own & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"each of these imports another of them: {', '.join(left)}"


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_imports_the_standard_library_only(name):
    assert not IMPORTS[name][1] - sys.stdlib_module_names - {"tqdm"}


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=lambda path: path.stem)
def test_module_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", sorted(set(yolov4.__all__) - {"augment"}))
def test_public_name_is_a_function_or_class_whenever_it_is_asked_for(name):
    # an imported submodule would take the place of a function of the same name
    assert callable(getattr(yolov4, name)) and callable(getattr(yolov4, name))


def modules_after(program):
    """Names of all modules that a fresh process has imported after a program."""
    program += "\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize("script", ["detect", "val", "train", "export", "cvt2darknet"])
def test_script_imports_no_library_before_its_arguments_are_read(script):
    slow = {"torch", "cv2", "numpy", "matplotlib"}
    assert not slow & modules_after(f"import sys; sys.argv = ['{script}.py']; import {script}")


def test_detecting_waits_for_no_library_that_it_does_not_need():
    found = modules_after("import yolov4.detector, yolov4.video")
    assert "torch" in found and not {"torchvision", "matplotlib"} & found
