"""Records what pycocoevalcap says of made captions: its PTB tokens, BLEU-4, ROUGE-L and CIDEr-D, into tests/data/caption_metrics.json.

The file is kept with the tests, because pycocoevalcap needs Java. To record it again: pip install pycocoevalcap==1.2 numpy, Java 17, then
python tests/reference/record_caption_metrics.py
"""

import json
import random
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

SUBJECTS = ["a man", "two women", "Dr. Lee", "the dog's owner", "a T-shirt", "an 8-year-old boy", "Mrs. O'Neil", "the U.S. team",
            "somebody", "cats & dogs", "a café", "St. John's church", "a black-and-white photo", "the '90s band"]
VERBS = ["isn't holding", "can't see", "is gonna ride", "won't eat", "stands by", "looks at", "they're passing", "cannot leave",
         "has 2 of", "doesn't like", "it's near", "wanna buy", "'tis like", "shouldn't've kept", "gimme"]
OBJECTS = ["a red frisbee", "3,000 people", "a 4x4 truck", "$5.50 pizza", "50% of it", "the #1 sign", "1/2 an apple", "7:30pm train",
           "rock 'n' roll records", "a \"stop\" sign", "people's hats", "and/or a bike", "Coca-Cola [can]", "x@example.com", "http://example.com/a?b=c",
           "a {blue} vase", "e.g. bread", "3.14 pies", "5 o'clock tea", "naïve art", "the Jan. 5th issue", "M&M's", "a/c unit", "№ 7"]
PLACES = ["in New York", "at no. 5", "on the left-hand side", "(outdoors)", "under - a tree", "-- near water", "at 10 a.m.", "by the sea...",
          "in the mid-'80s", "on Main St.", "behind ``bars''", "at home; alone", "next to: nothing", "“indoors”", "on 1990's TV", "in 日本", "😀"]
ENDS = [".", "!", "?", "", "...", "?!", ",", ";", " .", "…", "!!"]


def sentence(source):
    words = [source.choice(SUBJECTS), source.choice(VERBS), source.choice(OBJECTS)]
    words += [source.choice(PLACES)] if source.random() < 0.8 else []
    text = " ".join(words) + source.choice(ENDS)
    return text.capitalize() if source.random() < 0.3 else text.upper() if source.random() < 0.05 else text


def changed(source, text):
    """A candidate that shares words with a reference."""
    words = text.split(" ")
    at = source.randrange(len(words))
    words[at:at + source.randrange(3)] = source.choice(OBJECTS).split(" ") if source.random() < 0.6 else []
    return " ".join(words)


def recorded(pairs):
    tokenizer = PTBTokenizer()
    captions = tokenizer.tokenize({index: [{"caption": caption}] for index, (caption, _) in enumerate(pairs)})
    references = tokenizer.tokenize({index: [{"caption": text} for text in texts] for index, (_, texts) in enumerate(pairs)})
    score = lambda scorer: scorer.compute_score(references, captions)[0]
    images = [
        {"caption": caption, "references": texts, "tokens": [captions[index][0], *references[index]]}
        for index, (caption, texts) in enumerate(pairs)
    ]
    return {"bleu_4": score(Bleu(4))[3], "rouge_l": float(score(Rouge())), "cider_d": float(score(Cider())), "images": images}


def main():
    source = random.Random(7)
    sets = []
    for count in (1, 3, 5):
        pairs = []
        for _ in range(40):
            references = [sentence(source) for _ in range(count)]
            pairs.append((changed(source, source.choice(references)), references))
        sets.append(recorded(pairs))
    path = Path(__file__).parents[1] / "data" / "caption_metrics.json"
    path.write_text(json.dumps({"pycocoevalcap": "1.2", "sets": sets}, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
