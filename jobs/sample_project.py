"""A small project to try an agent on, when the user has brought none: of the kind that the built-in tasks train on."""

FILES = {
    "price.py": """\
import math

def add_margin(price, margin):
    return price + margin


def sum_basket(basket):
    return sum(basket)
""",
    "report.py": """\
def print_report(basket):
    return sum_basket(basket) + 3
""",
    "level.py": '''\
def count_level(level):
    """Return the numbers from 1 to level."""
    return list(range(1, level))
''',
    "test_level.py": """\
from level import *
got = count_level(4)
if got != [1, 2, 3, 4]:
    exit(f"FAIL count_level: got {got}, want [1, 2, 3, 4]")
print("ok")
""",
    "rocket.py": """\
print("rocket", 12 * 7)
""",
}
PROMPTS = (
    "Where is `add_margin` defined?",
    "What does `sum_basket` return?",
    "Rename `sum_basket` to `total_basket`.",
    "The test test_level.py fails. Fix it.",
    "Run rocket.py and tell me what it prints.",
)
