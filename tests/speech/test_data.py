"""Manifests: read and written whole, and one line for what is wrong with one."""

from __future__ import annotations

import itertools
import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subtone.speech import Utterance, read_manifest, spread, write_manifest

LINE = {"audio_filepath": "a.wav", "duration": 1.5, "text": "yes", "speaker": "anna"}


@pytest.fixture
def folder(tmp_path):
    """A folder with two sounds (never opened here, so empty files do) and no manifest yet."""
    (tmp_path / "deep").mkdir()
    for name in ("a.wav", "deep/b.wav"):
        (tmp_path / name).touch()
    return tmp_path


def written(folder, *lines):
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_a_manifest_is_read_by_its_name_or_its_folder(folder):
    path = written(folder, LINE, "", {**LINE, "audio_filepath": "deep/b.wav", "duration": 2, "extra": []})
    utterances = read_manifest(path)
    assert utterances == read_manifest(folder) == read_manifest(str(folder))
    assert utterances == [
        Utterance(audio_path=folder / "a.wav", duration_s=1.5, text="yes", speaker="anna"),
        Utterance(audio_path=folder / "deep" / "b.wav", duration_s=2.0, text="yes", speaker="anna"),
    ]


def test_audio_paths_are_absolute_where_the_manifest_is_named_relatively(folder, monkeypatch):
    written(folder, LINE)
    monkeypatch.chdir(folder)
    assert read_manifest("manifest.jsonl")[0].audio_path == folder / "a.wav"


def test_an_absolute_audio_path_stays(folder, tmp_path_factory):
    sound = tmp_path_factory.mktemp("elsewhere") / "c.wav"
    sound.touch()
    written(folder, {**LINE, "audio_filepath": str(sound)})
    assert read_manifest(folder)[0].audio_path == sound


@pytest.mark.parametrize("speaker", [{}, {"speaker": None}, {"speaker": ""}])
def test_an_utterance_without_a_speaker_is_a_speaker_of_its_own(folder, speaker):
    first = {key: value for key, value in LINE.items() if key != "speaker"} | speaker
    written(folder, first, {**first, "audio_filepath": "deep/b.wav"})
    speakers = [utterance.speaker for utterance in read_manifest(folder)]
    assert len(set(speakers)) == 2


def test_a_number_may_name_a_speaker(folder):
    written(folder, {**LINE, "speaker": 1272})
    assert read_manifest(folder)[0].speaker == "1272"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"audio_filepath": "a.wav"', ":2: is not JSON"),
        ('["a.wav"]', ":2: is not a JSON object but"),
        ({"audio_filepath": "a.wav", "text": "yes"}, ":2: lacks the key 'duration'"),
        ({"duration": 1, "text": "yes"}, ":2: lacks the key 'audio_filepath'"),
        ({"audio_filepath": "a.wav", "duration": 1}, ":2: lacks the key 'text'"),
        ({**LINE, "text": None}, ":2: text=None is of the wrong type"),
        ({**LINE, "duration": "1.5"}, ":2: duration='1.5' is of the wrong type"),
        ({**LINE, "duration": True}, ":2: duration=True is of the wrong type"),
        ({**LINE, "duration": 0}, ":2: duration=0 must be seconds above 0"),
        ({**LINE, "duration": float("nan")}, ":2: duration=nan must be seconds above 0"),
        ({**LINE, "duration": 10**400}, ":2: duration=1000"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(folder, line, message):
    path = written(folder, LINE, line)
    with pytest.raises(ValueError, match=re.escape(f"{path}{message}")):
        read_manifest(path)


def test_missing_audio_is_counted_in_one_line(folder):
    path = written(folder, LINE, *({**LINE, "audio_filepath": f"{name}.wav"} for name in "xyz"))
    expected = f"{path}: 3 of 4 audio files are missing, first {folder / 'x.wav'} (line 2)"
    with pytest.raises(ValueError, match=re.escape(expected)):
        read_manifest(path)


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_an_empty_manifest_is_refused(folder, content):
    with pytest.raises(ValueError, match="has no utterances"):
        read_manifest(written(folder, content))


def test_a_missing_or_binary_manifest_is_refused(folder):
    with pytest.raises(ValueError, match=r"manifest\.jsonl: no such manifest"):
        read_manifest(folder)
    (folder / "manifest.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_manifest(folder)


def test_what_is_written_is_read_back_and_can_be_moved(folder, tmp_path_factory):
    written(folder, LINE, {**LINE, "audio_filepath": "deep/b.wav", "text": "se\u00f1or"})
    utterances = read_manifest(folder)
    write_manifest(folder / "manifest.jsonl", utterances)
    assert read_manifest(folder) == utterances
    assert sorted(os.listdir(folder)) == ["a.wav", "deep", "manifest.jsonl"]
    moved = tmp_path_factory.mktemp("new") / "corpus"
    folder.rename(moved)
    assert [utterance.audio_path for utterance in read_manifest(moved)] == [
        moved / "a.wav",
        moved / "deep" / "b.wav",
    ]


def test_a_failed_write_leaves_the_old_manifest_and_nothing_else(folder, monkeypatch):
    path = written(folder, LINE)
    before, listing = path.read_bytes(), sorted(os.listdir(folder))

    def disk_is_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", disk_is_full)
    with pytest.raises(OSError, match="No space left"):
        write_manifest(path, read_manifest(folder))
    assert path.read_bytes() == before
    assert sorted(os.listdir(folder)) == listing


def test_an_empty_manifest_is_not_written(folder):
    with pytest.raises(ValueError, match="needs at least one utterance"):
        write_manifest(folder / "manifest.jsonl", [])
    assert not (folder / "manifest.jsonl").exists()


@given(st.integers(0, 200), st.integers(1, 250))
def test_spread_takes_evenly_and_in_order(num_items, limit):
    taken = spread(range(num_items), limit)
    assert len(taken) == min(num_items, limit)
    gaps = {after - before for before, after in itertools.pairwise([*taken, num_items])}
    assert taken[:1] == list(range(num_items))[:1]
    assert not taken or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


def test_spread_without_a_limit_takes_all_and_refuses_none():
    assert spread("abc", None) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="limit=0 leaves no utterance"):
        spread("abc", 0)


@pytest.mark.speech
def test_the_shared_manifest_is_read(shared):
    utterances = read_manifest(shared / "data" / "librispeech" / "dev-clean-300")
    assert len(utterances) == 300
    assert sum(len(utterance.text.split()) for utterance in utterances) == 6003  # models/README.md
    assert len({utterance.speaker for utterance in utterances}) == 20
