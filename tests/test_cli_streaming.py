"""`subtone transcribe --stream`: words as they come, from a file at its pace or as raw PCM on stdin."""

from __future__ import annotations

import fcntl
import io
import json
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import soundfile
from tests.test_cli import complaint, subtone
from tests.test_streaming_models import checkpoint_of, sound

from subtone.commands.streaming import Line, hear_stream, in_chunks, paced, pcm_blocks
from subtone.export.package import package
from subtone.models.checkpoints import save_checkpoint
from subtone.pack import write_packed
from subtone.runtime.session import Session

RATE_HZ = 16000


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A streaming transducer, one that hears whole utterances, and a sound of 1.5 s."""
    folder = tmp_path_factory.mktemp("streaming")
    for name in ("s8bqat-m1", "conformer-transducer-s"):
        checkpoint = checkpoint_of(name)
        save_checkpoint(folder / name, checkpoint)
        write_packed(folder / f"{name}.subtone", package(checkpoint, name=name))
    soundfile.write(folder / "a.wav", sound(1.5), RATE_HZ, subtype="PCM_16")
    return folder


def pcm_of(path: Path) -> bytes:
    return soundfile.read(path, dtype="int16")[0].astype("<i2").tobytes()


def bytes_in(pipe: IO[bytes]) -> int:
    """What nobody has read yet."""
    return struct.unpack("i", fcntl.ioctl(pipe.fileno(), termios.FIONREAD, bytes(4)))[0]


def test_a_stream_ends_as_the_whole_file_reads(workplace: Path) -> None:
    file, audio = workplace / "s8bqat-m1.subtone", workplace / "a.wav"
    whole = subtone("transcribe", file, audio).stdout
    assert whole.strip()
    assert subtone("transcribe", file, audio, "--stream", "--pace", 0).stdout == whole
    piped = subprocess.run(
        [sys.executable, "-m", "subtone", "transcribe", str(file), "--stream", "-"],
        input=pcm_of(audio),
        capture_output=True,
        check=True,
    )
    assert piped.stdout.decode() == whole
    (document,) = json.loads(subtone("transcribe", file, audio, "--stream", "--pace", 0, "--json").stdout)
    assert document["text"] == whole.strip()
    assert document["duration_s"] == 1.5
    assert "".join(token["text"] for token in document["tokens"]).split() == whole.split()
    starts = [token["start_s"] for token in document["tokens"]]
    assert starts == sorted(starts)
    assert 0 <= starts[0] <= starts[-1] <= 1.5
    assert document["latency_s"] >= 0


def test_mistakes_are_one_line_each(workplace: Path) -> None:
    whole, audio = workplace / "conformer-transducer-s.subtone", workplace / "a.wav"
    code, line = complaint("transcribe", whole, audio, "--stream")
    assert code == 2
    assert line.endswith("needs the whole utterance and cannot stream; leave out --stream")
    assert complaint("transcribe", whole, "-")[1] == "subtone: - is a stream on stdin; add --stream"
    streaming = workplace / "s8bqat-m1.subtone"
    assert (
        "pace=3.0 has no effect without --stream" in complaint("transcribe", streaming, audio, "--pace", 3)[1]
    )
    for pace in ("-1", "1e-9", "nan"):
        code, line = complaint("transcribe", streaming, audio, "--stream", "--pace", pace)
        assert (code, "must be 0, or 0.1 to 1000; 1 is real time" in line) == (2, True)
    assert "- is given twice" in complaint("transcribe", streaming, "-", "-", "--stream")[1]
    assert (
        "is a checkpoint; pack it first"
        in complaint("transcribe", workplace / "s8bqat-m1", audio, "--stream")[1]
    )
    wav = subprocess.run(
        [sys.executable, "-m", "subtone", "transcribe", str(streaming), "--stream", "-"],
        input=audio.read_bytes(),
        capture_output=True,
        check=False,
    )
    assert (wav.returncode, b"stdin holds a sound file" in wav.stderr) == (2, True)
    nothing = subprocess.run(
        [sys.executable, "-m", "subtone", "transcribe", str(streaming), "--stream", "-"],
        input=b"",
        capture_output=True,
        check=False,
    )
    assert (nothing.returncode, b"-: has no samples" in nothing.stderr) == (2, True)
    code, line = complaint("transcribe", workplace / "s8bqat-m1", audio, "--beam", 4)
    assert (code, line.startswith("subtone: beam=4 needs a packed file")) == (2, True)


def test_a_beam_is_heard_too(workplace: Path) -> None:
    file, audio = workplace / "conformer-transducer-s.subtone", workplace / "a.wav"
    assert subtone("transcribe", file, audio, "--beam", 2).stdout


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_ends_the_sound_and_leaves_the_words(workplace: Path, as_json: bool) -> None:
    command = [
        sys.executable,
        "-m",
        "subtone",
        "transcribe",
        str(workplace / "s8bqat-m1.subtone"),
        "--stream",
        "-",
    ]
    with subprocess.Popen(
        [*command, *(["--json"] if as_json else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # a job in the background has none
    ) as running:
        assert running.stdin is not None
        running.stdin.write(pcm_of(workplace / "a.wav"))
        running.stdin.flush()
        while bytes_in(running.stdin):  # until all of it is on its way through the model
            time.sleep(0.05)
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 1
    words = json.loads(out)[0]["text"] if as_json else out.decode()
    assert words.strip()
    assert err.decode() == "subtone: interrupted; nothing was left half-written\n"


def test_pcm_comes_in_whole_samples_however_it_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    values = np.array([0, 16384, -32768, 32767], "<i2")
    blocks = list(pcm_blocks(io.BytesIO(values.tobytes() + b"\x01"), RATE_HZ))
    assert np.concatenate(blocks).tolist() == [0.0, 0.5, -1.0, 32767 / 32768]
    assert "stdin ends in the middle of a sample" in capsys.readouterr().err


def test_a_paced_file_takes_its_time() -> None:
    blocks = in_chunks([np.zeros(1600, np.float32)], 800)
    start = time.perf_counter()
    assert [len(block) for block in paced(blocks, RATE_HZ, 1.0)] == [800, 800]
    assert time.perf_counter() - start >= 0.1


def test_a_line_is_written_anew_on_a_terminal_and_once_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    line = Line("a.wav: ", is_terminal=True)
    line.rewrite("x" * 500)
    line.settle("one two")
    seen = capsys.readouterr().out
    assert seen.count("\r\x1b[2K") == 2
    assert "..." in seen
    assert max(map(len, seen.replace("\x1b[2K", "").split("\r"))) < 500
    assert seen.endswith("a.wav: one two\n")
    plain = Line("", is_terminal=False)
    plain.rewrite("one")
    plain.settle("one two")
    assert capsys.readouterr().out == "one two\n"


def test_chunks_of_no_samples_change_nothing(workplace: Path) -> None:
    recognizer = Session.load(workplace / "s8bqat-m1.subtone", threads=1).recognizer
    samples, nothing = sound(1.5), np.empty(0, np.float32)
    heard = hear_stream(recognizer, [nothing, samples[:5000], nothing, samples[5000:], nothing], None)
    assert heard["text"] == recognizer.hear(samples)
    assert hear_stream(recognizer, [], None)["text"] == ""
    assert hear_stream(recognizer, [nothing], None)["tokens"] == []


def test_every_weight_of_every_part_is_listed(workplace: Path) -> None:
    document = json.loads(subtone("inspect", workplace / "s8bqat-m1.subtone", "--json").stdout)
    names = [layer["weight"] for layer in document["layers"]]
    for part in (
        "encoder.layers.0.weight_hh_l0",
        "predictor.embedding.weight",
        "joiner.combine.output.weight",
    ):
        assert part in names
    assert document["float_weights"] == sorted(names)
    assert document["operations"]["lstm"] == 7  # five layers of the encoder, two of the predictor
    vectors = sum(layer["bytes"] for layer in document["layers"]) + document["vectors"]["bytes"]
    assert vectors == sum(document["section_bytes"].values())
