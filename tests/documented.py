"""Runs the ```bash and ```python blocks of README.md and docs/*.md: `python tests/documented.py [DOCUMENT ...]`.

Each document runs in order in its own copy of the repository, on drawn pictures, with the small network of
cfg/shapes.cfg in place of the large ones and trainings of two iterations.  A command that fails is an error, and so is
a word in capitals that MATERIAL and WORDS do not explain.  The tables say what is changed and what cannot run.
No source: the documents are this project's own."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 300  # seconds of a command

# Commands that do not run here: what they begin with, and why.
NOT_RUN = {
    "python3 -m venv": ".ci/run makes the environment",
    ". .venv": ".ci/run makes the environment",
    "pip install": ".ci/run installs",
    "python -m pytest": ".ci/run runs all tests",
    "darknet ": "is Darknet itself",
    "torchrun --nproc-per-node 8": "needs 8 devices; test_distributed.py runs two processes",
    "torchrun --nnodes 2": "needs two machines; test_distributed.py runs two addresses of one",
    "curl ": "downloads",
    "python tests/soak.py": "takes an hour",
    ".ci/versions": "makes two environments of 6 GB",
    "git clone": "downloads",
    "python benchmarks/all.py": "takes twenty minutes; the scripts it runs are documented one by one",
    "python benchmarks/growth.py": "trains the whole YOLOv4 at five sizes",
}
SHORT = "--max-batches 2 --batch 4 --subdivisions 1 --workers 0 --ema --learning-rate 1e-5"
# What is written otherwise here: a pattern, what takes its place.
WORDS = {
    r"\[(-[^]]*)\]": r"\1",  # flags that may be left out are given
    r"\bVIDEO 0\b": "VIDEO.avi",  # and no camera
    r" --download": "",
    r"runs/NAME/(\S+)": r"runs/shapes/\1",
    r"(blueprint) yolov4\S*": r"\1 shapes",
    r"--upto \d+": "--upto 54",
    r"--freeze \d+": "--freeze 20",
    r"--cases \d+": "--cases 40",
    r"--kills \d+": "--kills 1",
    r"(ablation\.py)": r"\1 --only base --seeds 1 --max-batches 2",
    r"(inference\.py|start\.py)": r"\1 --cfg X.cfg --repeats 1",
    r"(training\.py)": r"\1 --cfg X.cfg --size 64 --repeats 1 --rounds 1",
    r"(loss\.py)": r"\1 --cfg X.cfg --size 64 --repeats 1",
    r"(data\.py)": r"\1 --size 64 --samples 8 --repeats 1",
    r"(benchmarks/evaluation\.py)": r"\1 --cfg X.cfg --size 64 --count 4 --candidates 10",
    r"(make_shapes\.py)": r"\1 --images 10",
    r"(train\.py --data runs/voc100/.*)": r"\1 --weights cfg/yolov4-voc.weights",
    r"(train\.py --data(?!.*--weights).*)": r"\1 --weights X.weights",  # fresh ones explode after two iterations
    r"(train\.py(?! --resume\b).*)": rf"\1 {SHORT}",
}
# Capitals that are no placeholder: files and folders that MATERIAL makes, and plain names.
MATERIAL = {"VOCDEVKIT", "LIST", "PHOTO", "FOLDER", "X", "Y", "S", "NAME", "VIDEO", "COCO", "PWD", "NR"}
PLAIN = {"RBC", "WBC", "BCCD", "VOC", "JPEG", "EMA"}


def commands(text):
    """(line number, command, comment) of each command of the ```bash blocks; parts joined by && are commands."""
    for block in re.finditer(r"^```bash\n(.*?)^```", text, re.S | re.M):
        line = text.count("\n", 0, block.start(1)) + 1
        for written in re.findall(r"(?:.*?(?:\\|&&)[ ]*\n)*.*\n", block[1]):
            command, _, comment = re.sub(r"\\\n", " ", written).partition(" #")
            for part in re.split(r"\s*&&\s*", command.strip()):
                if part:
                    yield line, " ".join(part.split()) if "'" not in part else part, comment
            line += written.count("\n")


def runnable(command):
    """The command as it runs here.  Raises ValueError for a placeholder that nothing stands for."""
    unquoted = re.sub(r"'[^']*'", "", command)
    unknown = set(re.findall(r"\b[A-Z]+\b", re.sub(r"[A-Z]\w*/[A-Z]\w*|VOC\w+", "", unquoted))) - MATERIAL - PLAIN
    if unknown:
        raise ValueError(f"nothing stands for {min(unknown)}, expected it in MATERIAL or WORDS of tests/documented.py")
    for pattern, text in WORDS.items():
        command = re.sub(pattern, text, command)
    return command


def draw_voc(copy, folder, names, sets):
    """Pictures of shapes as a VOC folder with other class names and sets."""
    shutil.copytree(copy / "drawn", copy / folder)
    for path in (copy / folder / "Annotations").iterdir():
        text = path.read_text()
        for shape, name in zip((copy / "drawn/shapes.names").read_text().split(), names, strict=True):
            text = text.replace(f"<name>{shape}<", f"<name>{name}<")
        path.write_text(text)
    stems = "".join(f"{path.stem}\n" for path in sorted((copy / folder / "Annotations").iterdir()))
    shutil.rmtree(copy / folder / "ImageSets")
    for name in sets:
        (copy / folder / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (copy / folder / f"ImageSets/Main/{name}.txt").write_text(stems)


def network(copy, stem, classes=3):
    """A small network with settled weights as STEM.cfg and STEM.weights."""
    import torch

    from yolov4 import Darknet, save_weights
    from yolov4.blueprint import build, cfg_text
    from yolov4.yolov5_loss import prior_biases

    model = Darknet(build("shapes", classes=classes), torch.Generator().manual_seed(0))
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(1.0)
    (copy / stem).parent.mkdir(parents=True, exist_ok=True)
    (copy / f"{stem}.cfg").write_text(cfg_text("shapes", "", classes=classes))
    model.set_head_biases(prior_biases)  # few detections
    for head in model.heads:
        model.layers[head.index - 1][0].weight.data.mul_(0.01)  # and boxes near the anchors
    save_weights(model, copy / f"{stem}.weights")
    return model


def draw_coco(copy):
    """The drawn pictures as COCO's folder, a box each."""
    for name in ("train2017", "val2017"):
        shutil.copytree(copy / "drawn/JPEGImages", copy / "COCO" / name)
        files = sorted((copy / "COCO" / name).iterdir())
        images = [{"id": n, "file_name": file.name, "width": 160, "height": 128} for n, file in enumerate(files)]
        boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [9, 9, 30, 30]} for n in range(len(files))]
        truths = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "person"}]}
        (copy / "COCO/annotations").mkdir(exist_ok=True)
        (copy / f"COCO/annotations/instances_{name}.json").write_text(json.dumps(truths))


def make_material(copy):
    """The files that the documents speak of, made from drawn pictures and the small network."""
    import cv2

    from yolov4 import save_weights

    def run(*words):
        subprocess.run([sys.executable, *words], cwd=copy, check=True, capture_output=True)

    run("data/shapes/make_shapes.py", "--images", "10", "--out", "drawn")
    voc, bccd = ("aeroplane", "bicycle", "bird"), ("RBC", "WBC", "Platelets")
    draw_voc(copy, "VOCDEVKIT/VOC2007", voc, ("train", "val", "test"))
    draw_voc(copy, "VOCDEVKIT/VOC2012", voc, ("train", "val"))
    draw_voc(copy, "S/datasets/voc2012_100/VOCdevkit/VOC2012", voc, ("trainval",))
    draw_voc(copy, "S/datasets/bccd/BCCD", bccd, ("trainval", "test"))
    draw_voc(copy, "mine", bccd, ())
    draw_coco(copy)
    for folder in ("S/datasets/coco128_val/images", "photos/images", "FOLDER"):
        shutil.copytree(copy / "drawn/JPEGImages", copy / folder)
    run("data/voc0712/voc_label.py", "drawn", "--names", "drawn/shapes.names", "--out", "x")
    for folder in ("S/datasets/coco128_val", "photos"):
        shutil.copytree(copy / "x/drawn/labels", copy / folder / "labels")
    for name in ("yolov4", "yolov4-voc"):
        model = network(copy, f"cfg/{name}", 20 if "voc" in name else 80)
    save_weights(model, copy / "pretrain/yolov4.conv.137", upto=54)
    shutil.move(copy / "cfg/yolov4.weights", copy / "yolov4.weights")
    for stem, classes in (("X", 3), ("S/models/yolo-fastest-1.0-xl-voc/yolo-fastest-1.0-xl-voc", 20),
                          ("S/models/yolov3-tiny/yolov3-tiny", 80), ("S/golden/training_bccd/mini", 3)):  # fmt: skip
        network(copy, stem, classes)
    lists = "train=x/train.txt\nvalid=x/val.txt\n"
    for name in ("X", "my"):
        shutil.copy(copy / "drawn/shapes.names", copy / f"{name}.names")
        (copy / f"{name}.data").write_text(f"{lists}names={name}.names\n")
    shutil.copy(copy / "x/train.txt", copy / "LIST.txt")
    shutil.copy(copy / "x/val.txt", copy / "valid.txt")
    (copy / "coco.names").write_text("".join(f"{number}\n" for number in range(80)))
    picture = next((copy / "FOLDER").iterdir())
    shutil.copy(picture, copy / "PHOTO")
    shutil.copy(picture, copy / "dog.jpg")
    writer = cv2.VideoWriter(str(copy / "VIDEO.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (160, 128))
    writer.write(cv2.imread(str(picture)))
    writer.release()
    (copy / "runs").mkdir(exist_ok=True)


def python_block(block):
    """The block as it runs here: images and targets are what a loop over data gives."""
    return (
        "import torch\nimages, targets = torch.rand(2, 3, 128, 160), torch.tensor([[0, 1, .5, .5, .2, .2]])\n" + block
    )


def killed(command, copy, environment):
    """Runs a training until its first checkpoint is there, then kill -9."""
    process = subprocess.Popen(shlex.split(command), cwd=copy, env=environment, stdout=subprocess.DEVNULL)
    checkpoint = copy / "runs" / re.search(r"--name (\S+)", command)[1] / "last.pt"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    return process.wait()


def finished(command, copy, environment):
    """Exit code of a command and the last of what it printed; it and its children end after LIMIT seconds."""
    process = subprocess.Popen(["bash", "-c", "set -o pipefail; " + command], cwd=copy, env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
    try:
        said, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return "none", f"still running after {LIMIT} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said.strip()[-600:]


def run_document(document):
    """Runs what a document says, a line each; returns how many commands failed."""
    failed, root = 0, Path(tempfile.mkdtemp(prefix="documented-"))
    copy = root / "repository"
    try:
        for file in subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")[:-1]:
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, copy / file)
        make_material(copy)
        environment = os.environ | {"S": str(copy / "S"), "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        text = (ROOT / document).read_text(encoding="utf-8")
        todo = list(commands(text))
        for block in re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M):
            (copy / "block.py").write_text(python_block(block[1]))
            todo.append((text.count("\n", 0, block.start(1)) + 1, "python block.py", ""))
        for line, written, comment in sorted(todo, key=lambda item: item[0]):
            where, start = f"{document}:{line}: {written}", time.monotonic()
            if reason := next((why for begin, why in NOT_RUN.items() if written.startswith(begin)), None):
                print(f"  not run  {where}: {reason}", flush=True)
                continue
            try:
                command = runnable(written)
            except ValueError as error:
                failed += 1
                print(f"  FAILED   {where}: {error}", flush=True)
                continue
            if "kill -9" in comment:
                code, said = killed(runnable(written).split(" --max-batches 2")[0], copy, environment), ""
                code = 0 if code == -signal.SIGKILL else f"{code}, expected a kill"
            else:
                code, said = finished(command, copy, environment)
            failed += code != 0
            print(f"  {'FAILED ' if code else 'ran'}  {time.monotonic() - start:5.1f} s  {where}", flush=True)
            if code:
                print(f"           as: {command}\n           exit code {code}: {said}", flush=True)
    finally:
        shutil.rmtree(root)
    return failed


def main():
    documents = sys.argv[1:] or ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = sum(pool.map(run_document, documents))
    sys.exit(f"{failed} documented commands failed" if failed else 0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
