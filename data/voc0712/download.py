"""Brings VOC 2007 (trainval, test) and 2012 (trainval): `python data/voc0712/voc_label.py VOCDEVKIT --download`.
Source: torchvision's table of addresses and checksums; its own downloader cannot go on where it broke off."""

import shutil
import tarfile

from torchvision.datasets.voc import DATASET_YEAR_DICT

from yolov4.downloads import DownloadError, Remote, download

# key of torchvision's table: folder, set, bytes of the archive
PARTS = {
    "2007": ("VOC2007", "trainval", 460_032_000),
    "2007-test": ("VOC2007", "test", 451_020_800),
    "2012": ("VOC2012", "trainval", 1_999_639_040),
}
MIRROR = "https://data.pjreddie.com/files/"  # for when torchvision's address, in Oxford, is down


def download_voc(root):
    """Downloads and unpacks what is not there yet.  root: VOCdevkit, or the folder that holds it.
    Raises DownloadError (a ValueError), which says how to do it by hand, or OSError."""
    if not hasattr(tarfile, "data_filter"):
        raise ValueError("this Python cannot unpack archives safely, expected 3.10.12, 3.11.4, 3.12 or newer")
    devkit = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    missing = missing_archives(devkit)
    if not missing:
        return
    size = sum(remote.size for remote in missing.values()) / 1e9
    print(f"{devkit}: {len(missing)} archives, {size:.1f} GB, are needed; {2 * size:.1f} GB of disk once unpacked")
    for archive, remote in missing.items():
        try:
            download(remote, archive)
        except DownloadError as error:
            others = [r.by_hand(path) for path, r in missing.items() if path != archive and not path.exists()]
            raise DownloadError("\n".join([str(error), *others])) from None
        print(f"{archive}: is whole, unpacking")
        unpack(archive, devkit)
    print(f"{devkit}: VOC 2007 and 2012 are there; the archives (*.tar) are no longer needed")


def missing_archives(devkit):
    """{path: Remote} of the archives whose pictures are not all there."""
    missing = {}
    for key, (folder, name, size) in PARTS.items():
        if not is_whole(devkit / folder, name):
            known = DATASET_YEAR_DICT[key]
            urls = known["url"], MIRROR + known["filename"]
            missing[devkit / known["filename"]] = Remote(urls, size, known["md5"])
    return missing


def is_whole(folder, name):
    """Whether the set's list is there, and a picture and an annotation for each line of it."""
    listed = folder / "ImageSets" / "Main" / f"{name}.txt"
    return listed.exists() and all(
        (folder / "JPEGImages" / f"{image}.jpg").exists() and (folder / "Annotations" / f"{image}.xml").exists()
        for image in listed.read_text().split()
    )


def unpack(archive, devkit):
    """Moves what is in the archive's VOCdevkit to `devkit`.  It is unpacked beside it: what has a place is whole."""
    beside = devkit / f".{archive.stem}.part"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(beside, filter="data")
        source = beside / "VOCdevkit"
        for path in [path for path in source.rglob("*") if path.is_file()]:
            target = devkit / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    except tarfile.TarError as error:
        raise ValueError(f"{archive}: cannot be unpacked: {error}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
