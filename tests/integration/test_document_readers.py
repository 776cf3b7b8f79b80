"""Documents inside of DICOM objects before readers of other people: DCMTK takes the PDF out, and takes the STL in."""

import subprocess
from pathlib import Path

from dicomai.outputs import build, encode
from tests import results, synthetic

SHAPE = (6, 12, 14)


def test_dcmtk_reads_both_documents(tmp_path: Path) -> None:
    sources = results.sources(synthetic.instances(synthetic.series(shape=SHAPE)))
    found = results.findings(results.ball(SHAPE))
    pdf, mesh = (build(output, found, sources, results.provenance()) for output in ("pdf", "mesh"))
    assert pdf is not None
    assert mesh is not None
    (tmp_path / "pdf.dcm").write_bytes(encode(pdf))
    subprocess.run(["/usr/bin/dcm2pdf", tmp_path / "pdf.dcm", tmp_path / "out.pdf"], check=True)
    assert (tmp_path / "out.pdf").read_bytes() == pdf.EncapsulatedDocument[: pdf.EncapsulatedDocumentLength]
    (tmp_path / "in.stl").write_bytes(mesh.EncapsulatedDocument[: mesh.EncapsulatedDocumentLength])
    subprocess.run(["/usr/bin/stl2dcm", "-q", tmp_path / "in.stl", tmp_path / "stl.dcm"], check=True)
