"""Seeded texts, mild and hostile, for every tokenizer to be compared on; no import beside the
standard library."""

import random

TEXT = (
    "the people of United States naïve café 日本語 中文 hello don't WE'LL 1234 3.14 <b> </b> def foo(): aaa aa a "
    "Ångström ÀÉÎ straße İstanbul Σίσυφος हिन्दी 한국어 MixedCase snake_case https://ex.am/pl?e=1 x=[1,2]"
)
WORDS = TEXT.split()
ODD = [
    *(
        "👍🏽",
        "👨‍👩‍👧",
        "🇩🇪",
        "\u0301",
        "\u0323\u0307",
        "e\u0301",
        "a\u0306\u0301",
        "か\u3099",
        "\u1112\u1161\u11ab",
        "क्षि",
    ),
    *(
        "ﬁ",
        "①",
        "½",
        "Ａ",
        "ﷺ",
        "²\u0301",
        "𝕳",
        "\U0010ffff",
        "\ufdd0",
        "\ue000",
        "\x00",
        "\x01",
        "\x1f",
        "\x7f",
        "\x85",
    ),
    *(
        "\u200b",
        "\u200d",
        "\u2060",
        "\ufeff",
        "\u00ad",
        "\u3000",
        "\u00a0",
        "\u2003",
        "\u2028",
        "  ",
        "   ",
        "\t",
        "\n",
    ),
    *("\r\n", "\n\n", " \n ", "▁", "▁▁", "Ġ", "##", "</w>", "<0x41>", "<0x0A>"),
    *(
        "<s>",
        "</s>",
        "<unk>",
        "<pad>",
        "<mask>",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "[UNK]",
        "<|endoftext|>",
        "<|startoftext|>",
    ),
    *("<|im_start|>", "<|im_end|>", "<extra_id_0>", "<extra_id_99>", "<tool_call>", "<start_of_turn>"),
]
CORPUS = [" ".join(random.Random(i).choices(WORDS, k=12)) for i in range(300)]


def text(rng: random.Random) -> str:
    hostile = rng.random() < 0.6
    parts = []
    for _ in range(rng.choice([0, 1, 2, 3, 5, 12])):
        parts.append(rng.choice(ODD if hostile and rng.random() < 0.5 else WORDS) + rng.choice(["", " ", " "]))
    return rng.choice(["", "", "", " ", "\n"]) + "".join(parts)


def texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [text(rng) for _ in range(count)]
