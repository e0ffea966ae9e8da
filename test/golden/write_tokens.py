"""
Writes data/tokens.json: 500 texts and the ids that transformers' CLIPTokenizer gives them with a bundle's tokenizer.

Nothing is cut off and nothing padded: what to do with more than 77 tokens is the serving side's own matter.

Run: python test/golden/write_tokens.py [deploy/models/atelier-tiny]
"""

import hashlib
import json
import random
import sys
from pathlib import Path

import tokenizers
import transformers
from golden_file import DATA

COUNT = 500
DEFAULT_BUNDLE = Path(__file__).parents[2] / "deploy/models/atelier-tiny"

# What a caption tokenizer meets in a shop, and then what breaks tokenizers.
PLAIN = """
a red t-shirt on a white background
product photo of a blue mug with white dots, wooden table
a red guochao t-shirt on a white background
Nordic green sofa
watercolour handbag, marble
A PINK UMBRELLA IN THE GARDEN
3 sneakers, size 42.5, -20% off!!!
it's what we've got: they'll say I'm sure you'd like 'em, don't you're
IT'S WE'VE THEY'LL I'M YOU'D DON'T
it’s we’ve they’ll
国潮风T恤, 白色背景
红色国潮T恤，白底
蓝色马克杯，白色圆点，木桌
北欧风绿色沙发
水彩手提包、大理石背景
一只红色的灯笼，节日气氛
月饼礼盒 中秋节 限定
低分辨率, 模糊
連衣裙 粉紅色 花園
高清产品图：黑色运动鞋（限量版）【新品】￥399
""".strip().splitlines()

ODD = [
    "",
    " ",
    "\t\n\r",
    "   leading and trailing   ",
    "tabs\tand\nnew\r\nlines",
    "no\u00a0break\u2003em\u3000ideographic\u2009thin space",
    "next\u0085line and \u2028line separator\u2029paragraph",
    "zero\u200bwidth\u200cspace\u200djoiner\ufeffmark",
    "soft\u00adhyphen",
    "👍", "👍🏽", "👩‍👩‍👧‍👦 family", "🇨🇳🇩🇪 flags", "❤️❤", "1️⃣2️⃣", "🧵👗👟 sale 🎉🎉🎉", "红色👗连衣裙✨",
    "e\u0301 and \u00e9", "A\u030a \u00c5 \u212b", "\u1e9b\u0323", "ﬁne ﬂow", "Ａｂｃ１２３ full width", "ｶﾀｶﾅ half width",
    "ΣΊΣΥΦΟΣ ΟΔΟΣ Σ", "İstanbul ISTANBUL ıi", "STRASSE straße ẞ", "ǅ Ǆ ǆ", "ДЛЯ РУССКИХ", "Ⅳ ⅳ ½ ² ③ ٣ ४ 五", "x²+y²=z²",
    "日本語のテキストと漢字", "한국어 텍스트 한글", "ไทยภาษา", "العربية نص", "עברית טקסט", "हिन्दी में पाठ", "Việt Nam Tiếng Việt",
    "a̐éö̲", "Z̴̡a̷l̵g̸o̶", "İ̇", "ﷺ", "𝓕𝓪𝓷𝓬𝔂 𝕋𝕖𝕩𝕥", "𠮷野家 𠀀", "\ue000 private \U000f0000", "\u0001\u0008control\u007f",
    "snake_case camelCase kebab-case dot.case", "https://example.com/?q=1&r=%20", "user@example.com #tag @name",
    "(red:1.3) [blue] ((green)) \\(plain\\)", "{a|b|c}", "<b>bold</b> &amp; &lt;", "...---...", "!!!???", "、。！？；：“”‘’", "——……",
    "''s ''' 's's 't're", "'S 'T 'RE 'VE 'M 'LL 'D", "rock'n'roll o'clock", "5'11\" 6′2″", "$1,234.56 €7 ¥8 £9", "100%", "1/2 3:4 5-6",
    "word" * 40, "a" * 300, "红" * 120, "1234567890" * 12, "!?" * 60, "😀" * 50,
    "<|endoftext|> hi", "a <|startoftext|>b", "<|ENDOFTEXT|>", "< |endoftext| >", "<|endoftext|", "x<|endoftext|><|endoftext|>y",
]

WORDS = {
    "en": "a the red orange yellow green blue purple pink brown black white t-shirt dress hoodie sneaker cap handbag backpack "
    "mug teapot vase lantern mooncake sofa umbrella on with and background table wooden marble garden festive soft light "
    "studio photo product picture striped dotted floral checked Nordic watercolour guochao cloud pattern gold trim 4K HDR "
    "ultra-detailed elegant, minimal, cosy; brand's designer's 2026 50% XL".split(),
    "zh": "红色 橙色 黄色 绿色 蓝色 紫色 粉色 棕色 黑色 白色 T恤 连衣裙 卫衣 运动鞋 帽子 手提包 背包 马克杯 茶壶 花瓶 灯笼 月饼 沙发 雨伞 "
    "国潮 北欧 水彩 祥云 条纹 圆点 格子 碎花 背景 白底 木桌 大理石 花园 喜庆 的 ， 、 。 一件 一个 产品图 高清 柔和光线 风格 2026年 五折".split(),
    "other": "👗 👟 ☕ 🎉 ✨ ❤️ 🏮 🥮 ~ | / + = & @ # … — · ™ ® é ü ñ ß ø ж ю カップ 신발 ½ № (1.2) [x]".split(),
}


def texts() -> list[str]:
    """The fixed texts first, then mixtures of words until there are COUNT; a few are far over 77 tokens."""
    random_ = random.Random(77)
    made = [*PLAIN, *ODD]
    seen = set(made)
    while len(made) < COUNT:
        languages = random_.choice((["en"], ["zh"], ["en", "zh"], ["en", "zh", "other"], ["other"]))
        words = [word for language in languages for word in WORDS[language]]
        length = 120 if len(made) % 25 == 0 else random_.randint(1, 14)
        gap = "" if languages == ["zh"] and random_.random() < 0.8 else random_.choice((" ", " ", " ", "  ", ", ", ""))
        text = gap.join(random_.choice(words) for _ in range(length))
        text = random_.choice((str, str, str, str.upper, str.title))(text)
        if text not in seen:
            seen.add(text)
            made.append(text)
    return made


def main(bundle: Path) -> None:
    tokenizer = transformers.CLIPTokenizer.from_pretrained(bundle / "tokenizer")
    tokenizer.model_max_length = 10**9  # says nothing of long texts
    files = {name: hashlib.sha256((bundle / "tokenizer" / name).read_bytes()).hexdigest() for name in ("vocab.json", "merges.txt")}
    head = {
        "writtenBy": "test/golden/write_tokens.py",
        "versions": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__},
        "tokenizer": files,
    }
    cases = [{"text": text, "ids": tokenizer(text).input_ids} for text in texts()]
    lines = ",\n".join("    " + json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases)
    DATA.mkdir(exist_ok=True)
    path = DATA / "tokens.json"
    path.write_text(f'{json.dumps(head, indent=2)[:-2]},\n  "cases": [\n{lines}\n  ]\n}}\n', encoding="utf-8")
    long = sum(len(case["ids"]) > 77 for case in cases)
    print(f"{path.name}: {len(cases)} texts, {long} of them over 77 tokens, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_BUNDLE)
