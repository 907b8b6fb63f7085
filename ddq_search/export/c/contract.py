"""The deployment contract: everything a firmware must know to feed the network and to read what it answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ddq_search.export.c.text import array, float32, string
from ddq_search.integer.program import IntegerProgram, Tensor
from ddq_search.packing import activation_bytes
from ddq_search.precision import storage_bits


@dataclass(frozen=True)
class Contract:
    """What the data and the task say about a network's input and output.

    Attributes:
        input_meaning: what an input code is, in a sentence.
        output_meaning: what an output value is, in a sentence.
        classes: class names by index, empty where there are none.
    """

    input_meaning: str = "real input = MODEL_INPUT_SCALE * (code - MODEL_INPUT_ZERO_POINT)"
    output_meaning: str = "real output = MODEL_OUTPUT_SCALE * (code - MODEL_OUTPUT_ZERO_POINT)"
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """What a network takes on the device (bytes)."""

    arena_bytes: int
    constants_bytes: int
    constants_sha256: str


def header_source(program: IntegerProgram, contract: Contract, sizes: Sizes) -> str:
    """Returns the text of ``model.h``."""
    lines = [
        "/* Deployment contract: how to feed this network, how to read its answer, what it takes.",
        " *",
        " * Codes are unsigned. Those of fewer than 8 bits are packed along the flat index, lowest bits first. Images",
        " * lie channel-last: [H, W, C]. Normalisation by mean and deviation is folded into scale and zero point.",
        " */",
        "#ifndef MODEL_H",
        "#define MODEL_H",
        "",
        "#include <stdint.h>",
        "",
        '#include "ddq_steps.h"',
        "",
    ]
    lines += _tensor("INPUT", program.input, contract.input_meaning)
    lines += _tensor("OUTPUT", program.output, contract.output_meaning)
    lines += [
        f"#define MODEL_ARENA_BYTES {sizes.arena_bytes}",
        f"#define MODEL_CONSTANTS_BYTES {sizes.constants_bytes}",
        f"#define MODEL_CONSTANTS_SHA256 {string(sizes.constants_sha256)}",
        f"#define MODEL_ARITHMETIC {string(program.arithmetic)}",
        f"#define MODEL_POLICY_SHA256 {string(program.policy_sha256)}",
        f"#define MODEL_TENSORS {len(program.steps)}",
        f"#define MODEL_CLASSES {len(contract.classes)}",
        "",
    ]
    if contract.classes:
        lines += ["extern const char *const model_classes[MODEL_CLASSES];", ""]
    return "\n".join(lines) + _FUNCTIONS


def classes_source(contract: Contract) -> str:
    """Returns the definition of the class names, nothing where there are none."""
    if not contract.classes:
        return ""
    return "\n" + array("const char *const model_classes[MODEL_CLASSES]", [string(name) for name in contract.classes])


def _tensor(word: str, tensor: Tensor, meaning: str) -> list[str]:
    elements = math.prod(tensor.shape)
    names = {1: ("FEATURES",), 2: ("CHANNELS", "POSITIONS"), 3: ("CHANNELS", "HEIGHT", "WIDTH")}.get(len(tensor.shape))
    named = names or tuple(f"DIMENSION_{i}" for i in range(len(tensor.shape)))
    return [
        f"#define MODEL_{word}_NAME {string(tensor.name)}",
        f"#define MODEL_{word}_MEANING {string(meaning)}",
        *(f"#define MODEL_{word}_{name} {size}" for name, size in zip(named, tensor.shape, strict=True)),
        f"#define MODEL_{word}_CODES {elements}",
        f"#define MODEL_{word}_BITS {storage_bits(tensor.grid.bits)}",
        f"#define MODEL_{word}_BYTES {activation_bytes(elements, tensor.grid.bits)}",
        f"#define MODEL_{word}_SCALE {float32(tensor.grid.scale)}",
        f"#define MODEL_{word}_ZERO_POINT {tensor.grid.zero_point}",
        "",
    ]


_FUNCTIONS = """\
/* Called when a tensor is complete. `step->name`, `step->elements` and `step->out_bits` say what `codes` holds; `index`
 * counts tensors from 0. */
typedef void model_observer(void *context, uint32_t index, const ddq_step *step, const uint8_t *codes);

/* Where the input's codes may be written and the output's codes are found: the arena itself, no copy. Valid before
 * model_run (input) and until the next run (output). */
uint8_t *model_input(void);
const uint8_t *model_output(void);

/* Runs the network once. `input` is copied into the arena unless it is model_input(); `output` may be NULL. */
void model_run(const uint8_t *input, uint8_t *output);

/* The same, and tells of every tensor. */
void model_run_observed(const uint8_t *input, uint8_t *output, model_observer *observer, void *context);

/* The schedule: `model_steps[0 .. model_step_count - 1]`, movements without a name among them. */
extern const ddq_step model_steps[];
extern const uint32_t model_step_count;

/* Runs one step over the arena: for benchmarks. */
void model_run_step(const ddq_step *step);

#endif
"""
