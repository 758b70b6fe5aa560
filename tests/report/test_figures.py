"""The papers' figures drawn again: numbers that behave as the papers say, and a page that fetches nothing."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from subtone.cli import app
from subtone.models.checkpoints import Checkpoint, save_checkpoint
from subtone.models.quartznet import Block, QuartzNet, QuartzNetConfig
from subtone.quantize import curves
from subtone.report.figures import figures_page
from subtone.speech.features import FrontEnd
from subtone.speech.text import CharTokenizer

HOSTILE, KERNEL = "<b>&'\".nemo", "blocks.0.units.0.depthwise.weight"


@pytest.fixture(scope="module")
def document() -> dict:
    return curves.paper_curves()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network whose name is markup, with one kernel that has one value only."""
    torch.manual_seed(0)
    blocks = (Block(filters=64, kernel=5, stride=2), Block(filters=96, kernel=3))
    network = QuartzNet(QuartzNetConfig(blocks=blocks)).eval()
    with torch.no_grad():
        dict(network.named_parameters())["head.weight"].fill_(0.5)
    folder = tmp_path_factory.mktemp("float") / HOSTILE
    tokenizer = CharTokenizer(tuple(" abcdefghijklmnopqrstuvwxyz'"))
    save_checkpoint(folder, Checkpoint(network=network, front_end=FrontEnd(), tokenizer=tokenizer))
    return folder


@pytest.fixture(scope="module")
def with_kernel(checkpoint: Path) -> dict:
    return curves.paper_curves(checkpoint, weight=KERNEL)


def subtone(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", "figures", *map(str, arguments)])


# int2, Fig. 2 -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def errors(document: dict) -> dict[tuple[int, bool], list[float]]:
    return {
        (curve["sub_channels"], curve["is_clipped"]): [point["error"] for point in curve["points"]]
        for curve in document["int2_fig2"]["curves"]
    }


def test_the_error_grows_with_the_length_of_a_channel(errors):
    assert len(errors) == 6
    assert all(shorter < longer for curve in errors.values() for shorter, longer in pairwise(curve))


def test_subchannels_and_clipping_lower_the_error_at_every_length(errors):
    whole, four, eight = ((errors[parts, False], errors[parts, True]) for parts in (1, 4, 8))
    for index in range(len(whole[0])):
        assert eight[0][index] < four[0][index] < whole[0][index]
        assert eight[1][index] < four[1][index] < whole[1][index]
        assert all(clipped[index] < unclipped[index] for unclipped, clipped in (whole, four, eight))


def test_eight_subchannels_have_the_error_of_channels_of_an_eighth(errors):
    """A sub-channel is a channel of its own; 5 deviations of the mean over draws apart at most."""
    shorter = curves.channel_errors(lengths=(32,), seed=1)[0]["points"][0]
    longer = curves.channel_errors(lengths=(256,))[3]["points"][0]
    spread = np.hypot(shorter["deviation"], longer["deviation"]) / np.sqrt(curves.DRAWS)
    assert abs(shorter["error"] - longer["error"]) < 5 * spread


def test_the_error_of_short_channels_is_that_of_the_papers_loop():
    """One draw by the functions of int2's Fig. 5, written out: minimum, scale, floor(x + 0.5), clip, back."""
    row = curves.channel_errors(lengths=(32,), draws=1)[0]["points"][0]
    weights = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)).double().numpy()
    total = 0.0
    for channel in weights:
        low, scale = channel.min(), (channel.max() - channel.min()) / 3
        codes = np.clip(np.floor((channel - low) / scale + 0.5), 0, 3)
        total += np.abs(codes * scale + low - channel).sum()
    assert row["error"] == pytest.approx(total / weights.size, rel=1e-5)  # float32 rounds to 6e-8
    assert row["deviation"] == 0


def test_another_seed_draws_other_weights():
    first, again, other = (curves.channel_errors(lengths=(32,), draws=1, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


# GQ, Fig. 1 ---------------------------------------------------------------------------------


def test_the_soft_assignment_goes_from_a_line_to_a_staircase(document):
    rows = document["gq_fig1"]["assignment"]
    assert [row["alpha"] for row in (rows[0], rows[-1])] == [10, 500]
    assert all(softer["from_nearest"] > harder["from_nearest"] for softer, harder in pairwise(rows))
    assert rows[0]["from_weight"] < rows[0]["from_nearest"]
    assert rows[-1]["from_weight"] > 5 * rows[-1]["from_nearest"]
    for row in rows:
        assert all(low <= high for low, high in pairwise(row["assigned"]))


def test_a_larger_mu_draws_centroids_to_zero_and_holds_the_poles(document):
    rows = [np.array(row["centroids"]) for row in document["gq_fig1"]["warped"]]
    assert all((row[0], row[-1]) == (-1, 1) for row in rows)
    assert all((np.abs(nearer) < np.abs(wider))[1:-1].all() for wider, nearer in pairwise(rows))


def test_annealing_puts_more_and_more_of_a_kernel_on_its_centroids(document):
    (kernel,) = document["gq_fig1"]["kernels"]
    histograms = kernel["histograms"]
    assert histograms[0]["alpha"] is None
    assert histograms[0]["deviation_left"] == 1
    assert all(
        softer["on_centroids"] < harder["on_centroids"]
        and softer["deviation_left"] < harder["deviation_left"] < 1
        for softer, harder in pairwise(histograms[1:])
    )
    assert all(sum(item["share"] for item in one["bins"]) == pytest.approx(1) for one in histograms)


# S8BQAT, Fig. 2 -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def penalty(document: dict) -> dict:
    (kernel,) = document["s8bqat_fig2"]["kernels"]
    return kernel


def test_there_are_31_peaks_in_three_regions_and_no_penalty_on_a_centroid(penalty):
    values = dict(zip(penalty["weights"], penalty["penalty"], strict=True))
    heights = np.array(penalty["penalty"])
    assert len(penalty["centroids"]) == 32
    assert len(penalty["regions"]) == 3
    # Eq. 1 in float32 at |y| <= 32: pi y is off by 6e-6 at most, its cosine at an extreme by far less.
    assert all(values[centroid] < 1e-6 for centroid in penalty["centroids"])
    assert (heights > 0.999).sum() == 2 * 31  # a point on either side of each peak


def test_the_gradient_decays_with_the_frequency(penalty):
    for region in penalty["regions"]:
        assert region["steepest"] == pytest.approx(np.pi * region["theta"], rel=1e-4)
    assert len({region["theta"] for region in penalty["regions"]}) > 1


def test_regions_lie_near_lloyd_max_and_cost_little_more(penalty):
    assert 1 <= penalty["squared_error"] / penalty["lloyd_max_squared_error"] < 1.5
    assert sum(item["share"] for item in penalty["bins"]) == pytest.approx(1)


# The page and the command -------------------------------------------------------------------


def test_the_page_is_complete_in_itself_and_its_drawings_are_whole(with_kernel):
    page = figures_page(with_kernel)
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 6
    for drawing in drawings:
        xml.etree.ElementTree.fromstring(drawing)
        assert len(re.findall(r"<(?:path|rect|line)", drawing)) > 10
    names = r'xmlns(?::xlink)?="http://www\.w3\.org/(?:2000/svg|1999/xlink)"'
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|<link|<img|\bsrc=", re.sub(names, "", page))


def test_the_name_of_a_checkpoint_is_text(with_kernel):
    page = figures_page(with_kernel)
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;" in page


def test_the_page_stands_beside_the_papers_and_says_its_numbers(document):
    page = figures_page(document)
    assert page.count("The paper's figure".replace("'", "&#39;")) == page.count("<h3>Ours</h3>") == 3
    whole = document["int2_fig2"]["curves"][0]["points"]
    assert f"from {whole[0]['error']:.3f} at 32 weights to {whole[-1]['error']:.3f} at 512" in page


def test_a_kernel_of_the_checkpoint_is_shown_beside_normal_weights(checkpoint, with_kernel):
    for figure in ("gq_fig1", "s8bqat_fig2"):
        names = [kernel["name"] for kernel in with_kernel[figure]["kernels"]]
        assert names == ["65536 normal weights", f"{KERNEL} of {HOSTILE}"]
    largest, _ = curves.kernel_of(checkpoint)
    assert largest == "blocks.1.units.0.pointwise.weight"


def test_the_command_writes_the_page_and_its_numbers(tmp_path, document):
    done = subtone(tmp_path / "figures.html", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == document  # the same seed, the same numbers
    assert (tmp_path / "figures.html").read_text() == figures_page(document)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["OUT.txt"], r"out=OUT.txt must end in \.html"),
        (["OUT.html", "nowhere"], "checkpoint nowhere does not exist"),
        (["OUT.html", "--weight", "a"], "weight='a' needs a CHECKPOINT that holds it; name one behind OUT"),
        (["OUT.html", "FLOAT", "--weight", "heed"], "weight='heed' is no weight of .*; one is called"),
        (["OUT.html", "FLOAT", "--weight", "head.weight"], "weight='head.weight' of .* has one value only"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_page(arguments, complaint, checkpoint, tmp_path):
    places = {"FLOAT": str(checkpoint), "OUT.html": str(tmp_path / "out.html")}
    done = subtone(*(places.get(word, word) for word in arguments))
    assert done.exit_code == 2
    assert done.stdout == ""
    assert re.fullmatch(rf"subtone: {complaint}.*\n", done.stderr), done.stderr
    assert not list(tmp_path.iterdir())
