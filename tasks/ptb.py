"""Tokens of captions as coco-caption cuts them: the Penn Treebank's, without punctuation.

Published CIDEr, BLEU and ROUGE of captions are computed on the tokens of Stanford's PTBTokenizer
(CoreNLP 3.4.1, in Java), in lower case and without a list of punctuation. These are the same
tokens, in Python; the tests compare both.
"""

import re

# Coco-caption's list has brackets in capitals, but the tokens are in lower case. So brackets stay,
# and so do "!!" and "?!". The scores are the published ones only if they stay here, too.
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_CHARACTERS = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00ab": '"', "\u00bb": '"'}
    | {"\u2013": " -- ", "\u2014": " -- ", "\u2026": " ... ", "\u00ad": ""}
    | {"\u00bc": " 1/4 ", "\u00bd": " 1/2 ", "\u00be": " 3/4 "}
    | {"\u00a3": " # ", "\u20ac": " $ ", "\u00a2": " cents "}
)

# Words that keep the period behind them.
_ABBREVIATIONS = """
    adm al alex apr ariz assn assoc atty aug ave bancorp bldg blvd brig bros calif capt cf cmdr co
    col colo conn corp cpl ct dak dec dept dr drs esq est etc ext feb fla fri ft ga gen gov hon inc
    ind jan jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn mme mo mon mont mr
    mrs ms msgr mt neb nev nov oct okla penn pfc ph pres prof pvt rd rep reps rev rt sen sens sep
    sept seq sgt spc sq sr st supt tel tenn thu thurs tue tues univ va vs vt wed wis wisc wm wyo
""".split()
# Those that are other words in lower case.
_STATES = "Ark Del Ill La Mass Miss Ore Pa Tex Wash".split()

_L, _C = r"[^\W\d_]", r"[^\W_]"  # A letter; a letter or digit.
_PARTS = rf"{_C}+(?:-{_C}+)*"  # merry-go-round

# Where a word is cut in two: is|n't, dog|'s, rock|'n'|roll, can|not.
_CUT = re.compile(
    rf"(?<={_C})(?=n['`]t(?!{_C}))"
    rf"|(?<={_C})(?='(?:[smd]|re|ve|ll|n'?)(?!{_C}))"
    r"|(?<=\bcan)(?=not\b)|(?<=\bgon)(?=na\b)|(?<=\bgot)(?=ta\b)|(?<=\bwan)(?=na\b)"
    r"|(?<=\blem)(?=me\b)|(?<=\bgim)(?=me\b)|(?<=\bmore)(?='n\b)|(?<=(?<!\w)'t)(?=(?:is|was)\b)",
    re.IGNORECASE,
)

_TOKEN = re.compile(
    rf"""
      https?://[^\s"<>|()]+
    | (?i:n['`]t|'(?:[smdt]|re|ve|ll)|'n'?)(?!{_C})            # what _CUT cut off
    | (?i:'(?:em|till?|cause)\b) | (?<!\d)'\d\ds?\b
    | (?i:[dol]'{_L}{_C}+|ma'ams?\b|c'mon\b|(?:ol|somethin)'(?!\w)|[jyl]'(?={_C}))
    | \w[\w.+-]*@\w[\w.-]*\w                                  # an address
    | [@#]{_L}+
    | [<>]?[:;=][-o*']?[()\[\]]                               # a smiley
    | </?[A-Za-z!][^<>\s]*>                                  # a tag
    | (?:{_L}\.)+(?!{_L})(?:-{_PARTS})?                       # u.s.
    | (?i:{"|".join(_ABBREVIATIONS)}|ph\.d|(?:nos?|figs?|pp)(?=\.\s*\d))\.(?!{_C})
    | (?:{"|".join([*_STATES, *map(str.upper, _STATES)])})\.(?!{_C})
    | [A-Z]+(?:&[A-Z]+)+                                      # AT&T
    | {_L}{_C}*(?:[.!?]{_L}{_C}*)+                            # left.right
    | {_PARTS}(?:/{_PARTS}){{1,2}}                            # black/white
    | (?:(?<!{_C})[-+])?\d*(?:[.,:]\d+)+(?:-{_L}+)*           # 1,000.50
    | (?<![\w)-])-\d+(?!{_C}) | \+\d+(?!{_C})
    | {_C}+(?:[-_]{_C}+)*
    | [?!]{{2,}} | \*+ | _+
    | [^\s.?!,:;'"`-]
    """,
    re.VERBOSE,
)


def tokens(text: str) -> list[str]:
    """Returns the tokens of a caption.

    Args:
      text: a caption, in any case; line feeds are spaces.

    Returns:
      Tokens in lower case, without quotation marks, periods, commas, colons, dashes and single
      question or exclamation marks.
    """
    text = _CUT.sub(" ", text.translate(_CHARACTERS).replace("&amp;", "&"))
    return [_written(found) for found in _TOKEN.findall(text)]


def _written(token: str) -> str:
    return "".join(_BRACKETS.get(character, character) for character in token.lower())
