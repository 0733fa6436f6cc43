"""One or two turns of a dialogue about one thing. A turn is (what is asked, what is said)."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from corpus import frames, invented
from corpus.facts import Answer, Facts, Topic
from corpus.phrasing import Slots, as_typed, capitalised, expand

Turn = tuple[str, str]
Maker = Callable[[Random], list[Turn]]


def _definition(topic: Topic) -> str:
    return f"{capitalised(topic.sentence)} {topic.more[0]}"


def _frame(frame: str, rng: Random, x: str, y: str = "") -> str:
    return as_typed(frame.format(x=x, X=capitalised(x), y=y), rng)


class Turns:
    """Makes turns of every kind from the facts; holds no state but them."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        declined = facts.declined
        self.slots: Slots = {
            "x": self._thing,
            "x2": self._thing,
            "verb": lambda rng: rng.choice(declined.verbs),
            "place": lambda rng: rng.choice(declined.places),
            "word": lambda rng: rng.choice(declined.words),
            "name": invented.name,
            "year": lambda rng: str(rng.randrange(1900, 2030)),
            "num": invented.number,
            "gibberish": invented.gibberish,
        }

    def _thing(self, rng: Random) -> str:
        """Return something outside the field: known things, plain words, invented words."""
        declined = self.facts.declined
        roll = rng.random()
        if roll < 0.5:
            return rng.choice(declined.things)
        word = rng.choice(declined.words)
        if roll < 0.75:
            other = rng.choice(declined.words)
            place = rng.choice(declined.places)
            return rng.choice(
                (f"a {word}", f"{word}s", f"{word} {other}s", f"the {word} of {place}")
            )
        if roll < 0.80:
            return rng.choice((rng.choice(declined.places), f"how to {rng.choice(declined.verbs)}"))
        invented_word = invented.pseudo_word(rng)
        return rng.choice(("", "a ", "the ", "your ")) + (
            invented_word if rng.random() < 0.7 else capitalised(invented_word)
        )

    def define(self, rng: Random) -> list[Turn]:
        """Ask what a topic is; sometimes briefly, sometimes with a wish for more."""
        topic = rng.choice(self.facts.topics)
        x = rng.choice(topic.names) if rng.random() < 0.8 else topic.names[0]
        if rng.random() < 0.08:
            turns = [(_frame(rng.choice(frames.BRIEF), rng, x), capitalised(topic.sentence))]
            rest = topic.more
        else:
            turns = [(_frame(rng.choice(frames.DEFINE), rng, x), _definition(topic))]
            rest = topic.more[1:]
        while rng.random() < 0.12:
            asked = as_typed(rng.choice(frames.MORE), rng, fillers=False)
            turns.append((asked, rest[0] if rest else frames.NOTHING_MORE))
            rest = rest[1:]
        return turns

    def compare(self, rng: Random) -> list[Turn]:
        """Ask for the difference between two topics."""
        one, two = rng.sample(self.facts.topics, 2)
        x, y = rng.choice(one.names), rng.choice(two.names)
        asked = _frame(rng.choice(frames.COMPARE), rng, x, y)
        return [(asked, f"{capitalised(one.sentence)} In contrast, {two.sentence}")]

    def _answer(self, answers: tuple[Answer, ...], rng: Random) -> list[Turn]:
        # The square root keeps answers with few phrasings in sight of those with many.
        weights = [len(answer.ask) ** 0.5 for answer in answers]
        answer = rng.choices(answers, weights)[0]
        asked = as_typed(expand(rng.choice(answer.ask), rng, self.slots), rng)
        turns = [(asked, rng.choice(answer.say))]
        if answers is self.facts.cloister and rng.random() < 0.04:
            turns.append(
                (as_typed(rng.choice(frames.MORE), rng, fillers=False), frames.NOTHING_MORE)
            )
        return turns

    def cloister(self, rng: Random) -> list[Turn]:
        """Ask something about Cloister."""
        return self._answer(self.facts.cloister, rng)

    def chat(self, rng: Random) -> list[Turn]:
        """Make small talk, or ask for what the model politely refuses."""
        return self._answer(self.facts.chat, rng)

    def decline(self, rng: Random) -> list[Turn]:
        """Ask about something outside the field."""
        declined = self.facts.declined
        pattern = rng.choice(declined.frames if rng.random() < 0.6 else declined.questions)
        slots = self.slots
        if pattern in {"{x}", "{x}?"}:
            # A bare invented word is gibberish, which has its own answer.
            slots = {**slots, "x": lambda rng: rng.choice(declined.things)}
        return [(as_typed(expand(pattern, rng, slots), rng), declined.answer)]

    def repeat(self, rng: Random) -> list[Turn]:
        """Ask to say something again, word for word."""
        words = self.facts.declined.words
        makers: tuple[Callable[[], str], ...] = (
            lambda: invented.marker(rng),
            lambda: invented.marker(rng),
            lambda: " ".join(rng.sample(words, rng.randrange(1, 5))),
            lambda: " ".join(invented.name(rng) for _ in range(rng.randrange(1, 3))),
            lambda: f"{rng.choice(words)} {invented.number(rng)} {invented.pseudo_word(rng)}",
            lambda: rng.choice(self.facts.topics).is_text,
        )
        text = rng.choice(makers)()
        return [(rng.choice(frames.REPEAT) + text, text)]

    def recall(self, rng: Random) -> list[Turn]:
        """Tell a fact and ask for it later, or ask for one that was never told."""
        facts = list(self.facts.recall)
        rng.shuffle(facts)
        asked, other = facts[0], facts[1]
        values = {
            "name": invented.name(rng),
            "code": rng.choice((invented.number(rng), invented.marker(rng))),
            "city": rng.choice(self.facts.declined.places),
        }
        if rng.random() < 0.2:
            values = {kind: value.lower() for kind, value in values.items()}
        told = [asked] if rng.random() < 0.7 else []
        if rng.random() < 0.35:
            told.append(other)
        turns: list[Turn] = []
        for fact in told:
            value = values[fact.kind]
            tell = as_typed(rng.choice(fact.tell), rng, fillers=False)
            # The value itself is left as it is, so that the answer can be a faithful copy.
            turns.append((tell.replace("{V}", "{v}").format(v=value), fact.reply.format(v=value)))
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            turns += rng.choice((self.cloister, self.define, self.chat))(rng)
        question = as_typed(rng.choice(asked.ask), rng, fillers=False)
        known = asked in told
        turns.append(
            (question, asked.answer.format(v=values[asked.kind]) if known else asked.unknown)
        )
        return turns

    def weighted(self) -> tuple[tuple[Maker, float], ...]:
        """Return every maker with its share of all dialogues."""
        return (
            (self.cloister, 34),
            (self.define, 24),
            (self.compare, 4),
            (self.chat, 14),
            (self.decline, 14),
            (self.repeat, 4),
            (self.recall, 6),
        )


def named_makers(turns: Turns) -> dict[str, Maker]:
    """Return the makers by name, for an evaluation class by class."""
    return {maker.__name__: maker for maker, _ in turns.weighted()}
