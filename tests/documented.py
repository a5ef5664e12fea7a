"""Runs the ```bash and ```python blocks of the documents: `python tests/documented.py [FILE]`.
Each document runs in order in its own copy of the repository, on drawn pictures, with the small
network of cfg/shapes.cfg in place of the large ones and trainings of two iterations.  A command
that fails is an error; the tables say what is changed and what cannot run."""

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
NOT_RUN = {  # how commands begin that do not run here, and why
    "python3 -m venv": ".ci/run makes the environment",
    ". .venv": ".ci/run makes the environment",
    "pip install": ".ci/run installs",
    "python -m pytest": ".ci/run runs all tests",
    "DARKNET=": "needs both Darknets",
    "darknet ": "is Darknet itself",
    "torchrun --nproc-per-node 8": "needs 8 devices",
    "torchrun --nnodes 2": "needs two machines; test_distributed.py runs two processes",
    "python tests/soak.py": "takes an hour",
    "python tests/attacks.py": "the same, and the others are run one by one",
    "yolov4 export X.weights X8.onnx": "needs OpenVINO and NNCF",
    "yolov4 val --weights X8.onnx": "the same",
    "python benchmarks/gpu.py": "test_benchmarks.py runs it at toy size",
    "yolov4 detector train": "test_darknet.py runs it",
    ".ci/versions": "makes two environments of 6 GB",
}
SHORT = "--max-batches 2 --batch 4 --subdivisions 1 --workers 0 --ema --learning-rate 1e-5"
WORDS = {  # what is written otherwise here: a pattern, what takes its place
    r"(X\.onnx) +\[--half bf16\]": r"\1",  # needs OpenVINO
    r"\[(-[^]]*)\]": r"\1",  # optional flags are given
    r"\bVIDEO 0\b": "VIDEO.avi",  # and no camera
    r" --download": "",
    r"runs/NAME/(\S+)": r"runs/shapes/\1",
    r"(yolov4 cfg) yolov4\S*": r"\1 shapes",
    r"yolov4 train (.*) --epochs 100 --ema": r"python train.py \1",
    r"--cfg yolov4-tiny": "--cfg shapes",
    r"--weights yolov4-tiny(.conv.29)?\S*": "--weights X.weights",
    r"cfg/yolov4.cfg yolov4.weights": "cfg/my.cfg X.weights",
    r"cfg/coco.data": "my.data",
    r" VIDEO ": " VIDEO.avi ",
    r"data.yaml": "photos",
    r"my.conv.15 15": "my.conv.54 54",
    r"--upto \d+": "--upto 54",
    r"--freeze \d+": "--freeze 20",
    r"--cases \d+": "--cases 40",
    r"--kills \d+": "--kills 1",
    r"(ablation\.py)": r"\1 --only base --seeds 1 --max-batches 2",
    r"(benchmarks/(?!ablation)\w+\.py)": r"\1 --cfg X.cfg --size 64 --repeats 1",
    r"(training\.py)": r"\1 --rounds 1 --samples 48",
    r"(make_shapes\.py)": r"\1 --images 10",
    r"(train\.py --data runs/voc100/.*)": r"\1 --weights cfg/yolov4-voc.weights",
    # fresh weights explode after two iterations
    r"(train\.py --data(?!.*--weights).*)": r"\1 --weights X.weights",
    r"(train\.py(?! --resume\b).*)": rf"\1 {SHORT}",
}


def commands(text: str):
    """(line number, command, comment) of each command in the ```bash blocks."""
    for block in re.finditer(r"^```bash\n(.*?)^```", text, re.S | re.M):
        line = text.count("\n", 0, block.start(1)) + 1
        for written in re.findall(r"(?:.*?(?:\\|&&)[ ]*\n)*.*\n", block[1]):
            command, _, comment = re.sub(r"\\\n", " ", written).partition(" #")
            for part in filter(None, re.split(r"\s*&&\s*", command.strip())):
                yield line, " ".join(part.split()) if "'" not in part else part, comment
            line += written.count("\n")


def draw_voc(copy: Path, folder: str, names: tuple[str, ...], sets: str) -> None:
    """The drawn shapes as a VOC folder with other class names and sets."""
    shutil.copytree(copy / "drawn", copy / folder)
    shutil.rmtree(copy / folder / "ImageSets")
    paths = sorted((copy / folder / "Annotations").iterdir())
    for path in paths:
        text = path.read_text()
        for shape, name in zip(("circle", "square", "triangle"), names, strict=True):
            text = text.replace(f"<name>{shape}<", f"<name>{name}<")
        path.write_text(text)
    for name in sets.split():
        (copy / folder / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        lines = "\n".join(path.stem for path in paths)
        (copy / folder / f"ImageSets/Main/{name}.txt").write_text(lines)


def draw_coco(copy: Path) -> None:
    (copy / "COCO/annotations").mkdir(parents=True)
    for name in ("train2017", "val2017"):
        shutil.copytree(copy / "drawn/JPEGImages", copy / "COCO" / name)
        files = enumerate(sorted((copy / "COCO" / name).iterdir()))
        images = [{"id": n, "file_name": f.name, "width": 160, "height": 128} for n, f in files]
        box = {"category_id": 1, "bbox": [9, 9, 30, 30]}
        boxes = [{"id": image["id"], "image_id": image["id"], **box} for image in images]
        categories = [{"id": 1, "name": "person"}]
        dataset = {"images": images, "annotations": boxes, "categories": categories}
        (copy / f"COCO/annotations/instances_{name}.json").write_text(json.dumps(dataset))


def network(copy: Path, stem: str, classes: int = 3):
    """A small network with settled weights as STEM.cfg and STEM.weights."""
    import torch

    from yolov4 import Darknet, save_weights
    from yolov4.networks import build, cfg_text
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


def make_material(copy: Path) -> None:
    """The files that the documents speak of, made from drawn pictures and the small network."""
    import cv2

    from yolov4 import save_weights

    def run(command: str) -> None:
        command = [sys.executable, *command.split()]
        subprocess.run(command, cwd=copy, check=True, capture_output=True)

    run("data/shapes/make_shapes.py --images 10 --out drawn")
    voc, bccd = ("aeroplane", "bicycle", "bird"), ("RBC", "WBC", "Platelets")
    draw_voc(copy, "VOCDEVKIT/VOC2007", voc, "train val test")
    draw_voc(copy, "VOCDEVKIT/VOC2012", voc, "train val")
    draw_voc(copy, "S/datasets/voc2012_100/VOCdevkit/VOC2012", voc, "trainval")
    draw_voc(copy, "S/datasets/bccd/BCCD", bccd, "trainval test")
    draw_voc(copy, "mine", bccd, "")
    run("data/voc0712/voc_label.py VOCDEVKIT --out data/voc0712")
    run("data/voc0712/voc_label.py drawn --names drawn/shapes.names --out x")
    draw_coco(copy)
    for folder in ("S/datasets/coco128_val", "photos"):
        shutil.copytree(copy / "drawn/JPEGImages", copy / folder / "images")
        shutil.copytree(copy / "x/drawn/labels", copy / folder / "labels")
    shutil.copytree(copy / "drawn/JPEGImages", copy / "FOLDER")
    save_weights(network(copy, "cfg/yolov4-voc", 20), copy / "pretrain/yolov4.conv.137", upto=54)
    save_weights(network(copy, "cfg/yolov4", 80), copy / "yolov4.weights")
    for stem, classes in {
        "S/models/yolo-fastest-1.0-xl-voc/yolo-fastest-1.0-xl-voc": 20,
        "S/models/yolov3-tiny/yolov3-tiny": 80, "S/golden/training_bccd/mini": 3,
        "X": 3, "cfg/my": 3,
    }.items():  # fmt: skip
        network(copy, stem, classes)
    for name in ("X", "my"):
        shutil.copy(copy / "drawn/shapes.names", copy / f"{name}.names")
        lines = f"train=x/train.txt\nvalid=x/val.txt\nnames={name}.names\n"
        (copy / f"{name}.data").write_text(lines)
    picture = next((copy / "FOLDER").iterdir())
    for source, name in (("x/train.txt", "LIST.txt"), ("x/val.txt", "valid.txt"),
                         (picture, "PHOTO"), (picture, "dog.jpg")):  # fmt: skip
        shutil.copy(copy / source, copy / name)
    code = cv2.VideoWriter_fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(copy / "VIDEO.avi"), code, 5, (160, 128))
    writer.write(cv2.imread(str(picture)))
    writer.release()
    (copy / "runs").mkdir(exist_ok=True)


def killed(command: str, copy: Path, environment: dict) -> tuple[int, str]:
    """Runs a training until its first checkpoint is there, then kill -9; 0 if that ended it."""
    process = subprocess.Popen(shlex.split(command), cwd=copy, env=environment)
    checkpoint = copy / "runs" / re.search(r"--name (\S+)", command)[1] / "last.pt"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    return int(process.wait() != -signal.SIGKILL), "ended before it was killed"


def finished(command: str, copy: Path, environment: dict) -> tuple[int, str]:
    """Exit code of a command and the last of what it printed."""
    words = ["timeout", "-k", "5", str(LIMIT), "bash", "-c", f"set -o pipefail; ({command}) 2>&1"]
    done = subprocess.run(words, cwd=copy, env=environment, text=True, stdout=subprocess.PIPE)
    return done.returncode, done.stdout.strip()[-600:]


def run_document(document: str) -> int:
    """Runs a document's commands, one line each; returns how many failed."""
    failed, root = 0, Path(tempfile.mkdtemp(prefix="documented-"))
    copy = root / "repository"
    files = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for file in files[:-1]:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, copy / file)
    make_material(copy)
    paths = {"S": str(copy / "S"), "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    text = (ROOT / document).read_text(encoding="utf-8")
    todo = list(commands(text))
    given = "import torch\nimages = torch.rand(1, 3, 128, 160)\n"
    given += "targets = torch.tensor([[0, 1, .5, .5, .2, .2]])\n"
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M):
        (copy / "block.py").write_text(given + block[1])
        todo.append((text.count("\n", 0, block.start(1)) + 1, "python block.py", ""))
    for line, command, comment in sorted(todo, key=lambda item: item[0]):
        where, start = f"{document}:{line}: {command}", time.monotonic()
        if reasons := [why for begin, why in NOT_RUN.items() if command.startswith(begin)]:
            print(f"  not run  {where}: {reasons[0]}", flush=True)
            continue
        for pattern, replacement in WORDS.items():
            command = re.sub(pattern, replacement, command)
        run = killed if "kill -9" in comment else finished
        command = command.split(" --max-batches 2")[0] if run is killed else command
        code, said = run(command, copy, os.environ | paths)
        failed += code != 0
        state = "FAILED" if code else "ran"
        print(f"  {state:7} {time.monotonic() - start:5.1f} s  {where}", flush=True)
        if code:
            print(f"           as: {command}\n           exit code {code}: {said}", flush=True)
    shutil.rmtree(root)
    return failed


def main() -> None:
    pages = sorted((ROOT / "docs").glob("*.md"))
    documents = sys.argv[1:] or ["README.md", *(f"docs/{page.name}" for page in pages)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = sum(pool.map(run_document, documents))
    sys.exit(f"{failed} documented commands failed" if failed else 0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
