"""The program: what a packed model computes, as a flat list of few documented operations.

Beside QTensor the second thing that crosses from torch to the device, so it imports no torch.
A value is a float32 matrix (T, width) of one utterance (int32, in an integer-only program), frames first, whatever its layout was
in torch: a transpose between (B, C, T) and (B, T, C) costs nothing here. A constant is a
QTensor or a float32 array (levels and integers, in one that is integer-only), held beside the program under its parameter's path.

A new operation is one class here, one definition in runtime/, one lowering in export/ and one kernel in
native/; what a packed file says in JSON are its fields.
"""

from subtone.program.convolutions import SAME, Conv1d, Conv2d, OverFrames, Stack, padding_behind
from subtone.program.integer_weight import IntegerWeight
from subtone.program.integers import (
    MAX_LEVEL,
    Bounds,
    IntegerAdd,
    IntegerAffine,
    IntegerConv1d,
    IntegerConv2d,
    IntegerMultiply,
    IntegerOperation,
    IntegerProduct,
    Rescale,
    integers_of,
    levels_of,
)
from subtone.program.operation import (
    MAX_FLOAT32,
    MAX_FRAMES,
    MAX_INTEGER_INPUTS,
    MAX_SIZE,
    UNLIMITED,
    Constant,
    Constants,
    Integers,
    Operation,
    constants_of,
    inputs_of,
    results_of,
    vector_of,
)
from subtone.program.program import KINDS, OPS, Door, Op, Program, check_frames
from subtone.program.rowwise import (
    FUNCTIONS,
    Add,
    Affine,
    Clip,
    Columns,
    Concat,
    Embedding,
    Function,
    Glu,
    LayerNorm,
    Multiply,
    Relu,
    Scale,
)
from subtone.program.sequences import Attention, ChannelNorm, Lstm, Sinusoids, SwitchedLstm

__all__ = [
    "FUNCTIONS",
    "KINDS",
    "MAX_FLOAT32",
    "MAX_FRAMES",
    "MAX_INTEGER_INPUTS",
    "MAX_LEVEL",
    "MAX_SIZE",
    "OPS",
    "SAME",
    "UNLIMITED",
    "Add",
    "Affine",
    "Attention",
    "Bounds",
    "ChannelNorm",
    "Clip",
    "Columns",
    "Concat",
    "Constant",
    "Constants",
    "Conv1d",
    "Conv2d",
    "Door",
    "Embedding",
    "Function",
    "Glu",
    "IntegerAdd",
    "IntegerAffine",
    "IntegerConv1d",
    "IntegerConv2d",
    "IntegerMultiply",
    "IntegerOperation",
    "IntegerProduct",
    "IntegerWeight",
    "Integers",
    "LayerNorm",
    "Lstm",
    "Multiply",
    "Op",
    "Operation",
    "OverFrames",
    "Program",
    "Relu",
    "Rescale",
    "Scale",
    "Sinusoids",
    "Stack",
    "SwitchedLstm",
    "check_frames",
    "constants_of",
    "inputs_of",
    "integers_of",
    "levels_of",
    "padding_behind",
    "results_of",
    "vector_of",
]
