"""`mmssl export-onnx`: a speaker model as one ONNX file, compared with the model in onnxruntime."""

from __future__ import annotations

import argparse
import importlib.util

from mmssl.errors import ConfigError

HELP = "write a speaker model as an ONNX graph"
TOLERANCE = 1e-3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mmssl export-onnx`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = """input of the graph:
  waveforms  (batch, samples) in [-1, 1]   on fbank, mfcc, mel and spectrogram, and for RawNet3
  frames     (batch, frames, size)         on any other upstream, which is not part of the graph
output: embeddings (batch, size). All clips of a batch have one length; never pad.

exit code: 0 written, and equal in onnxruntime where that is installed; 1 an error, or not equal; 2 wrong usage"""
    parser.add_argument("model", metavar="MODEL", help="folder of a speaker model, as exp/NAME/model")
    parser.add_argument("output", metavar="FILE.onnx", help="the file to write")
    parser.add_argument(
        "--trust", action="store_true", help="also build parts that are no installed plug-in (runs their code)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the graph, compare it, and say what it takes."""
    from mmssl.speaker import load_speaker
    from mmssl.training.speaker_onnx import MISSING, compare_onnx, export_onnx

    model = load_speaker(args.model, trust=args.trust).model
    graph = export_onnx(model, args.output)
    takes = f"({graph.input_size} wide)" if graph.input_size else f"at {graph.sample_rate} Hz"
    unit = "samples" if graph.input == "waveforms" else "frames"
    print(
        f"{graph.path}: {graph.input} {takes}, at least {graph.min_length} {unit} -> embeddings of {graph.output_size}"
    )
    if importlib.util.find_spec("onnxruntime") is None:
        print(f"Not compared with the model: onnxruntime is not installed. {MISSING}")
        return 0
    found = compare_onnx(model, graph)
    shown = ", ".join(f"{length}: {value:.1e}" for length, value in found.items())
    print(f"Largest difference from the model in onnxruntime, in parts of the largest value, by length: {shown}")
    if max(found.values()) > TOLERANCE:
        raise ConfigError(f"The graph differs from the model by {max(found.values()):.1e}, more than {TOLERANCE}.")
    return 0
