"""Small configurations of every built-in upstream: name -> constructor arguments. A new built-in adds its row."""

from __future__ import annotations

from typing import Any

CONVS = {"conv_dim": [8] * 3, "conv_kernel": [10, 8, 4], "conv_stride": [8, 5, 4]}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
BASE = SIZES | CONVS | {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
TEXT = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}


VIT = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "feed_forward_size": 24}
PICTURES = SIZES | {"image_size": 32}
MAPS = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 12, 16, 16], "image_size": 32}
BUNDLE = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "feed_forward_size": 24}
DINO = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
CLAP = {
    "spec_size": 128,
    "num_mel_bins": 16,
    "depths": [1, 1],
    "num_attention_heads": [1, 2],
    "patch_embeds_hidden_size": 8,
    "hidden_size": 16,
    "window_size": 4,
    "num_hidden_layers": 2,
}


CODEC = {"encoder_hidden_size": 2, "downsampling_ratios": [2, 8, 10, 12], "codebook_dim": 6}
PE = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
PE_SOUND = PE | {"model_type": "pe_audio_encoder", "dac_config": CODEC}
PE_VIT = {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 32}
PE_VISION = {"architecture": "vit_pe_core_tiny_patch16_384", "num_classes": 12, "model_args": PE_VIT}
PE_VIDEO = PE | {"model_type": "pe_video_encoder", "vision_config": PE_VISION}
SPEECHT5 = {
    "hidden_size": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 8,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "encoder_max_relative_position": 10,
    "max_speech_positions": 300,
}


def hf(model_type: str, **values: Any) -> dict[str, Any]:
    return {"config": {"model_type": model_type} | values}


TINY: dict[str, list[dict[str, Any]]] = {
    "fbank": [{}, {"num_mel_bins": 23, "deltas": 2, "normalize": "mean_variance"}],
    "mfcc": [{"deltas": 2}],
    "mel": [{}],
    "spectrogram": [{}],
    "wav2vec2": [{"preset": "wav2vec2_tiny"}, {"preset": "wav2vec2_lv60_tiny"}],
    "hubert": [{"preset": "hubert_tiny"}, {"preset": "hubert_large_tiny"}, {"preset": "mel_hubert_tiny"}],
    "hubert_nano": [{"num_layers": 2}],
    "wavlm": [{"preset": "wavlm_tiny"}, {"preset": "wavlm_large_tiny"}],
    "data2vec_audio": [{"preset": "data2vec_audio_tiny"}],
    "unispeech_sat": [{"preset": "unispeech_sat_tiny"}, {"preset": "unispeech_sat_large_tiny"}],
    "speech_student": [{"preset": "hubert_tiny", "adapter_size": 4}],
    "distilhubert": [
        {"preset": "distilhubert_tiny"},
        {"preset": "distilhubert_tiny", "prediction_heads": True},
    ],
    "cpc": [{"hidden_size": 8, "context_size": 12, "num_context_layers": 2}, {"hidden_size": 8, "cell": "gru"}],
    "wav2vec1": [
        {"channels": 8, "aggregator_kernels": [2, 3]},
        {"preset": "wav2vec_base", "channels": 8, "aggregator_kernels": [3, 3]},
    ],
    "vq_wav2vec": [
        {"channels": 8, "aggregator_kernels": [2, 3], "num_entries": 5},
        {"preset": "vq_wav2vec_gumbel", "channels": 8, "aggregator_kernels": [3], "num_entries": 5},
    ],
    "discrete_bert": [
        BUNDLE | {"channels": 8, "num_entries": 5},
        BUNDLE | {"tokenizer": "vq_wav2vec_gumbel", "channels": 8, "num_entries": 3, "max_positions": 20},
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
    "mae": [VIT | {"image_size": 32}, VIT | {"image_size": 32, "patch_size": 8, "tokens": "class"}],
    "audio_mae": [VIT, VIT | {"num_mel_bins": 32, "pad_last": True}],
    "video_mae": [VIT | {"image_size": 32}],
    "cav_mae": [VIT | {"image_size": 32}],
    "hicmae": [VIT | {"image_size": 32}],
    "time_steps": [VIT | {"upstream": "audio_mae"}, VIT | {"upstream": "cav_mae", "image_size": 32, "join": "mean"}],
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
        hf("speecht5", **SPEECHT5, **CONVS),
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
    "hf_vision": [
        hf("vit", **PICTURES),
        hf("vit_mae", **PICTURES),
        hf("vit_msn", **PICTURES),
        hf("deit", **PICTURES),
        hf("beit", **PICTURES),
        hf("data2vec-vision", **PICTURES),
        hf("ijepa", **PICTURES),
        hf("clip_vision_model", **PICTURES, patch_size=16),
        hf("siglip_vision_model", **PICTURES),
        hf("dinov2", **DINO, image_size=28),
        hf("dinov2_with_registers", **DINO, image_size=32),
        hf("dinov3_vit", **PICTURES, num_register_tokens=2),
        hf("dinov3_convnext", **MAPS),
        hf("pixio", **DINO, image_size=32, n_cls_tokens=3),
        hf("convnext", **MAPS),
        hf("resnet", depths=[1, 1], hidden_sizes=[8, 16], embedding_size=8) | {"image_size": 32},
        hf("swin", image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4),
        hf("hiera", image_size=[64, 64], embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2]),
        hf("videomae", **PICTURES, num_frames=4),
        hf("timesformer", **PICTURES, num_frames=4),
        hf("vivit", **PICTURES, num_frames=4, tubelet_size=[2, 16, 16]),
        hf(
            "vjepa2",
            **DINO,
            crop_size=32,
            frames_per_clip=4,
            pred_hidden_size=12,
            pred_num_attention_heads=2,
            pred_num_hidden_layers=1,
        ),
    ],
    "hf_audio": [
        hf("audio-spectrogram-transformer", **SIZES, max_length=200),
        hf("clap_audio_model", **CLAP),
        hf("clap_audio_model", **CLAP, enable_fusion=True),
        hf("pe_audio_encoder", **SIZES, num_key_value_heads=2, head_dim=8, dac_config=CODEC),
    ],
    "hf_av": [hf("pe_audio_video_encoder", **PE, audio_config=PE_SOUND, video_config=PE_VIDEO)],
    "torchvision": [{"name": "resnet18", "image_size": 32}],
    "torchvision_video": [{"name": "mc3_18", "image_size": 16}],
    "timm": [{"name": "vit_tiny_patch16_224", "image_size": 32}, {"name": "resnet18", "image_size": 32}],
    "torchaudio": [
        {"bundle": name, "randomize": True, "conv_channels": 8, "position_kernel": 8} | BUNDLE
        for name in ("HUBERT_BASE", "WAV2VEC2_XLSR53", "WAVLM_LARGE")
    ],
}
