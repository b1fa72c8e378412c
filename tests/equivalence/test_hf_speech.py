"""The wrapped speech families against plain transformers on single clips, and against themselves in any batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmssl import load_upstream
from mmssl.upstreams.hf import HFUpstream

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
CONVS = {"conv_dim": [16] * 4, "conv_kernel": [10, 3, 3, 2], "conv_stride": [5, 2, 2, 2]}
BASE = SIZES | CONVS | {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
GROUP = BASE | {"feat_extract_norm": "group"}
LAYER = BASE | {"feat_extract_norm": "layer", "conv_bias": True}
STABLE = LAYER | {"do_stable_layer_norm": True}
ODD = GROUP | {"num_conv_pos_embeddings": 15}
TEXT = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 16,
    "max_source_positions": 50,
    "num_mel_bins": 40,
}
SPEECHT5 = CONVS | {
    "model_type": "speecht5",
    "hidden_size": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 16,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "encoder_max_relative_position": 20,
    "max_speech_positions": 400,
}
CONFIGS = {
    **{
        f"{family}-{kind}": {"model_type": family} | values
        for family in ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")
        for kind, values in (("group", GROUP), ("layer", LAYER), ("stable", STABLE))
    },
    "wav2vec2-odd": {"model_type": "wav2vec2"} | ODD,
    "hubert-batchnorm": {"model_type": "hubert", "conv_pos_batch_norm": True} | LAYER,
    "data2vec-audio": SIZES
    | CONVS
    | {"model_type": "data2vec-audio", "conv_pos_kernel_size": 5, "num_conv_pos_embedding_groups": 4}
    | {"num_conv_pos_embeddings": 3},
    "sew": {"model_type": "sew"} | GROUP,
    "sew-d": {"model_type": "sew-d"} | GROUP,
    **{
        f"wav2vec2-conformer-{kind}": values
        | {"model_type": "wav2vec2-conformer", "position_embeddings_type": kind, "conv_depthwise_kernel_size": 7}
        for kind, values in (("relative", LAYER), ("rotary", GROUP))
    },
    **{
        f"wav2vec2-bert-{kind}": SIZES
        | {"model_type": "wav2vec2-bert", "position_embeddings_type": kind, "conv_depthwise_kernel_size": 7}
        for kind in ("relative_key", "relative", "rotary")
    },
    **{f"speecht5-{kind}": SPEECHT5 | {"feat_extract_norm": kind, "conv_bias": True} for kind in ("group", "layer")},
    "whisper": {"model_type": "whisper"} | WHISPER | TEXT,
    "moonshine": {
        "model_type": "moonshine",
        "hidden_size": 32,
        "encoder_num_hidden_layers": 3,
        "encoder_num_attention_heads": 4,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 60,
    },
}


def build(name: str) -> HFUpstream:
    """Random weights whose norms are far from the identity, so that what a norm does shows."""
    upstream = load_upstream("hf", config=CONFIGS[name])
    assert isinstance(upstream, HFUpstream)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in upstream.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for key, buffer in upstream.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_(generator=generator)
            elif key.endswith("running_var"):
                buffer.uniform_(0.5, 2.0, generator=generator)
    return upstream


def clips(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(n, generator=generator) + 0.03 for n in lengths]


def plain_hidden_states(upstream: HFUpstream, name: str, clip: torch.Tensor) -> list[torch.Tensor]:
    """transformers' own preprocessing and model, on one clip."""
    values = CONFIGS[name]
    family = values["model_type"]
    config = transformers.AutoConfig.for_model(**values)
    build_plain = transformers.SpeechT5ForSpeechToText if family == "speecht5" else transformers.AutoModel.from_config
    model = build_plain(config).eval()
    extractor = {
        "whisper": lambda: transformers.WhisperFeatureExtractor(feature_size=40, chunk_length=1),
        "wav2vec2-bert": transformers.SeamlessM4TFeatureExtractor,
    }.get(family, lambda: transformers.Wav2Vec2FeatureExtractor(do_normalize=upstream.family.do_normalize))()
    given = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt")
    if family in ("whisper", "moonshine"):
        model = model.encoder
    elif family == "speecht5":
        model = model.speecht5.encoder
    model.load_state_dict(upstream.model.state_dict())
    with torch.no_grad():
        if family == "wav2vec2-bert":
            return list(model(**given, output_hidden_states=True).hidden_states)
        return list(model(given[model.main_input_name], output_hidden_states=True).hidden_states)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_single_clip_equals_plain_transformers(name: str) -> None:
    upstream = build(name)
    (clip,) = clips(7003)
    ours = upstream(clip[None])["audio"]
    expected = plain_hidden_states(upstream, name, clip)
    assert len(ours) == len(expected) == upstream.spec.streams["audio"].num_layers
    for layer, (a, b) in enumerate(zip(ours.hidden_states, expected, strict=True)):
        frames = int(ours.lengths[layer])
        assert a.shape[1] == frames
        if upstream.spec.max_length is None and "bert" not in name:
            assert b.shape[1] == frames
        # SeamlessM4TFeatureExtractor computes its filterbank in float64
        tolerance = 1e-4 if "bert" in name else 1e-5
        assert (a - b[:, :frames]).abs().max() <= tolerance * b.abs().mean(), f"layer {layer}"


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("name", CONFIGS)
def test_alone_equals_any_batch(name: str) -> None:
    upstream = build(name)
    lengths = torch.tensor([7003, upstream.spec.min_length, 16000, 3999, 7003])
    batch = torch.full((5, 16000), float("nan"))
    for row, clip in zip(batch, clips(*lengths.tolist()), strict=True):
        row[: len(clip)] = clip
    order = torch.tensor([3, 0, 4, 2, 1])
    together, shuffled = upstream(batch, lengths)["audio"], upstream(batch[order], lengths[order])["audio"]
    for clip, samples in enumerate(lengths.tolist()):
        alone = upstream(batch[clip : clip + 1, :samples])["audio"]
        place = int((order == clip).nonzero())
        for layer in range(len(alone)):
            reference = alone.hidden_states[layer][0]
            assert int(together.lengths[layer][clip]) == len(reference) == int(shuffled.lengths[layer][place])
            for other in (together.hidden_states[layer][clip], shuffled.hidden_states[layer][place]):
                difference = (other[: len(reference)] - reference).abs().max()
                assert difference <= 1e-5 * reference.abs().mean(), f"clip of {samples}, layer {layer}"


def test_padding_without_the_remedy_changes_features_by_their_scale() -> None:
    """The reason for all this: plain transformers, with its attention mask, on the same batch."""
    upstream = build("wav2vec2-group")
    short, long = clips(4000, 16000)
    config = transformers.AutoConfig.for_model(**CONFIGS["wav2vec2-group"])
    plain = transformers.AutoModel.from_config(config).eval()
    plain.load_state_dict(upstream.model.state_dict())
    batch, mask = torch.zeros(2, 16000), torch.zeros(2, 16000, dtype=torch.long)
    batch[0, :4000], batch[1] = short, long
    mask[0, :4000], mask[1] = 1, 1
    with torch.no_grad():
        padded = plain(batch, attention_mask=mask).last_hidden_state[0, :99]
        alone = plain(short[None]).last_hidden_state[0]
    assert (padded - alone).abs().max() > 0.05 * alone.abs().mean()


@pytest.mark.parametrize("weights", ["safetensors", "bin"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_saved_folder_gives_what_transformers_gives(tmp_path: Path, weights: str, normalize: bool) -> None:
    config = transformers.AutoConfig.for_model(**CONFIGS["hubert-group"])
    model = transformers.HubertForCTC(config).eval()
    transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    if weights == "bin":
        from safetensors.torch import load_file

        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    (clip,) = clips(5000)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    given = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        expected = model.hubert(given, output_hidden_states=True).hidden_states
    ours = load_upstream("hf", path=str(tmp_path))(clip[None])["audio"].hidden_states
    for a, b in zip(ours, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().mean()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm", "data2vec-audio"])
def test_base_size_alone_equals_padded(family: str) -> None:
    upstream = load_upstream("hf", config={"model_type": family})
    lengths = torch.tensor([40000, 17000])
    batch = torch.zeros(2, 40000)
    for row, clip in zip(batch, clips(40000, 17000), strict=True):
        row[: len(clip)] = clip
    together, alone = upstream(batch, lengths)["audio"], upstream(batch[1:, :17000])["audio"]
    for a, b in zip(together.hidden_states, alone.hidden_states, strict=True):
        assert (a[1, : b.shape[1]] - b[0]).abs().max() <= 1e-5 * b.abs().mean()
