"""Weights that the forward pass sees through a function, hung into a model and taken out again.

`module.weight` becomes `function(parameter)` wherever it is read, in any module, by a property on the
module's class. The parameter itself stays where it was, so that optimizers, checkpoints, `.to()` and
DDP notice nothing, before or after they have seen the model: names, order and objects are the same.

`torch.nn.utils.parametrize` was used first and given up (torch 2.13): registering calls `set_` on the
parameter, which drops the hooks by which DDP averages its gradient, in silence; it renames entries of
`state_dict`, reorders parameters, and an LSTM or attention computes each weight up to three times a
forward pass. Here a weight is computed once within one call of its module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from subtone.quantize.weights import Weight, holders_of

Function = Callable[[Tensor], Tensor]
"""A weight in its own shape -> what the forward pass sees in its place, with a gradient."""

HOLD = "_subtone_hold"


@dataclasses.dataclass
class _Hold:
    """What stands in a module's `__dict__` while its weights are seen through functions.

    * `functions`: parameter's name -> function.
    * `calls`: how deep the module's own calls are nested; 0 outside of them.
    * `computed`: parameter's name -> what the running call has computed of it.
    """

    functions: dict[str, Function] = dataclasses.field(default_factory=dict)
    calls: int = 0
    computed: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class Parametrized:
    """The hold on a model's weights: `functions` are in place until `detach`.

    A parameter that several modules share is seen through its function in each of them and stays one
    parameter. `module._parameters[name]` is the parameter itself while `module.weight` is not. An LSTM
    cannot be copied meanwhile, because it takes its weights along as it sees them.

    Args:
        model: where the modules that hold the parameters are looked for.
        weights: parameter path -> weight, of `quantizable_weights`.
        functions: parameter path -> function; paths that are not in it stay as they are.
    """

    def __init__(
        self, model: nn.Module, weights: Mapping[str, Weight], functions: Mapping[str, Function]
    ) -> None:
        self._handles: list[RemovableHandle] = []
        self._classes: dict[nn.Module, type[nn.Module]] = {}
        """Module -> its class before."""
        found: dict[nn.Module, dict[str, Function]] = {}
        for path, function in functions.items():
            for module, name in holders_of(model, weights[path].parameter):
                found.setdefault(module, {})[name] = function
        for module, of in found.items():
            if HOLD in vars(module):
                raise ValueError(
                    f"{type(module).__name__} is seen through functions already; detach them first"
                )
            self._classes[module] = type(module)
            vars(module)[HOLD] = _Hold(functions=of)
            module.__class__ = _class_with_properties(type(module), list(of))
            self._handles += [
                module.register_forward_pre_hook(_enter),
                module.register_forward_hook(_leave, always_call=True),
            ]

    def detach(self) -> None:
        """Plain modules again, with the parameters as training left them."""
        for handle in self._handles:
            handle.remove()
        for module, plain in self._classes.items():
            hold = vars(module).pop(HOLD)
            module.__class__ = plain
            for name in hold.functions:
                setattr(module, name, module._parameters[name])  # an LSTM lists what it saw last
        self._handles, self._classes = [], {}


def _class_with_properties(plain: type[nn.Module], names: list[str]) -> type[nn.Module]:
    """A subclass that differs from `plain` in what `names` give only, and is called the same."""
    properties = {name: property(_reader(name)) for name in names}
    return type(plain.__name__, (plain,), {**properties, "__module__": plain.__module__})


def _reader(name: str) -> Callable[[Any], Tensor]:
    def read(module: nn.Module) -> Tensor:
        hold: _Hold = vars(module)[HOLD]
        if name in hold.computed:
            return hold.computed[name]
        parameter = module._parameters[name]
        assert parameter is not None
        try:
            value = hold.functions[name](parameter)
        except AttributeError as error:  # would make torch look for the parameter, and find it
            raise RuntimeError(f"the function of {name} failed: {error}") from error
        if hold.calls:
            hold.computed[name] = value
        return value

    return read


def _enter(module: nn.Module, inputs: object) -> None:
    vars(module)[HOLD].calls += 1


def _leave(module: nn.Module, inputs: object, output: object) -> None:
    hold: _Hold = vars(module)[HOLD]
    hold.calls -= 1
    if not hold.calls:
        hold.computed.clear()
