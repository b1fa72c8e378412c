"""Small configurations of every built-in upstream: name -> constructor arguments. A new built-in adds its row."""

from __future__ import annotations

from typing import Any

CONVS = {"conv_dim": [8] * 3, "conv_kernel": [10, 8, 4], "conv_stride": [8, 5, 4]}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
BASE = SIZES | CONVS | {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
TEXT = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}


def hf(model_type: str, **values: Any) -> dict[str, Any]:
    return {"config": {"model_type": model_type} | values}


TINY: dict[str, list[dict[str, Any]]] = {
    "fbank": [{}, {"num_mel_bins": 23, "deltas": 2, "normalize": "mean_variance"}],
    "mfcc": [{"deltas": 2}],
    "mel": [{}],
    "spectrogram": [{}],
    "wav2vec2": [{"preset": "wav2vec2_tiny"}, {"preset": "wav2vec2_lv60_tiny"}],
    "hubert": [{"preset": "hubert_tiny"}, {"preset": "hubert_large_tiny"}],
    "wavlm": [{"preset": "wavlm_tiny"}, {"preset": "wavlm_large_tiny"}],
    "data2vec_audio": [{"preset": "data2vec_audio_tiny"}],
    "unispeech_sat": [{"preset": "unispeech_sat_tiny"}, {"preset": "unispeech_sat_large_tiny"}],
    "distilhubert": [{"preset": "distilhubert_tiny"}],
    "cpc": [{"hidden_size": 8, "context_size": 12, "num_context_layers": 2}, {"hidden_size": 8, "cell": "gru"}],
    "wav2vec1": [
        {"channels": 8, "aggregator_kernels": [2, 3]},
        {"preset": "wav2vec_base", "channels": 8, "aggregator_kernels": [3, 3]},
    ],
    "apc": [{"hidden_size": 12, "num_mel_bins": 20}],
    "mockingjay": [{"hidden_size": 16, "num_layers": 2, "num_heads": 2, "feed_forward_size": 24, "deltas": 1}],
    "tera": [{"hidden_size": 16, "num_layers": 2, "num_heads": 2, "feed_forward_size": 24, "max_frames": 40}],
    "pase_plus": [{"channels": [4, 4, 6, 6, 8, 8, 10, 10], "recurrent_size": 12, "embedding_size": 6}],
    "byol_a": [{"hidden_size": 12, "num_mel_bins": 16}],
    "ecapa_tdnn": [{"channels": 16, "embedding_size": 6, "attention_size": 4}],
    "xvector": [{"channels": 10, "wide_size": 12, "embedding_size": 6}],
    "l3": [{"width": 4, "sample_rate": 8000, "image_size": 16}],
    "xdc": [{"width": 4, "image_size": 16}, {"width": 4, "image_size": 16, "modalities": ["video"]}],
    "crisscross": [{"width": 4, "image_size": 16}, {"width": 4, "modalities": ["audio"]}],
    "avid": [{"width": 4, "image_size": 16}],
    "av_hubert": [{"preset": "tiny"}],
    "hf": [
        hf("wav2vec2", **BASE),
        hf("wav2vec2", **BASE, feat_extract_norm="layer", do_stable_layer_norm=True),
        hf("hubert", **BASE),
        hf("wavlm", **BASE),
        hf(
            "data2vec-audio",
            **SIZES,
            **CONVS,
            conv_pos_kernel_size=5,
            num_conv_pos_embedding_groups=2,
            num_conv_pos_embeddings=2,
        ),
        hf("unispeech", **BASE),
        hf("unispeech-sat", **BASE),
        hf("sew", **BASE),
        hf("sew-d", **BASE),
        hf("wav2vec2-conformer", **BASE, conv_depthwise_kernel_size=5),
        hf("wav2vec2-bert", **SIZES, conv_depthwise_kernel_size=5),
        hf(
            "whisper",
            d_model=16,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=8,
            max_source_positions=100,
            num_mel_bins=20,
            **TEXT,
        ),
        hf(
            "moonshine",
            hidden_size=16,
            intermediate_size=24,
            encoder_num_hidden_layers=2,
            encoder_num_attention_heads=2,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            vocab_size=60,
        ),
    ],
}
