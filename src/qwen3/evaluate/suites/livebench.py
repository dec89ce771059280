"""LiveBench of 2024-11-25: questions with an answer that needs no judge (White et al. 2024, arXiv 2406.19314).

Scored here are the tasks of mathematics, reasoning and language, and two of data analysis, by rules of our own after
the benchmark's: its coding tasks, instruction following and reformatting of tables are left out (suites livecodebench
and ifeval are of that kind). A score may be partial, as there.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

from qwen3.errors import UsageError
from qwen3.evaluate.score.math import boxes, compare
from qwen3.evaluate.suites.source import Row, field, published, rows
from qwen3.evaluate.types import Answer, Item, Score, Suite

RELEASE = "2024-11-25"
REVISIONS = {
    "math": "bb66571c8ccf32d3df9e6f48b920d3770ff4aacb",
    "reasoning": "6fc6498a5dfba553f69f4413feabade1f1a2d384",
    "language": "3ada32a2e53d5e04e57fa503384cb85ce9116c40",
    "data_analysis": "31b9661ff678df9958e2f7fa228427f4c858c1a1",
}
HOW = (
    "Get its parts with `hf download --repo-type dataset livebench/{part}` ({parts}) into one folder each, and name "
    "the folder that holds them."
)
WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
Rule = Callable[[Any, str], float | None]
"""Value of an answer's text, None where nothing in it can be scored."""


def _stated(text: str) -> list[str]:
    """What stands in <solution> tags, else in the last box."""
    found = [part.strip() for part in re.findall(r"<solution>(.*?)</solution>", text, re.S)]
    if not found and (boxed := [inner for _, _, inner in boxes(text)]):
        found = [re.sub(r"\\(?:text|textbf|mathbf|mathrm)\s*\{([^{}]*)\}", r"\1", boxed[-1]).replace("\\", "").strip()]
    return found


def _list(text: str, count: int) -> list[str] | None:
    """A list with commas; of several solutions, the last `count` entries of all together."""
    found = _stated(text) or [line for line in text.strip().splitlines()[-1:] if line.count(",") == count - 1]
    parts = [part.strip(" *") for one in (found if len(found) > 1 else found[-1:]) for part in one.split(",")]
    return parts[-count:] if parts and len(found) > 1 else parts or None


def _bold(text: str) -> list[str]:
    return [part.strip().lower().strip(".,") for part in re.findall(r"\*\*+([^*]+)\*\*+", text)]


def distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Insertions, deletions and replacements that make one list the other (Levenshtein)."""
    line = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, line[0] = line[0], i
        for j, y in enumerate(b, 1):
            before, line[j] = line[j], min(line[j] + 1, line[j - 1] + 1, before + (x != y))
    return line[-1]


def contest(gold: str, text: str) -> float | None:
    """AMC: a letter, asked for five times in a row. AIME: a number."""
    if gold.isdecimal():
        said = re.findall(r"\d+", (_stated(text) or [text])[-1])
        return float(int(said[-1]) == int(gold)) if said else None
    found = [m[1] for m in re.finditer(r"([A-E])\1{3,}", text)]
    if not found:
        plain = [re.sub(r"\W", "", part) for part in (*text.strip().splitlines()[-1:], *_bold(text), *_stated(text))]
        found = [part[0].upper() for part in plain if re.fullmatch(r"([A-Ea-e])\1*", part)]
    return float(found[-1] == gold.upper()) if found else None


def olympiad(gold: str, text: str) -> float | None:
    """A list of numbers, after the last "Answer:", in a box or at the end; one less the edits it needs, as a share."""
    after = re.split(r"answer:", text, flags=re.I)
    tail = next((line for line in after[-1].splitlines() if re.search(r"\d", line)), "") if len(after) > 1 else ""
    said = [int(n) for n in re.findall(r"\d+", tail or (_stated(text) or text.strip().splitlines()[-1:] or [""])[-1])]
    true = [int(n) for n in gold.split(",")]
    return 1 - distance(said, true) / max(len(said), len(true)) if said else None


def web_of_lies(gold: str, text: str) -> float | None:
    """Three times yes, no or unknown."""
    kinds = r"\b(?:yes|no|unknown)\b"
    parts = [*_bold(text), *_stated(text)] or [text]
    said = [words for part in parts if len(words := re.findall(kinds, part.lower())) >= 3]
    loose = [words for part in parts for words in re.findall(kinds, part.lower())]
    found = said[-1][-3:] if said else loose[-3:]
    return float(found == [word.strip() for word in gold.lower().split(",")]) if len(found) == 3 else None


def spatial(gold: str, text: str) -> float | None:
    """A number or a shape, among the last three bold words or boxed."""
    true, said = gold.strip().lower(), [*_bold(text)[-3:], *(part.lower() for part in _stated(text)[-1:])]
    number = WORDS[int(true)] if true.isdecimal() and int(true) < len(WORDS) else true
    shapes = ("tetrahedra", "tetrahedron", "triangle", "square")
    near = [part for part in said if true in shapes and true in part and len(part) < 2 * len(true) + 5]
    return float(true in said or number in said or bool(near)) if said else None


def zebra(gold: str, text: str) -> float | None:
    """Answers to several questions: the mean of the share of right ones and of whether all are."""
    true = [part.strip().lower().replace("-", " ") for part in gold.split(",")]
    said = _list(text, len(true))
    if not said and len(true) == 1:
        said = (_bold(text) or re.findall(r"\w+", text))[-1:]
    if not said:
        return None
    plain = [part.lower().replace("-", " ") for part in said]
    share = sum(a in b for a, b in zip(true, plain, strict=False)) / len(true)
    return ((share == 1) + share) / 2


def connections(gold: str, text: str) -> float | None:
    """Words in groups of four: the share of groups that are right."""
    words = [word.strip().lower() for word in gold.split(",")]
    said = _list(text.replace("\n", " "), len(words)) or next(
        (part.split(",") for part in reversed(_bold(text.replace("\n", " "))) if part.count(",") >= 3), None
    )
    if not said:
        return None
    plain = [word.strip().lower() for word in said]
    groups = [{*words[i : i + 4]} for i in range(0, len(words), 4)]
    given = [{*plain[i : i + 4]} for i in range(0, len(plain), 4)]
    return sum(group in given for group in groups) / len(groups)


def typos(gold: str, text: str) -> float | None:
    """The corrected text, word for word."""
    return float(" ".join(gold.split()) in " ".join((_stated(text) or [text])[-1].split()))


def plot(gold: str, text: str) -> float | None:
    """Sentences in order: one less the edits of the order of the best matching sentences, as a share."""
    inside = re.search(r"<PLOT_SUMMARY>(.*?)(?:</PLOT_SUMMARY>|$)", text, re.S)
    true = [part.strip() for part in gold.split(".") if part.strip()]
    said = [part.strip() for part in (inside[1] if inside else text).split(".") if part.strip()]
    if not said:
        return None
    best = [said.index(difflib.get_close_matches(part, said, n=1, cutoff=0.0)[0]) for part in true]
    return 1 - distance(range(len(true)), best) / len(true)


def column_type(gold: str, text: str) -> float | None:
    """The name of a column's kind, at the end of the answer."""
    plain = [re.sub(r"\W", "", part.lower()) for part in (gold, (_stated(text) or [text])[-1])]
    return float(plain[1].endswith(plain[0]))


def table_join(gold: Any, text: str) -> float | None:
    """A mapping of columns to columns: F1 of its pairs."""
    fences = re.findall(r"```(?:\w*\n)?(.*?)```", text, re.S)
    said = next((found for part in [*_stated(text)[::-1], *fences[::-1], text] if (found := _mapping(part))), None)
    true = gold if isinstance(gold, dict) else _mapping(gold)
    if said is None or not true:
        return None
    right = sum(true.get(key) == value for key, value in said.items())
    wrong, missing = len(said) - right, sum(key not in said or said[key] != value for key, value in true.items())
    return 2 * right / (2 * right + wrong + missing)


def _mapping(text: str) -> dict[str, Any] | None:
    start, end = text.find("{"), text.rfind("}")
    try:
        found = ast.literal_eval(re.sub(r"\bnull\b", "None", text[start : end + 1]))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return {k: v for k, v in found.items() if v is not None} if isinstance(found, dict) else None


RULES: dict[str, Rule] = {
    "web_of_lies_v2": web_of_lies,
    "spatial": spatial,
    "zebra_puzzle": zebra,
    "math_comp": contest,
    "olympiad": olympiad,
    "connections": connections,
    "typos": typos,
    "plot_unscrambling": plot,
    "cta": column_type,
    "tablejoin": table_join,
}
TASKS = (*RULES, "AMPS_Hard")


def load(local: str | None) -> list[Item]:
    """The questions that belonged to the release of 2024-11-25 and are of the tasks above."""
    how = HOW.format(part="math", parts=", ".join(REVISIONS))
    if local is not None:
        found = rows("livebench", local=local, hub=("", None, "test"), how=how)
    else:
        found = []
        for part, revision in REVISIONS.items():
            found += rows(f"livebench/{part}", hub=(f"livebench/{part}", None, "test", revision), how=how)
    items = []
    for row in found:
        task = str(field(row, "task"))
        if _live(row) and task in TASKS:
            about = {"category": field(row, "category"), "task": task, "date": str(row["livebench_release_date"])[:10]}
            turns = [str(turn) for turn in field(row, "turns")]
            items.append(
                Item(
                    str(field(row, "question_id")),
                    ({"role": "user", "content": turns[0]},),
                    field(row, "ground_truth"),
                    about,
                    later=tuple(turns[1:]),
                )
            )
    if not items:
        raise UsageError(f"livebench: none of the {len(found)} rows is of {RELEASE} and of {', '.join(TASKS)}")
    return items


def _live(row: Row) -> bool:
    released, removed = (
        str(field(row, "livebench_release_date"))[:10],
        str(row.get("livebench_removal_date") or "")[:10],
    )
    return released <= RELEASE and (not removed or removed > RELEASE)


def score(item: Item, answer: Answer) -> Score:
    """By the task's rule; partial values are the benchmark's."""
    if item.about["task"] == "AMPS_Hard":
        return compare(item.gold, answer.content)
    value = RULES[item.about["task"]](item.gold, answer.content)
    if value is None:
        return Score(0.0, "unparsed")
    value = max(0.0, value)
    return Score(value, "right" if value == 1 else "wrong")


SUITE = Suite(
    name="livebench",
    title="LiveBench 2024-11-25, eleven tasks",
    load=load,
    score=score,
    licence="CC BY-SA 4.0",
    source="https://huggingface.co/livebench",
    headline="mean score",
    references=published("30.3 51.1 63.6 67.1 71.3 74.9 74.3 77.1", "21.8 35.6 48.4 53.5 59.6 59.8 59.4 62.5"),
    groups=("category", "task"),
    notes="The report's values are means over all six categories; here coding, instruction following and tablereformat "
    "are missing, and the mean is over questions: compare by category.",
    needs=("math-verify",),
)
