"""Speaker models as ONNX graphs, for use without Python or torch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.downstream.speaker_model import LEVEL, SpeakerModel
from mmssl.errors import ConfigError, InputError
from mmssl.files import replace_file
from mmssl.nn.rawnet3 import AnalyticSincConv, RawNet3Encoder
from mmssl.random import isolated_rng
from mmssl.types import Layers, Padded
from mmssl.upstreams.spectral import Spectral

MISSING = "pip install 'mmssl[export]' (onnx, onnxscript and onnxruntime)"


@dataclass(frozen=True)
class OnnxGraph:
    """What a graph takes and gives; the same is in the file's metadata.

    Attributes:
        path: of the file.
        input: "waveforms" (batch, samples) in [-1, 1], or "frames" (batch, frames, `input_size`): what
            `SpeakerModel.frames` gives.
        input_size: width of the frames; 0 for waveforms.
        sample_rate: of the waveforms, in Hz.
        min_length: shortest input in samples or frames.
        output_size: width E of the output "embeddings" (batch, E).
    """

    path: Path
    input: str
    input_size: int
    sample_rate: int
    min_length: int
    output_size: int

    def metadata(self) -> dict[str, str]:
        """As text, for the file."""
        names = ("input", "input_size", "sample_rate", "min_length", "output_size")
        return {"kind": "mmssl speaker model"} | {name: str(getattr(self, name)) for name in names}


class _FixedFilters(nn.Module):
    """The filters of a trained `AnalyticSincConv` as numbers: the exporter knows no Hamming window."""

    def __init__(self, filters: AnalyticSincConv) -> None:
        super().__init__()
        self.kernel, self.stride = filters.kernel, filters.stride
        self.register_buffer("weight", filters.filters().detach().clone())

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, 1, T) -> (B, num_filters, frames)."""
        return nn.functional.conv1d(waveforms, self.get_buffer("weight"), stride=self.stride)


class _WholeClips(nn.Module):
    """A speaker model on clips of one length, with nothing that depends on values.

    Log-mel and other spectral front ends run the very code of the upstream (`Spectral.features`) on all windows.
    """

    def __init__(self, model: SpeakerModel) -> None:
        super().__init__()
        self.encoder = model.encoder
        if isinstance(self.encoder, RawNet3Encoder):
            self.encoder = copy.deepcopy(self.encoder)
            self.encoder.filters = _FixedFilters(self.encoder.filters)  # type: ignore[assignment]
        self.front: Spectral | None = model.upstream if isinstance(model.upstream, Spectral) else None
        self.interface = model.interface if self.front is not None else None
        self.centre, self.stream = model.centre, model.stream

    def forward(self, data: Tensor) -> Tensor:
        """Waveforms (B, T), or frames (B, T, D) -> embeddings (B, E)."""
        if self.front is not None and self.interface is not None:
            data = self.frames(self.front, self.interface, data)
        return self.encoder(Padded(data, _full(data)))

    def frames(self, front: Spectral, interface: nn.Module, waveforms: Tensor) -> Tensor:
        """What `SpeakerModel.frames` gives of clips without padding."""
        windows = waveforms.unfold(1, front.window, front.hop)
        found = front.features(windows.reshape(-1, front.window))
        found = front.finish(found.reshape(windows.shape[0], windows.shape[1], -1), _full(windows))
        joined = interface(Layers((found,), (_full(found),))).data
        if not self.centre:
            return joined
        return joined - joined.mean((1, 2) if self.centre == LEVEL else 1, keepdim=True)


def _full(data: Tensor) -> Tensor:
    """Lengths (B,) of clips without padding."""
    return torch.ones(data.shape[0], dtype=torch.int64, device=data.device) * data.shape[1]


def export_onnx(model: SpeakerModel, path: str | Path) -> OnnxGraph:
    """Write a speaker model as one ONNX file with a free number of clips and a free length.

    The graph takes waveforms where the front end is a spectral upstream (fbank, mfcc, mel, spectrogram) or the encoder
    takes waveforms itself (RawNet3). On any other upstream it takes the frames behind the interface, since those
    upstreams are not part of it. All clips of a batch have one length: run clips of several lengths one by one, or in
    groups, never padded.

    Args:
        model: its weights are written as they are; it stays in its mode and on its device.
        path: of the file, ending in .onnx.

    Returns:
        What the graph takes and gives.

    Raises:
        ConfigError: onnx or onnxscript is not installed, the ending is another one, or the exporter cannot express a
            part of the model.
    """
    path = Path(path)
    if path.suffix != ".onnx" or not path.parent.is_dir():
        raise ConfigError(f"The graph goes into a file NAME.onnx in a folder that exists, got {path}.")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"ONNX export needs packages that are not installed: {MISSING}.") from error
    graph = _described(model, path)
    axes = {0: "batch", 1: "samples" if graph.input == "waveforms" else "frames"}
    training, device = model.training, next(model.parameters()).device
    whole = _WholeClips(model.eval().cpu())
    try:
        # the exporter warns of its own parts, and may draw random numbers
        with isolated_rng(0), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                whole,
                (_example(graph),),
                dynamo=True,
                dynamic_shapes=(axes,),
                input_names=[graph.input],
                output_names=["embeddings"],
                verbose=False,
            )
    except Exception as error:
        raise ConfigError(
            f"torch {torch.__version__} cannot write this model as ONNX ({type(error).__name__}): "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}"
        ) from error
    finally:
        model.to(device).train(training)
    assert program is not None
    program.model.metadata_props.update(graph.metadata())
    with replace_file(path) as file:
        file.write(program.model_proto.SerializeToString())
    return graph


def compare_onnx(
    model: SpeakerModel, graph: OnnxGraph, lengths: Sequence[int] | None = None, *, seed: int = 0
) -> dict[int, float]:
    """Run a graph in onnxruntime beside the model on noise.

    Args:
        model: that was exported.
        graph: what `export_onnx` returned.
        lengths: of the clips, in samples or frames; None for four from the shortest to about 4 s.
        seed: of the noise.

    Returns:
        length -> largest difference of an embedding's value, in parts of the largest value of the embeddings.

    Raises:
        ConfigError: onnxruntime is not installed.
        InputError: a length is too short.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"The comparison needs onnxruntime: {MISSING}.") from error
    if lengths is None:
        step = graph.sample_rate if graph.input == "waveforms" else 50
        lengths = (graph.min_length, graph.min_length + 7, step + graph.min_length, 4 * step + 3)
    if min(lengths) < graph.min_length:
        raise InputError(f"The graph takes inputs of at least {graph.min_length} steps, got {min(lengths)}.")
    session = onnxruntime.InferenceSession(graph.path, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for number, length in enumerate(lengths):
        size = (length,) if graph.input == "waveforms" else (length, graph.input_size)
        clips = 0.1 * torch.randn(1 + number % 3, *size, generator=generator)
        expected = _embed(model, graph, Padded(clips, _full(clips)))
        (given,) = session.run(None, {graph.input: clips.numpy()})
        found[length] = float((torch.from_numpy(given) - expected).abs().max() / expected.abs().max())
    return found


@torch.no_grad()
def _embed(model: SpeakerModel, graph: OnnxGraph, clips: Padded) -> Tensor:
    """Embeddings by the model itself, from what the graph takes."""
    device = next(model.parameters()).device
    if graph.input == "waveforms":
        return model.embed(clips.to(device)).cpu()
    training = model.training
    model.eval()
    try:
        return model.encode(clips.to(device)).cpu()
    finally:
        model.train(training)


def _described(model: SpeakerModel, path: Path) -> OnnxGraph:
    if model.upstream is None or isinstance(model.upstream, Spectral):
        return OnnxGraph(path, "waveforms", 0, model.sample_rate, model.min_length, model.output_size)
    width: Any = model.interface.output_size if model.interface is not None else 0
    return OnnxGraph(path, "frames", int(width), model.sample_rate, 1, model.output_size)


def _example(graph: OnnxGraph) -> Tensor:
    """An input that gives some frames, no dimension of which is 1, which the exporter would take for fixed."""
    if graph.input == "waveforms":
        return torch.zeros(2, graph.min_length + graph.sample_rate // 2)
    return torch.zeros(2, 50, graph.input_size)
