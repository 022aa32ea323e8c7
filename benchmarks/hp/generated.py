"""An invented novel, and other invented prose, for machines without a network.

The prose to retain names the tools of trades and pairs of opposites. The local tasks in ``tasks`` ask about these;
their texts are prose from the same source that no model has read.
"""

from __future__ import annotations

import random

from unlearnbench import Row

# Sentences in the novel, sentences in the prose to retain, repetitions of each fact in that prose.
SCALES = {"full": (420, 240, 10), "quick": (84, 80, 12)}

HEROES = "Ashgrove Belwick Corrigan Dunmoor Everly Fairfax Greyling Hartwood".split()
PLACES = "tower cellar orchard ferry market abbey mill harbour attic forest bridge courtyard".split()
THINGS = "key lantern letter ring map mirror coin feather clock ribbon knife bell".split()
HOURS = "dawn noon dusk midnight breakfast supper".split()
FEELINGS = "trembling laughing weeping whistling shivering humming".split()
COLOURS = "grey golden scarlet blue silver green black ivory".split()
NOVEL = (
    "At {hour} {hero} carried the {colour} {thing} to the {place}, {feeling}.",
    "{hero} hid a {colour} {thing} in the {place} before {other} came {feeling}.",
    "Nobody in the {place} had seen {hero} since {hour}, and the {thing} was gone.",
    "“Where is the {thing}?” asked {other}, {feeling} by the {colour} door of the {place}.",
    "{other} found the {colour} {thing} at {hour} and gave it to {hero} in the {place}.",
    "The {place} was {colour} at {hour}, and {hero} went on {feeling} with the {thing}.",
)

TRADES = {
    "baker": "flour",
    "smith": "iron",
    "tailor": "cloth",
    "potter": "clay",
    "mason": "stone",
    "weaver": "wool",
    "joiner": "timber",
    "glazier": "glass",
    "brewer": "barley",
    "printer": "ink",
    "tanner": "leather",
    "florist": "roses",
}
OPPOSITES = {
    "hot": "cold",
    "tall": "short",
    "early": "late",
    "loud": "quiet",
    "heavy": "light",
    "wet": "dry",
    "rich": "poor",
    "old": "young",
    "open": "closed",
    "sweet": "sour",
    "fast": "slow",
    "full": "empty",
}
WEATHER = "rain wind frost fog sunshine snow thunder drizzle".split()
BEASTS = "horse goat goose cow hound donkey cat hen".split()
PROSE = (
    "There was {weather} in the morning and {weather2} later, and the {beast} stayed {word}.",
    "The {trade} sold a {beast} to the {trade2} while the day was {word}.",
    "A {word} {beast} followed the {trade} home through the {weather}.",
    "When the {weather} came, the {trade} and the {trade2} shared a {word} meal.",
)


def tables(seed: int = 0, scale: str = "full") -> dict[str, list[Row]]:
    """Generate a book and the text to retain from one seed.

    Args:
        scale: ``full`` (a book of 420 sentences) or ``quick`` (110).
    """
    rng = random.Random(f"invented novel {seed} {scale}")
    sentences, others, repeats = SCALES[scale]
    book = [_novel(rng) for _ in range(sentences)]
    retain = [prose(rng) for _ in range(others)] + [fact for fact in facts() for _ in range(repeats)]
    rng.shuffle(retain)
    return {"book": [{"text": " ".join(book)}], "retain": [{"text": " ".join(retain)}]}


def facts() -> list[str]:
    """Sentences that state the facts of the local tasks."""
    trades = [f"A {trade} works with {stuff}." for trade, stuff in TRADES.items()]
    return trades + [f"The opposite of {word} is {other}." for word, other in OPPOSITES.items()]


def prose(rng: random.Random) -> str:
    """A sentence of village life."""
    weather, weather2 = rng.sample(WEATHER, 2)
    trade, trade2 = rng.sample(list(TRADES), 2)
    return rng.choice(PROSE).format(
        weather=weather,
        weather2=weather2,
        trade=trade,
        trade2=trade2,
        beast=rng.choice(BEASTS),
        word=rng.choice([*OPPOSITES, *OPPOSITES.values()]),
    )


def _novel(rng: random.Random) -> str:
    hero, other = rng.sample(HEROES, 2)
    return rng.choice(NOVEL).format(
        hero=hero,
        other=other,
        place=rng.choice(PLACES),
        thing=rng.choice(THINGS),
        hour=rng.choice(HOURS),
        feeling=rng.choice(FEELINGS),
        colour=rng.choice(COLOURS),
    )
