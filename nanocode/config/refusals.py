"""Why a value or a file cannot be used, in a few words that need no knowledge of pydantic or of errno."""

from collections.abc import Mapping
from typing import Any

TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text in quotes",
    "tuple": "a list, as in [a, b]",
    "list": "a list, as in [a, b]",
    "dict": "keys with values, as in {key: value}",
    "model": "keys with values, as in {key: value}",
    "path": "a path",
    "finite": "a finite number",
}
"""How the names of pydantic's errors begin -> what would have been right."""
BOUNDS = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
COMPARED = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}


def requirement(error: Mapping[str, Any]) -> str:
    """What one of pydantic's errors asks for: `has to be at least 1`."""
    kind, context = str(error["type"]), error.get("ctx", {})
    if kind == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    if kind == "missing":
        return "has to be given"
    if kind == "extra_forbidden":
        return "is no key that is known here"
    if kind in BOUNDS:
        return f"has to be {COMPARED[BOUNDS[kind]]} {context[BOUNDS[kind]]:g}"
    if kind == "literal_error":
        return f"has to be one of {str(context['expected']).replace(' or ', ', ')}"
    if kind == "string_pattern_mismatch":
        return f"has to be of the form {context['pattern']}"
    if kind == "string_too_long":
        return f"has to have at most {context['max_length']} characters"
    if kind in ("too_short", "string_too_short"):
        return f"has to hold at least {context['min_length']}"
    if (wanted := TYPES.get(kind.partition("_")[0])) is not None:
        return f"has to be {wanted}"
    return str(error["msg"]).replace("Input should be", "has to be")


def cause(error: OSError | ValueError) -> str:
    """Why a file cannot be read or written."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return " ".join(str(error).split())
