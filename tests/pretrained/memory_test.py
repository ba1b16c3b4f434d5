"""Import and export hold a model once, and one parameter or shard of it beside."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.pretrained import FAMILIES, names
from bigmodel_jax.pretrained.family import spec_by_path

CONFIG = LlamaConfig(
    vocab_size=4096, num_layers=8, embed_dim=512, num_heads=8, num_kv_heads=8, head_dim=64, mlp_dim=1536, max_seq_len=64
)

# Reports the anonymous memory (no mapped files) that the work took at its most, beside what the process had before.
WATCHED = """
import re, sys, threading, time
from pathlib import Path
import jax
jax.numpy.zeros(1).block_until_ready()
from bigmodel_jax import config_file
from bigmodel_jax.pretrained import folder, transfer
from orbax.checkpoint import v1
verb, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
def used():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before, most, done = used(), 0, threading.Event()
def watch():
    global most
    while not done.wait(0.002):
        most = max(most, used())
thread = threading.Thread(target=watch)
thread.start()
if verb == "import":
    transfer.import_weights(source, target)
else:
    folder.SHARD_BYTES = int(sys.argv[4])
    transfer.export_weights(config_file.load(source), source, target)
done.set()
thread.join()
print(most - before)
"""


def watched(*args) -> int:
    command = [sys.executable, "-c", WATCHED, *map(str, args)]
    one_device = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}  # more would hold a copy each
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=one_device)
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_a_model_is_in_memory_once(tmp_path):
    family, spec = FAMILIES["LlamaForCausalLM"], spec_by_path(CONFIG)
    tensors = {
        piece.name: np.full(names.joined_shape(names.their_shapes(piece, spec), 0), 0.01, np.float32)
        for piece in names.pieces(family.rows, spec, CONFIG)
    }
    (tmp_path / "hf").mkdir()
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    config = {"architectures": [family.architecture], **family.to_hf(CONFIG)}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    model = sum(p.size for p in spec.values()) * 4
    largest = max(p.size for p in spec.values()) * 4
    assert model > 4 * largest
    taken = watched("import", tmp_path / "hf", tmp_path / "run")
    print("import", taken / model)
    assert taken < model + 2.5 * largest, f"{taken / model:.2f} models"
    shard = model // 8
    taken = watched("export", tmp_path / "run", tmp_path / "out", shard)
    # Reading a checkpoint holds what is being read beside what was read.
    print("export", taken / model)
    assert taken < 1.9 * model, f"{taken / model:.2f} models"
