"""The table of tools, second half: shops, people, words, machines; and tools that are put together from parts."""

from __future__ import annotations

from random import Random

from qwen3.tasks.dialogue_facts import article, cap
from qwen3.tasks.dialogue_stories import COLORS, FOODS, NAMES
from qwen3.tasks.talk_data import parts, words
from qwen3.tasks.tools_kinds import (
    COUNTRIES,
    DISH,
    FROM,
    ITEM,
    MESSAGES,
    ON_OFF,
    PERSON,
    PLACES,
    PRODUCTS,
    RARE,
    SONGS,
    TIME,
    TO,
    TOPICS,
    Kind,
    Slot,
    code,
    date,
    decimal,
    gives,
    one_of,
    random_number,
    rolled,
    row,
    slot,
    whole,
    worked,
)

MORE: tuple[Kind, ...] = (
    row(
        "table",
        "book_table|reserve_table|restaurant_booking|table_reservation",
        "Book a table in a restaurant|Reserve a table",
        "a table for {people} at {time}",
        "Book a table for {people} at {time}.|Reserve a table for {people} people at {time}.|"
        "We are {people} and want to eat at {time}.|"
        "I need a table for {people} at {time}.",
        "A table for {people} at {time} is booked. The number is {booking}.",
        gives(booking=code),
        people=slot("people|guests|party_size|persons", "integer", "Number of guests", whole(2, 12)),
        time=TIME,
    ),
    row(
        "food",
        "order_food|order|food_order|deliver|place_order",
        "Order food|Order a dish",
        "{count} {dish}",
        "Order {count} {dish}.|I want to order {count} {dish}.|Please get me {count} {dish}.|"
        "{count} times {dish}, please.",
        "I ordered {count} {dish}. It takes {minutes} minutes.",
        gives(minutes=whole(10, 70)),
        dish=DISH,
        count=slot("count|quantity|amount|number", "integer", "How many", whole(2, 9)),
    ),
    row(
        "order",
        "order_status|track_order|get_order|check_order",
        "Get the status of an order|Where an order is",
        "the status of order {order}",
        "Where is my order {order}?|What is the status of order {order}?|Check order {order}.|"
        "Order {order}: where is it?|"
        "Has order {order} been sent?",
        "Order {order} is {status}.",
        gives(status=one_of(parts("shipped|delivered|on its way|in preparation|delayed|cancelled|packed"))),
        order=slot("order_id|order|id|number|order_number", "string", "Number of the order", code),
        without=("Where is my order?|When does my order come?", "What is the order number?"),
        pairs=True,
    ),
    row(
        "contact",
        "get_contact|find_contact|phone_book|lookup_contact|get_phone",
        "Find the phone number of a person|Look into the phone book",
        "the phone number of {name}",
        "What is the phone number of {name}?|Find the number of {name}.|How can I call {name}?|"
        "{name}'s number, please.",
        "The number of {name} is {phone}.|{name} has the number {phone}.",
        gives(phone=lambda r: f"{100 + int(r.random() * 900)}-{1000 + int(r.random() * 9000)}"),
        name=PERSON,
        without=("I need a phone number.|Find a phone number.", "Whose number?"),
        pairs=True,
    ),
    row(
        "price",
        "get_price|product_price|price_check|find_price",
        "Get the price of a product|Price in the shop",
        "the price of the {product}",
        "How much is the {product}?|What does the {product} cost?|Price of the {product}?|"
        "Tell me the price of the {product}.",
        "The {product} costs {price} dollars.",
        gives(price=decimal(2, 300)),
        product=slot("product|item|name|article", "string", "Name of the product", one_of(PRODUCTS)),
        pairs=True,
    ),
    row(
        "stock_level",
        "check_stock|inventory|in_stock|stock_level|warehouse_count",
        "How many pieces of a product are left|Inventory of the shop",
        "how many of {product} are left",
        "How many of the {product} are left?|Is the {product} in stock?|Do we have the {product}?|"
        "Stock of the {product}?",
        "There are {count} of the {product} in stock.|We have {count} of the {product}.",
        gives(count=whole(0, 900)),
        product=slot("product|item|sku|name", "string", "Name of the product", one_of(PRODUCTS)),
    ),
    row(
        "random",
        "random_number|random_int|pick_number|rand",
        "Get a random number|Draw a random number between two limits",
        "a random number from {low} to {high}",
        "Give me a random number between {low} and {high}.|Pick a number from {low} to {high}.|"
        "Random number, {low} to {high}.",
        "The number is {number}.|I got {number}.",
        random_number,
        low=slot("min|low|from|lower", "integer", "Smallest number", whole(0, 9)),
        high=slot("max|high|to|upper", "integer", "Largest number", whole(20, 1000)),
    ),
    row(
        "dice",
        "roll_dice|roll|dice|roll_die",
        "Roll a die|Throw a die with some sides",
        "a roll of a die with {sides} sides",
        "Roll a die with {sides} sides.|Throw a {sides} sided die.|Roll a d{sides}.|Please roll a {sides} sided die.",
        "You rolled {value}.|The die shows {value}.",
        rolled,
        sides=slot("sides|faces|n", "integer", "Sides of the die", one_of((4, 6, 8, 10, 12, 20))),  # type: ignore[arg-type]
    ),
    row(
        "define",
        "define_word|dictionary|define|word_meaning|lookup_word",
        "Look up a word in the dictionary|Meaning of a word",
        "the meaning of {word}",
        "What does {word} mean?|Look up the word {word}.|Define {word}.|Meaning of {word}?",
        "{word} means: {meaning}.",
        gives(
            meaning=one_of(
                parts("clear and bright|quick and light|pretty in an old way|calm|hard to see|open and honest|simple")
            )
        ),
        word=slot("word|term|text|entry", "string", "The word", one_of(RARE)),
    ),
    row(
        "population",
        "get_population|population|country_population|people_count",
        "Get the population of a country|How many people live in a country",
        "the population of {country}",
        "How many people live in {country}?|What is the population of {country}?|Population of {country}?",
        "{country} has {population} people.|{population} people live in {country}.",
        gives(population=whole(100000, 99999999)),
        country=slot("country|name|nation|state", "string", "Name of the country", one_of(COUNTRIES)),
        pairs=True,
    ),
    row(
        "distance",
        "get_distance|distance|how_far|route_length",
        "Get the distance between two cities|How far two places are apart",
        "the distance from {start} to {end}",
        "How far is it from {start} to {end}?|What is the distance from {start} to {end}?|"
        "Distance from {start} to {end}?",
        "It is {kilometers} kilometers from {start} to {end}.",
        gives(kilometers=whole(50, 12000)),
        start=FROM,
        end=TO,
    ),
    row(
        "parcel",
        "track_parcel|track_package|parcel_status|package_tracker",
        "Track a parcel|Find where a parcel is",
        "where parcel {code} is",
        "Where is my parcel {code}?|Track {code}.|Track the package {code}, please.|Where is package {code} now?",
        "The parcel {code} is in {place}.|Your parcel {code} is now in {place}.",
        gives(place=one_of(PLACES)),
        code=slot("code|tracking_number|parcel_id|id", "string", "Tracking code", code),
        without=("Where is my parcel?|Track my package.", "What is the tracking code?"),
    ),
    row(
        "news",
        "get_news|news|headlines|latest_news",
        "Get the latest headline about a topic|News about a topic",
        "news about {topic}",
        "What is new about {topic}?|News about {topic}?|Tell me the news about {topic}.|Any headlines on {topic}?",
        "The headline is: {headline}.",
        gives(
            headline=one_of(
                parts(
                    "New rules from May|Experts are happy|Prices are going up|A record year|More people take part|"
                    "Plans change again"
                )
            )
        ),
        topic=slot("topic|subject|query|about", "string", "The topic", one_of(TOPICS)),
    ),
    row(
        "movie",
        "movie_rating|film_info|rate_movie|get_rating",
        "Get the rating of a film|How good a film is",
        "the rating of {title}",
        "How good is the film {title}?|What is the rating of {title}?|Is {title} a good film?|"
        "Rating of the movie {title}?",
        "{title} has a rating of {rating} out of 10.",
        gives(rating=lambda r: round(1 + r.random() * 9, 1)),
        title=slot("title|movie|film|name", "string", "Title of the film", one_of(SONGS)),
    ),
    row(
        "shopping",
        "add_to_list|shopping_list_add|add_item|list_add|put_on_list",
        "Add something to the shopping list|Shopping list",
        "{item} on the list",
        "Add {item} to my list.|Put {item} on the shopping list.|We need {item}.|"
        "I have to buy {item}. Add it to the list.",
        "{item} is on your list.|I added {item} to the list.",
        item=ITEM,
        pairs=True,
    ),
    row(
        "notes",
        "save_note|take_note|add_note|note|write_note",
        "Save a note|Write something down",
        "a note: {text}",
        "Save a note: {text}.|Write down: {text}.|Take a note: {text}.|Note that {text}.",
        "I saved the note: {text}.|The note is saved.",
        text=slot("text|note|content|body", "string", "The text", one_of(MESSAGES)),
    ),
    row(
        "password",
        "make_password|generate_password|new_password|password",
        "Make a password|Create a random password",
        "a password with {length} characters",
        "Make a password with {length} characters.|I need a new password of {length} characters.|"
        "Give me a {length} character password.",
        "Your password is {password}",
        gives(password=lambda r: code(r) + code(r)),
        length=slot("length|size|n|characters", "integer", "How long", whole(6, 24)),
        symbols=slot(
            "symbols|special|use_symbols", "boolean", "With special characters", lambda r: True, adds=" with symbols"
        ),
    ),
    row(
        "database",
        "count_rows|table_count|db_count|row_count",
        "Count the rows of a table in the database|Number of rows of a table",
        "the number of rows in {table}",
        "How many rows does the table {table} have?|Count the rows of {table}.|How many entries are in {table}?",
        "The table {table} has {rows} rows.",
        gives(rows=whole(0, 99999)),
        table=slot(
            "table|table_name|name|relation",
            "string",
            "Name of the table",
            one_of(words("users orders items visits teams rooms bills cars")),
        ),
        pairs=True,
    ),
    row(
        "customer",
        "get_user|find_customer|lookup_user|get_account|customer_info",
        "Find a customer by number|Look up a user",
        "the customer {id}",
        "Who is customer {id}?|Look up user {id}.|Show me the account {id}.|Find the customer with the number {id}.",
        "Customer {id} is {name} from {city}.|Number {id} is {name} from {city}.",
        gives(name=one_of(NAMES), city=one_of(PLACES)),
        id=slot("id|user_id|customer_id|account|number", "integer", "Number of the customer", whole(10, 99999)),
        without=("Look up a customer.|Find the user.", "What is the customer's number?"),
    ),
    row(
        "battery",
        "battery_level|get_battery|battery|charge_level",
        "Get the battery level of a device|How full a battery is",
        "the battery of the {device}",
        "How full is the battery of my {device}?|What is the battery level of the {device}?|Battery of the {device}?",
        "The battery of the {device} is at {percent} percent.",
        gives(percent=whole(1, 100)),
        device=slot(
            "device|name|gadget",
            "string",
            "The device",
            one_of(words("phone laptop watch tablet camera car bike robot")),
        ),
    ),
    row(
        "today",
        "get_date|today|current_date|date_today",
        "Get the date of today|Today's date",
        "today's date",
        "What is the date today?|What day is it?|Tell me today's date.|Which date is it?|Today's date, please.",
        "Today is {date}.|The date is {date}.",
        gives(date=date),
    ),
    row(
        "status",
        "system_status|get_status|health_check|server_status",
        "Get the status of the system|Check if the server is fine",
        "the status of the system",
        "Is the server fine?|How is the system?|Check the system.|What is the status?|Is everything running?",
        "The system is {state}. The load is {load} percent.",
        gives(state=one_of(("up", "down", "slow", "fine", "busy")), load=whole(0, 100)),
    ),
    row(
        "app",
        "open_app|launch|start_app|run_app",
        "Open an app|Start an application",
        "the app {app}",
        "Open {app}.|Start {app}.|Launch {app}, please.|I want to use {app}.|Please open the app {app}.",
        "{app} is open.|I opened {app}.",
        app=slot(
            "app|name|application|program",
            "string",
            "Name of the app",
            one_of(words("Mail Maps Camera Notes Music Photos Calendar Chess")),
        ),
        without=("Open an app.|Start the app.", "Which app?"),
    ),
)

ENTITIES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    # entity: what names it, its names (none: a code), what can be asked of it
    "book": ("title", SONGS, words("price status score location date code size")),
    "car": ("plate", (), words("age color weight owner status price location speed")),
    "employee": ("name", NAMES, words("age status score location date rank manager code limit")),
    "student": ("name", NAMES, words("age status score location rank code date")),
    "product": ("code", (), words("color weight status score price size location date limit")),
    "room": ("number", (), words("color status size location manager limit")),
    "ticket": ("id", (), words("owner status price date rank code")),
    "project": ("name", parts("Falcon|Atlas|Maple|Orion|Delta|Harbor|Cedar|Comet|Ember|Pearl"), ()),
    "city": ("name", PLACES, words("age score size rank code limit")),
    "invoice": ("number", (), words("owner status date size manager code")),
    "machine": ("id", (), words("age weight owner status price size location speed limit manager")),
    "team": ("name", parts("Red Foxes|Blue Lions|Green Owls|White Bears|Black Crows|Gold Bees"), ()),
    "patient": ("id", (), words("age status location date code")),
    "dog": ("name", NAMES, words("age color weight owner size food speed")),
    "ship": (
        "name",
        parts("Aurora|Victory|Sea Star|North Wind|Albatross|Swift"),
        words("age weight owner speed location size"),
    ),
    "plant": ("name", words("rose fern cactus ivy basil mint orchid bamboo"), words("age color price size location")),
}
GROUPS = words("status score size location date rank manager code limit")
ATTRIBUTES = {
    "age": whole(1, 99),
    "color": one_of(COLORS),
    "weight": whole(1, 900),
    "owner": one_of(NAMES),
    "status": one_of(words("active closed open waiting ready blocked new lost")),
    "score": whole(0, 100),
    "price": decimal(1, 999),
    "size": whole(1, 500),
    "location": one_of(PLACES),
    "date": date,
    "rank": whole(1, 50),
    "manager": one_of(NAMES),
    "speed": whole(1, 300),
    "code": code,
    "food": one_of(FOODS),
    "limit": whole(10, 9999),
}
DEVICES = words("heater fan oven pump printer radio robot sprinkler camera projector mixer router television")
MODES = words("fast slow quiet eco night party strong gentle")


def composed(rng: Random) -> Kind:
    """A tool put together from parts: the attribute of something, a switch, or a setting of a device."""
    x = rng.random()
    if x < 0.6:
        entity = tuple(ENTITIES)[int(rng.random() * len(ENTITIES))]
        key, values, asked = ENTITIES[entity]
        asked = asked or GROUPS
        attribute = asked[int(rng.random() * len(asked))]
        ref = Slot(
            (f"{entity}_{key}", key, entity, f"{entity}_ref"),
            "string",
            f"The {key} of the {entity}",
            one_of(values) if values else code,
        )
        return Kind(
            f"{entity} {attribute}",
            (f"get_{entity}_{attribute}", f"{entity}_{attribute}", f"find_{attribute}", f"lookup_{entity}_{attribute}"),
            (f"Get the {attribute} of {article(entity)}", f"{cap(attribute)} of {article(entity)}"),
            {"ref": ref},
            f"the {attribute} of {entity} {{ref}}",
            (
                f"What is the {attribute} of {entity} {{ref}}?",
                f"Tell me the {attribute} of {entity} {{ref}}.",
                f"I need the {attribute} of the {entity} {{ref}}.",
                f"{cap(entity)} {{ref}}: what is the {attribute}?",
                f"Look up the {attribute} of {entity} {{ref}}.",
            ),
            gives(**{attribute: ATTRIBUTES[attribute]}),
            (f"The {attribute} of {entity} {{ref}} is {{{attribute}}}.",),
            (f"What is the {attribute} of the {entity}?", f"Which {entity}?"),
            pairs=True,
        )
    device = DEVICES[int(rng.random() * len(DEVICES))]
    if x < 0.8:
        on = Slot(("on", "state", "power", "active"), "boolean", "True for on", lambda r: r.random() < 0.5, ON_OFF)
        return Kind(
            device,
            (f"switch_{device}", f"{device}_power", f"set_{device}", f"control_{device}"),
            (f"Turn the {device} on or off", f"Switch the {device}"),
            {"on": on},
            f"the {device} {{on}}",
            (
                f"Turn {{on}} the {device}.",
                f"Turn the {device} {{on}}.",
                f"Switch the {device} {{on}}, please.",
                f"{cap(device)} {{on}}.",
            ),
            worked,
            (f"The {device} is {{on}}.", f"I turned the {device} {{on}}."),
        )
    mode = Slot(("mode", "program", "setting", "level"), "string", "The mode", one_of(MODES), enum=MODES)
    return Kind(
        device,
        (f"set_{device}_mode", f"{device}_mode", f"configure_{device}", f"{device}_program"),
        (f"Set the mode of the {device}", f"Choose a mode for the {device}"),
        {"mode": mode},
        f"the {device} in {{mode}} mode",
        (
            f"Set the {device} to {{mode}} mode.",
            f"Put the {device} in {{mode}} mode.",
            f"I want the {device} in {{mode}} mode.",
        ),
        worked,
        (f"The {device} is in {{mode}} mode.",),
        (f"Change the mode of the {device}.", "To which mode?"),
    )
