"""Opening segmentations in OHIF: seconds from two clicks on the series until all segments are listed and laid over.

    .venv/bin/python benchmarks/ohif.py            or: --slices 60

Boxes fill 300 x 512 x 512, 1, 10 or 100 of them, as a BINARY and as a LABELMAP object; Orthanc keeps the study,
Chromium draws without a graphics card. The images are shown before. `make acceptance` installs what is needed.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from numpy.typing import NDArray

from dicomai.outputs import Sources, build, encode
from dicomai.profiles import LABEL_MAP_SYNTAXES
from tests import results, synthetic
from tests.acceptance import ohif
from tests.acceptance.orthanc import Orthanc, orthanc


def boxes(shape: tuple[int, int, int], number: int) -> NDArray[np.uint8]:
    """Fill a volume with boxes, as large as they may be beside each other; the n-th has the value n."""
    side = int(np.ceil(number ** (1 / 3) - 1e-9))
    labels = np.zeros(shape, np.uint8)
    for n in range(number):
        place = np.unravel_index(n, (side,) * 3)
        labels[tuple(slice(p * s // side + 2, (p + 1) * s // side - 2) for p, s in zip(place, shape, strict=True))] = (
            n + 1
        )
    return labels


def segmentation(sources: Sources, number: int, syntax: str | None) -> bytes:
    """Build the object of so many boxes."""
    header = sources.header
    labels = boxes((len(sources.frames), int(header.Rows), int(header.Columns)), number)
    found = results.findings(labels, segments=[results.segment(n + 1, f"Box {n + 1}") for n in range(number)])
    ds = build("seg", found, sources, results.provenance(label_map=syntax))
    if ds is None:
        raise RuntimeError("no box has a voxel")
    return encode(ds)


def opened(viewer: ohif.Viewer, study: str, number: int) -> float:
    """Open the study, then its segmentation; seconds for the latter."""
    viewer.open(study, "CT")
    viewer.picture()
    began = time.monotonic()
    viewer.show("SEG")
    viewer.wait_for_segments(number, seconds=300)
    return time.monotonic() - began


def compare(pacs: Orthanc, study: str, sources: Sources, numbers: list[int], versions: list[str]) -> None:
    """Print the table."""
    print(f"{'OHIF':8} {'segments':>8}  {'':8} {'MB':>6} {'s':>6}")
    for number in numbers:
        for name, syntax in (("BINARY", None), ("LABELMAP", LABEL_MAP_SYNTAXES[0])):
            for instance in pacs.instances(Modality="SEG"):
                pacs.request(f"/instances/{instance}", method="DELETE")
            content = segmentation(sources, number, syntax)
            pacs.request("/instances", content, timeout=300)
            for version in versions:
                with ohif.serving(version, pacs.dicomweb) as url, ohif.browser() as chromium:
                    seconds = opened(ohif.Viewer(chromium, url), study, number)
                print(f"{version:8} {number:8}  {name:8} {len(content) / 1e6:6.1f} {seconds:6.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--segments", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--versions", nargs="+", default=[ohif.VERSIONS[-1]], choices=ohif.VERSIONS)
    arguments = parser.parse_args()
    missing = [tool for tool in ("chromium", "Orthanc") if shutil.which(tool) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} missing: `make acceptance` installs what is needed.")
    images = synthetic.series(array=np.zeros((arguments.slices, 512, 512), np.uint8), spacing=(1.0, 0.7, 0.7))
    sources = results.sources(synthetic.instances(images))
    with tempfile.TemporaryDirectory() as room, orthanc(Path(room) / "orthanc") as pacs:
        pacs.upload(*synthetic.write(images, Path(room) / "images"))
        compare(pacs, str(images[0].StudyInstanceUID), sources, arguments.segments, arguments.versions)


if __name__ == "__main__":
    main()
