"""A quantized network's layers swapped in place for packed ones, so that it runs small and fast inside PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from subtone.models.checkpoints import Checkpoint, Quantization
from subtone.program import MAX_INTEGER_INPUTS
from subtone.quantize import Recipe, quantizable_weights
from subtone.quantize.apply import quantize_module
from subtone.quantize.shipped import shipped_recipes
from subtone.quantize.weights import Weight, weight_kind
from subtone.torch.layers import PackedConv1d, PackedLayer, PackedLinear


@dataclasses.dataclass(frozen=True, kw_only=True)
class Acceleration:
    """What `accelerate` did.

    * `packed`: paths of the layers that are packed now.
    * `left`: path of a quantized weight -> why torch multiplies it still, its values decoded.
    * `packed_bytes`, `float_bytes`: memory of the packed weights, now and before.
    * `quantization`: of all of the network's weights; what `subtone.export` packs into a file.
    """

    packed: tuple[str, ...]
    left: Mapping[str, str]
    packed_bytes: int
    float_bytes: int
    quantization: Quantization

    def __str__(self) -> str:
        sizes = f"{self.float_bytes / 1e6:.1f} MB of floats are {self.packed_bytes / 1e6:.1f} MB"
        lines = [f"{len(self.packed)} layers packed: {sizes}; {len(self.left)} weights left to torch"]
        reasons: dict[str, list[str]] = {}
        for path, reason in self.left.items():
            reasons.setdefault(reason, []).append(path)
        for reason, paths in reasons.items():
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            lines.append(f"  {reason}: {', '.join(paths[:3])}{more}")
        return "\n".join(lines)


def accelerate(
    model: nn.Module | Checkpoint,
    how: Recipe | Quantization | str | Path | None = None,
    *,
    examples: Iterable[Tensor] = (),
) -> Acceleration:
    """Swap the layers of a quantized `model` for packed ones, in place; say which, and what was left.

    Every Linear and pointwise Conv1d whose activations are quantized becomes a `PackedLinear` or `PackedConv1d`, with
    the bits of the same layer in a packed file. Of other quantized weights the values become the decoded ones; torch
    goes on multiplying them. The model infers from now on, on the CPU, and keeps its interface: `forward` takes and
    gives what it did.

    Args:
        model: in eval mode, on the CPU; or a quantized checkpoint, whose network it is then.
        how: what a plain module is quantized by: a recipe, its file, or the name of a shipped one such as "ptq-w4"; or
            the quantization that a method's `freeze` or `quantize_module` gave for this very module.
        examples: inputs for a recipe that listens to some, as `quantize_module` takes them.

    ValueError for a model that is not quantized (and `how` is missing), trains, lies elsewhere, is accelerated
    already, or of which nothing can be packed.

    >>> from subtone.quantize import Recipe, Rule
    >>> rule = Rule(bits=4, grid="symmetric", granularity="channel", activations="dynamic")
    >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    >>> accelerate(model, Recipe(name="w4", method="linear", rules=[rule])).packed
    ('0', '2')
    >>> model(torch.ones(1, 64)).shape
    torch.Size([1, 8])
    """
    network, quantization = _quantized(model, how, examples)
    if quantization.ranges:
        raise ValueError(
            "the model is quantized to integers alone, which only a packed file runs; pack it with subtone pack"
        )
    paths: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        for _, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            paths.setdefault(id(parameter), []).append((path, module))
    weights = quantizable_weights(network)
    held_by_torch = _children_of(network, nn.TransformerEncoderLayer)
    swaps: dict[str, PackedLayer] = {}
    left: dict[str, str] = {}
    float_bytes = 0
    for path, stored in quantization.weights.items():
        if path not in weights:
            left[path] = "computed anew from other parameters, and float"
            continue
        weight = weights[path]
        if tuple(stored.shape) != weight.shape:
            raise ValueError(
                f"{path} is {weight.shape}, quantized as {tuple(stored.shape)}; give the quantization of this model"
            )
        holders = paths[id(weight.parameter)]
        obstacles = [_obstacle(weight, module, quantization.activation_bits[path]) for _, module in holders]
        if any(module in held_by_torch for _, module in holders):
            obstacles.append("inside nn.TransformerEncoderLayer, which reads the weight itself")
        if reason := next(filter(None, obstacles), None):
            left[path] = reason
            continue
        float_bytes += weight.parameter.nbytes
        made: dict[int, PackedLayer] = {}  # a module that stands at several places stays one
        for module_path, module in holders:
            if id(module) not in made:
                made[id(module)] = _packed_layer(path, module, quantization)
            swaps[module_path] = made[id(module)]
    if not swaps:
        reasons = "; ".join(sorted(set(left.values()))) or "the recipe quantizes nothing"
        raise ValueError(f"no layer can be packed ({reasons}); packed are Linear and pointwise Conv1d layers")
    with torch.no_grad():
        for path in left.keys() & weights.keys():
            weights[path].parameter.copy_(torch.from_numpy(quantization.weights[path].dequantize()))
    for module_path, layer in swaps.items():
        owner, _, name = module_path.rpartition(".")
        setattr(network.get_submodule(owner), name, layer.eval())
    layers = {id(layer): layer for layer in swaps.values()}.values()
    return Acceleration(
        packed=tuple(swaps),
        left=left,
        packed_bytes=sum(layer.product.num_bytes for layer in layers),
        float_bytes=float_bytes,
        quantization=quantization,
    )


def _quantized(
    model: nn.Module | Checkpoint,
    how: Recipe | Quantization | str | Path | None,
    examples: Iterable[Tensor],
) -> tuple[nn.Module, Quantization]:
    """The network, and what it is or is to be quantized to; ValueError where it is not as `accelerate` needs it."""
    network: nn.Module = model.network if isinstance(model, Checkpoint) else model
    if network.training:
        raise ValueError("the model is in training mode, and packed layers do not train; call eval() first")
    if next(network.children(), None) is None:
        raise ValueError(
            "the model is one layer, which has no place to be swapped in; put it into nn.Sequential"
        )
    if any(isinstance(module, PackedLayer) for module in network.modules()):
        raise ValueError("the model is accelerated already; make it anew to quantize it in another way")
    elsewhere = next((value for value in network.parameters() if value.device.type != "cpu"), None)
    if elsewhere is not None:
        raise ValueError(
            f"the model is on {elsewhere.device}; packed layers compute on the CPU, call .cpu() first"
        )
    own = model.quantization if isinstance(model, Checkpoint) else None
    if own is not None and how is not None:
        raise ValueError("the checkpoint is quantized already; leave out the recipe")
    if isinstance(how, Quantization) or own is not None:
        return network, own or how  # type: ignore[return-value]
    if how is None:
        raise ValueError(
            "the model is float; give a recipe, as in accelerate(model, 'ptq-w8'), or the quantization of its weights"
        )
    recipe = how if isinstance(how, Recipe) else _recipe(how)
    return network, quantize_module(network, recipe, examples=examples)


def _recipe(where: str | Path) -> Recipe:
    """The recipe in the file `where`, or the shipped one of that name."""
    if Path(where).is_file():
        return Recipe.load(where)
    shipped = shipped_recipes()
    if str(where) not in shipped:
        raise ValueError(
            f"recipe {where} is neither a file nor shipped; `subtone methods` lists those that are"
        )
    return Recipe.load(shipped[str(where)])


def _children_of(network: nn.Module, kind: type[nn.Module]) -> set[nn.Module]:
    return {child for module in network.modules() if isinstance(module, kind) for child in module.children()}


def _obstacle(weight: Weight, module: nn.Module, activation_bits: int) -> str | None:
    """Why the weight that `module` holds cannot be packed in its place; None where it can."""
    if weight_kind(module, "weight") not in ("linear", "pointwise") or weight.name != "weight":
        return f"of {type(module).__name__} ({weight.kind}), for which there is no packed layer"
    if not activation_bits:
        return "met by float activations, as the recipe has it (activations = 'dynamic' packs it)"
    if weight.shape[1] > MAX_INTEGER_INPUTS:
        return f"of more than {MAX_INTEGER_INPUTS} inputs, which no integer sum holds"
    if type(module) not in (nn.Linear, nn.Conv1d):
        return f"of {type(module).__name__}, a class with a forward of its own"
    if getattr(module, "parametrizations", None):
        return "computed anew from other parameters, and float"
    if module._forward_hooks or module._forward_pre_hooks:
        return "of a layer with hooks"
    return None


def _packed_layer(path: str, module: nn.Module, quantization: Quantization) -> PackedLayer:
    """`module` with its weight packed, its bias and what was found to shift it added up as in a packed file."""
    bias = getattr(module, "bias", None)
    parts = [None if bias is None else bias.detach().float().numpy(), quantization.bias_shifts.get(path)]
    found = [part for part in parts if part is not None]
    return (PackedLinear if isinstance(module, nn.Linear) else PackedConv1d)(
        quantization.weights[path],
        np.sum(found, axis=0, dtype=np.float32) if found else None,
        activation_bits=quantization.activation_bits[path],
        clip=quantization.activation_clips.get(path),
    )
