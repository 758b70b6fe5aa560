"""Word error rates, their intervals, paired differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from subtone.report.evaluate import Heard, compare, interval, load_heard, names_of, save_heard, summarize


def heard(audio: str, reference: str, hypothesis: str, *, speaker: str = "s", seconds: float = 0.1) -> Heard:
    return Heard(
        audio=audio,
        speaker=speaker,
        duration_s=2.0,
        reference=reference,
        hypothesis=hypothesis,
        seconds=seconds,
    )


def test_errors_are_counted_by_kind_over_all_words() -> None:
    summary = summarize([heard("1", "a b c d", "a x c"), heard("2", "e f", "e f g")])
    assert (summary["substitutions"], summary["insertions"], summary["deletions"]) == (1, 1, 1)
    assert summary["words"] == 6
    assert summary["wer_percent"] == 50.0


def test_latency_and_real_time_factor_are_of_the_seconds_given() -> None:
    summary = summarize([heard(str(index), "a", "a", seconds=index / 1000) for index in range(101)])
    assert summary["latency_ms"] == pytest.approx({"p50": 50, "p90": 90, "p99": 99})
    assert summary["real_time_factor"] == pytest.approx(sum(range(101)) / 1000 / 202)


def test_an_interval_draws_speakers_and_not_utterances() -> None:
    # Two speakers of 50 utterances, one always wrong: a draw has both (1/2), only one (1/4 each),
    # so that 95 % of all draws span everything, however many utterances there are.
    speakers = ["right"] * 50 + ["wrong"] * 50
    assert interval(speakers, [0] * 50 + [1] * 50, [1] * 100) == (0.0, 100.0)


def test_with_one_speaker_utterances_are_drawn() -> None:
    errors = [0, 1] * 200
    low, high = interval(["s"] * 400, errors, [1] * 400)
    # A binomial's 95 % interval: 50 % +- 1.96 * sqrt(0.25 / 400) = 45.1 to 54.9; the bootstrap of
    # 10 000 draws knows its ends to about 0.1.
    assert low == pytest.approx(45.1, abs=0.4)
    assert high == pytest.approx(54.9, abs=0.4)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        rates = random.beta(2, 18, size=30)  # 30 speakers, mean 0.1
        errors = random.binomial(100, rates)
        low, high = interval([str(index) for index in range(30)], errors.tolist(), [100] * 30)
        covered += low <= 10.0 <= high
    # 95 % of 60 is 57; a bootstrap of 30 clusters is a little narrow, 48 would be 80 %.
    assert covered >= 50


def test_a_comparison_is_paired() -> None:
    before = [heard(str(index), "a b c d", "a b c x", speaker=str(index % 5)) for index in range(20)]
    after = [heard(str(index), "a b c d", "a b x x", speaker=str(index % 5)) for index in range(20)]
    document = compare(before, after)
    assert document["difference_percent"] == 25.0
    assert document["difference_interval_percent"] == [25.0, 25.0]  # every pair differs by the same
    assert document["wer_percent"] == [25.0, 50.0]
    assert len(document["changed"]) == 20
    assert document["changed"][0]["errors"] == [1, 2]


def test_order_does_not_matter_to_a_comparison() -> None:
    before = [
        heard(str(index), "a b", "a b" if index % 3 else "a", speaker=str(index % 4)) for index in range(12)
    ]
    document = compare(before, before[::-1])
    assert document["difference_percent"] == 0
    assert document["changed"] == []


def test_models_that_heard_different_utterances_are_not_compared() -> None:
    with pytest.raises(ValueError, match="did not hear the same utterances: 2 and 1, 1 of the first"):
        compare([heard("1", "a", "a"), heard("2", "a", "a")], [heard("1", "a", "a")])


def test_two_references_of_one_utterance_are_not_compared() -> None:
    with pytest.raises(ValueError, match="1 has two references"):
        compare([heard("1", "a b", "a")], [heard("1", "a c", "a")])


def test_files_of_one_name_are_told_apart() -> None:
    paths = [Path("/data/a/x/1.wav"), Path("/data/b/x/1.wav")]
    assert names_of(paths) == ["a/x/1.wav", "b/x/1.wav"]
    assert names_of(paths[:1]) == ["x/1.wav"]
    with pytest.raises(ValueError, match="one audio file twice"):
        names_of([paths[0], paths[0]])


def test_without_a_word_there_is_no_error_rate() -> None:
    with pytest.raises(ValueError, match="hold no word"):
        summarize([heard("1", "", "a")])


def test_what_was_heard_survives_a_file(tmp_path: Path) -> None:
    items = [heard("1", "a b", "a"), heard("2", "it's", "")]
    save_heard(tmp_path / "heard.jsonl", items)
    assert load_heard(tmp_path / "heard.jsonl") == items


@pytest.mark.parametrize(
    ("text", "message"), [("{}", ":1 is not a line"), ("nonsense", ":1 is not a line"), ("", "no utterance")]
)
def test_a_foreign_file_of_results_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "heard.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_heard(tmp_path / "heard.jsonl")
