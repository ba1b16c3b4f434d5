"""Runs model.gguf by llama.cpp; needs llama-cpp-python.

python use.py --prompt "Once upon a time"      what the model writes after a prompt
python use.py --ids 5,17,3 --tokens 16         token ids that follow a prompt's, the likeliest each time
"""

import argparse
from pathlib import Path

from llama_cpp import Llama

HERE = Path(__file__).resolve().parent


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--prompt", default="Once upon a time")
    options.add_argument("--ids", type=lambda text: [int(n) for n in text.split(",")])
    options.add_argument("--tokens", type=int, default=32)
    given = options.parse_args()
    model = Llama(str(HERE / "model.gguf"), n_ctx=0, verbose=False)
    if given.ids:
        found = model.generate(given.ids, temp=0.0, top_k=1, repeat_penalty=1.0)
        print(",".join(str(next(found)) for _ in range(given.tokens)))
    else:
        print(given.prompt + model(given.prompt, max_tokens=given.tokens, temperature=0.0)["choices"][0]["text"])


if __name__ == "__main__":
    main()
