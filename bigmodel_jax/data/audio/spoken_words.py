"""Short synthetic utterances by eSpeak NG. The validation split has voices of its own."""

import dataclasses
import hashlib
from typing import ClassVar

import numpy as np

from bigmodel_jax.core.ranges import Count, CountOrZero, Share
from bigmodel_jax.data import cache
from bigmodel_jax.data.audio import espeak, waveforms
from bigmodel_jax.data.audio.espeak import Utterance
from bigmodel_jax.data.audio.spectrogram import RATE
from bigmodel_jax.data.sources.source import Source

FORMAT = 1  # raise it when the samples change
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple", "brown", "pink")
COMMANDS = ("go", "stop", "left", "right", "up", "down", "open", "close", "start", "play", "yes", "no")
# Variants of eSpeak NG that imitate people. Robots, whispers and jokes are left out.
VOICES = tuple(
    [
        "Alex",
        "Alicia",
        "Andrea",
        "Andy",
        "Annie",
        "Denis",
        "Diogo",
        "Gene",
        "Henrique",
        "Hugo",
        "Jacky",
        "Lee",
        "Marco",
        "Mario",
        "Michael",
        "Mike",
        "Reed",
        "Storm",
        "anika",
        "announcer",
        "antonio",
        "aunty",
        "belinda",
        "benjamin",
        "boris",
        "caleb",
        "david",
        "ed",
        "edward",
        "f1",
        "f2",
        "f3",
        "gustave",
        "ian",
        "iven",
        "john",
        "m1",
        "m2",
        "m3",
        "m5",
        "m7",
        "marcelo",
        "max",
        "michel",
        "miguel",
        "norbert",
        "pablo",
        "pedro",
        "quincy",
        "rob",
        "robert",
        "sandro",
        "steph",
        "travis",
        "zac",
        "klatt",
        "klatt3",
    ]
)
HELD_OUT_VOICES = tuple(
    ["f4", "f5", "m4", "m6", "m8", "linda", "shelby", "paul", "victor", "grandma", "klatt2", "steph3"]
)
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-us-nyc")


@dataclasses.dataclass(frozen=True)
class SpokenWords(Source):
    """Synthetic utterances of one to `most_words` words in noise.

    The records are {"audio" (n,) float32 at 16 kHz, "text"}. Words, voice, accent, speed, pitch,
    loudness and noise are drawn at random. Record n of a split depends only on (seed, split, n) and
    on the fields below.
    """

    compared: ClassVar = {"train": "training", "voices": "training"}

    words: tuple[str, ...] = (*DIGITS, *COLOURS, *COMMANDS)
    "the vocabulary"
    train: Count = 4000
    validation: Count = 400
    "utterances of each split"
    most_words: Count = 4
    "the most words of an utterance"
    voices: tuple[str, ...] = VOICES
    "variants of eSpeak NG that speak the training split"
    held_out_voices: tuple[str, ...] = HELD_OUT_VOICES
    "variants that speak the validation split; no training voice may be among them"
    accents: tuple[str, ...] = ACCENTS
    "eSpeak NG's languages, one drawn for each utterance"
    slowest: Count = 130
    fastest: Count = 230
    "the range of the speaking rate, in words per minute"
    least_snr: CountOrZero = 15
    most_snr: CountOrZero = 40
    "the range of the signal-to-noise ratio, in decibels"
    silent: Share = 0.02
    "share of the utterances that are pure noise with an empty transcript"
    seed: CountOrZero = 0
    "seeds every random choice"

    def __post_init__(self):
        both = set(self.voices) & set(self.held_out_voices)
        if both:
            raise ValueError(f"data.source.held_out_voices: {min(both)!r} is among data.source.voices as well")
        for low, high in (("slowest", "fastest"), ("least_snr", "most_snr")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(
                    f"data.source.{low} = {getattr(self, low)}; it must be at most data.source.{high} = {getattr(self, high)}"
                )
        for name in ("words", "voices", "held_out_voices", "accents"):
            if not getattr(self, name):
                raise ValueError(f"data.source.{name}: empty; at least one is needed")

    def fingerprint(self, split, root):
        # The size of one split does not change the records of the other.
        facts = dataclasses.asdict(self) | {"train": 0, "validation": 0}
        return cache.key(facts, split, getattr(self, split), espeak.VERSION, FORMAT)

    def reads(self, root):
        return {"voices": f"{espeak.VERSION}, {FORMAT}"}

    def records(self, split, root, bad):
        drawn = [draw(self, split, number) for number in range(getattr(self, split))]
        spoken = espeak.spoken([one.utterance for one in drawn if one.utterance.text])
        for number, one in enumerate(drawn):
            voice = next(spoken) if one.utterance.text else np.zeros(0, np.int16)
            where = f"{split} utterance {number} ({one.utterance.voice})"
            yield where, {"audio": recorded(voice, one), "text": one.utterance.text}

    def short_name(self) -> str:
        return "spoken-words"


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The random choices of one utterance.

    - before, after: seconds of silence around the speech.
    - level: the peak amplitude of the speech, 0 to 1.
    - snr: signal-to-noise ratio in decibels.
    - seed: seeds the noise.
    """

    utterance: Utterance
    before: float
    after: float
    level: float
    snr: float
    seed: int


def draw(cfg: SpokenWords, split: str, number: int) -> Drawn:
    """Draw utterance `number` of a split. A longer split begins with the same utterances."""
    # SHA-256 gives the same seed in every process. Python's hash() of a text does not.
    seed = int.from_bytes(hashlib.sha256(f"{cfg.seed} {split} {number}".encode()).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    voices = cfg.voices if split == "train" else cfg.held_out_voices
    words = rng.choice(cfg.words, rng.integers(1, cfg.most_words + 1))
    # The words are drawn for a silent utterance too, so `silent` changes no other choice.
    text = "" if rng.random() < cfg.silent else " ".join(words)
    voice = f"{rng.choice(cfg.accents)}+{rng.choice(voices)}"
    speed, pitch = int(rng.integers(cfg.slowest, cfg.fastest + 1)), int(rng.integers(20, 81))
    before, after = rng.uniform(0.05, 0.25, 2)
    level, snr = 10 ** rng.uniform(-1.5, -0.1), rng.uniform(cfg.least_snr, cfg.most_snr)
    return Drawn(Utterance(text, voice, speed, pitch, seed % (1 << 31)), before, after, level, snr, seed)


def recorded(voice: np.ndarray, drawn: Drawn) -> np.ndarray:
    """Return (n,) float32 at 16 kHz: the voice between two silences, in white or pink noise."""
    # The 1 separates this stream from the stream of `draw`, which has the same seed.
    rng = np.random.default_rng((drawn.seed, 1))
    speech = waveforms.resampled(voice, espeak.RATE, RATE) if len(voice) else voice
    # The samples are whole numbers of int16 here, so the bound 1 only prevents a division by 0.
    speech = speech * (drawn.level / max(np.abs(speech).max(initial=0), 1.0))
    x = np.concatenate([np.zeros(int(drawn.before * RATE)), speech, np.zeros(int(drawn.after * RATE))])
    x = x if len(voice) else np.zeros(int(rng.uniform(0.4, 1.5) * RATE))
    noise = pink(rng, len(x)) if rng.random() < 0.5 else rng.standard_normal(len(x))
    # A silent utterance has no speech to measure, so its noise is scaled from the drawn level.
    power = np.mean(np.square(speech)) if len(voice) else drawn.level**2 * 0.05
    noise *= np.sqrt(power / np.mean(np.square(noise))) * 10 ** (-drawn.snr / 20)
    return np.clip(x + noise, -1, 1).astype(np.float32)


def pink(rng: np.random.Generator, num: int) -> np.ndarray:
    """Return (num,) samples of noise whose power falls as 1 / f above 50 Hz."""
    size = 1 << (num - 1).bit_length()  # a power of two makes the transform fast
    waves = np.fft.rfft(rng.standard_normal(size))
    hertz = np.fft.rfftfreq(size, 1 / RATE)
    return np.fft.irfft(waves / np.sqrt(np.maximum(hertz, 50)))[:num]
