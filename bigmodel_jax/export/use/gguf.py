"""Runs model.gguf with llama.cpp. It needs llama-cpp-python.

python use.py --prompt "Once upon a time"      continues a prompt and prints the text
python use.py --ids 5,17,3 --tokens 16         continues token ids, greedily, and prints ids
"""

import argparse
from pathlib import Path

from llama_cpp import Llama

HERE = Path(__file__).resolve().parent


def main():
    """Reads the command line, runs the model and prints what it writes."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--prompt", default="Once upon a time")
    options.add_argument("--ids", type=lambda text: [int(n) for n in text.split(",")])
    options.add_argument("--tokens", type=int, default=32)
    given = options.parse_args()
    # n_ctx=0 takes the context length from the file.
    model = Llama(str(HERE / "model.gguf"), n_ctx=0, verbose=False)
    if given.ids:
        # A repeat_penalty other than 1 would change the likeliest token.
        found = model.generate(given.ids, temp=0.0, top_k=1, repeat_penalty=1.0)
        print(",".join(str(next(found)) for _ in range(given.tokens)))
    else:
        print(given.prompt + model(given.prompt, max_tokens=given.tokens, temperature=0.0)["choices"][0]["text"])


if __name__ == "__main__":
    main()
