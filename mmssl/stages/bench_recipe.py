"""Stage 3 of a benchmark recipe: every protocol on every upstream, and the leaderboard."""

from __future__ import annotations

from mmssl.data.folds import read_folds, speaker_overlap
from mmssl.data.manifest import read_manifest
from mmssl.errors import ConfigError
from mmssl.features.store import FeatureStore
from mmssl.report.leaderboard import render_markdown
from mmssl.stages.bench import Corpus, leaderboard, run_protocols
from mmssl.stages.bench_suite import read_protocols, write_board
from mmssl.stages.context import Context, log
from mmssl.stages.files import read_json
from mmssl.stages.utterance_extract import FEATURES
from mmssl.stages.utterance_prepare import FOLDS, MANIFEST


def probe(context: Context) -> str:
    """Write exp/NAME/results and exp/NAME/leaderboard.json, .md, .html and .tex.

    Raises:
        ConfigError: a key of `bench` is wrong, or a protocol does not go with the label.
    """
    config = context.config
    bench = config["bench"]
    statistics = config["features"]["statistics"]
    if statistics not in ("mean", "mean_std"):
        raise ConfigError(f"features.statistics must be mean or mean_std in a benchmark, got {statistics!r}.")
    given = {"statistics": statistics, "stream": config["features"]["stream"], **(bench["probe"] or {})}
    protocols = read_protocols(bench["protocols"], given, "bench", bench.get("heads"))
    clips = read_manifest(context.data / MANIFEST)
    folds = read_folds(context.data / FOLDS)
    corpus = Corpus(
        config["corpus"], clips, folds, config["label"], config["task"]["kind"] == "regression", _note(context)
    )
    if any(speaker_overlap(fold, clips) for fold in folds):
        log.info("   speakers of the test parts are in the training parts too")
    features = read_json(context.exp_dir / FEATURES)
    records = []
    for system in context.systems:
        store = FeatureStore(context.folder / features[system.name]["folder"])
        records += run_protocols(
            corpus,
            system.name,
            [store],
            protocols,
            context.exp_dir / "results",
            device=context.device(),
            say=lambda text: log.info("   %s", text),
        )
    board = leaderboard(
        f"{corpus.name}: {corpus.label}",
        records,
        published=list(bench["published"] or []),
        notes={corpus.name: corpus.note},
    )
    write_board(board, context.exp_dir)
    log.info("\n%s", render_markdown(board).rstrip())
    return f"{len(records)} results, leaderboard.html"


def _note(context: Context) -> str:
    protocol = context.config["protocol"]
    overlap = "" if protocol["group"] is None else f" Grouped by {protocol['group']}."
    return f"Protocol: {protocol['name']}.{overlap} {protocol['notes'] or ''}".strip()
