"""Quantises a plain folder by transformers and bitsandbytes, and holds an exported folder against
what they made.

    python bitsandbytes_reference.py PLAIN nf4|int8 EXPORTED

prints one JSON object: tensors that were compared, those that are missing on one side, the largest
share of differing bytes of a tensor, and the largest difference of logits between the exported
folder and the plain one quantised on loading.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def main(plain: str, kind: str, exported: str) -> None:
    how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if kind == "nf4" else {"load_in_8bit": True}
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=BitsAndBytesConfig(**how), dtype="float32")
    theirs = {name: x for name, x in model.state_dict().items() if name != "lm_head.weight"}
    ours = {name: x for name, x in load_file(Path(exported) / "model.safetensors").items() if name != "lm_head.weight"}
    both, facts = theirs.keys() & ours.keys(), "quant_state"
    differing = {
        name: float((theirs[name].flatten() != ours[name].flatten()).float().mean())
        for name in both
        if facts not in name
    }
    again = AutoModelForCausalLM.from_pretrained(exported, dtype="float32")
    ids = torch.arange(1, 13)[None]
    with torch.no_grad():
        logits = [m(input_ids=ids).logits.float() for m in (model, again)]
    said = {
        "compared": len(both),
        "only_one": sorted(theirs.keys() ^ ours.keys()),
        "differing": max(differing.values()),
        "logits": float((logits[0] - logits[1]).abs().max()),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
