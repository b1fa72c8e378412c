"""The torchaudio upstream against torchaudio's own models of the same bundles, made tiny, with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mmssl
from mmssl.errors import CheckpointError, ConfigError
from mmssl.upstreams.torchaudio_bundles import TorchaudioBundle, bundle_config, bundle_names

torchaudio = pytest.importorskip("torchaudio")

SIZES: dict[str, Any] = {
    "num_layers": 3,
    "hidden_size": 32,
    "num_heads": 4,
    "feed_forward_size": 24,
    "conv_channels": 8,
}
SIZES |= {"position_kernel": 6}
# group norm twice, pre-norm blocks with and without biases in the convolutions, WavLM twice, a head for letters
CASES = [
    "WAV2VEC2_BASE",
    "HUBERT_BASE",
    "WAV2VEC2_LARGE_LV60K",
    "HUBERT_LARGE",
    "WAVLM_BASE_PLUS",
    "WAVLM_LARGE",
    "WAV2VEC2_ASR_BASE_960H",
]


def peer(name: str, **more: Any) -> torch.nn.Module:
    """torchaudio's model of a bundle at the sizes above, its norms, biases and gates moved from their neutral start."""
    bundle = getattr(torchaudio.pipelines, name)
    convs = [
        (SIZES["conv_channels"], kernel, stride) for _, kernel, stride in bundle._params["extractor_conv_layer_config"]
    ]
    params = bundle._params | {
        "extractor_conv_layer_config": convs,
        "encoder_embed_dim": SIZES["hidden_size"],
        "encoder_num_layers": SIZES["num_layers"],
        "encoder_num_heads": SIZES["num_heads"],
        "encoder_ff_interm_features": SIZES["feed_forward_size"],
        "encoder_pos_conv_kernel": SIZES["position_kernel"],
    }
    torch.manual_seed(0)
    build = torchaudio.models.wavlm_model if bundle._model_type == "WavLM" else torchaudio.models.wav2vec2_model
    model = build(**params | more).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 1 or "gru_rel_pos" in parameter_name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def saved(model: torch.nn.Module, folder: Path) -> str:
    torch.save(model.state_dict(), folder / "weights.pth")
    return str(folder / "weights.pth")


def clips() -> list[Tensor]:
    # 124 frames: from 80 on, WavLM counts distances by their logarithm
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, generator=generator) * 0.1 + 0.03 for n in (40000, 2600)]


@pytest.mark.parametrize("name", CASES)
def test_layers_equal_torchaudios(name: str, tmp_path: Path) -> None:
    model = peer(name)
    ours = mmssl.load_upstream("torchaudio", bundle=name, checkpoint=saved(model, tmp_path), **SIZES)
    batch = torch.nn.utils.rnn.pad_sequence(clips(), batch_first=True)
    layers = ours(batch, torch.tensor([len(clip) for clip in clips()]))["audio"]
    bundle = getattr(torchaudio.pipelines, name)
    assert len(layers.hidden_states) == SIZES["num_layers"] + 1
    for b, clip in enumerate(clips()):
        # the bundle's own rule for its input, of which torchaudio's get_model makes a wrapper
        given = torch.nn.functional.layer_norm(clip, clip.shape) if bundle._normalize_waveform else clip
        with torch.no_grad():
            theirs = model.extract_features(given[None])[0]  # type: ignore[operator]
        assert len(theirs) == SIZES["num_layers"]
        for k, expected in enumerate(theirs):
            found = layers.hidden_states[k + 1][b, : layers.lengths[k + 1][b]]
            assert found.shape == expected[0].shape
            assert (found - expected[0]).abs().max() <= 1e-5 * expected.abs().max(), f"layer {k + 1}"


def test_the_first_layer_is_the_input_of_the_first_block(tmp_path: Path) -> None:
    model = peer("HUBERT_LARGE")
    seen: list[Tensor] = []
    model.get_submodule("encoder.transformer.layers.0").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    clip = clips()[0]
    with torch.no_grad():
        model.extract_features(torch.nn.functional.layer_norm(clip, clip.shape)[None])  # type: ignore[operator]
    ours = mmssl.load_upstream("torchaudio", bundle="HUBERT_LARGE", checkpoint=saved(model, tmp_path), **SIZES)
    found = ours(clip[None], torch.tensor([len(clip)]))["audio"].hidden_states[0]
    assert torch.allclose(found, seen[0], atol=1e-5 * float(seen[0].abs().max()))


def test_every_bundle_of_torchaudio_is_there() -> None:
    kind = torchaudio.pipelines.Wav2Vec2Bundle
    public = [n for n in torchaudio.pipelines.__all__ if isinstance(getattr(torchaudio.pipelines, n), kind)]
    assert bundle_names() == sorted(public)
    assert {"WAV2VEC2_BASE", "WAV2VEC2_XLSR_2B", "HUBERT_XLARGE", "WAVLM_BASE_PLUS", "MMS_FA"} <= set(public)


@pytest.mark.parametrize("name", bundle_names())
def test_names_and_shapes_at_full_size(name: str) -> None:
    from mmssl.upstreams.speech_weights import rows, to_canonical

    bundle, config = getattr(torchaudio.pipelines, name), bundle_config(name)
    with torch.device("meta"):
        build = torchaudio.models.wavlm_model if bundle._model_type == "WavLM" else torchaudio.models.wav2vec2_model
        # one block is as good as 48
        theirs = build(**bundle._params | {"encoder_num_layers": 1})
        ours = TorchaudioBundle(name, randomize=True, num_layers=1)
    assert config.num_layers == bundle._params["encoder_num_layers"]
    assert config.normalize == bundle._normalize_waveform
    state = to_canonical(theirs.state_dict(), ours.config, "torchaudio", name)
    assert set(state) == {row[0] for row in rows(ours.config, "torchaudio")}
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in ours.state_dict().items()}
    assert ours.spec.sample_rate == bundle.sample_rate


def test_only_the_first_blocks(tmp_path: Path) -> None:
    path = saved(peer("HUBERT_BASE"), tmp_path)
    clip = clips()[0][None]
    whole = mmssl.load_upstream("torchaudio", bundle="HUBERT_BASE", checkpoint=path, **SIZES)
    part = mmssl.load_upstream("torchaudio", bundle="HUBERT_BASE", checkpoint=path, **SIZES | {"num_layers": 1})
    expected = whole(clip, torch.tensor([clip.shape[1]]))["audio"].hidden_states[:2]
    found = part(clip, torch.tensor([clip.shape[1]]))["audio"].hidden_states
    assert len(found) == 2
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_without_weights_the_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("a download"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ConfigError, match=r"wavlm_base_plus\.pth.*randomize=True") as raised:
        mmssl.load_upstream("torchaudio", bundle="WAVLM_BASE_PLUS")
    assert str(tmp_path / "checkpoints" / "wavlm_base_plus.pth") in str(raised.value)
    with pytest.raises(ConfigError) as raised:
        mmssl.load_upstream("torchaudio", bundle="MMS_FA")
    assert str(tmp_path / "checkpoints" / "model.pt") in str(raised.value)


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'HUBERT_BASE'"):
        mmssl.load_upstream("torchaudio", bundle="hubert_base", randomize=True)
    path = saved(peer("HUBERT_BASE"), tmp_path)
    with pytest.raises(ConfigError, match="contradict"):
        mmssl.load_upstream("torchaudio", bundle="HUBERT_BASE", checkpoint=path, randomize=True)
    with pytest.raises(CheckpointError, match="has 3 layers, 12 were asked for"):
        mmssl.load_upstream("torchaudio", bundle="HUBERT_BASE", checkpoint=path, **SIZES | {"num_layers": None})
    with pytest.raises(CheckpointError, match=r"no weights of HUBERT_BASE.*hidden_size = 32 \(not 64\)"):
        mmssl.load_upstream("torchaudio", bundle="HUBERT_BASE", checkpoint=path, **SIZES | {"hidden_size": 64})
    with pytest.raises(CheckpointError, match=r"no weights of HUBERT_LARGE.*conv_norm = group"):
        mmssl.load_upstream("torchaudio", bundle="HUBERT_LARGE", checkpoint=path, **SIZES)
    with pytest.raises(CheckpointError, match=r"no weights of WAVLM_BASE.*relative_buckets = 0"):
        mmssl.load_upstream("torchaudio", bundle="WAVLM_BASE", checkpoint=path, **SIZES)
