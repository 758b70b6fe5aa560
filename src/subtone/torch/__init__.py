"""The packed kernels inside PyTorch: an operator, layers that call it, and a network whose layers are swapped for them.

    import subtone
    print(subtone.accelerate(model, "ptq-w8"))      # any model in eval mode, on the CPU; a Hugging Face one too

It needs torch and the native library; what runs on a device needs neither this package nor torch.
"""

from subtone.torch.layers import PackedConv1d, PackedLayer, PackedLinear
from subtone.torch.operator import linear, registered
from subtone.torch.swapping import Acceleration, accelerate

__all__ = [
    "Acceleration",
    "PackedConv1d",
    "PackedLayer",
    "PackedLinear",
    "accelerate",
    "linear",
    "registered",
]
