"""Hugging Face models run inside PyTorch: float, PyTorch's and torchao's int8, and `subtone.accelerate`, side by side.

    .venv/bin/python benchmarks/in_torch.py
    .venv/bin/python benchmarks/in_torch.py --models wav2vec2 --layers 2 --rounds 3

ParakeetForCTC (609 M weights) and Wav2Vec2ForCTC (94 M) as their configurations make them, random weights, which speed
does not depend on. All hear the same 10 s, turn by turn in one process; a ratio is of two candidates in one round. Every
candidate's logits are held against the float ones first: 8 bits that were not 8 bits would show there.

`torch.compile` is what torchao's layers are made for, so that theirs and ours run compiled too, block by block. Memory is
what a candidate holds for the whole network: its state_dict as saved, for ours the packed weights and what is beside them.
On one thread times are CPU times of that thread, which other programs on the machine disturb less than those of a clock.
torchao is no dependency: pip install -c constraints.txt torchao. Takes a quarter of an hour on two quiet cores.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import io
import json
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import subtone
from subtone.files import write_text
from subtone.report.machine import machine
from subtone.report.race import race, summarize_race
from subtone.torch import PackedLayer

ROOT = Path(__file__).resolve().parents[1]
DURATION_S, RATE_HZ, FRAME_RATE_HZ = 10, 16000, 100
SMALL_SHAPES = ((512, 512, 1), (512, 2048, 1), (2048, 512, 1), (1024, 4096, 1), (1024, 4096, 16))
"""Inputs, outputs and rows of single calls."""
CALLS = 200


def parakeet(layers: int | None) -> tuple[nn.Module, Tensor]:
    config = transformers.ParakeetCTCConfig()
    config.encoder_config.num_hidden_layers = layers or config.encoder_config.num_hidden_layers
    model, mels = transformers.ParakeetForCTC(config).eval(), config.encoder_config.num_mel_bins
    # transformers' own draws let the sound fade to 6e-5, which is less than a step of PyTorch's int8 at its finest.
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return model, torch.randn(1, DURATION_S * FRAME_RATE_HZ, mels)


def wav2vec2(layers: int | None) -> tuple[nn.Module, Tensor]:
    config = transformers.Wav2Vec2Config()
    config.num_hidden_layers = layers or config.num_hidden_layers
    return transformers.Wav2Vec2ForCTC(config).eval(), torch.randn(1, DURATION_S * RATE_HZ)


MODELS = {"parakeet": parakeet, "wav2vec2": wav2vec2}


def blocks_of(model: nn.Module) -> nn.ModuleList:
    return (model if hasattr(model, "encoder") else model.wav2vec2).get_submodule("encoder.layers")


def compiled(model: nn.Module) -> nn.Module:
    for block in blocks_of(model):
        block.compile()
    return model


def dynamic_int8(model: nn.Module) -> nn.Module:
    """PyTorch's: Linear layers alone; it has no convolution."""
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def torchao_int8(model: nn.Module, *, is_dynamic: bool) -> nn.Module:
    from torchao import quantization

    settings = (
        quantization.Int8DynamicActivationInt8WeightConfig()
        if is_dynamic
        else quantization.Int8WeightOnlyConfig()
    )
    quantized = copy.deepcopy(model)
    quantization.quantize_(quantized, settings)
    return quantized


def ours(model: nn.Module, recipe: str) -> nn.Module:
    packed = copy.deepcopy(model)
    print(subtone.accelerate(packed, recipe), flush=True)
    return packed


CANDIDATES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "subtone, 8 bits": lambda model: ours(model, "ptq-w8"),
    "subtone, 4 bits": lambda model: ours(model, "ptq-w4"),
    "subtone, 8 bits, compiled": lambda model: compiled(ours(model, "ptq-w8")),
    "PyTorch float": lambda model: model,
    "PyTorch float, compiled": lambda model: compiled(copy.deepcopy(model)),
    "PyTorch dynamic int8": dynamic_int8,
    "torchao int8 weights, compiled": lambda model: compiled(torchao_int8(model, is_dynamic=False)),
    "torchao int8 dynamic": lambda model: torchao_int8(model, is_dynamic=True),
    "torchao int8 dynamic, compiled": lambda model: compiled(torchao_int8(model, is_dynamic=True)),
}
OURS = next(iter(CANDIDATES))


def memory_mb(model: nn.Module) -> float:
    """What the network's weights take, in 10^6 bytes."""
    packed = [module for module in model.modules() if isinstance(module, PackedLayer)]
    if packed:
        beside = [*model.parameters(), *model.buffers()]
        return (sum(one.product.num_bytes for one in packed) + sum(part.nbytes for part in beside)) / 1e6
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    return stream.tell() / 1e6


def hearing(network: nn.Module) -> Callable[[Any], Any]:
    def run(features: Any) -> Any:
        with torch.inference_mode():
            return network(features).logits

    return run


def race_model(
    name: str, *, layers: int | None, rounds: int, threads: tuple[int, ...], chosen: list[str]
) -> dict[str, Any]:
    torch.manual_seed(0)
    model, sound = MODELS[name](layers)
    networks: dict[str, nn.Module] = {}
    with torch.inference_mode():
        wanted = model(sound).logits
    facts = []
    for candidate in chosen:
        networks[candidate] = CANDIDATES[candidate](model)
        start = time.perf_counter()
        with torch.inference_mode():
            logits = networks[candidate](sound).logits
        error = float((logits - wanted).norm() / wanted.norm())
        facts.append(
            {
                "candidate": candidate,
                "memory_mb": memory_mb(networks[candidate]),
                "relative_error": error,
                "first_call_s": round(time.perf_counter() - start, 1),
            }
        )
        print(facts[-1], flush=True)
    rows = []
    for count in threads:
        torch.set_num_threads(count)

        candidates = {candidate: hearing(network) for candidate, network in networks.items()}
        clock = time.thread_time if count == 1 else time.perf_counter
        seconds = race(candidates, [sound], rounds=rounds, clock=clock)
        rows.append(
            {
                "threads": count,
                "candidates": summarize_race(list(candidates), seconds, duration_s=DURATION_S, ours=OURS),
            }
        )
        for row in rows[-1]["candidates"]:
            print(
                count,
                f"{row['candidate']:32s} {row['seconds']:7.3f} s  {row['ours_is_faster_by']:.2f}x",
                flush=True,
            )
    blocks = len(blocks_of(model))
    parameters = sum(part.numel() for part in model.parameters())
    return {
        "model": type(model).__name__,
        "layers": blocks,
        "parameters": parameters,
        "facts": facts,
        "races": rows,
    }


def repeated(layer: nn.Module) -> Callable[[Tensor], None]:
    def run(x: Tensor) -> None:
        with torch.inference_mode():
            for _ in range(CALLS):
                layer(x)

    return run


def calls() -> list[dict[str, Any]]:
    """Single products beside torch's own Linear and its dynamic int8, one thread: what a call costs."""
    torch.set_num_threads(1)
    rows = []
    for inputs, outputs, count in SMALL_SHAPES:
        plain, x = nn.Sequential(nn.Linear(inputs, outputs)).eval(), torch.randn(count, inputs)
        layers = {
            "subtone, 8 bits": copy.deepcopy(plain),
            "PyTorch float": plain,
            "PyTorch dynamic int8": dynamic_int8(plain),
        }
        subtone.accelerate(layers["subtone, 8 bits"], "ptq-w8")

        candidates = {name: repeated(layer[0]) for name, layer in layers.items()}
        seconds = race(candidates, [x], rounds=20, clock=time.thread_time) / CALLS
        found = summarize_race(list(candidates), seconds, duration_s=1, ours=OURS)
        rows.append({"inputs": inputs, "outputs": outputs, "rows": count, "candidates": found})
        print(
            inputs,
            outputs,
            count,
            [f"{one['candidate']} {1e6 * one['seconds']:.1f} us" for one in found],
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--layers", type=int, default=None, help="blocks of each encoder; default: as published"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--eager", action="store_true", help="without the compiled candidates")
    arguments = parser.parse_args()
    warnings.filterwarnings(
        "ignore"
    )  # torch announces that its quantizers will move; every compilation says something
    chosen = [name for name in CANDIDATES if not (arguments.eager and name.endswith("compiled"))]
    document = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "torchao", "transformers")},
        "duration_s": DURATION_S,
        "rounds": arguments.rounds,
        "ours": OURS,
        "calls": calls(),
        "models": [
            race_model(
                name,
                layers=arguments.layers,
                rounds=arguments.rounds,
                threads=tuple(arguments.threads),
                chosen=chosen,
            )
            for name in arguments.models
        ],
    }
    name = f"{document['date']}_{document['machine']['commit']}_in_torch.json"
    write_text(ROOT / "benchmarks" / "results" / name, json.dumps(document, indent=1) + "\n")
    print(json.dumps({"models": len(document["models"]), "file": name}))


if __name__ == "__main__":
    main()
