"""PolyMath: 500 problems of four levels in 18 languages (Wang et al. 2025, arXiv 2504.18428), with its own requests."""

from __future__ import annotations

import re

from qwen3.errors import UsageError
from qwen3.evaluate.score.math import math_item, score
from qwen3.evaluate.score.math_same import need
from qwen3.evaluate.suites.source import field, rows
from qwen3.evaluate.types import Item, Suite

HOW = "Get it with `hf download --repo-type dataset Qwen/PolyMath` (en/low.parquet and so on)."
REQUESTS = {
    "en": "Note: Please put the final answer in the {box}.",
    "zh": "注意：请将最终答案放在 {box} 中。",
    "ar": "ملاحظة: يُرجى وضع الإجابة النهائية في {box}.",
    "bn": "বিঃদ্রঃ: অনুগ্রহ করে চূড়ান্ত উত্তরটি {box} এর মধ্যে রাখুন।",
    "de": "Hinweis: Bitte setzen Sie die endgültige Antwort in {box}.",
    "es": "Nota: Por favor, coloque la respuesta final en el {box}.",
    "fr": "Remarque : Veuillez mettre la réponse finale dans le {box}.",
    "id": "Catatan: Silakan letakkan jawaban akhir di dalam {box}.",
    "it": "Nota: Per favore, metti la risposta finale nel {box}.",
    "ja": "注意：最終的な答えを {box} に入れてください。",
    "ko": "참고: 최종 답안을 {box} 안에 넣어 주세요.",
    "ms": "Nota: Sila letakkan jawapan akhir dalam {box}.",
    "pt": "Nota: Por favor, coloque a resposta final no {box}.",
    "ru": "Примечание: Пожалуйста, поместите окончательный ответ в {box}.",
    "sw": "Kumbuka: Tafadhali weka jibu la mwisho katika {box}.",
    "te": "గమనిక: దయచేసి తుది జవాబును {box} లో ఉంచండి.",
    "th": "หมายเหตุ: กรุณาใส่คำตอบสุดท้ายใน {box}.",
    "vi": "Lưu ý: Vui lòng đặt câu trả lời cuối cùng trong {box}.",
}
"""What the benchmark adds to a problem, by language."""


def load(local: str | None) -> list[Item]:
    """Language and level come from the files' names, which are LANGUAGE/LEVEL.parquet (or .jsonl)."""
    need()
    items, seen = [], dict[tuple[str, str], int]()
    for row in rows("polymath", local=local, hub=("Qwen/PolyMath",), how=HOW):
        place = re.search(r"(?:^|/)([a-z]{2})/(low|medium|high|top)[./-]", row["_file"])
        if place is None or place[1] not in REQUESTS:
            raise UsageError(f"polymath: {row['_file']} is not LANGUAGE/LEVEL.parquet (en/low.parquet and so on)")
        language, level = place.groups()
        number = seen[language, level] = seen.get((language, level), -1) + 1
        about = {"language": language, "level": level}
        request = REQUESTS[language].format(box=r"$\boxed\{\}$")
        id = f"{language}/{row.get('id', f'{level}-{number}')}"
        items.append(math_item(id, field(row, "question"), str(field(row, "answer")), about, ask=request))
    return items


SUITE = Suite(
    name="polymath",
    title="PolyMath",
    load=load,
    score=score,
    licence="Apache-2.0",
    source="https://huggingface.co/datasets/Qwen/PolyMath",
    groups=("language", "level"),
    needs=("math-verify",),
    notes="The paper and the report quote the difficulty-weighted accuracy, (low + 2 medium + 4 high + 8 top) / 15 of "
    "the levels' accuracies: the plain mean here is higher, and no number of theirs is to be compared with it.",
)
