"""The table of tools (see `tools_kinds.Kind`), first half: places, numbers, time, house, files, messages, travel."""

from __future__ import annotations

from qwen3.tasks.talk_data import parts, words
from qwen3.tasks.tools_kinds import (
    CITY,
    DAY,
    ERRANDS,
    FILES,
    FOLDERS,
    FROM,
    LANGUAGES,
    MEETINGS,
    MESSAGES,
    MONEY,
    ON,
    PERSON,
    ROOM,
    SKIES,
    SONGS,
    SUBJECTS,
    SYMBOLS,
    TIME,
    TO,
    TOPICS,
    TRANSLATIONS,
    UNITS,
    Kind,
    agenda,
    calculated,
    clock,
    code,
    converted,
    decimal,
    expression,
    gives,
    one_of,
    row,
    slot,
    some_files,
    translated,
    whole,
)

DEGREES = slot(
    "unit|units|scale",
    "string",
    "Temperature unit",
    one_of(("celsius", "fahrenheit")),
    adds=" in {}",
    enum=("celsius", "fahrenheit"),
)
KINDS: tuple[Kind, ...] = (
    row(
        "weather",
        "get_weather|weather|fetch_weather|current_weather|weather_lookup|weather_now|get_current_weather",
        "Get the weather in a city|Current weather of a place|Look up the weather",
        "the weather in {city}",
        "What is the weather in {city}?|How is the weather in {city}?|Tell me the weather in {city}.|"
        "Weather in {city}?|"
        "What's the weather like in {city}?|Is it warm in {city}?|How warm is it in {city}?|"
        "Check the weather in {city}.|"
        "Do I need a coat in {city}?|I am going to {city}. How is the weather?|What is the temperature in {city}?",
        "It is {temperature} degrees and {sky} in {city}.|The weather in {city}: {temperature} degrees, {sky}.",
        gives(temperature=whole(-15, 40), sky=one_of(SKIES)),
        city=CITY,
        unit=DEGREES,
        without=(
            "What is the weather?|How is the weather today?|Is it warm outside?|Weather please.",
            "For which city?",
        ),
        pairs=True,
    ),
    row(
        "clock",
        "get_time|current_time|time_in|world_clock|local_time|clock",
        "Get the local time of a city|The time in a place|World clock",
        "the time in {city}",
        "What time is it in {city}?|Tell me the time in {city}.|What is the time in {city}?|Time in {city}?|"
        "How late is it in {city}?|"
        "I want to call someone in {city}. What time is it there?|Current time in {city}, please.",
        "It is {time} in {city}.|The time in {city} is {time}.",
        gives(time=clock),
        city=CITY,
        without=("What time is it?|Tell me the time.", "In which city?"),
        pairs=True,
    ),
    row(
        "calculate",
        "calculator|calculate|calc|evaluate|compute|math|do_math",
        "Evaluate an arithmetic expression|Calculate with numbers|A calculator",
        "the value of {expression}",
        "What is {expression}?|Calculate {expression}.|Compute {expression}.|How much is {expression}?|"
        "{expression} = ?|"
        "Use the calculator: {expression}|Please work out {expression}.",
        "{expression} = {result}.|The result is {result}.|{expression} is {result}.",
        calculated,
        expression=slot("expression|formula|input|expr|term", "string", "For example 2 + 3", expression),
    ),
    row(
        "currency",
        "convert_currency|exchange|currency_converter|money_convert|fx_convert",
        "Convert money from one currency to another|Exchange an amount of money",
        "{amount} {source} in {target}",
        "Convert {amount} {source} to {target}.|How much is {amount} {source} in {target}?|"
        "Change {amount} {source} into {target}.|"
        "What are {amount} {source} in {target}?|I have {amount} {source}. How many {target} is that?",
        "{amount} {source} are {converted} {target}.|You get {converted} {target} for {amount} {source}.",
        gives(converted=decimal(5, 9000)),
        amount=slot("amount|value|sum|money", "number", "Amount of money", whole(5, 5000)),
        source=slot("from|from_currency|source|base", "string", "Currency code", one_of(MONEY[:5])),
        target=slot("to|to_currency|target|quote", "string", "Currency code", one_of(MONEY[5:])),
    ),
    row(
        "units",
        "convert_units|unit_converter|convert|convert_measure",
        "Convert a measure to another unit|Unit converter",
        "{value} {source} in {target}",
        "Convert {value} {source} to {target}.|How many {target} are {value} {source}?|"
        "What is {value} {source} in {target}?|"
        "Please turn {value} {source} into {target}.",
        "{value} {source} are {converted} {target}.",
        converted,
        value=slot("value|amount|number|quantity", "number", "The number", whole(2, 900)),
        source=slot("from_unit|from|unit|source_unit", "string", "Unit of the number", one_of(UNITS)),
        target=slot("to_unit|to|target_unit|into", "string", "Unit of the result", one_of(UNITS)),
    ),
    row(
        "translate",
        "translate|translate_text|translator|get_translation",
        "Translate a text into a language|Translator",
        "'{text}' in {language}",
        "Translate '{text}' into {language}.|How do you say '{text}' in {language}?|What is '{text}' in {language}?|"
        "Say '{text}' in {language}.|I need '{text}' in {language}.",
        "In {language} it is: {translation}|'{text}' in {language} is '{translation}'.",
        translated,
        text=slot("text|phrase|sentence|input", "string", "The text", one_of(tuple(TRANSLATIONS))),
        language=slot("language|target_language|lang|to", "string", "The language", one_of(LANGUAGES)),
    ),
    row(
        "timer",
        "set_timer|start_timer|timer|countdown_timer",
        "Start a timer|Set a timer for some minutes",
        "a timer for {minutes} minutes",
        "Set a timer for {minutes} minutes.|Start a {minutes} minute timer.|Timer for {minutes} minutes, please.|"
        "Wake me in {minutes} minutes.|Tell me when {minutes} minutes are over.|Give me {minutes} minutes.",
        "The timer is set for {minutes} minutes.|Your timer for {minutes} minutes is running.",
        minutes=slot("minutes|duration|length|duration_minutes", "integer", "Minutes", whole(2, 90)),
        label=slot(
            "label|name|title",
            "string",
            "Name of the timer",
            one_of(words("tea eggs cake rice nap laundry")),
            adds=" for the {}",
        ),
        without=("Set a timer.|Start a timer, please.", "For how many minutes?"),
    ),
    row(
        "alarm",
        "set_alarm|alarm|create_alarm|wake_up_call|add_alarm",
        "Set an alarm|Create an alarm for a time",
        "an alarm at {time}",
        "Set an alarm for {time}.|Wake me at {time}.|I have to get up at {time}.|Alarm at {time}, please.|"
        "Please wake me up at {time}.",
        "The alarm is set for {time}.|I set your alarm for {time}.",
        time=TIME,
        without=("Set an alarm.|Wake me up tomorrow.", "At what time?"),
    ),
    row(
        "reminder",
        "add_reminder|remind|create_reminder|set_reminder|reminder_add",
        "Add a reminder|Remind the user of something",
        "a reminder to {text} at {time}",
        "Remind me to {text} at {time}.|At {time} I have to {text}. Remind me.|Please remind me at {time} to {text}.|"
        "Add a reminder for {time}: {text}.|Do not let me forget to {text} at {time}.",
        "I will remind you at {time} to {text}.|The reminder for {time} is set: {text}.",
        text=slot("text|message|task|what|note", "string", "What to do", one_of(ERRANDS)),
        time=TIME,
    ),
    row(
        "event",
        "add_event|create_event|calendar_add|new_appointment|schedule",
        "Add an event to the calendar|Create a calendar entry",
        "{title} on {day} at {time} in the calendar",
        "Add {title} on {day} at {time}.|Put {title} in my calendar for {day} at {time}.|"
        "Schedule {title} on {day} at {time}.|"
        "I have {title} on {day} at {time}. Add it, please.|New event: {title}, {day}, {time}.",
        "{title} is in your calendar for {day} at {time}.|I added {title} on {day} at {time}.",
        title=slot("title|event|name|summary", "string", "Name of the event", one_of(MEETINGS)),
        day=DAY,
        time=TIME,
    ),
    row(
        "event",
        "list_events|get_calendar|agenda|calendar_day|my_events",
        "List the events of a day|Show the calendar of a day",
        "the events on {day}",
        "What do I have on {day}?|What is in my calendar on {day}?|Show me my {day}.|Am I free on {day}?|"
        "My plans for {day}?|"
        "List my events on {day}.",
        "On {day} you have: {events}.|Your {day}: {events}.",
        agenda,
        day=DAY,
        without=("What is in my calendar?|Show me my plans.", "For which day?"),
    ),
    row(
        "lights",
        "set_light|switch_light|light|lights|light_control|toggle_light",
        "Turn a light on or off|Switch the light of a room",
        "the light in the {room} {on}",
        "Turn {on} the light in the {room}.|Switch the {room} light {on}.|Light {on} in the {room}, please.|"
        "{room} lights {on}.|"
        "Please turn the light in the {room} {on}.|Can you turn {on} the light in the {room}?",
        "The light in the {room} is {on}.|I turned the light in the {room} {on}.",
        room=ROOM,
        on=ON,
        pairs=True,
    ),
    row(
        "lights",
        "set_brightness|dim_light|dim|light_level|brightness",
        "Set the brightness of a light in percent|Dim a light",
        "the light in the {room} at {level} percent",
        "Set the light in the {room} to {level} percent.|Dim the {room} light to {level} percent.|"
        "{room} light at {level} percent.|"
        "Make the {room} light {level} percent bright.",
        "The light in the {room} is at {level} percent now.",
        room=ROOM,
        level=slot("level|percent|brightness|value", "integer", "0 to 100", whole(1, 100)),
    ),
    row(
        "heating",
        "set_temperature|thermostat|set_heating|heat|climate_control",
        "Set the temperature of a room|Control the heating",
        "{degrees} degrees in the {room}",
        "Set the {room} to {degrees} degrees.|Make it {degrees} degrees in the {room}.|"
        "Heat the {room} to {degrees} degrees.|"
        "I want {degrees} degrees in the {room}.",
        "The {room} is set to {degrees} degrees.",
        room=ROOM,
        degrees=slot("degrees|temperature|target|celsius", "number", "Temperature wanted", whole(15, 26)),
    ),
    row(
        "files",
        "list_files|ls|dir|list_folder|list_directory|get_files",
        "List the files of a folder|Show what is in a folder",
        "the files in {path}",
        "Which files are in {path}?|List the files in {path}.|What is in {path}?|Show me the folder {path}.|ls {path}",
        "In {path} there are: {files}.|Files in {path}: {files}.",
        some_files,
        path=slot("path|folder|directory|dir", "string", "The folder", one_of(FOLDERS)),
        without=("List my files.|Which files are there?", "In which folder?"),
        pairs=True,
    ),
    row(
        "file_size",
        "file_size|get_size|size_of|stat_file|file_info",
        "Get the size of a file|How large a file is",
        "the size of {file}",
        "How big is {file}?|What is the size of {file}?|Size of {file}?|How many bytes has {file}?",
        "{file} has {bytes} bytes.|The size of {file} is {bytes} bytes.",
        gives(bytes=whole(100, 99999)),
        file=slot("file|filename|path|name", "string", "Name of the file", one_of(FILES)),
        pairs=True,
    ),
    row(
        "delete",
        "delete_file|remove_file|rm|trash_file",
        "Delete a file|Remove a file",
        "{file} deleted",
        "Delete {file}.|Remove the file {file}.|Please delete {file}.|I do not need {file} any more. Delete it.",
        "I deleted {file}.|{file} is deleted.",
        file=slot("file|filename|path|name", "string", "Name of the file", one_of(FILES)),
        without=("Delete the file.|Remove a file.", "Which file?"),
    ),
    row(
        "stocks",
        "get_stock_price|stock_quote|stock|share_price|ticker",
        "Get the price of a stock|Latest price of a share",
        "the price of {symbol}",
        "What is the price of {symbol}?|How much is {symbol}?|Price of {symbol}?|"
        "What does a share of {symbol} cost?|Check {symbol}.|"
        "How is {symbol} doing?",
        "{symbol} is at {price} dollars.|One share of {symbol} costs {price} dollars.",
        gives(price=decimal(5, 900)),
        symbol=slot("symbol|ticker|stock|company", "string", "Stock symbol", one_of(SYMBOLS)),
        pairs=True,
    ),
    row(
        "search",
        "search|web_search|search_web|find|lookup|search_pages",
        "Search the web|Find pages about something",
        "pages about {query}",
        "Search for {query}.|Find something about {query}.|Look up {query}.|Search the web for {query}.|"
        "I want to read about {query}.",
        "The best result is '{title}'.|I found '{title}'.",
        gives(
            title=one_of(
                parts("A short guide|All you need to know|The facts|Ten good ideas|A first look|News and views")
            )
        ),
        query=slot("query|q|text|keywords|search_term", "string", "What to search for", one_of(TOPICS)),
        limit=slot(
            "limit|count|max_results|n", "integer", "How many results", whole(2, 9), adds=" and give me {} results"
        ),
    ),
    row(
        "email",
        "send_email|email|mail|write_email|send_mail",
        "Send an email|Write an email to someone",
        "an email to {name} about {subject}",
        "Send an email to {name} about the {subject}.|Email {name} about the {subject}.|"
        "Write to {name} about the {subject}.|"
        "Mail {name}: {subject}.",
        "I sent the email to {name} about the {subject}.|The email to {name} is sent.",
        name=PERSON,
        subject=slot("subject|title|about|topic", "string", "Subject of the email", one_of(SUBJECTS)),
    ),
    row(
        "message",
        "send_message|text_message|send_sms|message|send_text",
        "Send a short message to someone|Send a text message",
        "the message '{text}' to {name}",
        "Tell {name}: {text}.|Send {name} the message '{text}'.|Text {name}: {text}.|Write to {name}: {text}.|"
        "Send '{text}' to {name}.",
        "I sent '{text}' to {name}.|The message to {name} is sent.",
        name=PERSON,
        text=slot("text|message|body|content", "string", "The message", one_of(MESSAGES)),
    ),
    row(
        "music",
        "play_music|play|play_song|music_player|start_song",
        "Play a song|Start the music",
        "the song {song}",
        "Play {song}.|I want to hear {song}.|Start the song {song}.|Put on {song}, please.|Please play {song}.",
        "{song} is playing.|I am playing {song}.",
        song=slot("song|title|track|name", "string", "Name of the song", one_of(SONGS)),
        repeat=slot("repeat|loop", "boolean", "Play again and again", lambda r: True, adds=" on repeat"),
        without=("Play some music.|Play a song.", "Which song?"),
    ),
    row(
        "volume",
        "set_volume|volume|sound_level|change_volume",
        "Set the volume in percent|Change the volume",
        "the volume at {level}",
        "Set the volume to {level}.|Volume {level}, please.|Make the sound {level} percent.|"
        "Change the volume to {level} percent.",
        "The volume is at {level} now.",
        level=slot("level|volume|percent|value", "integer", "0 to 100", whole(0, 100)),
        without=("Change the volume.|Set the volume.", "To which level?"),
    ),
    row(
        "door",
        "lock_door|door_lock|set_lock|door|smart_lock",
        "Lock or unlock a door|Control a door lock",
        "the {door} door {lock}",
        "{lock} the {door} door.|Please {lock} the {door} door.|Can you {lock} the {door} door?",
        "The {door} door is {lock}ed.",
        door=slot(
            "door|name|which", "string", "Which door", one_of(words("front back garage garden cellar side main"))
        ),
        lock=slot(
            "lock|locked|close",
            "boolean",
            "True to lock",
            lambda r: r.random() < 0.5,
            says={True: "lock", False: "unlock"},
        ),
    ),
    row(
        "flights",
        "find_flights|search_flights|flights|flight_search|get_flights",
        "Find flights between two cities|Search for a flight",
        "flights from {start} to {end}",
        "Find a flight from {start} to {end}.|Which flights go from {start} to {end}?|"
        "I want to fly from {start} to {end}.|"
        "Flights from {start} to {end}, please.|How can I fly from {start} to {end}?",
        "Flight {flight} from {start} to {end} costs {price} dollars.|There is flight {flight} for {price} dollars.",
        gives(flight=code, price=whole(40, 1500)),
        start=FROM,
        end=TO,
        day=slot("day|weekday|date", "string", "Day of the flight", DAY.draw, adds=" on {}"),
    ),
    row(
        "trains",
        "next_train|train_times|trains|get_train|train_schedule",
        "Find the next train between two cities|Train times",
        "the next train from {start} to {end}",
        "When is the next train from {start} to {end}?|Next train from {start} to {end}?|"
        "I need a train from {start} to {end}.|"
        "When does the train from {start} to {end} leave?",
        "The next train from {start} to {end} leaves at {time} from platform {platform}.",
        gives(time=clock, platform=whole(1, 24)),
        start=FROM,
        end=TO,
    ),
)
