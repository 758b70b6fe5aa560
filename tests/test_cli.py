"""The command line: results on stdout, one line for a mistake, exit codes 0, 1 and 2."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import typer

from subtone.cli import app
from subtone.command_output import show
from subtone.models.checkpoints import Checkpoint, save_checkpoint
from subtone.models.quartznet import Block, QuartzNet, QuartzNetConfig
from subtone.speech.features import FrontEnd
from subtone.speech.text import CharTokenizer

ROOT = Path(__file__).resolve().parents[1]
W8 = ROOT / "recipes" / "ptq-w8.toml"


def subtone(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "subtone", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def complaint(*arguments: object) -> tuple[int, str]:
    """(exit code, the one line) of a command that must fail."""
    done = subtone(*arguments, check=False)
    lines = done.stderr.splitlines()
    assert done.returncode in (1, 2)
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("subtone: ")
    assert done.stdout == ""
    return done.returncode, lines[0]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a float checkpoint, its packed 8-bit file, sounds and a manifest."""
    folder = tmp_path_factory.mktemp("workplace")
    torch.manual_seed(0)
    blocks = (Block(filters=64, kernel=5, stride=2), Block(filters=64, kernel=3, has_residual=True))
    tokenizer = CharTokenizer(tuple(" abcdefghijklmnopqrstuvwxyz'"))
    network = QuartzNet(QuartzNetConfig(blocks=blocks)).eval()
    save_checkpoint(folder / "float", Checkpoint(network=network, front_end=FrontEnd(), tokenizer=tokenizer))
    random = np.random.default_rng(0)
    lines = []
    for index in range(4):
        soundfile.write(folder / f"{index}.wav", random.standard_normal(16000) * 0.1, 16000)
        entry = {
            "audio_filepath": f"{index}.wav",
            "duration": 1.0,
            "text": "a b c",
            "speaker": str(index % 2),
        }
        lines.append(json.dumps(entry))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    subtone("quantize", folder / "float", W8, "--out", folder / "q8")
    subtone("pack", folder / "q8", folder / "q8.subtone")
    return folder


def test_help_of_every_command_has_an_example() -> None:
    commands = list(commands_of(typer.main.get_command(app)))
    assert {"demo", "methods", "data synth"} <= set(commands)
    for command in commands:
        assert f"Example: subtone {command}" in subtone(*command.split(), "--help").stdout, command


def commands_of(group: Any, before: str = "") -> Iterator[str]:
    """Every command of the line as it is typed, those of groups too."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_of(command, f"{before}{name} ")
        else:
            yield before + name


def test_transcribe_prints_one_line_a_file(workplace: Path) -> None:
    done = subtone("transcribe", workplace / "q8.subtone", workplace / "0.wav", workplace / "1.wav")
    lines = done.stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        str(workplace / f"{index}.wav") for index in (0, 1)
    ]
    alone = subtone("transcribe", workplace / "q8.subtone", workplace / "1.wav").stdout.strip()
    assert lines[1].partition(": ")[2] == alone


def test_a_sound_that_cannot_be_heard_stops_no_other(workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    sounds = [workplace / "0.wav", tmp_path / "text.wav", workplace / "1.wav"]
    done = subtone("transcribe", workplace / "q8.subtone", *sounds, check=False)
    assert done.returncode == 2
    assert [line.partition(": ")[0] for line in done.stdout.splitlines()] == [str(sounds[0]), str(sounds[2])]
    assert done.stderr.count("\n") == 1
    assert "text.wav: is not sound" in done.stderr
    rows = json.loads(subtone("transcribe", workplace / "q8.subtone", *sounds, "--json", check=False).stdout)
    assert ["error" in row for row in rows] == [False, True, False]


def test_a_misspelt_key_of_training_is_one_without_training_too(workplace: Path, tmp_path: Path) -> None:
    recipe = 'name = "r"\nmethod = "native"\n[training]\nstep = 20\n[[rules]]\nbits = 4\n'
    (tmp_path / "r.toml").write_text(recipe)
    done = subtone("quantize", workplace / "float", tmp_path / "r.toml", "--out", tmp_path / "q", check=False)
    assert done.returncode == 2
    assert "training: step=20 is not a key; did you mean steps?" in done.stderr
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("transcribe", "q8.subtone", "0.wav"),
        ("inspect", "q8.subtone"),
        ("evaluate", "q8.subtone", "."),
        ("compare", "float", "q8.subtone", "manifest.jsonl"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_json_is_one_document_on_stdout(workplace: Path, arguments: tuple[str, ...]) -> None:
    command, *paths = arguments
    done = subtone(command, *(workplace / path for path in paths), "--json")
    assert json.loads(done.stdout)


def test_evaluate_counts_what_the_manifest_says(workplace: Path) -> None:
    document = json.loads(
        subtone("evaluate", workplace / "q8.subtone", workplace, "--limit", 3, "--json").stdout
    )
    assert (document["utterances"], document["words"], document["speakers"]) == (3, 9, 2)
    assert set(document["latency_ms"]) == {"p50", "p90", "p99"}
    assert document["peak_memory_mb"] > 20


def test_saved_words_can_be_compared_without_the_model(workplace: Path, tmp_path: Path) -> None:
    for name in ("float", "q8.subtone"):
        subtone("evaluate", workplace / name, workplace, "--save", tmp_path / f"{name}.jsonl")
    saved = [tmp_path / f"{name}.jsonl" for name in ("float", "q8.subtone")]
    first = json.loads(subtone("compare", *saved, "--json").stdout)
    second = json.loads(
        subtone("compare", workplace / "float", workplace / "q8.subtone", workplace, "--json").stdout
    )
    assert first["wer_percent"] == second["wer_percent"]
    assert first["changed"] == second["changed"]
    mixed = json.loads(subtone("compare", saved[0], workplace / "q8.subtone", workplace, "--json").stdout)
    assert mixed["changed"] == second["changed"]
    assert "leave out MANIFEST" in complaint("compare", *saved, workplace)[1]
    assert "needs a MANIFEST" in complaint("compare", saved[0], workplace / "q8.subtone")[1]


def test_tables_are_for_people(workplace: Path) -> None:
    assert "weights left in float" in subtone("inspect", workplace / "q8.subtone").stdout
    assert "95 % interval" in subtone("evaluate", workplace / "q8.subtone", workplace).stdout
    assert "B less A" in subtone("compare", workplace / "float", workplace / "q8.subtone", workplace).stdout


# Bad input ---------------------------------------------------------------------------------------


def sound(folder: Path, name: str, samples: np.ndarray, rate_hz: int = 16000, **options) -> Path:
    soundfile.write(folder / name, samples, rate_hz, **options)
    return folder / name


def test_bad_sounds_get_one_line(workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("this is not sound")
    spoilt = np.zeros(1600, np.float32)
    spoilt[800] = np.nan
    cases = {
        tmp_path / "missing.wav": "missing.wav",
        tmp_path / "text.wav": "text.wav",
        sound(tmp_path, "empty.wav", np.zeros(0, np.float32)): "empty",
        sound(tmp_path, "nan.wav", spoilt, subtype="FLOAT"): "0.05",
        tmp_path: str(tmp_path),
    }
    for path, word in cases.items():
        code, line = complaint("transcribe", workplace / "q8.subtone", path)
        assert code == 2
        assert word in line


def test_odd_sounds_are_heard(workplace: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((4000, 8)) * 0.1
    paths = [
        sound(tmp_path, "silence.wav", np.zeros(16000)),
        sound(tmp_path, "one.wav", np.zeros(1)),
        sound(tmp_path, "eight.wav", noise),
        sound(tmp_path, "fast.wav", noise[:, 0], rate_hz=48000),
        sound(tmp_path, "slow.flac", noise[:, 0], rate_hz=8000),
    ]
    done = subtone("transcribe", workplace / "q8.subtone", *paths)
    assert len(done.stdout.splitlines()) == len(paths)
    assert done.stderr == ""


def test_bad_packed_files_get_one_line(workplace: Path, tmp_path: Path) -> None:
    whole = (workplace / "q8.subtone").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    cases = {
        "cut": (whole[: len(whole) // 2], "the file ends after"),
        "flipped": (bytes(flipped), "pack"),
        "foreign": (b"PK\x03\x04" + bytes(200), "not"),
        "newer": (whole.replace(b'"version":"1"', b'"version":"9"', 1), "version"),
        "empty": (b"", "empty"),
    }
    for name, (data, word) in cases.items():
        path = tmp_path / f"{name}.subtone"
        path.write_bytes(data)
        code, line = complaint("transcribe", path, workplace / "0.wav")
        assert code == 2
        assert str(path) in line
        assert word in line.lower(), line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\nmethod = "linear"\n[[rules]]\nbitz = 8', "bitz=8 is not a key; did you mean bits?"),
        ('name = "x"\nmethod = "linear"\n[[rules]]\nbits = 9', "bits=9 cannot be stored; use 1 to 8"),
        (
            'name = "x"\nmethod = "linear"\n[[rules]]\npattern = "nothing.*"\nbits = 8\n[[rules]]\nbits = 4',
            "matches no weight",
        ),
        ('name = "x"\nmethod = "liner"\n[[rules]]\nbits = 8', "did you mean linear"),
        ("bits = ", "is not TOML"),
    ],
)
def test_bad_recipes_get_one_line_and_no_output(
    workplace: Path, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "bad.toml").write_text(text)
    code, line = complaint("quantize", workplace / "float", tmp_path / "bad.toml", "--out", tmp_path / "out")
    assert code == 2
    assert message in line
    assert not (tmp_path / "out").exists()


def test_bad_manifests_get_one_line(workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text('{"audio_filepath": "gone.wav", "duration": 1, "text": "a"}')
    assert "gone.wav" in complaint("evaluate", workplace / "q8.subtone", tmp_path)[1]
    (tmp_path / "manifest.jsonl").write_text("nonsense")
    assert "manifest.jsonl:1" in complaint("evaluate", workplace / "q8.subtone", tmp_path)[1]
    assert complaint("evaluate", workplace / "q8.subtone", tmp_path / "none")[0] == 2


def test_wrong_paths_get_one_line(workplace: Path, tmp_path: Path) -> None:
    assert ".subtone" in complaint("pack", workplace / "q8", tmp_path / "a.bin")[1]
    assert "does not exist" in complaint("pack", tmp_path / "gone", tmp_path / "a.subtone")[1]
    assert "checkpoint" in complaint("pack", workplace / "0.wav", tmp_path / "a.subtone")[1]
    assert (
        "exists and is not a checkpoint"
        in complaint("quantize", workplace / "float", W8, "--out", workplace)[1]
    )
    assert (
        "is the float checkpoint itself"
        in complaint("quantize", workplace / "float", W8, "--out", workplace / "float")[1]
    )
    assert (
        "hears nothing"
        in complaint(
            "quantize", workplace / "float", W8, "--out", tmp_path / "x", "--calibration", workplace
        )[1]
    )
    assert "does not exist" in complaint("transcribe", tmp_path / "gone.subtone", workplace / "0.wav")[1]
    assert "already quantized" in complaint("quantize", workplace / "q8", W8, "--out", tmp_path / "x")[1]
    assert (
        ".jsonl"
        in complaint("evaluate", workplace / "q8.subtone", workplace, "--save", tmp_path / "a.txt")[1]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("evaluate", "missing argument 'file'; see `* evaluate --help`"),
        ("train a.toml --train a --dev b", "missing option '--out'; see `* train --help`"),
        ("no-such-command", "no such command 'no-such-command'; see `* --help`"),
        ("data sinth", "no such command 'sinth'. Did you mean 'synth'? See `* data --help`"),
        ("--jsn", "no such option: --jsn; see `* --help`"),
        ("transcribe a b --nothing", "no such option: --nothing; see `* transcribe --help`"),
        ("evaluate a b --limit 0", "invalid value for '--limit': *1; see `* evaluate --help`"),
        ("evaluate a b --limit", "option '--limit' requires an argument; see `*subtone*--help`"),
        ("inspect a b", "got unexpected extra argument*(b); see `* inspect --help`"),
    ],
    ids=lambda value: value.partition(" ")[0],
)
def test_misuse_is_one_line_that_names_the_help(arguments: str, message: str) -> None:
    code, line = complaint(*arguments.split())
    assert code == 2
    assert fnmatchcase(line, f"subtone: {message}")


@pytest.mark.parametrize("arguments", [[], ["data"], ["bench"]], ids=str)
def test_no_command_at_all_is_answered_with_the_list_of_them(arguments: list[str]) -> None:
    done = subtone(*arguments, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Commands:" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "inspect GONE",
        "inspect SOUND/gone",
        "inspect FOLDER",
        "transcribe GONE SOUND",
        "transcribe MODEL GONE",
        "evaluate GONE FOLDER",
        "evaluate MODEL GONE",
        "compare GONE.jsonl GONE.jsonl",
        "pack GONE OUT.subtone",
        "pack FLOAT GONE/a.subtone",
        "quantize GONE RECIPE --out OUT",
        "quantize FLOAT GONE --out OUT",
        "train GONE --train FOLDER --dev FOLDER --out OUT",
        "train TRAINING --train GONE --dev FOLDER --out OUT",
        "bench model GONE FOLDER MODEL",
        "bench model FLOAT GONE MODEL",
        "bench model FLOAT FOLDER GONE",
        "data synth SOUND",
        "data synth SOUND/a",
    ],
)
def test_a_wrong_path_is_misuse_in_every_command(workplace: Path, tmp_path: Path, command: str) -> None:
    paths = {
        "GONE": tmp_path / "gone",
        "SOUND": workplace / "0.wav",
        "FOLDER": workplace,
        "MODEL": workplace / "q8.subtone",
        "FLOAT": workplace / "float",
        "RECIPE": W8,
        "TRAINING": ROOT / "recipes" / "train-demo.toml",
        "OUT": tmp_path / "out",
    }
    words = re.sub("|".join(paths), lambda found: str(paths[found[0]]), command).split()
    code, line = complaint(*words)
    assert code == 2
    assert re.search(rf"{re.escape(str(tmp_path))}|{re.escape(str(workplace))}", line)
    assert "Errno" not in line


def test_what_a_command_has_made_is_one_document_with_json(workplace: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.subtone"
    done = subtone("pack", workplace / "q8", file, "--json")
    document = json.loads(done.stdout)
    assert (document["file"], document["bytes"]) == (str(file), file.stat().st_size)
    layers = json.loads(subtone("inspect", file, "--json").stdout)["layers"]
    assert document["quantized_weights"] == sum(layer["bits"] < 32 for layer in layers)
    assert done.stderr == ""
    quiet = subtone("pack", workplace / "q8", file)
    assert (quiet.stdout, quiet.stderr) == ("", f"{file}: {file.stat().st_size / 1e6:.2f} MB\n")


def test_a_full_disk_leaves_nothing(workplace: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full, a disk that is always full")
    done = subtone("inspect", workplace / "q8.subtone", "--json", check=False)
    assert done.returncode == 0
    with full.open("w") as stream:
        command = [sys.executable, "-m", "subtone", "inspect", str(workplace / "q8.subtone"), "--json"]
        done = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "No space left" in done.stderr


def test_a_number_that_json_has_not_leaves_half_a_document_nowhere(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ValueError, match="JSON"):
        show({"whole": 1, "loss": float("nan")}, as_json=True, table=None)
    assert capsys.readouterr().out == ""


def with_command(body: str, *, stdout: Any = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """What becomes of the command line when a command does `body`."""
    script = f"""
from subtone.cli import app, main
import sys
@app.command()
def extra() -> None:
    {body}
sys.argv = ["subtone", "extra"]
main()
"""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


def test_a_warning_is_one_line_and_the_command_goes_on() -> None:
    done = with_command("import warnings; warnings.warn('the moon\\nis full', stacklevel=1); print('done')")
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert done.stderr == "subtone: the moon is full\n"


def test_without_memory_a_command_ends_in_one_line() -> None:
    done = with_command("import torch; torch.empty(2**50)")  # 2**52 bytes: more than any address space
    assert done.returncode == 1
    assert re.fullmatch(r"subtone: out of memory: .*allocate.*\n", done.stderr)
    assert "Traceback" in with_command("raise RuntimeError('a mistake of ours')").stderr


def test_a_reader_that_leaves_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        for body in ("print('a' * 100_000)", "print('a')"):
            done = with_command(body, stdout=write)
            assert (done.returncode, done.stderr) == (1, "")
    finally:
        os.close(write)


def test_ctrl_c_leaves_nothing_half_written(workplace: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "subtone",
        "data",
        "synth",
        str(tmp_path / "corpus"),
        "--num-train",
        "100000",
    ]
    # A suite that was started in the background hands down an ignored SIGINT.
    hears_ctrl_c = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hears_ctrl_c)
    deadline = time.monotonic() + 60
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_models_lists_every_preset_with_its_sizes() -> None:
    rows = {row["model"]: row for row in json.loads(subtone("models", "--json").stdout)}
    assert rows["s8bqat-m1"]["weights"] == 61_019_136
    assert rows["conformer-transducer-l"]["megabytes"]["2"] == 53.718  # 112,197,632 / 4 + 4 x 6,417,152
    shown = subtone("models").stdout
    assert [name for name in rows if shown.count(name) < 2] == []
    assert "…" not in shown
