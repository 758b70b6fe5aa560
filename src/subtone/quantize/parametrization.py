"""Weights that the forward pass sees through a function, hung into a model and taken out again.

`torch.nn.utils.parametrize` does the work: `module.weight` becomes `function(parameter)` wherever it
is read, in any module, and the parameter stays the object that an optimizer holds. Three of its
traps are shut here:

* LSTM and attention read each weight several times a forward pass; within one call of a module the
  function is computed once.
* `state_dict` keeps the names of the plain model (`conv.weight`), so a checkpoint taken in the
  middle of a run fits a model to which nothing is attached, and the other way round.
* Taken out, a module has its class, its parameters in their order, and can be copied (an LSTM keeps
  tensors of the last forward pass otherwise).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from subtone.quantize.weights import Weight, holders_of

Function = Callable[[Tensor], Tensor]
"""A weight in its own shape -> what the forward pass sees in its place, with a gradient."""


class _Seen(nn.Module):
    """What `register_parametrization` wants: a module without parameters around the function."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, weight: Tensor) -> Tensor:
        return self.function(weight)


class _Once:
    """Hooks around a module's call within which each of its weights is computed once."""

    def __init__(self) -> None:
        self._entered: list[Any] = []

    def enter(self, module: nn.Module, inputs: object) -> None:
        cached = parametrize.cached()
        cached.__enter__()
        self._entered.append(cached)

    def leave(self, module: nn.Module, inputs: object, output: object) -> None:
        self._entered.pop().__exit__(None, None, None)


class Parametrized:
    """The hold on a model's weights: `functions` are in place until `detach`.

    A parameter that several modules share is seen through its function in each of them and stays
    one parameter.

    Args:
        model: where the modules that hold the parameters are looked for.
        weights: parameter path -> weight, of `quantizable_weights`.
        functions: parameter path -> function; paths that are not in it stay as they are.
    """

    def __init__(
        self, model: nn.Module, weights: Mapping[str, Weight], functions: Mapping[str, Function]
    ) -> None:
        self._handles: list[RemovableHandle] = []
        self._held: dict[nn.Module, list[str]] = {}
        """Module -> its parameters' names in order."""
        self._names: dict[nn.Module, list[str]] = {}
        """Module -> those that are seen through a function."""
        for path, function in functions.items():
            for module, name in holders_of(model, weights[path].parameter):
                if module not in self._held:
                    self._held[module] = list(module._parameters)
                    self._hook(module)
                self._names.setdefault(module, []).append(name)
                parametrize.register_parametrization(module, name, _Seen(function))

    def _hook(self, module: nn.Module) -> None:
        names = self._names.setdefault(module, [])
        once = _Once()

        def save(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
            for name in names:
                state[f"{prefix}{name}"] = state.pop(f"{prefix}parametrizations.{name}.original")

        def load(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
            for name in names:
                if f"{prefix}{name}" in state:
                    state[f"{prefix}parametrizations.{name}.original"] = state.pop(f"{prefix}{name}")

        self._handles += [
            module.register_forward_pre_hook(once.enter),
            module.register_forward_hook(once.leave, always_call=True),
            module.register_state_dict_post_hook(save),
            module.register_load_state_dict_pre_hook(load),
        ]

    def detach(self) -> None:
        """Plain modules again, with the parameters as training left them."""
        for handle in self._handles:
            handle.remove()
        for module, order in self._held.items():
            for name in self._names[module]:
                parametrize.remove_parametrizations(module, name, leave_parametrized=False)
                setattr(module, name, module._parameters[name])  # an LSTM lists its weights a second time
            for name in order:
                module._parameters[name] = module._parameters.pop(name)
        self._handles, self._held, self._names = [], {}, {}
