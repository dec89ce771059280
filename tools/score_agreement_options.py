#!/usr/bin/env python3
"""Multiple choice answers read by us and by simple-evals and lm-eval: where they agree, and why not where not.

python tools/score_agreement_options.py OUT.json   # beside lm-eval and nvidia-simple-evals (which packs simple-evals)

Answers are made by writing a known choice in many forms with text around it. Each form's choice is known by how it is
made, so that all three are also compared with the truth. A reader is compared with us on the answers in which it finds
a letter; each difference must have one of the reasons below, and one without ends with exit code 1.
"""

from __future__ import annotations

import ast
import contextlib
import json
import random
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src")]

from qwen3.checkpoint.journal import write_atomic  # noqa: E402 (the path is set above)
from qwen3.evaluate.machine import commit  # noqa: E402
from qwen3.evaluate.score.options import LETTERS, taken  # noqa: E402

SETS = (
    ("red", "A dog", "15 m", "5 m/s"),
    ("The first law of thermodynamics", "Entropy increases", "All of the above", "None of the above"),
    ("10^-4 eV", "10^-8 eV", "10^-9 eV", "10^-11 eV"),
    ("3", "5", "7", "A"),
    ("Because it is warm.", "Because it is cold.", "It is not.", "Both B and C"),
    ("H2O", "CO2", "NaCl", "C6H12O6"),
)
BEFORE = (
    "",
    "Let's think step by step. The first one cannot be excluded at once, so each is looked at.\n\n",
    "Option A is wrong because it ignores friction. Option B is tempting.\n\n",
    "We have $E = mc^2$ and so \\(C = 3\\).\n\n",
    "**Step 1.** Compare (A) with (B).\n**Step 2.** Exclude (D).\n\n",
)
AFTER = ("", "\n\nI hope this helps!")

# Forms: {L} the letter chosen, {T} its text, {X} another letter. The choice is {L} unless the name says otherwise.
FORMS = {
    "answer-colon": "Answer: {L}",
    "answer-colon-dollar": "Answer: ${L}$",
    "answer-colon-bracket": "Answer: ({L})",
    "answer-colon-bold": "Answer: **{L}**",
    "answer-bold-colon": "**Answer: {L}**",
    "answer-bold-colon-bold": "**Answer:** {L}",
    "answer-colon-text": "Answer: {L}. {T}",
    "answer-colon-bracket-text": "Answer: {L}) {T}",
    "answer-next-line": "Answer:\n{L}",
    "final-answer": "Final answer: {L}.",
    "the-answer-is": "The answer is {L}.",
    "the-answer-is-bracket": "The answer is ({L}).",
    "the-correct-answer-is": "The correct answer is ({L}) {T}.",
    "the-best-answer-is": "The best answer is {L}.",
    "therefore": "Therefore, the correct option is {L}.",
    "field": '"answer": "{L}"',
    "field-fence": '```json\n{{"answer": "{L}"}}\n```',
    "field-object": '{{"reasoning": "as above", "answer": "{L}"}}',
    "field-text": '{{"answer": "{L}. {T}"}}',
    "boxed": "$\\boxed{{{L}}}$",
    "boxed-text": "\\[ \\boxed{{\\text{{{L}}}}} \\]",
    "boxed-final": "The final answer is $\\boxed{{{L}}}$.",
    "boxed-bracket": "\\boxed{{\\textbf{{({L})}}}}",
    "bracket-alone": "({L})",
    "letter-alone": "{L}",
    "letter-text": "{L}. {T}",
    "bold-alone": "So it has to be **{L}**.",
    "full-width": "答案：{F}",
    "chinese": "答案是{L}。",
    "chinese-bracket": "正确答案：（{L}）",
    "german": "Antwort: {L}",
    "french": "Réponse : {L}",
    "spanish": "Respuesta: {L}",
    "portuguese": "Resposta: {L}",
    "arabic": "الإجابة: {R}",
    "bengali": "উত্তর: {L}",
    "japanese": "答え: {L}",
    "korean": "정답: {L}",
    "swahili": "Jibu: {L}",
    "indonesian": "Jawaban: {L}",
    "corrected": "Answer: {X}\n\nWait, that ignores the sign.\n\nAnswer: {L}",
    "not-but": "The answer is not {X} but {L}.",
    "rather-than": "The answer is {L} rather than {X}.",
    "reversed": "{L} is the correct answer.",
    "several": "Answer: {L} or {X}",
    "several-and": "The answer is {L} and {X}.",
    "none": "I cannot decide between them.",
    "negated": "The answer is not {L}.",
    "prose": "Answer: as shown, it depends on the case.",
    "out-of-range": "Answer: Z",
}
NO_CHOICE = {"several", "several-and", "none", "negated", "prose", "out-of-range"}
ARABIC = dict(zip("ABCD", "أبجد", strict=True))
FULL = dict(zip("ABCD", "ＡＢＣＤ", strict=True))
MUTATIONS = (
    lambda text: text,
    lambda text: text.replace(":", " :", 1),
    lambda text: text.replace(": ", ":  ", 1),
    lambda text: text.rstrip("."),
    lambda text: text.replace("answer is", "ANSWER IS"),
    lambda text: text + "  ",
    lambda text: "> " + text if "\n" not in text else text,
)
"""None changes what an answer chooses."""


def answers(seed: int) -> list[dict[str, Any]]:
    rng, found = random.Random(seed), []
    for form, pattern in FORMS.items():
        for options in SETS:
            for i, letter in enumerate("ABCD"):
                other = rng.choice([x for x in "ABCD" if x != letter])
                said = pattern.format(L=letter, T=options[i], X=other, F=FULL[letter], R=ARABIC[letter])
                for before in BEFORE:
                    for after in AFTER:
                        text = before + rng.choice(MUTATIONS)(said) + after
                        truth = None if form in NO_CHOICE else letter
                        found.append({"form": form, "text": text, "options": options, "truth": truth})
    return found


Reader = Callable[[Sequence[dict[str, Any]]], list[str | None]]
Reason = tuple[str, Callable[[str, Sequence[str], str | None, str | None], bool]]


def simple_evals() -> dict[str, Reader]:
    """Its two readers, from the patterns in the installed file (importing it would need its API clients)."""
    files = distribution("nvidia-simple-evals").files or ()
    path = next(Path(str(file.locate())) for file in files if str(file) == "simple_evals/common.py")
    found: dict[str, Any] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            with contextlib.suppress(ValueError):
                found[node.targets[0].id] = ast.literal_eval(node.value)
    english = re.compile(found["ANSWER_PATTERN_MULTICHOICE"])
    template = found["MULTILINGUAL_ANSWER_PATTERN_TEMPLATE"]
    languages = [re.compile(template.format(cue)) for cue in found["MULTILINGUAL_ANSWER_REGEXES"]]
    plain = dict(zip("ＡＢＣＤأبجد", "ABCDABCD", strict=True))

    def many(text: str) -> str | None:
        """As its MMLU does: formatting taken off, each language in turn, the first match of the first that has one."""
        text = re.sub(r"\*\*|\$|\\[()\[\]]|[{}]|\\text|\\boxed|\\mathbf|\\mathrm", "", text)
        match = next((m for pattern in languages if (m := pattern.search(text))), None)
        return plain.get(match[1].strip(), match[1].strip().upper()) if match else None

    return {
        "simple-evals GPQA": lambda cases: [(m := english.search(c["text"])) and m[1].upper() for c in cases],
        "simple-evals MMMLU": lambda cases: [many(case["text"]) for case in cases],
    }


def lm_eval() -> dict[str, Reader]:
    """The two filters of its task gpqa_*_cot_zeroshot, by its own classes with its own settings."""
    import yaml
    from lm_eval.filters.extraction import MultiChoiceRegexFilter, RegexFilter

    files = distribution("lm-eval").files or ()
    file = next(file for file in files if str(file).endswith("gpqa/cot_zeroshot/_gpqa_cot_zeroshot_yaml"))
    text = re.sub(r"!function \S+", "null", Path(str(file.locate())).read_text(encoding="utf-8"))
    kinds = {"regex": RegexFilter, "multi_choice_regex": MultiChoiceRegexFilter}
    readers: dict[str, Reader] = {}
    for entry in yaml.safe_load(text)["filter_list"]:
        given = dict(entry["filter"][0])
        reader = kinds[given.pop("function")](**given)

        def read(cases: Sequence[dict[str, Any]], reader: Any = reader) -> list[str | None]:
            docs = [{"choices": list(case["options"])} for case in cases]
            found = [texts[0] for texts in reader.apply([[case["text"]] for case in cases], docs)]
            letters = [re.fullmatch(r"\W*([A-D])\W*", text) if isinstance(text, str) else None for text in found]
            return [letter[1] if letter else None for letter in letters]

        readers[f"lm-eval GPQA {entry['name']}"] = read
    return readers


def _first(text: str, *_: Any) -> bool:
    return len(re.findall(r"(?i)answer\s*:", text)) > 1


def _open(text: str, options: Sequence[str], ours: str | None, theirs: str | None) -> bool:
    return bool(re.search(rf"(?i)(?:answer|答案)\W*:\W*{theirs}[A-Za-z]", text)) and ours != theirs


def _two(text: str, options: Sequence[str], ours: str | None, theirs: str | None) -> bool:
    return ours is None and bool(re.search(rf"\b{theirs}\b\W* (?:or|and) \W*[A-D]\b", text))


def _elsewhere(text: str, options: Sequence[str], ours: str | None, theirs: str | None) -> bool:
    """Theirs is the last bracketed letter, an option's text, or a letter after a colon, where nothing is answered."""
    brackets = re.findall(r"\(([A-Z])\)", text)
    if brackets:
        return brackets[-1] == theirs
    bare = re.sub(r"[^\w\s]", "", text.lower())
    folded = [re.sub(r"[^\w\s]", "", option.lower()) for option in options]
    own = [LETTERS[i] for i, option in enumerate(folded) if option in bare]
    return theirs in own or bool(re.search(rf":\s*{theirs}", text))


REASONS: dict[str, list[Reason]] = {
    "simple-evals": [
        ("it takes the first statement, we the last", _first),
        ("its pattern does not ask for the letter to end a word", _open),
        ("it takes the first of two options that are both given, we neither", _two),
    ],
    "lm-eval": [("it takes the last bracketed letter or option's text of the whole answer, stated or not", _elsewhere)],
}


def main() -> int:
    readers, cases = {**simple_evals(), **lm_eval()}, answers(1)
    ours = [taken(case["text"], case["options"]).letter for case in cases]
    wrong = [case for case, letter in zip(cases, ours, strict=True) if letter != case["truth"]]
    result: dict[str, Any] = {
        "what": "readers of multiple choice answers, compared",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": f"python tools/score_agreement_options.py {' '.join(sys.argv[1:])}",
        "machine": "2 shared EPYC cores",
        "versions": {name: version(name) for name in ("lm-eval", "nvidia-simple-evals")},
        "answers": len(cases),
        "distinct": len({(case["text"], case["options"]) for case in cases}),
        "forms": list(FORMS),
        "qwen3": {"as made, percent": 100 * (1 - len(wrong) / len(cases)), "not as made": wrong[:20]},
        "readers": {},
    }
    unexplained = 0
    for name, read in readers.items():
        theirs = read(cases)
        both = [(c, o, t) for c, o, t in zip(cases, ours, theirs, strict=True) if t]
        reasons: dict[str, dict[str, int]] = {}
        without = []
        for case, our, their in both:
            if our == their:
                continue
            known = next(group for key, group in REASONS.items() if name.startswith(key))
            why = next((why for why, holds in known if holds(case["text"], case["options"], our, their)), None)
            if why is None:
                without.append({**case, "ours": our, "theirs": their})
            else:
                count = reasons.setdefault(why, {"answers": 0, "ours as made": 0, "theirs as made": 0})
                count["answers"] += 1
                count["ours as made"] += our == case["truth"]
                count["theirs as made"] += their == case["truth"]
        differ = sum(count["answers"] for count in reasons.values()) + len(without)
        unexplained += len(without)
        result["readers"][name] = {
            "reads a letter": len(both),
            "as made, percent of all": 100
            * sum(t == c["truth"] for c, t in zip(cases, theirs, strict=True))
            / len(cases),
            "agree, percent": 100 * (1 - differ / len(both)),
            "agree or explained, percent": 100 * (1 - len(without) / len(both)),
            "differences by reason": reasons,
            "differences without a reason": without[:20],
        }
    write_atomic(Path(sys.argv[1]), [(json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode()])
    for name, found in result["readers"].items():
        print(f"{name}: {found['reads a letter']} read, {found['agree, percent']:.2f} % agree", end=", ")
        print(f"{found['agree or explained, percent']:.2f} % agree or are explained")
    print(f"ours: {result['qwen3']['as made, percent']:.3f} % of {len(cases)} as made")
    return 1 if unexplained or wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
