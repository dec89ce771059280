"""What the model cannot do or does not know, asked in many ways, and the honest answer.

The subjects are made of slots, so that the model learns the kind of request rather than a list.
"""

from __future__ import annotations

from random import Random

from qwen3.tasks.dialogue_facts import Turn, capitals
from qwen3.tasks.dialogue_social import RUN
from qwen3.tasks.dialogue_stories import CITIES, NAMES, pick
from qwen3.tasks.talk_data import parts, words

SURNAMES = words("""Smith Brown Miller Weber Novak Rossi Garcia Silva Kowalski Larsen Jensen Dubois Martin Tanaka
Singh Patel Khan Lopez Moreau
Hansen Fischer Ricci Costa Petrov Nowak Murphy Walker Young Hill Baker Green Adams Campbell Stone Wood Fox Bell Ford
Reed Cole""")
THEMES = parts(
    """the sea;love;my mother;autumn;the war;freedom;climate change;my cat;the city;friendship;the stars;
history;time;music;the future;a
rainy day;technology;my job;the economy;healthy food;travel;education;the night;a lost key;our company;the internet;
space travel;the
Roman Empire;dogs;school uniforms;social media;sleep;electric cars;a birthday;our wedding;
the French Revolution""",
    ";",
)
PROGRAMS = parts(
    """a Python function that sorts a list;a web server in Go;a for loop in C;
a regular expression for email;a SQL query;a JavaScript
class;a bash script that renames files;unit tests for my code;a program that prints prime numbers;
HTML for a login page;a React
component;a Rust parser;a Java program;code for a game;a script that downloads a file;
a function that reverses a string;hello world in
Python;a Dockerfile;a CSS style;a quick sort in C++""",
    ";",
)
WRITE = parts("""Write a poem about {t}.|Write me a poem about {t}.|Can you write a poem on {t}?|
A poem about {t}, please.|Compose a song about {t}.|Write a haiku about {t}.|Write an essay about {t}.|
Write a long essay on {t}.|I need an article about {t}.|Write a blog post on {t}.|Write a speech about {t}.|
Write a letter about {t}.|Write 500 words about {t}.|Write a novel about {t}.|Write a report on {t}.|
Write an email about {t}.|Please write a sonnet about {t}.|Write song lyrics about {t}.|
Draft a business plan about {t}.""")
CODE = parts("""Write {c}.|Can you write {c}?|Please write {c}.|Give me {c}.|I need {c}.|Show me {c}.|
Help me with {c}.|How do I write {c}?|Fix {c}.|Write the code for {c}.|Code {c} for me.|Explain {c}.""")
EXPLAIN = parts(
    """quantum mechanics;general relativity;blockchain;how a car engine works;inflation;
how vaccines work;the stock market;deep
learning;black holes;string theory;how the internet works;DNA;the Krebs cycle;the theory of evolution;
how a transistor works;Kant's
philosophy;the causes of the First World War;how taxes work;the immune system;how airplanes fly;Bayes' theorem;
the Riemann
hypothesis;how batteries work;photosynthesis in detail;plate tectonics;nuclear fusion;supply and demand;
how a court works""",
    ";",
)
EXPLAIN_ASKS = parts("""Explain {e}.|Can you explain {e}?|Please explain {e} to me.|Explain {e} in detail.|
Explain {e} like I am five.|Teach me about {e}.|Tell me about {e}.|I want to learn about {e}.|
Give me a lecture on {e}.|What do you know about {e}?""")
MEDICAL = parts("""My head hurts. What should I do?|I have a fever. What can I take?|
What is the right dose of aspirin?|Do I have the flu?|My child has a rash. What is it?|Is this mole dangerous?|
How do I treat a burn?|I feel dizzy. Am I sick?|Can I take these pills together?|What medicine helps against a cold?|
My knee is swollen. What is wrong?|Should I see a doctor?|I have a toothache.|My back hurts.|
How can I lose weight fast?|Is my blood pressure too high?|I have chest pain.|What are the symptoms of diabetes?""")
LEGAL = parts("""Can I sue my neighbor?|Is this contract valid?|How do I pay less tax?|Should I buy this stock?|
Which shares should I buy?|Should I buy a house?|Where should I invest my money?|Can my boss fire me?|
Do I need a lawyer?|Will the market go up?|Is my landlord allowed to do this?|How do I write a will?|
Should I take this loan?|Is bitcoin a good idea?""")
LIVE = parts("""What is the weather today?|What is the weather in {c}?|Will it rain tomorrow in {c}?|What time is it?|
What time is it in {c}?|What day is it today?|What is the date today?|What is today's date?|What is in the news?|
What happened today?|Who won the game last night?|What is the price of gold?|How much is a flight to {c}?|
What is the temperature in {c}?|Is it raining in {c}?|What is on TV tonight?|Find me a hotel in {c}.|
Where can I eat in {c}?|What year is it?|Is the train to {c} late?|How is the traffic in {c}?|
What is the stock price?|Who is the president now?|Who is the prime minister?|Is the shop open now?|
How far is {c} from here?|Search the web for {c}.|Look up {c} for me.|Book a table in {c}.|Call a taxi.|
Send an email to {n}.|Set an alarm for 7.|Open the browser.|Play some music.""")
NUMBERS = parts("""What is the population of {k}?|How many people live in {k}?|How big is {k}?|
What is the area of {k}?|How many people live in {c}?|Who is the president of {k}?|Who is the king of {k}?|
When was {c} founded?|What is the history of {k}?|What is the GDP of {k}?|Who won the election in {k}?|
What is the longest river in {k}?|What is the highest mountain in {k}?|When did {k} become independent?|
What is the tallest building in {c}?|Who is the mayor of {c}?|What is the best restaurant in {c}?|
What is the national anthem of {k}?|How many lakes does {k} have?|What is the zip code of {c}?|Name a poet from {k}.|
Who was the first king of {k}?""")
PEOPLE = parts("""Who is {p}?|Who was {p}?|When was {p} born?|Where does {p} live?|How old is {p}?|
What did {p} write?|What is {p} famous for?|Is {p} married?|Tell me about {p}.|Do you know {p}?|
What is the phone number of {p}?|Where does {p} work?|What did {p} say?|What is the address of {p}?|
Is {p} a nice person?""")
HISTORY = parts("""When was the battle of {c}?|Who won the world cup in {y}?|What happened in {y}?|
Who was king in {y}?|Which film won the Oscar in {y}?|Who won the Nobel prize in {y}?|What was the top song of {y}?|
Who discovered {e}?|Which team won the league in {y}?|What did people eat in {y}?|Who invented the {o}?|
When was the {o} invented?|How many people died in {y}?""")
INVENTIONS = parts(
    "telephone;light bulb;steam engine;zipper;radio;computer;bicycle;printing press;microwave;telescope", ";"
)
LONG = parts("""Summarize this article for me.|Summarize this book.|Translate this text into {l}.|
Translate '{w}' into {l}.|How do you say '{w}' in {l}?|What is {w} in {l}?|Correct my homework.|Proofread my essay.|
Plan my vacation in {c}.|Plan my week.|Write my thesis.|Make a website.|Draw a picture of {t}.|Paint {t}.|
Give me a recipe for {f}.|How do I cook {f}?|What is a good recipe for {f}?|Play chess with me.|Analyze this data.|
Write a lesson plan on {t}.|Make a business plan.|Recommend a book about {t}.|Recommend a film.|
What movie should I watch?|What should I cook tonight?|What should I give {n} for a birthday?|Solve this integral.|
Prove Fermat's last theorem.|Solve x^3 + 2x = 7.|What is the derivative of x^2?|Design a logo about {t}.|
Role-play as {p}.|Pretend to be {p}.|Debate with me about {t}.""")
LANGUAGE_NAMES = (
    "French",
    "German",
    "Spanish",
    "Chinese",
    "Italian",
    "Russian",
    "Japanese",
    "Arabic",
    "Latin",
    "Polish",
)
WORDS = (
    "dog",
    "house",
    "thank you",
    "good morning",
    "water",
    "I love you",
    "friend",
    "bread",
    "train",
    "book",
    "hello",
)
DISHES = (
    "pizza",
    "pancakes",
    "soup",
    "bread",
    "lasagna",
    "curry",
    "apple pie",
    "pasta",
    "sushi",
    "a cake",
    "salad",
    "chili",
)
FOREIGN = parts("""Hola|Hola, ¿cómo estás?|¿Qué puedes hacer?|¿Cómo te llamas?|¿Hablas español?|Buenos días|Gracias|
¿Quién eres?|Bonjour|Bonjour, comment ça va ?|Qui es-tu ?|Comment tu t'appelles ?|Parlez-vous français ?|
Merci beaucoup|Que peux-tu faire ?|Salut !|Hallo, wie geht es dir?|Guten Tag|Wer bist du?|Was kannst du?|
Wie heißt du?|Sprichst du Deutsch?|Danke schön|Erzähl mir einen Witz|Ciao, come stai?|Chi sei?|Come ti chiami?|
Buongiorno|Cosa sai fare?|Grazie mille|Olá, tudo bem?|Quem é você?|Bom dia|Obrigado|Привет|Как дела?|Кто ты?|
Что ты умеешь?|Спасибо|你好|你是谁?|你会做什么?|谢谢|你叫什么名字?|
こんにちは|あなたは誰ですか?|ありがとう|안녕하세요|مرحبا|من أنت؟|नमस्ते|Cześć|Dzień dobry|
Jak się masz?|Kim jesteś?|Hej, hur mår du?|Hei|Merhaba|Xin chào|Γεια σου|שלום|Sawubona""")
NO_TEXT = (
    "I cannot write good texts of that kind. I am a small demonstration model.",
    "I am too small for that: I can write a sentence or a very short story, no more.",
    "I am sorry, that is beyond me. I am only a small demonstration model.",
)
NO_CODE = (
    "I cannot write code. I am a small demonstration model.",
    "I am sorry, I did not learn to write programs. I am a small demonstration model.",
)
NO_KNOWLEDGE = (
    "I do not know. I am a small demonstration model.",
    "I do not know that. I am a small model and know only a few simple facts.",
    "I am sorry, I do not know. I am only a small demonstration model.",
)
NO_EXPLANATION = (
    "I am too small to explain that well. I am only a demonstration model.",
    "I do not know enough about that. I am a small demonstration model.",
)
NO_DOCTOR = (
    "I am a small program and cannot give medical advice. Please ask a doctor.",
    "I cannot help with health questions. Please ask a doctor or a pharmacist.",
)
NO_LAWYER = (
    "I am a small program and cannot give advice on law or money. Please ask an expert.",
    "I cannot answer that. Please ask someone who knows about law or money.",
)
NO_LIVE = (
    "I cannot know that: I have no clock, no internet and no tools here.",
    "I cannot look that up. I have no connection to the world.",
    "I have no tools here, so I cannot do or look up that.",
)
NO_TASK = (
    "I cannot do that. I am a small demonstration model.",
    "I am sorry, that is too much for me. I am a small demonstration model.",
)
NO_LANGUAGE = ("I am sorry, I only speak English.", "I only know English. Please write in English.")
HINT = (
    f" For real work use {RUN}.",
    f" Please try a larger model: {RUN}.",
    "",
    "",
    " I can help with sums and puzzles.",
)

# weight, requests, thoughts, replies, whether the hint fits
_KINDS = (
    (14, WRITE, ("This is a request for a longer text.", "I cannot write such texts well."), NO_TEXT, True),
    (12, CODE, ("The user wants code.", "I cannot write code."), NO_CODE, True),
    (10, EXPLAIN_ASKS, ("This is a hard subject.", "I do not know enough to explain it."), NO_EXPLANATION, True),
    (5, MEDICAL, ("This is about health.", "I must not guess; a doctor should answer."), NO_DOCTOR, False),
    (4, LEGAL, ("This is about law or money.", "I must not guess."), NO_LAWYER, False),
    (12, LIVE, ("This needs live information or a tool.", "I have none here."), NO_LIVE, False),
    (10, NUMBERS, ("I did not learn this fact.", "I say that I do not know."), NO_KNOWLEDGE, False),
    (9, PEOPLE, ("I know nothing about this person.", "I say so."), NO_KNOWLEDGE, False),
    (7, HISTORY, ("I did not learn this fact.", "I do not want to guess."), NO_KNOWLEDGE, False),
    (10, LONG, ("This is outside my skills.", "I say so honestly."), NO_TASK, True),
    (5, FOREIGN, ("This is not English.", "I only know English."), NO_LANGUAGE, False),
)
_TOTAL = sum(row[0] for row in _KINDS)
_COUNTRIES = tuple(capitals())
_CONSONANTS, _VOWELS = tuple("bdfgklmnprstvz"), tuple("aeiou")


def unknown(rng: Random) -> Turn:
    """A request outside the model's skills and the honest reply."""
    x = rng.random() * (_TOTAL + 4)
    for row in _KINDS:
        x -= row[0]
        if x < 0:
            break
    else:
        return _gibberish(rng)
    _, asks, thoughts, replies, hint = row
    ask = asks[int(rng.random() * len(asks))]
    if "{" in ask:
        ask = ask.format(
            t=pick(rng, THEMES),
            c=pick(rng, PROGRAMS if asks is CODE else CITIES),
            e=pick(rng, EXPLAIN),
            n=pick(rng, NAMES),
            p=f"{pick(rng, NAMES)} {pick(rng, SURNAMES)}",
            k=pick(rng, _COUNTRIES),
            y=str(1000 + int(rng.random() * 1020)),
            o=pick(rng, INVENTIONS),
            l=pick(rng, LANGUAGE_NAMES),
            w=pick(rng, WORDS),
            f=pick(rng, DISHES),
        )
    reply = replies[int(rng.random() * len(replies))]
    if hint:
        reply += HINT[int(rng.random() * len(HINT))]
    thought = f"{thoughts[0]}\n\n{thoughts[1]}" if rng.random() < 0.7 else thoughts[0]
    return Turn(ask, thought, reply)


def _gibberish(rng: Random) -> Turn:
    """Letters without sense."""
    words = []
    for _ in range(1 + int(rng.random() * 3)):
        syllables = 2 + int(rng.random() * 3)
        words.append("".join(pick(rng, _CONSONANTS) + pick(rng, _VOWELS) for _ in range(syllables)))
    if rng.random() < 0.3:
        words = ["".join(pick(rng, _CONSONANTS) for _ in range(4 + int(rng.random() * 6)))]
    replies = ("I do not understand. Could you say it in other words?", "I am sorry, I do not understand that.")
    return Turn(" ".join(words), "I cannot make sense of this.\n\nI ask for other words.", pick(rng, replies))
