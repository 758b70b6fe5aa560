"""Native quantization-aware training (int4: Ding et al. 2022, section 2.2 and Fig. 2).

At every forward pass each weight is rounded to a symmetric grid whose scale is taken from the weight
as it is now, `max / 127` or `max / 7` per output channel, without a zero point. Gradients pass
straight through the rounding and not at all into the scale (the paper's stop-gradient on the
maximum). Where activations are "dynamic", each frame gets such a grid too, and the product is
computed on integers (integer.py): no difference is left between training and the packed file. The
paper's rows are settings: I8W and I4W have float activations, I8WA, I4WI8A and I4WA integer ones of
`activation_bits`.

Ours differs from the text in three places (docs/equations.md): "casting it to int" rounds; the
maximum of an activation is that of a frame, so that a stream and a whole utterance agree; a kernel
that spans frames keeps float activations.

A rule with `activation_clip = "pact"` clips what comes in before it is rounded, at a magnitude that is
learned for each product (pact.py).

An LSTM is computed by subtone's own recurrence meanwhile (lstm.py). `nn.MultiheadAttention` computes
inside torch, where no hook reaches the activations: its weights are trained like any other, but its
activations must be "float", and a rule that says otherwise is refused rather than trained as something
else.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils.hooks import RemovableHandle

from subtone.models.bifocal import SwitchedLayer
from subtone.models.checkpoints import Quantization
from subtone.qtensor import QTensor
from subtone.quantize.fake import fake_quantize_activations, fake_quantize_weight
from subtone.quantize.integer import autocast_type, integer_product
from subtone.quantize.linear import quantize_weights
from subtone.quantize.lstm import Product, QuantizedLstm
from subtone.quantize.method import Batch, TrainingMethod
from subtone.quantize.pact import LearnedClip, take_step
from subtone.quantize.parametrization import Parametrized
from subtone.quantize.rules import STRICT, Recipe, Settings
from subtone.quantize.weights import PER_FRAME_KINDS, Weight, holders_of, weight_kind


class NativeOptions(pydantic.BaseModel):
    """How the forward pass is computed, and which weights take part before the freeze.

    * `forward`: "integer", or "fake": the same rounded values, multiplied in float. They differ only
      where activations are dynamic; with float activations there is no integer product, and the
      paper's I4W and FakeI4W are one computation here.
    * `largest_trained_bits`: weights of more bits are left alone, activations included, until the
      freeze rounds them: with 4, the paper's Table 2, "int4 QAT to the listed layers and int8 PTQ for
      the remaining layers".
    * `clip_learning_rate`, `clip_decay`: of clips that are learned. Each step moves the logarithm of a
      clip by minus `clip_learning_rate * (clip * its gradient + clip_decay)`, a tenth at most, so that
      both hold for activations of any unit; the gradient is that of the loss as it is given, best a
      mean. With the defaults a clip that the loss does not depend on halves in 231 steps.
    """

    model_config = STRICT

    forward: Literal["integer", "fake"] = "integer"
    largest_trained_bits: int = pydantic.Field(default=8, ge=2, le=8)
    clip_learning_rate: float = pydantic.Field(default=1.0, gt=0, allow_inf_nan=False)
    clip_decay: float = pydantic.Field(default=0.003, ge=0, allow_inf_nan=False)


class Native(TrainingMethod):
    """Method "native": dynamic symmetric scales, and training on the integers that will be served.

    A frozen model equals the trained forward pass: the same weights bit for bit in float32, and a
    product with dynamic activations bit for bit too. Half-precision parameters are widened before
    they are rounded, and what the forward pass sees is rounded to their precision again. A module
    that is not trained (`requires_grad=False`) is heard as it will be stored all the same.
    """

    Options = NativeOptions
    learns_clips = True
    options: NativeOptions

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        for index, rule in enumerate(recipe.rules):
            if not rule.settings.keep_float:
                where = f"recipe {recipe.name}: rules[{index}]"
                _check_settings(rule.settings, where=where)
                self._check_clip(rule.settings, where=where)
        self._clips: dict[str, LearnedClip] = {}
        """Parameter path -> the clip in front of its products; of the last training, after `detach`."""
        self._parametrized: Parametrized | None = None
        self._handles: list[RemovableHandle] = []
        self._replaced: list[nn.Module] = []

    def attach(self, model: nn.Module) -> None:
        """From now on the forward pass of `model` sees weights and activations as they will be served."""
        super().attach(model)
        try:
            products = self._products(model)
        except ValueError:
            super().detach()
            raise
        functions = {
            path: functools.partial(fake_quantize_weight, settings=of, name=path)
            for path, of in self.settings.items()
            if self._is_trained(of)
        }
        self._parametrized = Parametrized(model, self.weights, functions)
        self._clips = {path: LearnedClip() for path in self._clipped(self.settings, self.weights)}
        for module, of_module in products.items():
            self._quantize_activations(module, of_module)

    def detach(self) -> None:
        """Plain modules and float weights again: not what was heard in training, before a freeze."""
        for handle in self._handles:
            handle.remove()
        for module in self._replaced:
            del module.forward
        if self._parametrized is not None:
            self._parametrized.detach()
        self._parametrized, self._handles, self._replaced = None, [], []
        super().detach()

    def after_step(self, step: int) -> None:
        """Move the clips by the gradients that the step's backward passes have left."""
        if self._clips:
            of, device = self.options, self.weights[next(iter(self._clips))].parameter.device
            take_step(
                list(self._clips.values()),
                learning_rate=of.clip_learning_rate,
                decay=of.clip_decay,
                device=device,
            )

    def state_dict(self) -> dict[str, Any]:
        """The clips that have begun."""
        if not self._clips:
            return {}
        return {"clips": {path: clip.alpha for path, clip in self._clips.items() if clip.is_started}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for path, alpha in state.get("clips", {}).items():
            self._clips[path].start(alpha)

    def stored(self, model: nn.Module) -> Mapping[str, QTensor]:
        """Every weight rounded as its rule says."""
        settings, weights = self._quantized(model)
        return quantize_weights(weights, settings)

    def freeze(self, model: nn.Module, *, calibration: Iterable[Batch] | None = None) -> Quantization:
        """Every weight rounded as its rule says; while attached, those of the attached model.

        `calibration` is not read: no scale comes from data. ValueError if a clip has not been learned.
        """
        settings, weights = self._quantized(model)
        clips: dict[str, float] = {}
        for path in self._clipped(settings, weights):
            alpha = self._clips[path].alpha if path in self._clips else None
            if alpha is None:
                raise ValueError(
                    f"recipe {self.recipe.name}: activation_clip='pact' of {path} has not been learned; train "
                    "before the freeze, or remove it"
                )
            clips[path] = alpha
        return self.quantization(
            quantize_weights(weights, settings), settings, weights, activation_clips=clips
        )

    def _quantized(self, model: nn.Module) -> tuple[dict[str, Settings], dict[str, Weight]]:
        return (self.settings, self.weights) if self.weights else self.quantized(model)

    def _clipped(self, settings: Mapping[str, Settings], weights: Mapping[str, Weight]) -> list[str]:
        """The weights in front of whose products activations are clipped."""
        return [path for path, of in settings.items() if of.clips_for(weights[path].kind)]

    def _check_clip(self, of: Settings, *, where: str) -> None:
        if of.activation_clip and not self._is_trained(of):
            raise ValueError(
                f"{where}: activation_clip={of.activation_clip!r} is not learned, because bits={of.bits} is above "
                f"largest_trained_bits={self.options.largest_trained_bits}; raise that or remove activation_clip"
            )

    def _is_trained(self, of: Settings) -> bool:
        return of.bits is not None and of.bits <= self.options.largest_trained_bits

    def _products(self, model: nn.Module) -> dict[nn.Module, dict[str, Product]]:
        """Module -> parameter's name -> the product by it, wherever activations are quantized."""
        found: dict[nn.Module, dict[str, Product]] = {}
        switched = [module for module in model.modules() if isinstance(module, SwitchedLayer)]
        for path, of in self.settings.items():
            weight = self.weights[path]
            if not self._is_trained(of) or not of.activation_bits_for(weight.kind):
                continue
            for module, name in holders_of(model, weight.parameter):
                if weight_kind(module, name) not in PER_FRAME_KINDS:
                    continue  # an embedding tied to this product has no activations
                is_held = any(module in (one.large, one.small) for one in switched)
                obstacle = "a SwitchedLayer computes with its weights" if is_held else self._obstacle(module)
                if obstacle:
                    raise ValueError(
                        f"recipe {self.recipe.name}: activations='dynamic' of {path} cannot be trained, because "
                        f"{obstacle}; add a rule for it with activations = 'float'"
                    )
                found.setdefault(module, {})[name] = Product(path=path, settings=of)
        return found

    def _obstacle(self, module: nn.Module) -> str:
        """Why the activations of `module` cannot be had: they are not what comes in, or its forward pass
        is not torch's own. Empty if they can."""
        kept = f"{type(module).__name__} keeps them to itself"
        if isinstance(module, NonDynamicallyQuantizableLinear):
            return kept  # attention reads its weight and never calls it
        if isinstance(module, nn.LSTM) and module.proj_size:
            return f"proj_size={module.proj_size} feeds back a state outside of [-1, 1], which has no known scale"
        if self.options.forward == "fake" and isinstance(module, (nn.Linear, nn.Conv1d)):
            return ""
        known = (nn.Linear, nn.Conv1d, nn.LSTM, nn.LSTMCell)
        return "" if type(module).forward in [of.forward for of in known] else kept

    def _quantize_activations(self, module: nn.Module, products: dict[str, Product]) -> None:
        """By a forward pass of ours, or by a hook where rounding what comes in is enough."""
        is_integer = self.options.forward == "integer"
        forward: Callable[..., Any]
        if isinstance(module, (nn.LSTM, nn.LSTMCell)):
            lstm = QuantizedLstm(products=products, is_integer=is_integer)
            forward = lstm.forward if isinstance(module, nn.LSTM) else lstm.forward_cell
        else:
            ((name, of),) = products.items()
            clip = self._clips.get(of.path)
            if not is_integer:
                self._handles.append(module.register_forward_pre_hook(_fake_activations(of, clip)))
                return
            forward = _integer_forward(name, of, clip)
        module.forward = types.MethodType(forward, module)
        self._replaced.append(module)


def _check_settings(of: Settings, *, where: str) -> None:
    if of.grid != "symmetric":
        raise ValueError(
            f"{where}: grid={of.grid!r} has a zero point or levels of its own; native needs 'symmetric'"
        )
    if of.bits == 1:
        raise ValueError(f"{where}: bits=1 has no native grid, whose outermost level would be 0; use 2 to 8")


def _clipped(features: Tensor, of: Product, clip: LearnedClip | None) -> Tensor:
    """`features`, or what `clip` leaves of them, in float32."""
    if clip is None:
        return features
    if autocast_type(features, otherwise=torch.float32) == torch.float16 and torch.is_grad_enabled():
        raise ValueError(
            f"activation_clip='pact' of {of.path} cannot be trained in float16, whose losses are scaled; use "
            "bfloat16 or float32"
        )
    return clip(features)


def _integer_forward(
    name: str, of: Product, clip: LearnedClip | None
) -> Callable[[nn.Module, Tensor], Tensor]:
    """The forward pass of a Linear or pointwise Conv1d on integers, of its float parameter `name`."""

    def forward(module: Any, features: Tensor) -> Tensor:
        axis = _channel_axis(module)
        weight = module._parameters[name]
        seen = _clipped(features, of, clip)
        product = integer_product(seen, weight, of.settings, channel_axis=axis, name=of.path)
        if module.bias is not None:
            product = product + (module.bias if axis == -1 else module.bias[:, None])
        return product.to(autocast_type(features, otherwise=features.dtype))

    return forward


def _fake_activations(
    of: Product, clip: LearnedClip | None
) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A pre-hook that clips what comes in, and rounds it to the grid of each frame."""

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        assert of.settings.activation_bits is not None
        axis = _channel_axis(module)
        features = _clipped(inputs[0], of, clip).movedim(axis, -1)
        rounded = fake_quantize_activations(features, of.settings.activation_bits)
        return (rounded.movedim(-1, axis).to(inputs[0].dtype), *inputs[1:])

    return hook


def _channel_axis(module: nn.Module) -> int:
    return -1 if isinstance(module, nn.Linear) else -2
