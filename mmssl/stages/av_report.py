"""What the pages of the audio-visual recipes say alike: the protocol, and what was left out."""

from __future__ import annotations

from typing import Any

from mmssl.data.folds import read_folds
from mmssl.data.manifest import read_manifest
from mmssl.stages.av_extract import FEATURES
from mmssl.stages.av_page import Section
from mmssl.stages.av_pretrain import RECORD
from mmssl.stages.context import Context
from mmssl.stages.files import read_json
from mmssl.stages.utterance_prepare import CORPUS, FOLDS, MANIFEST, SKIPPED
from mmssl.stages.utterance_score import protocol_of


def protocol_section(context: Context, how: str) -> Section:
    """Folds, pretraining and what was done, in words."""
    clips, folds = read_manifest(context.data / MANIFEST), read_folds(context.data / FOLDS)
    protocol = protocol_of(context.config["protocol"], folds, clips)
    texts = [f"{protocol['name']}. {protocol['description']}", protocol["notes"]]
    texts += [pretraining_text(read_json(context.exp_dir / RECORD)), how]
    return Section("Protocol", [text for text in texts if text])


def pretraining_text(made: dict[str, Any]) -> str:
    """How the encoder was pretrained here; empty where it was not."""
    if not made["trained"]:
        return ""
    return (
        f"The encoder was pretrained here by {made['objective']} on {made['clips']} clips of {made['speakers']} "
        f"speakers, {made['steps']:.0f} steps, loss {made['loss'][0]:.3f} to {made['loss'][1]:.3f}. No test speaker "
        "was among them."
    )


def warnings_of(context: Context, overlap: bool) -> list[str]:
    """Clips that lack something or were left out, speakers on both sides, and what the pretraining warned of."""
    records = read_json(context.exp_dir / FEATURES).values()
    skipped = read_json(context.data / SKIPPED) + [item for record in records for item in record["skipped"]]
    corpus = read_json(context.data / CORPUS)
    found = [f"Data: {corpus['missing']}."] if corpus.get("missing") else []
    if overlap:
        found.append("Some test speakers were also in training: the scores flatter all systems.")
    if skipped:
        count = len({item["id"] for item in skipped})
        found.append(f"{count} clips were skipped, the first: {skipped[0]['reason']}")
    return found + [f"Pretraining: {text}" for text in read_json(context.exp_dir / RECORD).get("warnings", [])]
