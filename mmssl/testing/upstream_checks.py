"""The rules of an upstream's contract, one function each: it returns what it measured, or raises what is broken."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from mmssl.errors import MmsslError
from mmssl.testing.inputs import Batch, unit_rate, video_frames
from mmssl.testing.upstream_case import BrokenRuleError, Case, SkippedError, each_layer, require, rng_states, scale
from mmssl.types import STREAMS, UpstreamSpec
from mmssl.upstreams.base import Upstream

# relative error in the sense of norms that a layer may have in these types
HALF = {torch.float16: 0.05, torch.bfloat16: 0.15}


def check_loading(case: Case) -> str:
    """It loads, leaves the global generators alone, and is what the type says."""
    before = rng_states()
    case.upstream = case.build()
    require(
        isinstance(case.upstream, Upstream),
        f"it is a {type(case.upstream).__name__}, not an mmssl.upstreams.base.Upstream",
    )
    require(before == rng_states(), "loading changes a global random state: load it through mmssl.load_upstream")
    spec = getattr(case.upstream, "spec", None)
    require(isinstance(spec, UpstreamSpec), "it has no spec: set self.spec to an UpstreamSpec in the constructor")
    return f"{type(case.upstream).__name__} takes {' and '.join(case.spec.inputs)}"


def check_spec(case: Case) -> str:
    """The spec holds together."""
    spec = case.spec
    require(bool(spec.streams), "the spec declares no stream")
    unknown = set(spec.streams) - set(STREAMS)
    require(not unknown, f"streams must be among {', '.join(STREAMS)}, the spec declares {', '.join(sorted(unknown))}")
    unknown = set(spec.inputs) - {"waveforms", "video", "images"}
    require(bool(spec.inputs) and not unknown, f"inputs must be among waveforms, video, images, not {spec.inputs}")
    require("waveforms" not in spec.inputs or bool(spec.sample_rate), "it takes waveforms but declares no sample_rate")
    require("video" not in spec.inputs or bool(spec.video_fps), "it takes video but declares no video_fps")
    require(spec.min_length >= 1, f"min_length is {spec.min_length}, at least 1 is needed")
    case.settle_inputs()
    streams = (f"{name} {stream.num_layers} layers" for name, stream in spec.streams.items())
    return f"{', '.join(streams)}; runs on {' / '.join('+'.join(mode) for mode in case.modes)}"


def check_eval(case: Case) -> str:
    """Eval mode; nothing asks for gradients and none are kept."""
    training = [name or "the upstream" for name, module in case.upstream.named_modules() if module.training]
    require(not training, f"{training[:3]} in training mode: load it through mmssl.load_upstream, and keep eval mode")
    asking = [name for name, parameter in case.upstream.named_parameters() if parameter.requires_grad]
    require(not asking, f"parameters {asking[:3]} ask for gradients")
    for stream, k, data, _ in each_layer(case.run(case.draw(case.lengths(), case.modes[0]))):
        require(not data.requires_grad, f"layer {k} of {stream} keeps a gradient graph")
    return "eval mode, no gradient kept"


def check_rng(case: Case) -> str:
    """Running leaves the global generators alone, and does not draw from them."""
    batch = case.draw(case.lengths(), case.modes[0])
    before = rng_states()
    case.run(batch)
    require(before == rng_states(), "running changes a global random state")
    return "torch, numpy and Python generators untouched"


def check_repeat(case: Case) -> str:
    """The same call gives the same bits, and leaves its input as it was."""
    for mode in case.modes:
        batch = case.draw(case.lengths(), mode)
        copy = {name: value.clone() for name, value in batch.tensors.items()}
        first, second = case.run(batch), case.run(batch)
        for name, value in batch.tensors.items():
            require(torch.equal(value, copy[name]), f"it writes into its {name}")
        for (stream, k, a, _), (_, _, b, _) in zip(each_layer(first), each_layer(second), strict=True):
            require(torch.equal(a, b), f"two equal calls differ in layer {k} of {stream}")
    return "bit-equal"


def check_builds_agree(case: Case) -> str:
    """Two builds are the same model: nothing depends on when it was loaded."""
    batch = case.draw(case.lengths(), case.modes[0])
    other = case.build()
    for (stream, k, a, _), (_, _, b, _) in zip(
        each_layer(case.run(batch)), each_layer(case.run(batch, other)), strict=True
    ):
        require(
            torch.equal(a, b), f"two loaded copies differ in layer {k} of {stream}: do the weights follow the seed?"
        )
    return "two loaded copies give the same features"


def check_declared(case: Case) -> str:
    """Streams, layers, widths and dtype are those declared, at every length."""
    spec = case.spec
    for mode in case.modes:
        for length in {case.clamp(n) for n in (spec.min_length, spec.min_length + 1, *case.lengths())}:
            found = case.run(case.draw([length], mode))
            unknown = set(found) - set(spec.streams)
            require(not unknown, f"it returns undeclared streams: {', '.join(sorted(unknown))}")
            missing = set(spec.streams) - set(found)
            require(mode != case.modes[0] or not missing, f"declared but not returned: {', '.join(sorted(missing))}")
            for stream, layers in found.items():
                declared = spec.streams[stream].hidden_sizes
                require(
                    layers.hidden_sizes == declared and len(layers.lengths) == len(declared),
                    f"{stream} declares {len(declared)} layers of widths {_short(declared)} and returns "
                    f"{len(layers)} of {_short(layers.hidden_sizes)} for a length of {length}",
                )
            for stream, k, data, _ in each_layer(found):
                require(
                    data.dtype == case.upstream.dtype,
                    f"layer {k} of {stream} is {data.dtype}, the parameters are {case.upstream.dtype}",
                )
    return "; ".join(f"{name}: {_short(stream.hidden_sizes)}" for name, stream in spec.streams.items())


def _short(sizes: tuple[int, ...]) -> str:
    return f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 else str(list(sizes))


def _expected_lengths(case: Case, batch: Batch, stream: str, layer: int) -> Tensor | None:
    """What `output_lengths` says for a batch; None for a stream whose own unit the batch does not have.

    A fusion without a time axis holds the tokens of two inputs: the length of one does not tell how many.
    """
    if stream == "fusion" and not case.spec.streams[stream].hop_lengths[layer]:
        return None
    unit = "video" if stream == "video" or "waveforms" not in case.spec.inputs else "waveforms"
    if stream == "image" or "images" in batch.tensors:
        lengths = torch.ones(batch.size, dtype=torch.int64)
    elif unit in batch.lengths:
        lengths = batch.lengths[unit]
    else:
        return None
    return case.upstream.output_lengths(lengths, stream, layer)


def check_lengths(case: Case) -> str:
    """The number of frames is what `output_lengths` says, from the shortest clip to a long one."""
    spec = case.spec
    sizes = {spec.min_length, spec.min_length + 1, *case.lengths(), int(unit_rate(spec) * case.longest)}
    if "images" in spec.inputs:
        sizes = {1}
    ran = sorted({case.clamp(n) for n in sizes})
    for mode in case.modes:
        for length in ran:
            batch = case.draw([length], mode)
            for stream, k, data, lengths in each_layer(case.run(batch)):
                given = f"layer {k} of {stream} for an input of {length}"
                expected = _expected_lengths(case, batch, stream, k)
                require(
                    tuple(lengths.shape) == (1,) and lengths.dtype == torch.int64,
                    f"lengths of {given} must be (1,) int64, they are {tuple(lengths.shape)} {lengths.dtype}",
                )
                if expected is not None:
                    require(
                        int(lengths[0]) == int(expected[0]),
                        f"{given} has {int(lengths[0])} frames, output_lengths says {int(expected[0])}",
                    )
                require(
                    data.shape[1] == int(lengths[0]), f"{given} holds {data.shape[1]} frames, not {int(lengths[0])}"
                )
                require(int(lengths[0]) >= 1, f"{given} has no frame: min_length is too small")
                require(bool(data.isfinite().all()), f"{given} holds NaN or infinity")
    return f"exact from {ran[0]} to {ran[-1]}"


def check_hops(case: Case) -> str:
    """A hop more of input is a frame more of output, for every declared hop length."""
    checked = 0
    for stream, declared in case.spec.streams.items():
        start = case.spec.min_length
        if stream == "video":
            start = video_frames(case.spec, start)
        for k, hop in enumerate(declared.hop_lengths):
            limit = case.spec.max_length if stream != "video" or "waveforms" not in case.spec.inputs else None
            steps = 50 if limit is None or not hop else min(50, (limit - start) // hop)
            if not hop or steps < 1:
                continue
            inputs = torch.tensor([start + hop * step for step in range(steps + 1)])
            frames = case.upstream.output_lengths(inputs, stream, k).tolist()
            grown = {b - a for a, b in pairwise(frames)}
            require(
                grown == {declared.tokens_per_frame},
                f"layer {k} of {stream} declares a hop length of {hop}, but that much more input gives "
                f"{sorted(grown)} more frames, not {declared.tokens_per_frame}",
            )
            checked += 1
    if not checked:
        raise SkippedError("no layer has a time axis that can grow")
    return f"true for {checked} layers"


def check_padding(case: Case) -> str:
    """A clip alone, padded, and in a shuffled batch gives the same features, zero past its end."""
    return _compare_batches(case, fill=0.0)


def check_garbage(case: Case) -> str:
    """What lies past a clip's end cannot be seen in its features, NaN included."""
    if not any(batch_name in ("waveforms", "video") for batch_name in case.spec.inputs):
        raise SkippedError("images have no padding")
    return _compare_batches(case, fill=float("nan"))


def _compare_batches(case: Case, fill: float) -> str:
    worst, where = 0.0, "nowhere"
    for mode in case.modes:
        batch = case.draw(case.lengths(), mode)
        order = [*range(1, batch.size, 2), *range(0, batch.size, 2)]
        together = case.run(batch.padded(extra=100 if "waveforms" in mode else 2, value=fill))
        shuffled = case.run(batch.select(order).padded(extra=0, value=fill))
        for clip in range(batch.size):
            alone = case.run(batch.select([clip]))
            for found, row in ((together, clip), (shuffled, order.index(clip))):
                for (stream, k, a, n), (_, _, b, m) in zip(each_layer(alone), each_layer(found), strict=True):
                    frames, name = int(n[0]), f"layer {k} of {stream}, clip {clip} of {'+'.join(mode)}"
                    require(int(m[row]) == frames, f"{name} has {frames} frames alone and {int(m[row])} in a batch")
                    rest = b[row, frames:]
                    require(not bool(rest.any()), f"{name} is not zero past its {frames} frames")
                    difference = float((a[0, :frames] - b[row, :frames]).detach().abs().max()) / scale(a)
                    if not difference <= worst:
                        worst, where = difference, name
    require(
        worst <= case.tolerance,
        f"alone and in a batch differ by {worst:.1e} of the layer's scale ({where}), {case.tolerance:.0e} is allowed",
    )
    return f"largest difference {worst:.1e} of the layer's scale"


def check_packed(case: Case) -> str:
    """`extract_packed`, where there is one, gives each clip what it has alone."""
    packed = getattr(case.upstream, "extract_packed", None)
    if not callable(packed):
        raise SkippedError("it has no extract_packed")
    batch = case.draw(case.lengths(), ("waveforms",))
    clips = [batch.select([b]) for b in range(batch.size)]
    found = list(packed([clip.tensors["waveforms"][0] for clip in clips]))
    require(len(found) == batch.size, f"it gives {len(found)} clips for {batch.size}")
    worst = 0.0
    for number, (clip, one) in enumerate(zip(clips, found, strict=True)):
        alone = case.run(clip)
        require(set(alone) == set(one), f"it gives the streams {sorted(one)}, forward {sorted(alone)}")
        for (stream, k, a, _), (_, _, b, n) in zip(each_layer(alone), each_layer(one), strict=True):
            name = f"layer {k} of {stream}, clip {number}"
            require(
                a[0].shape == b.shape and n.dim() == 0 and int(n) == len(b),
                f"{name} is {tuple(b.shape)} of length {n.tolist()}, alone it is {tuple(a[0].shape)}",
            )
            worst = max(worst, float((a[0] - b).abs().max()) / scale(a))
    require(worst <= case.tolerance, f"it differs from forward by {worst:.1e} of the scale, over {case.tolerance:.0e}")
    return f"largest difference to each clip alone {worst:.1e} of the layer's scale"


def check_frame_context(case: Case) -> str:
    """A frame depends on no sample outside the context that `frame_context` declares."""
    context = case.upstream.frame_context()
    if context is None:
        raise SkippedError("it declares none: a frame may depend on the whole clip")
    hop = max(max(stream.hop_lengths) for stream in case.spec.streams.values())
    frame = context + 3
    start, end = (frame - context) * hop, (frame + context) * hop + case.spec.min_length
    batch = case.draw([case.clamp(end + 3 * hop)], ("waveforms",))
    changed = batch.tensors["waveforms"].clone()
    changed[:, :start], changed[:, end:] = -0.5 * changed[:, :start].flip(1), 0.3 * changed[:, end:].flip(1)
    other = case.run(Batch({"waveforms": changed}, batch.lengths))
    for (stream, k, a, _), (_, _, b, _) in zip(each_layer(case.run(batch)), each_layer(other), strict=True):
        worst = float((a[0, frame] - b[0, frame]).abs().max()) / scale(a)
        require(
            worst <= case.tolerance,
            f"frame {frame} of layer {k} of {stream} changes with samples beyond {context} frames, by {worst:.1e}",
        )
    return f"a frame sees {context} frames on either side and no more"


def check_too_short(case: Case) -> str:
    """One sample less than the minimum is refused in words that name the minimum."""
    spec = case.spec
    if spec.min_length <= 1 or "images" in spec.inputs:
        raise SkippedError("every length is allowed")
    names = ("waveforms",) if "waveforms" in spec.inputs else ("video",)
    batch = case.draw([spec.min_length - 1], case.modes[0] if names == ("waveforms",) else names)
    try:
        case.run(batch)
    except MmsslError as error:
        require(
            str(spec.min_length) in str(error), f"the error does not name the minimum of {spec.min_length}: {error}"
        )
        return f"less than {spec.min_length} is refused"
    except Exception as error:
        raise BrokenRuleError(f"a too short input raises {type(error).__name__}, not an MmsslError: {error}") from error
    raise BrokenRuleError(f"an input of {spec.min_length - 1}, below min_length, is accepted")


def check_half(case: Case) -> str:
    """float16 and bfloat16 come close to float32."""
    batch = case.draw(case.lengths(), case.modes[0])
    reference, said = case.run(batch), []
    for dtype, allowed in HALF.items():
        name = str(dtype).removeprefix("torch.")
        other = case.build().to(dtype)
        try:
            found = case.run(batch, other)
        except RuntimeError as error:
            if "not implemented for" not in str(error):
                raise BrokenRuleError(f"{name}: {error}") from error
            said.append(f"{name} unsupported here ({error})")
            continue
        worst = 0.0
        for (stream, k, a, _), (_, _, b, _) in zip(each_layer(reference), each_layer(found), strict=True):
            require(b.dtype == other.dtype, f"layer {k} of {stream} is {b.dtype} in a model of {name}")
            a, b = a.detach().double(), b.detach().double()
            error_norm = float((a - b).norm() / a.norm().clamp(min=1e-12))
            require(
                error_norm <= allowed,
                f"{name} is {error_norm:.3f} away from float32 in layer {k} of {stream}, {allowed} is allowed",
            )
            worst = max(worst, error_norm)
        said.append(f"{name} within {worst:.4f}")
    if all("unsupported" in line for line in said):
        raise SkippedError("; ".join(said))
    return "; ".join(said)


def check_device(case: Case) -> str:
    """It moves to an accelerator and back, with everything it needs."""
    if not torch.cuda.is_available():
        raise SkippedError("no accelerator here")
    batch = case.draw(case.lengths(), case.modes[0])
    reference, moved = case.run(batch), case.build().to("cuda")
    on_device = Batch(*({n: t.to("cuda") for n, t in part.items()} for part in (batch.tensors, batch.lengths)))
    worst = 0.0
    for (stream, k, a, _), (_, _, b, n) in zip(
        each_layer(reference), each_layer(case.run(on_device, moved)), strict=True
    ):
        require(b.device.type == "cuda" and n.device.type == "cuda", f"layer {k} of {stream} is not on the device")
        worst = max(worst, float((a - b.cpu()).abs().max()) / scale(a))
    require(worst <= 1e-2, f"the accelerator differs from the CPU by {worst:.1e} of a layer's scale")
    for (stream, k, a, _), (_, _, b, _) in zip(
        each_layer(reference), each_layer(case.run(batch, moved.to("cpu"))), strict=True
    ):
        require(torch.equal(a, b), f"layer {k} of {stream} differs after the way to the accelerator and back")
    return f"within {worst:.1e} of the CPU"


def check_gradients(case: Case) -> str:
    """Gradients reach every step of the input when they are asked for."""
    for mode in case.modes:
        batch = case.draw([case.clamp(int(unit_rate(case.spec) * 0.6))], mode)
        for value in batch.tensors.values():
            value.requires_grad_(True)
        generator = torch.Generator().manual_seed(0)
        total = torch.zeros(())
        for stream, k, data, _ in each_layer(case.run(batch)):
            require(data.requires_grad, f"layer {k} of {stream} has no gradient though the input asks for one")
            # a weighted sum: the plain sum of a layer norm's outputs is constant
            total = total + (data.float() * torch.randn(data.shape, generator=generator)).sum()
        total.backward()
        for name, value in batch.tensors.items():
            require(value.grad is not None and bool(value.grad.any()), f"no gradient reaches the {name}")
            require(value.grad is None or bool(value.grad.isfinite().all()), f"gradients of the {name} are not finite")
    return "reach the input"


CHECKS: dict[str, Callable[[Case], str]] = {
    "loads": check_loading,
    "spec": check_spec,
    "eval mode, no gradient kept": check_eval,
    "random states untouched": check_rng,
    "repeated calls equal": check_repeat,
    "two builds equal": check_builds_agree,
    "declared streams, layers and widths": check_declared,
    "exact lengths": check_lengths,
    "declared hops": check_hops,
    "alone = padded = shuffled": check_padding,
    "garbage in the padding": check_garbage,
    "packed = alone": check_packed,
    "declared context": check_frame_context,
    "too short input": check_too_short,
    "float16 and bfloat16": check_half,
    "device": check_device,
    "gradients": check_gradients,
}
"""Name of each check -> the function that runs it."""
