"""The diagram of the package holds: imports point down and make no circle.
Source: the table in README.md (How it is built)."""

import ast
import subprocess
import sys

from conftest import ROOT

import yolov4

FLOORS = (
    "files cfg graph networks recipe",
    "boxes decoding schedule metrics",
    "loss yolov5_loss layers model weights export",
    "augment data labels anchors",
    "plots detector protocols evaluation",
    "video report runs distributed training",
    "darknet",
    "cli",
    "__main__",
)
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules.split()}
MODULES = sorted(path for path in (ROOT / "yolov4").glob("*.py") if path.stem != "__init__")


def imports_of(path):
    """(modules of the package, top-level names of all else) that a file imports anywhere"""
    own, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            assert node.names[0].name != "*", f"{path.name}:{node.lineno}: star import"
            names = [node.module]
            if node.module == "yolov4":
                names = [f"yolov4.{alias.name}" for alias in node.names]
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


def test_leaves_import_the_standard_library_only():
    for name in FLOORS[0].split():
        assert not IMPORTS[name][1] - sys.stdlib_module_names - {"tqdm"}, name


def test_public_names_are_functions_and_classes_whenever_they_are_asked_for():
    # an imported submodule would take the place of a function of the same name
    for name in 2 * sorted(set(yolov4.__all__) - {"augment"}):
        assert callable(getattr(yolov4, name)), name


def imported_by(program):
    """Names of all modules that a fresh process has imported after a program."""
    program = [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"]
    printed = subprocess.check_output(program, cwd=ROOT, text=True)
    return {name.partition(".")[0] for name in printed.splitlines()[-1].split()}


def test_neither_a_script_nor_help_imports_a_slow_library():
    program = "import sys, train, val, detect, cvt2darknet, export\nfrom yolov4 import cli\n"
    for command in ["train", "val", "detect", "convert", "export", "anchors", "labels", "cfg"]:
        program += f"sys.argv = ['yolov4', '{command}', '--help']\n"
        program += "try: cli.main()\nexcept SystemExit: pass\n"
    assert not {"torch", "cv2", "numpy", "matplotlib"} & imported_by(program)


def test_detecting_waits_for_no_library_that_it_does_not_need():
    found = imported_by("import yolov4.detector, yolov4.video")
    assert "torch" in found and not {"torchvision", "matplotlib"} & found


def test_training_needs_no_library_of_reports_and_exports():
    assert not {"jinja2", "yaml", "torchvision"} & imported_by("import yolov4.training")
