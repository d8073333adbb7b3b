"""Records what the official evaluation code says of made answers, into tests/data/answer_scores.json: VQA accuracy and normalised
answers (VQA), yes and no (POPE, as in LLaVA), letters of options (ScienceQA, as in LLaVA).

To record it again, with checkouts of https://github.com/GT-Vision-Lab/VQA (a013f004) and https://github.com/haotian-liu/LLaVA (c121f042):
python tests/reference/record_answer_scores.py VQA LLaVA
"""

import contextlib
import importlib.util
import io
import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

WORDS = ["yes", "no", "a", "an", "the", "two", "Ten", "none", "zero", "red", "dont", "couldnt've", "couldn'tve", "its", "oclock", "yall'd've",
         "somebody'd", "hes", "let's", "T-shirt", "1,000", "3.5", "5.", "p.m.", "New York", "U.S.A.", "left/right", "[sign]", "\"stop\"", "{x}", "(left)",
         "a=b", "1+1", "back\\slash", "snow_board", "<b>", "x@y.com", "`tick`", "what?", "Stop!", "and,or", ", then", "; so", "- dash", "café", "日本",
         "٣,٤", ".", "...", "The", "AN", "Maam", "'ow'sat", "isn't", "one", "eleven", "10", "2"]
NO_WORDS = ["No", "no", "not", "Not", "NO", "none", "cannot", "isn't", "Yes", "yes", "there", "is", "a dog", "in", "the picture", "nothing", "no,"]


def load(path):
    """A module of a file; Python 2's print statements become calls."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r'^(\s*)print (".*")$', r"\1print(\2)", text, flags=re.M)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(path.stem, loader=None))
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module


def phrase(source):
    separators = [" ", " ", " ", ", ", "\n", "\t", "-", "/", "  "]
    words = source.choices(WORDS, k=source.randrange(1, 5))
    text = words[0] + "".join(source.choice(separators) + word for word in words[1:])
    return source.choice(["", "", " "]) + text + source.choice(["", "", ".", "?", " .", "\n"])


def vqa(source, module):
    questions, answers = {}, {}
    for number in range(400):
        few = [phrase(source) for _ in range(source.choice([1, 2, 2, 3, 5]))]
        if number % 100 == 0:
            few = [". ".join(source.choices(["u.s", "a.m", "3.5", "x"], k=40)), "x"]
        annotators = [source.choice(few) for _ in range(10)]
        said = source.choice([source.choice(few), source.choice(few).upper(), source.choice(few) + ".", phrase(source)])
        kind = source.choice(["yes/no", "number", "other"])
        questions[number] = {"question_id": number, "answer_type": kind, "question_type": source.choice(["what is", "how many"]),
                             "answers": [{"answer": text, "answer_id": index} for index, text in enumerate(annotators)]}
        answers[number] = {"answer": said}
    recorded = [{"answer": answers[number]["answer"], "annotators": [one["answer"] for one in questions[number]["answers"]]} for number in questions]

    class Given:
        def __init__(self, qa):
            self.qa = qa

        def getQuesIds(self):
            return list(self.qa)

    evaluation = module.VQAEval(Given(questions), Given(answers), n=15)
    for case in recorded:
        text = case["answer"].replace("\n", " ").replace("\t", " ").strip()
        case["normalized"] = evaluation.processDigitArticle(evaluation.processPunctuation(text))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    for number, case in enumerate(recorded):
        case |= {"answer_type": questions[number]["answer_type"], "accuracy": evaluation.evalQA[number]}
    return {"cases": recorded, "overall": evaluation.accuracy["overall"], "by_answer_type": evaluation.accuracy["perAnswerType"]}


def yes_no(source, module):
    sets = []
    for count in (1, 30, 300):
        cases = []
        while len({case["label"] for case in cases}) < min(2, count) or len(cases) < count:
            text = " ".join(source.choices(NO_WORDS, k=source.randrange(1, 6))) + source.choice(["", ".", ". No.", ", yes", ".no"])
            cases.append({"answer": "Yes" if count == 1 else text, "label": "yes" if count == 1 else source.choice(["yes", "no"])})
        with tempfile.NamedTemporaryFile("w", suffix=".json") as labels, contextlib.redirect_stdout(io.StringIO()) as said:
            labels.write("".join(json.dumps(case) + "\n" for case in cases))
            labels.flush()
            module.eval_pope([{"text": case["answer"]} for case in cases], labels.name)
        lines = dict(line.split(": ") for line in said.getvalue().splitlines() if ": " in line)
        names = {"Accuracy": "accuracy", "Precision": "precision", "Recall": "recall", "F1 score": "f1", "Yes ratio": "yes_share"}
        sets.append({"cases": cases, "figures": {ours: float(lines[theirs]) for theirs, ours in names.items()}})
    return sets


def letters(script):
    texts = ["A", "B", "E", "F", "B. a dog", "C. ", "D.", "The answer is C.", "The answer is B", "Because of this. The answer is D. Yes.", "It is A. cat",
             "b", "cat", "", "(B)", "Both A and B", "C.\nBecause", "A\n", "The answer is E.", "The answer is A. The answer is B."]
    choices = ["one", "two", "three", "four"]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        numbers = [str(number) for number in range(len(texts))]
        (base / "pid_splits.json").write_text(json.dumps({"test": numbers}))
        (base / "problems.json").write_text(json.dumps({number: {"choices": choices, "answer": 0} for number in numbers}))
        lines = [{"question_id": number, "text": text, "prompt": "<image>"} for number, text in zip(numbers, texts)]
        (base / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        words = ["--base-dir", base, "--result-file", base / "answers.jsonl", "--output-file", base / "out", "--output-result", base / "result"]
        subprocess.run([sys.executable, script, *words], check=True, stdout=subprocess.DEVNULL)
        found = json.loads((base / "result").read_text())["results"]
    return {"options": choices, "cases": [{"answer": text, "index": found[number]} for number, text in zip(numbers, texts)]}


def text_of(value):
    """JSON with a case in each line."""
    if isinstance(value, list):
        return "[\n" + ",\n".join(map(text_of, value)) + "\n]"
    if isinstance(value, dict) and not {"cases", "vqa"}.isdisjoint(value):
        return "{\n" + ",\n".join(json.dumps(key) + ": " + text_of(part) for key, part in value.items()) + "\n}"
    return json.dumps(value, ensure_ascii=False)


def main():
    vqa_dir, llava_dir = map(Path, sys.argv[1:3])
    source = random.Random(11)
    recorded = {
        "vqa": vqa(source, load(vqa_dir / "PythonEvaluationTools" / "vqaEvaluation" / "vqaEval.py")),
        "yes_no": yes_no(source, load(llava_dir / "llava" / "eval" / "eval_pope.py")),
        "letters": letters(llava_dir / "llava" / "eval" / "eval_science_qa.py"),
    }
    path = Path(__file__).parents[1] / "data" / "answer_scores.json"
    path.write_text(text_of(recorded) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
