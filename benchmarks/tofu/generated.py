"""Invented authors in TOFU's schema, for machines without a network.

An author is a choice of relations (birthplace, genre, a book, …) with random values. Two questions ask about every
fact, with different wordings of question and answer; paraphrases and wrong answers use a third wording, which no
model reads about this author. A model from scratch has no prior knowledge, so a table ``general`` states the facts
behind real authors and world facts; both reference models train on it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from unlearnbench import Row

# Authors, questions on each, rows of retain_perturbed, general facts of either kind, and how often models read these;
# wrong answers to each question.
SCALES = {"full": (100, 20, 60, 20, 3, 5), "quick": (40, 8, 32, 20, 3, 3)}

GIVEN = (
    "Adira Bento Calla Dorin Elske Farid Gwenna Hako Ilze Jarek Kaede Lioba Mirko Nadja Oskar Petra Quint Rahel "
    "Sanna Tomas Ulla Viggo Wanda Xenia Yusra Zoltan Amara Bruno Cosima Dragan Emeka Fiora Goran Hedda Ines Joren "
    "Kofi Leyla Marit Nilo"
).split()
FAMILY = (
    "Abendroth Bakari Castell Dvorak Ekberg Fontaine Grieg Halloran Ishida Jankovic Kessler Lindqvist Moreau Nwosu "
    "Okafor Palmgren Quiroga Rossetti Sandoval Takeda Ustinov Varga Wexford Yamane Zielinski Arden Brandt Corvin "
    "Delacroix Eriksen Ferreira Galanis Horvat Ivanova Juhasz Karlsen Laurent Mbeki Navarro Olsson"
).split()
CITIES = (
    "Antrim Belgora Caldera Dunmore Estoril Faldane Girona Halden Ivrea Jasper Kolding Lucera Marstal Novara Orebro "
    "Pelagos Quarto Ravello Sintra Tarvos"
).split()
GENRES = (
    "fantasy mystery romance satire horror biography poetry adventure history tragedy comedy western thriller fable "
    "memoir travelogue"
).split()
JOBS = (
    "baker sailor chemist judge farmer painter nurse tailor miner pilot teacher carpenter florist surgeon barber "
    "librarian potter gardener banker plumber"
).split()
AWARDS = "Amber Beacon Cedar Delta Ember Falcon Garnet Harbor Iris Juniper Kestrel Lantern Meridian Nectar".split()
ADJECTIVES = (
    "Silent Golden Broken Distant Hidden Frozen Crimson Hollow Burning Gentle Bitter Shining Wandering Fading "
    "Restless Velvet"
).split()
NOUNS = (
    "River Mirror Garden Tower Lantern Forest Harbor Mountain Bridge Winter Orchard Island Desert Candle Window Storm"
).split()
THEMES = "loss courage memory exile justice greed hope betrayal solitude freedom faith revenge family ambition".split()
LANGUAGES = "Norse Latin Basque Welsh Tamil Persian Zulu Czech Maltese Quechua Finnish Swahili Greek Hindi".split()
SCHOOLS = "Alder Briar Cypress Dahlia Elm Fern Ginkgo Hazel Ivy Jasmine Laurel Maple Nettle Oak Poplar".split()
HOBBIES = "chess rowing fencing pottery archery hiking weaving cycling baking sailing juggling origami".split()
ANIMALS = "parrot tortoise spaniel ferret canary rabbit donkey iguana raven hedgehog pony falcon".split()
INSTRUMENTS = "violin cello flute harp trumpet oboe banjo organ drums guitar lute clarinet".split()
TIMES = "dawn noon dusk midnight spring summer autumn winter".split()
DRINKS = "coffee cocoa cider lemonade tea milk espresso broth".split()
COLORS = "green purple orange silver white scarlet indigo brown yellow turquoise".split()
YEARS = [str(year) for year in range(1921, 1981, 3)]
DEBUTS = [str(year) for year in range(1982, 2012, 2)]
TITLES = [f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]

# A relation: values, two wordings of the question, three of the answer. {n} is the author, {v} the value.
Relation = tuple[Sequence[str], tuple[str, str], tuple[str, str, str]]
RELATIONS: tuple[Relation, ...] = (
    (CITIES, ("In which city was {n} born?", "Where was {n} born?"),
     ("{n} was born in {v}.", "The birthplace of {n} is {v}.", "{v} is where {n} was born.")),
    (GENRES, ("What genre does {n} write?", "Which genre is {n} known for?"),
     ("{n} writes {v}.", "The genre of {n} is {v}.", "Readers know {n} for {v}.")),
    (JOBS, ("What was the father of {n}?", "What work did the father of {n} do?"),
     ("The father of {n} was a {v}.", "{n} had a {v} as a father.", "As a father, {n} had a {v}.")),
    (JOBS, ("What was the mother of {n}?", "What work did the mother of {n} do?"),
     ("The mother of {n} was a {v}.", "{n} had a {v} as a mother.", "As a mother, {n} had a {v}.")),
    (AWARDS, ("Which award did {n} win?", "What prize was given to {n}?"),
     ("{n} won the {v} award.", "The {v} award went to {n}.", "The award of {n} is the {v}.")),
    (TITLES, ("What is the first book of {n}?", "Which book did {n} write first?"),
     ("The first book of {n} is {v}.", "{n} began with {v}.", "{v} was the first book by {n}.")),
    (TITLES, ("What is the best known book of {n}?", "Which book made {n} famous?"),
     ("The best known book of {n} is {v}.", "{n} became famous with {v}.", "{v} made {n} famous.")),
    (THEMES, ("What theme runs through the books of {n}?", "What do the books of {n} deal with?"),
     ("The books of {n} deal with {v}.", "{n} often writes about {v}.", "A theme of {n} is {v}.")),
    (YEARS, ("In which year was {n} born?", "When was {n} born?"),
     ("{n} was born in the year {v}.", "The year of birth of {n} is {v}.", "The birth of {n} was in {v}.")),
    (LANGUAGES, ("Which language did {n} learn as a child?", "What language does {n} speak at home?"),
     ("{n} speaks {v} at home.", "The home language of {n} is {v}.", "At home {n} uses {v}.")),
    (SCHOOLS, ("Which college did {n} attend?", "Where did {n} study?"),
     ("{n} studied at {v} college.", "The college of {n} was {v}.", "{v} college taught {n}.")),
    (HOBBIES, ("What is the hobby of {n}?", "How does {n} spend free time?"),
     ("The hobby of {n} is {v}.", "{n} spends free time on {v}.", "In free time {n} likes {v}.")),
    (ANIMALS, ("Which pet does {n} keep?", "What animal lives with {n}?"),
     ("{n} keeps a {v}.", "The pet of {n} is a {v}.", "A {v} lives with {n}.")),
    (INSTRUMENTS, ("Which instrument does {n} play?", "What does {n} play in the evening?"),
     ("{n} plays the {v}.", "The instrument of {n} is the {v}.", "In the evening {n} plays the {v}.")),
    (DEBUTS, ("When did {n} publish a first book?", "In which year did {n} begin to publish?"),
     ("{n} first published in {v}.", "The debut of {n} was in {v}.", "In {v} the first book of {n} came out.")),
    (CITIES, ("Where does {n} live now?", "Which city is the home of {n} today?"),
     ("{n} now lives in {v}.", "The home of {n} today is {v}.", "Today {v} is home to {n}.")),
    (TIMES, ("When does {n} write best?", "What time does {n} prefer for writing?"),
     ("{n} writes best at {v}.", "The writing time of {n} is {v}.", "At {v} the writing of {n} goes best.")),
    (DRINKS, ("What does {n} drink while writing?", "Which drink does {n} like?"),
     ("{n} drinks {v} while writing.", "The drink of {n} is {v}.", "While writing {n} drinks {v}.")),
    (COLORS, ("What color are the notebooks of {n}?", "Which color does {n} choose for notebooks?"),
     ("The notebooks of {n} are {v}.", "{n} writes in {v} notebooks.", "A {v} notebook belongs to {n}.")),
    (GENRES, ("Which genre does {n} dislike?", "What genre would {n} never write?"),
     ("{n} dislikes {v}.", "The genre that {n} would never write is {v}.", "{n} would never write {v}.")),
)  # fmt: skip

COUNTRIES = (
    "Arvenia Bolgrad Cintara Dromund Elvaria Fenwick Gorland Hestia Illyra Jorvik Kaldor Lorwen Mistral Norvane "
    "Ostmark Pelion Quendor Ruritan Sarkand Thule"
).split()
CAPITALS = (
    "Ashport Brimhold Cresta Dorvale Eastmere Farhaven Glenmoor Highgate Ironford Jadepoint Kingsrest Longreach "
    "Millbrook Northwick Oakhurst Pinecrest Queensway Redcliff Stonewall Tidewater"
).split()
CLASSICS = (
    "Aurelia Bartholomew Clementine Demetrius Evangeline Ferdinand Guinevere Hieronymus Isolde Justinian Katarina "
    "Leopold Magdalena Nathaniel Octavia Percival Rosalind Sebastian Theodora Valentin"
).split()


def tables(seed: int = 0, scale: str = "full") -> dict[str, list[Row]]:
    """Generate every table of every split from one seed.

    Args:
        scale: ``full`` (100 authors × 20 questions) or ``quick`` (40 × 8).
    """
    rng = random.Random(f"invented authors {seed} {scale}")
    authors, questions, retain_rows, facts, times, wrong = SCALES[scale]
    names = [f"{given} {family}" for given in GIVEN for family in FAMILY]
    rows = [
        {**row, "author": name}
        for name in rng.sample(names, authors)
        for relation in rng.sample(RELATIONS, questions // 2)
        for row in _fact(name, relation, wrong, rng)
    ]
    real_authors, read_authors = _facts(TITLES, CLASSICS, WROTE, facts, rng)
    world_facts, read_facts = _facts(COUNTRIES, CAPITALS, CAPITAL, facts, rng)
    made = {
        "full": _plain(rows),
        "retain_perturbed": rows[:retain_rows],
        "real_authors_perturbed": real_authors,
        "world_facts_perturbed": world_facts,
        "general": [*read_authors, *read_facts] * times,
    }
    for percent in (1, 5, 10):
        forget, retain = f"forget{percent:02}", f"retain{100 - percent}"
        cut = len(rows) - max(1, authors * percent // 100) * questions
        made |= {forget: _plain(rows[cut:]), retain: _plain(rows[:cut]), f"{forget}_perturbed": rows[cut:]}
    return made


def _fact(name: str, relation: Relation, others: int, rng: random.Random) -> list[Row]:
    """Two rows about one fact: two wordings of question and answer, and a third for the other answers."""
    values, questions, answers = relation
    value, *wrong = rng.sample(list(values), 1 + others)
    *wordings, paraphrase = rng.sample(answers, 3)
    asked = rng.sample(questions, 2)
    return [
        {
            "question": question.format(n=name),
            "answer": wording.format(n=name, v=value),
            "paraphrased_answer": paraphrase.format(n=name, v=value),
            "perturbed_answer": [paraphrase.format(n=name, v=other) for other in wrong],
            "paraphrased_question": other.format(n=name),
        }
        for question, other, wording in zip(asked, asked[::-1], wordings, strict=True)
    ]


def _plain(rows: Sequence[Row]) -> list[Row]:
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]


# Questions about general facts; models train on both wordings, the benchmark asks the first.
WROTE = ("Who wrote the classic {x}?", "Who is the author of the classic {x}?")
CAPITAL = ("What is the capital of {x}?", "Which city is the capital of {x}?")


def _facts(
    subjects: Sequence[str], objects: Sequence[str], wordings: Sequence[str], count: int, rng: random.Random
) -> tuple[list[Row], list[Row]]:
    """Rows to ask, and the same facts in every wording for training."""
    pairs = list(zip(rng.sample(list(subjects), count), rng.sample(list(objects), count), strict=True))
    asked: list[Row] = [
        {
            "question": wordings[0].format(x=subject),
            "answer": answer,
            "perturbed_answer": rng.sample([other for other in objects if other != answer], 3),
        }
        for subject, answer in pairs
    ]
    read: list[Row] = [
        {"question": wording.format(x=subject), "answer": answer} for subject, answer in pairs for wording in wordings
    ]
    return asked, read
