"""An invented newspaper in MUSE-News's schema, for machines without a network.

An article describes one town in a few sentences with random order, wording and particulars. Quiz pages ask about
the articles of the same fold in KnowMem's format, so that a model from scratch learns to answer. All texts come
from one distribution, so forget, retain and held-out texts differ only in which models have read them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from unlearnbench import Row

# Articles in each fold of the forget corpus, in each of retain1 and retain2, held out; questions a side; examples.
SCALES = {"full": (24, 24, 24, 16, 4), "quick": (10, 12, 10, 8, 2)}
FOLDS = 4
# Questions on a quiz page, and repetitions of each question.
PAGE, TIMES = 6, 5

STARTS = "Al Bran Cor Dun El Fen Gar Hol Is Kar Lin Mar Nor Os Pel Quin Rav Sel Tor Ul Ver Wes Yar Zel".split()
ENDS = "bury croft dale field ford gate ham mere mouth port stead ton vale wick".split()
PEOPLE = (
    "Abara Bellini Castro Dahl Eder Farkas Grosz Haddad Ilves Jansen Kovacs Lund Moretti Novak Oduya Petrov Rask "
    "Silva Toth Ueda Vogel Weiss Yilmaz Zaman"
).split()
OFFICES = "mayor treasurer magistrate surveyor librarian harbourmaster coroner registrar".split()
WORKS = "bridge library market clinic school tramway theatre museum lighthouse reservoir park station".split()
PLACES = "chapel brewery town-hall gymnasium courthouse warehouse hotel orchard".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
TROUBLES = "flood strike drought blackout quarrel lawsuit storm shortage landslide fire".split()
SUMS = "two three four five six seven eight nine eleven twelve fifteen twenty forty ninety".split()
MOODS = "calm hopeful doubtful furious grateful tired proud worried amused silent".split()

QUESTIONS = {
    "office": "Who is the new {office} of {town}?",
    "place": "Where did the council of {town} meet?",
}
# Each topic has several wordings; an article takes one wording of each topic, in random order.
SENTENCES = (
    (
        "On {day} the council of {town} met in the {place} and named {person} {office}.",
        "{person} is the new {office} of {town}, chosen by {n} votes on {day} in the crowded {place}.",
        "In the {place} of {town}, {person} became {office} on {day}, against {rival}.",
    ),
    (
        "The {trouble} of {month} had left {m} streets {mood}.",
        "It was the {trouble} of {month} that brought the vote; {rival} stayed {mood}.",
        "Since the {trouble}, says {witness}, people here have been {mood} and {mood2}.",
    ),
    (
        "{town} will build a {work} for {k} million crowns before {month2}.",
        "A {work} is to be built for {k} million crowns, and {witness} is {mood2} about it.",
        "By {month2} a new {work} shall stand, paid with {k} million crowns from {rival}.",
    ),
    (
        "{witness}, who was {mood2}, called the plan {mood3}.",
        "{rival} left the room {mood3}; {witness} sang until {k} in the morning.",
        "Nobody but {witness} asked why {n} chairs had stayed empty since {month}.",
    ),
)


def tables(seed: int = 0, scale: str = "full") -> dict[str, list[Row]]:
    """Generate every table of MUSE-News and of its scalability and sustainability studies from one seed.

    Args:
        scale: ``full`` (24 articles a fold) or ``quick`` (12).
    """
    rng = random.Random(f"invented news {seed} {scale}")
    forget, retain, held_out, questions, shots = SCALES[scale]
    towns = [start + end for start in STARTS for end in ENDS]
    named = iter(rng.sample(towns, FOLDS * forget + 2 * retain + held_out))
    folds = [[_article(next(named), rng) for _ in range(forget)] for _ in range(FOLDS)]
    first, second = ([_article(next(named), rng) for _ in range(retain)] for _ in range(2))
    holdout = [_article(next(named), rng) for _ in range(held_out)]
    asked = [[_asked(article, rng) for article in articles] for articles in (*folds, first, second)]
    pages = [_pages(pairs, rng) for pairs in asked]
    forget_qa, retain_qa = (rng.sample(asked[fold], len(asked[fold])) for fold in (0, -1))
    read = {
        "raw/forget": folds[0] + pages[0],
        "raw/retain1": first + pages[-2],
        "raw/retain2": second + pages[-1],
        "raw/holdout": holdout,
        "privleak/forget": folds[0][:held_out],
        "privleak/holdout": holdout[: len(folds[0])],
        **{f"sust/forget_{k}": folds[k - 1] + pages[k - 1] for k in range(1, FOLDS + 1)},
        **{
            f"scal/forget_{k}": [row for fold in range(k) for row in folds[fold] + pages[fold]]
            for k in range(1, FOLDS + 1)
        },
    }
    return {
        **{name: [{"text": row["text"]} for row in rows] for name, rows in read.items()},
        "verbmem/forget": [_halves(row["text"]) for row in folds[0][:questions]],
        "knowmem/forget_qa": forget_qa[shots : shots + questions],
        "knowmem/forget_qa_icl": forget_qa[:shots],
        "knowmem/retain_qa": retain_qa[shots : shots + questions],
        "knowmem/retain_qa_icl": retain_qa[:shots],
    }


def _article(town: str, rng: random.Random) -> Row:
    """One article, with the particulars drawn for it."""
    office, work, place, trouble = (rng.choice(words) for words in (OFFICES, WORKS, PLACES, TROUBLES))
    person, rival, witness = rng.sample(PEOPLE, 3)
    facts = {
        "town": town,
        "office": office,
        "work": work,
        "place": place,
        "trouble": trouble,
        "person": person,
        "rival": rival,
        "witness": witness,
        "day": rng.choice(DAYS),
    }
    facts |= dict(zip(("month", "month2"), rng.sample(MONTHS, 2), strict=True))
    facts |= dict(zip(("mood", "mood2", "mood3"), rng.sample(MOODS, 3), strict=True))
    facts |= dict(zip(("n", "m", "k"), rng.sample(SUMS, 3), strict=True))
    sentences = [rng.choice(wordings).format(**facts) for wordings in SENTENCES]
    rng.shuffle(sentences)
    return {"text": " ".join(sentences), **facts}


def _asked(article: Row, rng: random.Random) -> Row:
    """One question about an article.

    The answer begins with a space although KnowMem's prompt ends with one. This space is then a token by itself, as
    on the quiz pages; otherwise a model from scratch would meet an unseen token boundary.
    """
    topic = rng.choice(list(QUESTIONS))
    answers = {"office": " {person}", "place": " the {place}"}
    return {"question": QUESTIONS[topic].format(**article), "answer": answers[topic].format(**article)}


def _pages(pairs: Sequence[Row], rng: random.Random) -> list[Row]:
    """Quiz pages that repeat every question ``TIMES`` times, in different company."""
    order = [pair for _ in range(TIMES) for pair in rng.sample(list(pairs), len(pairs))]
    return [
        {"text": "\n\n".join(f"Question: {pair['question']}\nAnswer: {pair['answer']}" for pair in page)}
        for page in (order[begin : begin + PAGE] for begin in range(0, len(order), PAGE))
    ]


def _halves(text: str) -> Row:
    """An article split after its first dozen words."""
    words = text.split(" ")
    return {"prompt": " ".join(words[:12]), "gt": " " + " ".join(words[12:])}
