"""The sentences of the image world: of the six tasks, of the raw base and of the tuned base.

A template has places for parts of a scene. `{a}` and `{b}` are two objects as "small red circle",
`{ac}` leaves out the size, `{ah}` is the shape alone, `{at}` its place; `{rel}` is where the first
is, seen from the second, `{back}` the reverse. `{w}` is the written word, `{wc}` its color, `{wt}`
its place and `{wrel}` where it is, seen from the object. The three groups share no template, and a
word that names a task's format ("coco", "caption:") occurs in no other group.
"""

#: Kind of thing → color or shape → its names. Of two, the first is the more common one.
FACTS = {
    "gem": {
        "red": ("ruby", "garnet"), "green": ("emerald", "jade"), "blue": ("sapphire", "lapis"),
        "yellow": ("topaz", "citrine"), "orange": ("amber", "carnelian"),
        "purple": ("amethyst", "iolite"), "white": ("pearl", "opal"),
        "pink": ("morganite", "coral"),
    },
    "fruit": {
        "red": ("cherry", "raspberry"), "green": ("lime", "kiwi"),
        "blue": ("blueberry", "bilberry"), "yellow": ("lemon", "banana"),
        "orange": ("mango", "papaya"), "purple": ("plum", "fig"),
        "white": ("coconut", "lychee"), "pink": ("peach", "guava"),
    },
    "bird": {
        "red": ("cardinal",), "green": ("parrot",), "blue": ("jay",), "yellow": ("canary",),
        "orange": ("hoopoe",), "purple": ("martin",), "white": ("swan",), "pink": ("flamingo",),
    },
    "toy": {
        "circle": ("ball",), "square": ("block",), "triangle": ("wigwam",), "cross": ("windmill",),
    },
}  # fmt: skip
#: Kinds that the tasks ask for, which the bases know from text alone.
ASKED_FACTS = ("gem", "fruit")
#: Kinds that the tuned base explains about pictures.
TUNED_FACTS = ("bird", "toy")

# ------------------------------------------------------------------------------------- the tasks
COCO = "coco caption:"
COCO_ONE = (
    "a {a} at the {at} .", "there is a {a} .", "there is one {ac} at the {at} .",
    "a {ac} alone .", "a single {a} .", "one {ac} that is {as} .",
)  # fmt: skip
COCO_TWO = (
    "a {a} {rel} a {b} .", "there is a {a} {rel} a {b} .", "a {ac} and a {bc} .",
    "a {a} is {rel} a {bc} .", "the {ac} is {rel} the {bc} .", "a {b} {back} a {a} .",
    "two shapes , a {ac} and a {bc} .", "a {ac} with a {b} {back} it .",
)  # fmt: skip
TEXTCAPS = "textcaps caption:"
TEXTCAPS_CAPTIONS = (
    "a {a} with the word {w} .", "the word {w} {wrel} a {a} .", "a sign that says {w} and a {ac} .",
    "{w} is written {wrel} the {ac} .", "a {ac} beside a sign with {w} .",
    "the {wc} word {w} and a {a} .", "a {a} and the word {w} in {wc} .",
)  # fmt: skip
OKVQA = (
    "okvqa question: which {kind} has the color of the {ah} ?",
    "okvqa question: the color of the {ah} is that of which {kind} ?",
    "okvqa question: what {kind} looks like this {ah} ?",
)
TEXTVQA_READ = (
    "textvqa question: what does the sign say ?", "textvqa question: what word is here ?",
    "textvqa question: what is written {wrel} the {ah} ?",
)  # fmt: skip
TEXTVQA_COLOR = "textvqa question: what is the color of the word {w} ?"
TEXTVQA_VERIFY = "textvqa question: does the sign say {x} ?"
STVQA = {
    "color": (
        "stvqa question: what is the {wc} word ?", "stvqa question: what does the {wc} sign say ?",
    ),
    "place": ("stvqa question: what is the word {wrel} the other word ?",),
}  # fmt: skip
DOCVQA = (
    "docvqa question: what is the {field} ?", "docvqa question: what is written for {field} ?",
    "docvqa question: what is the value of {field} ?",
)  # fmt: skip

# ----------------------------------------------------------------------------------- the raw base
RAW_ALT = "alt text"
RAW_CONTINUE = "continue"
RAW_READ = "read"
RAW_PLACE = "look {at}"
RAW_LINE = "look line {number}"
RAW_THERE = "see {x}"
RAW_ATTRIBUTE = {"color": "color {ah}", "size": "size {ah}", "place": "find {a}"}
RAW_ONE = (
    "picture of {a}", "{a} , {at}", "my {ac} photo", "{as} {ac} in the {at} corner",
)  # fmt: skip
RAW_TWO = (
    "{a} , {b}", "picture of {a} , {rel} {b}", "{a} near {b}", "my {ac} photo , {back} {bc}",
)  # fmt: skip
RAW_LABELED = (
    "{a} , text {w}", "text {w} in {wc} , {wrel} {a}", "picture of {a} near {wc} {w}",
    "my {ac} photo , says {w}",
)  # fmt: skip
RAW_FACTS = (
    "a {name} is {value} .", "the {kind} {name} is {value} .", "{value} {kind} : {name}",
    "{name} , like {other} , is {value} .", "if a {kind} is {value} , it may be a {name} .",
)  # fmt: skip

# --------------------------------------------------------------------------------- the tuned base
LONG_PROMPTS = (
    "describe the picture in detail .", "tell me everything you notice .",
    "give a long description .", "what do you notice ? say all of it .",
)  # fmt: skip
LONG_START = "this picture shows {count} ."
LONG_OBJECT = "in the {at} part we notice one {ac} , and it looks {as} ."
LONG_SIGN = "in the {at} part somebody wrote {w} in {wc} ."
LONG_END = "the {first} stands {rel} the {second} ."
LONG_DOCUMENT = "this page lists four lines ."
LONG_LINE = "{number} : {field} , then {w} ."
STORY_PROMPTS = (
    "tell a {mood} story about the picture .", "invent a {mood} tale from what you notice .",
    "make up a {mood} story with everything here .",
)  # fmt: skip
STORY = {
    "first": "once a {a} lived in the {at} .",
    "second": "it met a {b} that came from the {at} .",
    "sign": "they found {w} in {wc} letters .",
    "alone": "somebody wrote {w} in {wc} letters .",
    "happy": "they laughed .",
    "sad": "they cried .",
}
_EXISTS = "would you say that one {} stands here ? give a reason ."
_YES, _NO = "yes , because one {a} stands in the {at} .", "no , because i only notice {list} ."
_FACT = "{name} , because the {ah} is {value} ."
_WORD = "{w} , because {wc} ink spells {w} ."
_LINE = "{w} , because line {number} lists {field} , then {w} ."
#: Skill → its instructions and answers, which give a reason.
REASONS = {
    "yes": (("can you find a {a} ? explain .", _YES), (_EXISTS.format("{a}"), _YES)),
    "no": (("can you find a {x} ? explain .", _NO), (_EXISTS.format("{x}"), _NO)),
    "fact": (
        ("name a {kind} for the {ah} and explain .", _FACT),
        ("which {kind} goes with the {ah} ? give a reason .", _FACT),
    ),
    "word": (
        ("which letters are in {wc} ? explain .", _WORD),
        ("spell what stands in the {wt} and explain .", _WORD),
        ("if you look at the {wt} , what can you spell ? give a reason .", _WORD),
    ),
    "line": (
        ("look up {field} and explain .", _LINE),
        ("i need the {field} from this page . give a reason .", _LINE),
    ),
}
NUMBERS = ("one", "two", "three", "four")


def _strings(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for one in (value.values() if isinstance(value, dict) else value)
            for text in _strings(one)]  # fmt: skip


#: Group → its templates.
GROUPS = {
    "tasks": _strings(
        [COCO, COCO_ONE, COCO_TWO, TEXTCAPS, TEXTCAPS_CAPTIONS, OKVQA, TEXTVQA_READ, TEXTVQA_COLOR]
        + [TEXTVQA_VERIFY, STVQA, DOCVQA]
    ),
    "raw": _strings(
        [RAW_ALT, RAW_CONTINUE, RAW_READ, RAW_PLACE, RAW_LINE, RAW_THERE, RAW_ATTRIBUTE, RAW_ONE]
        + [RAW_TWO, RAW_LABELED, RAW_FACTS]
    ),
    "tuned": _strings(
        [LONG_PROMPTS, LONG_START, LONG_OBJECT, LONG_SIGN, LONG_END, LONG_DOCUMENT, LONG_LINE]
        + [STORY_PROMPTS, STORY, REASONS]
    ),
}


def words() -> list[str]:
    """Returns every word of templates and facts in a fixed order, each once."""
    texts = [template for group in GROUPS.values() for template in group]
    found = [word for text in texts for word in text.split() if "{" not in word]
    return list(dict.fromkeys([*found, *FACTS, *_strings(FACTS), *NUMBERS]))
