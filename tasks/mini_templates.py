"""The instructions for training the mini world's tuned base, by skill.

A template is an instruction with fields for the texts, and its answers in the order of the skill's
labels. Some ask for the opposite in nearly the same words, so the model must read the instruction.
Mini-GLUE's formats do not occur here, but each of its labels does as an answer: adapting the input
cannot teach the decoder words that the base has never learned to produce.
"""

_NO_YES, _YES_NO, _FALSE_TRUE = ("no", "yes"), ("yes", "no"), ("false", "true")
_BAD_GOOD, _WRONG_CORRECT = ("bad", "good"), ("wrong", "correct")
SENTIMENT, ACCEPTABILITY = ("negative", "positive"), ("unacceptable", "acceptable")
EQUIVALENT, DUPLICATE = ("not_equivalent", "equivalent"), ("not_duplicate", "duplicate")
ENTAILMENT = ("entailment", "not_entailment")
INFERENCE = ("entailment", "neutral", "contradiction")
SCORES = tuple(f"{i}.0" for i in range(6))
_NUMBERS = ("zero", "one", "two", "three", "four", "five")

#: Skill → its templates. Labels are those of the `mini_glue` task for the same skill.
TEMPLATES = {
    "sentiment": (
        ("review : {} sentiment ?", SENTIMENT),
        ("is the opinion positive or negative ? {}", SENTIMENT),
        ("{} name the feeling of the text", SENTIMENT),
        ("what does the author think ? {}", SENTIMENT),
        ("opposite feeling : {}", SENTIMENT[::-1]),
        ("true or false : the author is pleased . {}", _FALSE_TRUE),
        ("good or bad ? {}", _BAD_GOOD),
        ("{} rate it", _BAD_GOOD),
        ("does the author like it ? {}", _NO_YES),
        ("{} is this praise ?", _NO_YES),
        ("does the author complain ? {}", _YES_NO),
        ("how happy is the author ? {}", ("unhappy", "happy")),
    ),
    "acceptability": (
        ("grammar : {} verdict ?", ACCEPTABILITY),
        ("is the text acceptable or unacceptable english ? {}", ACCEPTABILITY),
        ("{} name the grammar of the text", ACCEPTABILITY),
        ("what does the editor think ? {}", ACCEPTABILITY),
        ("opposite grammar : {}", ACCEPTABILITY[::-1]),
        ("how good is the grammar ? {}", _BAD_GOOD),
        ("correct or wrong ? {}", _WRONG_CORRECT),
        ("{} check it", _WRONG_CORRECT),
        ("would an editor keep it ? {}", _NO_YES),
        ("{} is this english ?", _NO_YES),
        ("does the text have a mistake ? {}", _YES_NO),
        ("true or false : the grammar is fine . {}", _FALSE_TRUE),
    ),
    "paraphrase": (
        ("compare the texts : {} / {}", EQUIVALENT),
        ("{} / {} equivalent or not_equivalent ?", EQUIVALENT),
        ("do both say the same ? {} / {}", _NO_YES),
        ("{} / {} is the meaning different ?", _YES_NO),
        ("same or different ? {} / {}", ("different", "same")),
        ("true or false : {} means {}", _FALSE_TRUE),
        ("opposite comparison : {} / {}", EQUIVALENT[::-1]),
    ),
    "duplicates": (
        ("compare what is asked : {} / {}", DUPLICATE),
        ("{} / {} duplicate or not_duplicate ?", DUPLICATE),
        ("do both ask the same ? {} / {}", _NO_YES),
        ("{} / {} is something different asked ?", _YES_NO),
        ("ask once or twice ? {} / {}", ("twice", "once")),
        ("true or false : {} asks {}", _FALSE_TRUE),
        ("opposite duplicate : {} / {}", DUPLICATE[::-1]),
    ),
    "similarity": (
        ("how similar are they ? {} / {}", SCORES),
        ("{} / {} score the likeness", SCORES),
        ("rate from five to zero how alike : {} / {}", SCORES),
        ("how many parts agree ? {} / {}", _NUMBERS),
        ("how many parts differ ? {} / {}", _NUMBERS[::-1]),
        ("difference from five to zero : {} / {}", SCORES[::-1]),
    ),
    "inference": (
        ("text : {} claim : {} relation ?", INFERENCE),
        ("claim : {1} text : {0} relation ?", INFERENCE),
        ("{} so {} entailment or neutral or contradiction ?", INFERENCE),
        ("if {} is it true that {}", ("yes", "maybe", "no")),
        ("we know {} is it false that {}", ("no", "maybe", "yes")),
        ("we know {} what of the claim {}", ("true", "unknown", "false")),
    ),
    "entails": (
        ("text : {} does it follow : {}", ENTAILMENT),
        ("{} so {} entailment or not_entailment ?", ENTAILMENT),
        ("does the text say so ? {} claim : {}", _YES_NO),
        ("claim : {1} is it more than the text ? {0}", _NO_YES),
        ("{} sure or unsure : {}", ("sure", "unsure")),
        ("opposite entailment : {} / {}", ENTAILMENT[::-1]),
    ),
    "answers": (
        ("{} answered by {}", ENTAILMENT),
        ("{1} reply to {0} entailment or not_entailment ?", ENTAILMENT),
        ("is this an answer ? {} / {}", _YES_NO),
        ("{} useful or useless ? {}", ("useful", "useless")),
        ("do we still have to ask {} / {}", _NO_YES),
        ("opposite answer : {} / {}", ENTAILMENT[::-1]),
    ),
}
#: Skills whose answers are words of the texts; they teach word-by-word comparison.
OPEN_TEMPLATES = {
    "lookup": ("answer {} from {}", "{1} tell me {0}", "read {1} now {0}"),
    "difference": (
        "{} / {} which word is new ?",
        "new word in the second text : {} / {}",
        "{} in other words {} is a word new ?",
        "rewrite : {} / {} what is new ?",
    ),
}


def words() -> list[str]:
    """Returns every word of instructions and answers, in a fixed order, each once."""
    asked = [template for skill in TEMPLATES.values() for template, _ in skill]
    asked += [template for skill in OPEN_TEMPLATES.values() for template in skill]
    answered = [word for skill in TEMPLATES.values() for _, answers in skill for word in answers]
    instructions = [word for template in asked for word in template.split() if "{" not in word]
    return list(dict.fromkeys((*instructions, *answered, "unknown", "nothing")))
