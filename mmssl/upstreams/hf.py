"""Upstreams from Hugging Face transformers: a local folder, a hub name, or random weights from a configuration.

`hf_speech.FAMILIES` says which model types there are and how each is made independent of padding.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import CheckpointError, ConfigError, did_you_mean
from mmssl.types import Inputs, Representation
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.hf_speech import FAMILIES, Preprocessing

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class HFUpstream(Upstream):
    """A transformers model as an upstream, with the preprocessing that its checkpoint asks for.

    All hidden states are those that transformers lists under `output_hidden_states=True` for the clip alone. The list
    is kept as it is: models with pre-norm layers ("stable layer norm": wav2vec2-large-lv60, hubert-large, wavlm-large,
    and the conformers) end in a layer norm that transformers leaves out of the list, and it is not appended here.

    The features of a clip do not depend on the padding or on the other clips of the batch beyond float32 rounding (a
    few 1e-6 of a layer's scale); `invariance` says how. Bits may still differ between batch shapes, because matrix
    products are summed in another order; two calls on the same batch are bit-equal.

    Layer drop and SpecAugment are switched off for good, so that the number of layers and the features do not change in
    training mode.

    Args:
        path: folder in transformers format (config.json and model.safetensors or pytorch_model.bin), or a hub name.
        config: instead of `path`, the configuration of a model with random weights: `model_type` and any of its fields.
        do_normalize: scale each clip to zero mean and unit variance over its valid samples, variance + 1e-7 as in
            Wav2Vec2FeatureExtractor. None takes the value of preprocessor_config.json; where there is none, models with
            `feat_extract_norm="layer"` and data2vec-audio normalise, the others do not.
        attn_implementation: "sdpa" or "eager"; None is "sdpa" where the family has it, else "eager".
        dtype: type of the loaded weights and of the computation: "float32", "float16" or "bfloat16".

    Attributes:
        model: the transformers module.
        invariance: how padding is kept out of the features.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        do_normalize: bool | None = None,
        attn_implementation: str | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        check_arguments(path, config, attn_implementation, dtype)
        if path is not None:
            folder = find_folder(path)
            hf_config = read_config(folder)
            preprocessing = read_preprocessing(folder)
        else:
            folder, hf_config, preprocessing = None, make_config(config or {}), Preprocessing()
        self.family = FAMILIES[_known_family(hf_config.model_type)](hf_config, preprocessing, do_normalize)
        _switch_off_randomness(hf_config)
        model = build_model(
            hf_config, folder, attn_implementation, DTYPES[dtype], self.family.optional, self.family.model_class
        )
        self.model = self.family.prepare(model)
        self.spec = self.family.spec
        self.invariance = self.family.invariance

    def extract(self, inputs: Inputs) -> Representation:
        """All hidden states, in the type of the parameters."""
        return self.family.run(self.model, inputs, self.dtype)

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Frames of any layer, exactly what the model's front end gives."""
        return self.family.output_lengths(lengths, stream, layer)


def check_arguments(path: str | None, config: Mapping[str, Any] | None, attention: str | None, dtype: str) -> None:
    """Raise ConfigError unless exactly one of path and config is given, and the attention and type are known."""
    if (path is None) == (config is None):
        raise ConfigError(
            "The hf upstream takes either path (a folder or hub name) or config (a mapping with model_type), "
            f"got {'both' if path is not None else 'neither'}."
        )
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    if attention not in (None, "sdpa", "eager"):
        raise ConfigError(f"attn_implementation must be sdpa, eager or none, got {attention!r}.")


def find_folder(path: str) -> Path:
    """The folder of a model: a local one, or the hub's, downloaded if the network allows.

    Raises:
        CheckpointError: no such folder, and no such model on the hub or no way to reach it.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise CheckpointError(
                f"{str(local)!r} is not a transformers folder: it has no config.json. It holds: "
                f"{', '.join(sorted(p.name for p in local.iterdir())[:10]) or 'nothing'}. "
                "Point path at the folder that holds config.json and model.safetensors (or pytorch_model.bin)."
            )
        return local
    if local.is_absolute() or path.startswith(("./", "../", "~")) or path.count("/") > 1 or "\\" in path:
        raise CheckpointError(f"The model folder {path!r} does not exist (seen from {Path.cwd()}).")
    return _download(path)


def _download(name: str) -> Path:
    import huggingface_hub

    patterns = ["*.json", "*.safetensors", "pytorch_model*.bin"]
    try:
        return Path(huggingface_hub.snapshot_download(name, local_files_only=True, allow_patterns=patterns))
    except Exception:  # not in the cache: any reason leads to the download
        pass
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise CheckpointError(
            f"{name!r} is neither a folder (seen from {Path.cwd()}) nor a model of the Hugging Face hub that can be "
            f"reached from here ({type(error).__name__}). On a machine with access run `hf download {name} config.json "
            f"preprocessor_config.json model.safetensors --local-dir {name.split('/')[-1]}` (pytorch_model.bin "
            "where there is no model.safetensors), copy that folder here and give its path."
        ) from error


def read_config(folder: Path, families: Collection[str] = FAMILIES) -> Any:
    """The transformers configuration in a folder, whose model type must be among `families`.

    Raises:
        ConfigError: another model type.
        CheckpointError: config.json cannot be read.
    """
    from transformers import AutoConfig

    try:
        content = json.loads((folder / "config.json").read_text())
        _known_family(content.get("model_type"), families)
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{str(folder / 'config.json')!r} cannot be read: {error}") from error


def make_config(config: Mapping[str, Any], families: Collection[str] = FAMILIES) -> Any:
    """A transformers configuration from plain values.

    Args:
        config: `model_type` and fields of that type's configuration class.
        families: the model types that go.

    Raises:
        ConfigError: no or unknown model type, or an unknown field (transformers would accept it silently).
    """
    from transformers import AutoConfig

    values = _plain(config)
    model_type = _known_family(values.pop("model_type", None), families)
    known = AutoConfig.for_model(model_type).to_dict()
    for key in values:
        if key not in known:
            raise ConfigError(f"The configuration of {model_type} has no field {key!r}.{did_you_mean(key, known)}")
    try:
        return AutoConfig.for_model(model_type, **values)
    except Exception as error:  # transformers checks values with several kinds of errors
        raise ConfigError(f"The configuration of {model_type} is refused: {error}") from error


def _plain(value: Any) -> Any:
    """Mappings and sequences of any kind as dict and list."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return value


def _known_family(model_type: Any, families: Collection[str] = FAMILIES) -> str:
    if model_type not in families:
        raise ConfigError(
            f"This hf upstream has no model type {model_type!r}.{did_you_mean(str(model_type), families)} "
            f"It has: {', '.join(sorted(families))}. (hf takes speech models, hf_audio other sound, hf_vision pictures "
            "and video, hf_av sound with video.)"
        )
    return model_type


def read_preprocessing(folder: Path) -> Preprocessing:
    """What preprocessor_config.json says; the defaults where there is no such file."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return Preprocessing()
    try:
        content = json.loads(file.read_text())
        return Preprocessing(
            sample_rate=int(content.get("sampling_rate", 16000)), do_normalize=content.get("do_normalize")
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{str(file)!r} cannot be read: {error}.") from error


def _switch_off_randomness(config: Any) -> None:
    """No layer drop (it changes how many layers there are) and no SpecAugment (it draws from numpy's generator)."""
    for field, value in (("layerdrop", 0.0), ("encoder_layerdrop", 0.0), ("apply_spec_augment", False)):
        if hasattr(config, field):
            setattr(config, field, value)


def build_model(
    config: Any,
    folder: Path | None,
    attention: str | None,
    dtype: torch.dtype,
    optional: Sequence[str] = ("masked_spec_embed",),
    model_class: str = "AutoModel",
) -> torch.nn.Module:
    """Build the model of a configuration, with the weights of a folder or random ones.

    Args:
        config: of transformers.
        folder: with the weights; None draws them.
        attention: "sdpa" or "eager"; None is "sdpa" where the family has it.
        dtype: of the weights.
        optional: parts of the names of weights that a folder may lack, because they touch no hidden state.
        model_class: name in transformers of what builds the model.

    Raises:
        ConfigError: transformers refuses the configuration.
        CheckpointError: the weights cannot be read, or some are missing.
    """
    import transformers

    build = getattr(transformers, model_class)
    random = getattr(build, "from_config", None) or build._from_config
    choices = [attention] if attention is not None else ["sdpa", "eager"]
    for choice in choices:
        try:
            if folder is None:
                return random(config, attn_implementation=choice, dtype=dtype)
            return _load(build, folder, config, choice, dtype, optional)
        except (ValueError, ImportError) as error:
            # a family without sdpa refuses it before it builds anything
            if choice == choices[-1] or "attention" not in str(error):
                raise ConfigError(f"transformers refuses to build a {config.model_type} model: {error}") from error
    raise AssertionError("unreachable")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar over the tensors: a run has a bar of its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _load(
    build: Any, folder: Path, config: Any, attention: str, dtype: torch.dtype, optional: Sequence[str]
) -> torch.nn.Module:
    import pickle

    from safetensors import SafetensorError

    try:
        with _quiet():
            model, report = build.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                attn_implementation=attention,
                dtype=dtype,
                output_loading_info=True,
            )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"The weights in {str(folder)!r} are refused, and nothing in them was run: the file holds other things "
            "than tensors, or is damaged. Ask its author for model.safetensors."
        ) from error
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        raise CheckpointError(
            f"The weights in {str(folder)!r} cannot be loaded: {error}. "
            "A complete model.safetensors or pytorch_model.bin that fits config.json is needed."
        ) from error
    # a mask embedding serves pretraining alone, and fine-tuned checkpoints may come without it
    missing = sorted(key for key in report["missing_keys"] if not any(part in key for part in optional))
    if missing:
        raise CheckpointError(
            f"The weights in {str(folder)!r} lack {len(missing)} tensors that {config.model_type} needs, for example "
            f"{', '.join(missing[:5])}: they would be random. Use the complete checkpoint of this model."
        )
    return model
