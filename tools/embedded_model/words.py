"""The vocabulary of the made-up world that the embedded model is trained on: plain word lists, nothing else.

Every list holds single words without punctuation. Standard library only.
"""

from __future__ import annotations


def _split(text: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(text.split())


TOPICS = _split(
    """
    refund invoice payment receipt discount voucher tax salary budget loan deposit subscription parcel delivery
    courier tracking customs warehouse pallet label return exchange password login account profile username session
    firewall virus backup license printer laptop monitor keyboard battery charger screen camera router cable speaker
    headset tablet phone server database website app update download upload browser newsletter poster banner survey
    campaign logo brochure contract privacy warranty complaint policy patent permit visa passport training course
    exam lesson certificate interview holiday sickness pension insurance meeting room desk chair lamp heating window
    door elevator parking garden kitchen menu allergy booking ticket flight train hotel taxi luggage seat recipe
    oven fridge washer dryer vacuum filter bulb paint carpet mattress sofa shelf mirror curtain
    """
)

TEAMS = _split(
    """
    Billing Shipping Security Support Sales Legal Marketing Finance Hardware Software Network Repair Returns Travel
    Facilities Training Payroll Hiring Logistics Quality Research Design Accounts Press Events Safety Medical Catering
    Cleaning Transport Storage Planning Service Desk Audit Tax Housing Studio Archive Library North South East West
    Alpha Beta Gamma Delta Omega Red Blue Green Yellow Orange Purple Silver Gold Black White First Second Third Harbour
    Bridge Tower Castle Forest River Falcon Tiger Eagle Otter Panda Maple Cedar Willow Comet Orbit Anchor Compass
    """
)

NAMES = _split(
    """
    Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Maria Noah Olga Paul Rosa Sam Tina Victor Wendy
    Alice Bruno Cora Daniel Eva Frank Gina Hugo Iris Jonas Karen Lucas Mona Nina Oscar Petra Ralph Sara Theo
    """
)

CITIES = _split(
    """
    Paris London Berlin Madrid Rome Vienna Oslo Lisbon Dublin Athens Prague Warsaw Geneva Milan Lyon Porto Leeds
    Boston Denver Austin Sydney Tokyo Delhi Cairo Lima Quito Havana Kyoto Seoul Perth
    """
)

DAYS = _split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

WORDS = _split(
    """
    apple pear plum lemon cherry grape peach melon berry onion carrot tomato potato bean rice bread butter cheese honey
    sugar salt pepper coffee tea milk water juice soup cake cat dog horse cow sheep goat pig hen duck goose fox wolf
    bear deer mouse rabbit frog snake eagle owl crow swan fish shark whale crab spider ant bee moth red blue green
    yellow orange purple black white grey brown pink silver golden big small tall short long wide thin thick heavy
    light hard soft warm cold hot cool wet dry new old young early late fast slow loud quiet bright dark clean dirty
    happy sad angry calm brave shy kind clever lazy busy rich poor run walk jump swim climb dance sing read write
    draw paint cook bake wash sweep push pull lift drop throw catch open close start stop find lose buy sell give take
    sun moon star cloud rain snow wind storm river lake sea hill mountain valley forest field road street bridge tower
    house castle church school farm market harbour island beach garden tree leaf root flower grass stone sand iron
    copper gold glass paper wood wool silk leather hat coat shirt shoe glove scarf ring watch clock key lock box bag cup
    plate bowl knife fork spoon pan pot table bench bed pillow candle drum flute violin piano guitar bell ball kite
    boat ship truck wheel wagon ladder hammer nail saw rope needle thread button pocket letter number story song
    king queen prince knight baker farmer sailor doctor teacher pilot
    """
)

ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "kl", "st", "tr")
VOWELS = ("a", "e", "i", "o", "u")
CODAS = ("", "", "l", "n", "r", "s", "x")

OPENINGS = (
    "Hello,", "Hi,", "Good morning,", "Hello team,", "Dear all,", "Please help,", "Hi there,", "Good day,", "Urgent:",
)  # fmt: skip

FRAMES = (
    "I have a question about my {topic}.",
    "my {topic} does not work since {day}.",
    "there is a problem with the {topic}.",
    "{name} asked about the {topic} again.",
    "can somebody look at the {topic} for order {number}?",
    "I am still waiting for news on the {topic}.",
    "who can help me with a {topic}?",
    "the {topic} I got in {city} is wrong.",
    "we need a new {topic} before {day}.",
    "what happened to the {topic} of {name}?",
    "the {topic} from {city} was not what I wanted.",
    "please check the {topic} as soon as you can.",
    "{name} and I cannot find the {topic}.",
    "our {topic} has been missing for {number} days.",
    "could you explain the {topic} to {name}?",
    "nobody in {city} knows anything about the {topic}.",
    "I want to change the {topic} by {day}.",
    "is the {topic} ready for {name}?",
    "since {day} the {topic} looks strange.",
    "something went wrong with {topic} number {number}.",
    "you sent the {topic} to {city} and not to {name}.",
    "I would like to talk to someone about a {topic}.",
    "thanks for the quick reply, but the {topic} is still not right.",
    "the {topic} costs more than {name} told me.",
    "when will the {topic} arrive in {city}?",
)

CLOSINGS = (
    "", "", "", "", "Thank you.", "Thanks, {name}", "Best wishes, {name}", "Please answer by {day}.",
    "Regards from {city}.", "My number is {number}.", "It is urgent.", "Call me on {day}.",
)  # fmt: skip
