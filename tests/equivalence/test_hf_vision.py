"""Wrapped picture, video and sound models against plain transformers with its own preprocessing."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmssl import load_upstream
from mmssl.errors import CheckpointError, ConfigError
from mmssl.upstreams.base import Upstream

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

TINY = runpy.run_path(str(Path(__file__).parents[1] / "contract" / "tiny.py"))["TINY"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]


def name_of(row: dict[str, Any]) -> str:
    return row["config"]["model_type"] + ("-fusion" if row["config"].get("enable_fusion") else "")


def perturb(model: nn.Module) -> None:
    """Norms far from the identity, so that what a norm does shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for key, buffer in model.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_(generator=generator)
            elif key.endswith("running_var"):
                buffer.uniform_(0.5, 2.0, generator=generator)


def plain(upstream: Upstream, values: dict[str, Any]) -> Any:
    """Another model of the same weights, built by transformers alone."""
    config = transformers.AutoConfig.for_model(**values)
    if config.model_type == "vit_mae":
        config.mask_ratio = 0.0
    build = getattr(transformers, type(upstream.model).__name__)
    model = build._from_config(config).eval()
    model.load_state_dict(upstream.model.state_dict())
    return model


def draw(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def assert_equal_layers(ours: Any, expected: Any) -> None:
    assert len(ours) == len(expected)
    for layer, (a, b) in enumerate(zip(ours, expected, strict=True)):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-5 * b.abs().mean(), f"layer {layer}"


@pytest.mark.parametrize("row", TINY["hf_vision"], ids=name_of)
def test_every_hidden_state_equals_plain_transformers(row: dict[str, Any]) -> None:
    upstream = load_upstream("hf_vision", **row, image_mean=MEAN, image_std=STD)
    perturb(upstream.model)
    model, model_type = plain(upstream, row["config"]), row["config"]["model_type"]
    side = upstream.spec.image_size[0]
    video = "video" in upstream.spec.inputs
    pictures = draw(2, 4, 3, side, side) if video else draw(2, 3, side, side)
    # what transformers' image processors do with pictures whose values are in [0, 1] already
    scaled = (pictures - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    more = {"noise": torch.arange((side // 16) ** 2).repeat(2, 1)} if model_type == "vit_mae" else {}
    with torch.no_grad():
        hidden = model(**{model.main_input_name: scaled}, output_hidden_states=True, **more).hidden_states
    if video:
        ours = upstream(video=pictures)["video"].hidden_states
        tokens = (side // 16) ** 2
        if model_type == "timesformer":  # patch after patch, each through its 4 frames
            hidden = [h[:, 1:].view(2, tokens, 4, -1).permute(0, 2, 1, 3).reshape(2, 4 * tokens, -1) for h in hidden]
        elif model_type == "vivit":
            hidden = [h[:, 1:] for h in hidden]
    else:
        ours = upstream(images=pictures)["image"].hidden_states
        hidden = hidden[1:] if model_type == "dinov3_convnext" else hidden
        hidden = [h.permute(0, 2, 3, 1).flatten(1, 2) if h.dim() == 4 else h for h in hidden]
    assert_equal_layers(ours, hidden)


def test_time_of_a_timesformer_token() -> None:
    """A change in one video frame moves that frame's tokens of the input layer, and no others."""
    (row,) = (row for row in TINY["hf_vision"] if name_of(row) == "timesformer")
    upstream = load_upstream("hf_vision", **row)
    video = draw(1, 4, 3, 32, 32)
    changed = video.clone()
    changed[0, 2] += 0.5
    a, b = (upstream(video=v)["video"].hidden_states[0][0] for v in (video, changed))
    moved = ((a - b).abs().amax(-1) > 1e-6).view(4, 4).any(dim=1)
    assert moved.tolist() == [False, False, True, False]


@pytest.mark.parametrize("samples", [1920, 9600, 20123])
def test_pe_audio_equals_plain_transformers_with_its_extractor(samples: int) -> None:
    (row,) = (row for row in TINY["hf_audio"] if name_of(row) == "pe_audio_encoder")
    upstream = load_upstream("hf_audio", **row)
    perturb(upstream.model)
    clip = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(2))
    given = transformers.PeAudioFeatureExtractor()(clip.numpy(), sampling_rate=48000, return_tensors="pt")
    with torch.no_grad():
        out = plain(upstream, row["config"])(given["input_values"], output_hidden_states=True)
    ours = upstream(clip[None])["audio"].hidden_states
    assert_equal_layers(ours, [*(h[:, 1:] for h in out.hidden_states[:-1]), out.last_hidden_state])


def test_the_sound_encoder_of_a_pe_audio_folder(tmp_path: Path) -> None:
    (row,) = (row for row in TINY["hf_audio"] if name_of(row) == "pe_audio_encoder")
    text = SIZES | {"model_type": "modernbert", "vocab_size": 60, "num_hidden_layers": 1, "pad_token_id": 0}
    text |= dict.fromkeys(("eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"), 1)
    sound = {name: value for name, value in row["config"].items() if name != "model_type"}
    whole = transformers.PeAudioModel(transformers.PeAudioConfig(audio_config=sound, text_config=text))
    perturb(whole)
    whole.save_pretrained(tmp_path)
    upstream = load_upstream("hf_audio", path=str(tmp_path))
    loaded = upstream.model.state_dict()
    assert all(torch.equal(loaded.pop(name), value) for name, value in whole.audio_encoder.state_dict().items())
    assert not loaded


@pytest.mark.parametrize("samples", [32399, 20123, 2800])
def test_ast_equals_plain_transformers_with_its_extractor(samples: int) -> None:
    values = SIZES | {"model_type": "audio-spectrogram-transformer", "max_length": 200}
    upstream = load_upstream("hf_audio", config=values)
    perturb(upstream.model)
    waveform = 0.2 * draw(samples) - 0.1
    extractor = transformers.ASTFeatureExtractor(max_length=200)
    given = torch.from_numpy(np.stack(extractor(waveform.numpy(), sampling_rate=16000)["input_values"]))
    with torch.no_grad():
        hidden = plain(upstream, values)(given, output_hidden_states=True).hidden_states
    ours = upstream(waveform[None])["audio"].hidden_states
    steps = (1 + (samples - 400) // 160 - 16) // 10 + 1
    expected = [h[:, 2:].view(1, 12, 19, -1)[:, :, :steps].transpose(1, 2).flatten(1, 2) for h in hidden]
    assert_equal_layers(ours, expected)


@pytest.mark.parametrize("row", [r for r in TINY["hf_audio"] if "clap" in name_of(r)], ids=name_of)
@pytest.mark.parametrize("samples", [480000, 101234])
def test_clap_equals_plain_transformers_with_its_extractor(row: dict[str, Any], samples: int) -> None:
    upstream = load_upstream("hf_audio", **row)
    perturb(upstream.model)
    waveform = 0.2 * draw(samples) - 0.1
    fusion = row["config"].get("enable_fusion", False)
    extractor = transformers.ClapFeatureExtractor(feature_size=16, truncation="fusion" if fusion else "rand_trunc")
    mel = extractor([waveform.numpy()], sampling_rate=48000, return_tensors="pt")["input_features"].float()
    with torch.no_grad():
        model = plain(upstream, row["config"])
        longer = torch.zeros(1, 1, dtype=torch.bool)
        hidden = model(mel, is_longer=longer, output_hidden_states=True).hidden_states
    ours = upstream(waveform[None])["audio"].hidden_states
    for layer, (a, h) in enumerate(zip(ours, hidden, strict=True)):
        # the square's rows: 8 stretches of time, each with its frequencies
        stretches = h.chunk(8, dim=2)
        b = torch.cat([s.mean(dim=2) for s in stretches], dim=2).transpose(1, 2)
        steps = -(-samples * b.shape[1] // 480000)
        assert a.shape[1] == steps
        # the extractor computes in float64
        assert (a - b[:, :steps]).abs().max() <= 1e-3 * b.abs().mean(), f"layer {layer}"


def save(model: Any, folder: Path, **preprocessing: Any) -> str:
    perturb(model)
    model.save_pretrained(folder)
    stated = {"image_mean": MEAN, "image_std": STD} | preprocessing
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    return str(folder)


def test_a_folder_gives_weights_and_colours(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**SIZES, image_size=32)
    # of a classifier: it has no pooler, which touches no hidden state
    model = transformers.ViTForImageClassification(config).eval()
    upstream = load_upstream("hf_vision", path=save(model, tmp_path))
    images = draw(2, 3, 32, 32)
    scaled = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        expected = model.vit(scaled, output_hidden_states=True).hidden_states
    assert_equal_layers(upstream(images=images)["image"].hidden_states, expected)


def test_the_picture_encoder_of_clip_is_taken(tmp_path: Path) -> None:
    vision = SIZES | {"image_size": 32, "patch_size": 16}
    text = SIZES | {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision)).eval()
    upstream = load_upstream("hf_vision", path=save(model, tmp_path))
    images = draw(2, 3, 32, 32)
    scaled = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        expected = model.vision_model(scaled, output_hidden_states=True).hidden_states
    assert_equal_layers(upstream(images=images)["image"].hidden_states, expected)


def test_the_audio_encoder_of_clap_is_taken(tmp_path: Path) -> None:
    (audio, _) = (row["config"] for row in TINY["hf_audio"] if "clap" in name_of(row))
    values = {k: v for k, v in audio.items() if k != "model_type"}
    text = SIZES | {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.ClapConfig(text_config=text, audio_config=values, projection_dim=8)
    model = transformers.ClapModel(config).eval()
    upstream = load_upstream("hf_audio", path=save(model, tmp_path))
    weights = model.audio_model.state_dict()
    ours = upstream.model.audio_model.state_dict()
    assert set(weights) == set(ours)
    assert all(torch.equal(weights[name], ours[name]) for name in weights)


def test_a_pretrained_vit_mae_loads_without_its_decoder(tmp_path: Path) -> None:
    decoder = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = transformers.ViTMAEConfig(**SIZES, image_size=32, **decoder, decoder_intermediate_size=8)
    model = transformers.ViTMAEForPreTraining(config).eval()
    upstream = load_upstream("hf_vision", path=save(model, tmp_path))
    assert torch.equal(upstream.model.layernorm.weight, model.vit.layernorm.weight)
    assert upstream.spec.streams["image"].num_layers == 3


def test_dinov2_takes_the_size_that_its_preprocessor_crops(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56)
    crop = {"do_center_crop": True, "crop_size": {"height": 28, "width": 28}}
    path = save(transformers.Dinov2Model(config), tmp_path, **crop)
    assert load_upstream("hf_vision", path=path).spec.image_size == (28, 28)
    assert load_upstream("hf_vision", path=path, image_size=42).spec.image_size == (42, 42)


def test_a_folder_that_does_not_say_how_colours_are_scaled(tmp_path: Path) -> None:
    path = save(transformers.ViTModel(transformers.ViTConfig(**SIZES, image_size=32)), tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        load_upstream("hf_vision", path=path)
    assert load_upstream("hf_vision", path=path, image_mean=MEAN, image_std=STD).image_mean == tuple(MEAN)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = save(transformers.ViTModel(transformers.ViTConfig(**SIZES, image_size=32)), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop(next(name for name in state if "fc1" in name or "intermediate" in name))
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="lack 1 tensors"):
        load_upstream("hf_vision", path=path)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"config": {"model_type": "wav2vec2"}}, "hf takes speech models"),
        ({"config": {"model_type": "ijepa"}, "tokens": "class"}, "no class token"),
        ({"config": {"model_type": "vit"}, "tokens": "some"}, "tokens must be one of"),
        ({"config": {"model_type": "vit"}, "image_size": 100}, "224 x 224, not 100"),
        ({"config": {"model_type": "vivit"}, "tokens": "class"}, "is for pictures"),
        ({}, "either path"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_upstream("hf_vision", **kwargs)


def test_class_and_patch_tokens_are_parts_of_the_whole() -> None:
    values = SIZES | {"model_type": "dinov3_vit", "image_size": 32, "num_register_tokens": 2}
    images = draw(1, 3, 32, 32)
    every, patches, first = (
        load_upstream("hf_vision", config=values, tokens=kind)(images=images)["image"].hidden_states[-1]
        for kind in ("all", "patches", "class")
    )
    assert torch.equal(every[:, 3:], patches)
    assert torch.equal(every[:, :1], first)


def test_a_video_of_another_number_of_frames_is_refused() -> None:
    (row,) = (row for row in TINY["hf_vision"] if name_of(row) == "videomae")
    from mmssl.errors import InputError

    with pytest.raises(InputError, match="at most 4"):
        load_upstream("hf_vision", **row)(video=draw(1, 5, 3, 32, 32))


@pytest.mark.parametrize(("samples", "frames"), [(19200, 5), (20123, 25), (1920, 1)])
def test_pe_audio_video_equals_plain_transformers(samples: int, frames: int) -> None:
    (row,) = TINY["hf_av"]
    upstream = load_upstream("hf_av", **row)
    perturb(upstream.model)
    generator = torch.Generator().manual_seed(2)
    clip, video = 0.1 * torch.randn(samples, generator=generator), torch.rand(frames, 3, 32, 32, generator=generator)
    given = transformers.PeAudioFeatureExtractor()(clip.numpy(), sampling_rate=48000, return_tensors="pt")
    model = plain(upstream, row["config"])
    with torch.no_grad():
        pixels = ((video - 0.5) / 0.5)[None]
        out = model(given["input_values"], pixels, output_hidden_states=True)
        sound = model.embedder.audio_encoder(given["input_values"], output_hidden_states=True)
        pictures = model.embedder.video_encoder(pixels, output_hidden_states=True)
    ours = upstream(clip[None], video=video[None])
    for name, theirs in (("fusion", out), ("audio", sound), ("video", pictures)):
        expected = [*(h[:, 1:] for h in theirs.hidden_states[:-1]), theirs.last_hidden_state]
        assert_equal_layers(ours[name].hidden_states, expected)
    alone = upstream(clip[None])
    assert set(alone) == {"audio"}
    assert_equal_layers(alone["audio"].hidden_states, ours["audio"].hidden_states)


def test_the_audio_visual_encoder_of_a_pe_audio_video_folder(tmp_path: Path) -> None:
    (row,) = TINY["hf_av"]
    text = SIZES | {"model_type": "modernbert", "vocab_size": 60, "num_hidden_layers": 1, "pad_token_id": 0}
    text |= dict.fromkeys(("eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"), 1)
    both = {name: value for name, value in row["config"].items() if name != "model_type"}
    config = transformers.PeAudioVideoConfig(audio_video_config=both, text_config=text)
    whole = transformers.PeAudioVideoModel(config)
    perturb(whole)
    whole.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="image_mean"):
        load_upstream("hf_av", path=str(tmp_path))
    colours = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(colours))
    upstream = load_upstream("hf_av", path=str(tmp_path))
    assert upstream.image_std == (0.25,) * 3
    loaded = upstream.model.state_dict()
    encoder = whole.audio_video_encoder.state_dict()
    assert all(torch.equal(loaded.pop(name), value) for name, value in encoder.items())
    assert not loaded
