"""bitsandbytes' 4-bit normal floats of a random matrix, with scales in float32 and doubled."""

from pathlib import Path

import numpy as np
import torch


def write(folder: Path) -> None:
    # Here, since no other reference needs the package.
    from bitsandbytes import functional

    torch.manual_seed(0)
    w = torch.randn(60, 512) * 0.02  # 480 blocks, 2 groups of them, the second one short
    w[3, 64:128] = 0
    w[5, 0] = 1.0
    found = {"w": w.numpy(), "levels": functional.get_4bit_type("nf4", "cpu").numpy()}
    for name, double in (("single", False), ("double", True)):
        packed, state = functional.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=double)
        values = functional.dequantize_4bit(packed, state)
        found |= {f"{name}/packed": packed.flatten().numpy(), f"{name}/values": values.half().numpy()}
        scales = state.absmax
        if double:
            map8, groups = state.state2.code, state.state2.absmax
            found |= {"map": map8.numpy(), "groups": groups.numpy(), "offset": state.offset.numpy()}
            # The kernel of its CPU build is off by a code for one scale in a hundred. float64 takes
            # the definition, the nearest number of the map.
            centred = (torch.from_numpy(found["single/scales"]) - state.offset).double()
            exact, _ = torch.ops.bitsandbytes.quantize_blockwise.default(centred, map8, 256)
            found |= {"double/kernel": scales.numpy()}
            scales = exact
        found[f"{name}/scales"] = scales.numpy()
    np.savez_compressed(folder / "reference.npz", **found)


NORMAL_FLOATS = {"normal_floats": write}
