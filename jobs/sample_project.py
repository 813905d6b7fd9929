"""A small project to try an agent on, when the user has brought none: of the kind that the built-in tasks train on."""

FILES = {
    "market.py": """\
import math

def combine_ticket(amount, margin):
    return amount + margin


def collect_parcel(journal):
    return sum(journal)
""",
    "garden.py": """\
def verify_window(basket):
    return collect_parcel(basket) + 3
""",
    "planet.py": '''\
def select_bridge(number):
    """Return the numbers from 1 to number."""
    return list(range(1, number))
''',
    "test_planet.py": """\
from planet import *
got = select_bridge(4)
if got != [1, 2, 3, 4]:
    exit(f"FAIL select_bridge: got {got}, want [1, 2, 3, 4]")
print("ok")
""",
    "rocket.py": """\
print("signal", 12 * 7)
""",
}
# In any order, each in a conversation of its own, as in training. A name is two longer words of the kind that tasks
# draw: a tiny model miscopies others, as `add_margin`.
PROMPTS = (
    "Where is `combine_ticket` defined?",
    "What does `combine_ticket` return?",
    "Rename `collect_parcel` to `gather_silver`.",
    "The test test_planet.py fails. Fix it.",
    "Run rocket.py and tell me what it prints.",
)
