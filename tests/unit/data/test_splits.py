from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmssl.data.splits import Fold, check_disjoint, make_folds, read_folds, speaker_overlap, write_folds
from mmssl.errors import DataError
from mmssl.types import Clip

EMOTIONS = ("anger", "joy", "neutral")


def corpus(speakers: int = 6, per_speaker: int = 6, **labels: str) -> list[Clip]:
    return [
        Clip(f"s{s}_{n}", audio=f"/w/{s}_{n}.wav", speaker=f"s{s}", labels={"emotion": EMOTIONS[n % 3], **labels})
        for s in range(1, speakers + 1)
        for n in range(per_speaker)
    ]


def speakers_of(ids: tuple[str, ...]) -> list[str]:
    return sorted({i.split("_")[0] for i in ids})


def test_leave_one_group_out_names_folds_by_group_in_natural_order() -> None:
    folds = make_folds(corpus(11), scheme="leave_one_group_out", label="emotion", dev_groups=2)
    assert [f.name for f in folds] == [f"s{n}" for n in range(1, 12)]
    for fold in folds:
        assert speakers_of(fold.test) == [fold.name]
        assert len(speakers_of(fold.dev)) == 2
        assert len(speakers_of(fold.train)) == 8
        assert len({*fold.train, *fold.dev, *fold.test}) == 66
        assert fold.notes == ()
    check_disjoint(corpus(11), folds)
    assert folds[1].test == ("s2_0", "s2_1", "s2_2", "s2_3", "s2_4", "s2_5")


def test_a_share_of_the_training_groups_is_rounded_and_at_least_one() -> None:
    for share, expected in [(0.15, 1), (0.3, 3), (0.01, 1), (0.5, 4)]:
        (fold, *_) = make_folds(corpus(10), scheme="leave_one_group_out", dev_groups=share)
        assert len(speakers_of(fold.dev)) == expected, share


def test_the_draw_depends_on_the_seed_alone() -> None:
    draws = {s: [f.dev for f in make_folds(corpus(8), scheme="leave_one_group_out", seed=s)] for s in range(4)}
    assert draws[0] == [f.dev for f in make_folds(corpus(8)[::-1], scheme="leave_one_group_out", seed=0)]
    assert len({tuple(d) for d in draws.values()}) == 4
    assert len(set(draws[0])) > 2, "the same speakers are the development split of every fold"


def test_the_draw_is_the_same_on_every_machine() -> None:
    folds = make_folds(corpus(5), scheme="leave_one_group_out", seed=3)
    assert [speakers_of(f.dev)[0] for f in folds] == ["s5", "s5", "s4", "s1", "s4"]


def test_group_kfold_balances_clips() -> None:
    sizes = {"a": 50, "b": 20, "c": 20, "d": 10, "e": 5, "f": 5, "g": 40}
    clips = [Clip(f"{s}_{n}", speaker=s) for s, count in sizes.items() for n in range(count)]
    folds = make_folds(clips, scheme="group_kfold", k=3, dev_groups=1)
    assert [f.name for f in folds] == ["fold1", "fold2", "fold3"]
    assert sorted(len(f.test) for f in folds) == [50, 50, 50]
    check_disjoint(clips, folds)


def test_group_kfold_draws_ties_by_seed() -> None:
    tests = {tuple(f.test for f in make_folds(corpus(8), scheme="group_kfold", k=4, seed=s)) for s in range(5)}
    assert len(tests) > 1


def test_predefined_parts_are_kept_and_dev_is_drawn_only_where_absent() -> None:
    given = {1: "train", 2: "train", 3: "train", 4: "dev", 5: "test", 6: "test"}
    clips = [Clip(c.id, speaker=c.speaker, labels=c.labels, split=given[int(c.id[1])]) for c in corpus()]
    (fold,) = make_folds(clips, scheme="predefined", label="emotion")
    assert [speakers_of(p) for p in (fold.train, fold.dev, fold.test)] == [["s1", "s2", "s3"], ["s4"], ["s5", "s6"]]
    without_dev = [c for c in clips if c.split != "dev"]
    (fold,) = make_folds(without_dev, scheme="predefined", label="emotion")
    assert speakers_of(fold.test) == ["s5", "s6"]
    assert len(speakers_of(fold.dev)) == 1
    assert len(speakers_of(fold.train)) == 2
    check_disjoint(clips, [fold])


def test_predefined_overlap_is_kept_noted_and_seen() -> None:
    split = ["train", "train", "train", "test", "test", "dev"]
    clips = [Clip(c.id, speaker=c.speaker, labels=c.labels, split=split[int(c.id[3])]) for c in corpus(2)]
    (fold,) = make_folds(clips, scheme="predefined")
    assert fold.notes[0] == "Fold predefined: train and test share 2 groups: s1, s2."
    assert speaker_overlap(fold, clips)
    with pytest.raises(DataError, match="'predefined': train and test share 2 values of speaker: s1, s2"):
        check_disjoint(clips, [fold])


def test_dev_is_drawn_from_speakers_that_a_prescribed_test_part_does_not_have() -> None:
    clips = [
        Clip(f"{s}{n}", speaker=s, split="test" if n == 0 and s in "ab" else "train") for s in "abcd" for n in range(3)
    ]
    for seed in range(8):
        (fold,) = make_folds(clips, scheme="predefined", dev_groups=1, seed=seed)
        assert {i[0] for i in fold.dev} < {"c", "d"}
        assert fold.notes == ("Fold predefined: train and test share 2 groups: a, b.",)
    with pytest.raises(DataError, match="asks for 1 of 2 training groups, of which 0 are not in the test part"):
        make_folds(clips[:6], scheme="predefined", dev_groups=1)


def test_predefined_parts_need_no_speaker_where_nothing_is_drawn() -> None:
    clips = [Clip(str(n), split=part) for n, part in enumerate(["train", "dev", "test"])]
    (fold,) = make_folds(clips, scheme="predefined")
    assert (fold.train, fold.dev, fold.test) == (("0",), ("1",), ("2",))
    assert speaker_overlap(fold, clips), "unknown speakers may be the same"


def test_named_folds_are_each_tested_once() -> None:
    clips = [Clip(c.id, speaker=c.speaker, labels=c.labels, split=f"fold{(int(c.id[1]) + 1) // 2}") for c in corpus()]
    folds = make_folds(clips, scheme="predefined", label="emotion")
    assert [(f.name, speakers_of(f.test)) for f in folds] == [
        ("fold1", ["s1", "s2"]),
        ("fold2", ["s3", "s4"]),
        ("fold3", ["s5", "s6"]),
    ]
    check_disjoint(clips, folds)
    assert not any(speaker_overlap(f, clips) for f in folds)


@pytest.mark.parametrize("scheme", ["groups_per_fold", "predefined", "group_kfold"])
def test_groups_per_fold(scheme: str) -> None:
    given = {"one": ["s1", "s4"], "two": ["s2", "s5"], "three": ["s3", "s6"]}
    folds = make_folds(corpus(), scheme=scheme, groups_per_fold=given, label="emotion")
    assert {f.name: speakers_of(f.test) for f in folds} == given
    assert list(given) == [f.name for f in folds]
    check_disjoint(corpus(), folds)


def test_groups_that_are_not_there_are_an_error_unless_allowed() -> None:
    given = {"one": ["s1", "s2"], "two": ["s3", "s9"], "three": ["s7", "s8"]}
    with pytest.raises(DataError, match="no clip has: s7, s8, s9"):
        make_folds(corpus(3), scheme="groups_per_fold", groups_per_fold=given)
    folds = make_folds(
        corpus(4),
        scheme="groups_per_fold",
        groups_per_fold=given | {"four": ["s4"]},
        allow_absent=True,
    )
    assert [f.name for f in folds] == ["one", "two", "four"]
    assert folds[0].notes == (
        "The corpus is not whole: no clip of s7, s8, s9.",
        "Folds without any clip are left out: three.",
    )


def test_integers_in_groups_per_fold_match_text() -> None:
    clips = [Clip(f"{s}-{n}", speaker=str(s)) for s in (1, 2, 3) for n in range(2)]
    folds = make_folds(clips, scheme="groups_per_fold", groups_per_fold={1: [1], 2: [2], 3: [3]})
    assert [f.name for f in folds] == ["1", "2", "3"]


def test_any_label_groups_and_every_clip_may_be_its_own_group() -> None:
    clips = [Clip(f"c{n}", labels={"session": n % 3}) for n in range(9)]
    folds = make_folds(clips, scheme="leave_one_group_out", group="session")
    assert [f.test for f in folds] == [("c0", "c3", "c6"), ("c1", "c4", "c7"), ("c2", "c5", "c8")]
    folds = make_folds(clips, scheme="group_kfold", group=None, k=3, dev_groups=2)
    assert [(len(f.train), len(f.dev), len(f.test)) for f in folds] == [(4, 2, 3)] * 3


def test_the_draw_passes_over_groups_that_train_cannot_miss() -> None:
    clips = [*corpus(5), *(Clip(f"{s}_rare", speaker=s, labels={"emotion": "rare"}) for s in ("s1", "s2"))]
    for seed in range(20):
        for fold in make_folds(clips, scheme="leave_one_group_out", label="emotion", dev_groups=1, seed=seed):
            labels = {c.id: c.labels["emotion"] for c in clips}
            assert {labels[i] for i in fold.train} == {*EMOTIONS, "rare"}
            note = f"Fold {fold.name}: the test part has no clip of class rare."
            assert (note in fold.notes) == (fold.name not in ("s1", "s2"))


def test_a_class_that_train_lacks() -> None:
    clips = [*corpus(4), Clip("s2_rare", speaker="s2", labels={"emotion": "rare"})]
    with pytest.raises(DataError, match="Fold 's2': train has no clip of class 'rare'"):
        make_folds(clips, scheme="leave_one_group_out", label="emotion")
    make_folds(clips, scheme="leave_one_group_out")


def test_regression_targets_are_only_checked_for_presence() -> None:
    clips = [Clip(f"s{s}_{n}", speaker=f"s{s}", labels={"valence": s + n / 10}) for s in range(4) for n in range(3)]
    assert len(make_folds(clips, scheme="leave_one_group_out", label="valence")) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "leave_one_out"}, "Did you mean 'leave_one_group_out'"),
        ({"scheme": "group_kfold"}, "needs k"),
        ({"scheme": "group_kfold", "k": 1}, "at least 2, got 1"),
        ({"scheme": "group_kfold", "k": 7}, "7 folds need at least as many groups, but there are 6"),
        ({"scheme": "leave_one_group_out", "k": 3}, "k=3 only goes with"),
        ({"scheme": "groups_per_fold"}, "needs groups_per_fold"),
        ({"scheme": "leave_one_group_out", "groups_per_fold": {"a": ["s1"]}}, "does not go with"),
        ({"scheme": "groups_per_fold", "groups_per_fold": {"a": ["s1"], "b": ["s1"]}}, "'s1' in 'a' and in 'b'"),
        (
            {"scheme": "groups_per_fold", "groups_per_fold": {"a": ["s1"]}},
            "no fold for these groups: s2, s3, s4, s5, s6",
        ),
        ({"scheme": "leave_one_group_out", "dev_groups": 0}, "dev_groups must be"),
        ({"scheme": "leave_one_group_out", "dev_groups": 1.0}, "dev_groups must be"),
        ({"scheme": "leave_one_group_out", "dev_groups": True}, "dev_groups must be"),
        ({"scheme": "leave_one_group_out", "dev_groups": 5}, "asks for 5 of 5 training groups"),
        (
            {"scheme": "leave_one_group_out", "group": "speakr"},
            "36 of 36 clips have no 'speakr' .*Did you mean 'speaker'",
        ),
        ({"scheme": "leave_one_group_out", "label": "emotoin"}, "no label 'emotoin'(.|\n)*Did you mean 'emotion'"),
        ({"scheme": "predefined"}, "36 of 36 clips have no split"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_folds(corpus(), **arguments)


def test_missing_groups_name_five_clips() -> None:
    clips = [*corpus(3), *(Clip(f"x{n}") for n in range(7))]
    with pytest.raises(DataError, match=r"7 of 25 clips have no 'speaker' .*: x0, x1, x2, x3, x4 \(and 2 more\)"):
        make_folds(clips, scheme="leave_one_group_out")


def test_too_few_speakers_for_a_development_split() -> None:
    with pytest.raises(DataError, match="Fold 's1': 1 group is left to train on"):
        make_folds(corpus(2), scheme="leave_one_group_out")
    with pytest.raises(DataError, match="0 group is left"):
        make_folds(corpus(1), scheme="leave_one_group_out")
    with pytest.raises(DataError, match="no clip"):
        make_folds([], scheme="leave_one_group_out")
    with pytest.raises(DataError, match="more than one clip has: s1_0"):
        make_folds([*corpus(3), corpus(1)[0]], scheme="leave_one_group_out")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train", "train", "dev"], "the test part is empty"),
        (["dev", "test", "test"], "the train part is empty"),
        (["train", "train", "train"], "All clips have the split 'train'"),
        (["Train", "test", "dev"], "Did you mean 'train'"),
        (["train", None, "test"], "1 of 3 clips have no split"),
    ],
)
def test_bad_predefined_splits(splits: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_folds([Clip(str(n), speaker=str(n), split=s) for n, s in enumerate(splits)], scheme="predefined")


def test_fold_names_are_fit_for_folders() -> None:
    clips = [Clip(f"{n}", speaker=s) for n, s in enumerate(["a/b", "a b", "..", "ü"])]
    names = [f.name for f in make_folds(clips, scheme="leave_one_group_out")]
    assert sorted(names) == sorted(["a_b", "a_b-2", "_", "ü"])


def test_folds_survive_the_file(tmp_path: Path) -> None:
    folds = [*make_folds(corpus(3), scheme="leave_one_group_out"), Fold("ü", ("a",), ("b",), ("c",), ("note",))]
    write_folds(tmp_path / "new/folds.json", folds)
    assert read_folds(tmp_path / "new/folds.json") == folds
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["folds.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"folds": [{"name": "a"}]}', '{"folds": 3}', '{"folds": [3]}'])
def test_bad_files_of_folds(tmp_path: Path, text: str) -> None:
    (tmp_path / "folds.json").write_text(text)
    with pytest.raises(DataError, match="is not a file of folds"):
        read_folds(tmp_path / "folds.json")


def test_two_folds_of_one_name(tmp_path: Path) -> None:
    fold = {"name": "a", "train": ["x"], "dev": ["y"], "test": ["z"]}
    (tmp_path / "folds.json").write_text(json.dumps({"folds": [fold, fold]}))
    with pytest.raises(DataError, match="two folds of one name"):
        read_folds(tmp_path / "folds.json")


def test_check_disjoint_finds_every_kind_of_sharing() -> None:
    clips = corpus(3)
    check_disjoint(clips, [Fold("ok", ("s1_0",), ("s2_0",), ("s3_0",))])
    for bad in [
        Fold("x", ("s1_0",), ("s1_1",), ("s3_0",)),
        Fold("x", ("s1_0",), ("s3_1",), ("s3_0",)),
        Fold("x", ("s3_0",), ("s2_0",), ("s3_0",)),
    ]:
        with pytest.raises(DataError, match=r"Fold 'x': .* share 1 values of speaker"):
            check_disjoint(clips, [bad])
    with pytest.raises(DataError, match="not in the manifest: gone"):
        check_disjoint(clips, [Fold("x", ("gone",), ("s2_0",), ("s3_0",))])


def test_speaker_overlap_looks_at_train_and_dev() -> None:
    clips = corpus(3)
    assert not speaker_overlap(Fold("x", ("s1_0",), ("s1_1",), ("s3_0",)), clips)
    assert speaker_overlap(Fold("x", ("s3_1",), ("s1_1",), ("s3_0",)), clips)
    assert speaker_overlap(Fold("x", ("s1_1",), ("s3_1",), ("s3_0",)), clips)
