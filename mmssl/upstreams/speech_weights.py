"""Names of a speech transformer's weights: ours, and those of transformers, torchaudio and fairseq with its kin.

Every parameter has one row in a table that serves both directions: loading reads it left to right and reports what is
missing or left over, writing reads it right to left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmssl.errors import CheckpointError
from mmssl.upstreams.checkpoints import Options, read_checkpoint, read_transformers_folder
from mmssl.upstreams.speech_config import SpeechConfig, from_fairseq, from_transformers

Layout = Literal["transformers", "fairseq", "torchaudio"]

# ours -> (transformers, fairseq); {i} counts. torchaudio has transformers' names below other prefixes.
_FRONT = {
    "front_end.convs.{i}": ("feature_extractor.conv_layers.{i}.conv", "feature_extractor.conv_layers.{i}.0"),
}
_FRONT_NORM = {
    "group": ("feature_extractor.conv_layers.{i}.layer_norm", "feature_extractor.conv_layers.{i}.2"),
    "layer": ("feature_extractor.conv_layers.{i}.layer_norm", "feature_extractor.conv_layers.{i}.2.1"),
}
_POSITIONS = ("encoder.pos_conv_embed.conv", "encoder.pos_conv.0")
_POSITION_STACK = ("encoder.pos_conv_embed.layers.{i}.conv", "encoder.pos_conv.{i}.0")
_BLOCK = {
    "attention.output": ("attention.out_proj", "self_attn.out_proj"),
    "attention_norm": ("layer_norm", "self_attn_layer_norm"),
    "expand": ("feed_forward.intermediate_dense", "fc1"),
    "contract": ("feed_forward.output_dense", "fc2"),
    "feed_forward_norm": ("final_layer_norm", "final_layer_norm"),
}
_GATE = ("attention.gru_rel_pos_linear", "self_attn.grep_linear")
_GATE_SCALE = ("attention.gru_rel_pos_const", "self_attn.grep_a")
_RELATIVE = (
    "encoder.layers.0.attention.rel_attn_embed.weight",
    "encoder.layers.0.self_attn.relative_attention_bias.weight",
)

# weights of pretraining and fine-tuning heads, which are no part of the encoder
_HEADS = re.compile(
    r"(masked_spec_embed|mask_emb|quantizer|project_q|project_hid|final_proj|label_embs_concat|label_embeddings_concat|"
    r"speaker_proj|lm_head|classifier|projector|layer_weights|tdnn|objective|w2v_encoder\.proj|proj|aux|output_layer|"
    r"target_glu|_ema|adapter|spk_proj|layer_norm_for_extract|mask_generator|logit_generator|dropout_features)(\.|$)"
)
_PREFIXES = {
    "transformers": ("wav2vec2.", "hubert.", "wavlm.", "data2vec_audio.", "unispeech_sat."),
    "fairseq": ("w2v_encoder.w2v_model.", "w2v_model.", "encoder.w2v_model.", "model."),
    "torchaudio": ("wav2vec2.", "model."),
}


@dataclass(frozen=True)
class SpeechCheckpoint:
    """A checkpoint of a speech transformer as found in a file.

    Attributes:
        config: its sizes.
        state: its weights by our names.
        left_out: those of pretraining and fine-tuning heads, by the file's names without its prefixes.
    """

    config: SpeechConfig
    state: dict[str, Tensor]
    left_out: dict[str, Tensor]


def rows(config: SpeechConfig, layout: Layout) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Our name of every parameter, and the names of what it is made from (three for query, key and value in one)."""
    column = 1 if layout == "fairseq" else 0
    both = ("weight", "bias")
    modules: list[tuple[str, str, tuple[str, ...]]] = []
    for i in range(len(config.conv_channels)):
        parts: tuple[str, ...] = both if config.conv_bias else ("weight",)
        modules += [(f"front_end.convs.{i}", names[column].format(i=i), parts) for names in _FRONT.values()]
        if config.conv_norm == "layer" or i == 0:
            modules.append((f"front_end.norms.{i}", _FRONT_NORM[config.conv_norm][column].format(i=i), both))
    if config.feature_norm:
        modules.append(("feature_norm", ("feature_projection.layer_norm", "layer_norm")[column], both))
    modules.append(("feature_projection", ("feature_projection.projection", "post_extract_proj")[column], both))
    if config.position_depth > 1:
        for i in range(config.position_depth):
            modules.append((f"encoder.positions.convs.{i}", _POSITION_STACK[column].format(i=i), both))
    else:
        modules.append(("encoder.positions", _POSITIONS[column], ("weight_g", "weight_v", "bias")))
    modules.append(("encoder.layer_norm", "encoder.layer_norm", both))
    if config.relative_buckets:
        yield "encoder.relative_positions.weight", (_RELATIVE[column],)
    for i in range(config.num_layers):
        ours, theirs = f"encoder.blocks.{i}", f"encoder.layers.{i}"
        modules += [(f"{ours}.{a}", f"{theirs}.{names[column]}", both) for a, names in _BLOCK.items()]
        attention = f"{theirs}.{('attention', 'self_attn')[column]}"
        for part in both:
            yield f"{ours}.attention.qkv.{part}", tuple(f"{attention}.{p}_proj.{part}" for p in "qkv")
        if config.relative_buckets:
            modules.append((f"{ours}.attention.gate", f"{theirs}.{_GATE[column]}", both))
            yield f"{ours}.attention.gate_scale", (f"{theirs}.{_GATE_SCALE[column]}",)
    for our_module, their_module, parameters in modules:
        for part in parameters:
            yield f"{our_module}.{part}", (f"{their_module}.{part}",)


def to_canonical(state: Mapping[str, Tensor], config: SpeechConfig, layout: Layout, source: str) -> dict[str, Tensor]:
    """Rename the weights of another library to ours.

    Args:
        state: its names -> tensors, prefixes and heads included.
        config: sizes of the model; blocks of the state beyond `config.num_layers` are left out.
        layout: whose names they are.
        source: what to call the state in messages.

    Raises:
        CheckpointError: a weight is missing or of no use; the message lists all of them.
    """
    found = plain_names(state, layout)
    canonical, missing = {}, []
    for ours, theirs in rows(config, layout):
        absent = [name for name in theirs if name not in found]
        if not absent:
            tensors = [found.pop(name) for name in theirs]
            canonical[ours] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        elif ours.startswith("feature_projection.") and config.conv_channels[-1] == config.hidden_size:
            # fairseq has no projection between equal widths
            width = config.hidden_size
            canonical[ours] = torch.eye(width) if ours.endswith("weight") else torch.zeros(width)
        else:
            missing += absent
    beyond = re.compile(r"encoder\.layers\.(\d+)\.")
    unused = [
        name
        for name in found
        if not _HEADS.match(name) and not ((deep := beyond.match(name)) and int(deep[1]) >= config.num_layers)
    ]
    if missing or unused:
        raise CheckpointError(
            f"{source} does not fit a {config.family} model of {config.num_layers} layers, {layout} names. "
            f"Missing ({len(missing)}): {', '.join(missing) or 'none'}. "
            f"Unused ({len(unused)}): {', '.join(unused) or 'none'}."
        )
    scales = {k: v.reshape(-1) for k, v in canonical.items() if k.endswith("gate_scale")}
    return {k: v.float() if v.is_floating_point() else v for k, v in (canonical | scales).items()}


def from_canonical(state: Mapping[str, Tensor], config: SpeechConfig) -> dict[str, Tensor]:
    """Rename our weights to those of transformers."""
    named: dict[str, Tensor] = {}
    for ours, theirs in rows(config, "transformers"):
        tensor = state[ours].detach().cpu()
        if ours.endswith("gate_scale"):
            tensor = tensor.view(1, -1, 1, 1)
        for name, part in zip(theirs, tensor.chunk(len(theirs)), strict=True):
            name = re.sub(r"\.weight_([gv])$", lambda m: f".parametrizations.weight.original{'gv'.index(m[1])}", name)
            named[name] = part.contiguous().clone()
    return named


def plain_names(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Names without wrappers' prefixes, weight norm spelt the old way, torchaudio spelt as transformers does."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            continue
        for prefix in _PREFIXES[layout]:
            name = name.removeprefix(prefix)
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        if layout == "torchaudio":
            name = name.replace("encoder.feature_projection.", "feature_projection.")
            name = name.replace("encoder.transformer.", "encoder.").replace("attention.attention.", "attention.")
            merged = re.fullmatch(r"(.*\.)in_proj_(weight|bias)", name)
            if merged:
                for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                    plain[f"{merged[1]}{part}_proj.{merged[2]}"] = piece
                continue
        plain[name] = tensor
    return plain


def read_speech_checkpoint(path: str | Path, fallback: SpeechConfig, num_layers: int | None = None) -> SpeechCheckpoint:
    """Read a transformers folder, or a file of fairseq, WavLM, S3PRL or torchaudio.

    Args:
        path: folder or file.
        fallback: the preset, for what the file does not state (a bare state dict: heads, strides, normalisation).
        num_layers: keep the first blocks only; None for all.

    Raises:
        CheckpointError: it cannot be read, or is not a speech transformer that this model computes.
    """
    path = Path(path)
    layout: Layout
    if not path.exists():
        raise CheckpointError(
            f"There is no folder or file {str(path)!r} (seen from {Path.cwd()}). A checkpoint is read from disk: "
            f"download it first, for a model on a hub its config.json, preprocessor_config.json and model.safetensors "
            f"(or pytorch_model.bin) into one folder, and give that folder."
        )
    if path.is_dir():
        values, preprocessor, state = read_transformers_folder(path)
        layout, config = "transformers", from_transformers(values, preprocessor)
    else:
        content = _mapping(read_checkpoint(path))
        layout, config, state = _from_file(content, fallback, str(path))
    if num_layers is not None and num_layers > config.num_layers:
        raise CheckpointError(f"{path} has {config.num_layers} layers, {num_layers} were asked for.")
    config = replace(config, num_layers=config.num_layers if num_layers is None else num_layers)
    canonical = to_canonical(state, config, layout, str(path))
    left_out = {name: tensor for name, tensor in plain_names(state, layout).items() if _HEADS.match(name)}
    return SpeechCheckpoint(config, canonical, left_out)


def _from_file(
    content: dict[str, Any], fallback: SpeechConfig, source: str
) -> tuple[Layout, SpeechConfig, dict[str, Tensor]]:
    if "Distiller" in content:  # DistilHuBERT, as S3PRL saves it
        model = _mapping(_mapping(content.get("Config", {})).get("distiller", {}))
        return "fairseq", from_fairseq(model, None, "distilhubert"), content["Distiller"]
    if "model_weight" in content:  # converted by S3PRL
        task = _mapping(content.get("task_cfg") or {})
        return (
            "fairseq",
            _fairseq_config(content["model_cfg"], task, content["model_weight"], fallback),
            content["model_weight"],
        )
    if "model" in content and (content.get("cfg") or content.get("args")):  # fairseq; WavLM has a flat cfg
        options = _mapping(content.get("cfg") or content["args"])
        task = _mapping(options.get("task") if isinstance(options.get("task"), dict | Options) else {})
        return (
            "fairseq",
            _fairseq_config(options.get("model", options), task, content["model"], fallback),
            content["model"],
        )
    state = _mapping(content.get("state_dict", content))
    if not all(isinstance(v, Tensor) for v in state.values()) or not state:
        raise CheckpointError(
            f"{source} is no speech transformer: expected a transformers folder, or a file of fairseq, S3PRL or "
            f"torchaudio; found the entries {', '.join(map(str, list(content)[:10]))}."
        )
    layout = next((n for n, mark in _MARKS.items() if any(mark in key for key in state)), None)
    if layout is None:
        raise CheckpointError(
            f"{source}: these are not the names of a known speech transformer: {', '.join(list(state)[:5])}."
        )
    return layout, config_from_shapes(plain_names(state, layout), fallback), state


# a piece of a name that only this layout has
_MARKS: dict[Layout, str] = {
    "torchaudio": "encoder.transformer.",
    "fairseq": "self_attn.",
    "transformers": "feature_projection.",
}


def _fairseq_config(
    model: Any, task: dict[str, Any], state: Mapping[str, Tensor], fallback: SpeechConfig
) -> SpeechConfig:
    model = _mapping(model)
    inner = model.get("w2v_args")
    if inner is not None:  # fine-tuned: the pretrained model's options are inside
        outer, model = model, _mapping(inner)
        task = task or _mapping(model.get("task") or {}) if isinstance(model.get("task"), dict | Options) else task
        model = _mapping(model.get("model", model))
        task = {"normalize": outer["normalize"]} | task if "normalize" in outer else task
    names = " ".join(state)
    if "grep_linear" in names:
        family = "wavlm"
    elif "pos_conv.1.0" in names:
        family = "data2vec_audio"
    else:  # one architecture: the caller knows best which method trained it
        family = fallback.family if fallback.family in ("hubert", "unispeech_sat") else "wav2vec2"
    return from_fairseq(model, task.get("normalize"), family)


def config_from_shapes(state: Mapping[str, Tensor], fallback: SpeechConfig) -> SpeechConfig:
    """Sizes of a bare state dict (transformers' names); what shapes do not tell comes from `fallback`."""
    convs = sorted(
        (int(m[1]), t) for n, t in state.items() if (m := re.search(r"conv_layers\.(\d+)\.conv\.weight$", n))
    )
    try:
        blocks = 1 + max(int(m[1]) for name in state if (m := re.match(r"encoder\.layers\.(\d+)\.", name)))
        position = state["encoder.pos_conv_embed.conv.weight_v"]
        expand = state["encoder.layers.0.feed_forward.intermediate_dense.weight"]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"Cannot tell the sizes from the weights: {error} is absent.") from None
    hidden = expand.shape[1]
    norm: Literal["group", "layer"] = "group"
    if "feature_extractor.conv_layers.1.layer_norm.weight" in state:
        norm = "layer"
    table = state.get(_RELATIVE[0])
    heads = hidden // 64 if hidden != fallback.hidden_size else fallback.num_heads
    known = fallback.conv_norm == norm and len(convs) == len(fallback.conv_kernels)
    return replace(
        fallback,
        hidden_size=hidden,
        num_layers=blocks,
        num_heads=heads if table is None else table.shape[1],
        feed_forward_size=expand.shape[0],
        layer_norm_first=fallback.layer_norm_first if known else norm == "layer",
        conv_channels=tuple(t.shape[0] for _, t in convs),
        conv_kernels=tuple(t.shape[2] for _, t in convs),
        conv_bias="feature_extractor.conv_layers.0.conv.bias" in state,
        conv_norm=norm,
        normalize=fallback.normalize if known else norm == "layer",
        position_kernel=position.shape[2],
        position_groups=hidden // position.shape[1],
        relative_buckets=0 if table is None else table.shape[0],
    )


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, Options):
        return vars(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise CheckpointError(f"The checkpoint holds a {type(value).__name__} where a dict of names was expected.")
