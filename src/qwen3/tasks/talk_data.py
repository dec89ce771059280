"""Tables of small, stable facts that a child knows. Each is compact text, parsed once by `dialogue_facts`.

Contested or changing facts (moving capitals, leaders, populations) are left out on purpose.
"""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


def parts(text: str, mark: str = "|") -> tuple[str, ...]:
    """The pieces between marks. A line break counts as one space, or as nothing right after a mark."""
    lines = text.strip().split("\n")
    joined = lines[0]
    for line in lines[1:]:
        joined += line.strip() if joined.endswith(mark) else " " + line.strip()
    return tuple(joined.split(mark))


CAPITALS = """France=Paris;Germany=Berlin;Italy=Rome;Spain=Madrid;England=London;Japan=Tokyo;China=Beijing;
Russia=Moscow;
the United States=Washington, D.C.;India=New Delhi;Canada=Ottawa;Egypt=Cairo;Portugal=Lisbon;Greece=Athens;
Poland=Warsaw;Ireland=Dublin;the United Kingdom=London;Austria=Vienna;Sweden=Stockholm;Norway=Oslo;
Denmark=Copenhagen;Finland=Helsinki;Mexico=Mexico City;Brazil=Brasilia;Australia=Canberra;
Argentina=Buenos Aires;Turkey=Ankara;Ukraine=Kyiv;the Netherlands=Amsterdam;Belgium=Brussels;Switzerland=Bern;
Hungary=Budapest;South Korea=Seoul;Thailand=Bangkok;Kenya=Nairobi;Scotland=Edinburgh;Peru=Lima;Cuba=Havana;
Chile=Santiago;Iran=Tehran;Iraq=Baghdad;Vietnam=Hanoi;New Zealand=Wellington;the Czech Republic=Prague;
Romania=Bucharest;Iceland=Reykjavik;Morocco=Rabat;Colombia=Bogota;Nigeria=Abuja;Pakistan=Islamabad;
Wales=Cardiff;Bulgaria=Sofia;Serbia=Belgrade;Croatia=Zagreb;Slovenia=Ljubljana;Slovakia=Bratislava;
Estonia=Tallinn;Latvia=Riga;Lithuania=Vilnius;Cyprus=Nicosia;Malta=Valletta;Luxembourg=Luxembourg City;
Albania=Tirana;Armenia=Yerevan;Georgia=Tbilisi;Tunisia=Tunis;Algeria=Algiers;Libya=Tripoli;Uganda=Kampala;
Ethiopia=Addis Ababa;Ghana=Accra;Senegal=Dakar;Mali=Bamako;Angola=Luanda;Zambia=Lusaka;Zimbabwe=Harare;
Namibia=Windhoek;Botswana=Gaborone;Rwanda=Kigali;Sudan=Khartoum;Nepal=Kathmandu;Bangladesh=Dhaka;
Cambodia=Phnom Penh;Laos=Vientiane;Mongolia=Ulaanbaatar;North Korea=Pyongyang;Syria=Damascus;Lebanon=Beirut;
Jordan=Amman;Qatar=Doha;Oman=Muscat;Saudi Arabia=Riyadh;Jamaica=Kingston;Haiti=Port-au-Prince;
Guatemala=Guatemala City;Panama=Panama City;Costa Rica=San Jose;Honduras=Tegucigalpa;Nicaragua=Managua;
Venezuela=Caracas;Ecuador=Quito;Uruguay=Montevideo;Paraguay=Asuncion;Fiji=Suva;the Philippines=Manila"""

CONTINENTS = """Europe:France,Germany,Italy,Spain,Portugal,Ireland,Austria,Belgium,Denmark,Sweden,Norway,Finland,
Iceland,Poland,Hungary,
Greece,Romania,Bulgaria,Serbia,Croatia,Slovenia,Slovakia,Estonia,Latvia,Lithuania,Ukraine,Malta,Switzerland,Albania,
the Netherlands
Africa:Egypt,Morocco,Tunisia,Algeria,Libya,Kenya,Uganda,Ethiopia,Ghana,Nigeria,Senegal,Mali,Angola,Zambia,Zimbabwe,
Namibia,Botswana,
Rwanda,Sudan,South Africa
Asia:China,Japan,India,Nepal,Pakistan,Bangladesh,Thailand,Vietnam,Cambodia,Laos,Mongolia,South Korea,Iran,Iraq,Syria,
Lebanon,Jordan,
Qatar,Oman,Saudi Arabia,the Philippines
South America:Colombia,Venezuela,Ecuador,Peru,Chile,Argentina,Uruguay,Paraguay,Brazil,Bolivia
North America:Canada,Mexico,Cuba,Jamaica,Haiti,Guatemala,Panama,Costa Rica,Honduras,Nicaragua,the United States"""

LANGUAGES = """France=French;Germany=German;Italy=Italian;Spain=Spanish;Portugal=Portuguese;Japan=Japanese;
China=Chinese;Russia=Russian;
Poland=Polish;Sweden=Swedish;Norway=Norwegian;Denmark=Danish;Finland=Finnish;Greece=Greek;Turkey=Turkish;
Hungary=Hungarian;Brazil=Portuguese;
Mexico=Spanish;Argentina=Spanish;Peru=Spanish;Chile=Spanish;Cuba=Spanish;England=English;Australia=English;
Jamaica=English;Egypt=Arabic;
Morocco=Arabic;Iraq=Arabic;Jordan=Arabic;Thailand=Thai;Vietnam=Vietnamese;South Korea=Korean;Iceland=Icelandic;
Romania=Romanian;
Bulgaria=Bulgarian;Ukraine=Ukrainian;Mongolia=Mongolian;Nepal=Nepali;Austria=German;the Netherlands=Dutch"""

OPPOSITES = """hot cold;big small;up down;left right;day night;open closed;happy sad;fast slow;old young;new old;
rich poor;good bad;
hard soft;high low;long short;light dark;wet dry;full empty;early late;clean dirty;strong weak;near far;loud quiet;
true false;yes no;
in out;on off;push pull;start stop;buy sell;give take;win lose;love hate;awake asleep;alive dead;thick thin;
wide narrow;deep shallow;
smooth rough;sharp blunt;safe dangerous;easy difficult;cheap expensive;same different;first last;begin end;
above below;inside outside;
front back;top bottom;north south;east west;black white;sweet bitter;brave afraid;kind cruel;polite rude;tight loose;
heavy light;
simple complex;public private;always never;before after;more less;many few;arrive leave;laugh cry;ask answer;
remember forget;find lose;
build destroy;rise fall;raw cooked;straight crooked;tall short;summer winter;enemy friend;success failure;war peace;
morning evening;
possible impossible;visible invisible;lucky unlucky;honest dishonest"""

PLURALS = """cat cats;dog dogs;child children;mouse mice;foot feet;tooth teeth;goose geese;man men;woman women;
person people;ox oxen;
box boxes;bus buses;baby babies;city cities;leaf leaves;knife knives;wolf wolves;wife wives;life lives;half halves;
shelf shelves;loaf loaves;
thief thieves;sheep sheep;fish fish;deer deer;potato potatoes;tomato tomatoes;hero heroes;photo photos;piano pianos;
glass glasses;
dish dishes;watch watches;church churches;fox foxes;story stories;party parties;country countries;key keys;boy boys;
girl girls;day days;
toy toys;book books;house houses;horse horses;apple apples;tree trees;bird birds;star stars;egg eggs;cup cups;
hand hands;flower flowers;
lady ladies;cherry cherries;butterfly butterflies;bench benches;peach peaches;wish wishes;class classes;
dress dresses;calf calves;
scarf scarves;crisis crises;roof roofs;zoo zoos;radio radios"""

PAST = """go went;see saw;eat ate;run ran;come came;take took;give gave;make made;write wrote;read read;drink drank;
sing sang;swim swam;
begin began;break broke;bring brought;buy bought;catch caught;teach taught;think thought;fight fought;find found;
fly flew;forget forgot;
get got;grow grew;hear heard;hide hid;hold held;keep kept;know knew;leave left;lose lost;meet met;pay paid;put put;
ride rode;ring rang;
say said;sell sold;send sent;sit sat;sleep slept;speak spoke;spend spent;stand stood;steal stole;tell told;
throw threw;
understand understood;wake woke;wear wore;win won;walk walked;play played;jump jumped;look looked;help helped;
like liked;love loved;
stop stopped;try tried;carry carried;dance danced;cook cooked;work worked;open opened;wash washed;paint painted"""

SOUNDS = """dog barks,woof;cat meows,meow;cow moos,moo;sheep baas,baa;pig oinks,oink;horse neighs,neigh;
duck quacks,quack;
rooster crows,cock-a-doodle-doo;lion roars,roar;bee buzzes,buzz;snake hisses,hiss;mouse squeaks,squeak;
frog croaks,croak;owl hoots,hoot;
wolf howls,howl;bird sings,tweet;crow caws,caw;hen clucks,cluck;donkey brays,hee-haw;goose honks,honk;
turkey gobbles,gobble;
bear growls,growl"""

BABIES = """dog puppy;cat kitten;cow calf;horse foal;sheep lamb;pig piglet;goat kid;hen chick;duck duckling;
goose gosling;bear cub;lion cub;
frog tadpole;deer fawn;kangaroo joey;owl owlet;swan cygnet;elephant calf;whale calf;butterfly caterpillar;fox cub;
wolf pup;seal pup"""

LEGS = """dog four;cat four;horse four;cow four;bird two;duck two;chicken two;human two;spider eight;insect six;
ant six;bee six;fly six;
butterfly six;snake no;fish no;worm no;frog four;elephant four;mouse four;pig four;sheep four;rabbit four;lion four;
beetle six"""

HOMES = """bird nest;bee hive;spider web;horse stable;fish water;dog kennel;lion den;rabbit burrow;cow barn;pig sty;
ant nest;bear cave"""

COLORS = """the sky=blue;grass=green;snow=white;a banana=yellow;a ripe lemon=yellow;an orange=orange;a carrot=orange;
blood=red;
a ripe strawberry=red;a ripe tomato=red;milk=white;coal=black;chocolate=brown;a cucumber=green;a frog=green;
the sun=yellow;a pumpkin=orange;
a crow=black;a polar bear=white;a cherry=red;salt=white;sugar=white;cotton=white;a leaf in summer=green;
a plum=purple;a lime=green;
a fire engine=red;a swan=white;spinach=green;broccoli=green;a flamingo=pink;an elephant=gray;gold=yellow;
an eggplant=purple;a raven=black;
a pine tree=green;corn=yellow;a panda=black and white;a zebra=black and white;rice=white"""

MIXES = """red,yellow=orange;blue,yellow=green;red,blue=purple;red,white=pink;black,white=gray"""

CATEGORIES = """animal:cat,dog,horse,cow,sheep,pig,goat,lion,tiger,bear,wolf,fox,elephant,giraffe,zebra,monkey,mouse,
rabbit,deer,camel,
kangaroo,squirrel,donkey,hedgehog,whale,dolphin,frog,snake,turtle,crocodile
bird:sparrow,eagle,owl,duck,goose,swan,penguin,parrot,crow,robin,wren,pigeon,hen,turkey,ostrich,seagull
fish:salmon,tuna,shark,trout,cod,goldfish,herring,carp
insect:ant,bee,fly,butterfly,beetle,mosquito,wasp,grasshopper,moth,ladybug
fruit:apple,banana,orange,pear,grape,cherry,peach,plum,lemon,strawberry,mango,pineapple,kiwi,melon,fig,lime
vegetable:carrot,potato,onion,cabbage,pea,bean,spinach,broccoli,cauliflower,lettuce,leek,radish,turnip,beet
color:red,blue,green,yellow,orange,purple,pink,brown,black,white,gray
flower:rose,tulip,daisy,lily,sunflower,violet,orchid,daffodil
tree:oak,pine,birch,maple,willow,palm,elm,cedar
metal:iron,gold,silver,copper,tin,lead,zinc,aluminum
tool:hammer,saw,screwdriver,drill,wrench,axe,shovel,rake
piece of furniture:table,chair,bed,sofa,desk,shelf,wardrobe,bench
piece of clothing:shirt,hat,coat,sock,shoe,dress,scarf,skirt,glove,sweater,jacket
drink:water,milk,tea,coffee,juice,lemonade,cocoa
vehicle:car,bus,train,bicycle,truck,boat,ship,plane,tram,motorcycle,helicopter
musical instrument:piano,guitar,violin,drum,flute,trumpet,harp,cello,clarinet
sport:football,tennis,swimming,running,basketball,hockey,golf,skiing,baseball,rowing
part of the body:head,arm,leg,hand,foot,nose,ear,eye,knee,shoulder,elbow,neck
planet:Mercury,Venus,Earth,Mars,Jupiter,Saturn,Uranus,Neptune
day of the week:Monday,Tuesday,Wednesday,Thursday,Friday,Saturday,Sunday
month:January,February,March,April,May,June,July,August,September,October,November,December
season:spring,summer,autumn,winter
shape:circle,square,triangle,rectangle,oval,star,hexagon
job:teacher,doctor,nurse,baker,farmer,pilot,cook,driver,painter,builder,dentist,carpenter,singer
country:France,Germany,Italy,Spain,Japan,China,India,Brazil,Canada,Mexico,Egypt,Kenya,Australia,Peru,Norway,Poland
language:English,French,German,Spanish,Italian,Japanese,Chinese,Russian,Arabic,Polish,Swedish
continent:Africa,Antarctica,Asia,Australia,Europe,North America,South America
room:kitchen,bedroom,bathroom,living room,dining room
ocean:the Pacific Ocean,the Atlantic Ocean,the Indian Ocean,the Arctic Ocean,the Southern Ocean"""

SIZES = """an ant;a bee;a mouse;a bird;a cat;a dog;a sheep;a lion;a horse;an elephant;a whale"""
WEIGHTS = """a feather;a coin;an apple;a book;a chair;a bicycle;a car;a bus;a train"""
SPEEDS = """a snail;a turtle;a man on foot;a bicycle;a car;a plane;a rocket;light"""
THINGS_SIZE = """a grain of sand;a button;a cup;a chair;a car;a house;a mountain;the Moon;the Earth;the Sun"""

UNITS = """seconds minute 60;minutes hour 60;hours day 24;days week 7;months year 12;weeks year 52;days year 365;
days leap year 366;
centimeters meter 100;meters kilometer 1000;grams kilogram 1000;millimeters centimeter 10;inches foot 12;feet yard 3;
years decade 10;
years century 100;years millennium 1000;cents dollar 100;pence pound 100;things dozen 12;milliliters liter 1000;
players soccer team 11;
players basketball team 5;sides triangle 3;sides square 4;sides rectangle 4;sides pentagon 5;sides hexagon 6;
sides octagon 8;corners triangle 3;
corners square 4;faces cube 6;wheels bicycle 2;wheels car 4;wheels tricycle 3;strings violin 4;keys piano 88;
bits byte 8;
bytes kilobyte 1000;degrees circle 360;degrees right angle 90;fingers hand 5;toes foot 5;letters English alphabet 26;
eggs dozen 12;
days weekend 2;quarters year 4;legs chair 4"""

WORKERS = """teacher teaches children at a school;doctor helps sick people;nurse takes care of sick people;
baker makes bread;
farmer grows food;pilot flies a plane;cook makes meals;driver drives a car or a bus;dentist takes care of teeth;
carpenter makes things of wood;
singer sings songs;writer writes books;painter paints pictures;builder builds houses;tailor makes clothes;
gardener takes care of a garden;
firefighter puts out fires;fisherman catches fish;postman brings letters;librarian works with books;
vet helps sick animals;judge decides in court;
barber cuts hair;miner digs for coal or metal;sailor works on a ship;shepherd looks after sheep;butcher sells meat;
florist sells flowers;
plumber repairs water pipes;scientist studies nature;actor plays in films or on stage;astronaut travels in space;
waiter serves food"""

MADE = """bread=flour and water;butter=milk;cheese=milk;paper=wood;glass=sand;wine=grapes;a window=glass;
a candle=wax;juice=fruit;
honey=nectar by bees;a sweater=wool;a tire=rubber;jam=fruit and sugar;an omelet=eggs;chocolate=cocoa beans;
yogurt=milk;
a snowman=snow;a brick=clay;raisins=dried grapes;ketchup=tomatoes;popcorn=corn;french fries=potatoes"""

USES = """knife cut things;pen write;key open a lock;umbrella stay dry in the rain;clock tell the time;
broom sweep the floor;
spoon eat soup;cup drink;needle sew;hammer hit nails;ladder climb up;map find the way;lamp give light;soap wash;
towel dry yourself;
oven bake food;fridge keep food cold;phone talk to people far away;camera take pictures;
thermometer measure temperature;ruler measure length;
scale measure weight;telescope look at the stars;microscope look at very small things;compass find north;bed sleep;
chair sit;
pillow rest your head;comb tidy your hair;toothbrush clean your teeth;scissors cut paper;pencil draw;
bag carry things;boat travel on water;
calculator do sums;calendar see the date;dictionary look up words;eraser remove pencil marks;bell make a sound;
fan make the air cool;
kettle boil water;mirror see yourself;net catch fish;rope tie things;saw cut wood;shovel dig;stamp send a letter;
tent sleep outdoors;
wallet keep money;whistle make a loud sound"""
