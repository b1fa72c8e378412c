from __future__ import annotations

import copy
import json
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from mmssl.report.html import render_html

Make = Callable[..., dict[str, Any]]
VOID = {"meta", "br", "link", "img", "input", "hr"}
EVIL = "<script>alert('x')</script>\"&amp;'><img src=x onerror=y>"


class Page(HTMLParser):
    """Checks that tags are balanced, and collects tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of order"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_every_part_is_on_the_page(make: Make) -> None:
    page = Page(render_html(make()))
    for words in (
        "fbank",
        "hubert",
        "Chance is 33.3 %",
        "leave one speaker out",
        "Speaker-disjoint",
        "No clip was skipped",
    ):
        assert words in page.text, words
    for words in ("./run.sh upstream=hubert", "ab12" * 16, "2.11.0", "120 clips, 4 speakers, 0.12 hours"):
        assert words in page.text, words
    # forest; per system losses, dev score, sweep and two maps; layer weights of hubert alone
    pictures = [a for a in page.named("svg") if a.get("role") == "img"]
    assert len(pictures) == 1 + 2 * 5 + 1
    assert all(a.get("aria-label") for a in pictures)
    assert len([a for a in page.named("table") if "confusion" in (a.get("class") or "")]) == 2


def test_the_best_system_leads_with_its_interval(make: Make) -> None:
    results = make()
    values = results["systems"][1]["metrics"]["uar"]
    text = Page(render_html(results)).text
    low, high = 100 * values["fold_ci_low"], 100 * values["fold_ci_high"]
    assert f"hubert is best with {100 * values['mean']:.1f} % UAR" in text
    assert f"over folds {low:.1f} to {high:.1f} %" in text
    assert text.index("hubert hubert weighted_sum") < text.index("fbank fbank last_layer")


def test_the_page_stands_alone(make: Make) -> None:
    html = render_html(make())
    page = Page(html)
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert not page.named("script") + page.named("link") + page.named("img") + page.named("iframe")
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    for link in page.named("a"):
        assert (link["href"] or "")[1:] in ids
    for _, attributes in page.tags:
        assert attributes.get("aria-labelledby", ids[0]) in ids


def test_text_from_users_is_escaped_everywhere(make: Make) -> None:
    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        keep = key in ("primary_metric", "schema") or not isinstance(value, str)
        return value if keep else f"{value}{EVIL}"

    results = poison(make())
    results["classes"] = [c + EVIL for c in make()["classes"]]
    for system in results["systems"]:
        system["per_class_recall"] = {k + EVIL: v for k, v in system["per_class_recall"].items()}
    results["data"]["per_class"] = {k + EVIL: v for k, v in results["data"]["per_class"].items()}
    results["versions"] = {k + EVIL: v for k, v in results["versions"].items()}
    results["skipped"] = [{"id": EVIL, "path": EVIL, "reason": EVIL}]
    html = render_html(results)
    page = Page(html)
    assert "<script" not in html
    assert not page.named("script") + page.named("img")
    assert f"joy{EVIL}" in page.text
    assert f"hubert{EVIL}" in page.text


def test_skipped_clips_are_shown_at_the_top(make: Make) -> None:
    results = make()
    results["skipped"] = [{"id": f"clip{k}", "path": "a/b.wav", "reason": "empty"} for k in range(250)]
    page = Page(render_html(results))
    assert "250 clips were skipped and are in no score." in page.text[: page.text.index("Best first")]
    assert "clip199" in page.text
    assert "clip200" not in page.text
    assert "And 50 more" in page.text


def test_speaker_overlap_is_a_warning(make: Make) -> None:
    results = make()
    results["protocol"]["speaker_overlap"] = True
    page = Page(render_html(results))
    assert "Speakers overlap" in page.text
    assert "Speaker-disjoint" not in page.text


@pytest.mark.parametrize(
    "shape",
    [
        {"systems": ("one",), "folds": 1, "layers": 1},
        {"classes": tuple(f"class {k}" for k in range(20)), "folds": 40, "layers": 25},
        {"kind": "regression"},
        {"kind": "regression", "folds": 1, "systems": ("one",)},
    ],
    ids=["one system, one fold", "20 classes, 40 folds", "regression", "regression, one fold"],
)
def test_every_shape_of_results_renders(make: Make, shape: dict[str, Any]) -> None:
    html = render_html(make(**shape))
    Page(html)
    assert ">nan" not in html.lower()
    assert "None" not in html
    assert 'NaN"' not in html


OPTIONAL = (
    "map",
    "per_class_recall",
    "confusion",
    "fingerprint",
    "pooled",
    "selection",
    "interface",
    "head",
    "upstream",
)


@pytest.mark.parametrize("absent", [*OPTIONAL, "folds", "metrics"])
@pytest.mark.parametrize("null", [True, False])
def test_a_system_may_lack_anything(make: Make, absent: str, null: bool) -> None:
    results = make()
    for system in results["systems"]:
        if null:
            system[absent] = None
        else:
            del system[absent]
    Page(render_html(results))


@pytest.mark.parametrize("absent", ["versions", "protocol", "data", "classes", "chance", "name", "command", "created"])
def test_an_experiment_may_lack_anything(make: Make, absent: str) -> None:
    results = make()
    del results[absent]
    Page(render_html(results))


def test_values_that_are_not_finite_are_dashes(make: Make) -> None:
    results = make()
    best = results["systems"][1]
    best["metrics"]["uar"] |= {"mean": float("nan"), "ci_low": None}
    best["folds"][0]["history"][0]["dev_loss"] = float("inf")
    best["folds"][1]["sweep"][0]["dev_uar"] = None
    best["map"]["x"][0] = float("nan")
    html = render_html(results)
    Page(html)
    assert "nan" not in html.lower()
    assert "inf," not in html


def test_the_page_does_not_change_the_results(make: Make) -> None:
    results = make()
    before = copy.deepcopy(results)
    assert render_html(results) == render_html(json.loads(json.dumps(results)))
    assert results == before
