#!/usr/bin/env python3
"""Our scorer of mathematics beside the official ones, on answers whose worth is known by construction.

    python tools/score_agreement_math.py --math MATH-500.json --gsm8k test.jsonl --simple-evals FOLDER --out RESULT.json

Answers are references of the data sets in many forms, and changed (tests/evaluate/score/math_forms.py). The official
scorers are math-verify; lm-evaluation-harness' minerva_math (exact_match and math_verify), AIME scorer (the string
normaliser of hendrycks_math, on boxes) and GSM8K filters; simple-evals' MGSM scorer (its MATH scorer needs a judge).
Each judges the answers that are said as it expects them. Needs lm_eval, math-verify and antlr4-python3-runtime 4.11, in
an environment of their own; --simple-evals is a folder that holds the package simple_evals.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from qwen3.checkpoint.journal import write_atomic  # noqa: E402
from qwen3.evaluate.machine import commit  # noqa: E402
from qwen3.evaluate.score.math import compare  # noqa: E402
from qwen3.evaluate.suites import gsm8k, math500  # noqa: E402
from tests.evaluate.score.math_forms import Case, cases, number_cases, references, symbolic_cases  # noqa: E402

Judge = Callable[[Case], bool]

STRINGS = "it compares strings, and knows of other ways to write a value only fractions a/b, 0.5 and a few units"
SIGNS = "∞, π and the minus sign − are no LaTeX to it"
PARSER = "what sympy's LaTeX parser does not read is compared as a string: lists, intervals, matrices, words, \\,"
CUT = "what stands after a list's first parts is not read by sympy's LaTeX parser"
WHY: dict[str, dict[str, str]] = {
    "math-verify": {
        "unit": "a unit that is not in \\text{} is read as a product of letters",
        "other base": "the base is dropped before the digits are compared",
        "Unicode": SIGNS,
        "pi in Unicode": SIGNS,
        "inequality": "an inequality is an interval only where the reference is the inequality",
        "spaced": "units and thousands separators with \\, beside them are not taken off",
        "thin spaces": "1\\,260 is read as a product of 1 and 260",
    },
    "lm-eval minerva_math exact_match": {
        "": PARSER,
        "bold": "\\mathbf is read as a symbol",
        "mixed": "a mixed number is read as a product",
        "long decimal": "a rounded decimal is not its fraction to it",
        "one more part": CUT,
        "one lost": CUT,
        "other base": "a base is read as a symbol's index and lost",
    },
    "lm-eval aime": {"": STRINGS},
    "lm-eval gsm8k strict-match": {"": "its pattern takes no currency sign, and 5.00 is not 5 to it"},
    "lm-eval gsm8k flexible-extract": {"two decimals": "it compares strings: 90.00 is not 90 to it"},
    "simple-evals mgsm": {"other sign": "its pattern of numbers has no minus sign"},
}
"""Why an official scorer judges otherwise than is so, by form; "": any other form."""


def tasks() -> Path:
    """The folder of lm_eval's tasks."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("lm_eval is not installed")
    return Path(spec.submodule_search_locations[0]) / "tasks"


def harness(task: str) -> ModuleType:
    """The file utils.py of one of lm_eval's tasks, without the rest of the package."""
    made = importlib.util.spec_from_file_location(f"lm_eval_{task}", tasks() / task / "utils.py")
    assert made is not None
    assert made.loader is not None
    module = importlib.util.module_from_spec(made)
    made.loader.exec_module(module)
    return module


def filters() -> tuple[Judge, Judge]:
    """lm_eval's GSM8K by its task's own file: (strict-match, flexible-extract)."""
    import yaml

    task = yaml.safe_load((tasks() / "gsm8k" / "gsm8k.yaml").read_text())
    ignored = task["metric_list"][0]["regexes_to_ignore"]

    def plain(answer: str) -> str:
        for pattern in ignored:
            answer = re.sub(pattern, "", answer)
        return answer.lower()

    def judge(steps: list[dict[str, Any]]) -> Judge:
        pattern, select = steps[0]["regex_pattern"], steps[0].get("group_select", 0)

        def right(case: Case) -> bool:
            found = re.findall(pattern, case.text)
            if not found:
                return False
            match = found[select]
            match = next(filter(None, match), "") if isinstance(match, tuple) else match
            return plain(match.strip()) == plain(str(case.gold))

        return right

    strict, flexible = (judge(entry["filter"]) for entry in task["filter_list"])
    return strict, flexible


def judges(simple_evals: str | None) -> dict[str, tuple[Callable[[Case], bool], Judge]]:
    """Official scorers: (which answers are said as it expects them, its judgement)."""
    import math_verify

    minerva, aime = harness("minerva_math"), harness("aime")
    strict, flexible = filters()
    said = lambda case: case.prose == "minerva"  # noqa: E731
    number = lambda case: isinstance(case.gold, int)  # noqa: E731

    def by_verify(case: Case) -> bool:
        return bool(math_verify.verify(math_verify.parse(f"${case.gold}$"), math_verify.parse(case.text)))

    @cache
    def by_minerva(case: Case) -> dict[str, int]:
        doc = {"solution": f"So it is $\\boxed{{{case.gold}}}$."}
        doc["answer"] = minerva.normalize_final_answer(
            minerva.remove_boxed(minerva.last_boxed_only_string(doc["solution"]))
        )
        return dict(minerva.process_results(doc, [case.text]))

    found: dict[str, tuple[Callable[[Case], bool], Judge]] = {
        "math-verify": (lambda case: True, by_verify),
        "lm-eval minerva_math math_verify": (said, lambda case: bool(by_minerva(case)["math_verify"])),
        "lm-eval minerva_math exact_match": (
            said,
            lambda case: bool(by_minerva(case)["exact_match"]),
        ),
        "lm-eval aime": (
            lambda case: "boxed" in case.prose,
            lambda case: bool(aime.process_results({"answer": str(case.gold)}, [case.text])["exact_match"]),
        ),
        "lm-eval gsm8k strict-match": (lambda case: number(case) and case.prose == "hashes", strict),
        "lm-eval gsm8k flexible-extract": (number, flexible),
    }
    if simple_evals:
        sys.path.append(simple_evals)
        mgsm = importlib.import_module("simple_evals.mgsm_eval")
        found["simple-evals mgsm"] = (
            lambda case: number(case) and case.prose == "Answer:",
            lambda case: bool(mgsm.score_mgsm(str(case.gold), mgsm.parse_answer(case.text, "Answer"))),
        )
    return found


def beside(name: str, judge: Judge, judged: list[tuple[Case, bool]]) -> dict[str, Any]:
    """One official scorer's judgements beside ours and beside what is so."""
    both, classes, examples = Counter[str](), Counter[tuple[str, str, str]](), {}
    for case, ours in judged:
        theirs = judge(case)
        both["answers"] += 1
        both["agree"] += ours == theirs
        both["theirs true"] += theirs == case.right
        both["ours true"] += ours == case.right
        if ours != theirs:
            who = "ours" if ours == case.right else "theirs"
            key = (
                who,
                "rejects what is right" if case.right == (who == "ours") else "accepts what is wrong",
                case.form,
            )
            classes[key] += 1
            examples.setdefault(key, {"reference": case.gold, "answer": case.text[-120:]})
    total, reasons = both["answers"], WHY.get(name.replace("lm-eval minerva_math math_verify", "math-verify"), {})
    with_truth = sum(count for (who, _, _), count in classes.items() if who == "ours")
    return {
        "answers": total,
        "agreement": round(both["agree"] / total, 5),
        "theirs_true": round(both["theirs true"] / total, 5),
        "ours_true": round(both["ours true"] / total, 5),
        "agree_or_truth_is_with_ours": round((both["agree"] + with_truth) / total, 5),
        "disagreements": [
            {
                "truth_is_with": who,
                "the_other": what,
                "form": form,
                "count": count,
                "why": reasons.get(form, reasons.get("", "unexplained")) if who == "ours" else "unexplained",
                "example": examples[who, what, form],
            }
            for (who, what, form), count in sorted(classes.items(), key=lambda entry: (entry[0][0], -entry[1]))
        ],
    }


def main() -> None:
    """Prints a line for each scorer; writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--math", required=True, help="MATH-500's file")
    parser.add_argument("--gsm8k", required=True, help="GSM8K's test file")
    parser.add_argument("--simple-evals", help="a folder that holds the package simple_evals")
    parser.add_argument("--each", type=int, default=3, help="right answers, and wrong ones, of a reference of MATH-500")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    golds = [item.gold for item in math500.load(options.math)]
    numbers = [item.gold for item in gsm8k.load(options.gsm8k)]
    numbers = random.Random(options.seed).sample(numbers, min(600, len(numbers)))
    asked = {
        "MATH-500": cases(golds, options.seed, options.each),
        "GSM8K": number_cases(numbers, options.seed),
        "made": cases(references(options.seed, 200), options.seed + 1, 2),
        "sympy": symbolic_cases(options.seed, 300),
    }
    judged = [(case, bool(compare(case.gold, case.text).value)) for found in asked.values() for case in found]
    forms = defaultdict[str, Counter[str]](Counter)
    for case, ours in judged:
        forms[f"{case.form} ({'right' if case.right else 'wrong'})"]["right" if ours == case.right else "false"] += 1
    result: dict[str, Any] = {
        "what": "judgements of mathematical answers by qwen3 and by official scorers; answers of known worth",
        "command": "python tools/score_agreement_math.py --math … --gsm8k … --simple-evals … --out … "
        f"--each {options.each} --seed {options.seed}",
        "machine": "2 shared EPYC cores",
        "commit": commit(),
        "versions": {name: version(name) for name in ("math-verify", "latex2sympy2_extended", "sympy", "lm_eval")},
        "answers": {name: len(found) for name, found in asked.items()} | {"all": len(judged)},
        "right_by_construction": sum(case.right for case, _ in judged),
        "ours_true": round(sum(ours == case.right for case, ours in judged) / len(judged), 5),
        "ours_false": [
            {"reference": case.gold, "answer": case.text, "right": case.right, "form": case.form}
            for case, ours in judged
            if ours != case.right
        ],
        "scorers": {},
    }
    for name, (expects, judge) in judges(options.simple_evals).items():
        found = result["scorers"][name] = beside(name, judge, [pair for pair in judged if expects(pair[0])])
        print(name, {key: found[key] for key in found if key != "disagreements"}, flush=True)
    result["forms"] = {name: dict(counts) for name, counts in sorted(forms.items())}
    write_atomic(Path(options.out), [(json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode()])
    print(f"{len(judged)} answers, {result['ours_true']:.2%} of our judgements true")


if __name__ == "__main__":
    main()
