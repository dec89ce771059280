"""Free-form small facts (`question|other wording = short answer = full sentence`) and simple definitions.

An indented line goes on from the one above. Every line is true without further context, and stays true: no leaders,
prices, records or populations.
"""

from __future__ import annotations

FACTS = """What is the largest planet?|Which planet is the biggest? = Jupiter = Jupiter is the largest planet in our
  solar system.
What is the smallest planet?|Which planet is the smallest? = Mercury = Mercury is the smallest planet in our solar
  system.
Which planet is closest to the Sun?|What is the first planet from the Sun? = Mercury = Mercury is the planet closest
  to the Sun.
Which planet do we live on?|What is the name of our planet? = Earth = We live on Earth.
Which planet is called the red planet?|What is the red planet? = Mars = Mars is called the red planet.
Which planet is famous for its rings?|Which planet has big rings? = Saturn = Saturn is famous for its rings.
How many planets are there in our solar system?|How many planets go around the Sun? = eight = There are eight
  planets in our solar system.
What is the Sun?|Is the Sun a star or a planet? = a star = The Sun is a star.
What goes around the Earth?|What moves around the Earth once a month? = the Moon = The Moon goes around the Earth.
What is the Moon? = a natural satellite of the Earth = The Moon is the natural satellite of the Earth.
How many moons does the Earth have? = one = The Earth has one moon.
Where does the Sun rise?|In which direction does the Sun rise? = in the east = The Sun rises in the east.
Where does the Sun set?|In which direction does the Sun set? = in the west = The Sun sets in the west.
What does the Earth go around?|What does the Earth orbit? = the Sun = The Earth goes around the Sun.
How long does the Earth take to go around the Sun? = one year = The Earth takes one year to go around the Sun.
Why do we have day and night?|What causes day and night? = because the Earth turns = We have day and night because
  the Earth turns.
Why is the sky blue? = because air scatters blue light the most = The sky is blue because the air scatters blue
  light more than red light.
What shape is the Earth?|Is the Earth flat or round? = round = The Earth is round, almost like a ball.
What is water made of? = hydrogen and oxygen = Water is made of hydrogen and oxygen.
At what temperature does water freeze?|When does water freeze? = at 0 degrees Celsius = Water freezes at 0 degrees
  Celsius.
At what temperature does water boil?|When does water boil? = at 100 degrees Celsius = Water boils at 100 degrees
  Celsius at sea level.
What is ice?|What is ice made of? = frozen water = Ice is frozen water.
What is steam? = hot water vapor = Steam is hot water vapor.
What does water become when it freezes?|What do you get when water freezes? = ice = Water becomes ice when it freezes.
What happens to ice when it gets warm?|What happens when ice gets warm? = it melts = Ice melts and becomes water
  when it gets warm.
What is rain?|Where does rain come from? = water that falls from clouds = Rain is water that falls from clouds.
What is snow? = frozen water that falls from clouds = Snow is frozen water that falls from clouds in soft flakes.
What is wind? = moving air = Wind is moving air.
What is a rainbow?|When do we see a rainbow? = colors in the sky when the Sun shines through rain = A rainbow is a
  band of colors that we see when the Sun shines through rain.
What comes first, lightning or thunder?|Do we see lightning or hear thunder first? = lightning = Lightning comes
  first, because light is faster than sound.
What is faster, light or sound?|Is light faster than sound? = light = Light is faster than sound.
What gas do we need to breathe?|Which gas do people breathe in to live? = oxygen = We need oxygen to breathe.
What gas do plants take in?|Which gas do plants use? = carbon dioxide = Plants take in carbon dioxide.
What do plants need to grow?|What does a plant need? = water, light and air = Plants need water, light and air to
  grow.
How do plants make their food?|What is photosynthesis? = with sunlight, water and air = Plants make their food from
  water and carbon dioxide with the energy of sunlight.
Which part of a plant is under the ground?|What part of a tree is under the ground? = the roots = The roots of a
  plant are under the ground.
What do bees make?|Which food do bees make? = honey = Bees make honey.
What do cows give us?|What drink do we get from cows? = milk = Cows give us milk.
What do sheep give us?|What do we get from sheep? = wool = Sheep give us wool.
What do hens lay?|What do chickens lay? = eggs = Hens lay eggs.
What do cows eat?|What does a cow eat? = grass = Cows eat grass.
What do lions eat?|What does a lion eat? = meat = Lions eat meat.
What do rabbits eat?|What does a rabbit eat? = grass and leaves = Rabbits eat grass and leaves.
What do pandas eat?|What does a panda eat? = bamboo = Pandas eat bamboo.
What do squirrels like to eat?|What do squirrels eat? = nuts and seeds = Squirrels eat nuts and seeds.
What is the largest animal?|What is the biggest animal in the world? = the blue whale = The blue whale is the
  largest animal in the world.
What is the tallest animal?|Which animal is the tallest? = the giraffe = The giraffe is the tallest animal.
What is the largest land animal?|Which land animal is the largest? = the elephant = The African elephant is the
  largest land animal.
What is the fastest land animal?|Which animal runs fastest? = the cheetah = The cheetah is the fastest land animal.
What is the largest bird?|Which bird is the biggest? = the ostrich = The ostrich is the largest bird.
Which bird cannot fly?|Name a bird that cannot fly. = the penguin = The penguin is a bird that cannot fly.
Which animal has a trunk?|What animal has a very long nose? = the elephant = The elephant has a trunk.
Which animal has a long neck?|What animal has a very long neck? = the giraffe = The giraffe has a very long neck.
Which animal has black and white stripes?|What animal looks like a horse with stripes? = the zebra = The zebra has
  black and white stripes.
Which animal has a pouch?|Which animal carries its baby in a pouch? = the kangaroo = The kangaroo carries its baby
  in a pouch.
Which animal is called the king of the animals?|Who is the king of the beasts? = the lion = The lion is called the
  king of the animals.
Which animal carries its house on its back?|What animal has its house on its back? = the snail = The snail carries
  its house on its back.
Which animal lives in the desert and has a hump?|Which animal has humps? = the camel = The camel lives in the desert
  and has a hump or two.
Is a whale a fish?|Is the whale a fish or a mammal? = no, a mammal = No, a whale is a mammal, not a fish.
Is a dolphin a fish?|Are dolphins fish? = no, a mammal = No, a dolphin is a mammal, not a fish.
Is a spider an insect?|Are spiders insects? = no = No, a spider is not an insect: it has eight legs, and insects
  have six.
Is a bat a bird?|Are bats birds? = no, a mammal = No, a bat is a mammal that can fly, not a bird.
Is a penguin a bird?|Are penguins birds? = yes = Yes, a penguin is a bird, but it cannot fly.
Is a tomato a fruit?|Are tomatoes fruit? = yes, for a botanist = A tomato is a fruit for a botanist, but cooks use
  it as a vegetable.
What does a caterpillar become?|What does a caterpillar turn into? = a butterfly or a moth = A caterpillar becomes a
  butterfly or a moth.
What does a tadpole become?|What does a tadpole turn into? = a frog or a toad = A tadpole becomes a frog or a toad.
What do fish breathe with?|How do fish breathe? = gills = Fish breathe with gills.
What covers the body of a bird?|What are birds covered with? = feathers = Birds are covered with feathers.
What covers the body of a fish?|What are most fish covered with? = scales = Most fish are covered with scales.
What do we see with?|Which part of the body do we see with? = our eyes = We see with our eyes.
What do we hear with?|Which part of the body do we hear with? = our ears = We hear with our ears.
What do we smell with?|Which part of the body do we smell with? = our nose = We smell with our nose.
What do we taste with?|Which part of the body do we taste with? = our tongue = We taste with our tongue.
What pumps blood through the body?|Which organ pumps blood? = the heart = The heart pumps blood through the body.
Which organ do we think with?|What do people think with? = the brain = We think with the brain.
What do we breathe with?|Which organs do people breathe with? = the lungs = We breathe with our lungs.
How many senses do people have?|What are the five senses? = five = People have five senses: sight, hearing, smell,
  taste and touch.
How many fingers do people have on two hands?|How many fingers does a person have? = ten = A person has ten fingers,
  counting the thumbs.
How many eyes do people have?|How many eyes does a person have? = two = A person has two eyes.
How many teeth does an adult have?|How many teeth do adults have? = 32 = An adult has 32 teeth, counting the wisdom
  teeth.
What is the largest ocean?|Which ocean is the biggest? = the Pacific Ocean = The Pacific Ocean is the largest ocean.
What is the largest continent?|Which continent is the biggest? = Asia = Asia is the largest continent.
What is the smallest continent?|Which continent is the smallest? = Australia = Australia is the smallest continent.
How many continents are there?|How many continents does the Earth have? = seven = There are seven continents.
How many oceans are there?|How many oceans does the Earth have? = five = There are five oceans.
What is the highest mountain?|What is the tallest mountain in the world? = Mount Everest = Mount Everest is the
  highest mountain in the world.
What is the largest country?|Which country is the biggest by area? = Russia = Russia is the largest country by area.
What is the smallest country?|Which country is the smallest? = Vatican City = Vatican City is the smallest country.
What is the largest hot desert?|What is the name of the big desert in Africa? = the Sahara = The Sahara is the
  largest hot desert. It lies in Africa.
Which river flows through Egypt?|What is the long river in Egypt called? = the Nile = The Nile flows through Egypt.
Which river flows through London?|What river runs through London? = the Thames = The Thames flows through London.
Which river flows through Paris?|What river runs through Paris? = the Seine = The Seine flows through Paris.
Where is the Eiffel Tower?|In which city is the Eiffel Tower? = in Paris = The Eiffel Tower is in Paris.
Where is Big Ben?|In which city is Big Ben? = in London = Big Ben is in London.
Where are the pyramids of Giza?|In which country are the pyramids of Giza? = in Egypt = The pyramids of Giza are in
  Egypt.
Where is the Great Wall?|In which country is the Great Wall? = in China = The Great Wall is in China.
Where is the Colosseum?|In which city is the Colosseum? = in Rome = The Colosseum is in Rome.
Where is the Statue of Liberty?|In which city is the Statue of Liberty? = in New York = The Statue of Liberty is in
  New York.
Where is the Taj Mahal?|In which country is the Taj Mahal? = in India = The Taj Mahal is in India.
Where do penguins live?|Where can you find penguins in nature? = in the southern half of the world = Penguins live
  in the southern half of the world, many of them near Antarctica.
Where do polar bears live?|Where can you find polar bears in nature? = in the Arctic = Polar bears live in the Arctic.
Where do kangaroos live?|In which country do kangaroos live? = in Australia = Kangaroos live in Australia.
Where do fish live?|Where does a fish live? = in water = Fish live in water.
Which continent is the coldest?|What is the coldest continent? = Antarctica = Antarctica is the coldest continent.
Who wrote Romeo and Juliet?|Who is the author of Romeo and Juliet? = William Shakespeare = William Shakespeare wrote
  Romeo and Juliet.
Who wrote Hamlet?|Who is the author of Hamlet? = William Shakespeare = William Shakespeare wrote Hamlet.
Who painted the Mona Lisa?|Who was the painter of the Mona Lisa? = Leonardo da Vinci = Leonardo da Vinci painted the
  Mona Lisa.
Who was the first person on the Moon?|Who walked on the Moon first? = Neil Armstrong = Neil Armstrong was the first
  person on the Moon, in 1969.
Who was the first person in space?|Who flew into space first? = Yuri Gagarin = Yuri Gagarin was the first person in
  space, in 1961.
Who was Albert Einstein?|Who is Albert Einstein? = a physicist = Albert Einstein was a physicist who found the
  theory of relativity.
Who was Isaac Newton?|Who is Isaac Newton? = a scientist = Isaac Newton was an English scientist who described
  gravity and motion.
Who was Mozart?|Who is Mozart? = a composer = Mozart was a composer from Austria.
Who was William Shakespeare?|Who is Shakespeare? = a writer of plays and poems = William Shakespeare was an English
  writer of plays and poems.
Who was the first president of the United States?|Who was George Washington? = George Washington = George Washington
  was the first president of the United States.
What is gravity?|Why do things fall down? = the force that pulls things down = Gravity is the force that pulls
  things toward the Earth.
What does a magnet pull?|Which metal does a magnet pull? = iron = A magnet pulls iron.
What is the symbol for water?|What is the formula of water? = H2O = The formula of water is H2O.
What is the symbol for gold?|What is the chemical symbol for gold? = Au = The chemical symbol for gold is Au.
What is the symbol for oxygen?|What is the chemical symbol for oxygen? = O = The chemical symbol for oxygen is O.
What is the symbol for iron?|What is the chemical symbol for iron? = Fe = The chemical symbol for iron is Fe.
What is the symbol for carbon?|What is the chemical symbol for carbon? = C = The chemical symbol for carbon is C.
What are the three states of matter?|In which three forms can water be? = solid, liquid and gas = The three states
  of matter are solid, liquid and gas.
Is water a liquid or a solid?|Is water a liquid? = a liquid = Water is a liquid at room temperature.
What is the hardest natural material?|Which stone is the hardest? = diamond = Diamond is the hardest natural material.
Does wood float on water?|Will wood float? = yes = Yes, most wood floats on water.
Does a stone float on water?|Will a stone float? = no = No, a stone sinks in water.
Does oil float on water?|Will oil float on water? = yes = Yes, oil floats on water.
Is fire hot or cold?|Is fire hot? = hot = Fire is hot.
Is ice hot or cold?|Is ice cold? = cold = Ice is cold.
Is the Sun hot or cold?|Is the Sun hot? = hot = The Sun is very hot.
Is a lemon sweet or sour?|How does a lemon taste? = sour = A lemon is sour.
Is sugar sweet or sour?|How does sugar taste? = sweet = Sugar is sweet.
Is honey sweet?|How does honey taste? = sweet = Honey is sweet.
How does sea water taste?|Is sea water salty? = salty = Sea water is salty.
What do you use when it rains?|What do people carry when it rains? = an umbrella = People use an umbrella when it
  rains.
What do we wear on our feet?|What goes on our feet? = shoes and socks = We wear shoes and socks on our feet.
What do we wear on our hands when it is cold?|What keeps our hands warm? = gloves = We wear gloves on our hands when
  it is cold.
What do we wear on our head?|What can you put on your head? = a hat = We wear a hat on our head.
What meal do we eat in the morning?|What is the first meal of the day? = breakfast = We eat breakfast in the morning.
What meal do we eat in the evening?|What is the evening meal called? = dinner = We eat dinner in the evening.
What meal do we eat at noon?|What is the meal in the middle of the day? = lunch = We eat lunch in the middle of the
  day.
What do we do at night?|What do most people do at night? = sleep = Most people sleep at night.
When do we see the stars?|When can you see stars? = at night = We see the stars at night.
Which season is the coldest?|What is the coldest season? = winter = Winter is the coldest season.
Which season is the hottest?|What is the warmest season? = summer = Summer is the hottest season.
In which season do leaves fall?|When do leaves fall from trees? = in autumn = Leaves fall from many trees in autumn.
In which season do flowers start to bloom?|When do many flowers begin to bloom? = in spring = Many flowers start to
  bloom in spring.
What are the four seasons?|Name the four seasons. = spring, summer, autumn and winter = The four seasons are spring,
  summer, autumn and winter.
How many seasons are there?|How many seasons are in a year? = four = There are four seasons.
How many days are in February?|How many days does February have? = 28, or 29 in a leap year = February has 28 days,
  or 29 in a leap year.
Which month is the shortest?|What is the shortest month? = February = February is the shortest month.
What is the first month of the year?|Which month comes first in a year? = January = January is the first month of
  the year.
What is the last month of the year?|Which month comes last in a year? = December = December is the last month of the
  year.
When is New Year's Day?|On which date is New Year's Day? = January 1 = New Year's Day is on January 1.
When is Christmas?|On which date is Christmas Day? = December 25 = Christmas Day is on December 25.
When is Halloween?|On which date is Halloween? = October 31 = Halloween is on October 31.
What are the primary colors?|Name the three primary colors of paint. = red, yellow and blue = The three primary
  colors of paint are red, yellow and blue.
What colors are in a rainbow?|Name the colors of the rainbow. = red, orange, yellow, green, blue, indigo and violet
  = The colors of the rainbow are red, orange, yellow, green, blue, indigo and violet.
What colors does a traffic light have?|Name the colors of a traffic light. = red, yellow and green = A traffic light
  has red, yellow and green.
What does a red traffic light mean?|What do you do at a red light? = stop = A red traffic light means stop.
What does a green traffic light mean?|What do you do at a green light? = go = A green traffic light means go.
How many letters are in the alphabet?|How many letters does the English alphabet have? = 26 = The English alphabet
  has 26 letters.
What is the first letter of the alphabet?|Which letter comes first in the alphabet? = A = The first letter of the
  alphabet is A.
What is the last letter of the alphabet?|Which letter comes last in the alphabet? = Z = The last letter of the
  alphabet is Z.
What are the vowels?|Which letters are vowels? = A, E, I, O and U = The vowels are A, E, I, O and U.
What is the smallest prime number?|Which number is the first prime? = 2 = The smallest prime number is 2.
Is zero even or odd?|Is 0 an even number? = even = Zero is an even number.
What is half of ten?|What is half of 10? = five = Half of ten is five.
What is pi?|What is the value of pi? = about 3.14 = Pi is about 3.14. It is the length around a circle divided by
  its width.
What is a square root?|What does square root mean? = a number that gives the first number when multiplied by itself
  = The square root of a number is the number that gives it when multiplied by itself.
What is an even number?|What does even number mean? = a number that can be divided by two = An even number is a
  whole number that can be divided by two.
What is an odd number?|What does odd number mean? = a number that cannot be divided by two = An odd number is a
  whole number that cannot be divided by two.
What is a prime number?|What does prime mean? = a number with exactly two divisors = A prime number is a whole
  number above 1 that only 1 and itself divide.
What is a noun?|What does noun mean? = a word for a person, place or thing = A noun is a word for a person, a place
  or a thing.
What is a verb?|What does verb mean? = a word for an action = A verb is a word for an action or a state.
What is an adjective?|What does adjective mean? = a word that describes a noun = An adjective is a word that
  describes a noun.
What is a synonym?|What does synonym mean? = a word with the same meaning = A synonym is a word with the same or
  nearly the same meaning as another word.
What is an antonym?|What does antonym mean? = a word with the opposite meaning = An antonym is a word with the
  opposite meaning.
Who delivers letters?|Who brings the mail? = the mail carrier = The mail carrier delivers letters.
What do you call your mother's mother?|Who is the mother of my mother? = grandmother = Your mother's mother is your
  grandmother.
What do you call your father's father?|Who is the father of my father? = grandfather = Your father's father is your
  grandfather.
What do you call your mother's brother?|Who is the brother of my mother? = uncle = Your mother's brother is your
  uncle.
What do you call your father's sister?|Who is the sister of my father? = aunt = Your father's sister is your aunt.
What do you call the son of your uncle?|Who is the child of my aunt? = cousin = The child of your uncle or aunt is
  your cousin.
What is the currency of Japan?|What money do people use in Japan? = the yen = The currency of Japan is the yen.
What is the currency of the United Kingdom?|What money do people use in England? = the pound = The currency of the
  United Kingdom is the pound.
What is the currency of the United States?|What money do people use in the United States? = the dollar = The
  currency of the United States is the dollar.
What is the currency of France?|What money do people use in France? = the euro = The currency of France is the euro.
What is the currency of Germany?|What money do people use in Germany? = the euro = The currency of Germany is the
  euro.
What is the currency of India?|What money do people use in India? = the rupee = The currency of India is the rupee.
What is the currency of China?|What money do people use in China? = the yuan = The currency of China is the yuan.
What is the currency of Switzerland?|What money do people use in Switzerland? = the Swiss franc = The currency of
  Switzerland is the Swiss franc."""

DEFINITIONS = """bakery: a shop that sells bread and cakes
library: a place where you can read and borrow books
school: a place where children learn
hospital: a place where doctors and nurses help sick people
museum: a place where you can look at art or old things
market: a place where people buy and sell things
farm: a place where people grow food and keep animals
garden: a piece of land where plants grow
forest: a large area with many trees
desert: a dry place with very little rain
island: land with water all around it
mountain: a very high piece of land
river: a long stream of water that flows to a lake or a sea
lake: a large area of water with land around it
valley: the low land between hills or mountains
volcano: a mountain that can throw out hot melted rock
bridge: a road or path over a river or another road
castle: a large old building with thick walls
kitchen: a room where people cook
bedroom: a room where people sleep
window: an opening in a wall with glass in it
door: a thing that you open to go into a room
chair: a seat for one person
table: a flat top on legs
bed: a piece of furniture to sleep on
clock: a machine that shows the time
calendar: a list of the days and months of a year
dictionary: a book that tells what words mean
newspaper: printed sheets with news
letter: a written message, or a sign of the alphabet
story: a telling of things that happened or are made up
poem: a text in lines that often rhyme
song: a short piece of music with words
joke: a short story that makes people laugh
question: a sentence that asks for an answer
sentence: a group of words that says something
alphabet: the set of letters of a language
number: a word or sign for how many
triangle: a shape with three straight sides
square: a shape with four equal sides and four right angles
circle: a round shape
cube: a solid shape with six square faces
ball: a round thing to play with
computer: a machine that works with information
robot: a machine that can do work by itself
phone: a device to talk with people far away
camera: a device that takes pictures
radio: a device that plays sound sent through the air
program: a list of steps that a computer follows
algorithm: a list of steps to solve a problem
file: a piece of stored information on a computer
keyboard: a set of keys to type with
language model: a program that guesses the next piece of text
token: a small piece of text that a language model reads or writes
neural network: a program with many numbers that are learned from examples
bicycle: a vehicle with two wheels and pedals
car: a vehicle with an engine and four wheels
train: a line of wagons that runs on rails
plane: a vehicle with wings that flies
boat: a small ship
submarine: a ship that can travel under water
rocket: a vehicle that can fly into space
teacher: a person who helps others learn
doctor: a person who helps sick people
baker: a person who makes bread
farmer: a person who grows food
friend: a person you know and like
neighbor: a person who lives near you
king: a man who rules a country
queen: a woman who rules a country, or the wife of a king
uncle: the brother of your mother or father
aunt: the sister of your mother or father
cousin: the child of your uncle or aunt
twin: one of two children born at the same time
kitten: a young cat
puppy: a young dog
lamb: a young sheep
calf: a young cow
bird: an animal with feathers and wings
fish: an animal that lives in water and has fins
insect: a small animal with six legs
mammal: an animal that feeds its young with milk
reptile: a cold-blooded animal with dry scales, like a snake
butterfly: an insect with large colored wings
spider: a small animal with eight legs
frog: a small animal that jumps and lives near water
wren: a small brown bird with a loud song
owl: a bird that hunts at night
whale: a very large mammal that lives in the sea
tree: a tall plant with a trunk and branches
flower: the colored part of a plant
seed: the part of a plant that a new plant grows from
root: the part of a plant under the ground
fruit: the part of a plant that has the seeds in it
vegetable: a plant or a part of a plant that we eat
apple: a round fruit that grows on trees
lemon: a yellow sour fruit
potato: a vegetable that grows under the ground
bread: a food baked from flour and water
cheese: a food made from milk
honey: a sweet food made by bees
soup: a hot liquid food
cake: a sweet baked food
tea: a drink made from leaves and hot water
cloud: a mass of tiny water drops in the sky
storm: bad weather with strong wind and rain
thunder: the loud sound that follows lightning
fog: a cloud near the ground
shadow: a dark shape made when something blocks the light
mirror: a piece of glass in which you see yourself
magnet: a piece of metal that pulls iron
star: a very hot ball of gas in space
planet: a large round body that goes around a star
moon: a body that goes around a planet
telescope: an instrument that makes far things look near
thermometer: an instrument that measures temperature
map: a drawing of a place seen from above
compass: an instrument that shows where north is
ladder: a set of steps to climb up
hammer: a tool to hit nails with
needle: a thin pointed tool to sew with
umbrella: a thing that keeps you dry in the rain
blanket: a warm cover for a bed
pillow: a soft thing to rest your head on
coat: a warm piece of clothing you wear outside
piano: a musical instrument with black and white keys
guitar: a musical instrument with strings
drum: a musical instrument that you hit
orchestra: a large group of people who play music together
game: a thing that you play for fun
puzzle: a problem that is fun to solve
holiday: a day when people do not work
birthday: the day of the year on which you were born
week: seven days
month: one of the twelve parts of a year
century: one hundred years
decade: ten years
minute: sixty seconds
dozen: twelve things
pair: two things that belong together
half: one of two equal parts
sum: the result of adding numbers
product: the result of multiplying numbers
fraction: a part of a whole number
money: coins and notes used to buy things
bank: a place that keeps money
present: a thing that you give to someone
secret: a thing that only a few people know
dream: a story in your mind while you sleep
idea: a thought or a plan
promise: your word that you will do something"""
