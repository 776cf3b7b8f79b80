"""Building a segmentation of 300 x 512 x 512, beside dcmqi and plain highdicom: seconds, memory, and their ratios.

    make bench            or: .venv/bin/python benchmarks/segmentation.py --runs 5

Balls fill the volume, 1, 10 or 100 of them; each contender makes a BINARY object of the same label map on the same
images, in a process of its own, in alternating runs; 'label map' is dicomai with a LABELMAP object, in RLE Lossless.
dicomai and highdicom have the images' headers and the label map in memory, and have built a small one before, as a
worker has; counted is the time to the object's bytes. dcmqi's `itkimage2segimage` is counted whole: it reads the images
and the label map and writes a file. Memory is the largest that the process ever had in RAM, libraries and the label map
of 79 MB included.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import RLELossless, generate_uid

from dicomai.findings import Findings
from dicomai.outputs import Sources, build, encode
from dicomai.study import Instance
from tests import results, synthetic

SHAPE = (300, 512, 512)
SPACING = (1.0, 0.7, 0.7)
NUMBERS = (1, 10, 100)
DCMQI = Path(sysconfig.get_path("scripts")) / "itkimage2segimage"


def balls(number: int) -> NDArray[np.uint8]:
    """Fill a volume with balls, as large as they may be beside each other; the n-th has the value n."""
    side = int(np.ceil(number ** (1 / 3) - 1e-9))
    labels = np.zeros(SHAPE, dtype=np.uint8)
    radius = [0.48 * size / side for size in SHAPE]
    for n in range(number):
        middle = [(i + 0.5) * size / side for i, size in zip(np.unravel_index(n, (side,) * 3), SHAPE, strict=True)]
        box = tuple(slice(int(m - r), int(m + r) + 1) for m, r in zip(middle, radius, strict=True))
        grid = np.ogrid[box]
        squares = [((g - m) / r) ** 2 for g, m, r in zip(grid, middle, radius, strict=True)]
        labels[box][sum(squares) < 1] = n + 1
    return labels


def prepare(folder: Path) -> None:
    """Write the images, and each label map for numpy and for dcmqi."""
    images = synthetic.series(array=np.zeros(SHAPE, np.uint8), spacing=SPACING, origin=(0, 0, 0))
    synthetic.write(images, folder / "images")
    space = "space: left-posterior-superior\nspace directions: (0.7,0,0) (0,0.7,0) (0,0,1)\nspace origin: (0,0,0)"
    sizes = " ".join(map(str, SHAPE[::-1]))
    code = {"CodeValue": "123037004", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Body structure"}
    for number in NUMBERS:
        labels = balls(number)
        np.save(folder / f"{number}.npy", labels)
        head = f"NRRD0004\ntype: unsigned char\ndimension: 3\n{space}\nsizes: {sizes}\nencoding: raw\n\n"
        (folder / f"{number}.nrrd").write_bytes(head.encode() + labels.tobytes())
        described = {"SegmentedPropertyCategoryCodeSequence": code, "SegmentedPropertyTypeCodeSequence": code}
        described |= {"SegmentAlgorithmType": "AUTOMATIC", "SegmentAlgorithmName": "balls"}
        segments = [{"labelID": n + 1, "SegmentLabel": f"Ball {n + 1}", **described} for n in range(number)]
        meta = {"ContentCreatorName": "bench", "SeriesNumber": "1", "InstanceNumber": "1"}
        (folder / f"{number}.json").write_text(json.dumps({**meta, "segmentAttributes": [segments]}))


def dicomai(folder: Path, number: int, label_map: str | None = None) -> dict[str, float]:
    """Build SEG and SR by the node's own code."""
    paths = sorted((folder / "images").iterdir())
    sources = results.sources([Instance.read(lambda path=path: path.open("rb"), path.name) for path in paths])  # type: ignore[misc]
    labels = np.load(folder / f"{number}.npy")
    segments = [results.segment(n + 1, f"Ball {n + 1}") for n in range(number)]
    small = results.sources(synthetic.instances(synthetic.series()))
    for output in ("seg", "sr"):
        _encoded(output, results.findings(results.ball((5, 8, 10))), small, label_map)
    findings = results.findings(labels, segments=segments)
    before = time.perf_counter()
    size = len(_encoded("seg", findings, sources, label_map))
    between = time.perf_counter()
    _encoded("sr", findings, sources, label_map)
    after = time.perf_counter()
    return {"seconds": between - before, "with_report": after - before, "bytes": size}


def label_map(folder: Path, number: int) -> dict[str, float]:
    """Build the SEG as a label map in RLE Lossless, and the SR."""
    return dicomai(folder, number, RLELossless)


def _encoded(output: str, findings: Findings, sources: Sources, form: str | None) -> bytes:
    ds = build(output, findings, sources, results.provenance(label_map=form))
    if ds is None:
        raise RuntimeError(f"There is no {output} of these findings.")
    return encode(ds)


def highdicom(folder: Path, number: int) -> dict[str, float]:
    """Build the SEG by highdicom's constructor."""
    images = [dcmread(path, stop_before_pixels=True) for path in sorted((folder / "images").iterdir())]
    labels = np.load(folder / f"{number}.npy")
    algorithm = hd.AlgorithmIdentificationSequence("balls", codes.DCM.ArtificialIntelligence, "1")

    def made(pixels: NDArray[np.uint8], described: int) -> bytes:
        descriptions = [
            hd.seg.SegmentDescription(
                n + 1, f"Ball {n + 1}", codes.SCT.Organ, codes.SCT.Brain, "AUTOMATIC", algorithm,
                tracking_uid=generate_uid(), tracking_id=f"Ball {n + 1}",
            )
            for n in range(described)
        ]  # fmt: skip
        buffer = io.BytesIO()
        hd.seg.Segmentation(
            images[: len(pixels)], pixels, "BINARY", descriptions, generate_uid(), 1, generate_uid(), 1, "bench",
            "bench", "1", "1",
        ).save_as(buffer)  # fmt: skip
        return buffer.getvalue()

    made((labels[148:152] > 0).astype(np.uint8), 1)
    before = time.perf_counter()
    size = len(made(labels, number))
    return {"seconds": time.perf_counter() - before, "bytes": size}


PYTHON: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "dicomai": dicomai,
    "label map": label_map,
    "highdicom": highdicom,
}


def measure(name: str, folder: Path, number: int) -> dict[str, float]:
    """Run a contender in a process of its own; give its seconds, and its largest memory in MB."""
    command = [sys.executable, __file__, "--only", name, str(folder), str(number)]
    if name == "dcmqi":
        made, meta = folder / "made.dcm", folder / f"{number}.json"
        command = [str(DCMQI), "--inputDICOMDirectory", str(folder / "images"), "--outputDICOM", str(made)]
        command += ["--inputImageList", str(folder / f"{number}.nrrd"), "--inputMetadata", str(meta)]
    before = time.perf_counter()
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - before
        printed.seek(0)
        text = printed.read().decode(errors="replace")
    if process.returncode:
        raise RuntimeError(f"{name} ended with {process.returncode}: {text[-2000:]}")
    if name == "dcmqi":
        found = {"seconds": seconds, "bytes": float(made.stat().st_size)}
    else:
        found = json.loads(text.splitlines()[-1])
    return {**found, "memory": usage.ru_maxrss / 1024}


def compare(folder: Path, number: int, runs: int) -> None:
    """Print the lines of one number of segments."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in (*PYTHON, "dcmqi")}
    for _ in range(runs):
        for name, values in taken.items():
            values.append(measure(name, folder, number))
    for name, values in taken.items():
        middle = {key: statistics.median(value[key] for value in values) for key in values[0]}
        ratios = [ours["seconds"] / one["seconds"] for ours, one in zip(taken["dicomai"], values, strict=True)]
        report = f"{middle['with_report']:.2f}" if "with_report" in middle else ""
        print(
            f"{number:>8}  {name:10} {middle['seconds']:>8.2f} {report:>8} {middle['memory']:>8.0f}"
            f" {middle['bytes'] / 1e6:>8.1f}  {statistics.median(ratios):>6.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--numbers", type=int, nargs="+", default=NUMBERS, choices=NUMBERS, help="of segments")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        name, folder, number = arguments.only
        if name == "prepare":
            prepare(Path(folder))
        else:
            print(json.dumps(PYTHON[name](Path(folder), int(number))))
        return
    with tempfile.TemporaryDirectory() as room:
        # In a process of its own: a child's largest memory counts from its parent's.
        subprocess.run([sys.executable, __file__, "--only", "prepare", room, "0"], check=True)
        print(f"A BINARY segmentation of 300 x 512 x 512, {arguments.runs} runs, medians:")
        print(f"segments  {'by':10} {'SEG, s':>8} {'+ SR, s':>8} {'RAM, MB':>8} {'SEG, MB':>8}  time of dicomai / its")
        for number in arguments.numbers:
            compare(Path(room), number, arguments.runs)


if __name__ == "__main__":
    main()
