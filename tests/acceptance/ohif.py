"""OHIF in a real browser, on a real archive: what a radiologist gets to see of a result.

with serving("3.13.2", pacs.dicomweb) as url, browser() as chromium:
    viewer = Viewer(chromium, url)
    viewer.open(study_instance_uid)

The viewer is OHIF's own build from npm, which `make viewers` fetches. It and the archive's DICOMweb are served from one
origin, as a hospital's proxy does. Chromium draws by software, so that no graphics card is needed.
"""

import base64
import contextlib
import functools
import io
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parents[2]
VERSIONS = ("3.12.10", "3.13.2")  # as .ci/fetch-ohif has them

_LOAD = 60_000  # ms for what a page has to load; a shared machine may be slow
_SOFTWARE_GL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--no-sandbox")
_CONFIG = b"""window.config = {
  routerBasename: '/', extensions: [], modes: [], showStudyList: true, showWarningMessageForCrossOrigin: false,
  showCPUFallbackMessage: false, investigationalUseDialog: { option: 'never' }, disableConfirmationPrompts: true,
  defaultDataSourceName: 'dicomweb',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'dicomweb',
    configuration: {
      friendlyName: 'Orthanc', name: 'orthanc', qidoRoot: '/dicom-web', wadoRoot: '/dicom-web',
      wadoUriRoot: '/dicom-web', qidoSupportsIncludeField: false, imageRendering: 'wadors',
      thumbnailRendering: 'wadors', enableStudyLazyLoad: true, supportsFuzzyMatching: false, supportsWildcard: true,
      omitQuotationForMultipartRequest: true,
    },
  }],
};
"""


def unpacked(version: str) -> Path:
    """The folder of a version's build; its absence is a failure, not a reason to skip."""
    folder = ROOT / ".cache" / "ohif" / version / "package" / "dist"
    if not (folder / "index.html").is_file():
        pytest.fail(f"OHIF {version} is not there: make viewers")
    return folder


class _Handler(SimpleHTTPRequestHandler):
    """Static files, the configuration, and the archive's DICOMweb under /dicom-web."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: Any, dicomweb: str, **named: Any) -> None:
        self.dicomweb = dicomweb
        super().__init__(*arguments, **named)

    def do_GET(self) -> None:
        if self.path.startswith("/dicom-web/"):
            self._pass_on()
        elif self.path.split("?")[0] == "/app-config.js":
            self._answer(HTTPStatus.OK, "text/javascript", _CONFIG)
        else:
            if not Path(self.translate_path(self.path)).is_file():
                self.path = "/index.html"  # a page of the application, which finds its way by itself
            super().do_GET()

    def _pass_on(self) -> None:
        asked = {name: self.headers[name] for name in ("Accept", "Range") if name in self.headers}
        call = urllib.request.Request(self.dicomweb + self.path.removeprefix("/dicom-web"), headers=asked)
        try:
            with urllib.request.urlopen(call, timeout=60) as answer:
                self._answer(answer.status, answer.headers["Content-Type"], answer.read())
        except urllib.error.HTTPError as refused:
            self._answer(refused.code, "text/plain", refused.read())

    def _answer(self, status: int, kind: str | None, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind or "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A browser breaks connections off when a page is left."""


@contextlib.contextmanager
def serving(version: str, dicomweb: str) -> Iterator[str]:
    """Serve a version of OHIF on an archive; gives its address."""
    handler = functools.partial(_Handler, directory=str(unpacked(version)), dicomweb=dicomweb)
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start Debian's Chromium without a display; end it."""
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=list(_SOFTWARE_GL))
        try:
            yield chromium
        finally:
            chromium.close()


# The segments of the segmentation that is shown: number, label, and the colour that it is drawn in.
_SEGMENTS = """() => {
  const grid = services.viewportGridService.getActiveViewportId();
  return services.segmentationService.getSegmentationRepresentations(grid).flatMap(shown => {
    const { segments } = services.segmentationService.getSegmentation(shown.segmentationId);
    return Object.values(shown.segments).map(one =>
      ({ number: one.segmentIndex, label: segments[one.segmentIndex].label, color: one.color.slice(0, 3) }));
  });
}"""

# Of each image with a segment the number of each voxel: its SOPInstanceUID, rows, columns, and bytes in base 64.
_LABELS = """() => services.segmentationService.getSegmentations().flatMap(({ representationData }) => {
  const { imageIds } = representationData.Labelmap;
  return imageIds.map(id => cornerstone.cache.getImage(id)).flatMap(image => {
    const voxels = Uint8Array.from(image.voxelManager.getScalarData());
    if (!voxels.some(value => value)) return [];
    let bytes = '';
    for (let i = 0; i < voxels.length; i += 8192) bytes += String.fromCharCode(...voxels.subarray(i, i + 8192));
    const { SOPInstanceUID } = cornerstone.metaData.get('instance', image.referencedImageId);
    return [[SOPInstanceUID, image.rows, image.columns, btoa(bytes)]];
  });
})"""

# Whether an image, or a report, of a modality is shown; the services throw until the page has made them.
_SHOWN = """modality => {
  try {
    const { viewports, activeViewportId } = services.viewportGridService.getState();
    const uids = viewports.get(activeViewportId).displaySetInstanceUIDs;
    if (!uids.some(uid => services.displaySetService.getDisplaySetByUID(uid).Modality === modality)) return false;
    if (modality === 'SR') return document.querySelector('[data-cy=viewport-grid]').innerText.includes('1.');
    return Boolean(services.cornerstoneViewportService.getCornerstoneViewport(activeViewportId).getImageData());
  } catch { return false; }
}"""

_GO_TO = """async uid => {
  const viewport = services.cornerstoneViewportService.getCornerstoneViewport(
    services.viewportGridService.getActiveViewportId());
  const index = viewport.getImageIds().findIndex(id => cornerstone.metaData.get('instance', id).SOPInstanceUID === uid);
  await viewport.setImageIdIndex(index);
  viewport.render();
}"""

_HIDE = """hidden => {
  const grid = services.viewportGridService.getActiveViewportId();
  for (const { segmentationId, segments } of services.segmentationService.getSegmentationRepresentations(grid))
    for (const { segmentIndex } of Object.values(segments))
      services.segmentationService.setSegmentVisibility(grid, segmentationId, segmentIndex, !hidden);
}"""


@dataclass(frozen=True)
class ListedSegment:
    """A segment as OHIF has it."""

    number: int
    label: str
    color: tuple[int, int, int]


class Viewer:
    """A page of OHIF."""

    def __init__(self, chromium: Browser, url: str) -> None:
        self._url = url
        self.page = chromium.new_page(viewport={"width": 1200, "height": 720})
        self.page.set_default_timeout(_LOAD)
        # The tour for new users lies over everything else.
        self.page.add_init_script("localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']))")

    def open(self, study_instance_uid: str, modality: str) -> None:
        """Open a study; its images of this modality are shown first."""
        self.page.goto(f"{self._url}/viewer?StudyInstanceUIDs={study_instance_uid}", wait_until="domcontentloaded")
        self.page.wait_for_function(_SHOWN, arg=modality)

    def show(self, modality: str) -> None:
        """Open the series of a modality as a person does: by two clicks on its thumbnail."""
        self.page.locator("[data-cy^=study-browser-thumbnail]").filter(has_text=modality).first.dblclick()
        if modality != "SEG":  # a segmentation is laid over the images that are shown
            self.page.wait_for_function(_SHOWN, arg=modality)

    def wait_for_segments(self, count: int, seconds: float = 60) -> None:
        """Wait until so many segments are listed."""
        self.page.wait_for_function(f"count => ({_SEGMENTS})().length >= count", arg=count, timeout=1000 * seconds)

    def segments(self) -> list[ListedSegment]:
        """Give the segments and the colours that they are drawn in."""
        found = self.page.evaluate(_SEGMENTS)
        return [ListedSegment(one["number"], one["label"], tuple(one["color"])) for one in found]

    def panel(self) -> str:
        """Give the text of the panel that lists the segments."""
        self.page.locator("[data-cy=panelSegmentation-btn]").click()
        self.page.locator("[data-cy=data-row]").first.wait_for()
        return "\n".join(self.page.locator("[data-cy=data-row]").all_inner_texts())

    def masks(self) -> dict[tuple[str, int], NDArray[np.bool_]]:
        """Give where the overlay is, (y, x), by the source image's SOPInstanceUID and the segment's number."""
        found: dict[tuple[str, int], NDArray[np.bool_]] = {}
        for uid, rows, columns, encoded in self.page.evaluate(_LABELS):
            plane = np.frombuffer(base64.b64decode(encoded), np.uint8).reshape(rows, columns)
            found |= {(uid, int(number)): plane == number for number in np.unique(plane) if number}
        return found

    def picture(self, sop_instance_uid: str | None = None, *, without_overlay: bool = False) -> NDArray[np.uint8]:
        """Give what is drawn in the viewport, without the texts over it: (rows, columns, 3)."""
        if sop_instance_uid is not None:
            self.page.evaluate(_GO_TO, sop_instance_uid)
        self.page.evaluate(_HIDE, without_overlay)
        before, now = "", self._drawn()
        while now != before:  # it is drawn in later animation frames, and anew where the window has changed
            before, now = now, self._drawn()
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(now.split(",")[1]))).convert("RGB"))

    def _drawn(self) -> str:
        self.page.wait_for_timeout(400)
        drawn: str = self.page.evaluate("document.querySelector('canvas.cornerstone-canvas').toDataURL()")
        return drawn

    def text(self) -> str:
        """Give the text in the viewport."""
        return self.page.locator("[data-cy=viewport-grid]").inner_text()

    def close(self) -> None:
        self.page.close()
