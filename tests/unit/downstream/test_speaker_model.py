from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmssl.downstream.scoring import crop_means
from mmssl.downstream.speaker_model import SpeakerModel, crop_starts
from mmssl.errors import ConfigError, InputError
from mmssl.interfaces.base import build_interface
from mmssl.nn.rawnet3 import RawNet3Encoder
from mmssl.nn.resnet_speaker import ResNetEncoder
from mmssl.nn.ska_tdnn import SkaTdnnEncoder
from mmssl.nn.tdnn import EcapaEncoder, XVectorEncoder
from mmssl.types import Padded
from mmssl.upstreams.base import load_upstream

ENCODERS = {
    "ecapa": lambda: EcapaEncoder(20, 16, 24, 6),
    "xvector": lambda: XVectorEncoder(20, 16, 24, 6),
    "resnet": lambda: ResNetEncoder(20, 18, 2, 6),
    "ska": lambda: SkaTdnnEncoder(20, 16, 4, 24, 6),
    "rawnet3": lambda: RawNet3Encoder(16, 6, 24),
}


def model(encoder: str = "ecapa", **kwargs: bool | str) -> SpeakerModel:
    torch.manual_seed(0)
    built = ENCODERS[encoder]()
    for module in built.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    if encoder == "rawnet3":
        return SpeakerModel(None, None, built).eval()
    upstream = load_upstream("fbank", num_mel_bins=20)
    interface = build_interface("last_layer", upstream.spec.streams["audio"])
    return SpeakerModel(upstream, interface, built, **kwargs).eval()


def waveforms(*lengths: int) -> Padded:
    data = torch.randn(len(lengths), max(lengths), generator=torch.Generator().manual_seed(0)) * 0.1
    return Padded(data, torch.tensor(lengths))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_embedding_is_a_function_of_its_clip_alone(encoder: str) -> None:
    speaker, batch = model(encoder), waveforms(4000, 401, 2500, 2500)
    batch.data[1, 401:], batch.data[2, 2500:] = torch.nan, 1e3
    together = speaker.embed(batch)
    assert together.shape == (4, 6)
    for row, length in enumerate(batch.lengths):
        alone = speaker.embed(Padded(batch.data[row : row + 1, :length], length[None]))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)
    turned = speaker.embed(Padded(batch.data.flip(0), batch.lengths.flip(0)))
    torch.testing.assert_close(turned.flip(0), together, rtol=1e-4, atol=1e-4)


def test_frames_are_the_upstreams_less_each_clips_mean() -> None:
    batch = waveforms(4000, 1200)
    mel = load_upstream("fbank", num_mel_bins=20)(batch.data, batch.lengths)["audio"][-1]
    centred, plain = model().frames(batch), model(centre=False).frames(batch)
    torch.testing.assert_close(plain.data, mel.data)
    for row, frames in enumerate(mel.unpad()):
        torch.testing.assert_close(centred.unpad()[row], frames - frames.mean(0), rtol=1e-5, atol=1e-5)
    assert not centred.data[1, int(mel.lengths[1]) :].any()


def test_frames_without_their_level_keep_the_spectrum() -> None:
    batch = waveforms(4000, 1200)
    speaker = model(centre="level")
    mel = load_upstream("fbank", num_mel_bins=20)(batch.data, batch.lengths)["audio"][-1]
    found = speaker.frames(batch)
    for row, frames in enumerate(mel.unpad()):
        torch.testing.assert_close(found.unpad()[row], frames - frames.mean(), rtol=1e-5, atol=1e-5)
    assert not found.data[1, int(mel.lengths[1]) :].any()
    louder = speaker.frames(Padded(2 * batch.data, batch.lengths))
    torch.testing.assert_close(louder.data, found.data, rtol=1e-4, atol=1e-3)
    with pytest.raises(ConfigError, match="centre must be true, false or 'level', got 'mean'"):
        model(centre="mean")


def test_embed_leaves_the_mode_and_gives_no_gradients() -> None:
    speaker = model().train()
    running = speaker.encoder.embedding_norm.running_mean.clone()
    embeddings = speaker.embed(waveforms(4000, 3000))
    assert speaker.training
    assert not embeddings.requires_grad
    assert torch.equal(speaker.encoder.embedding_norm.running_mean, running)


def tiny_hubert() -> tuple[nn.Module, nn.Module]:
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "feed_forward_size": 32}
    upstream = load_upstream("hubert", **sizes)
    return upstream, build_interface("weighted_sum", upstream.spec.streams["audio"])


@pytest.mark.parametrize("trained", [False, True])
def test_an_upstream_learns_only_where_asked(trained: bool) -> None:
    upstream, interface = tiny_hubert()
    speaker = SpeakerModel(upstream, interface, EcapaEncoder(16, 16, 24, 6), train_upstream=trained).train()
    assert upstream.training is trained
    speaker(waveforms(4000, 4000)).square().sum().backward()
    reached = [p.grad is not None and bool(p.grad.any()) for p in upstream.parameters()]
    assert any(reached) is trained
    own, others = speaker.optimizer_groups()
    assert bool(own) is trained
    assert any(p is interface.weights for p in others)
    assert any(name.startswith("upstream.") for name in speaker.trained_state()) is trained
    assert interface.weights.grad is not None


def test_crops_are_averaged_as_scoring_says() -> None:
    speaker, batch = model(), waveforms(6000, 1500)
    found = speaker.embed_crops(batch, 2000, 3)
    clip = batch.data[0]
    crops = [speaker.embed(Padded(clip[None, s : s + 2000], torch.tensor([2000])))[0] for s in (0, 2000, 4000)]
    short = [speaker.embed(Padded(batch.data[1:, :1500], torch.tensor([1500])))[0]]
    expected = torch.from_numpy(crop_means([torch.stack(crops).numpy(), torch.stack(short).numpy()]))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    alone = speaker.embed_crops(Padded(batch.data[1:, :1500], torch.tensor([1500])), 2000, 3)
    torch.testing.assert_close(found[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "crop", "number", "expected"),
    [(10, 4, 3, [0, 3, 6]), (10, 4, 1, [3]), (4, 4, 5, [0]), (3, 4, 2, [0]), (6, 4, 5, [0, 0, 1, 1, 2])],
)
def test_crops_reach_from_the_first_to_the_last_place(length: int, crop: int, number: int, expected: list[int]) -> None:
    assert list(crop_starts(length, crop, number)) == expected


class NoSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_mistakes_are_named() -> None:
    upstream = load_upstream("fbank", num_mel_bins=20)
    interface = build_interface("last_layer", upstream.spec.streams["audio"])
    with pytest.raises(ConfigError, match="takes waveforms, so give no"):
        SpeakerModel(upstream, interface, RawNet3Encoder(16, 6, 24))
    with pytest.raises(ConfigError, match="takes frames, so give both"):
        SpeakerModel(None, None, EcapaEncoder(20, 16, 24, 6))
    with pytest.raises(ConfigError, match="NoSize has none"):
        SpeakerModel(upstream, interface, NoSize())
    with pytest.raises(ConfigError, match="train_upstream is for models with an upstream"):
        SpeakerModel(None, None, RawNet3Encoder(16, 6, 24), train_upstream=True)
    with pytest.raises(ConfigError, match="has the stream 'video'"):
        SpeakerModel(upstream, interface, EcapaEncoder(20, 16, 24, 6), stream="video")
    with pytest.raises(InputError, match=r"between 400 samples.*got 399 \(0.025 s\)"):
        model().embed(waveforms(399))
    with pytest.raises(InputError, match="float waveforms"):
        model().embed(Padded(torch.zeros(1, 2, 500), torch.tensor([2])))
    with pytest.raises(InputError, match="num_crops at least 1"):
        model().embed_crops(waveforms(4000), 2000, 0)
