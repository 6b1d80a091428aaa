"""A small corpus that tells tokenizers apart, and how two of them cut it.

Every text begins with a visible character and is composed (Unicode's NFC): how a tokenizer opens a document, and what
it makes of characters in pieces, is not what is asked here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ivgcli.models.byte_vocabulary import ByteVocabulary

PROBES: dict[str, str] = {
    "English": (
        "The film opens on a grey harbour, and for twenty minutes nobody speaks. It isn't slow, though; "
        "it's patient, the way good teachers are. When the fisherman's daughter finally says, \"You knew, "
        "didn't you?\", the whole audience of the half-empty theatre holds its breath. Afterwards I "
        "couldn't decide whether Mr. O'Neill deserves the praise he gets: his screenplays are "
        "well-meaning, over-explained and oddly unforgettable. Would I recommend it? Yes, wholeheartedly."
    ),
    "code": (
        "def moving_average(values: list[float], width: int = 5) -> list[float]:\n"
        '    """Return means over a sliding window."""\n'
        "    if width <= 0 or len(values) < width:\n"
        '        raise ValueError(f"bad width: {width!r}")\n'
        "    total, means = sum(values[:width]), []\n"
        "    for i in range(width, len(values) + 1):\n"
        "        means.append(total / width)\n"
        "        if i < len(values):\n"
        "            total += values[i] - values[i - width]  # O(n)\n"
        "    return means\n\n\n"
        "#include <stdio.h>\n"
        'int main(void) { for (int i = 0; i != 10; ++i) printf("%d\\n", i * i); return 0; }\n'
        "SELECT name, COUNT(*) FROM users WHERE age >= 18;\n"
    ),
    "digits": (
        "3.14159265358979, 2.718281828459045 and 1.4142135623730951; 0.5772e-16, -273.15 and +6.02214076E23. "
        "On 2024-02-29 at 23:59:59.999 the counter stood at 1,048,576 (0xFFFFF + 1, or 2^20). Call "
        "+49 30 901820 or 555-0199, room 404, lines 1-128. 7 8 9 10 11 12 99 100 101 999 1000 10000 100000. "
        "12/25/1999, 31.12.2000, 1/3, 45%, $1,299.99, 192.168.0.1, v2.10.3, 1984, 007, 1e6, 0b1011, "
        "8589934592 = 2**33; 17 * 23 = 391 and 5 + 7 = 12."
    ),
    "German": (
        "Der Film beginnt an einem grauen Hafen, und zwanzig Minuten lang spricht niemand. Das ist nicht "
        "langweilig, sondern geduldig – so wie gute Lehrerinnen und Lehrer geduldig sind. Als die Tochter "
        "des Fischers schließlich fragt: „Du hast es gewusst, nicht wahr?“, hält das halb leere Kino den "
        "Atem an. Über die Donaudampfschifffahrtsgesellschaft und ihre Kapitänsmützen müsste man größere "
        "Aufsätze schreiben; ich würde dafür höchstens fünf Euro zahlen. Straßenbahnhaltestellen übrigens "
        "spielen auch eine Rolle."
    ),
    "Russian": (
        "Фильм начинается в серой гавани, и первые двадцать минут никто не произносит ни слова. Это не "
        "скука, а терпение – такое бывает у хороших учителей. Когда дочь рыбака наконец спрашивает: «Ты "
        "ведь знал, правда?», весь полупустой зал задерживает дыхание. Потом я долго не мог решить, "
        "заслуживает ли сценарист похвалы: его пьесы объясняют слишком многое, но почему-то не "
        "забываются. Ещё бы! Советую ли я пойти? Да, безусловно, и возьмите с собой друзей."
    ),
    "Chinese": (
        "电影从一个灰色的港口开始，整整二十分钟没有人说话。这并不是沉闷，而是耐心，就像好老师那样的耐心。"
        "当渔夫的女儿终于问道：“你早就知道了，对不对？”半空的影院里，所有人都屏住了呼吸。后来我一直无法决定，"
        "这位编剧是否值得大家的称赞：他的剧本解释得太多，却又莫名其妙地令人难忘。我会推荐这部电影吗？"
        "会的，毫无保留。票价四十五元，《海边的房子》从三月一日起上映，周末下午两点和晚上七点半各放映一场；"
        "學生可以半價入場，請攜帶證件。散场之后，我们沿着江边走了很久，谁也不想先开口，只听见风吹过芦苇，"
        "远处的轮船慢慢驶过，灯火映在水面上，像一条安静的银河。朋友忽然笑了，说他小时候也住在这样的镇上，"
        "每天清晨跟着祖父去码头看船，如今码头已经变成了停车场。"
    ),
    "emoji": (
        "What a film 😀😀😀! I laughed 😂, I cried 😭 and I called my mum 📞👩‍👧. Ten out of ten 🔟 💯 ❤️ ♥ ✨. My "
        "friends 👨‍👩‍👧‍👦 from 🇩🇪, 🇧🇷 and 🇯🇵 gave it 👍🏽 👎🏿 🤷🏻‍♀️. Popcorn 🍿 + cola 🥤 = 🥳 → see you at 🕗 🎬… "
        "☕️→☀️→🌙, 🐈‍⬛ 🏳️‍🌈 👩🏾‍🚀 🧑‍💻. Old style: :-) ;-) ^_^ ¯\\_(ツ)_/¯ ☺ ☹ ✓ ✗ ★★★☆☆ ½ © ™ € ≤ ∞ π ≈ 3. "
        "One more 🫠, then good night 😴💤. Rated by 🦊 and 🦉: 🥇🥈🥉, twice 🔁, on a bus 🚌 home 🏠."
    ),
    "spaces": (
        "one two  three   four    five     six      seven       eight        nine\n"
        "\tone tab\n\t\ttwo tabs\n  \t mixed \t  \n\n\nthree lines down \n \n  \n"
        "a | b  |  c   |   d    |\n- item\n  - nested item\n    - deeper  \n        1.  numbered   \r\n"
        "windows line\r\n\r\nend.   Start.\n\n\n\n\n                                next\n"
        "x = 1 ;  y = 2  ;\t\tz\t=\t3   \n"
        + "-" * 16
        + "   "
        + "=" * 12
        + "\n...   ... \u00a0 non-breaking\n"
    ),
}
"""Name → text of 300 to 600 characters."""


@dataclass(frozen=True)
class Coverage:
    """How the tokens of one text under the base's tokenizer stand to the guide's; shares of 0 to 1."""

    shared: float
    """Share of the base's tokens whose bytes are one token of the guide, wherever it would use it."""
    aligned: float
    """Share of the places between two of the base's tokens that are between two of the guide's."""
    same_span: float
    """Share of the base's tokens that are one token of the guide at the same place."""


def segmented(tokenizer: Any) -> dict[str, tuple[int, ...]]:
    """Return the ids of every probe, without special tokens."""
    return {
        name: tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        for name, text in PROBES.items()
    }


def covered(base: ByteVocabulary, guide: ByteVocabulary) -> dict[str, Coverage]:
    """Return how a guide's tokens cover the base's, by text."""
    found = {}
    for name, text in PROBES.items():
        own = list(spans(base, text))
        other = {(begin, end) for _, begin, end in spans(guide, text)}
        inner = {end for _, _, end in own if end < len(text.encode())}
        found[name] = Coverage(
            shared=_share(sum(base.pieces[token] in guide.ids for token, _, _ in own), len(own)),
            aligned=_share(len(inner & {end for _, end in other}), len(inner)),
            same_span=_share(sum((begin, end) in other for _, begin, end in own), len(own)),
        )
    return found


def spans(vocabulary: ByteVocabulary, text: str) -> Iterator[tuple[int, int, int]]:
    """Yield (id, byte place of its beginning, of its end) for every token that stands for some of a text.

    A space in front of a document that nobody wrote belongs to no token. Where the pieces do not spell the text,
    because the tokenizer changes it or has not all of its characters, the places are those of the tokenizer's own
    account, in whole characters.
    """
    read = vocabulary.core.encode(text, add_special_tokens=False)
    unwritten = vocabulary.opens_with_space and not text.startswith(" ")
    if vocabulary.text(read.ids) == (b" " if unwritten else b"") + text.encode():
        sizes = (len(vocabulary.pieces[token] or b"") for token in read.ids)
        ends = [end - unwritten for end in accumulate(sizes)]
    else:
        ends = [len(text[:last].encode()) for _, last in read.offsets]
    begin = 0
    for token, end in zip(read.ids, ends, strict=True):
        if end > begin:
            yield token, begin, end
            begin = end


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
