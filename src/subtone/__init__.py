"""subtone: speech recognition below eight bits.

>>> import subtone
>>> text = subtone.Session.load("model.subtone").hear_file("a.wav")  # doctest: +SKIP

What needs torch (recipes, quantizing, training, packing) is imported from its own package:
`subtone.quantize`, `subtone.train`, `subtone.export`, `subtone.models`.
"""

from subtone.pack import PackedFileError
from subtone.qtensor import QTensor
from subtone.runtime.session import Session

__all__ = ["PackedFileError", "QTensor", "Session"]
