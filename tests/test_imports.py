"""The diagram of the package holds: imports point down, leaves need nothing, files and functions stay short.
Source: ../shared/design.md (Modules), ../shared/style.md."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

import yolov4

# What a module may import of the package, bottom up: only what stands above it here.
MAY_IMPORT = {
    # leaves: the standard library only
    "files": [],
    "sections": [],
    "cfg": ["sections", "files"],
    "heads": ["sections"],
    "plan": ["sections", "heads"],
    "blocks": ["sections"],
    "networks": ["sections", "blocks"],
    "blueprint": ["sections", "cfg", "plan", "networks"],
    "recipe": ["sections", "cfg", "files", "plan"],
    "settings": ["sections", "recipe"],
    "runs": ["cfg", "files"],
    "downloads": [],
    # network
    "staged": [],
    "mish": [],
    "layers": ["sections", "plan", "mish", "staged"],
    "model": ["sections", "cfg", "plan", "staged", "layers"],
    "weights": ["files", "layers", "model"],
    "inference": ["model"],
    "memory": [],
    # maths: pure functions of tensors
    "transfer": [],
    "boxes": [],
    "decoding": ["sections", "transfer", "boxes"],
    "schedule": ["sections"],
    "assign": ["sections", "transfer", "boxes"],
    "overlaps": ["sections", "transfer", "boxes", "decoding"],
    "regression": ["sections", "boxes", "decoding"],
    "deltas": ["sections", "decoding"],
    "loss": ["sections", "transfer", "boxes", "decoding", "assign", "overlaps", "regression", "deltas"],
    "yolov5_loss": ["sections", "transfer", "boxes", "decoding", "assign", "overlaps", "loss"],
    "adversarial": ["sections", "decoding", "deltas"],
    "result": ["decoding"],
    "metrics": ["boxes", "decoding", "result"],
    "curves": ["boxes", "metrics", "result"],
    # other protocols, on the records of one pass
    "voc": ["boxes", "metrics", "result"],
    "coco": ["files", "boxes", "result"],
    "protocols": ["files", "result", "metrics", "voc", "coco"],
    # data
    "augment": [],
    "data": ["files"],
    "draws": ["augment"],
    "pictures": ["data"],
    "batches": ["sections", "memory", "augment", "draws", "pictures"],
    "sources": ["data"],
    "video": ["sources"],
    "anchors": ["sections", "cfg", "data"],
    # views
    "plots": ["decoding"],
    "output": ["decoding"],
    "page": [],
    "figures": ["curves"],
    "datareport": ["sections", "cfg", "files", "data", "anchors", "figures"],
    "mistakes": ["result", "curves", "data", "plots"],
    "report": ["files", "result", "curves", "plots", "page", "figures", "mistakes"],
    # loops
    "checkpoint": ["cfg", "files", "runs", "model", "weights"],
    "verify": ["decoding", "model", "weights"],
    "runtime": ["cfg", "plan", "boxes", "decoding"],
    "export": ["boxes", "cfg", "decoding", "files", "model", "runtime", "verify"],
    "predict": ["cfg", "data", "decoding", "model", "inference", "checkpoint", "runs", "runtime"],
    "evaluation": ["sections", "boxes", "decoding", "data", "metrics", "result", "model", "predict"],
    "distributed": ["staged"],
    "updates": ["sections", "schedule", "staged", "layers", "loss", "yolov5_loss", "adversarial", "model",
                "distributed"],
    "ema": ["sections", "model"],
    "progress": ["updates"],
    "session": ["sources", "video", "plots", "output", "predict", "progress"],
    "board": ["result", "curves", "updates"],
    "runfolder": ["sections", "cfg", "files", "settings", "model", "weights", "checkpoint", "plots", "updates",
                  "board", "report", "result"],
    "start": ["cfg", "data", "ema", "model", "progress", "settings", "updates", "weights", "yolov5_loss"],
    "training": [
        "cfg", "settings", "data", "batches", "model", "checkpoint", "predict", "evaluation", "distributed", "updates",
        "ema", "progress", "start", "runfolder", "datareport",
    ],
}  # fmt: skip
LEAVES = ("files", "memory", "sections", "cfg", "heads", "plan", "blocks", "networks", "blueprint", "recipe")
MATHS = (
    "transfer",
    "boxes",
    "decoding",
    "schedule",
    "assign",
    "overlaps",
    "deltas",
    "regression",
    "loss",
    "yolov5_loss",
    "adversarial",
    "metrics",
    "curves",
)
MODULES = sorted(path for path in (ROOT / "yolov4").glob("*.py") if path.stem != "__init__")
SCRIPTS = sorted(ROOT.glob("*.py"))


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path):
    """(modules of the package, top-level names of everything else) that a file imports, anywhere in it"""
    own, others = set(), set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "yolov4" else [node.module]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            own.add(rest.split(".")[0]) if package == "yolov4" else others.add(package)
    return own, others


def test_diagram_has_no_upward_arrow():
    order = list(MAY_IMPORT)
    for module, allowed in MAY_IMPORT.items():
        for other in allowed:
            assert order.index(other) < order.index(module), f"{module} -> {other} points up"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_module_imports_only_downwards(path):
    assert path.stem in MAY_IMPORT, f"{path.name} has no place in the diagram"
    wrong = imports_of(path)[0] - set(MAY_IMPORT[path.stem])
    assert not wrong, f"{path.name} imports {', '.join(sorted(wrong))}, expected only {MAY_IMPORT[path.stem]}"


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_imports_the_standard_library_only(name):
    wrong = imports_of(ROOT / f"yolov4/{name}.py")[1] - sys.stdlib_module_names
    assert not wrong, f"{name}.py imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("name", MATHS)
def test_maths_touches_no_files_and_no_images(name):
    wrong = imports_of(ROOT / f"yolov4/{name}.py")[1] & {
        "os",
        "pathlib",
        "io",
        "json",
        "cv2",
        "PIL",
        "sys",
        "random",
    }
    assert not wrong, f"{name}.py imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=lambda path: path.stem)
def test_no_star_imports_and_argparse_only_for_a_command(path):
    tree = tree_of(path)
    stars = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names)]
    assert not stars, f"{path.name}:{stars[0]}: star import"
    if "argparse" in imports_of(path)[1]:
        assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body), path.name


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=lambda path: path.stem)
def test_file_and_its_functions_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 230, f"{path.name} has {lines} lines, expected 230 or fewer"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 40, f"{path.name}:{node.lineno}: {node.name} has {length} lines, expected 40 or fewer"


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=lambda path: path.stem)
def test_module_says_what_it_is_for(path):
    assert ast.get_docstring(tree_of(path)), f"{path.name} has no docstring"


@pytest.mark.parametrize("name", sorted(set(yolov4.__all__) - {"augment"}))
def test_public_name_is_a_function_or_class_whenever_it_is_asked_for(name):
    # a submodule of the same name takes the place of a function in the package as soon as it is imported
    assert callable(getattr(yolov4, name)) and callable(getattr(yolov4, name))


def modules_after(program):
    """Names of all modules that a fresh process has imported after a program."""
    program += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize("script", ["detect", "val", "train"])
def test_script_imports_no_library_before_its_arguments_are_read(script):
    slow = {"torch", "cv2", "numpy", "matplotlib"}
    assert not slow & modules_after(f"import sys; sys.argv = ['{script}.py']; import {script}")


def test_detecting_waits_for_no_library_that_it_does_not_need():
    found = modules_after("import yolov4.predict, yolov4.sources, yolov4.session, yolov4.output")
    assert "torch" in found and not {"torchvision", "matplotlib"} & found
