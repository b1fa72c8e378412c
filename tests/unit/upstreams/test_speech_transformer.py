from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mmssl import load_upstream
from mmssl.errors import CheckpointError, ConfigError, InputError
from mmssl.nn.mel_frontend import MelFrontEnd
from mmssl.types import Padded
from mmssl.upstreams.speech_config import PRESETS
from mmssl.upstreams.speech_transformer import SpeechTransformer

TINY = [name for name in PRESETS if name.endswith("tiny")]


def build(preset: str, **kwargs: object) -> SpeechTransformer:
    torch.manual_seed(0)
    model = SpeechTransformer(preset, **kwargs).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 1.0, 0.3)
    return model


@pytest.mark.parametrize("preset", TINY)
def test_features_do_not_depend_on_the_batch(preset: str) -> None:
    model = build(preset)
    clips = [torch.randn(n) * 0.1 for n in (4000, 400, 2345)]
    data = torch.full((3, 5000), 7.0)
    for row, clip in enumerate(clips):
        data[row, : len(clip)] = clip
    layers = model(data, torch.tensor([len(c) for c in clips]))["audio"]
    assert len(layers) == PRESETS[preset].num_layers + 1 == model.spec.streams["audio"].num_layers
    packed = [representation["audio"] for representation in model.extract_packed(clips)]
    for row, clip in enumerate(clips):
        alone = model(clip[None])["audio"]
        frames = int(model.output_lengths(torch.tensor([len(clip)])))
        for k in range(len(layers)):
            assert alone.hidden_states[k].shape == (1, frames, 32)
            assert packed[row].hidden_states[k].shape == (frames, 32)
            assert int(packed[row].lengths[k]) == frames
            scale = alone.hidden_states[k].abs().max()
            for other in (layers.hidden_states[k][row, :frames], packed[row].hidden_states[k]):
                assert (other - alone.hidden_states[k][0]).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("preset", TINY)
def test_fast_and_differentiable_paths_agree(preset: str) -> None:
    model = build(preset)
    clip = torch.randn(3000) * 0.1
    fast = model.extract_packed([clip])[0]["audio"]
    plain = model.extract_packed([clip.clone().requires_grad_()])[0]["audio"]
    assert plain.hidden_states[-1].requires_grad
    for a, b in zip(fast.hidden_states, plain.hidden_states, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_normalisation_is_per_clip_on_its_own_samples() -> None:
    model = build("wav2vec2_lv60_tiny")
    clip = torch.randn(2000) * 0.2 + 0.3
    by_hand = (clip - clip.mean()) / torch.sqrt(clip.var(correction=0) + 1e-5)
    off = build("wav2vec2_lv60_tiny", normalize=False)
    a, b = model.extract_packed([clip])[0]["audio"], off.extract_packed([by_hand])[0]["audio"]
    assert torch.allclose(a.hidden_states[-1], b.hidden_states[-1], atol=1e-4)
    assert not torch.allclose(off.extract_packed([clip])[0]["audio"].hidden_states[-1], b.hidden_states[-1], atol=1e-2)


def test_masked_frames_are_replaced_before_the_transformer_and_nowhere_else() -> None:
    model = build("hubert_tiny")
    waveforms = Padded(torch.randn(2, 3000), torch.tensor([3000, 1500]))
    frames = model.output_lengths(waveforms.lengths)
    mask = torch.zeros(2, int(frames.max()), dtype=torch.bool)
    mask[0, 3:6] = True
    mask[1, int(frames[1]) :] = True  # past the end: no effect
    seen = {}
    model.encoder.positions.register_forward_pre_hook(lambda _, args: seen.update(features=args[0]))
    embedding = torch.full((32,), 5.0, requires_grad=True)
    model.encode(waveforms)
    plain = seen["features"].data
    layers = model.encode(waveforms, mask, embedding)
    masked = seen["features"].data
    assert torch.equal(masked[3:6], torch.full((3, 32), 5.0))
    changed = (masked != plain).any(1)
    assert changed.nonzero().flatten().tolist() == [3, 4, 5]
    layers.hidden_states[-1].sum().backward()
    assert embedding.grad.abs().max() > 0
    with pytest.raises(InputError, match="mask must be bool"):
        model.encode(waveforms, mask.float(), embedding)
    with pytest.raises(InputError, match="mask_embedding"):
        model.encode(waveforms, mask)


def test_training_uses_dropout_and_keeps_all_layers() -> None:
    model = build("hubert_tiny", layer_drop=0.9, dropout=0.3).train()
    clip = torch.randn(2000)
    first, second = (model.extract_packed([clip])[0]["audio"] for _ in range(2))
    assert len(first) == len(second) == 4
    assert not torch.equal(first.hidden_states[0], second.hidden_states[0])


def test_every_parameter_of_a_trained_model_gets_a_gradient() -> None:
    model = SpeechTransformer("wavlm_tiny")
    layers = model.encode(Padded(torch.randn(2, 2000), torch.tensor([2000, 1200])))
    sum(h.square().mean() for h in layers.hidden_states).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype: torch.dtype) -> None:
    model = build("wavlm_tiny")
    clip = torch.randn(1, 3000)
    full = model(clip)["audio"].hidden_states[-1]
    half = model.to(dtype)(clip)["audio"].hidden_states[-1]
    assert half.dtype == dtype
    assert torch.nn.functional.cosine_similarity(full, half.float(), dim=-1).min() > 0.99


def test_short_clips_are_refused() -> None:
    model = build("hubert_tiny")
    with pytest.raises(InputError, match="at least"):
        model(torch.randn(1, model.spec.min_length - 1))
    with pytest.raises(InputError, match="extract_packed"):
        model.extract_packed([torch.randn(model.spec.min_length - 1)])
    assert model(torch.randn(1, model.spec.min_length))["audio"].hidden_states[0].shape[1] == 1


def test_sizes_can_be_changed_and_presets_keep_to_their_family() -> None:
    small = load_upstream("hubert", preset="hubert_tiny", num_layers=1, hidden_size=16, conv_channels=8, num_heads=2)
    assert small.spec.streams["audio"].hidden_sizes == (16, 16)
    assert small.front_end.output_size == 8
    with pytest.raises(ConfigError, match="hubert_large"):
        load_upstream("hubert", preset="wavlm_base")
    with pytest.raises(ConfigError, match="multiple of the 4 position groups"):
        load_upstream("hubert", preset="hubert_tiny", hidden_size=6, num_heads=2)


def test_weights_depend_on_the_seed_alone() -> None:
    a, b, c = (load_upstream("wavlm", preset="wavlm_tiny", seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["feature_projection.weight"], c["feature_projection.weight"])


def test_a_checkpoint_gives_the_sizes_and_may_be_cut(tmp_path: Path) -> None:
    model = build("hubert_large_tiny")
    model.save_transformers(tmp_path)
    clip = torch.randn(2000)
    again = load_upstream("hubert", checkpoint=str(tmp_path))
    cut = load_upstream("hubert", checkpoint=str(tmp_path), num_layers=1)
    want = model.extract_packed([clip])[0]["audio"].hidden_states
    for got, layers in ((again, 4), (cut, 2)):
        states = got.extract_packed([clip])[0]["audio"].hidden_states
        assert len(states) == layers
        assert all(torch.equal(a, b) for a, b in zip(states, want, strict=False))
    with pytest.raises(CheckpointError, match="hidden_size = 32, 64 was asked for"):
        load_upstream("hubert", checkpoint=str(tmp_path), hidden_size=64)
    with pytest.raises(CheckpointError, match="has 3 layers, 5"):
        load_upstream("hubert", checkpoint=str(tmp_path), num_layers=5)


def test_mel_frames_take_the_place_of_convolutions_and_of_what_hides_loudness(tmp_path: Path) -> None:
    model = build("wav2vec2_lv60_tiny", mel_bins=8)
    assert model.feature_norm is None
    assert not model.config.normalize
    assert model.feature_projection.in_features == 16
    clip = torch.randn(3200) * 0.1
    frames = (MelFrontEnd(8)([clip]).data @ model.feature_projection.weight.T) + model.feature_projection.bias
    torch.testing.assert_close(model.features(model.latents([clip])).data, frames)
    quiet, loud = (model.extract_packed([gain * clip])[0]["audio"].hidden_states[0] for gain in (0.1, 1.0))
    assert (quiet - loud).abs().mean() > 0.1
    with pytest.raises(ConfigError, match="leave conv_channels out"):
        SpeechTransformer("hubert_tiny", mel_bins=8, conv_channels=16)
    with pytest.raises(ConfigError, match="export it natively"):
        model.save_transformers(tmp_path)
    assert not list(tmp_path.iterdir())
