"""Names for generated code: words, invented words and random letters, split so that no held-out name was trained on.

A model that has met a word in training can know it; one that has not has to copy it. So a third of the training names
are words that nobody has met, and the held-out names are words that no training name contains.
"""

import builtins
import hashlib
import keyword
import random
import sys
from collections.abc import Callable
from typing import Literal

Split = Literal["train", "held-out"]

HELD_OUT_SHARE = 0.25
# Of the training names: the rest are words of the list below.
INVENTED_SHARE = 0.3
RANDOM_SHARE = 0.12

WORDS = tuple(
    """
    account action address agent album alert alpha amount anchor angle answer apple area arrow asset author badge
    bakery balance banner barrel basket batch battery beacon belt bench binary bird block board bonus border bottle
    bottom bowl branch brick bridge bright broker bronze bucket budget buffer button cabin cable cactus calendar camera
    candle canvas carbon cargo carpet castle catalog cedar center chain chair channel charge chart chest circle
    citizen clock cloud cluster coast coffee color column comet company copper coral corner cotton counter country
    course credit cricket crown crystal cursor curve customer daily damage dealer debt delay delta depth desert design
    detail device dinner dollar domain door dragon drawer driver eagle earth echo edge editor eight elbow element
    energy engine entry equal estate event expense fabric factor family farmer feather fence fiber field figure filter
    finger flag flame flight floor flower forest fossil fox frame freight friend frost fruit fuel galaxy garage garden
    gate ghost glacier glass globe gold grain grape graph gravity green grid ground group guard guest guitar hammer
    handle harbor hash hawk height hero hill history holiday honey horizon horse hotel hour house hunter icon image
    income index inner insect island ivory jacket journal judge juice jungle junior kernel kettle kitchen knight label
    ladder lake lamp laser launch layer leader leaf ledger lemon lesson letter level library light limit linen lion
    liquid loan lobby local locker logic lumber lunar machine magnet mailbox maple marble margin market mask master
    matrix meadow member memory mentor mercury metal meter middle mineral minute mirror mobile module moment monkey
    month moon motion motor mountain museum music narrow nation needle network night noble nodes normal north novel
    number oasis object ocean offer office olive onion orange orbit order organ origin outer oven owner oxygen packet
    page palace panel paper parcel parent park partner patch path payment peak pencil people pepper period phase photo
    piano picture pigeon pilot pine pixel planet plant plate player pocket poem point policy portal postal potato
    powder power prefix price prince profit project proof public pulse purple puzzle quarter queen queue quick quota
    rabbit radar radio rain ranch random rapid rate ratio reader record region rent report result reward ribbon ring
    river road robot rocket roof room root rose rover royal rubber ruler safety sail salad salary salmon sample sand
    scale scene school score scout screen script season second secret sector seed segment seller senior sensor series
    server shadow shape share sheep shelf shell shield ship shop shore signal silver simple single sister sketch slice
    small smoke snow social socket solar south space spark speed spider spiral sport spring square stable staff stage
    stamp star state station steam steel stock stone store storm stream street studio style sugar summer sunset supply
    surface switch symbol system tablet target temple tennis theater theory thread ticket tiger timber token tomato
    tower track trade traffic trail train travel treaty tree trial tunnel turbo turtle twin uncle union update upper
    urban valley value vapor vector velvet vendor venue vessel victor video village violet vision visitor vital voice
    volume voyage wagon walnut water weather wedding weekly weight whale wheel width willow window winter wizard wolf
    wonder worker writer yard yellow zebra zero zone
    """.split()
)
VERBS = tuple(
    """
    apply build check clean close collect combine compute convert copy count create decode delete drop encode extract
    fetch fill find fold format gather handle join keep load lower make map mark merge move open parse pick plan print
    push rank read reduce remove render reset save scan select send shift sort split start stop store strip sum swap
    take trim update verify wrap
    """.split()
)
RESERVED = {*keyword.kwlist, *dir(builtins), *sys.stdlib_module_names}
_CONSONANTS, _VOWELS, _LETTERS = "bdfgklmnprstvz", "aeiou", "abcdefghijklmnopqrstuvwxyz"


def is_held_out(word: str) -> bool:
    """Whether a word belongs to the held-out split, by its hash."""
    return hashlib.blake2b(word.encode(), digest_size=1).digest()[0] < 256 * HELD_OUT_SHARE


_BY_SPLIT = {
    split: (
        tuple(word for word in WORDS if is_held_out(word) == held),
        tuple(word for word in VERBS if is_held_out(word) == held),
    )
    for split, held in (("train", False), ("held-out", True))
}


class Namer:
    """Draws names that do not repeat within one task."""

    def __init__(self, dice: random.Random, split: Split) -> None:
        self._dice, self._split = dice, split
        self._used: set[str] = set()

    def word(self) -> str:
        """One noun, an invented word or random letters."""
        return self._fresh(self._word)

    def function(self) -> str:
        """`verb_noun`, or sometimes one word or three."""
        return self._fresh(self._function)

    def file(self, extension: str = ".py") -> str:
        """A file name, one in three in a folder."""
        name = self.word() + extension
        return f"{self.word()}/{name}" if self._dice.random() < 1 / 3 else name

    def _fresh(self, draw: Callable[[], str]) -> str:
        """A name that contains no other name of the task, and that Python has no other use for."""
        while (name := draw()) in RESERVED or any(name in other or other in name for other in self._used):
            pass
        self._used.add(name)
        return name

    def _word(self) -> str:
        nouns, _ = _BY_SPLIT[self._split]
        kind = self._dice.random()
        if self._split == "held-out" or kind > INVENTED_SHARE + RANDOM_SHARE:
            return self._dice.choice(nouns)
        if kind < RANDOM_SHARE:
            return "".join(self._dice.choices(_LETTERS, k=self._dice.randint(3, 6)))
        syllables = self._dice.randint(2, 3)
        word = "".join(self._dice.choice(_CONSONANTS) + self._dice.choice(_VOWELS) for _ in range(syllables))
        return self._word() if is_held_out(word) and word in WORDS else word

    def _function(self) -> str:
        _, verbs = _BY_SPLIT[self._split]
        kind = self._dice.random()
        if kind < 0.15:
            return self._word()
        if kind < 0.9:
            return f"{self._dice.choice(verbs)}_{self._word()}"
        return f"{self._dice.choice(verbs)}_{self._word()}_{self._word()}"
