"""FLAN's templates for the eight GLUE tasks, word for word.

They are the patterns of `flan/templates.py` in https://github.com/google-research/FLAN whose target
is the answer; others ask for a sentence with a given answer. Slips are theirs and stay, because a
model that FLAN trained knows them: "{hypothesis}n" for a line break in three of RTE (the collection
that FLAN-T5 was trained on has mended these), and a template of CoLA that stands there twice.

Copyright 2021 The FLAN Authors. Licensed under the Apache License, Version 2.0
(http://www.apache.org/licenses/LICENSE-2.0), as this project is.
"""

#: Benchmark of GLUE → its templates. `{options_}` is the list of answers; other places are fields.
TEMPLATES = {
    "cola": (
        'Sentence: "{sentence}"\nWould a linguist rate this sentence to be acceptable '
        "linguistically?\n\n{options_}",
        "{sentence}\n\nHow would you consider the linguistic integrity of the preceding "
        "sentence?\n{options_}",
        'Test sentence: "{sentence}"\nIs this test sentence a correct grammatical English '
        "sentence?\n\n{options_}",
        'Sentence: "{sentence}"\nWould a linguist rate this sentence to be acceptable '
        "linguistically?\n\n{options_}",
        "Is the following sentence linguistically acceptable?\n{sentence}\n{options_}",
        "Would the following sentence, by the strictest standards, be considered correct "
        "by a linguist?\n\n{sentence}\n{options_}",
        "Is the next sentence syntactically and semantically acceptable?\n\n{sentence}\n{options_}",
        "Would a linguist find the following sentence to be a valid English sentence "
        "grammatically?\n\n{sentence}\n{options_}",
    ),
    "sst2": (
        "Review:\n{sentence}\nIs this movie review sentence negative or positive?\n{options_}",
        "Short movie review: {sentence}\nDid the critic thinking positively or negatively "
        "of the movie?\n{options_}",
        "Sentence from a movie review: {sentence}\nWas the movie seen positively or "
        "negatively based on the preceding review?\n\n{options_}",
        '"{sentence}"\nHow would the sentiment of this sentence be perceived?\n\n{options_}',
        "Is the sentiment of the following sentence positive or negative?\n{sentence}\n{options_}",
        "What is the sentiment of the following movie review sentence?\n{sentence}\n{options_}",
        "Would the following phrase be considered positive or negative?\n\n{sentence}\n{options_}",
        "Does the following review have a positive or negative opinion of the movie?\n\n"
        "{sentence}\n{options_}",
    ),
    "mrpc": (
        "Here are two sentences:\n{sentence1}\n{sentence2}\nDo they have the same "
        "meaning?\n{options_}",
        "Here are two sentences:\n\n{sentence1}\n\n{sentence2}\nAre the two sentences "
        "saying the same thing?\n{options_}",
        "{sentence1}\n\n{sentence2}\n\nDo the above sentences mean the same thing?\n{options_}",
        "{sentence1}\n\n{sentence2}\n\nPlease tell me if the sentences above mean the "
        "same.\n{options_}",
        "{sentence1}\n{sentence2}\nAre these sentences conveying the same meaning?\n{options_}",
        "{sentence1}\n{sentence2}\nIf the first sentence is true, is the second one also "
        "true?\n{options_}",
        "{sentence1}\n{sentence2}\nAre these two sentences paraphrases of each other?\n{options_}",
        "Do the following two sentences have the same meaning?\n{sentence1}\n"
        "{sentence2}\n\n{options_}",
        "Do these two sentences mean the same thing?\n{sentence1}\n{sentence2}\n\n{options_}",
        "Do these sentences have the same meaning?\n{sentence1}\n{sentence2}\n\n{options_}",
    ),
    "qqp": (
        "{question1}\n{question2}\nWould you say that these questions are the same?\n{options_}",
        "{question1}\n{question2}\nDo those questions have the same meaning?\n{options_}",
        "{question1}\n{question2}\n\nAre these two questions inquiring about the same "
        "information?\n{options_}",
        "{question1}\n\n{question2}\n\nPlease tell me if those questions are the same.\n{options_}",
        "{question1}\n\n{question2}\n\nAre these two questions paraphrases of each other?\n"
        "{options_}",
        "First question: {question1}\nSecond question: {question2}\nAre these two "
        "questions asking the same thing?\n{options_}",
        "Question 1: {question1}\nQuestion 2: {question2}\nAre questions 1 and 2 asking "
        "the same thing?\n{options_}",
        "Question 1: {question1}\nQuestion 2: {question2}\n\nWould the answer to these two "
        "questions be the same?\n{options_}",
        "Are the following two questions the same?\n{question1}\n{question2}\n\n{options_}",
        "Do these questions have the same meaning?\n{question1}\n{question2}\n\n{options_}",
    ),
    "stsb": (
        "{sentence1}\n{sentence2}\n\nRate the textual similarity of these two sentences on "
        'a scale from 0 to 5, where 0 is "no meaning overlap" and 5 is "means the same '
        'thing".\n\n{options_}',
        '{sentence1}\n{sentence2}\n\nOn a scale from 0 to 5, where 0 is "no meaning '
        'overlap" and 5 is "means the same thing", how closely does the first sentence '
        "resemble the second one?\n\n{options_}",
        'Sentence 1: {sentence1}\n\n Sentence 2: {sentence2}\n\nFrom 0 to 5 (0="no meaning '
        'overlap" and 5="means the same thing"), how similar are the two sentences?\n\n'
        "{options_}",
        "How similar are the following two sentences?\n\n{sentence1}\n{sentence2}\n\nGive "
        'the answer on a scale from 0 - 5, where 0 is "not similar at all" and 5 is "means '
        'the same thing".\n\n{options_}',
        "Do the following sentences say the same thing?\n\n{sentence1}\n{sentence2}\n\n"
        'Return your answer on a scale from 0 to 5, where 0 is "not similar" and 5 is '
        '"very similar".\n\n{options_}',
        "Rate the similarity of the following two sentences on a scale from 0 to 5, where "
        '0 is "no meaning overlap" and 5 is "means the same thing"?\n\n{sentence1}\n'
        "{sentence2}\n\n{options_}",
        'On a scale from 0-5, where 0 is "not similar" and 5 is "very similar", how '
        'similar is the sentence "{sentence1}" to the sentence "{sentence2}"?\n\n{options_}',
        'How similar are these two sentences, on a scale from 0-5 (0 is "not similar" and '
        '5 is "very similar")?\n\n{sentence1}\n{sentence2}\n\n{options_}',
    ),
    "mnli": (
        "Premise: {premise}\n\nHypothesis: {hypothesis}\n\nDoes the premise entail the "
        "hypothesis?\n\n{options_}",
        "Premise: {premise}\nHypothesis: {hypothesis}\nIs the hypothesis entailed by the "
        "premise?\n{options_}",
        "Here is a premise:\n{premise}\n\nHere is a hypothesis:\n{hypothesis}\n\nIs it "
        "possible to conclude that if the premise is true, then so is the hypothesis?\n"
        "{options_}",
        "Sentence 1: {premise}\n\nSentence 2: {hypothesis}\nIs this second sentence "
        "entailed by the first sentence?\n\n{options_}",
        "Sentence 1: {premise}\n\nSentence 2: {hypothesis}\n\nIf the first sentence is "
        "true, then is the second sentence true?\n{options_}",
        'Based on the premise "{premise}", can we conclude the hypothesis "{hypothesis}" '
        "is true?\n\n{options_}",
        'Premise: "{premise}" If this premise is true, what does that tell us about '
        'whether it entails the hypothesis "{hypothesis}"?\n\n{options_}',
        'Premise:\n"{premise}" Based on this premise, is the hypothesis "{hypothesis}" '
        "true?\n{options_}",
        'If {premise}, can we conclude that "{hypothesis}"?\n{options_}',
        '{premise}\n\nDoes it follow that "{hypothesis}"?\n{options_}',
    ),
    "qnli": (
        'Does the sentence "{sentence}" answer the question "{question}"\n\n{options_}',
        'Does the sentence "{sentence}" provide a valid answer to the question '
        '"{question}"\n{options_}',
        'Is "{sentence}" a good answer to the question "{question}"\n{options_}',
        'Does "{sentence}" correctly answer the question of {question}\n{options_}',
        'Does "{sentence}" contain the correct answer to "{question}"\n{options_}',
        "Q: {question}\n A: {sentence}\n Does the answer correctly answer the question\n\n"
        "{options_}",
        "Question: {question}\nAnswer: {sentence}\n Is the question answered in a "
        "satisfactory fashion?\n\n{options_}",
        "Question: {question}\n\nIs {sentence} a good answer to this question?\n\n{options_}",
        'Question: {question}\n\nIs "{sentence}" the correct answer?\n\n{options_}',
    ),
    "rte": (
        '{premise}\n\nBased on the paragraph above can we conclude that "{hypothesis}"?\n\n'
        "{options_}",
        "{premise}\n\nBased on that paragraph can we conclude that this sentence is true?\n"
        "{hypothesis}\n\n{options_}",
        "{premise}\n\nCan we draw the following conclusion?\n{hypothesis}\n\n{options_}",
        "{premise}\nDoes this next sentence follow, given the preceding text?\n"
        "{hypothesis}\n\n{options_}",
        "{premise}\nCan we infer the following?\n{hypothesis}\n\n{options_}",
        "Read the following paragraph and determine if the hypothesis is true:\n\n"
        "{premise}\n\nHypothesis: {hypothesis}n\n{options_}",
        "Read the text and determine if the sentence is true:\n\n{premise}\n\nSentence: "
        "{hypothesis}n\n{options_}",
        "Can we draw the following hypothesis from the context? \n\nContext:\n\n"
        "{premise}\n\nHypothesis: {hypothesis}n\n{options_}",
        "Determine if the sentence is true based on the text below:\n{hypothesis}\n\n"
        "{premise}\n{options_}",
    ),
}
