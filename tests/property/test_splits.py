"""What must hold of folds whatever the corpus looks like."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.data.splits import check_disjoint, make_folds
from mmssl.types import Clip

SEEDS = st.integers(0, 2**31)


@st.composite
def corpora(draw: st.DrawFn, min_groups: int = 3) -> list[Clip]:
    names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=4)
    speakers = draw(st.lists(names, min_size=min_groups, max_size=8, unique=True))
    sizes = draw(st.lists(st.integers(1, 6), min_size=len(speakers), max_size=len(speakers)))
    return [
        Clip(f"{k}-{n}", speaker=speaker, labels={"emotion": "ab"[n % 2]})
        for k, (speaker, size) in enumerate(zip(speakers, sizes, strict=True))
        for n in range(size)
    ]


def shuffled(clips: list[Clip], seed: int) -> list[Clip]:
    return random.Random(seed).sample(clips, len(clips))


def assert_parts_divide(clips: list[Clip], folds: list) -> None:
    check_disjoint(clips, folds)
    speakers = {c.id: c.speaker for c in clips}
    for fold in folds:
        ids = [*fold.train, *fold.dev, *fold.test]
        assert sorted(ids) == sorted(speakers)
        train, dev, test = ({speakers[i] for i in part} for part in (fold.train, fold.dev, fold.test))
        assert train
        assert dev
        assert test
        assert not train & dev
        assert not train & test
        assert not dev & test
    tested = [i for fold in folds for i in fold.test]
    assert sorted(tested) == sorted(speakers), "each clip is tested once"
    assert len({fold.name for fold in folds}) == len(folds)


@settings(max_examples=60, deadline=None)
@given(corpora(), SEEDS, st.floats(0.01, 0.6))
def test_leave_one_group_out(clips: list[Clip], seed: int, share: float) -> None:
    folds = make_folds(clips, scheme="leave_one_group_out", dev_groups=share, seed=seed)
    assert_parts_divide(clips, folds)
    assert folds == make_folds(shuffled(clips, seed), scheme="leave_one_group_out", dev_groups=share, seed=seed)


@settings(max_examples=60, deadline=None)
@given(st.data(), corpora(), SEEDS)
def test_group_kfold(data: st.DataObject, clips: list[Clip], seed: int) -> None:
    groups = len({c.speaker for c in clips})
    k = data.draw(st.integers(3, groups))
    folds = make_folds(clips, scheme="group_kfold", k=k, dev_groups=1, seed=seed)
    assert len(folds) == k
    assert_parts_divide(clips, folds)
    assert folds == make_folds(shuffled(clips, seed), scheme="group_kfold", k=k, dev_groups=1, seed=seed)
    sizes = [len(f.test) for f in folds]
    assert max(sizes) - min(sizes) <= max(sum(c.speaker == s for c in clips) for s in {c.speaker for c in clips})


@settings(max_examples=60, deadline=None)
@given(st.data(), corpora(), SEEDS)
def test_groups_per_fold_and_named_splits_agree(data: st.DataObject, clips: list[Clip], seed: int) -> None:
    speakers = sorted({str(c.speaker) for c in clips})
    fold_of = {s: f"fold{n % 3 + 1}" for n, s in enumerate(data.draw(st.permutations(speakers)))}
    given_groups = {f: [s for s in speakers if fold_of[s] == f] for f in ("fold1", "fold2", "fold3")}
    folds = make_folds(clips, scheme="groups_per_fold", groups_per_fold=given_groups, dev_groups=1, seed=seed)
    assert_parts_divide(clips, folds)
    named = [Clip(c.id, speaker=c.speaker, labels=c.labels, split=fold_of[str(c.speaker)]) for c in clips]
    assert make_folds(shuffled(named, seed), scheme="predefined", dev_groups=1, seed=seed) == folds


@settings(max_examples=60, deadline=None)
@given(corpora(min_groups=4), SEEDS)
def test_dev_drawn_for_predefined_parts_shares_nothing(clips: list[Clip], seed: int) -> None:
    speakers = sorted({str(c.speaker) for c in clips})
    test = set(speakers[: len(speakers) // 3])
    parts = [
        Clip(c.id, speaker=c.speaker, labels=c.labels, split="test" if c.speaker in test else "train") for c in clips
    ]
    (fold,) = make_folds(parts, scheme="predefined", dev_groups=1, seed=seed)
    check_disjoint(clips, [fold])
    assert set(fold.test) == {c.id for c in clips if c.speaker in test}
    assert len({c.speaker for c in clips if c.id in fold.dev}) == 1


@settings(max_examples=60, deadline=None)
@given(corpora(min_groups=4), SEEDS, st.integers(1, 2))
def test_train_keeps_every_class_where_some_draw_can(clips: list[Clip], seed: int, dev_groups: int) -> None:
    rich = [
        *clips,
        *(
            Clip(f"extra{k}-{n}", speaker=s, labels={"emotion": "ab"[n]})
            for k, s in enumerate(sorted({str(c.speaker) for c in clips}))
            for n in range(2)
        ),
    ]
    for fold in make_folds(rich, scheme="leave_one_group_out", label="emotion", dev_groups=dev_groups, seed=seed):
        assert {c.labels["emotion"] for c in rich if c.id in set(fold.train)} == {"a", "b"}
