"""Recipes: first match wins, nothing is left to chance, and every mistake is one line."""

from __future__ import annotations

import json

import pydantic
import pytest
from torch import nn

from subtone.quantize import METHODS, Recipe, Rule, Settings, assign, method_of

HEAD = 'name = "r"\nmethod = "linear"\n'


def recipe(*rules: str) -> Recipe:
    return Recipe.from_toml(HEAD + "".join(f"[[rules]]\n{rule}\n" for rule in rules), source="r.toml")


def network() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "stem": nn.Conv1d(64, 64, 3, groups=64),
            "mix": nn.Conv1d(64, 96, 1),
            "norm": nn.BatchNorm1d(96),
            "head": nn.Linear(96, 29),
        }
    )


# Assignment ----------------------------------------------------------------------------------


def test_the_first_matching_rule_wins():
    chosen = recipe('pattern = "head.*"\nbits = 8', 'kinds = ["linear", "pointwise"]\nbits = 5', "bits = 4")
    bits = {path: settings.bits for path, settings in assign(chosen, network()).items()}
    assert bits == {"stem.weight": 4, "mix.weight": 5, "head.weight": 8}


def test_biases_and_norms_are_not_assigned():
    assert list(assign(recipe("bits = 4"), network())) == ["stem.weight", "mix.weight", "head.weight"]


def test_keep_float_is_said_never_assumed():
    chosen = assign(recipe('pattern = "stem.*"\nkeep_float = true', "bits = 4"), network())
    assert chosen["stem.weight"].keep_float
    with pytest.raises(
        ValueError, match=r"r: no rule matches stem\.weight \(depthwise\); add one, with keep_float = true"
    ):
        assign(recipe('kinds = ["linear", "pointwise"]\nbits = 4'), network())


def test_a_pattern_that_matches_nothing_is_an_error_with_a_likely_path():
    with pytest.raises(
        ValueError, match=r"rules\[0\]\.pattern='haed\.\*' matches no weight of this model.* head\.weight"
    ):
        assign(recipe('pattern = "haed.*"\nbits = 8', "bits = 4"), network())


def test_a_pattern_whose_kinds_match_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"matches no weight of this model of kinds lstm; correct its kinds"):
        assign(recipe('pattern = "head.*"\nkinds = ["lstm"]\nbits = 8', "bits = 4"), network())


def test_a_pattern_that_comes_too_late_is_an_error():
    with pytest.raises(ValueError, match=r"rules\[1\]\.pattern='head\.\*' comes too late.*move it up"):
        assign(recipe("bits = 4", 'pattern = "head.*"\nbits = 8'), network())


def test_a_rule_for_a_kind_that_the_model_lacks_is_no_typo():
    chosen = assign(recipe('kinds = ["lstm", "embedding"]\nbits = 8', "bits = 4"), network())
    assert {settings.bits for settings in chosen.values()} == {4}


def test_patterns_see_case():
    with pytest.raises(ValueError, match="matches no weight"):
        assign(recipe('pattern = "Head.*"\nbits = 8', "bits = 4"), network())


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match="the model has no weight that can be quantized"):
        assign(recipe("bits = 4"), nn.Sequential(nn.BatchNorm1d(3)))


def test_a_group_must_divide_the_inputs_and_the_weight_is_named():
    grouped = 'granularity = "group"\ngroup_size = 64\nbits = 4'
    with pytest.raises(
        ValueError,
        match=r"rules\[1\]: group_size=64 does not divide 96 inputs of head\.weight; use a divisor",
    ):
        assign(recipe('kinds = ["depthwise"]\nbits = 4', grouped), network())
    with pytest.raises(
        ValueError, match=r"the depthwise weights of stem\.weight, which have no inputs to group"
    ):
        assign(recipe(grouped), network())


def test_bias_correction_does_not_fit_what_cannot_be_watched():
    with pytest.raises(
        ValueError, match=r"bias_correction=true does not fit the lstm weights of weight_ih_l0"
    ):
        assign(recipe("bits = 8\nbias_correction = true"), nn.LSTM(4, 3))


@pytest.mark.parametrize(
    ("layer", "path"),
    [
        (nn.Embedding(4, 3), "embedding weights of weight"),
        (nn.Conv1d(4, 4, 3), "conv weights of weight"),
        (nn.Conv2d(4, 4, 3), "conv2d weights of weight"),
    ],
)
def test_compensated_rounding_fits_products_of_one_frame_and_depthwise_kernels(layer, path):
    with pytest.raises(ValueError, match=rf"rounding='compensated' does not fit the {path}, only linear, "):
        assign(recipe("bits = 8\nrounding = 'compensated'"), layer)


# Settings ------------------------------------------------------------------------------------


def test_what_is_left_out_is_filled_in():
    assert Settings(bits=4).range == "absmax"
    assert Settings(bits=4, grid="asymmetric").range == "minmax"
    assert Settings(bits=4, grid="codebook").range == "absmax"
    assert Settings(bits=4).activation_bits is None
    assert Settings(bits=4, activations="dynamic").activation_bits == 8
    searched = Settings(bits=4, range="clip_search", clip_low=0.8)
    assert (searched.clip_low, searched.clip_high, searched.clip_step, searched.error) == (
        0.8,
        1.0,
        0.05,
        "mae",
    )


def test_only_weights_that_meet_one_frame_take_dynamic_activations():
    settings = Settings(bits=4, activations="dynamic", activation_bits=6)
    bits = {kind: settings.activation_bits_for(kind) for kind in ("linear", "pointwise", "lstm")}
    assert bits == dict.fromkeys(bits, 6)
    spanning = {
        kind: settings.activation_bits_for(kind) for kind in ("conv", "depthwise", "conv2d", "embedding")
    }
    assert spanning == dict.fromkeys(spanning, 0)
    assert Settings(bits=4).activation_bits_for("linear") == 0


def test_settings_are_frozen():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Settings(bits=4).bits = 8


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("bits = 9", "rules[0]: bits=9 cannot be stored; use 1 to 8"),
        ("bits = 0", "rules[0]: bits=0 cannot be stored; use 1 to 8"),
        ("bits = 4.0", "rules[0].bits=4.0 does not fit: input should be a valid integer"),
        ('bits = "4"', "rules[0].bits='4' does not fit: input should be a valid integer"),
        ("bits = true", "rules[0].bits=True does not fit: input should be a valid integer"),
        ('pattern = "x"', "rules[0]: bits is missing; give 1 to 8, or keep_float = true"),
        ("bist = 4", "rules[0].bist=4 is not a key; did you mean bits?"),
        ("bits = 4\ngranularty = 'group'", "rules[0].granularty='group' is not a key; did you mean granularity?"),
        ("bits = 4\nzzz = 1", "rules[0].zzz=1 is not a key; use one of pattern, kinds, bits"),
        ("bits = 4\nsettings = 1", "rules[0].settings=1 is not a key; use one of"),
        ("bits = 4\ngrid = 'symetric'", "rules[0].grid='symetric' is not known; did you mean 'symmetric'?"),
        ("bits = 4\ngrid = 'cubic'", "rules[0].grid='cubic' is not known; use 'symmetric', 'asymmetric' or 'codebook'"),
        ("bits = 4\ngrid = ['symmetric']", "rules[0].grid=['symmetric'] is not known"),
        ("bits = 4\nkinds = ['lstn']", "rules[0].kinds[0]='lstn' is not known; did you mean 'lstm'?"),
        ("bits = 4\nkinds = 'lstm'", "rules[0].kinds='lstm' does not fit"),
        ("bits = 4\nkinds = []", "rules[0]: kinds=[] matches nothing; leave it out"),
        ("bits = 4\npattern = ''", "rules[0]: pattern='' matches nothing; leave it out"),
        ("bits = 4\nkeep_float = true", "rules[0]: keep_float=true contradicts bits; remove one"),
        ("bits = 4\ngroup_size = 64", "group_size=64 has no effect without granularity='group'"),
        ("bits = 4\ngranularity = 'group'", "granularity='group' needs group_size; give it"),
        ("bits = 4\ngranularity = 'group'\ngroup_size = 0", "group_size=0 must be at least 1; 64 is usual"),
        ("bits = 4\nrange = 'minmax'", "range='minmax' does not fit grid='symmetric'; use 'absmax', 'percentile',"),
        ("bits = 4\ngrid = 'asymmetric'\nrange = 'absmax'", "range='absmax' does not fit grid='asymmetric'"),
        ("bits = 4\ngrid = 'codebook'\nrange = 'clip_search'", "does not fit grid='codebook'; use 'absmax' or"),
        (
            "bits = 4\ngrid = 'codebook'\ngranularity = 'group'\ngroup_size = 64",
            "granularity='group' does not fit grid='codebook'; use 'channel' or 'tensor'",
        ),
        (
            "bits = 4\nkinds = ['linear', 'depthwise']\ngranularity = 'group'\ngroup_size = 64",
            "granularity='group' does not fit the depthwise weights, which have no inputs to group",
        ),
        ("bits = 1\nrange = 'clip_search'", "range='clip_search' has no effect at bits=1"),
        ("bits = 4\nrange = 'percentile'", "range='percentile' needs percentile; give it"),
        ("bits = 4\npercentile = 99.0", "percentile=99.0 has no effect without range='percentile'"),
        ("bits = 4\nrange = 'percentile'\npercentile = 0.5", "percentile=0.5 must lie above 50 and up to 100"),
        ("bits = 4\nrange = 'percentile'\npercentile = nan", "percentile=nan must lie above 50 and up to 100"),
        ("bits = 4\nclip_low = 0.5", "clip_low=0.5 has no effect without range='clip_search'"),
        ("bits = 4\nerror = 'mse'", "error='mse' has no effect without range='clip_search'"),
        ("bits = 4\nrange = 'clip_search'\nclip_low = 1.5", "clip_low=1.5 and clip_high=1.0 must ascend within (0, 1]"),
        ("bits = 4\nrange = 'clip_search'\nclip_step = 0", "clip_step=0.0 must lie within 0.001 and 1"),
        ("bits = 4\nactivation_bits = 8", "activation_bits=8 has no effect without activations='dynamic'"),
        ("bits = 4\nactivations = 'dynamic'\nactivation_bits = 1", "activation_bits=1 has no signed grid; use 2 to 8"),
        ("bits = 4\nactivations = 'static'", "rules[0].activations='static' is not known; use 'float' or 'dynamic'"),
        ("bits = 4\nkinds = ['lstm']\nbias_correction = true", "bias_correction=true does not fit the lstm weights"),
        (
            "bits = 4\nkinds = ['pointwise', 'conv2d']\nrounding = 'compensated'",
            "rounding='compensated' does not fit the conv2d weights, only linear, pointwise, depthwise, lstm; use 'nearest'",
        ),
        ("bits = 4\nrounding = 'gptq'", "rounding='gptq' is not known; use 'nearest', 'compensated' or 'refined'"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_rule_is_one_line_with_its_remedy(rule, complaint):
    with pytest.raises(ValueError) as caught:
        recipe(rule)
    message = str(caught.value)
    assert message.startswith("r.toml: ")
    assert complaint in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('name = "r"\nmethod =', "r.toml is not TOML: "),
        ('name = "r"\n[[rules]]\nbits = 4', "r.toml: method is missing; add it"),
        (
            'nmae = "r"\nmethod = "linear"\n[[rules]]\nbits = 4',
            "r.toml: nmae='r' is not a key; did you mean name?",
        ),
        (HEAD, "r.toml: rules is missing; add it"),
        (HEAD + "rules = []", "r.toml: rules is empty; give at least one [[rules]]"),
        (HEAD + "[rules]\nbits = 4", "r.toml: rules={'bits': 4} does not fit"),
        (HEAD + "rules = [3]", "r.toml: rules[0]=3 does not fit"),
    ],
)
def test_a_mistake_around_the_rules_is_one_line_too(text, complaint):
    with pytest.raises(ValueError) as caught:
        Recipe.from_toml(text, source="r.toml")
    assert str(caught.value).startswith(complaint)
    assert "\n" not in str(caught.value)


def test_a_long_value_is_shortened():
    with pytest.raises(ValueError) as caught:
        recipe(f"bits = '{'4' * 500}'")
    assert len(str(caught.value)) < 200


# Files and the resolved recipe -----------------------------------------------------------------


def test_a_file_is_read_and_named_in_its_mistakes(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + "[[rules]]\nbits = 4\n")
    assert Recipe.load(path).rules[0].settings.bits == 4
    path.write_text(HEAD + "[[rules]]\nbits = 9\n")
    with pytest.raises(ValueError, match=r"mine\.toml: rules\[0\]: bits=9 cannot be stored; use 1 to 8"):
        Recipe.load(path)


def test_a_file_that_is_absent_or_no_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"recipe .*absent\.toml does not exist"):
        Recipe.load(tmp_path / "absent.toml")
    (tmp_path / "sound.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"recipe .*sound\.toml is not UTF-8 text"):
        Recipe.load(tmp_path / "sound.toml")


def test_the_resolved_recipe_is_plain_json_says_every_default_and_reads_back():
    chosen = recipe(
        'pattern = "head.*"\nkinds = ["linear"]\nkeep_float = true',
        'bits = 4\nrange = "clip_search"\nactivations = "dynamic"',
    )
    resolved = chosen.resolved()
    assert json.loads(json.dumps(resolved)) == resolved
    assert resolved["rules"][0] == {"pattern": "head.*", "kinds": ["linear"], "keep_float": True}
    assert resolved["rules"][1] == {
        "pattern": "*", "bits": 4, "grid": "symmetric", "granularity": "channel", "range": "clip_search",
        "clip_low": 0.5, "clip_high": 1.0, "clip_step": 0.05, "error": "mae", "rounding": "nearest",
        "bias_correction": False, "activations": "dynamic", "activation_bits": 8,
    }  # fmt: skip
    assert Recipe.from_dict(resolved) == chosen


def test_a_recipe_can_be_made_in_python():
    made = Recipe(name="r", method="linear", rules=(Rule(settings=Settings(bits=4)),))
    assert made == recipe("bits = 4")


def test_a_misspelt_method_suggests_the_nearest():
    unknown = recipe("bits = 4").model_copy(update={"method": "liner"})
    with pytest.raises(ValueError, match="recipe r: method='liner' is not known; did you mean linear"):
        method_of(unknown)
    assert type(method_of(recipe("bits = 4"))) is METHODS["linear"]


@pytest.mark.parametrize("later", ["bits = 8", 'kinds = ["pointwise"]\nbits = 8'])
def test_a_rule_behind_one_that_takes_all_is_refused(later: str) -> None:
    text = f'name = "x"\nmethod = "linear"\n[[rules]]\nbits = 4\n[[rules]]\n{later}'
    with pytest.raises(ValueError, match="comes too late"):
        assign(Recipe.from_toml(text), nn.Sequential(nn.Conv1d(4, 4, 1)))
