"""Words in answers: units, words that multiply, and everything else, which is never dropped."""

from __future__ import annotations

import re
from fractions import Fraction

MULTIPLIERS = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "quadrillion": 10**15,
    "dozen": 12, "lakh": 10**5, "crore": 10**7, "mil": 10**6, "bn": 10**9, "mn": 10**6,
}  # fmt: skip
MULTIPLIERS.update({word + "s": value for word, value in MULTIPLIERS.items() if len(word) > 3})
PERCENT = {"percent", "percentage", "pct", "%"}
BASES = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11,
    "twelve": 12, "sixteen": 16,
}  # fmt: skip
_LENGTH, _MASS, _TIME, _VOLUME, _SPEED = "length", "mass", "time", "volume", "speed"
_MEASURES: dict[str, tuple[str, Fraction]] = {}
"""Spelling of a unit -> its dimension, and the size in the dimension's first unit."""
for _dimension, _size, _spellings in (
    (_LENGTH, "1", "m meter meters metre metres"),
    (_LENGTH, "1000", "km kilometer kilometers kilometre kilometres"),
    (_LENGTH, "0.1", "dm decimeter decimeters"),
    (_LENGTH, "0.01", "cm centimeter centimeters centimetre centimetres"),
    (_LENGTH, "0.001", "mm millimeter millimeters millimetre millimetres"),
    (_LENGTH, "1e-9", "nm nanometer nanometers"),
    (_LENGTH, "0.3048", "ft foot feet"),
    (_LENGTH, "0.0254", "in inch inches"),
    (_LENGTH, "0.9144", "yd yard yards"),
    (_LENGTH, "1609.344", "mi mile miles"),
    (_MASS, "1", "g gram grams gm"),
    (_MASS, "1000", "kg kilogram kilograms kgs"),
    (_MASS, "0.001", "mg milligram milligrams"),
    (_MASS, "1000000", "t ton tons tonne tonnes"),
    (_MASS, "453.59237", "lb lbs pound pounds"),
    (_MASS, "28.349523125", "oz ounce ounces"),
    (_TIME, "1", "s sec secs second seconds"),
    (_TIME, "0.001", "ms millisecond milliseconds"),
    (_TIME, "60", "min mins minute minutes"),
    (_TIME, "3600", "h hr hrs hour hours"),
    (_TIME, "86400", "d day days"),
    (_TIME, "604800", "week weeks"),
    ("months", "1", "month months"),
    ("months", "12", "yr yrs year years"),
    (_VOLUME, "1", "l L liter liters litre litres"),
    (_VOLUME, "0.001", "ml mL milliliter milliliters millilitre millilitres"),
    (_VOLUME, "3.785411784", "gal gallon gallons"),
    ("speed", "0.44704", "mph"),
    ("speed", "0.277777777777777777777777777777", "kmh kph kmph"),
    ("dollar", "1", "dollar dollars usd USD bucks"),
    ("dollar", "0.01", "cent cents"),
    ("euro", "1", "euro euros eur EUR"),
    ("pound sterling", "1", "gbp GBP"),
    ("rupee", "1", "rupee rupees rs Rs"),
    ("yen", "1", "yen JPY"),
    ("yuan", "1", "yuan RMB"),
    ("angle", "1", "degree degrees deg"),
    ("radian", "1", "rad radian radians"),
    ("celsius", "1", "celsius Celsius"),
    ("fahrenheit", "1", "fahrenheit Fahrenheit"),
    ("kelvin", "1", "K kelvin kelvins"),
    ("newton", "1", "N newton newtons"),
    ("joule", "1", "J joule joules"),
    ("joule", "1000", "kJ kilojoule kilojoules"),
    ("watt", "1", "W watt watts"),
    ("watt", "1000", "kW kilowatt kilowatts"),
    ("volt", "1", "V volt volts"),
    ("ampere", "1", "A amp amps ampere amperes"),
    ("ohm", "1", "ohm ohms"),
    ("pascal", "1", "Pa pascal pascals"),
    ("pascal", "1000", "kPa"),
    ("hertz", "1", "Hz hertz"),
    ("hertz", "1000", "kHz"),
    ("mole", "1", "mol mole moles"),
    ("area", "10000", "ha hectare hectares"),
    ("acre", "1", "acre acres"),
    ("unit", "1", "unit units"),
):
    for _spelling in _spellings.split():
        _MEASURES[_spelling] = (_dimension, Fraction(_size))
COUNTED = {
    singular: singular
    for singular in (
        "apple ball banana bead bird board boat book bottle bowl box boy bus cake candy car card cat chair "
        "chicken child chocolate coin color cookie cow crayon cup customer desk dog edge egg employee face "
        "fish flower friend game girl glass goal guest hat house item kid lap letter man marble match meal "
        "member mark minute move note number orange outcome pack page painting pair path pen pencil penny "
        "person pie piece pizza plant plate player point problem question ribbon rose row run sandwich seat "
        "sheep shirt shoe slice soldier sticker step stamp stone student sweet table task teacher team test "
        "ticket tile time toy tree triangle trip vertex visitor vote way woman word worker arrangement "
        "combination permutation solution integer digit term subset square rectangle"
    ).split()
    if singular not in {"pair", "square", "minute", "number", "penny"}
}
_IRREGULAR = {
    "people": "person", "children": "child", "men": "man", "women": "woman", "vertices": "vertex", "boxes": "box",
    "buses": "bus", "glasses": "glass", "matches": "match", "dishes": "dish", "sandwiches": "sandwich",
    "candies": "candy", "fishes": "fish",
}  # fmt: skip
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_TOKEN = re.compile(r"[A-Za-z.]+|\^\s*\{?\s*-?[0-9]\s*\}?|[/*]|.", re.DOTALL)
Unit = tuple[Fraction, tuple[tuple[str, int], ...]]
"""Size of a unit, and its dimensions with their powers. Two units of equal dimensions can be compared."""


def read_unit(phrase: str) -> Unit | None:
    """Return the unit of a phrase, such as "cm^2", "miles per hour", "square feet" or "apples". None: it is none."""
    size, powers, sign, pending, last = Fraction(1), dict[str, int](), 1, 1, None
    for token in _TOKEN.findall(phrase.strip()):
        word = token.strip(". ")
        if not word or word == "*":
            continue
        if word in ("/", "per"):
            sign, last = -1, None
        elif word in ("of", "a", "the"):
            return None
        elif word.startswith("^") or word in ("squared", "cubed"):
            if last is None:
                return None
            power = _POWERS.get(word) or int(re.sub(r"[^0-9-]", "", word))
            size *= last[1] ** (sign * (power - 1))
            powers[last[0]] += sign * (power - 1)
            last = None
        elif word in _POWERS:
            pending = _POWERS[word]
        else:
            measure = _measure(word)
            if measure is None:
                return None
            last = measure
            size *= measure[1] ** (sign * pending)
            powers[measure[0]] = powers.get(measure[0], 0) + sign * pending
            pending = 1
    if pending != 1 or not powers:
        return None
    return size, tuple(sorted((name, power) for name, power in powers.items() if power))


def _measure(word: str) -> tuple[str, Fraction] | None:
    if word in _MEASURES:
        return _MEASURES[word]
    lower = word.lower()
    if len(lower) > 2 and lower in _MEASURES:
        return _MEASURES[lower]
    singular = _IRREGULAR.get(lower) or (lower if lower in COUNTED else lower.removesuffix("s"))
    return (singular, Fraction(1)) if singular in COUNTED else None


def folded(text: str) -> str:
    """Return a text in one case, except for up to three capitals such as `ABC`, which may be names of things."""
    words = [word if len(word) < 4 and word.isupper() and word not in ("YES", "NO") else word.lower()
             for word in text.split()]  # fmt: skip
    return " ".join(words)
