"""How far our checkers of IFEval's instructions agree with the official ones, and with the truth.

    python tools/score_agreement_ifeval.py --out RESULT.json [--count 1500] [--multi-if ifeval.py]

The official ones are lm-evaluation-harness' (lm-eval, langdetect, nltk with its punkt_tab, immutabledict). Responses
are made by tests/evaluate/score/ifeval_cases.py; each is read strictly and loosely by both. --multi-if: the file of
facebookresearch/Multi-IF, whose counts of words and sentences by language are compared too (emoji, pythainlp). Take
nltk 3.9, which published values were made with: 3.10 counts words and quotes otherwise.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import random
import re
import sys
import time
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from qwen3.checkpoint.journal import write_atomic  # noqa: E402
from qwen3.evaluate.machine import commit  # noqa: E402
from qwen3.evaluate.score import ifeval  # noqa: E402
from qwen3.evaluate.score.ifeval import text as counts  # noqa: E402
from tests.evaluate.score.ifeval_cases import MAKERS, Case, cases  # noqa: E402

MULTILINGUAL = ("length_constraints:number_sentences", "length_constraints:number_words", "startend:quotation")
SPOKEN = ("language:response_language", "change_case:english_capital", "change_case:english_lowercase")
WHY = {
    **dict.fromkeys(SPOKEN, "langdetect draws at random, unseeded in the official program, which differs from itself"),
    "length_constraints:number_sentences": "a word or abbreviation that the official model knows from its newspaper",
    "change_case:capital_word_frequency": "a clitic or mark that Treebank splits otherwise",
}


def official(registry: dict[str, Any], name: str, case: Case, text: str) -> bool:
    checker = registry[name](name)
    checker.build_description(**case.arguments)
    return bool(text.strip() and checker.check_following(text))


def seeded(registry: dict[str, Any], name: str, case: Case) -> bool:
    """The official reading with langdetect's random draws made as ours are."""
    from langdetect import DetectorFactory

    DetectorFactory.seed = 0
    try:
        return official(registry, name, case, case.response)
    finally:
        DetectorFactory.seed = None


def compared(name: str, made: list[Case], registry: dict[str, Any], multilingual: bool) -> dict[str, Any]:
    count: Counter[str] = Counter()
    differ = []
    for case in made:
        if multilingual and case.response.startswith("“"):  # such marks are quotation marks there
            case = case._replace(truth=None)
        asked = {"id": name, **case.arguments}
        texts = ifeval.readings(case.response)
        mine = ifeval.follows(case.response, asked, multilingual=multilingual)
        theirs = official(registry, name, case, case.response)
        if name in SPOKEN:
            count["official with itself"] += theirs == official(registry, name, case, case.response)
            count["strict, official seeded"] += mine == seeded(registry, name, case)
        loose = mine or any(ifeval.follows(text, asked, multilingual=multilingual) for text in texts)
        their_loose = theirs or any(official(registry, name, case, text) for text in texts)
        count += Counter(responses=1, strict=mine == theirs, loose=loose == their_loose, followed=mine)
        if case.truth is not None:
            count += Counter({"truth known": 1, "ours true": mine == case.truth, "official true": theirs == case.truth})
        if mine != theirs or loose != their_loose:
            reading = "strict" if mine != theirs else "loose"
            differ.append({"reading": reading, "ours": mine, "official": theirs, **case._asdict()})
    known = WHY[SPOKEN[0]] if multilingual else WHY.get(name, "not explained")
    why = known if differ else ""
    return {**{key: int(value) for key, value in count.items()}, "class": why, "differ": differ}


def prose(files: list[Path], seed: int) -> dict[str, int]:
    """Both counts of sentences, of capital words and of words on up to 3,000 passages of four paragraphs."""
    from lm_eval.tasks.ifeval import instructions_util as util

    passages = []
    for file in files:
        parts = re.split(r"\n\s*\n", file.read_text("utf-8", errors="replace"))
        passages += [text for i in range(0, len(parts), 4) if (text := "\n\n".join(parts[i : i + 4])).strip()]
    random.Random(seed).shuffle(passages)
    count: Counter[str] = Counter()
    for text in passages[:3000]:
        capitals = sum(token.isupper() for token in util.nltk.word_tokenize(text))
        mine, theirs = counts.sentences(text), util.count_sentences(text)
        count["passages"] += 1
        count["sentences differ"] += mine != theirs
        count["sentences differ by more than one"] += abs(mine - theirs) > 1
        count["capital words differ"] += counts.capital_words(text) != capitals
        count["words differ"] += counts.words(text) != util.count_words(text)
    return dict(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--only", help="a part of an instruction's name")
    parser.add_argument("--multi-if")
    parser.add_argument("--texts", nargs="*", default=[], help="files of prose, whose counts are compared too")
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    logging.disable(logging.ERROR)
    import nltk
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    names = [name for name in MAKERS if not given.only or given.only in name]
    jobs = [(name, INSTRUCTION_DICT, False) for name in names]
    if given.multi_if:
        spec = importlib.util.spec_from_file_location("multi_if_official", given.multi_if)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        jobs += [(name, module.INSTRUCTION_DICT, True) for name in names if name in MULTILINGUAL]
    found: dict[str, Any] = {}
    for name, registry, multilingual in jobs:
        start = time.perf_counter()
        label = f"{name} (Multi-IF)" if multilingual else name
        made = list(cases(name, given.count // 3 if multilingual else given.count, given.seed))
        found[label] = compared(name, made, registry, multilingual)
        short = {key: value for key, value in found[label].items() if key not in ("differ", "class")}
        print(label, short, f"{time.perf_counter() - start:.0f} s", flush=True)
    total: Counter[str] = sum(
        (Counter({k: v for k, v in one.items() if isinstance(v, int)}) for one in found.values()), Counter()
    )
    result = {
        "what": "our checkers of IFEval's instructions and the official ones on the same responses",
        "command": f"score_agreement_ifeval.py --count {given.count} --multi-if FILE --texts FILES --out FILE",
        "date": str(date(2026, 11, 23)),
        "machine": "2 shared EPYC cores",
        "commit": commit(),
        "seed": given.seed,
        "versions": {"lm-eval": version("lm-eval"), "langdetect": version("langdetect"), "nltk": nltk.__version__},
        "total": dict(total),
        "agreement, strict": total["strict"] / total["responses"],
        "agreement, loose": total["loose"] / total["responses"],
        "lowest agreement of an instruction": min(
            min(one["strict"], one["loose"]) / one["responses"] for one in found.values()
        ),
        "truth by ours": total["ours true"] / total["truth known"],
        "truth by official": total["official true"] / total["truth known"],
        "prose": prose([Path(name) for name in given.texts], given.seed),
        "by instruction": found,
    }
    write_atomic(Path(given.out), [json.dumps(result, indent=1, ensure_ascii=False).encode(), b"\n"])
    print(json.dumps({key: value for key, value in result.items() if key != "by instruction"}, indent=1))


if __name__ == "__main__":
    main()
