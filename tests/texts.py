"""Short texts in several scripts, and the signs that tokenizers stumble over."""

from __future__ import annotations

ENGLISH = (
    "The harbour was quiet when Miriam came down to it, long before seven o'clock. A single boat, "
    "painted the colour of weak tea, rocked against the wall; somebody had left a lantern burning "
    "in its cabin. \"You're early,\" said a voice behind her. She hadn't heard footsteps.\n\n"
    "It was old Thackeray, of course, who'd mended nets here since 1963 and who couldn't be hurried "
    "by anyone. He didn't ask what she wanted. He'd known it for weeks, perhaps for years: the "
    "charts, the rusted compass, and whatever else her grandfather hadn't sold, lost or given away. "
    "They'd agreed on a price of twenty-five pounds - no more, no less - and yet she hesitated. "
    "Wasn't it strange, she thought, that something so unremarkable should matter so much? "
    "Overhead, the gulls' quarrelling went on and on, tireless, and the wonderfully slow tide "
    "turned at last."
)
GERMAN = (
    "Als der Zug endlich in Königswusterhausen hielt, war es längst dunkel geworden. Über den "
    "Gleisen hing ein dünner Nebel, und die Straßenlaternen sahen aus wie müde Augen. Jürgen "
    "Großmann stieg aus, stellte seinen Koffer ab und prüfte zum dritten Mal, ob er die "
    "Haustürschlüssel wirklich eingesteckt hatte. „Sie müssen der neue Übersetzer sein“, sagte "
    "eine Frau in einem grünen Mantel. Er nickte höflich.\n\nSie gingen schweigend durch die "
    "Bahnhofstraße, vorbei an der Fleischerei und am Rathaus, dessen Glocke gerade zwölfmal "
    "schlug. Die Geschwindigkeitsbegrenzung galt hier offenbar für niemanden: Ein Motorrad raste "
    "vorüber. „Früher“, erklärte sie, „war das anders; da hätte man Ärger bekommen.“ Er überlegte, "
    "was er auf so etwas Merkwürdiges antworten könnte, fand aber außer einem Räuspern nichts, "
    "was passend gewesen wäre."
)
RUSSIAN = (
    "Весной, когда снег уже почти сошёл, мы с братом нашли на чердаке старый проигрыватель. Он был "
    "тяжёлый, пыльный и пах чем-то сладким. «Осторожнее, — сказал Алексей, — не урони». Мы вынесли "
    "его во двор и поставили на скамейку, под яблоней.\n\nПластинок оказалось всего четыре: две "
    "без этикеток, одна треснувшая и ещё одна, на которой неразборчивым почерком было написано: "
    "«Ленинград, 1957». Электричества на улице, разумеется, не было, поэтому пришлось тянуть "
    "удлинитель через окно кухни. Бабушка смотрела на нас с подозрением, но ничего не говорила. "
    "Наконец игла опустилась, послышался треск, а затем — удивительно чистый женский голос. Мы "
    "замерли. Даже соседская собака, которая обычно лаяла без остановки, вдруг замолчала и "
    "прислушалась."
)
CHINESE = (
    "清晨的雾还没有散，卖豆浆的老人已经把摊子支好了。他一边擦桌子，一边低声哼着一首谁也叫不出名字的曲子。"
    "第一个客人总是隔壁的张老师，她每天六点四十分准时出门，手里提着那只旧得发白的布袋。“今天要两根油条，”"
    "她说，“多放一点糖。”老人点点头，没有问为什么。\n\n"
    "后来下起了小雨，街上的人渐渐多了起来：骑自行车的学生、赶着上班的工人，还有几个背着相机的游客。"
    "有人问路，有人躲雨，也有人只是站在屋檐下发呆。老人看着他们，忽然想起四十年前的那个夏天，他也曾经这样"
    "站在一座陌生的城市里，口袋里只有三块钱，却觉得什么事情都可能发生。现在想来，那时候的自己真是勇敢，"
    "也真是糊涂。雨停了，他把最后一碗豆浆倒给了路边的流浪猫，然后收起摊子，慢慢地走回家去。明天，如果天气好，"
    "他还会再来。"
)
JAPANESE = (
    "駅前の小さな喫茶店は、いつも八時ちょうどに開く。マスターの田中さんは、もう三十年もコーヒーを淹れ続けて"
    "いるそうだ。「急がなくていいんですよ」と彼は言う。「おいしいものには、時間がかかりますから。」\n\n"
    "窓ぎわの席に座ると、向かいのパン屋からバターの香りがただよってきた。テーブルの上には、色あせたメニューと、"
    "一輪のコスモス。外では、傘をさした人びとが足早に通りすぎていく。私はノートを開き、昨日のつづきを書こうと"
    "したが、なかなか言葉が出てこない。しばらくすると、隣の席の女の子が、ストローの袋で小さな鶴を折って、"
    "そっとこちらに差し出した。ありがとう、と言うと、彼女は少しだけ笑って、また絵本の世界に戻っていった。"
    "その日、私は一行も書けなかったけれど、帰り道の空は、びっくりするほど明るかった。"
)
HINDI = (
    "गाँव के किनारे एक पुराना कुआँ था, जिसके बारे में बच्चे तरह-तरह की कहानियाँ सुनाते थे। कोई कहता था "
    "कि रात में वहाँ से संगीत सुनाई देता है, कोई कहता था कि उसका पानी कभी नहीं सूखता। मेरी दादी हँसकर "
    "कहतीं, “सब झूठ है।”\n\nएक दिन, गर्मियों की छुट्टियों में, हमने तय किया कि सच्चाई का पता लगाएँगे। "
    "हम पाँच दोस्त थे, और हमारे पास केवल एक टॉर्च थी। जब हम वहाँ पहुँचे, तो चाँद निकल चुका था और हवा में "
    "नीम की गंध थी। धीरे-धीरे हमने झुककर नीचे देखा। पानी बिल्कुल शांत था, और उसमें पूरा आकाश दिखाई दे रहा "
    "था। किसी ने कुछ नहीं कहा।"
)
CODE = '''from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Running:
    """Mean and variance of a stream (Welford, 1962)."""

    count: int = 0
    mean: float = 0.0
    _m2: float = field(default=0.0, repr=False)

    def add(self, x: float) -> "Running":
        n = self.count + 1
        delta = x - self.mean
        mean = self.mean + delta / n
        return Running(n, mean, self._m2 + delta * (x - mean))

    @property
    def std(self) -> float:
        if self.count < 2:
            return math.nan
\t# a tab, for once
        return math.sqrt(self._m2 / (self.count - 1))


if __name__ == "__main__":
    r = Running()
    for i, x in enumerate([1e-3, -2.5, 0xFF, 10_000]):
        r = r.add(x)  # noqa: PLW2901
    print(f"{r.mean:>10.4f} ± {r.std!r}", {"ok": r.count != 0 and not r.std <= 0})
'''
DIGITS = (
    "2024-02-29T23:59:59.999Z, 3.14159265358979, 1,000,000.00 and 1000000; 0x1F, 1e-10, 50%, "
    "+49 30 901820, 192.168.0.1:8080, 12345678901234567890, 007, 1/2, 3×4=12, x²+y³, ½, Ⅷ, "
    "٣٫١٤, १२३४५६७, 一九八四, €19.99, $5, -40°C, 16:9, v2.0.1-rc.3, ISBN 978-3-16-148410-0, "
    "00000000, 11111111111111111111, 99 bottles, 4th, 20s, A4, H2O, 5'11\", 1.5h."
)
EMOJI = (
    "Great 👍🏽 film!! 😀😃😄 The 👩‍👩‍👧‍👦 family and the 🏳️‍🌈 flag, 🇩🇪🇯🇵🇧🇷, ❤️‍🔥, ☕️, 1️⃣2️⃣, 🧑🏿‍🚀 in space… ✨✨✨ "
    "naïve café, e\u0301 and é, Å, ﬁne, ㎏, zero\u200bwidth, soft\u00adhyphen, non\u00a0breaking, "
    "نص عربي قصير، שלום עולם, ไทยไม่มีช่องว่าง, 한국어 문장입니다, Ελληνικά, "
    "ǅungla, ıİ, ẞß, 𝔘𝔫𝔦𝔠𝔬𝔡𝔢, 𓀀𓁐, \U000f0000, ¯\\_(ツ)_/¯, (╯°□°)╯︵ ┻━┻ 🤷‍♀️"
)
SPACES = (
    "one  two   three    four\tfive\t\tsix \t seven\n\n\neight\r\nnine\r\n\r\n   ten\n \n  \n\t\n"
    "eleven          twelve\u3000thirteen\u2003\u2003fourteen \u00a0 fifteen  \n  sixteen   .   , "
    "  !  'tis   's  (  )\n        indented\n            more\n                                most\n"
    "trailing   \nend \n\n \t\n   "
)
PUNCTUATION = (
    "Wait... what?! No--yes; (maybe [or {not}]): \"he said 'she said “they said”'\" -- / // /// "
    "\\n ... .. . !!! ??? ?!?! *** ___ --- === ===> <= >= != == ~~ ## @@ && || ^^ %% $$ ;;; ::: "
    "http://example.org/a_b-c/d.html?x=1&y=%20#top, user.name+tag@mail.example.com; R&D, AT&T, "
    "C++/C#, we'll, I'd've, y'all'd, rock'n'roll, 'twas, O'Neill's, it’s, l’été, d'accord, "
    "and/or, e.g., i.e., etc.; <b>bold</b> &amp; <br/>\n[1] {2} (3) <4> «5» ‹6› „7“ ‚8‘ ¿9? ¡10! "
    "–—―…·•‣ §¶†‡ ©®™ ±×÷ ≤≥≠≈ →←↑↓ ./.\n./\n.\n\n/\n!\n?"
)

TEXTS = {
    "English": ENGLISH,
    "German": GERMAN,
    "Russian": RUSSIAN,
    "Chinese": CHINESE,
    "Japanese": JAPANESE,
    "Hindi": HINDI,
    "code": CODE,
    "digits": DIGITS,
    "emoji": EMOJI,
    "spaces": SPACES,
    "punctuation": PUNCTUATION,
}
"""Name → text."""
