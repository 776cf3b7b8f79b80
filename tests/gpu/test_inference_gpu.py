"""The same mask on a GPU as on a CPU. Skipped where there is no GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch

from dicomai import bundle, inference, stacks, volume, weights
from dicomai.errors import InferenceError
from dicomai.study import Instance, group
from dicomai.volume import Volume

DEMO = Path(__file__).parents[2] / "dicomai" / "demo" / "study"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
    pytest.mark.skipif(not any(DEMO.rglob("*.dcm")), reason="the demo's study is not there"),
]


def opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")


@pytest.fixture(scope="module")
def images() -> Volume:
    files = sorted(DEMO.rglob("*.dcm"))
    instances = [Instance.read(opener(path), path.name) for path in files]
    ((series,),) = (study.series for study in group(instances))
    (stack,) = stacks.split(series)
    return volume.load(stack, volume.Limits())


@pytest.fixture(scope="module")
def brain() -> bundle.Bundle:
    return bundle.find("brain_extraction", bundle.packaged())


@pytest.fixture(scope="module")
def folder(brain: bundle.Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights.pull(brain, tmp_path_factory.mktemp("storage"))


def test_cpu_and_gpu_agree(brain: bundle.Bundle, folder: Path, images: Volume) -> None:
    on_cpu = inference.load(brain, folder, "cpu").infer({"image": images})
    engine = inference.load(brain, folder, "auto")
    assert engine.device.type == "cuda"
    on_gpu, again = (engine.infer({"image": images}) for _ in range(2))
    one, two = (found.layers[0].labels.astype(bool) for found in (on_cpu, on_gpu))
    assert 2 * np.sum(one & two) / (one.sum() + two.sum()) > 0.9995
    assert on_gpu.measurements[0].value == pytest.approx(on_cpu.measurements[0].value, rel=1e-3)
    assert np.array_equal(again.layers[0].labels, on_gpu.layers[0].labels)


def test_too_little_memory_ends_in_a_sentence_and_the_next_run_works(
    brain: bundle.Bundle, folder: Path, images: Volume
) -> None:
    engine = inference.load(brain, folder, "cuda")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.002)
    try:
        with pytest.raises(InferenceError, match=r"brain_extraction needs more memory for .* GiB\)") as caught:
            engine.infer({"image": images})
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert caught.value.retryable
    assert engine.infer({"image": images}).measurements
