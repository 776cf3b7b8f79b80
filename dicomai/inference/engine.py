"""Engine: a bundle's networks, loaded once and kept warm, and a run of them on volumes."""

import contextlib
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.bundle.config_parser import ConfigParser
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import dense_patch_slices
from monai.inferers.inferer import Inferer, SimpleInferer, SlidingWindowInferer

from dicomai.bundle import Bundle
from dicomai.errors import BundleError, ConfigurationError, DicomaiError, InferenceError
from dicomai.findings import Findings
from dicomai.heads import PRED
from dicomai.inference import answers, grid
from dicomai.inference.errors import UnusableAnswerError
from dicomai.inference.given import Given
from dicomai.volume import Volume

Device = Literal["auto", "cpu", "cuda"]
Progress = Callable[[float], None]
Transform = Callable[[Any], Any]

IMAGE = "image"  # MONAI's name (monai.utils.CommonKeys) of what goes into the network

# The volume arrives loaded and channel first, and what comes out is not for the bundle to write.
_NOT_OURS = frozenset(
    {"LoadImage", "LoadImaged", "EnsureChannelFirst", "EnsureChannelFirstd", "SaveImage", "SaveImaged"}
)


def _silent(fraction: float) -> None: ...


class Engine:
    """A bundle made ready: build one by `load`, keep it, and call `infer` for every piece of work.

    Attributes:
        bundle: what it runs.
        device: where it runs.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device,
        network: torch.nn.Module,
        inferer: Inferer,
        preprocessing: Transform | None,
        postprocessing: Transform | None,
    ) -> None:
        self.bundle = bundle
        self.device = device
        self._network = network
        self._inferer = inferer
        self._preprocessing = preprocessing
        self._postprocessing = postprocessing

    def infer(self, volumes: Mapping[str, Volume], progress: Progress = _silent) -> Findings:
        """Run the bundle.

        Args:
            volumes: one for each role of the bundle's inputs; the label maps lie on the grid of the first role's.
            progress: called with the fraction done, 0 to 1, ascending. It may raise a DicomaiError to stop the run.

        Raises:
            BundleError: a role is missing, or there is one that the bundle does not have.
            UnreadableError: a voxel's value is no number.
            InferenceError: the network did not run, or its answer is not usable; `retryable` says whether it may
                go better another time.
        """
        roles = [one.role for one in self.bundle.inputs]
        if set(volumes) != set(roles):
            raise BundleError(
                f"{self.bundle.name} takes the inputs {', '.join(roles)}, it was given {', '.join(volumes) or 'none'}."
            )
        source = volumes[roles[0]]
        try:
            with torch.inference_mode(), _reproducible():
                given = self._answer({role: grid.to_tensor(volumes[role]) for role in roles}, progress)
        except DicomaiError:
            raise
        except Exception as error:  # a bundle is foreign code: whatever it raises must end as a sentence
            raise self._explained(error, source) from error
        found = answers.findings(self.bundle, given, source)
        progress(1.0)
        return found

    def _answer(self, data: dict[str, Any], progress: Progress) -> Given:
        """Give the finished answer."""
        progress(0.0)
        if self._preprocessing is not None:
            data = self._preprocessing(data)
        image = data.get(self._image_key(data))
        if not isinstance(image, MetaTensor):
            raise BundleError(f"The preprocessing of {self.bundle.name} leaves no image under the key '{IMAGE}'.")
        progress(0.1)
        raw = self._inferer(image.as_tensor().unsqueeze(0).to(self.device), self._watched(image, progress))
        progress(0.9)
        data = {**data, **self._placed(raw, image)}
        if self._postprocessing is not None:
            data = self._postprocessing(data)
        missing = sorted(self.bundle.keys - set(data))
        if missing:
            raise BundleError(
                f"The postprocessing of {self.bundle.name} leaves nothing under the key '{missing[0]}', which its"
                " dicomai.toml reads."
            )
        if self.bundle.layers and not isinstance(data[PRED], MetaTensor):
            raise BundleError(f"The postprocessing of {self.bundle.name} loses where the mask lies (no MetaTensor).")
        return Given(
            name=self.bundle.name,
            data={key: data[key] for key in self.bundle.keys},
            affine=np.asarray(image.affine.detach().cpu(), dtype=np.float64),
            shape=tuple(image.shape[1:]),
        )

    def _placed(self, raw: Any, image: MetaTensor) -> dict[str, Any]:
        """Name what an inferer gave as MONAI does, without the batch, and say of images where they lie.

        A tensor, (1, channel, ...), is `pred`. Several of them bear their names already. Detectors give a list with a
        dictionary for each image, of tensors that have no batch.
        """
        name = self.bundle.name
        if isinstance(raw, list | tuple) and len(raw) == 1 and isinstance(raw[0], dict):
            named = dict(raw[0])
        else:
            batches = raw if isinstance(raw, dict) else {PRED: raw}
            named = {key: one[0] if isinstance(one, torch.Tensor) and one.ndim else one for key, one in batches.items()}
        for key, one in named.items():
            if not isinstance(one, torch.Tensor):
                raise BundleError(
                    f"The inferer of {name} gave {type(one).__name__} as '{key}'; it has to give a tensor, or a"
                    " dictionary of them."
                )
            if not bool(torch.isfinite(one).all()):
                raise UnusableAnswerError(f"The network of {name} gave values that are no numbers.")
            named[key] = _located(one.cpu(), image)
        return named

    def _image_key(self, data: Mapping[str, Any]) -> str:
        return IMAGE if IMAGE in data else self.bundle.inputs[0].role

    def _watched(self, image: MetaTensor, progress: Progress) -> Callable[..., Any]:
        """Wrap the network so that each call of a sliding window is progress from 0.1 to 0.9."""
        network, inferer = self._network, self._inferer
        if not isinstance(inferer, SlidingWindowInferer):
            return network
        total, done = _windows(inferer, tuple(image.shape[1:])), 0

        def call(windows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal done
            result = network(windows, *args, **kwargs)
            done += len(windows)
            progress(0.1 + 0.8 * min(1.0, done / total))
            return result

        return call

    def _explained(self, error: Exception, source: Volume) -> InferenceError | DicomaiError:
        """Make a sentence of what came out of the bundle; MONAI wraps errors, so the causes are looked at too."""
        name, cause = self.bundle.name, error
        while True:
            if isinstance(cause, DicomaiError):
                return cause
            if isinstance(cause, torch.cuda.OutOfMemoryError):
                return InferenceError(_out_of_memory(name, self.device, source))
            if not isinstance(cause.__cause__, Exception):
                break
            cause = cause.__cause__
        return InferenceError(f"{name} did not run: {_one_line(cause)}.")


def _located(answer: torch.Tensor, image: MetaTensor) -> torch.Tensor:
    """Say of an image where it lies: where the one that the network saw does. A vector lies nowhere."""
    if answer.ndim != image.ndim:
        return answer
    return MetaTensor(answer, meta=image.meta, applied_operations=image.applied_operations)


def load(bundle: Bundle, weights_dir: Path, device: Device = "auto") -> Engine:
    """Build a bundle's networks, inferer and transforms from its `inference.json`, and load its weights.

    `preprocessing`, `network_def`, `inferer` and `postprocessing` are read, nothing else. They may refer to
    `bundle_root`, `weights_dir` and `device`, which are set here. A plain network gets the state of `model.pt`.

    Args:
        bundle: what to load.
        weights_dir: the folder that holds its weights, as `weights.located` gives it.
        device: `auto` is the GPU where there is one.

    Raises:
        ConfigurationError: `cuda` was asked for and there is no GPU.
        BundleError: `inference.json` or the weights are wrong.
    """
    chosen = _device(device)
    try:
        with _known_warnings():
            parser = _parser(bundle, weights_dir, chosen)
            network = _network(bundle, parser, weights_dir).to(chosen).eval()
            inferer = _optional(parser, "inferer") or SimpleInferer()
            preprocessing = _optional(parser, "preprocessing")
            postprocessing = _optional(parser, "postprocessing")
    except DicomaiError:
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise InferenceError(_out_of_memory(bundle.name, chosen)) from error
    except Exception as error:  # a bundle is foreign code: whatever it raises must end as a sentence
        raise BundleError(
            f"{bundle.path / 'configs' / 'inference.json'} cannot be built: {_one_line(error)}."
        ) from error
    return Engine(bundle, chosen, network, inferer, preprocessing, postprocessing)


def describe_device(wanted: Device = "auto") -> str:
    """Name what networks will run on, such as 'NVIDIA H100 80GB HBM3' or 'CPU, 16 threads'.

    Raises:
        ConfigurationError: `cuda` was asked for and there is no GPU.
    """
    chosen = _device(wanted)
    if chosen.type == "cuda":
        return str(torch.cuda.get_device_name(chosen))
    return f"CPU, {torch.get_num_threads()} threads"


def _device(wanted: Device) -> torch.device:
    present = torch.cuda.is_available()
    if wanted == "cuda" and not present:
        raise ConfigurationError(
            "worker.device is 'cuda' and PyTorch sees no GPU: install the driver and a CUDA build of PyTorch, or set"
            " worker.device to 'auto' or 'cpu'."
        )
    return torch.device("cuda" if present and wanted != "cpu" else "cpu")


def _parser(bundle: Bundle, weights_dir: Path, device: torch.device) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(bundle.path / "configs" / "inference.json")
    _disable(parser.config)
    parser["bundle_root"] = str(bundle.path)
    parser["weights_dir"] = str(weights_dir)
    parser["device"] = device
    return parser


def _disable(config: Any) -> None:
    """Have MONAI leave out the transforms that read and write files, wherever they stand."""
    if isinstance(config, dict):
        if str(config.get("_target_", "")).rpartition(".")[2] in _NOT_OURS:
            config["_disabled_"] = True
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            _disable(part)


def _optional(parser: ConfigParser, key: str) -> Any:
    return parser.get_parsed_content(key) if key in parser else None


def _network(bundle: Bundle, parser: ConfigParser, weights_dir: Path) -> torch.nn.Module:
    network = parser.get_parsed_content("network_def")
    if not isinstance(network, torch.nn.Module):
        raise BundleError(f"network_def of {bundle.name} makes {type(network).__name__}, which is no network.")
    _load_state(bundle, network, weights_dir)
    return network


def _load_state(bundle: Bundle, network: torch.nn.Module, weights_dir: Path) -> None:
    """Fill a plain network from `model.pt`, as MONAI's bundles have it; TorchScript holds its weights itself."""
    if isinstance(network, torch.jit.ScriptModule):
        return
    if not any(file.name == "model.pt" for file in bundle.weights.file):
        if any(True for _ in network.parameters()):
            raise BundleError(
                f"network_def of {bundle.name} makes a network without weights: name model.pt in [[weights.file]] of"
                " its dicomai.toml."
            )
        return
    try:
        state = torch.load(weights_dir / "model.pt", map_location="cpu", weights_only=True)
        network.load_state_dict(state.get("model", state))  # training checkpoints keep the state under 'model'
    except pickle.UnpicklingError as error:
        raise BundleError(
            f"model.pt of {bundle.name} holds more than tensors, which could be code and is not loaded: save the"
            " network's state_dict()."
        ) from error
    except (OSError, RuntimeError, AttributeError, TypeError) as error:
        raise BundleError(f"model.pt does not fit network_def of {bundle.name}: {_one_line(error)}.") from error


@contextlib.contextmanager
def _known_warnings() -> Iterator[None]:
    """Bear with two warnings that nobody can act on.

    Published weights come as TorchScript. Orientationd's labels have another default than once, and for RAS, in which
    every volume goes in, it is the same.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.load` is", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r".*Orientationd?\.__init__:labels", category=FutureWarning)
        yield


@contextlib.contextmanager
def _reproducible() -> Iterator[None]:
    """Have the same images give the same numbers: on every run, and as nearly as can be on CPU and GPU.

    TorchScript's optimizer would fuse after the first runs (`optimized_execution` is documented, though mypy does not
    find it exported), cuDNN would choose kernels by their speed of today, and
    TF32 has ten bits of mantissa.
    """
    with (
        torch.jit.optimized_execution(False),  # type: ignore[attr-defined]
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        yield


def _windows(inferer: SlidingWindowInferer, shape: tuple[int, ...]) -> int:
    """Count the windows of a sliding-window inferer on an image of this shape."""
    sizes = inferer.roi_size if isinstance(inferer.roi_size, (list, tuple)) else [inferer.roi_size] * len(shape)
    roi = [size if size and size > 0 else side for size, side in zip(sizes, shape, strict=True)]
    padded = [max(size, side) for size, side in zip(roi, shape, strict=True)]
    overlaps = inferer.overlap if isinstance(inferer.overlap, (list, tuple)) else [inferer.overlap] * len(shape)
    steps = [
        size if size == side else max(1, int(size * (1 - overlap)))
        for size, side, overlap in zip(roi, padded, overlaps, strict=True)
    ]
    return max(1, len(dense_patch_slices(padded, roi, steps)))


def _out_of_memory(name: str, device: torch.device, source: Volume | None = None) -> str:
    torch.cuda.empty_cache()
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
    what = f" for {' x '.join(str(side) for side in reversed(source.array.shape))} voxels" if source else ""
    return (
        f"{name} needs more memory{what} than {torch.cuda.get_device_name(device)} has free ({free:.1f} of {total:.1f}"
        " GiB): end what else runs there, or set worker.device to 'cpu'."
    )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}".rstrip(" .:")
