"""Language identification: fresh sentences, odd input, damaged files, the filter."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import time
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from qwen3.errors import CorruptFileError, ModelNotFoundError, UsageError
from qwen3.train.corpus.documents import Document
from qwen3.train.corpus.filters.language import Language
from qwen3.train.corpus.language import CODES, GROUPS, LANGUAGES, MODEL, UND, LanguageId, _table, features, prepare
from recipes.language_id.evaluate import macro, scores
from recipes.language_id.fetch import language, plain, without_fallbacks
from recipes.language_id.page import filled
from recipes.language_id.train import train_script
from tests.test_floors import CHECKOUT

# Written for this test.
SENTENCES = {
    "en": "My grandmother keeps her old letters in a wooden box under the bed.",
    "fr": "Ma grand-mère garde ses vieilles lettres dans une boîte en bois sous le lit.",
    "de": "Meine Großmutter bewahrt ihre alten Briefe in einer Holzkiste unter dem Bett auf.",
    "es": "Mi abuela guarda sus cartas viejas en una caja de madera debajo de la cama.",
    "pt": "A minha avó guarda as suas cartas antigas numa caixa de madeira debaixo da cama.",
    "it": "Mia nonna conserva le sue vecchie lettere in una scatola di legno sotto il letto.",
    "nl": "Mijn grootmoeder bewaart haar oude brieven in een houten kistje onder het bed.",
    "sv": "Min mormor förvarar sina gamla brev i en trälåda under sängen.",
    "da": "Min mormor gemmer sine gamle breve i en trækasse under sengen, og jeg må ikke læse dem.",
    "nb": "Bestemoren min oppbevarer de gamle brevene sine i en trekasse under sengen, og jeg får ikke lese dem.",
    "nn": "Bestemora mi har dei gamle breva sine i ei trekasse under senga, og eg får ikkje lesa dei.",
    "is": "Amma mín geymir gömlu bréfin sín í trékassa undir rúminu.",
    "fi": "Isoäitini säilyttää vanhoja kirjeitään puulaatikossa sängyn alla.",
    "et": "Minu vanaema hoiab oma vanu kirju voodi all puidust karbis.",
    "hu": "A nagymamám egy fadobozban tartja a régi leveleit az ágy alatt.",
    "pl": "Moja babcia trzyma swoje stare listy w drewnianej skrzynce pod łóżkiem.",
    "cs": "Moje babička má své staré dopisy uložené v dřevěné krabici pod postelí.",
    "sk": "Moja stará mama má svoje staré listy uložené v drevenej škatuli pod posteľou.",
    "sl": "Moja babica hrani svoja stara pisma v leseni škatli pod posteljo.",
    "ro": "Bunica mea își ține scrisorile vechi într-o cutie de lemn sub pat.",
    "lt": "Mano močiutė laiko savo senus laiškus medinėje dėžutėje po lova.",
    "lv": "Mana vecmāmiņa glabā savas vecās vēstules koka kastē zem gultas.",
    "tr": "Büyükannem eski mektuplarını yatağın altındaki tahta bir kutuda saklıyor.",
    "az": "Nənəm köhnə məktublarını çarpayının altındakı taxta qutuda saxlayır.",
    "uz": "Buvim eski xatlarini karavot tagidagi yogʻoch qutida saqlaydi.",
    "ca": "La meva àvia guarda les seves cartes velles en una capsa de fusta sota el llit.",
    "gl": "A miña avoa garda as súas cartas vellas nunha caixa de madeira debaixo da cama.",
    "eu": "Nire amonak bere gutun zaharrak ohe azpiko zurezko kutxa batean gordetzen ditu.",
    "cy": "Mae fy nain yn cadw ei hen lythyrau mewn blwch pren o dan y gwely.",
    "ga": "Coinníonn mo sheanmháthair a seanlitreacha i mbosca adhmaid faoin leaba.",
    "mt": "In-nanna tiegħi żżomm l-ittri l-qodma tagħha f'kaxxa tal-injam taħt is-sodda.",
    "sq": "Gjyshja ime i mban letrat e vjetra në një kuti druri nën krevat.",
    "af": "My ouma hou haar ou briewe in 'n houtkissie onder die bed.",
    "lb": "Meng Groussmamm hält hir al Bréiwer an enger Holzkëscht ënnert dem Bett.",
    "id": "Nenek saya menyimpan surat-surat lamanya di dalam kotak kayu di bawah tempat tidur.",
    "tl": "Itinatago ng aking lola ang kanyang mga lumang sulat sa isang kahon na kahoy sa ilalim ng kama.",
    "vi": "Bà tôi giữ những bức thư cũ của mình trong một chiếc hộp gỗ dưới gầm giường.",
    "sw": "Bibi yangu anaweka barua zake za zamani katika sanduku la mbao chini ya kitanda.",
    "ht": "Grann mwen kenbe vye lèt li yo nan yon bwat an bwa anba kabann nan.",
    "ru": "Моя бабушка хранит свои старые письма в деревянной коробке под кроватью.",
    "uk": "Моя бабуся зберігає свої старі листи в дерев'яній скриньці під ліжком.",
    "be": "Мая бабуля захоўвае свае старыя лісты ў драўлянай скрынцы пад ложкам.",
    "bg": "Баба ми пази старите си писма в дървена кутия под леглото.",
    "mk": "Баба ми ги чува своите стари писма во дрвена кутија под креветот.",
    "sr": "Моја бака чува своја стара писма у дрвеној кутији испод кревета.",
    "kk": "Менің әжем ескі хаттарын төсек астындағы ағаш қорапта сақтайды.",
    "tg": "Бибии ман мактубҳои кӯҳнаашро дар қуттии чӯбин дар зери кат нигоҳ медорад.",
    "tt": "Минем әбием иске хатларын карават астындагы агач тартмада саклый.",
    "ar": "تحتفظ جدتي برسائلها القديمة في صندوق خشبي تحت السرير.",
    "fa": "مادربزرگم نامه‌های قدیمی خود را در یک جعبهٔ چوبی زیر تخت نگه می‌دارد.",
    "ur": "میری دادی اپنے پرانے خط پلنگ کے نیچے لکڑی کے ایک ڈبے میں رکھتی ہیں۔",
    "he": "סבתא שלי שומרת את המכתבים הישנים שלה בקופסת עץ מתחת למיטה.",
    "yi": "מײַן באָבע האַלט אירע אַלטע בריוו אין אַ הילצערן קעסטל אונטערן בעט.",
    "hi": "मेरी दादी अपने पुराने पत्र पलंग के नीचे लकड़ी के एक डिब्बे में रखती हैं।",
    "mr": "माझी आजी तिची जुनी पत्रे पलंगाखाली एका लाकडी पेटीत ठेवते.",
    "ne": "मेरी हजुरआमाले आफ्ना पुराना चिठीहरू खाटमुनि काठको बाकसमा राख्नुहुन्छ।",
    "bn": "আমার দাদি তাঁর পুরোনো চিঠিগুলো খাটের নিচে একটা কাঠের বাক্সে রাখেন।",
    "as": "মোৰ আইতাই তেওঁৰ পুৰণি চিঠিবোৰ বিছনাৰ তলত এটা কাঠৰ বাকচত ৰাখে।",
    "el": "Η γιαγιά μου φυλάει τα παλιά της γράμματα σε ένα ξύλινο κουτί κάτω από το κρεβάτι.",
    "hy": "Տատիկս իր հին նամակները պահում է մահճակալի տակ՝ փայտե տուփի մեջ։",
    "ka": "ბებიაჩემი ძველ წერილებს საწოლის ქვეშ ხის ყუთში ინახავს.",
    "ta": "என் பாட்டி தன் பழைய கடிதங்களை கட்டிலுக்கு அடியில் மரப்பெட்டியில் வைத்திருக்கிறார்.",
    "te": "మా అమ్మమ్మ తన పాత ఉత్తరాలను మంచం కింద చెక్క పెట్టెలో ఉంచుతుంది.",
    "kn": "ನನ್ನ ಅಜ್ಜಿ ತನ್ನ ಹಳೆಯ ಪತ್ರಗಳನ್ನು ಮಂಚದ ಕೆಳಗೆ ಮರದ ಪೆಟ್ಟಿಗೆಯಲ್ಲಿ ಇಡುತ್ತಾಳೆ.",
    "ml": "എന്റെ മുത്തശ്ശി പഴയ കത്തുകൾ കട്ടിലിനടിയിൽ ഒരു മരപ്പെട്ടിയിൽ സൂക്ഷിക്കുന്നു.",
    "gu": "મારી દાદી તેના જૂના પત્રો પલંગ નીચે લાકડાના ડબ્બામાં રાખે છે.",
    "pa": "ਮੇਰੀ ਦਾਦੀ ਆਪਣੀਆਂ ਪੁਰਾਣੀਆਂ ਚਿੱਠੀਆਂ ਮੰਜੇ ਹੇਠ ਲੱਕੜ ਦੇ ਡੱਬੇ ਵਿੱਚ ਰੱਖਦੀ ਹੈ।",
    "or": "ମୋ ଜେଜେମା ତାଙ୍କ ପୁରୁଣା ଚିଠି ଖଟ ତଳେ କାଠ ବାକ୍ସରେ ରଖନ୍ତି।",
    "si": "මගේ ආච්චි ඇගේ පරණ ලියුම් ඇඳ යට ලී පෙට්ටියක තබා ගනී.",
    "th": "คุณยายของฉันเก็บจดหมายเก่าไว้ในกล่องไม้ใต้เตียง",
    "lo": "ແມ່ຕູ້ຂອງຂ້ອຍເກັບຈົດໝາຍເກົ່າໄວ້ໃນກ່ອງໄມ້ກ້ອງຕຽງ",
    "my": "ကျွန်မအဖွားက သူ့စာဟောင်းတွေကို ကုတင်အောက်က သစ်သားသေတ္တာထဲမှာ သိမ်းထားတယ်။",
    "km": "ជីដូនរបស់ខ្ញុំទុកសំបុត្រចាស់ៗរបស់គាត់ក្នុងប្រអប់ឈើក្រោមគ្រែ។",
    "ko": "할머니는 오래된 편지를 침대 밑 나무 상자에 보관하신다.",
    "ja": "祖母は古い手紙をベッドの下の木箱にしまっている。",
    "zh-Hans": "我奶奶把她的旧信放在床底下的一个木盒子里,从来不让别人看。",
    "zh-Hant": "我奶奶把她的舊信放在床底下的一個木盒子裡,從來不讓別人看。",
    "yue": "我阿嫲將佢啲舊信擺喺床下底嘅一個木盒入面,從來唔畀人睇。",
}


@pytest.fixture(scope="module")
def model() -> LanguageId:
    return LanguageId.load()


def test_the_list_is_the_announcements() -> None:
    assert len(LANGUAGES) == len(CODES) == len({language.name for language in LANGUAGES}) == 119
    assert Counter(language.family for language in LANGUAGES) == {
        "Indo-European": 67, "Sino-Tibetan": 4, "Afro-Asiatic": 10, "Austronesian": 12, "Dravidian": 4, "Turkic": 6,
        "Tai-Kadai": 2, "Uralic": 3, "Austroasiatic": 2, "Other": 9,
    }  # fmt: skip
    assert next(x for x in LANGUAGES if x.code == "sr").scripts == "Cyrl,Latn"


def test_fresh_sentences(model: LanguageId) -> None:
    wrong = {code: model.classify(text)[:2] for code, text in SENTENCES.items() if model.classify(text)[0][0] != code}
    assert len(wrong) <= len(SENTENCES) * 0.05, wrong
    answers = zip(SENTENCES, model.labels(list(SENTENCES.values())), strict=True)
    assert sum(code == answer for code, answer in answers) >= 0.9 * len(SENTENCES)


def test_what_it_cannot_know_it_does_not_name(model: LanguageId) -> None:
    assert len(model.codes) >= 115
    assert CODES - set(model.codes) <= {"ars", "acq"}  # no free text of these two was found


@pytest.mark.parametrize(
    "text", ["", " \n\t", "12 345,67 €", "…!?", "🙂🙂🙂", "\0", "\ud800", "\u0301\u0301", "a", "OK", "中", "你好"]
)
def test_nothing_to_go_by_is_und(model: LanguageId, text: str) -> None:
    assert model.label(text) == UND
    found = model.classify(text)
    assert found
    assert all(0 <= p <= 1 for _, p in found)
    if not any(c.isalpha() for c in text):
        assert found == [(UND, 1.0)]


def test_other_scripts_are_und(model: LanguageId) -> None:
    for text in ("ሰው ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው", "འགྲོ་བ་མིའི་རིགས་རྒྱུད་ཡོངས་", "ᏂᎦᏓ ᎠᏂᏴᏫ ᏂᎨᎫᏓᎸᎾ"):
        assert model.classify(text)[0] == (UND, 1.0)
        assert model.label(text) == UND


def test_probabilities_are_ordered_and_surer_with_more_text(model: LanguageId) -> None:
    words = SENTENCES["de"].split()
    sure = []
    for count in (2, 5, len(words)):
        found = model.classify(" ".join(words[:count]))
        assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
        assert 0.95 <= sum(p for _, p in found) <= 1.001
        sure.append(dict(found).get("de", 0.0))
    assert sure[0] < sure[2]
    assert sure[2] > 0.9


@pytest.mark.parametrize("code", ["fr", "vi", "ru", "ar", "hi", "ko"])
def test_spelling_of_the_same_text_matters_little(model: LanguageId, code: str) -> None:
    text = SENTENCES[code]
    spelled = [text.upper(), unicodedata.normalize("NFD", text), f"<p>{text}</p> https://example.org/a?b=c",
               f"1. {text} 🙂 99", text.replace(" ", "  \n"), text + "\0", "\ud83d " + text]  # fmt: skip
    assert model.labels(spelled) == [code] * len(spelled)


def test_a_batch_says_what_single_calls_say(model: LanguageId) -> None:
    texts = [*SENTENCES.values(), "", "x\0y", *list(SENTENCES.values())[::-1]] * 2
    singles = [model.classify(text) for text in texts]
    for one, other in zip(singles, model.classify_batch(texts), strict=True):
        assert [code for code, _ in one] == [code for code, _ in other]
        np.testing.assert_allclose([p for _, p in one], [p for _, p in other], atol=1e-9)
    assert model.classify_batch([]) == []
    assert model.labels([]) == []


def test_mixed_text_gives_shares_of_letters(model: LanguageId) -> None:
    text = f"{SENTENCES['en']} {SENTENCES['ru']}\n{SENTENCES['zh-Hans']} {SENTENCES['fr']}"
    shares = dict(model.classify(text, mixed=True))
    assert set(shares) == {"en", "ru", "zh-Hans", "fr"}
    assert sum(shares.values()) == pytest.approx(1)
    assert all(0.1 < share < 0.5 for share in shares.values())
    assert model.classify("", mixed=True) == [(UND, 1.0)]
    scripts = dict(model.classify(f"{SENTENCES['el']} {SENTENCES['ka']}"))
    assert {"el", "ka"} == set(scripts)


def test_long_texts_are_looked_at_in_pieces(model: LanguageId) -> None:
    text = f"{SENTENCES['sv']} " * 20_000
    begun = time.process_time()
    assert model.label(text) == "sv"
    for filler in ("и", "a", "<a", "@a", "http://", "&a", "'", "\u0301", ".", "a."):
        model.classify(filler * 100_000 + SENTENCES["sv"], limit=0)
        model.classify(filler * 20_000, mixed=True)
    assert time.process_time() - begun < 8  # seconds; quadratic time would be minutes


def test_wrong_arguments(model: LanguageId) -> None:
    with pytest.raises(UsageError, match=r"texts\[0\]: a string is wanted, not bytes"):
        model.classify(b"text")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"texts\[1\]: .*NoneType"):
        model.labels(["a", None])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="list of strings"):
        model.labels("one string")


def test_ngrams_stay_within_words_and_texts() -> None:
    def of(*texts: str) -> list[set[int]]:
        found, owners = features(prepare(texts), "Latn")
        return [set(found[owners == k].tolist()) for k in range(len(texts))]

    assert of("one two")[0] == of("one")[0] | of("two")[0] == of("two  one")[0] == of("two, one 7")[0]
    assert of("one", "two", "", "one") == [*of("one"), *of("two"), set(), *of("one")]
    assert of("don't")[0] != of("don t")[0] == of("'don' 't'")[0]
    assert len(of("ab")[0]) == 9  # a b _a ab b_ _ab ab_ _ab_ and the word
    assert features(prepare(["абв"]), "Latn")[0].size == 0


def test_the_file_is_small_and_without_pickle() -> None:
    assert MODEL.stat().st_size <= 2_500_000
    with np.load(MODEL, allow_pickle=False) as file:
        assert {name.split(".")[0] for name in file.files} == set(GROUPS)
    assert "licen" in (MODEL.parent / "README.md").read_text(encoding="utf-8").lower()


def _rewritten(path: Path, **changes: np.ndarray) -> Path:
    with np.load(MODEL) as file:
        arrays = {name: file[name] for name in file.files if name.startswith(GROUPS)}
    np.savez(path, **(arrays | {name.replace("_", "."): value for name, value in changes.items()}))
    return path


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"none\.npz: no language model"):
        LanguageId.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Beng_codes": np.array(["as", "qq"])}, "Beng: unknown languages qq"),
        ({"Beng_weights": np.zeros((3, 2), np.int8)}, "Beng: weights int8"),
        ({"Beng_keys": np.full(3, 2**30, np.uint32)}, "Beng"),
        ({"Beng_scale": np.array([np.nan, 1], np.float32)}, "Beng: numbers that are not finite"),
        ({"Beng_scale": np.array([1], np.float32)}, "not enough values"),
        ({"Beng_codes": np.array([{"a": 1}], object)}, "not a language model"),
    ],
)
def test_a_contradictory_file(tmp_path: Path, changes: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(CorruptFileError, match=words):
        LanguageId.load(_rewritten(tmp_path / "bad.npz", **changes))


def test_a_damaged_file(tmp_path: Path) -> None:
    whole = MODEL.read_bytes()
    rng = np.random.default_rng(0)
    for number in range(12):
        data = bytearray(whole)
        if number < 4:
            data = data[: int(len(data) * number / 4)]
        else:
            data[int(rng.integers(len(data)))] ^= 0xFF
        path = tmp_path / f"{number}.npz"
        path.write_bytes(data)
        if number < 4:
            with pytest.raises(CorruptFileError, match=rf"{number}\.npz: not a language model .*reinstall"):
                LanguageId.load(path)
        else:  # a changed byte of a time stamp does no harm
            with contextlib.suppress(CorruptFileError):
                LanguageId.load(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(CorruptFileError):
        LanguageId.load(tmp_path / "folder")
    shutil.rmtree(tmp_path / "folder")


def test_the_filter_keeps_notes_and_says_why() -> None:
    keep = pickle.loads(pickle.dumps(Language(keep=("en", "de"))))
    english = keep(Document(SENTENCES["en"], "a", language="fr"))
    assert isinstance(english, Document)
    assert (english.language, english.text, english.id) == ("en", SENTENCES["en"], "a")
    assert keep(Document(SENTENCES["ru"], "b")) == "language ru"
    assert keep(Document("123", "c")) == "language und"
    noted = Language()(Document(SENTENCES["ja"], "d"))
    assert isinstance(noted, Document)
    assert noted.language == "ja"
    assert Language(threshold=1.0, keep=("en",))(Document("the table is", "e")) == "language und"
    assert isinstance(Language(keep=("und",))(Document("123", "f")), Document)
    with pytest.raises(UsageError, match="keep: english: not a code"):
        Language(keep=("english",))
    with pytest.raises(UsageError, match="threshold"):
        Language(threshold=2)


def test_the_page_is_drawn_from_the_measurement() -> None:
    page = (CHECKOUT / "docs/languages.md").read_text(encoding="utf-8")
    figures = json.loads((CHECKOUT / "benchmarks/2026-11-22-language-id.json").read_text(encoding="utf-8"))
    assert filled(page, figures) == page
    assert figures["model_bytes"] == MODEL.stat().st_size
    assert figures["collections"]["mediawiki"]["macro_f1"] >= 0.9
    assert figures["collections"]["mediawiki"]["languages"] >= 95
    with pytest.raises(ValueError, match="drawn"):
        filled("", figures)


def test_tags_of_packages() -> None:
    tags = {"zh_TW": "zh-Hant", "zh-cn": "zh-Hans", "sr@latin": "sr", "uz@cyrillic": "uz", "pt_BR": "pt", "nb-NO": "nb",
            "pes_2": "prs", "fa": "fa", "npi": "ne", "tt-cyrl": "tt", "yue-hant": "yue", "br": UND, "mn": UND,
            "qqq": "", "sh-latn": "", "gu-IN": "gu", "hat_kreyol": "ht", "007": "", "sq": "sq", "ar": "ar"}  # fmt: skip
    assert {tag: language(tag) for tag in tags} == tags


def test_markup_placeholders_and_fallbacks_are_no_text() -> None:
    text = "'''Hei''' {{PLURAL:$1|en|to}} [[Side|sider]] &amp; <b>$1 x</b> https://a.b/c a_b"
    assert plain(text) == "Hei sider & x"
    rows = [{"language": "en", "strings": ["Open", "One"]}, {"language": "fo", "strings": ["Open", "Opna"]}]
    assert without_fallbacks(rows) == 1
    assert [row["strings"] for row in rows] == [["Open", "One"], ["Opna"]]


def test_training_makes_a_table_that_tells_apart() -> None:
    words = {"he": ["ספר", "בית", "ילדה", "שולחן", "גדולה"], "yi": ["בוך", "הויז", "מיידל", "טיש", "גרויסע"]}
    rng = np.random.default_rng(0)
    texts = {code: [" ".join(rng.choice(found, 6)) for _ in range(60)] for code, found in words.items()}
    arrays = train_script("Hebr", texts, {code: found[:20] for code, found in texts.items()}, epochs=3)
    model = LanguageId({"Hebr": _table(arrays, "Hebr")})  # type: ignore[arg-type]
    assert [model.label(" ".join(found)) for found in words.values()] == ["he", "yi"]


def test_scores_count_wrong_answers_on_both_sides() -> None:
    table = scores([("a", ""), ("a", ""), ("b", "")], ["a", "b", "b"])
    assert table == {"a": (2 / 3, 1.0, 0.5), "b": (2 / 3, 0.5, 1.0)}
    assert macro(table) == 0.6667
