"""How people may word a scene or an edit: a small grammar, so that no fixed sentence is learnt by heart."""

import random

_PREFIXES = (
    ("", 12),
    ("a picture of ", 2),
    ("draw ", 2),
    ("an image of ", 1),
    ("please draw ", 1),
    ("generate ", 1),
    ("a photo of ", 1),
    ("a drawing of ", 1),
    ("make ", 1),
    ("show me ", 1),
    ("create ", 1),
    ("paint ", 1),
    ("i want ", 1),
    ("give me ", 1),
    ("an illustration of ", 1),
    ("picture of ", 1),
    ("draw me ", 1),
    ("a painting of ", 1),
    ("i would like ", 1),
    ("image: ", 1),
    ("create an image of ", 1),
    ("generate a picture of ", 1),
    ("there is ", 1),
    ("can you draw ", 1),
)
_SUFFIXES = (
    ("", 12),
    (".", 4),
    ("!", 1),
    (" please", 1),
    (", please", 1),
    ("...", 1),
    ("?", 1),
    (",", 1),
    (" .", 1),
    (", digital art", 1),
)
_SHAPES = {
    "circle": ("circle", "circle", "circle", "disc", "disk"),
    "square": ("square",) * 5,
    "triangle": ("triangle",) * 5,
    "star": ("star",) * 5,
}
_SIZES = {
    "small": ("small", "small", "tiny", "little"),
    "medium": ("medium", "medium-sized", "medium sized", "normal"),
    "large": ("large", "large", "big", "huge"),
}
_SHADES = ("", "", "", "", "", "", "bright ", "solid ", "plain ")
_GROUNDS = ("background", "background", "background", "background", "backdrop")
_ROWS = {"top": ("top", "top", "upper"), "bottom": ("bottom", "bottom", "lower")}


def _pick(rng: random.Random, weighted: tuple[tuple[str, int], ...]) -> str:
    return rng.choices([w for w, _ in weighted], [n for _, n in weighted])[0]


def spelt(rng: random.Random, colour: str) -> str:
    """Gray is grey half of the time."""
    return "grey" if colour == "gray" and rng.random() < 0.5 else colour


def _article(rng: random.Random, phrase: str) -> str:
    article = rng.choice(("a", "a", "a", "a", "the", "one", ""))
    if article == "a" and phrase[0] in "aeiou" and rng.random() < 0.8:
        article = "an"
    return f"{article} {phrase}".strip()


def _subject(rng: random.Random, shape: str, colour: str, size: str) -> str:
    word = rng.choice(_SHAPES[shape])
    measure = ""
    if size != "medium" or rng.random() < 0.25:
        measure = rng.choice(_SIZES[size]) + " "
    shade = rng.choice(_SHADES) + spelt(rng, colour)
    form = rng.random()
    if form < 0.80:
        return _article(rng, f"{measure}{shade} {word}")
    if form < 0.83:
        return (
            _article(rng, f"{measure}{word}") + f", {rng.choice(('', 'coloured ', 'colored ', 'filled with '))}{shade},"
        )
    if form < 0.88:
        return _article(rng, f"{shade} {measure}{word}")
    if form < 0.92:
        return _article(rng, f"{measure}{word}") + f" in {shade}"
    if form < 0.96:
        return _article(rng, f"{measure}{word}") + f" that is {shade}"
    return _article(
        rng, f"{measure}{shade} coloured {word}" if rng.random() < 0.5 else f"{measure}{shade} colored {word}"
    )


def _place(rng: random.Random, position: str) -> str:
    """The position in words; "" where a centred shape goes without saying."""
    if position == "center":
        word = rng.choice(("center", "centre", "middle", "center"))
        form = rng.choice(
            ("", "", "", "in the {}", "in the {}", "at the {}", "{}", "centered", "centred", "in the {} of the image")
        )
        return form.format(word)
    row, _, column = position.partition(" ")
    if not column:
        word = rng.choice(_ROWS.get(row, (row,)))
        forms = [
            "at the {}",
            "in the {}",
            "on the {}",
            "{}",
            "at the {} of the image",
            "on the {} side",
            "near the {}",
            "at the {} edge",
        ]
        if row in ("top", "bottom"):
            forms += ["at the {} center", "at the {} in the middle", "{} center"]
        else:
            forms += [
                "on the {}",
                "on the {}",
                "to the {}",
                "in the {} half",
                "at the center {}",
                "on the {} hand side",
            ]
        return rng.choice(forms).format(word)
    joint = rng.choice((" ", " ", " ", "-"))
    where = rng.choice(_ROWS[row]) + joint + column
    forms = [
        "in the {}",
        "in the {}",
        "at the {}",
        "in the {} corner",
        "in the {} corner",
        "{}",
        "{} corner",
        "on the {}",
        "at the {} corner",
        "to the {}",
        "near the {} corner",
        "in the {} of the image",
        "in the {}-hand corner",
        "placed in the {}",
    ]
    return rng.choice(forms).format(where)


def _ground(rng: random.Random, background: str) -> str:
    shade = rng.choice(_SHADES) + spelt(rng, background)
    word = rng.choice(_GROUNDS)
    forms = [
        "on a {} {}",
        "on a {} {}",
        "on a {} {}",
        "on a {} {}",
        "on {} {}",
        "{} {}",
        "{} {}",
        "with a {} {}",
        "over a {} {}",
        "against a {} {}",
        "on the {} {}",
        "in front of a {} {}",
    ]
    form = rng.random()
    if form < 0.84:
        return rng.choice(forms).format(shade, word)
    if form < 0.90:
        return f"on {shade}"
    if form < 0.95:
        return f"the {word} is {shade}"
    return f"{word}: {shade}" if rng.random() < 0.5 else f"{word} {shade}"


def caption(
    rng: random.Random, shape: str, colour: str, background: str, position: str, size: str, implied: str
) -> str:
    """A wording of the scene, lower case. A background equal to `implied` is left unsaid two times of three."""
    subject, place, ground = _subject(rng, shape, colour, size), _place(rng, position), _ground(rng, background)
    if background == implied and rng.random() < 0.67:
        ground = ""
        if rng.random() < 0.4:  # the shortest there is: "red circle", "small red circle top left"
            measure = "" if size == "medium" else rng.choice(_SIZES[size])
            return " ".join(f"{measure} {spelt(rng, colour)} {rng.choice(_SHAPES[shape])} {place}".split())
    if ground and rng.random() < 0.12:
        return _told(rng, (shape, colour, background, size), subject, place)
    order = rng.random()
    between = rng.choice((" ", " ", " ", ", ", ", ", " - ", "; "))
    if place and ground and order < 0.12 and place.startswith(("in", "at", "on")) and "of the image" not in place:
        parts = [f"{subject} {place} of a {spelt(rng, background)} {rng.choice(_GROUNDS)}"]
    elif order < 0.60:
        parts = [subject, place, ground]
    elif order < 0.75:
        parts = [subject, ground, place]
    elif order < 0.87:
        parts = [ground, subject, place]
        between = rng.choice((", ", ", ", ", ", " ", ": "))
    else:
        parts = [place, subject, ground]
    text = between.join(p for p in parts if p)
    return _pick(rng, _PREFIXES) + text + _pick(rng, _SUFFIXES)


def _told(rng: random.Random, scene: tuple[str, str, str, str], subject: str, place: str) -> str:
    """Rarer wordings that name the background first, or the colour last."""
    shape, colour, background, size = scene
    shade, word = rng.choice(_SHADES) + spelt(rng, background), rng.choice(_SHAPES[shape])
    ground = _article(rng, f"{shade} {rng.choice(_GROUNDS)}")
    verb = rng.choice(("is", "is", "should be", "must be"))
    bare = _article(rng, f"{'' if size == 'medium' else rng.choice(_SIZES[size])} {word}".strip())
    forms = (
        "{ground} with {subject} {place}",
        "{ground} with {subject} {place}",
        "{ground} with {subject} {place}",
        "{ground} and {subject} {place}",
        "{subject} {place} with {ground}",
        "{subject} {place} and {ground}",
        "the background {verb} {shade} and there is {subject} {place}",
        "the background {verb} {shade}, {subject} {place}",
        "{subject} {place}, the background {verb} {shade}",
        "{bare} {place} on {ground}, the {word} {verb} {colour}",
        "{bare} {place} on {ground}. the {word} {verb} {colour}",
        "{bare} on {ground}, the {word} {verb} {colour} {place}",
        "{subject} located {place} on {ground}",
        "{subject}, positioned {place}, on {ground}",
    )
    text = rng.choice(forms).format(
        ground=ground,
        subject=subject,
        place=place,
        verb=verb,
        shade=shade,
        bare=bare,
        word=word,
        colour=spelt(rng, colour),
    )
    return rng.choice(("", "", "", "draw ", "make ", "show ", "paint ", "a picture of ")) + " ".join(text.split())


def recolour(rng: random.Random, shape: str, colour: str) -> str:
    """An instruction to give the shape another colour."""
    word = rng.choice(_SHAPES[shape] + ("shape", "object"))
    forms = (
        "make it {c}",
        "make it {c}",
        "make the {s} {c}",
        "change the color to {c}",
        "change the colour to {c}",
        "change its color to {c}",
        "paint it {c}",
        "turn it {c}",
        "color it {c}",
        "recolor the {s} to {c}",
        "turn the {s} {c}",
        "change the {s} to {c}",
        "change the {s} color to {c}",
        "make the color {c}",
        "the {s} should be {c}",
        "paint the {s} {c}",
        "change it to {c}",
    )
    return rng.choice(forms).format(c=spelt(rng, colour), s=word) + _pick(rng, _SUFFIXES)


def reground(rng: random.Random, background: str) -> str:
    """An instruction to give the picture another background."""
    forms = (
        "change the {g} to {c}",
        "change the {g} to {c}",
        "make the {g} {c}",
        "make the {g} {c}",
        "put it on a {c} {g}",
        "{c} {g}",
        "set the {g} to {c}",
        "turn the {g} {c}",
        "use a {c} {g}",
        "change the {g} color to {c}",
        "the {g} should be {c}",
        "replace the {g} with {c}",
        "paint the {g} {c}",
        "give it a {c} {g}",
    )
    return rng.choice(forms).format(c=spelt(rng, background), g=rng.choice(_GROUNDS)) + _pick(rng, _SUFFIXES)


def reshape(rng: random.Random, before: str, after: str) -> str:
    """An instruction to turn the shape into another one."""
    old, new = rng.choice(_SHAPES[before] + ("shape", "it", "it")), rng.choice(_SHAPES[after])
    the = old if old == "it" else f"the {old}"
    forms = (
        "turn {o} into a {n}",
        "turn {o} into a {n}",
        "make {o} a {n}",
        "change {o} to a {n}",
        "change {o} into a {n}",
        "replace {o} with a {n}",
        "change the shape to a {n}",
        "make a {n} instead",
        "{o} should be a {n}",
        "transform {o} into a {n}",
        "swap {o} for a {n}",
    )
    return rng.choice(forms).format(o=the, n=new) + _pick(rng, _SUFFIXES)
