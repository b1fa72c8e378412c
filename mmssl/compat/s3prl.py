"""S3PRL's calls on mmssl's upstreams, so that a script changes its import and little else.

    from mmssl.compat.s3prl import S3PRLUpstream, Featurizer     # for: from s3prl.nn import S3PRLUpstream, Featurizer
    from mmssl.compat.s3prl import hub                           # for: from s3prl import hub

What differs, and why:
    Lengths are exact. S3PRL reports ceil(samples / stride) frames and repeats the last frame where the model has fewer.
    Features do not depend on the batch. S3PRL's change with the padding for models with norms over time.
    Nothing is downloaded. A pretrained model needs `path_or_url` (or `ckpt`) on disk; without one it must be asked for
    untrained, by `randomize=True`. The front ends without weights (fbank, mfcc ...) need neither.
    A clip below the model's minimum is an error; S3PRL adds zeros to one below 50 ms.
    Loading draws no global random numbers, and leaves the model in eval mode: call `train()` to fine-tune.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError, did_you_mean
from mmssl.interfaces.weighted_sum import WeightedSum
from mmssl.lengths import pad
from mmssl.registry import UPSTREAMS
from mmssl.types import Layers
from mmssl.upstreams.base import Upstream, load_upstream

Arguments = dict[str, Any]
NAMES: Mapping[str, tuple[str, Arguments]] = {
    "hubert": ("hubert", {}),
    "hubert_base": ("hubert", {}),
    "hubert_large_ll60k": ("hubert", {"preset": "hubert_large"}),
    "wav2vec2": ("wav2vec2", {}),
    "wav2vec2_base_960": ("wav2vec2", {}),
    "wav2vec2_large_960": ("wav2vec2", {"preset": "wav2vec2_large"}),
    "wav2vec2_large_ll60k": ("wav2vec2", {"preset": "wav2vec2_lv60"}),
    "xlsr_53": ("wav2vec2", {"preset": "wav2vec2_lv60"}),
    "wavlm": ("wavlm", {}),
    "wavlm_base": ("wavlm", {}),
    "wavlm_base_plus": ("wavlm", {"preset": "wavlm_base_plus"}),
    "wavlm_large": ("wavlm", {"preset": "wavlm_large"}),
    "data2vec": ("data2vec_audio", {}),
    "data2vec_base_960": ("data2vec_audio", {}),
    "data2vec_large_ll60k": ("data2vec_audio", {"preset": "data2vec_audio_large"}),
    "unispeech_sat": ("unispeech_sat", {}),
    "unispeech_sat_base": ("unispeech_sat", {}),
    "unispeech_sat_large": ("unispeech_sat", {"preset": "unispeech_sat_large"}),
    "distilhubert": ("distilhubert", {}),
    "distilhubert_base": ("distilhubert", {}),
    "cpc": ("cpc", {}),
    "modified_cpc": ("cpc", {}),
    "vq_wav2vec": ("vq_wav2vec", {}),
    "vq_wav2vec_gumbel": ("vq_wav2vec", {}),
    "vq_wav2vec_kmeans": ("vq_wav2vec", {}),
    "discretebert": ("discrete_bert", {}),
    "vq_wav2vec_kmeans_roberta": ("discrete_bert", {}),
    "wav2vec": ("wav2vec1", {}),
    "wav2vec_large": ("wav2vec1", {}),
    "apc": ("apc", {}),
    "vq_apc": ("apc", {}),
    "mockingjay": ("mockingjay", {}),
    "tera": ("tera", {}),
    "pase_plus": ("pase_plus", {}),
    "byol_a_2048": ("byol_a", {}),
    "byol_a_1024": ("byol_a", {"hidden_size": 1024}),
    "byol_a_512": ("byol_a", {"hidden_size": 512}),
    "fbank": ("fbank", {"deltas": 2, "normalize": "mean_variance"}),
    "fbank_no_cmvn": ("fbank", {"deltas": 2}),
    "mfcc": ("mfcc", {"deltas": 2, "normalize": "mean_variance"}),
    "spectrogram": ("spectrogram", {}),
    "hf": ("hf", {}),
}
"""S3PRL's name -> name and arguments here. Names of mmssl work too; endings _local, _url and _custom are dropped."""


def _load(name: str, path: str | None, randomize: bool, arguments: Arguments) -> Upstream:
    """The upstream of a name, loaded from `path`, with weights that may be trained."""
    plain = next((name.removesuffix(end) for end in ("_local", "_url", "_custom") if name.endswith(end)), name)
    if plain not in NAMES and plain not in UPSTREAMS.names() and "." not in plain:
        known = S3PRLUpstream.available_names()
        raise ConfigError(f"There is no upstream {name!r}.{did_you_mean(plain, known)} Known: {', '.join(known)}.")
    ours, preset = NAMES.get(plain, (plain, {}))
    accepted = inspect.signature(UPSTREAMS.resolve(ours)).parameters
    entry = next((parameter for parameter in ("checkpoint", "path") if parameter in accepted), None)
    if path is not None:
        if randomize or entry is None:
            reason = "randomize=True" if randomize else "it has no weights"
            raise ConfigError(f"{name!r} takes no checkpoint here ({reason}), got {path!r}.")
        if "://" in path:
            raise ConfigError(f"Nothing is downloaded: save {path} to disk and give the path of the file or folder.")
        # sizes are the checkpoint's; a preset by name only fills in what that does not state
        preset = {key: value for key, value in preset.items() if key == "preset"} | {entry: path}
    elif entry is not None and not randomize and entry not in arguments:
        raise ConfigError(
            f"{name!r} needs the pretrained weights on disk: give path_or_url (hub: ckpt), or randomize=True for an "
            f"untrained model."
        )
    return load_upstream(ours, **(preset | arguments)).requires_grad_(True)


class S3PRLUpstream(nn.Module):
    """All layers of an upstream, called as `s3prl.nn.S3PRLUpstream` is.

    Args:
        name: S3PRL's name or one of mmssl (`available_names`).
        path_or_url: file or folder of the pretrained weights, on disk.
        refresh: must be False: nothing is downloaded.
        normalize: bring each frame of each layer to mean 0 and variance 1 over its features.
        extra_conf: further arguments of the upstream.
        randomize: the model without pretrained weights.

    Raises:
        ConfigError: an unknown name, or weights are missing or not on disk.
    """

    def __init__(
        self,
        name: str,
        path_or_url: str | None = None,
        refresh: bool = False,
        normalize: bool = False,
        extra_conf: Arguments | None = None,
        randomize: bool = False,
    ) -> None:
        super().__init__()
        if refresh:
            raise ConfigError("Nothing is downloaded, so that there is nothing to refresh: leave refresh out.")
        self.upstream = _load(name, path_or_url, randomize, dict(extra_conf or {}))
        self.normalize = normalize
        _audio_stream(self.upstream)

    @classmethod
    def available_names(cls, only_registered_ckpt: bool = False) -> list[str]:
        """Names that can be asked for; none comes with a checkpoint, so that the flag leaves those without weights."""
        if only_registered_ckpt:
            return [name for name, (ours, _) in NAMES.items() if ours in ("fbank", "mfcc", "spectrogram")]
        return sorted({*NAMES, *UPSTREAMS.names()})

    @property
    def num_layers(self) -> int:
        """Number of layers, the same at every call."""
        return len(self.hidden_sizes)

    @property
    def hidden_sizes(self) -> list[int]:
        """Width of each layer."""
        return list(self.upstream.spec.streams["audio"].hidden_sizes)

    @property
    def downsample_rates(self) -> list[int]:
        """Samples between two frames of each layer."""
        return list(self.upstream.spec.streams["audio"].hop_lengths)

    def forward(self, wavs: Tensor, wavs_len: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """All layers of a padded batch.

        Args:
            wavs: (B, T) or (B, T, 1) in [-1, 1].
            wavs_len: (B,) samples of each.

        Returns:
            One (B, T', D) and one (B,) number of frames per layer; frames past a clip's end are zero.
        """
        layers = self.upstream(wavs.squeeze(-1) if wavs.dim() == 3 else wavs, wavs_len)["audio"]
        hidden = list(layers.hidden_states)
        if self.normalize:
            masks = [layers[k].mask[..., None] for k in range(len(layers))]
            hidden = [F.layer_norm(h, h.shape[-1:]) * mask for h, mask in zip(hidden, masks, strict=True)]
        return hidden, list(layers.lengths)


class Featurizer(nn.Module):
    """Weighted sum of the layers, called as `s3prl.nn.Featurizer` is.

    Args:
        upstream: whose layers share one width and one rate.
        layer_selections: numbers of the layers to sum; None for all.
        normalize: bring each frame of each layer to mean 0 and variance 1 over its features first.

    Raises:
        ConfigError: the layers differ in width or rate, or a selected one does not exist.
    """

    def __init__(
        self, upstream: S3PRLUpstream, layer_selections: Sequence[int] | None = None, normalize: bool = False
    ) -> None:
        super().__init__()
        sizes, rates = upstream.hidden_sizes, upstream.downsample_rates
        if len(set(sizes)) > 1 or len(set(rates)) > 1:
            raise ConfigError(f"A Featurizer needs layers of one width and rate, got widths {sizes} and rates {rates}.")
        chosen = range(len(sizes)) if layer_selections is None else sorted(layer_selections)
        if not chosen or not set(chosen) <= set(range(len(sizes))):
            raise ConfigError(f"layer_selections must be among 0 to {len(sizes) - 1}, got {layer_selections}.")
        self.layer_selections = list(chosen)
        self.sum = WeightedSum([sizes[k] for k in chosen], [rates[k] for k in chosen], normalize=normalize)
        self.output_size, self.downsample_rate = sizes[0], rates[0]

    @property
    def weights(self) -> nn.Parameter:
        """(L,) learned numbers whose softmax weighs the layers."""
        return self.sum.weights

    def forward(self, all_hs: Sequence[Tensor], all_lens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Layers and lengths of `S3PRLUpstream` -> (B, T', D) and (B,)."""
        chosen = self.layer_selections
        padded = self.sum(Layers(tuple(all_hs[k] for k in chosen), tuple(all_lens[k] for k in chosen)))
        return padded.data, padded.lengths


class UpstreamExpert(nn.Module):
    """An upstream called as what `getattr(s3prl.hub, name)()` returns: a list of clips in, a dict out."""

    def __init__(self, upstream: Upstream) -> None:
        super().__init__()
        _audio_stream(upstream)
        self.upstream = upstream

    def get_downsample_rates(self, key: str = "hidden_states") -> int:
        """Samples between two frames of the last layer."""
        return self.upstream.spec.streams["audio"].hop_lengths[-1]

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """All layers of clips of any lengths.

        Args:
            wavs: clips (T_b,) in [-1, 1].

        Returns:
            "hidden_states": one (B, T', D) per layer, zero past each clip's end; "last_hidden_state" and
            "hidden_state_0" on: the same one by one; "lengths": frames (B,) of each layer, which S3PRL does not tell.
        """
        if not len(wavs) or any(wav.dim() != 1 for wav in wavs):
            raise InputError("An expert takes a list of clips (T,), one or more.")
        layers = self.upstream(*pad(list(wavs)))["audio"]
        hidden = list(layers.hidden_states)
        named = {f"hidden_state_{k}": state for k, state in enumerate(hidden)}
        return {"hidden_states": hidden, "last_hidden_state": hidden[-1], "lengths": list(layers.lengths)} | named


class _Hub:
    """`hub.hubert(ckpt=...)` and `getattr(hub, "hubert")(ckpt=...)` build an expert."""

    def options(self, only_registered_ckpt: bool = False) -> list[str]:
        """Names that can be asked for."""
        return S3PRLUpstream.available_names(only_registered_ckpt)

    def __getattr__(self, name: str) -> Callable[..., UpstreamExpert]:
        if name.startswith("__"):
            raise AttributeError(name)

        def build(ckpt: str | None = None, *, randomize: bool = False, **arguments: Any) -> UpstreamExpert:
            """Build the expert of this name from weights on disk."""
            return UpstreamExpert(_load(name, ckpt, randomize, arguments))

        return build

    def __dir__(self) -> list[str]:
        return self.options()


hub = _Hub()
"""Stands for the module `s3prl.hub`."""


def _audio_stream(upstream: Upstream) -> None:
    if "waveforms" not in upstream.spec.inputs or "audio" not in upstream.spec.streams:
        raise ConfigError(
            f"{type(upstream).__name__} takes {', '.join(upstream.spec.inputs)}: S3PRL's calls need waveforms."
        )
