"""Whether CLIP finds the name that a picture was drawn from code after code, beside real pictures.

    uv run launch.py train configs/dvae_emoji.py
    uv run launch.py train configs/clip_emoji.py
    uv run launch.py train configs/dalle_emoji.py
    uv run launch.py train configs/clip_emoji.py --train.seed 1 --run_dir runs/clip2
    uv run benchmarks/dalle_emoji.py runs/dalle_emoji runs/clip2 --sheet sheet.png

As benchmarks/flow_emoji.py, for a run of configs/dalle_emoji.py. The run's own CLIP
(`objective.judge`) chooses one of the candidates for each name, so another CLIP judges them: the
one that chose would find them nearer than others do. Beside the chosen pictures stand the first
candidates, which nobody chose, and the real pictures as the autoencoder gives them back from their
codes, which no drawn picture can surpass by much.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from flow_emoji import TOLD, check_tokenizers, opened, say_ranks

from bigmodel_jax.inference.draw_codes import images_of
from bigmodel_jax.report.picture_grid import write_grid
from bigmodel_jax.training.drawing_ending import best, drawn, names_to_draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of configs/dalle_emoji.py")
    parser.add_argument("judge", type=Path, help="a run of configs/clip_emoji.py, another than the run's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="a PNG of names that were trained on, and of as many that were not")
    args = parser.parse_args()
    (config, weights), (judge, judges) = opened(args.run), opened(args.judge)
    if args.judge.resolve() == Path(config.objective.judge).resolve():
        raise SystemExit(
            f"{args.judge}: this CLIP chooses the run's pictures; give another one, such as one of another seed"
        )
    check_tokenizers(config, judge, args.judge)
    rows = config.data.open("validation")
    batch = rows.batch(np.arange(len(rows)), None)
    told = {name: batch[name] for name in TOLD}
    start = time.perf_counter()
    images, scores = drawn(config, weights, told, args.seed)
    seconds = time.perf_counter() - start
    codes = np.asarray(
        jax.jit(lambda p, image: config.objective.compute(None, p, {"image": image}))(weights, batch["image"])
    )
    shown = {"real": batch["image"], "given back": images_of(weights, config.objective, codes)}
    shown |= {"first drawn": images[:, 0], "chosen": best(images, scores)}
    say_ranks(judge, judges, shown, told)
    print(
        f"chance: among five {5 / len(rows):.1%} of {len(rows)} names; {images.shape[1]} candidates a name, drawn in "
        f"{seconds:.0f} s ({config.eval.sample})"
    )
    if args.sheet:
        told, titles = names_to_draw(config)
        write_grid(args.sheet, best(*drawn(config, weights, told, args.seed)), titles)


if __name__ == "__main__":
    main()
