"""A suite: a yaml file that lists corpora, upstreams and protocols; how it is read and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmssl.data.folds import read_folds
from mmssl.data.manifest import read_manifest
from mmssl.data.splits import make_folds
from mmssl.errors import ConfigError, did_you_mean
from mmssl.probing.choice import HeadChoice
from mmssl.stages.bench import Corpus, Protocols, leaderboard, run_protocols
from mmssl.stages.context import System
from mmssl.stages.files import digest, write_json
from mmssl.types import StreamSpec

KEYS = ("name", "folder", "corpora", "upstreams", "protocols", "heads", "probe", "published")
HEAD_KEYS = ("head", "interface", "head_arguments", "interface_arguments")
CORPUS_KEYS = ("name", "manifest", "folds", "protocol", "label", "values", "note")
PROBE_KEYS = ("statistics", "stream", "layers", "scan", "fractions", "seeds")
TRAIN_KEYS = (
    "learning_rates",
    "weight_decays",
    "max_steps",
    "batch_size",
    "patience",
    "eval_every",
    "optimizer",
    "grad_clip",
    "hidden_size",
    "class_weights",
    "monitor",
)
NUMBERS = ("learning_rates", "weight_decays", "fractions", "grad_clip")
BOARD = "leaderboard.json"


@dataclass(frozen=True)
class Suite:
    """A suite with its paths resolved.

    Attributes:
        name: of the leaderboard.
        folder: where features, results and the leaderboard go.
        corpora: in the order of the file.
        systems: upstreams.
        protocols: what to run.
        published: rows of published numbers, shown beside ours.
    """

    name: str
    folder: Path
    corpora: tuple[Corpus, ...]
    systems: tuple[System, ...]
    protocols: Protocols
    published: tuple[Mapping[str, Any], ...]


def read_suite(path: Path) -> Suite:
    """Read a suite; paths in it are relative to its folder.

    Raises:
        ConfigError: it is no yaml, a key is unknown or missing, or a value has the wrong form.
        DataError: a manifest or a file of folds cannot be read.
    """
    import yaml

    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The suite {path} cannot be read: {error}.") from error
    node = _mapping(node, str(path), KEYS, needed=("corpora", "upstreams"))
    for key in ("corpora", "upstreams"):
        if not isinstance(node[key], list) or not node[key]:
            raise ConfigError(f"{path}: {key} must be a list with at least one entry.")
    corpora = tuple(_corpus(entry, path.parent, path) for entry in node["corpora"])
    systems = tuple(_system(entry, path) for entry in node["upstreams"])
    for kind, names in (("corpora", [c.name for c in corpora]), ("upstreams", [s.name for s in systems])):
        if len(set(names)) < len(names):
            raise ConfigError(f"{path}: two {kind} have one name: {', '.join(names)}. Give each a name: of its own.")
    return Suite(
        name=str(node.get("name") or path.stem),
        folder=path.parent / str(node.get("folder") or f"{path.stem}_results"),
        corpora=corpora,
        systems=systems,
        protocols=read_protocols(node.get("protocols"), node.get("probe"), str(path), node.get("heads")),
        published=tuple(node.get("published") or ()),
    )


def read_heads(heads: Any, where: str) -> tuple[HeadChoice, ...]:
    """`heads` of a suite or a recipe: names, or mappings with head, interface and their arguments.

    Raises:
        ConfigError: it is no list, or an entry has another form.
    """
    if not isinstance(heads or [], list):
        raise ConfigError(f"{where}: heads must be a list such as [attentive_stats], got {heads!r}.")
    found = []
    for entry in heads or []:
        if isinstance(entry, str):
            entry = {"head": entry}
        given = _mapping(entry, f"{where}: a head", HEAD_KEYS, needed=("head",))
        found.append(HeadChoice(**{key: value for key, value in given.items() if value is not None}))
    return tuple(found)


def keeps_frames(heads: Sequence[HeadChoice]) -> bool:
    """Whether one of the pairs needs frames, whatever the upstream."""
    # an interface may name a layer, so there must be as many as any upstream has
    stream = StreamSpec((8,) * 64, (1,) * 64)
    return any(not choice.affine(stream) for choice in heads)


def read_protocols(names: Any, probe: Any, where: str, heads: Any = None) -> Protocols:
    """`protocols`, `probe` and `heads` of a suite or a recipe; null stands for the default.

    Raises:
        ConfigError: a key is unknown, or `protocols` is no list.
    """
    if names is not None and (not isinstance(names, list) or not (names or heads)):
        raise ConfigError(f"{where}: protocols must be a list such as [linear, knn], got {names!r}.")
    given = _mapping(probe or {}, f"{where}: probe", (*PROBE_KEYS, *TRAIN_KEYS))
    given = {key: value for key, value in given.items() if value is not None}
    # 1e-4 without a point is text to yaml
    for key in NUMBERS:
        if key in given:
            value = given[key]
            try:
                given[key] = [float(v) for v in value] if isinstance(value, list) else float(value)
            except (TypeError, ValueError):
                raise ConfigError(f"{where}: probe.{key} must be numbers, got {value!r}.") from None
    own = {key: given[key] for key in PROBE_KEYS if key in given}
    settings = {key: given[key] for key in TRAIN_KEYS if key in given}
    chosen: dict[str, Any] = {} if names is None else {"names": tuple(names)}
    return Protocols(**chosen, heads=read_heads(heads, where), **own, settings=settings)


def run_suite(
    suite: Suite, *, device: str = "cpu", jobs: int = 1, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Extract what is missing, run what is missing, and write the leaderboard; a killed run goes on.

    Features are in folder/feats/<corpus>/<upstream>-<digest>, with frames only where a head needs them, results in
    folder/results, and the leaderboard in folder/leaderboard.json, .md, .html and .tex.

    Args:
        suite: what to run.
        device: to extract and train on.
        jobs: processes that extract.
        say: told what was done, one line at a time.

    Returns:
        The content of leaderboard.json.

    Raises:
        MmsslError: of the extraction or of a protocol.
    """
    from mmssl.features.extract import ExtractOptions, extract
    from mmssl.features.store import FeatureStore

    records: list[dict[str, Any]] = []
    frames = keeps_frames(suite.protocols.heads)
    for corpus in suite.corpora:
        for system in suite.systems:
            name = f"{system.name}-{digest([system.target, dict(system.kwargs)])[:12]}" + ("-frames" if frames else "")
            store = suite.folder / "feats" / corpus.name / name
            summary = extract(
                system.target,
                corpus.clips,
                store,
                upstream_kwargs=dict(system.kwargs),
                frames=frames,
                options=ExtractOptions(device=device, jobs=jobs, progress=False),
            )
            say(f"{corpus.name} / {system.name}: {summary.done} clips extracted, {summary.reused} were there")
            results = suite.folder / "results"
            records += run_protocols(
                corpus, system.name, [FeatureStore(store)], suite.protocols, results, device=device, say=say
            )
    notes = {corpus.name: corpus.note for corpus in suite.corpora if corpus.note}
    board = leaderboard(suite.name, records, published=list(suite.published), notes=notes)
    write_board(board, suite.folder)
    return board


def write_board(board: Mapping[str, Any], folder: Path) -> None:
    """Write leaderboard.json, .md, .html and .tex."""
    from mmssl.report.leaderboard import write_leaderboard

    write_json(folder / BOARD, board)
    write_leaderboard(board, folder)


def _mapping(node: Any, where: str, allowed: Sequence[str], needed: Sequence[str] = ()) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        raise ConfigError(f"{where} must be a mapping with the keys {', '.join(allowed)}; got {type(node).__name__}.")
    unknown = [str(key) for key in node if key not in allowed]
    if unknown:
        hint = did_you_mean(unknown[0], allowed)
        raise ConfigError(f"{where}: there is no key {unknown[0]!r}.{hint} Keys: {', '.join(allowed)}.")
    missing = [key for key in needed if key not in node]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}.")
    return dict(node)


def _corpus(entry: Any, folder: Path, path: Path) -> Corpus:
    node = _mapping(entry, f"{path}: a corpus", CORPUS_KEYS, needed=("manifest", "label"))
    manifest = folder / str(node["manifest"])
    clips = read_manifest(manifest)
    label, values = str(node["label"]), bool(node.get("values", False))
    if ("folds" in node) == ("protocol" in node):
        raise ConfigError(f"{path}: the corpus {manifest} needs either folds (a file) or protocol (how to make them).")
    if "folds" in node:
        folds = read_folds(folder / str(node["folds"]))
    else:
        try:
            folds = make_folds(clips, label=label, **node["protocol"])
        except TypeError as error:
            raise ConfigError(f"{path}: protocol of {manifest}: {error}.") from error
    return Corpus(str(node.get("name") or manifest.stem), clips, folds, label, values, str(node.get("note") or ""))


def _system(entry: Any, path: Path) -> System:
    if isinstance(entry, str):
        return System(entry, entry, {})
    if not isinstance(entry, Mapping) or not ({"name", "_target_"} & set(entry)):
        raise ConfigError(
            f"{path}: an upstream is a name, or a mapping with name, _target_ and its arguments; got {entry!r}."
        )
    kwargs = {str(key): value for key, value in entry.items() if key not in ("name", "_target_")}
    target = str(entry.get("_target_") or entry["name"])
    return System(str(entry.get("name") or target.rpartition(".")[2]), target, kwargs)
