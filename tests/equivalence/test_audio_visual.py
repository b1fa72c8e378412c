"""Audio-visual encoders against torchvision, transformers and librosa, or plain functions of the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import HubertConfig, HubertModel

from mmssl.nn.av_frontend import MouthFrontEnd, StackedFilterbank, mouth_crops
from mmssl.nn.conv_tower import ConvTower
from mmssl.nn.packed import Packed
from mmssl.nn.r2plus1d import r2plus1d_18
from mmssl.nn.resnet2d import resnet18_audio
from mmssl.nn.spectrogram import LogSpectrogram
from mmssl.upstreams.av_hubert import AvHubert
from mmssl.upstreams.l3 import L3
from mmssl.upstreams.speech_weights import to_canonical
from mmssl.upstreams.two_tower import AVID, CrissCross

Weights = dict[str, Tensor]


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with norms, slopes and biases away from their neutral start."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor) * 0.3)
    return module.eval()


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert float(theirs.std()) > 0
    assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


@torch.no_grad()
def test_every_stage_of_r2plus1d_18_is_torchvisions() -> None:
    theirs = shaken(torchvision.models.video.r2plus1d_18())
    ours = r2plus1d_18().eval()
    ours.load_state_dict({n: t for n, t in theirs.state_dict().items() if not n.startswith("fc.")})
    x = expected = torch.randn(2, 3, 7, 24, 24)
    layers = ours(x)
    for name, ours_map, layer in zip(ours.names, ours.maps(x), layers, strict=True):
        expected = getattr(theirs, name)(expected)
        assert_close(ours_map, expected)
        assert_close(layer, expected.mean((3, 4)).transpose(1, 2))
    assert [layer.shape[1] for layer in layers] == [7, 7, 4, 2, 1]


@torch.no_grad()
def test_every_stage_of_the_audio_resnet_is_torchvisions() -> None:
    theirs = torchvision.models.resnet18()
    theirs.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    shaken(theirs)
    names = {"conv1": "stem.0", "bn1": "stem.1"}
    state = {
        ".".join([names.get(n.split(".")[0], n.split(".")[0]), *n.split(".")[1:]]): t
        for n, t in theirs.state_dict().items()
        if not n.startswith("fc.")
    }
    ours = resnet18_audio().eval()
    ours.load_state_dict(state)
    x = torch.randn(2, 1, 40, 61)
    expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    for name, ours_map in zip(ours.names, ours.maps(x), strict=True):
        expected = expected if name == "stem" else getattr(theirs, name)(expected)
        assert_close(ours_map, expected)


def norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Batch norm in eval mode, written out."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    mean, var, gain, bias = (
        weights[f"{name}.{p}"].view(shape) for p in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + 1e-5) * gain + bias


def draw(shapes: dict[str, tuple[int, ...]], norms: dict[str, int], prefix: str) -> Weights:
    """Random weights of convolutions and norms by the authors' names."""
    torch.manual_seed(3)
    weights = {f"{prefix}{n}.weight": torch.randn(s) / math.sqrt(math.prod(s[1:])) for n, s in shapes.items()}
    for name, size in norms.items():
        weights[f"{prefix}{name}.weight"] = torch.rand(size) + 0.5
        weights[f"{prefix}{name}.bias"] = torch.randn(size) * 0.3
        weights[f"{prefix}{name}.running_mean"] = torch.randn(size) * 0.3
        weights[f"{prefix}{name}.running_var"] = torch.rand(size) + 0.5
        weights[f"{prefix}{name}.num_batches_tracked"] = torch.tensor(7)
    return weights


def official_video(width: int, prefix: str) -> Weights:
    """A state dict as AVID and CrissCross name their video tower."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.0": (width, 3, 3, 7, 7)}
    norms = {"conv1.1": width}
    inputs = width
    for stage, outputs in zip(range(2, 6), (width, 2 * width, 4 * width, 8 * width), strict=True):
        for block in range(2):
            name = f"conv{stage}x.{block}"
            shapes |= {
                f"{name}.spt_conv1": (outputs, inputs, 1, 3, 3),
                f"{name}.tmp_conv1": (outputs, outputs, 3, 1, 1),
                f"{name}.spt_conv2": (outputs, outputs, 1, 3, 3),
                f"{name}.tmp_conv2": (outputs, outputs, 3, 1, 1),
            }
            norms |= {f"{name}.{n}": outputs for n in ("spt_bn1", "tmp_bn1", "spt_bn2", "out_bn")}
            if inputs != outputs:
                shapes[f"{name}.res_conv"] = (outputs, inputs, 1, 1, 1)
            inputs = outputs
    return draw(shapes, norms, prefix)


def official_video_maps(w: Weights, x: Tensor) -> list[Tensor]:
    """Their video tower as functions: the stem and the four stages."""
    x = norm(w, "conv1.1", F.conv3d(x, w["conv1.0.weight"], stride=(1, 2, 2), padding=(1, 3, 3))).relu()
    x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    maps = [x]
    for stage in range(2, 6):
        for block in range(2):
            name, stride = f"conv{stage}x.{block}", 2 if stage > 2 and block == 0 else 1
            y = F.conv3d(x, w[f"{name}.spt_conv1.weight"], stride=(1, stride, stride), padding=(0, 1, 1))
            y = norm(w, f"{name}.spt_bn1", y).relu()
            y = F.conv3d(y, w[f"{name}.tmp_conv1.weight"], stride=(stride, 1, 1), padding=(1, 0, 0))
            y = norm(w, f"{name}.tmp_bn1", y).relu()
            y = norm(w, f"{name}.spt_bn2", F.conv3d(y, w[f"{name}.spt_conv2.weight"], padding=(0, 1, 1))).relu()
            y = F.conv3d(y, w[f"{name}.tmp_conv2.weight"], padding=(1, 0, 0))
            short = F.conv3d(x, w[f"{name}.res_conv.weight"], stride=stride) if f"{name}.res_conv.weight" in w else x
            x = norm(w, f"{name}.out_bn", y + short).relu()
        maps.append(x)
    return maps


def official_avid_audio(width: int, prefix: str) -> Weights:
    shapes: dict[str, tuple[int, ...]] = {"conv1.0": (width, 1, 7, 7)}
    norms, inputs = {"conv1.1": width}, width
    for block, outputs in zip(range(1, 5), (width, 2 * width, 4 * width, 8 * width), strict=True):
        shapes |= {f"block{block}.conv1": (outputs, inputs, 3, 3), f"block{block}.conv2": (outputs, outputs, 3, 3)}
        norms |= {f"block{block}.bn1": outputs, f"block{block}.bn2": outputs}
        inputs = outputs
    return draw(shapes, norms, prefix)


def colours(video: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((video - mean.view(3, 1, 1)) / std.view(3, 1, 1)).transpose(1, 2)


@torch.no_grad()
def test_a_file_of_avid_gives_what_its_network_computes(tmp_path: Path) -> None:
    video, audio = official_video(4, "module.video_model."), official_avid_audio(4, "module.audio_model.")
    heads = {"module.video_proj.projection.0.weight": torch.randn(3, 32)}
    torch.save({"epoch": 1, "model": video | audio | heads}, tmp_path / "avid.pth.tar")
    mean, std = np.linspace(-60, -30, 257), np.linspace(10, 20, 257)
    np.savez(tmp_path / "stats.npz", mean=mean, std=std)
    ours = AVID(str(tmp_path / "avid.pth.tar"), statistics=str(tmp_path / "stats.npz"), width=4, image_size=24).eval()
    clip, pictures = torch.randn(24000 // 2) * 0.1, torch.rand(1, 9, 3, 24, 24)
    found = ours(clip[None], video=pictures)

    plain = {n.removeprefix("module.video_model."): t for n, t in video.items()}
    for layer, expected in zip(
        found["video"].hidden_states, official_video_maps(plain, colours(pictures)), strict=True
    ):
        assert_close(layer, expected.amax((3, 4)).transpose(1, 2))

    spectrum = np.abs(librosa.stft(clip.numpy(), n_fft=1024, hop_length=240, pad_mode="reflect")) ** 2
    spectrum = np.concatenate([spectrum[:1], spectrum[1:].reshape(256, 2, -1).mean(1)])
    level = (librosa.power_to_db(spectrum, top_db=100) - mean[:, None]) / (std[:, None] + 1e-5)
    w = {n.removeprefix("module.audio_model."): t for n, t in audio.items()}
    x = torch.from_numpy(level.T.astype(np.float32))[None, None]  # time before frequency
    x = norm(w, "conv1.1", F.conv2d(x, w["conv1.0.weight"], stride=2, padding=3)).relu()
    expected_audio = [x]
    for block, stride in zip(range(1, 5), (2, 2, 2, 1), strict=True):
        x = norm(w, f"block{block}.bn1", F.conv2d(x, w[f"block{block}.conv1.weight"], stride=stride, padding=1)).relu()
        x = norm(w, f"block{block}.bn2", F.conv2d(x, w[f"block{block}.conv2.weight"], padding=1)).relu()
        expected_audio.append(x)
    for layer, expected in zip(found["audio"].hidden_states, expected_audio, strict=True):
        assert_close(layer, expected.amax(3).transpose(1, 2), 1e-4)


@torch.no_grad()
def test_a_video_file_of_crisscross_gives_what_its_network_computes(tmp_path: Path) -> None:
    weights = official_video(4, "")
    torch.save(weights, tmp_path / "vid.pth.tar")
    ours = CrissCross(str(tmp_path / "vid.pth.tar"), width=4, image_size=24).eval()
    assert ours.spec.inputs == ("video",)
    pictures = torch.rand(1, 5, 3, 24, 24)
    expected = official_video_maps(weights, colours(pictures))
    for layer, single in zip(ours(video=pictures)["video"].hidden_states, expected, strict=True):
        assert_close(layer, single.mean((3, 4)).transpose(1, 2))


def test_the_log_mel_of_crisscross_is_librosas() -> None:
    tower = CrissCross(modalities=["audio"], width=1).audio
    assert tower is not None
    clip = (torch.randn(32000) * 0.1).numpy()
    power = librosa.feature.melspectrogram(
        y=clip, sr=16000, n_fft=1024, hop_length=160, n_mels=80, pad_mode="reflect", power=2.0
    )
    expected = (np.log(power + np.finfo(np.float32).eps) - -5.3688107) / 4.410007
    ours = tower.spectrogram(torch.from_numpy(clip)[None])[0]
    assert ours.shape == (80, 201)
    assert_close(ours, torch.from_numpy(expected), 1e-4)


@torch.no_grad()
def test_the_towers_of_l3_are_plain_sequences() -> None:
    ours = shaken(L3(width=3, image_size=32))
    assert isinstance(ours, L3)
    assert ours.audio is not None
    assert ours.video is not None
    spectrogram = ours.audio.spectrogram(torch.randn(1, 48000) * 0.1)
    assert spectrogram.shape == (1, 257, 199)  # as in the paper
    pictures = torch.rand(2, 3, 3, 32, 32)
    for trunk, x in ((ours.audio.trunk, spectrogram[:, None]), (ours.video.trunk, (pictures * 2 - 1).flatten(0, 1))):
        expected = plain_l3(trunk)(x)
        assert_close(trunk.maps(x)[-1], expected)
    frames = ours(video=pictures)["video"].hidden_states[-1]
    assert_close(frames, plain_l3(ours.video.trunk)((pictures * 2 - 1).flatten(0, 1)).amax((2, 3)).view(2, 3, 24))


def plain_l3(trunk: ConvTower) -> nn.Sequential:
    """The same convolutions and norms as one sequence."""
    parts: list[nn.Module] = []
    first, *others = (getattr(trunk, name) for name in trunk.names)
    for index, block in enumerate([first[1], *others]):
        parts += [nn.MaxPool2d(2, 2)] if index else [first[0]]
        parts += [block.conv1, block.bn1, nn.ReLU(), block.conv2, block.bn2, nn.ReLU()]
    return nn.Sequential(*parts).eval()


def numpy_logfbank(samples: np.ndarray) -> np.ndarray:
    """26 log filterbanks of 16-bit samples at 16 kHz by the formula of python_speech_features, with loops."""
    signal = samples.astype(np.float64)
    emphasised = np.array([signal[0], *(signal[t] - 0.97 * signal[t - 1] for t in range(1, len(signal)))])
    count = 1 if len(signal) <= 400 else 1 + math.ceil((len(signal) - 400) / 160)
    emphasised = np.concatenate([emphasised, np.zeros((count - 1) * 160 + 400 - len(signal))])
    top = 2595 * math.log10(1 + 8000 / 700)
    points = [700 * (10 ** (top * i / 27 / 2595) - 1) for i in range(28)]
    bins = [math.floor(513 * hertz / 16000) for hertz in points]
    rows = []
    for frame in range(count):
        window = emphasised[frame * 160 : frame * 160 + 400]
        power = np.abs(np.fft.rfft(window, 512)) ** 2 / 512
        row = []
        for j in range(26):
            low, peak, high = bins[j : j + 3]
            energy = sum(power[i] * (i - low) / (peak - low) for i in range(low, peak))
            energy += sum(power[i] * (high - i) / (high - peak) for i in range(peak, high))
            row.append(math.log(energy if energy != 0 else np.finfo(float).eps))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("length", [640, 1000, 1919, 6401])
def test_the_filterbank_is_python_speech_features(length: int) -> None:
    samples = (np.random.default_rng(length).normal(size=length) * 3000).astype(np.int16)
    if length == 6401:
        samples[2000:4000] = 0  # silence, whose energy is exactly zero
    expected = numpy_logfbank(samples)
    ours = StackedFilterbank(normalize=False)
    waveform = torch.from_numpy(samples.astype(np.float32) / 2**15)
    np.testing.assert_allclose(ours.rows(waveform).numpy(), expected, atol=1e-9)
    stacked = np.zeros((-(-len(expected) // 4) * 4, 26))
    stacked[: len(expected)] = expected
    np.testing.assert_allclose(ours(waveform).numpy(), stacked.reshape(-1, 104)[: length // 640], rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["prelu", "relu"])
def test_the_mouth_network_is_a_plain_computation(activation: str) -> None:
    net = shaken(MouthFrontEnd(width=4, activation=activation))
    assert isinstance(net, MouthFrontEnd)
    w = net.state_dict()

    def act(name: str, x: Tensor) -> Tensor:
        if activation == "relu":
            return x.clamp(min=0)
        slope = w[f"{name}.weight"].view(1, -1, *[1] * (x.dim() - 2))
        return torch.where(x > 0, x, slope * x)

    clips = [mouth_crops(torch.rand(n, 1, 30, 34), 24, 0.4, 0.2) for n in (5, 3)]
    found = net(clips).split()
    for clip, ours in zip(clips, found, strict=True):
        x = F.conv3d(clip.transpose(0, 1)[None], w["stem.0.weight"], stride=(1, 2, 2), padding=(2, 3, 3))
        x = F.max_pool3d(act("stem.2", norm(w, "stem.1", x)), (1, 3, 3), (1, 2, 2), (0, 1, 1))[0].transpose(0, 1)
        for layer in range(1, 5):
            for block in range(2):
                name, stride = f"trunk.layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
                y = norm(w, f"{name}.bn1", F.conv2d(x, w[f"{name}.conv1.weight"], stride=stride, padding=1))
                y = norm(w, f"{name}.bn2", F.conv2d(act(f"{name}.relu1", y), w[f"{name}.conv2.weight"], padding=1))
                if f"{name}.downsample.0.weight" in w:
                    x = norm(w, f"{name}.downsample.1", F.conv2d(x, w[f"{name}.downsample.0.weight"], stride=stride))
                x = act(f"{name}.relu2", x + y)
        assert_close(ours, x.mean((2, 3)))


@torch.no_grad()
@pytest.mark.parametrize("pre_norm", [True, False])
def test_the_transformer_of_av_hubert_is_transformers_hubert(pre_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from mmssl.upstreams import av_hubert

    tiny = av_hubert.AV_HUBERT_PRESETS["tiny"]
    config = dataclasses.replace(tiny, encoder=dataclasses.replace(tiny.encoder, layer_norm_first=pre_norm))
    monkeypatch.setitem(av_hubert.AV_HUBERT_PRESETS, "tiny", config)
    ours, encoder = AvHubert("tiny").eval(), config.encoder
    theirs = shaken(
        HubertModel(
            HubertConfig(
                hidden_size=encoder.hidden_size,
                num_hidden_layers=encoder.num_layers,
                num_attention_heads=encoder.num_heads,
                intermediate_size=encoder.feed_forward_size,
                num_conv_pos_embeddings=encoder.position_kernel,
                num_conv_pos_embedding_groups=encoder.position_groups,
                do_stable_layer_norm=pre_norm,
            )
        )
    )
    weights = to_canonical(theirs.state_dict(), encoder, "transformers", "the peer")
    missing, extra = ours.load_state_dict({n: t for n, t in weights.items() if n.startswith("encoder.")}, strict=False)
    assert not extra
    assert not [name for name in missing if name.startswith("encoder.")]
    found = ours(torch.randn(1, 16000) * 0.1, video=torch.rand(1, 25, 1, 26, 26))
    projected = [Packed.from_padded(found[stream][1]) for stream in ("audio", "video")]
    fused = ours.fuse(*projected).data
    joined = torch.cat([part.data for part in projected], dim=1)
    expected_fused = ours.fusion_projection(F.layer_norm(joined, (64,)))
    assert_close(fused, expected_fused)
    expected: list[Tensor] = []
    encoder_of_peer: Any = theirs.encoder
    encoder_of_peer.layers[0].register_forward_pre_hook(lambda _, args: expected.append(args[0]))
    for block in encoder_of_peer.layers:
        block.register_forward_hook(lambda _, __, out: expected.append(out[0] if isinstance(out, tuple) else out))
    last = encoder_of_peer(expected_fused[None]).last_hidden_state
    states = found["fusion"].hidden_states
    for layer, single in zip(states, expected, strict=True):
        assert_close(layer, single)
    assert_close(ours.encoder.finish(states[-1]), last)


@pytest.mark.parametrize("kind", ["natural", "decibels"])
def test_a_spectrogram_of_whole_windows_is_a_plain_loop(kind: str) -> None:
    clip = torch.randn(3000, generator=torch.Generator().manual_seed(0)) * 0.1
    clip[500:1500] = 0
    ours = LogSpectrogram(512, 240, 480, decibels=kind == "decibels", dynamic_range=40.0)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(480) / 480)
    power = np.array(
        [np.abs(np.fft.rfft(clip[t : t + 480].double().numpy() * window, 512)) ** 2 for t in range(0, 2521, 240)]
    ).T
    log: Callable[[np.ndarray], np.ndarray] = np.log
    expected = log(power + 1e-10)
    if kind == "decibels":
        level = 10 * np.log10(np.maximum(power, 1e-10))
        expected = np.maximum(level, level.max() - 40)
    np.testing.assert_allclose(ours(clip[None])[0].numpy(), expected, rtol=2e-4, atol=2e-4)
