"""One registry for every kind of part, with three ways to plug one in and no fork.

1. An entry point of another package, in the group of the kind ("mmssl.upstreams"), loaded only when asked for.
2. A dotted path ("my_pkg.my_module.MyUpstream"), or a path to one .py file ("my_upstream.py" or "my_upstream.py:Name").
3. `register_upstream(name, build)` and its like, which refuse a taken name.

Nothing is imported before it is asked for: a built-in is a name and a dotted path until then.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from mmssl.errors import ConfigError, RegistryError, did_you_mean

Build = Callable[..., Any]


@dataclass
class Registry:
    """Names of one kind of part and how to build each.

    Attributes:
        kind: what the parts are, for messages: "upstream".
        group: entry-point group in which other packages offer theirs.
        builtins: name -> dotted path of the parts that come with mmssl.
        file_base: dotted path of the class that a plug-in file's part derives from, to find it in the file;
            None where a file has to name it ("file.py:Name").
    """

    kind: str
    group: str
    builtins: Mapping[str, str]
    file_base: str | None = None
    _registered: dict[str, Build] = field(default_factory=dict)

    def register(self, name: str, build: Build) -> None:
        """Add a part for this process.

        Raises:
            RegistryError: the name is taken by a built-in, an entry point or an earlier call.
        """
        owner = self.sources().get(name)
        if owner is not None:
            raise RegistryError(
                f"The {self.kind} name {name!r} is taken by {owner}. Choose another name, "
                f"or remove that one; names in use: {', '.join(self.names())}."
            )
        self._registered[name] = build

    def unregister(self, name: str) -> None:
        """Take back a name given by `register`."""
        self._registered.pop(name, None)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self.sources())

    def sources(self) -> dict[str, str]:
        """Name -> where it comes from, without importing any of them."""
        found = dict.fromkeys(self._registered, "this process (registered)")
        for name, points in self._entry_points().items():
            found[name] = " and ".join(f"package {_distribution(p)} ({p.value})" for p in points)
        return found | {name: f"mmssl ({path})" for name, path in self.builtins.items()}

    def clashes(self) -> dict[str, str]:
        """Entry-point names that cannot be used, because another package or mmssl itself has the name -> who has it."""
        clashing = {}
        for name, points in self._entry_points().items():
            owners = [f"package {_distribution(p)}" for p in points]
            if name in self.builtins:
                owners.insert(0, "mmssl")
            if len(owners) > 1:
                clashing[name] = " and ".join(owners)
        return clashing

    def resolve(self, spec: str) -> Build:
        """Return what builds a part: from a name, a dotted path, or a path to a .py file.

        Raises:
            RegistryError: nothing has that name, two packages do, or what has it does not load.
        """
        if spec in self.builtins:
            return self._load_dotted(self.builtins[spec])
        if spec in self._registered:
            return self._registered[spec]
        points = self._entry_points().get(spec, [])
        if len(points) > 1:
            raise RegistryError(
                f"The {self.kind} name {spec!r} is offered by {self.clashes()[spec]}. "
                f"Uninstall one, or ask for its dotted path: {' or '.join(p.value.replace(':', '.') for p in points)}."
            )
        if points:
            return self._load_entry_point(points[0])
        path, _, attribute = spec.partition(".py:")
        if spec.endswith(".py") or attribute:
            return self._load_file(Path(f"{path}.py" if attribute else spec), attribute or None)
        if "." in spec:
            return self._load_dotted(spec)
        raise RegistryError(
            f"There is no {self.kind} called {spec!r}.{did_you_mean(spec, self.names())} "
            f"Known names: {', '.join(self.names())}. "
            "A dotted path (package.module.Name) or a path to a .py file works too."
        )

    def build(self, spec: str, /, *args: Any, **kwargs: Any) -> Any:
        """Resolve a part and call what builds it.

        Raises:
            RegistryError: as `resolve`.
            ConfigError: the arguments do not fit its signature.
        """
        part = self.resolve(spec)
        try:
            signature = inspect.signature(part)
        except ValueError:  # some built-in types have none
            return part(*args, **kwargs)
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            own = list(signature.parameters)[len(args) :]
            unknown = [name for name in kwargs if name not in signature.parameters]
            hint = did_you_mean(unknown[0], own) if unknown else ""
            raise ConfigError(
                f"The {self.kind} {spec!r} does not take these arguments: {error}.{hint} "
                f"Its own arguments: {', '.join(own) or 'none'}."
            ) from error
        return part(*args, **kwargs)

    def _entry_points(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            same = found.setdefault(point.name, [])
            if all(p.value != point.value for p in same):
                same.append(point)
        return found

    def _load_entry_point(self, point: EntryPoint) -> Build:
        try:
            return point.load()
        except Exception as error:
            raise RegistryError(
                f"The {self.kind} {point.name!r} of package {_distribution(point)} does not load ({point.value}): "
                f"{type(error).__name__}: {error}. The other {self.kind}s are not affected; "
                "update or uninstall the package."
            ) from error

    def _load_dotted(self, path: str) -> Build:
        module_name, _, attribute = path.rpartition(".")
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise RegistryError(
                f"The {self.kind} {path!r} cannot be imported: {type(error).__name__}: {error}. "
                f"Check the spelling, or install what it needs."
            ) from error
        return self._attribute(module, attribute, path)

    def _load_file(self, path: Path, attribute: str | None) -> Build:
        if not path.is_file():
            raise RegistryError(f"The {self.kind} file {str(path)!r} does not exist (seen from {Path.cwd()}).")
        name = f"mmssl_plugin_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
        module = sys.modules.get(name) or _import_file(name, path, self.kind)
        if attribute is None:
            attribute = self._single_class(module, path)
        return self._attribute(module, attribute, str(path))

    def _single_class(self, module: ModuleType, path: Path) -> str:
        """The one class that a plug-in file defines on top of `file_base`."""
        found = []
        if self.file_base is not None:
            base_module, _, base_name = self.file_base.rpartition(".")
            base = getattr(importlib.import_module(base_module), base_name)
            found = [
                name
                for name, value in vars(module).items()
                if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__
            ]
        if len(found) != 1:
            raise RegistryError(
                f"{path} defines {len(found)} {self.kind} classes ({', '.join(found) or 'none'}); "
                f"name the one to use, as in {path}:{found[0] if found else 'MyClass'}."
            )
        return found[0]

    def _attribute(self, module: ModuleType, attribute: str, given: str) -> Build:
        value = getattr(module, attribute, None)
        if not callable(value):
            names = [n for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module.__name__]
            raise RegistryError(
                f"{given!r} names no {self.kind}: {module.__name__} has no class or function {attribute!r}."
                f"{did_you_mean(attribute, names)} It defines: {', '.join(names) or 'no class'}."
            )
        return value


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown"


def _import_file(name: str, path: Path, kind: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RegistryError(f"The {kind} file {str(path)!r} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RegistryError(f"The {kind} file {str(path)!r} does not load: {type(error).__name__}: {error}.") from error
    return module


UPSTREAMS = Registry(
    "upstream",
    "mmssl.upstreams",
    {
        "fbank": "mmssl.upstreams.spectral.Fbank",
        "mfcc": "mmssl.upstreams.spectral.Mfcc",
        "mel": "mmssl.upstreams.spectral.Mel",
        "spectrogram": "mmssl.upstreams.spectral.Spectrogram",
        "wav2vec2": "mmssl.upstreams.speech_transformer.Wav2Vec2",
        "hubert": "mmssl.upstreams.speech_transformer.Hubert",
        "hubert_nano": "mmssl.upstreams.hubert_nano.HubertNano",
        "wavlm": "mmssl.upstreams.speech_transformer.WavLM",
        "data2vec_audio": "mmssl.upstreams.speech_transformer.Data2VecAudio",
        "unispeech_sat": "mmssl.upstreams.speech_transformer.UniSpeechSat",
        "distilhubert": "mmssl.upstreams.speech_transformer.DistilHubert",
        "speech_student": "mmssl.upstreams.speech_student.SpeechStudent",
        "cpc": "mmssl.upstreams.cpc.CPC",
        "wav2vec1": "mmssl.upstreams.wav2vec1.Wav2Vec1",
        "vq_wav2vec": "mmssl.upstreams.vq_wav2vec.VqWav2Vec",
        "discrete_bert": "mmssl.upstreams.discrete_bert.DiscreteBert",
        "apc": "mmssl.upstreams.apc.APC",
        "mockingjay": "mmssl.upstreams.tera.Mockingjay",
        "tera": "mmssl.upstreams.tera.Tera",
        "pase_plus": "mmssl.upstreams.pase.PasePlus",
        "byol_a": "mmssl.upstreams.byol_a.ByolA",
        "ecapa_tdnn": "mmssl.upstreams.tdnn.EcapaTdnn",
        "xvector": "mmssl.upstreams.tdnn.XVector",
        "l3": "mmssl.upstreams.l3.L3",
        "xdc": "mmssl.upstreams.two_tower.XDC",
        "crisscross": "mmssl.upstreams.two_tower.CrissCross",
        "avid": "mmssl.upstreams.two_tower.AVID",
        "av_hubert": "mmssl.upstreams.av_hubert.AvHubert",
        "mae": "mmssl.upstreams.vit_mae.MAE",
        "audio_mae": "mmssl.upstreams.audio_mae.AudioMAE",
        "video_mae": "mmssl.upstreams.video_mae.VideoMAE",
        "cav_mae": "mmssl.upstreams.cav_mae.CAVMAE",
        "hicmae": "mmssl.upstreams.hicmae.HiCMAE",
        "time_steps": "mmssl.upstreams.time_steps.TimeSteps",
        "hf": "mmssl.upstreams.hf.HFUpstream",
        "hf_vision": "mmssl.upstreams.hf_vision.HFVision",
        "hf_audio": "mmssl.upstreams.hf_audio.HFAudio",
        "hf_av": "mmssl.upstreams.hf_av.HFAudioVideo",
        "torchvision": "mmssl.upstreams.torchvision_models.TorchvisionImage",
        "torchvision_video": "mmssl.upstreams.torchvision_models.TorchvisionVideo",
        "timm": "mmssl.upstreams.timm_models.Timm",
        "torchaudio": "mmssl.upstreams.torchaudio_bundles.TorchaudioBundle",
    },
    file_base="mmssl.upstreams.base.Upstream",
)

INTERFACES = Registry(
    "interface",
    "mmssl.interfaces",
    {
        "last_layer": "mmssl.interfaces.selection.LastLayer",
        "layer": "mmssl.interfaces.selection.SingleLayer",
        "weighted_sum": "mmssl.interfaces.weighted_sum.WeightedSum",
        "hierarchical_conv": "mmssl.interfaces.hierarchical_conv.HierarchicalConv",
        "concat": "mmssl.interfaces.concat.Concat",
    },
    file_base="mmssl.interfaces.base.Interface",
)

HEADS = Registry(
    "head",
    "mmssl.heads",
    {
        "linear": "mmssl.downstream.heads.Linear",
        "mlp": "mmssl.downstream.heads.MLP",
        "attentive_stats": "mmssl.downstream.heads.AttentiveStats",
        "ecapa_tdnn": "mmssl.downstream.frame_heads.EcapaTdnn",
        "xvector": "mmssl.downstream.frame_heads.XVector",
        "blstm": "mmssl.downstream.frame_heads.Blstm",
    },
    file_base="mmssl.downstream.heads.Head",
)

OBJECTIVES = Registry(
    "objective",
    "mmssl.objectives",
    {
        "wav2vec2": "mmssl.objectives.methods.wav2vec2.wav2vec2",
        "hubert": "mmssl.objectives.methods.hubert.hubert",
        "data2vec": "mmssl.objectives.methods.data2vec.data2vec",
        "best_rq": "mmssl.objectives.methods.best_rq.best_rq",
        "tera": "mmssl.objectives.methods.tera.tera",
        "mae": "mmssl.objectives.methods.mae.mae",
        "audio_mae": "mmssl.objectives.methods.audio_mae.audio_mae",
        "video_mae": "mmssl.objectives.methods.video_mae.video_mae",
        "hicmae": "mmssl.objectives.methods.hicmae.hicmae",
        "simclr": "mmssl.objectives.methods.simclr.simclr",
        "dino": "mmssl.objectives.methods.dino.dino",
        "byol_a": "mmssl.objectives.methods.byol_a.byol_a",
        "correspondence": "mmssl.objectives.methods.correspondence.correspondence",
        "synchrony": "mmssl.objectives.methods.synchrony.synchrony",
        "cross_modal": "mmssl.objectives.methods.cross_modal.cross_modal",
        "av_hubert": "mmssl.objectives.methods.av_hubert.av_hubert",
    },
)

AUGMENTATIONS = Registry(
    "augmentation",
    "mmssl.augmentations",
    {
        "chain": "mmssl.augment.base.Chain",
        "with": "mmssl.augment.base.With",
        "one_of": "mmssl.augment.base.OneOf",
        "gain": "mmssl.augment.level.Gain",
        "polarity": "mmssl.augment.level.Polarity",
        "limit_peak": "mmssl.augment.level.LimitPeak",
        "band_limit": "mmssl.augment.level.BandLimit",
        "noise": "mmssl.augment.noise.AdditiveNoise",
        "reverberation": "mmssl.augment.reverb.Reverberation",
        "speed": "mmssl.augment.speed.SpeedPerturbation",
        "pitch": "mmssl.augment.speed.PitchShift",
        "speaker": "mmssl.augment.speed.SpeakerPerturbation",
        "temporal_crop": "mmssl.augment.time.TemporalCrop",
        "temporal_shift": "mmssl.augment.time.TemporalShift",
    },
    file_base="mmssl.augment.base.Augmentation",
)


def register_upstream(name: str, build: Build) -> None:
    """Register an upstream for this process: `build(**kwargs)` returns a `mmssl.upstreams.base.Upstream`."""
    UPSTREAMS.register(name, build)
