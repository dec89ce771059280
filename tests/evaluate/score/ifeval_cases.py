"""Responses whose worth is known by how they are made, for each of IFEval's instructions: following ones, and ones
changed so that they do not. Where a change may or may not matter the truth is None."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

TEXTS = {
    "en": """The harbour was quiet when the first boats came back. Nobody had expected the storm to pass so quickly.
We walked along the beach and looked for shells. A small dog followed us all the way to the lighthouse.
My brother wanted to buy bread before the shop closed. It was already getting dark over the hills.
They told us stories about the old railway station. Every winter the river freezes near the wooden bridge.
The children were playing football behind the school. I would like to learn how these clocks are made.
Her garden is full of roses and tomatoes. The museum opens at nine in the morning and closes at five.""",
    "de": """Der Hafen war ruhig, als die ersten Boote zurückkamen. Niemand hatte erwartet, dass der Sturm so schnell
vorüberzieht. Wir gingen am Strand entlang und suchten nach Muscheln. Ein kleiner Hund folgte uns bis zum Leuchtturm.
Mein Bruder wollte noch Brot kaufen, bevor der Laden schloss. Die Kinder spielten hinter der Schule Fußball.""",
    "fr": """Le port était calme quand les premiers bateaux sont revenus. Personne ne pensait que la tempête passerait
aussi vite. Nous avons marché le long de la plage pour chercher des coquillages. Un petit chien nous a suivis jusqu'au
phare. Mon frère voulait acheter du pain avant la fermeture du magasin. Les enfants jouaient derrière l'école.""",
    "es": """El puerto estaba tranquilo cuando volvieron los primeros barcos. Nadie esperaba que la tormenta pasara tan
rápido. Caminamos por la playa buscando conchas. Un perro pequeño nos siguió hasta el faro. Mi hermano quería comprar
pan antes de que cerrara la tienda. Los niños jugaban al fútbol detrás de la escuela.""",
    "it": """Il porto era tranquillo quando tornarono le prime barche. Nessuno si aspettava che la tempesta passasse
così in fretta. Abbiamo camminato lungo la spiaggia cercando conchiglie. Un piccolo cane ci ha seguiti fino al faro.
Mio fratello voleva comprare il pane prima che il negozio chiudesse. I bambini giocavano dietro la scuola.""",
    "pt": """O porto estava calmo quando os primeiros barcos voltaram. Ninguém esperava que a tempestade passasse tão
depressa. Caminhamos pela praia à procura de conchas. Um cachorro pequeno nos seguiu até o farol. O meu irmão queria
comprar pão antes que a loja fechasse. As crianças jogavam bola atrás da escola.""",
    "ru": """В гавани было тихо, когда вернулись первые лодки. Никто не ожидал, что буря пройдёт так быстро. Мы шли по
берегу и искали ракушки. Маленькая собака шла за нами до самого маяка. Мой брат хотел купить хлеба, пока магазин не
закрылся. Дети играли в футбол за школой.""",
    "vi": """Bến cảng rất yên tĩnh khi những chiếc thuyền đầu tiên trở về. Không ai nghĩ rằng cơn bão lại qua nhanh như
vậy. Chúng tôi đi dọc bãi biển để tìm vỏ sò. Một con chó nhỏ đi theo chúng tôi đến tận ngọn hải đăng. Anh trai tôi muốn
mua bánh mì trước khi cửa hàng đóng cửa. Bọn trẻ chơi bóng đá sau trường học.""",
    "hi": """जब पहली नावें लौटीं तब बंदरगाह शांत था। किसी ने नहीं सोचा था कि तूफान इतनी जल्दी गुजर जाएगा। हम समुद्र के
किनारे चलते रहे और सीपियाँ खोजते रहे। एक छोटा कुत्ता हमारे पीछे आया। मेरा भाई दुकान बंद होने से पहले रोटी खरीदना चाहता था।""",
    "ko": """첫 번째 배들이 돌아왔을 때 항구는 조용했다. 폭풍이 그렇게 빨리 지나갈 줄은 아무도 몰랐다.
우리는 해변을 따라 걸으며 조개를 찾았다.
작은 개가 등대까지 우리를 따라왔다. 형은 가게가 문을 닫기 전에 빵을 사고 싶어 했다.""",
    "th": """ท่าเรือเงียบสงบเมื่อเรือลำแรกกลับมา ไม่มีใครคิดว่าพายุจะผ่านไปเร็วขนาดนี้ เราเดินไปตามชายหาดเพื่อหาเปลือกหอย
สุนัขตัวเล็กเดินตามเราไปจนถึงประภาคาร พี่ชายของฉันอยากซื้อขนมปังก่อนร้านปิด""",
    "ja": """最初の船が戻ってきたとき、港は静かだった。嵐がこんなに早く過ぎるとは誰も思わなかった。
私たちは貝殻を探しながら浜辺を歩いた。小さな犬が灯台までついてきた。兄は店が閉まる前にパンを買いたがっていた。""",
    "zh-cn": """第一批船回来的时候，港口很安静。谁也没想到暴风雨会这么快过去。我们沿着海滩散步，寻找贝壳。
一只小狗一直跟着我们走到灯塔。我哥哥想在商店关门之前买面包。孩子们在学校后面踢足球。""",
    "ar": """كان الميناء هادئا عندما عادت القوارب الأولى. لم يتوقع أحد أن تمر العاصفة بهذه السرعة. مشينا على طول الشاطئ
نبحث عن الأصداف. تبعنا كلب صغير حتى المنارة. أراد أخي أن يشتري الخبز قبل أن يغلق المتجر.""",
}
NAMES = [
    "Dr. Smith",
    "Mr. Jones",
    "Mrs. Miller",
    "Prof. Weber",
    "the U.S. army",
    "the U.K. team",
    "Acme Inc. of Ohio",
    "J. Doe",
]


class Case(NamedTuple):
    """truth: whether the response follows the instruction, None where its making does not say."""

    arguments: dict[str, Any]
    response: str
    truth: bool | None


def sentences(language: str) -> list[str]:
    text = " ".join(TEXTS[language].split())
    marked = text.replace("。", "。\n").replace("। ", "।\n").replace(". ", ".\n")
    return [one.strip() for one in marked.split("\n") if one.strip()]


def prose(rng: random.Random, count: int, language: str = "en") -> list[str]:
    """`count` sentences without commas' or names' tricks."""
    pool = sentences(language)
    return [rng.choice(pool) for _ in range(count)]


def tongue(rng: random.Random) -> str:
    return rng.choice([*TEXTS, "en", "en", "en"])


def words(rng: random.Random, count: int, language: str = "en") -> list[str]:
    pool = [re.sub("[.,,。।]", "", word).lower() for word in " ".join(sentences(language)).split()]
    return [rng.choice(pool) for _ in range(count)]


def body(rng: random.Random) -> str:
    """A response as a model writes them: prose, sometimes with a heading, a list, bold words or an introduction."""
    language = tongue(rng)
    text = " ".join(prose(rng, rng.randint(1, 6), language))
    extra = " ".join(prose(rng, 1, language))
    return rng.choice(
        [
            text,
            text,
            f"Sure! Here is my answer:\n\n{text}",
            f"# {extra}\n\n{text}\n\n{extra}",
            f"{text}\n\n1. {extra}\n2. {extra}",
            f"{text} **{extra}** {extra}",
            f'{text} "{extra}" — and so on... {extra}',
            f"{text}\n\n{extra}\n\nI hope this helps!",
        ]
    )


def related(rng: random.Random, count: int) -> tuple[str, int, bool]:
    relation = rng.choice(["less than", "at least"])
    bound = max(1, count + rng.choice([-3, -1, 0, 1, 2, 5]))
    return relation, bound, count < bound if relation == "less than" else count >= bound


def _keywords(rng: random.Random) -> Case:
    text, keys = body(rng), rng.sample(["zebra", "copper", "Äpfel", "яблоко", "river bank", "co-op"], rng.randint(1, 3))
    put = [key for key in keys if rng.random() < 0.75]
    shown = [rng.choice([key, key.upper(), f"**{key}**", f"{key}s", f"({key})"]) for key in put]
    return Case({"keywords": keys}, f"{text}\n{' and '.join(shown)}.", len(put) == len(keys))


def _frequency(rng: random.Random) -> Case:
    count, key = rng.randint(0, 6), rng.choice(["zebra", "copper", "яблоко", "猫"])
    relation, bound, truth = related(rng, count)
    parts = [f"{one} {rng.choice([key, key.upper(), f'{key},'])}" for one in words(rng, count)]
    return Case({"keyword": key, "frequency": bound, "relation": relation}, f"{body(rng)} {' '.join(parts)}.", truth)


def _forbidden(rng: random.Random) -> Case:
    keys = rng.sample(["zebra", "copper", "lantern", "яблоко"], 2)
    shown = rng.choice(["", keys[0], keys[1].upper(), f"{keys[0]}s", f"x{keys[1]}", f"{keys[0]}!", f"*{keys[1]}*"])
    truth = shown == "" or shown.endswith("s") or shown.startswith("x")
    return Case({"forbidden_words": keys}, f"{body(rng)} And {shown} so.", truth)


def _letters(rng: random.Random) -> Case:
    text, letter = body(rng), rng.choice("abcdeghijklmnopqrstuvwxyz")
    relation, bound, truth = related(rng, sum(c == letter for c in text.lower()))
    return Case({"letter": letter, "let_frequency": bound, "let_relation": relation}, text, truth)


def _language(rng: random.Random) -> Case:
    wanted, other = rng.choice([one for one in TEXTS if one != "zh-cn"]), rng.choice(list(TEXTS))
    spoken = wanted if rng.random() < 0.6 else other
    return Case({"language": wanted}, " ".join(prose(rng, rng.randint(3, 7), spoken)), spoken == wanted)


def _sentences(rng: random.Random) -> Case:
    count = rng.randint(1, 12)
    parts = prose(rng, count)
    for i, part in enumerate(parts):
        kind = rng.randrange(10)
        if kind == 0:
            parts[i] = part[:-1] + "!"
        elif kind == 1:
            parts[i] = f"Did you know that {part[0].lower()}{part[1:-1]}?"
        elif kind == 2:
            parts[i] = f'"{part}"'
        elif kind == 3:
            parts[i] = f"Yesterday {rng.choice(NAMES)} said that {part[0].lower()}{part[1:]}"
        elif kind == 4:
            parts[i] = f"It cost 3.14 dollars at 10 a.m. and {part[0].lower()}{part[1:]}"
    relation, bound, truth = related(rng, count)
    arguments = {"num_sentences": bound, "relation": relation}
    joined = "".join(part + rng.choice([" ", " ", "\n", "\n\n"]) for part in parts)
    if rng.random() < 0.3:  # free text in any language, with lists and abbreviations: nobody knows the count
        return Case(arguments, f"{body(rng)}\n{joined}", None)
    return Case(arguments, joined, truth)


def _number_words(rng: random.Random) -> Case:
    count = rng.randint(5, 60)
    relation, bound, truth = related(rng, count)
    text = " ".join(word + rng.choice(["", "", "", ",", ".", "!", " —"]) for word in words(rng, count))
    arguments = {"num_words": bound, "relation": relation}
    return Case(arguments, text, truth) if rng.random() < 0.7 else Case(arguments, body(rng), None)


def _paragraphs(rng: random.Random) -> Case:
    count, wanted = rng.randint(1, 5), rng.randint(1, 5)
    parts = [" ".join(prose(rng, 2, tongue(rng))) for _ in range(count)]
    text = "".join(part + rng.choice(["\n***\n", "\n\n***\n\n", " *** "]) for part in parts[:-1]) + parts[-1]
    text = rng.choice([text, text, f"***\n{text}", f"{text}\n***", text.replace("***", "*** ***", 1)])
    return Case({"num_paragraphs": wanted}, text, None if "*** ***" in text else count == wanted)


def _first_word(rng: random.Random) -> Case:
    count = rng.randint(1, 5)
    wanted, place = max(1, count + rng.choice([0, 0, 0, 1, -1])), rng.randint(1, count)
    word = rng.choice(["yet", "however", "Über", "ночь"])
    parts = [" ".join(prose(rng, 2)) for _ in range(count)]
    start = rng.choice([word, word.upper(), f"{word},", f'"{word}"', "something", f"{word}s"])
    parts[place - 1] = f"{start} {parts[place - 1]}"
    place = min(place, wanted)
    truth = count == wanted and start not in ("something", f"{word}s")
    text = ("\n\n\n\n" if rng.random() < 0.1 else "\n\n").join(parts)
    truth_known = "\n\n\n\n" not in text and place <= count
    arguments = {"num_paragraphs": wanted, "nth_paragraph": place, "first_word": word}
    return Case(arguments, text, truth if truth_known and (count == wanted or not truth) else None)


def _placeholders(rng: random.Random) -> Case:
    count, wanted = rng.randint(0, 5), rng.randint(1, 5)
    marks = [rng.choice(["[name]", "[your address]", "[имя]", "[]"]) for _ in range(count)]
    return Case({"num_placeholders": wanted}, f"{body(rng)} Dear {' and '.join(marks)}", count >= wanted)


def _postscript(rng: random.Random) -> Case:
    marker = rng.choice(["P.S.", "P.P.S"])
    shown = rng.choice([marker, marker.lower(), marker.replace(".", ". ", 1), "PS:", "", "P S"])
    return Case({"postscript_marker": marker}, f"{body(rng)}\n\n{shown} I agree", "." in shown)


def _bullets(rng: random.Random) -> Case:
    count, wanted = rng.randint(0, 6), rng.randint(1, 6)
    mark, lines = rng.choice(["* ", "- ", "  - ", "\t* "]), prose(rng, count)
    text = "Here is the list:\n" + "\n".join(mark + line for line in lines) + "\nThis is the end."
    if rng.random() < 0.2:
        return Case({"num_bullets": wanted}, text + "\n\n---\n" + body(rng), None)
    return Case({"num_bullets": wanted}, text, count == wanted)


def _constrained(rng: random.Random) -> Case:
    option = rng.choice(["yes", "no", "maybe", "YES", "perhaps", "not sure", "yes and no"])
    text = rng.choice(["{}", "{} " + body(rng), "**{}**", "Well. {}"]).format(f"My answer is {option}.")
    return Case({}, text, option in ("yes", "no", "maybe"))


def _highlights(rng: random.Random) -> Case:
    count, wanted = rng.randint(0, 5), rng.randint(1, 5)
    parts = [rng.choice(["*{}*", "**{}**"]).format(one) + rng.choice([" ", ".\n"]) for one in words(rng, count)]
    text = " ".join(prose(rng, 2)) + "\n" + "".join(parts)
    if rng.random() < 0.2:
        return Case({"num_highlights": wanted}, text + rng.choice(["***", "* one\n* two", "** **", body(rng)]), None)
    return Case({"num_highlights": wanted}, text, count >= wanted)


def _sections(rng: random.Random) -> Case:
    count, wanted = rng.randint(0, 5), rng.randint(1, 5)
    name = rng.choice(["Section", "SECTION", "PARAGRAPH", "Day", "Глава"])
    mark = rng.choice([f"{name} ", f"**{name} ", f"# {name} ", name])
    text = "\n".join(f"{mark}{i}\n{' '.join(prose(rng, 2))}" for i in range(1, count + 1)) or "Nothing here."
    return Case({"section_spliter": name, "num_sections": wanted}, text, count >= wanted)


def _json(rng: random.Random) -> Case:
    value = {"answer": body(rng), "list": [1, 2.5, None, True], "nested": {"a": words(rng, 2)}}
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 2]))
    broken = rng.choice([text[:-1], text.replace('"answer"', "answer"), text + ",", f"Here it is: {text}"])
    shown, truth = (text, True) if rng.random() < 0.55 else (broken, False)
    return Case({}, rng.choice(["{}", "```json\n{}\n```", "```\n{}\n```", "\n {} \n"]).replace("{}", shown), truth)


def _title(rng: random.Random) -> Case:
    title = rng.choice(["<<a poem>>", "<<Ода>>", "<<>>", "<< >>", "<a poem>", "<<a\npoem>>", "", "<<<a>>>"])
    return Case({}, f"{title}\n\n{body(rng)}", title in ("<<a poem>>", "<<Ода>>", "<<<a>>>"))


def _two(rng: random.Random) -> Case:
    one, two = body(rng), "Another one: " + body(rng)
    kind = rng.randrange(6)
    texts = [
        f"{one}\n******\n{two}",
        f"******\n{one}\n******\n{two}\n******",
        f"{one}\n******\n{one}",
        one,
        f"{one}\n******\n{two}\n******\n{one}",
        f"{one}\n******\n\n******\n{two}",
    ]
    return Case({}, texts[kind], kind < 2)


def _repeat(rng: random.Random) -> Case:
    asked = " ".join(prose(rng, 2, tongue(rng)))
    text = rng.choice(
        [f"{asked}\n\n{body(rng)}", f"  {asked.upper()} {body(rng)}", f"Sure. {asked}", body(rng), asked[5:]]
    )
    return Case({"prompt_to_repeat": asked}, text, text.strip().lower().startswith(asked.lower()))


def _end(rng: random.Random) -> Case:
    phrase = rng.choice(["Any other questions?", "Ist das alles?", "Это всё?", "That is all you need!"])
    last = rng.choice([phrase, phrase.upper(), f'{phrase}"', f" {phrase}\n", f"{phrase} Yes.", "", f"*{phrase}*"])
    return Case({"end_phrase": phrase}, f"{body(rng)} {last}", last.strip().strip('"').lower() == phrase.lower())


def _quoted(rng: random.Random) -> Case:
    text, kind = body(rng).strip('"'), rng.randrange(6)
    text = [f'"{text}"', f' "{text}"\n', text, f'"{text}', f"'{text}'", f"“{text}”"][kind]
    return Case({}, text, kind < 2)


def _capitals(rng: random.Random) -> Case:
    count = rng.randint(0, 8)
    relation, bound, truth = related(rng, count)
    high = [rng.choice(["NASA", "WORLD", "X-RAY", "U.S.", "ИМЯ", "B2B", "Q&A"][:6]) for _ in range(count)]
    mixed = words(rng, rng.randint(3, 20)) + high
    rng.shuffle(mixed)
    text = "".join(word + rng.choice([" ", " ", ", ", "! ", ") ", '" ', "... "]) for word in mixed)
    arguments = {"capital_frequency": bound, "capital_relation": relation}
    if rng.random() < 0.3:
        text = f"{text} {body(rng)} {rng.choice(['DON’T', 'IT’S I’M', 'A:1 AND/OR', 'HELLO,WORLD', 'I CANNOT GO--NO'])}"
        return Case(arguments, text.replace("’", rng.choice(["'", "’"])), None)
    return Case(arguments, text, truth)


def _case(rng: random.Random, upper: bool) -> Case:
    language = "en" if rng.random() < 0.7 else rng.choice(["de", "fr", "es", "ru"])
    text = " ".join(prose(rng, rng.randint(3, 6), language))
    turned = text.upper() if upper else text.lower()
    kind = rng.randrange(4)
    shown = text if kind == 0 else turned[:-9] + turned[-9:].swapcase() if kind == 1 else turned
    return Case({}, shown, kind > 1 and language == "en")


def _upper(rng: random.Random) -> Case:
    return _case(rng, True)


def _lower(rng: random.Random) -> Case:
    return _case(rng, False)


def _no_comma(rng: random.Random) -> Case:
    text = body(rng)
    shown = text if rng.random() < 0.5 else text.replace(",", "").replace("，", "")
    return Case({}, shown, "," not in shown)


MAKERS: dict[str, Callable[[random.Random], Case]] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_words": _number_words,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two,
    "combination:repeat_prompt": _repeat,
    "startend:end_checker": _end,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capitals,
    "change_case:english_capital": _upper,
    "change_case:english_lowercase": _lower,
    "punctuation:no_comma": _no_comma,
}


def cases(name: str, count: int, seed: int = 8) -> Iterator[Case]:
    """Cases of an instruction, the same for the same seed."""
    rng = random.Random(f"{name}/{seed}")
    for _ in range(count):
        yield MAKERS[name](rng)
