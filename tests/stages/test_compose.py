"""From words of a command line to one checked configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmssl.errors import ConfigError
from mmssl.registry import UPSTREAMS
from mmssl.stages.compose import Composed, compose
from mmssl.stages.settings import bind, check, stages_of
from mmssl.types import Inputs, Layers, Representation, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream

EGS = Path(__file__).parents[2] / "egs"


class Toy(Upstream):
    """Blocks of raw samples."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width
        self.spec = UpstreamSpec(("waveforms",), {"audio": StreamSpec((width,), (width,))}, 16000, min_length=width)

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        return lengths // self.width

    def extract(self, inputs: Inputs) -> Representation:
        assert inputs.waveforms is not None
        data, lengths = inputs.waveforms.data, self.output_lengths(inputs.waveforms.lengths)
        steps = int(lengths.max())
        frames = torch.nn.functional.pad(data, (0, self.width))[:, : steps * self.width].reshape(len(data), steps, -1)
        return {"audio": Layers((frames,), (lengths,))}


@pytest.fixture
def toy() -> Iterator[str]:
    UPSTREAMS.register("toy_blocks", Toy)
    yield "toy_blocks"
    UPSTREAMS.unregister("toy_blocks")


def composed(*overrides: str, corpus: str = "emodb", caller: Path | None = None) -> Composed:
    return compose(EGS / corpus / "ser", overrides, caller)


def test_numbers_in_scientific_notation_are_numbers() -> None:
    # a YAML 1.1 loader reads 1e-3 as text
    config = composed("train.learning_rates=[1e-3,2E-2]", "train.weight_decay=1e-6").config
    assert config["train"]["learning_rates"] == [1e-3, 2e-2]
    assert config["train"]["weight_decay"] == 1e-6
    assert all(isinstance(rate, float) for rate in composed().config["train"]["learning_rates"])


def test_arguments_within_an_argument_are_overridden() -> None:
    words = ["objective=correspondence", "upstream=l3", "objective.augment.flip=0.25"]
    assert compose(EGS / "mini" / "ssl", [*words, "nano=null"]).config["objective"]["augment"] == {"flip": 0.25}
    sized = compose(EGS / "mini" / "ssl", words).config["objective"]["augment"]
    assert sized == {"crop_scale": [0.7, 1.0], "flip": 0.25, "jitter": 0.4, "gain": 3.0}


def test_groups_and_values_are_overridden() -> None:
    result = composed(
        "upstream=mfcc", "upstream.num_ceps=20", "interface=last_layer", "train=quick", "train.max_steps=5"
    )
    assert result.config["upstream"]["num_ceps"] == 20
    assert result.config["train"]["max_steps"] == 5
    assert result.systems[0].name == "mfcc"
    assert result.config["exp"] == "mfcc-last_layer-linear"
    assert composed("exp=mine").config["exp"] == "mine"
    check(result)


def test_a_compared_upstream_that_is_the_main_one_runs_once() -> None:
    names = [s.name for s in composed("upstream=fbank", "compare=[fbank,mel,fbank]").systems]
    assert names == ["fbank", "mel"]


def test_the_same_upstream_with_another_argument_is_another_system() -> None:
    systems = composed("upstream=fbank", "upstream.num_mel_bins=40", "compare=[fbank]").systems
    assert [s.name for s in systems] == ["fbank", "fbank-2"]
    assert [s.kwargs["num_mel_bins"] for s in systems] == [40, 80]


def test_mini_compares_three_systems() -> None:
    assert [s.name for s in composed(corpus="mini").systems] == ["hubert_untrained", "fbank", "mel"]


def test_relative_paths_are_seen_from_the_caller(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    result = composed("data.root=../corpus", "upstream=hf", "upstream.path=model", caller=tmp_path)
    assert result.config["data"]["root"] == str(tmp_path.parent / "corpus")
    assert result.systems[0].kwargs["path"] == str(tmp_path / "model")
    assert result.systems[0].name == "hf_model"
    (tmp_path / "audio_mae").mkdir()
    (tmp_path / "encoder").mkdir()
    for given, expected in (
        ("encoder", tmp_path / "encoder"),
        ("audio_mae", "audio_mae"),
        ("vendor.Encoder", "vendor.Encoder"),
    ):
        joined = composed("upstream=time_steps", f"upstream.upstream={given}", caller=tmp_path).systems[0]
        assert joined.kwargs["upstream"] == str(expected)
    read = composed("upstream=hubert", "upstream.checkpoint=encoder", caller=tmp_path).systems[0]
    assert read.kwargs["checkpoint"] == str(tmp_path / "encoder")
    # a name on a model hub is no path
    assert composed("upstream=hf", "upstream.path=org/name", caller=tmp_path).systems[0].kwargs["path"] == "org/name"


def test_paths_with_spaces_and_quotes(tmp_path: Path) -> None:
    result = composed('data.root="it\'s a folder, = {1}"', caller=tmp_path)
    assert result.config["data"]["root"] == str(tmp_path / "it's a folder, = {1}")


def test_a_registered_upstream_needs_no_yaml(toy: str) -> None:
    result = composed(f"upstream={toy}", "upstream.width=16", "compare=[fbank]")
    check(result)
    assert result.systems[0].target == toy
    assert result.systems[0].kwargs == {"width": 16}
    with pytest.raises(ConfigError, match=r"upstream.widht: toy_blocks has no such argument. Did you mean 'width'"):
        check(composed(f"upstream={toy}", "upstream.widht=16"))


def test_a_plug_in_is_compared_too(toy: str) -> None:
    assert [s.target for s in composed(f"compare=[{toy}]").systems][1] == toy


@pytest.mark.parametrize("words", [["upstream={path}"], ["upstream=custom", "upstream._target_={path}"]])
def test_an_upstream_in_a_file(words: list[str], tmp_path: Path) -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    result = composed(*(w.format(path="mine.py:Toy") for w in words), "upstream.width=4", caller=tmp_path)
    check(result)
    assert result.systems[0].target == f"{tmp_path}/mine.py:Toy"


def test_a_dotted_upstream() -> None:
    result = composed("upstream=mmssl.upstreams.spectral.Fbank", "upstream.num_mel_bins=23")
    check(result)
    assert result.systems[0].name == "Fbank"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("upstream=fbnk", r"no upstream 'fbnk'. Did you mean 'fbank'\? Choices: .*mel, mfcc"),
        ("interface=weigthed_sum", r"no interface 'weigthed_sum'. Did you mean 'weighted_sum'"),
        ("head=liner", r"no head 'liner'. Did you mean 'linear'"),
        ("train=quik", r"no train 'quik'. Did you mean 'quick'\? Choices: probe, quick, superb"),
        ("compare=[fbank,mell]", r"no upstream 'mell'. Did you mean 'mel'"),
        ("trian.seed=1", r"no key 'trian.seed'. Did you mean 'train.seed'"),
        ("data.rot=x", r"no key 'data.rot'. Did you mean 'data.root'"),
        ("dataroot=x", r"no key 'dataroot'. Did you mean 'data.root'"),
        ("upstream", r"override 'upstream' cannot be read. Write key=value"),
        ("train.seed=[1", r"cannot be read"),
        ("train.seed=1,2", r"One run takes one"),
        ("label=${nothing}", r"does not compose: .*nothing"),
    ],
)
def test_what_is_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        composed(word)
    assert "Traceback" not in str(caught.value)


def test_all_faults_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        composed("trian.seed=1", "data.rot=2")
    assert "trian.seed" in str(caught.value)
    assert "data.rot" in str(caught.value)
    bad = ["train.max_steps=0", "data.on_error=ignore", "train.learning_rates=[]", "protocol.dev_groups=x", "exp=a/b"]
    with pytest.raises(ConfigError) as caught:
        check(composed(*bad), targets=False)
    for key in ("train.max_steps", "data.on_error", "train.learning_rates", "protocol.dev_groups", "exp"):
        assert f"{key} must be" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        check(composed("upstream.num_mel_bin=8", "head.hiden_size=3", "interface.normalise=true"))
    for name in ("Did you mean 'num_mel_bins'", "Did you mean 'hidden_size'", "Did you mean 'normalize'"):
        assert name in str(caught.value)


def test_a_value_left_open_is_named() -> None:
    with pytest.raises(ConfigError, match=r"upstream.path is not set: give upstream.path=VALUE"):
        check(composed("upstream=hf"))
    with pytest.raises(ConfigError, match=r"interface.layer is not set"):
        check(composed("interface=layer"))


def test_an_added_training_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"there is no key 'train.lr'. Did you mean"):
        composed("+train.lr=3")


def test_bind_reports_what_is_missing() -> None:
    assert bind("interface", "layer", {}, positional=2)[0].startswith("interface layer: missing")
    assert bind("interface", "layer", {"layer": 1}, positional=2) == []
    assert "cannot be imported" in bind("upstream", "no_such_module.Name", {})[0]


def test_a_folder_that_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the folder of a recipe"):
        compose(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("corpus: x\n")
    with pytest.raises(ConfigError, match="names no recipe"):
        compose(tmp_path)
    (tmp_path / "conf" / "config.yaml").write_text("recipe: x\n")
    with pytest.raises(ConfigError, match=r"no recipes/x/recipe.yaml"):
        compose(tmp_path)


def test_the_plan_of_the_recipe() -> None:
    stages = stages_of(composed().config)
    assert [(s.number, s.name) for s in stages] == [
        (1, "prepare"),
        (2, "extract"),
        (3, "train"),
        (4, "score"),
        (5, "report"),
    ]
    for stage in stages:
        assert callable(stage.function())
    written = {pattern for stage in stages for pattern in stage.writes} | {"local/prepare.py", "{root}?"}
    assert all(pattern in written for stage in stages for pattern in stage.reads)


def test_a_broken_plan_is_refused() -> None:
    config = composed().config
    config["stages"]["train"]["number"] = 1
    with pytest.raises(ConfigError, match="must increase"):
        stages_of(config)
    del config["stages"]["train"]["number"]
    with pytest.raises(ConfigError, match="stage 'train': missing"):
        stages_of(config)
