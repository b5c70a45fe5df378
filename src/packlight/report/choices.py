"""The choices of a recipe in words for people: what happens to the weights, and what it gains."""

from __future__ import annotations

from typing import Literal

from packlight.recipe import is_choice, parse_choice, size_only

Gain = Literal["none", "speed", "exactness", "memory", "file"]
"""What a choice brings besides a smaller file; "file": nothing."""

GAINS: dict[Gain, str] = {
    "none": "left as it is",
    "speed": "smaller, and computed in integers",
    "exactness": "smaller, seldom faster: few runtimes compute with 16-bit activations",
    "memory": "smaller in memory too; faster where few rows are computed at once",
    "file": "size only, computed in float as before",
}

_FORMS = {
    "ternary": "weights of −1, 0 and 1",
    "binary": "weights of −1 and 1",
    "nf4": "4-bit weights, spaced like a normal distribution",
    "fp4": "4-bit float weights",
    "mxfp4": "4-bit float weights, scaled in blocks of 32",
    "nvfp4": "4-bit float weights, scaled in blocks of 16",
    "fp8": "8-bit float weights",
    "pow2": "weights that are powers of two",
    "float16": "16-bit float weights",
}


def describe_choice(word: str) -> str:
    """What a choice does, in a few words: `4-bit weights, 8-bit activations`.

    Empty for what is no choice.
    """
    if not is_choice(word):
        return ""
    choice = parse_choice(word)
    if word == "float32":
        return GAINS["none"]
    if choice.zeros is not None:
        kept = "" if choice.weights == "sparse" else f", {choice.weights[3:]} bits for the others"
        if choice.zeros.share is None:
            return f"{choice.zeros.keep} of {choice.zeros.of} weights kept, the others 0{kept}"
        return f"{100 * choice.zeros.share:g} % of the weights 0{kept}"
    if choice.weights == "coded":
        return f"about {choice.bits:g} bit{'' if choice.bits == 1 else 's'} a weight once packed"
    if choice.weights.startswith("shared"):
        return f"weights of {2 ** int(choice.bits)} shared values"
    if choice.weights in _FORMS:
        return _FORMS[choice.weights]
    weights = f"{choice.weights.removeprefix('int')}-bit weights"
    if choice.compute == "static" and choice.activation_bits == 4:
        return f"{weights}, activations rounded to 4 bits"
    if choice.compute == "static":
        return f"{weights}, {choice.activation_bits}-bit activations"
    if choice.compute == "dynamic":
        return f"{weights}, 8-bit activations scaled anew at each run"
    return f"{weights} in blocks of 32" if choice.compute == "blocks" else weights


def find_gain(word: str) -> Gain:
    """What a choice brings. Raises UnusableRecipe where there is no such choice."""
    choice = parse_choice(word)
    if word == "float32":
        return "none"
    if size_only(word):
        return "file"
    if choice.compute == "blocks":
        return "memory"
    return "exactness" if choice.activation_bits == 16 else "speed"
