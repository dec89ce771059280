"""Which of Qwen3's 119 languages a text is in: script counts, then hashed character n-grams in a linear model.

Scripts that one language of the list uses decide by themselves; for the others (Latin, Cyrillic, Arabic, Devanagari,
Bengali, Hebrew, Han) a table of selected n-grams holds one signed byte per language. The table is made by
`recipes/language_id`; what it learned from and how well it does is in `docs/languages.md`. Only numpy is needed.
"""

from __future__ import annotations

import re
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qwen3.errors import CorruptFileError, ModelNotFoundError, UsageError

UND = "und"  # no letters, too short, not sure, or a language outside the list
LETTERS = 12.0  # with fewer a text is "und" (greetings of one word are in many languages, or in no text we learned)
MODEL = Path(__file__).resolve().parents[2] / "data" / "language" / "model.npz"


class Language(NamedTuple):
    code: str  # BCP 47: two letters where ISO 639-1 has them, else ISO 639-3; Chinese with its script
    name: str  # as the announcement prints it
    family: str
    scripts: str  # ISO 15924, the usual one first
    iso: str  # ISO 639-3 of the variety meant


_TABLE = """
Indo-European: en eng Latn English; fr fra Latn French; pt por Latn Portuguese; de deu Latn German;
ro ron Latn Romanian; sv swe Latn Swedish; da dan Latn Danish; bg bul Cyrl Bulgarian; ru rus Cyrl Russian;
cs ces Latn Czech; el ell Grek Greek; uk ukr Cyrl Ukrainian; es spa Latn Spanish; nl nld Latn Dutch;
sk slk Latn Slovak; hr hrv Latn Croatian; pl pol Latn Polish; lt lit Latn Lithuanian; nb nob Latn Norwegian Bokmål;
nn nno Latn Norwegian Nynorsk; fa pes Arab Persian; sl slv Latn Slovenian; gu guj Gujr Gujarati; lv lvs Latn Latvian;
it ita Latn Italian; oc oci Latn Occitan; ne npi Deva Nepali; mr mar Deva Marathi; be bel Cyrl Belarusian;
sr srp Cyrl,Latn Serbian; lb ltz Latn Luxembourgish; vec vec Latn Venetian; as asm Beng Assamese; cy cym Latn Welsh;
szl szl Latn Silesian; ast ast Latn Asturian; hne hne Deva Chhattisgarhi; awa awa Deva Awadhi; mai mai Deva Maithili;
bho bho Deva Bhojpuri; sd snd Arab Sindhi; ga gle Latn Irish; fo fao Latn Faroese; hi hin Deva Hindi;
pa pan Guru Punjabi; bn ben Beng Bengali; or ory Orya Oriya; tg tgk Cyrl Tajik; yi ydd Hebr Eastern Yiddish;
lmo lmo Latn Lombard; lij lij Latn Ligurian; scn scn Latn Sicilian; fur fur Latn Friulian; sc srd Latn Sardinian;
gl glg Latn Galician; ca cat Latn Catalan; is isl Latn Icelandic; sq als Latn Tosk Albanian; li lim Latn Limburgish;
prs prs Arab Dari; af afr Latn Afrikaans; mk mkd Cyrl Macedonian; si sin Sinh Sinhala; ur urd Arab Urdu;
mag mag Deva Magahi; bs bos Latn,Cyrl Bosnian; hy hye Armn Armenian
Sino-Tibetan: zh-Hans zho Hani Chinese (Simplified Chinese); zh-Hant zho Hani Chinese (Traditional Chinese);
yue yue Hani Chinese (Cantonese); my mya Mymr Burmese
Afro-Asiatic: ar arb Arab Arabic (Standard); ars ars Arab Arabic (Najdi); apc apc Arab Arabic (Levantine);
arz arz Arab Arabic (Egyptian); ary ary Arab Arabic (Moroccan); acm acm Arab Arabic (Mesopotamian);
acq acq Arab Arabic (Ta'izzi-Adeni); aeb aeb Arab,Latn Arabic (Tunisian); he heb Hebr Hebrew; mt mlt Latn Maltese
Austronesian: id ind Latn Indonesian; ms zsm Latn Malay; tl tgl Latn Tagalog; ceb ceb Latn Cebuano;
jv jav Latn Javanese; su sun Latn Sundanese; min min Latn Minangkabau; ban ban Latn Balinese; bjn bjn Latn Banjar;
pag pag Latn Pangasinan; ilo ilo Latn Iloko; war war Latn Waray
Dravidian: ta tam Taml Tamil; te tel Telu Telugu; kn kan Knda Kannada; ml mal Mlym Malayalam
Turkic: tr tur Latn Turkish; az azj Latn,Cyrl North Azerbaijani; uz uzn Latn,Cyrl Northern Uzbek;
kk kaz Cyrl,Latn,Arab Kazakh; ba bak Cyrl Bashkir; tt tat Cyrl,Latn Tatar
Tai-Kadai: th tha Thai Thai; lo lao Laoo Lao
Uralic: fi fin Latn Finnish; et ekk Latn Estonian; hu hun Latn Hungarian
Austroasiatic: vi vie Latn Vietnamese; km khm Khmr Khmer
Other: ja jpn Jpan Japanese; ko kor Hang Korean; ka kat Geor Georgian; eu eus Latn Basque; ht hat Latn Haitian;
pap pap Latn Papiamento; kea kea Latn Kabuverdianu; tpi tpi Latn Tok Pisin; sw swh Latn Swahili
"""


def _languages() -> Iterable[Language]:
    for line in re.split(r"\n(?=[\w-]+: )", _TABLE.strip()):
        family, rest = line.split(": ", 1)
        for entry in rest.split(";"):
            code, iso, scripts, name = entry.split(None, 3)
            yield Language(code, " ".join(name.split()), family, scripts, iso)


LANGUAGES = tuple(_languages())
CODES = frozenset(language.code for language in LANGUAGES)

# Scripts: a number per code point --------------------------------------------------------------------------------

GROUPS = ("Latn", "Cyrl", "Arab", "Deva", "Beng", "Hebr", "Hani")  # scripts whose languages the model tells apart
_ALONE = """Grek el Armn hy Geor ka Gujr gu Guru pa Orya or Taml ta Telu te Knda kn Mlym ml Sinh si Thai th Laoo lo
Mymr my Khmr km Hang ko Kana ja"""
_ONE = dict(zip(_ALONE.split()[::2], _ALONE.split()[1::2], strict=True))
_SCRIPTS = ("", *GROUPS, *_ONE, "Zyyy")  # Zyyy here: letters of scripts no language of the list is written in
_NUMBER = {name: number for number, name in enumerate(_SCRIPTS)}
_JOIN, _DROP = 254, 255
_HANI, _HANG, _KANA, _OTHER = (_NUMBER[name] for name in ("Hani", "Hang", "Kana", "Zyyy"))
_RANGES = """
Latn 41-5a 61-7a aa ba c0-d6 d8-f6 f8-2af 1e00-1eff 2c60-2c7f a722-a7ff ab30-ab6f fb00-fb06 ff21-ff3a ff41-ff5a
Grek 370-373 376-37d 37f 386-3ff 1f00-1fff
Cyrl 400-481 48a-52f 1c80-1c88 a640-a69f
Armn 531-556 561-587 fb13-fb17
Hebr 591-5bd 5bf 5c1-5c2 5c4-5c7 5d0-5ea 5ef-5f2 fb1d-fb4f
Arab 620-63f 641-64a 66e-6d3 6d5 6ee-6ef 6fa-6ff 750-77f 8a0-8c7 fb50-fdff fe70-fefc
Deva 900-963 971-97f a8e0-a8ff
Beng 980-9e3 9f0-9f1 9fc
Guru a01-a65 a70-a75
Gujr a81-ae3 af9-aff
Orya b01-b63 b71
Taml b82-be5
Telu c00-c63
Knda c80-ce3 cf1-cf2
Mlym d00-d63 d7a-d7f
Sinh d81-df3
Thai e01-e3a e40-e4e
Laoo e81-ece edc-edf
Mymr 1000-103f 1050-109f a9e0-a9fe aa60-aa7f
Geor 10a0-10ff 1c90-1cbf 2d00-2d2d
Khmr 1780-17d3 17dc
Hang 1100-11ff 3131-318e a960-a97c ac00-d7fb ffa0-ffdc
Kana 3041-309f 30a1-30fa 30fc-30ff 31f0-31ff ff66-ff9f 1b000-1b16f
Hani 2e80-2fd5 3005-3007 3400-4dbf 4e00-9fff f900-faff 20000-3ffff
Zyyy 700-74f 780-7bf 7ca-7ea 800-815 840-858 f00-fbc 1200-139f 13a0-13fd 1401-166c 1681-169a 16a0-16ea 1700-1773
Zyyy 1820-18aa 1900-1974 1980-19c9 1a00-1a54 1b05-1b4b 1b83-1baf 1bc0-1be5 1c00-1c36 1c5a-1c7d 2c80-2cee 2d30-2d67
Zyyy 2d80-2dde a000-a48c a4d0-a4fd a500-a61f a800-a827 a840-a873 a882-a8c3 a90a-a946 a984-a9b2 aa00-aa28 aa80-aadd
Zyyy abc0-abe2 10280-1031f 10330-1034a 10400-104ff 11000-11fff 12000-1254f 13000-1342f 16800-16a38 1e100-1e943
"""


def _script_table() -> np.ndarray:
    table = np.zeros(0x40000, np.uint8)
    for line in _RANGES.strip().splitlines():
        script, *spans = line.split()
        for span in spans:
            first, _, last = span.partition("-")
            table[int(first, 16) : int(last or first, 16) + 1] = _NUMBER[script]
    for mark in (*range(0x300, 0x370), *range(0x610, 0x61B), 0x640, *range(0x64B, 0x660), 0x670, 0xAD, 0x200D):
        table[mark] = _DROP  # accents that stand alone, Arabic vowel signs, stretching, soft hyphens
    for mark in (0x27, 0x60, 0xB4, 0xB7, 0x2018, 0x2019, 0x2BB, 0x2BC, 0x2BF):
        table[mark] = _JOIN
    return table


_TABLE_OF = _script_table()
# A Chinese character says about as much as three letters.
_WEIGHTS = np.array([0.0 if not s else {"Hani": 3.0, "Kana": 2.0, "Hang": 2.0}.get(s, 1.0) for s in _SCRIPTS])
# No pattern here may look far ahead from every place: a text without blanks would take quadratic time.
_NOISE = re.compile(r"https?://\S+|www\.\S+|@[\w.-]+|</?[a-zA-Z][^<>]{0,200}>|&#?\w{1,8};|\x00")


class Prepared(NamedTuple):
    """A batch as one row of code points, script numbers and text numbers, int32/uint8/int32 [n]; `letters`
    float64 [texts, scripts] are the letters of each script, weighted."""

    points: np.ndarray
    scripts: np.ndarray
    texts: np.ndarray
    letters: np.ndarray


def prepare(texts: Sequence[str]) -> Prepared:
    joined = "\0".join(_NOISE.sub(" ", text) for text in texts)
    joined = f" {unicodedata.normalize('NFC', joined.lower())}\0"
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4")
    scripts = _TABLE_OF[np.minimum(points, len(_TABLE_OF) - 1)]
    scripts[points >= len(_TABLE_OF)] = 0
    kept = scripts != _DROP
    points, scripts = points[kept], scripts[kept]
    number = np.cumsum(points == 0) - (points == 0)
    joins = np.flatnonzero(scripts == _JOIN)
    before, after = scripts[joins - 1], scripts[np.minimum(joins + 1, len(scripts) - 1)]
    inside = (joins > 0) & (before == after) & (after != _JOIN)
    scripts[joins] = np.where(inside, after, 0)
    points = points.copy()
    points[joins] = 0x27
    letters = np.bincount(number * len(_SCRIPTS) + scripts, minlength=len(texts) * len(_SCRIPTS))
    return Prepared(points, scripts, number, letters.reshape(len(texts), -1)[: len(texts)] * _WEIGHTS)


# Features --------------------------------------------------------------------------------------------------------

BITS = 20  # n-grams are hashed to so many bits
_ORDERS = {"Hani": 3}


def features(batch: Prepared, script: str) -> tuple[np.ndarray, np.ndarray]:
    """Hashes, int64 [n] below 2**BITS, of the n-grams (1 to 5, within words and their bounds) and of the words
    in this script's letters; and the text each belongs to, int64 [n], not in order."""
    inside = batch.scripts == _NUMBER[script]
    previous = np.concatenate([[False], inside[:-1]])
    following = np.concatenate([inside[1:], [False]])
    kept = inside | following | (previous & ~inside)  # letters and a bound on each side; two bounds may meet
    points = np.where(inside, batch.points, 32)[kept].astype(np.uint32)
    letter = inside[kept]
    texts = batch.texts[kept]
    if not len(points):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    starts = np.flatnonzero(letter & ~np.concatenate([[False], letter[:-1]]))
    texts[np.maximum(starts - 1, 0)] = texts[starts]  # the bound before a word is that word's
    bounds = np.concatenate([[0], np.cumsum(~letter)])
    found, owners = [], []
    rolling = points * np.uint32(0x9E3779B1)
    for order in range(1, _ORDERS.get(script, 5) + 1):
        if order > 1:
            rolling = (rolling[:-1] ^ (rolling[:-1] >> np.uint32(15))) * np.uint32(0x85EBCA6B) + points[order - 1 :]
        count = len(rolling)
        if count <= 0:
            break
        if order == 1:
            valid = letter
        else:  # no bound strictly inside, and not two bounds only
            valid = bounds[order - 1 : order - 1 + count] == bounds[1 : 1 + count]
            if order == 2:
                valid = valid & (letter[:-1] | letter[1:])
        found.append(_bucket(rolling[valid], order))
        owners.append(texts[:count][valid])
    if script != "Hani" and len(starts):
        first = np.zeros(len(points), np.int64)
        first[starts] = starts
        place = np.arange(len(points)) - np.maximum.accumulate(first)
        powers = np.cumprod(np.full(64, 0x01000193, np.uint32), dtype=np.uint32)
        terms = points * powers[np.minimum(place, 63)] * letter
        found.append(_bucket(np.add.reduceat(terms, starts, dtype=np.uint32), 9))
        owners.append(texts[starts])
    return np.concatenate(found), np.concatenate(owners)


def _bucket(hashes: np.ndarray, order: int) -> np.ndarray:
    mixed = (hashes ^ np.uint32(order * 0x3C6EF372 & 0xFFFFFFFF)) * np.uint32(0xC2B2AE35)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0x27D4EB2F)
    return (mixed >> np.uint32(32 - BITS)).astype(np.int64)


# The model -------------------------------------------------------------------------------------------------------


class _Table(NamedTuple):
    """What one script's n-grams say: row [buckets] is 0 for an n-gram that was not selected, else its row of
    weights float32 [rows, languages]; the sum over a text's n counted n-grams is scaled by n**-power."""

    codes: tuple[str, ...]
    row: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    power: float

    def probabilities(self, buckets: np.ndarray, texts: np.ndarray, count: int) -> np.ndarray:
        """float64 [count, languages] from the n-grams of so many texts; rows of texts without any are the bias'."""
        rows = self.row[buckets]
        texts, rows = texts[rows > 0], rows[rows > 0]
        order = np.argsort(texts, kind="stable")
        texts, rows = texts[order], rows[order]
        numbers = np.bincount(texts, minlength=count)
        ends = np.cumsum(numbers)
        sums = np.zeros((count, len(self.codes)))
        for text in np.flatnonzero(numbers):
            sums[text] = self.weights[rows[ends[text] - numbers[text] : ends[text]]].sum(0)
        logits = sums * np.maximum(numbers, 1.0)[:, None] ** -self.power + self.bias
        logits = np.exp(logits - logits.max(1, keepdims=True))
        return logits / logits.sum(1, keepdims=True)


_DAMAGES = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, MemoryError,
            zipfile.BadZipFile, zlib.error)  # fmt: skip


class LanguageId:
    """Names the language of texts. `LanguageId.load()` reads the model that comes with the package."""

    def __init__(self, tables: dict[str, _Table]) -> None:
        self._tables = tables

    @classmethod
    def load(cls, path: str | Path = MODEL) -> LanguageId:
        """Reads a model file made by `recipes/language_id/train.py`.

        Raises ModelNotFoundError when there is none, CorruptFileError when it is damaged or something else.
        """
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls({script: _table(file, script) for script in GROUPS})
        except FileNotFoundError:
            raise ModelNotFoundError(
                f"{path}: no language model there; reinstall the package, or make one with recipes/language_id"
            ) from None
        except _DAMAGES as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CorruptFileError(f"{path}: not a language model ({reason}); reinstall the package") from None

    @property
    def codes(self) -> tuple[str, ...]:
        """The languages of the list this model can answer with, sorted; the others were not learned."""
        learned = {code for table in self._tables.values() for code in table.codes} | set(_ONE.values())
        return tuple(sorted(learned - {UND}))

    def classify(self, text: str, *, mixed: bool = False, limit: int = 4000) -> list[tuple[str, float]]:
        """Languages and their probabilities, largest first, those under 0.001 left out; [("und", 1.0)] when the text
        has no letters.

        `mixed`: the probabilities are shares of the text's letters instead, found sentence by sentence. `limit`: of a
        longer text only four pieces, this many characters together, are looked at (0: all of it); not with `mixed`.
        Raises UsageError when `text` is no string.
        """
        return self.classify_batch([text], mixed=mixed, limit=limit)[0]

    def classify_batch(
        self, texts: Sequence[str], *, mixed: bool = False, limit: int = 4000
    ) -> list[list[tuple[str, float]]]:
        """`classify` for many texts at once, which is faster for short ones."""
        return [found for found, _ in self._batch(texts, mixed, limit)]

    def label(self, text: str, *, threshold: float = 0.5, letters: float = LETTERS, limit: int = 4000) -> str:
        """The language's code, or "und": fewer letters than `letters` (a Chinese character counts three, a letter of a
        script that one language alone uses three, Japanese and Korean ones six), a probability below `threshold`, or
        a language outside the list."""
        return self.labels([text], threshold=threshold, letters=letters, limit=limit)[0]

    def labels(
        self, texts: Sequence[str], *, threshold: float = 0.5, letters: float = LETTERS, limit: int = 4000
    ) -> list[str]:
        """`label` for many texts at once."""
        return [
            found[0][0] if count >= letters and found[0][1] >= threshold else UND
            for found, count in self._batch(texts, False, limit)
        ]

    def _batch(self, texts: Sequence[str], mixed: bool, limit: int) -> list[tuple[list[tuple[str, float]], float]]:
        """Per text what `classify` answers, and how many letters were seen."""
        if isinstance(texts, str):
            raise UsageError("texts: a list of strings is wanted, not one string; use classify or label for one")
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise UsageError(f"texts[{number}]: a string is wanted, not {type(text).__name__}")
        if mixed:
            return [self._shares(text) for text in texts]
        answers = []
        for start in range(0, len(texts), 256):
            batch = prepare([_excerpt(text, limit) for text in texts[start : start + 256]])
            for scores, count in zip(self._scores(batch), _evidence(batch).tolist(), strict=True):
                answers.append((_ranked(scores), count))
        return answers

    def _scores(self, batch: Prepared) -> list[dict[str, float]]:
        letters = batch.letters.copy()
        # Chinese characters in a text with Japanese or Korean letters belong to those.
        for owner, least in ((_KANA, 0.1), (_HANG, 0.5)):
            theirs = (letters[:, owner] > 0) & (letters[:, owner] >= least * letters[:, _HANI])
            letters[theirs, owner] += letters[theirs, _HANI]
            letters[theirs, _HANI] = 0
        totals = letters.sum(1)
        shares = letters / np.maximum(totals, 1e-9)[:, None]
        scores: list[dict[str, float]] = [{UND: float(total == 0)} for total in totals]
        for number, script in enumerate(_SCRIPTS):
            present = np.flatnonzero(shares[:, number])
            if not len(present):
                continue
            if script in self._tables:
                table = self._tables[script]
                found = table.probabilities(*features(batch, script), len(totals))
                for text in present.tolist():
                    for code, probability in zip(table.codes, found[text].tolist(), strict=True):
                        scores[text][code] = scores[text].get(code, 0.0) + probability * float(shares[text, number])
            else:
                code = _ONE.get(script, UND)
                for text in present.tolist():
                    scores[text][code] = scores[text].get(code, 0.0) + float(shares[text, number])
        return scores

    def _shares(self, text: str) -> tuple[list[tuple[str, float]], float]:
        parts = _parts(text) or [""]
        batch = prepare(parts)
        counts = batch.letters.sum(1)
        total = float(counts.sum())
        shares: dict[str, float] = {} if total else {UND: 1.0}
        rows = zip(self._scores(batch), counts.tolist(), _evidence(batch).tolist(), strict=True)
        for scores, count, evidence in rows:
            code, probability = _ranked(scores)[0]
            code = code if probability >= 0.5 and evidence >= LETTERS else UND
            if count:
                shares[code] = shares.get(code, 0.0) + count / total
        return _ranked(shares), total


def _evidence(batch: Prepared) -> np.ndarray:
    """Letters of each text, float64 [texts]; where the script decides one says as much as three."""
    return batch.letters @ np.array([3.0 if script in _ONE else 1.0 for script in _SCRIPTS])


def _table(file: np.lib.npyio.NpzFile, script: str) -> _Table:
    codes = tuple(str(code) for code in file[f"{script}.codes"])
    keys, weights, bias = (file[f"{script}.{part}"] for part in ("keys", "weights", "bias"))
    step, power = file[f"{script}.scale"].astype(np.float64).tolist()
    if unknown := set(codes) - CODES - {UND}:
        raise ValueError(f"{script}: unknown languages {', '.join(sorted(unknown))}")
    if weights.dtype != np.int8 or weights.shape != (len(keys), len(codes)) or bias.shape != (len(codes),):
        raise ValueError(f"{script}: weights {weights.dtype} {weights.shape}, bias {bias.shape}: shapes do not agree")
    if keys.dtype != np.uint32 or keys.ndim != 1 or (len(keys) and keys.max() >= 2**BITS):
        raise ValueError(f"{script}: keys are not n-gram numbers below 2**{BITS}")
    if not np.isfinite([step, power]).all() or not np.isfinite(bias).all():
        raise ValueError(f"{script}: numbers that are not finite")
    row = np.zeros(2**BITS, np.int32)
    row[keys] = np.arange(1, len(keys) + 1)
    full = np.concatenate([np.zeros((1, len(codes)), np.float32), weights.astype(np.float32) * np.float32(step)])
    return _Table(codes, row, full, bias.astype(np.float64), power)


def _ranked(scores: dict[str, float]) -> list[tuple[str, float]]:
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return [(code, min(probability, 1.0)) for code, probability in ranked if probability >= 0.001] or ranked[:1]


def _excerpt(text: str, limit: int) -> str:
    if limit <= 0 or len(text) <= limit:
        return text
    piece = limit // 4
    starts = [round(k * (len(text) - piece) / 3) for k in range(4)]
    return " ".join(text[start : start + piece] for start in starts)


def _parts(text: str, least: int = 30) -> list[str]:
    """Sentences and lines; short ones are joined to what follows (a character beyond the alphabets counts thrice)."""
    parts: list[str] = []
    for part in re.split(r"(?<=[.!?。！？։؟।])\s*|\n+", text):
        if parts and len(parts[-1]) + 2 * sum(c > "\u2e80" for c in parts[-1]) < least and part.strip():
            parts[-1] += " " + part
        elif part and part.strip():
            parts.append(part)
    return parts
