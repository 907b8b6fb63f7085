"""Pieces of C source: literals and arrays."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

LINE = 110
"""Characters of an array's line."""


def string(text: str) -> str:
    r"""Returns a C string literal: printable ASCII as it is, everything else as three octal digits of its UTF-8.

    >>> string('a"b'), string('é?')
    ('"a\\"b"', '"\\303\\251\\077"')
    """
    plain = set(range(32, 127)) - set(b'"\\?')
    parts = (chr(b) if b in plain else {34: '\\"', 92: "\\\\"}.get(b, f"\\{b:03o}") for b in text.encode())
    return f'"{"".join(parts)}"'


def float32(value: float) -> str:
    """Returns a float literal that reads back as the same float32.

    >>> float32(0.5), float32(3.0), float32(1e-20)
    ('0.5f', '3.0f', '9.99999968e-21f')
    """
    digits = f"{np.float32(value):.9g}"
    return digits + ("f" if "." in digits or "e" in digits else ".0f")


def array(declaration: str, values: NDArray[np.integer] | Iterable[int | str]) -> str:
    r"""Returns the definition of a constant array, wrapped into lines.

    >>> array("const int8_t a[3]", [1, -2, 3])
    'const int8_t a[3] = {\n    1, -2, 3\n};\n'
    """
    items = values.tolist() if isinstance(values, np.ndarray) else values
    lines, line = [], ""
    for item in items:
        word = f"{item}, "
        if len(line) + len(word) > LINE:
            lines.append(line.rstrip())
            line = ""
        line += word
    lines.append(line.rstrip(", "))
    body = "\n".join(f"    {text}" for text in lines)
    return f"{declaration} = {{\n{body}\n}};\n"


def braces(values: Iterable[object]) -> str:
    """Returns an initializer list.

    >>> braces([1, 2])
    '{1, 2}'
    """
    return "{" + ", ".join(str(value) for value in values) + "}"
