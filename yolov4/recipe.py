"""Recipes: a few lines over a cfg (cfg/*.recipe), and what the yolov5-style loss needs a network to be.
No source: each file names the run it follows."""

from dataclasses import dataclass, replace
from pathlib import Path

from yolov4.cfg import raw_sections, section_values
from yolov4.files import read_text
from yolov4.plan import find_heads, plan_layers
from yolov4.sections import Convolutional, Network, Yolo

FOLDER = "cfg"
# of objectness, from the finest head to the coarsest; the longer row is for more than three heads
BALANCE = ((4.0, 1.0, 0.4), (4.0, 1.0, 0.25, 0.06, 0.02))


@dataclass(frozen=True)
class Recipe:
    """What a .recipe says: [train] flags of train.py, by name; [net] and [yolo] keys that replace those of a cfg."""

    train: dict[str, str]
    net: dict
    yolo: dict


def recipe_path(name: str) -> Path:
    """A file as it is, or cfg/NAME.recipe.  Raises ValueError where there is neither."""
    found = [path for path in (Path(FOLDER) / f"{name}.recipe", Path(name)) if path.is_file()]
    if not found:
        known = ", ".join(sorted(path.stem for path in Path(FOLDER).glob("*.recipe")))
        raise ValueError(f"--recipe {name}: not found, expected a file or one of {known or f'{FOLDER}/*.recipe'}")
    return found[0]


def read_recipe(name: str) -> Recipe:
    """Reads a recipe by name or path.  Raises ValueError `file:line: ...` for what no section of it can be."""
    path = recipe_path(name)
    parts: dict[str, dict] = {"train": {}, "net": {}, "yolo": {}}
    for kind, line, options in raw_sections(read_text(path), str(path)):
        if kind not in parts:
            raise ValueError(f"{path}:{line}: found [{kind}], expected one of [train], [net], [yolo]")
        if kind == "train":
            parts[kind] |= {key: value for key, (value, _) in options.items()}
        else:
            values = section_values(kind, line, options, str(path))
            parts[kind] |= {key: value for key, value in values.items() if key != "lines"}
    return Recipe(**parts)


def with_recipe(network: Network, recipe: Recipe) -> Network:
    """The network with the recipe's keys in [net] and in every [yolo]."""
    sections = (replace(each, **recipe.yolo) if isinstance(each, Yolo) else each for each in network.sections)
    return network._replace(net=replace(network.net, **recipe.net), sections=tuple(sections))


def with_yolov5_heads(network: Network) -> Network:
    """The network with heads as the yolov5-style loss has them: new_coords and scale_x_y=2 after a logistic
    convolution, gains as normalizers.  Raises ValueError for a head that comes after something else."""
    net, sections = network.net, list(network.sections)
    heads = sorted(find_heads(network, plan_layers(network)), key=lambda head: head.stride)
    balance = BALANCE[len(heads) > len(BALANCE[0])]
    for head, weight in zip(heads, balance, strict=False):
        before, yolo = sections[head.index - 1], sections[head.index]
        where = f"{network.name}:{yolo.lines.get('', 0)}: [{yolo.kind}]"
        if yolo.kind != "yolo":
            raise ValueError(f"{where} with the yolov5-style loss, expected [yolo]")
        if not isinstance(before, Convolutional) or before.activation not in ("linear", "logistic"):
            raise ValueError(f"{where} comes after [{before.kind}], expected a linear or logistic convolution")
        share = 3 / len(heads)
        sections[head.index - 1] = replace(before, activation="logistic")
        sections[head.index] = replace(
            yolo,
            new_coords=True,
            scale_x_y=2.0,
            iou_normalizer=0.05 * share,
            obj_normalizer=weight * net.width * net.height / 640**2 * share,
            cls_normalizer=0.5 * yolo.classes / 80 * share,
        )
    return network._replace(sections=tuple(sections))
