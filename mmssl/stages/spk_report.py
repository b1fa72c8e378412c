"""Stage 5 of recipes/spk: error_rates.json, RESULTS.md and report.html."""

from __future__ import annotations

from mmssl.report.speaker import KIND, write_speaker_report
from mmssl.stages.context import Context, log, versions
from mmssl.stages.files import read_json, write_json
from mmssl.stages.spk_setup import METRICS, RESULTS, TRAINING_SUMMARY, TRIALS_SUMMARY
from mmssl.stages.utterance_prepare import CORPUS, SKIPPED


def report(context: Context) -> str:
    """Gather what the other stages left, and write the report from it."""
    config = context.config
    trials = read_json(context.data / TRIALS_SUMMARY)
    results = {
        "schema": 1,
        "kind": KIND,
        "name": context.exp,
        "corpus": {"name": config["corpus"], **read_json(context.data / CORPUS)},
        "protocol": {"notes": config["protocol"]["notes"], "given": trials["given"]},
        "trials": trials["lists"],
        "skipped": read_json(context.data / SKIPPED),
        "training": read_json(context.exp_dir / TRAINING_SUMMARY),
        "scores": read_json(context.exp_dir / METRICS),
        "settings": {name: config[name] for name in ("encoder", "loss", "training", "augmentation", "embedding")},
        "command": context.command,
        "versions": versions(),
    }
    write_json(context.exp_dir / RESULTS, results)
    table = write_speaker_report(results, context.exp_dir)
    log.info("\n%s", table)
    return f"{RESULTS}, RESULTS.md, report.html"
