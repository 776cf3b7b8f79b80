"""What a person reads at the end of the demo."""

from pathlib import Path

from pydicom.dataset import Dataset
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from dicomai.demo.returned import Returned


def tell(screen: Console, result: Returned, out: Path) -> None:
    """Say what came back, and where it lies.

    Args:
        screen: where to.
        result: as it was read.
        out: the folder of results.
    """

    def line(text: str, indent: int, style: str = "") -> None:
        screen.print(Padding(text, (0, 0, 0, indent), style=style, expand=False))

    screen.print()
    screen.print("What came back to the PACS, as its DICOM objects say it", style="bold")
    line(_named("Segmentation (SEG)", result.seg), 2)
    for segment in result.segments:
        code = f"{segment.type.value}, {segment.type.scheme_designator}"
        line(f"Segment {segment.number}: {segment.label} ({code}) on {result.slices(segment)} slices", 4, "green")
    line(_named("Structured Report (SR)", result.sr), 2)
    for one in result.measurements:
        line(f"{one.segment.label}: {one.name.meaning.lower()} {one.value:.0f} {one.unit.value}", 4, "bold green")
    for remark in result.remarks:
        line(remark, 4)
    screen.print()
    screen.print("Where it lies", style="bold")
    where = Table.grid(padding=(0, 2))
    for name, what in (
        ("overlay.png", "the mask, outlined on three slices"),
        ("pacs", "the SEG and the SR as the PACS received them"),
        ("folder", "the same, from the folder destination"),
        ("node.log", "what the node logged"),
    ):
        where.add_row(str(out / name), what)
    screen.print(Padding(where, (0, 0, 0, 2), expand=False))


def _named(kind: str, ds: Dataset) -> str:
    return f"{kind}, series {ds.SeriesNumber}: {ds.SeriesDescription}"
