"""Plans of the large configs: one table, and docs/plans/<name>/ with plan.json and pictures.

uv run --extra plan python benchmarks/plans.py              all plans: seconds if cached,
                                                            else 2 to 4 minutes each on 2 free cores
uv run --extra plan python benchmarks/plans.py 8b_v5e 70b_v5p
uv run --extra plan python benchmarks/plans.py --published  predicted beside published MFU
uv run --extra plan python benchmarks/plans.py --table      the table of the plans in docs/plans/
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLANS = ROOT / "docs" / "plans"
GIB = 2.0**30

LONG = "--data.seq_len 131072 --model.max_seq_len 131072 --train.batch_size 16"
# {name: (config, topology, options)}
PRESETS = {
    "8b_v5e": ("llama3_8b", "v5e:16x16", ""),
    "8b_v5p": ("llama3_8b", "v5p:4x4x8", "--train.batch_size 256 --data.seq_len 8192"),
    "70b_v5p": ("llama3_70b", "v5p:8x8x8", ""),
    "70b_v6e": ("llama3_70b", "v6e:16x16", "--train.batch_size 256"),
    "405b_v5p": ("llama3_405b", "v5p:8x16x16", ""),
    "405b_v6e": ("llama3_405b", "v6e:16x16", "--slices 8 --parallel.tensor 4 --train.batch_size 1024"),
    "mixtral_v6e": ("mixtral_8x7b", "v6e:16x16", ""),
    "deepseek_v5p": ("deepseek_v3", "v5p:8x16x16", ""),
    "vit_22b_v5p": ("vit_22b", "v5p:4x8x8", ""),
    "t5_xxl_v5e": ("t5_xxl", "v5e:16x16", ""),
    "8b_4x_v5e": ("llama3_8b", "v5e:16x16", "--slices 4 --parallel.data 4 --train.batch_size 1024"),
    "8b_131k_v5p": (
        "llama3_8b",
        "v5p:4x4x8",
        LONG + " --parallel.fsdp 16 --parallel.seq 8 --parallel.context ulysses",
    ),
    "8b_qlora_v5e": ("llama3_8b_qlora", "v5e:1x1", ""),
    "70b_lora_v5e": ("llama3_70b_lora", "v5e:8x8", ""),
    "8b_dpo_v5e": ("llama3_8b_dpo", "v5e:2x2", ""),
    "8b_grpo_v5e": ("llama3_8b_grpo", "v5e:2x4", ""),
    "8b_h100": ("llama3_8b", "h100:1x8x8", "--train.batch_size 64 --data.seq_len 8192"),
}

# {name: (config, topology, options, published MFU in %, publisher)}. Batch sizes and lengths are
# the published ones where known; remat and layout are ours.
PUBLISHED = {
    "llama2_70b_v5p": (
        "llama3_70b",
        "v5p:8x8x8",
        "--data.seq_len 4096 --model.vocab_size 32000",
        65.4,
        "MaxText, Llama 2 70B",
    ),
    "llama31_8b_v6e": (
        "llama3_8b",
        "v6e:16x16",
        "--data.seq_len 8192 --train.batch_size 1024",
        45.5,
        "MaxText, Llama 3.1 8B",
    ),
    "llama31_70b_v6e": ("llama3_70b", "v6e:16x16", "--train.batch_size 256", 50.3, "MaxText, Llama 3.1 70B"),
    "mixtral_v5p": ("mixtral_8x7b", "v5p:4x8x8", "--parallel.expert 1", 52.6, "MaxText, Mixtral 8x7B"),
    "70b_4x_v5e": (
        "llama3_70b",
        "v5e:16x16",
        "--slices 4 --parallel.data 4 --data.seq_len 4096 --model.compute.remat offload_input",
        59.9,
        "AXLearn, 70B",
    ),
}


def run(name: str, config: str, topology: str, options: str) -> int:
    folder = ROOT / "plans" / name
    command = [
        sys.executable,
        "launch.py",
        "plan",
        f"configs/{config}.py",
        "--topology",
        topology,
        "--output",
        str(folder),
    ]
    print(f"== {name}: {' '.join(command[1:6])} {options}", flush=True)
    code = subprocess.run([*command, *options.split()], cwd=ROOT).returncode
    if (folder / "plan.json").is_file():
        kept = PLANS / name
        kept.mkdir(parents=True, exist_ok=True)
        for path in (folder / "plan.json", *folder.glob("*.png")):
            shutil.copy(path, kept)
    return code


def table() -> str:
    columns = ("plan", "chips", "fits", "GiB of limit", "predicted step", "MFU (bound)", "tokens/s a chip", "longest")
    columns += ("compile s (CPU s)", "RSS GiB")
    rows = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for path in sorted(PLANS.glob("*/plan.json")):
        plan = json.loads(path.read_text())
        memory, made = plan["memory"], plan["compile"]
        cells = [
            path.parent.name,
            f"{plan['slices']} x {plan['topology']}" if plan["slices"] > 1 else plan["topology"],
            "yes" if plan["fits"] else "no",
            f"{memory.get('used', 0) / GIB:.2f} of {memory['limit'] / GIB:.2f}",
            *speed(plan),
            f"{made['seconds']:.0f} ({made['cpu_seconds']:.0f})",
            f"{made['peak_rss'] / GIB:.1f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def speed(plan: dict) -> tuple[str, ...]:
    """(step, MFU, rate, bound) as texts; dashes for a program that the compiler refuses."""
    if "roofline" not in plan:
        return ("-",) * 4
    rate = f"{plan['tokens_per_second'] / plan['chips']:,.0f}"
    mfu = f"{plan['mfu']:.1%} ({plan['mfu_bound']:.1%})"
    return f"{plan['step_seconds']:.2f} s", mfu, rate, plan["roofline"]["bound"]


def published() -> str:
    rows = ["| published by | MFU | predicted | error |", "| --- | --- | --- | --- |"]
    for name, (*_, theirs, whose) in PUBLISHED.items():
        path = PLANS / name / "plan.json"
        if path.is_file():
            ours = 100 * json.loads(path.read_text())["mfu"]
            rows.append(f"| {whose} | {theirs} % | {ours:.1f} % | {ours - theirs:+.1f} points |")
    return "\n".join(rows)


def main(args: list[str]) -> None:
    names = [a for a in args if not a.startswith("--")]
    known = PRESETS | {name: row[:3] for name, row in PUBLISHED.items()}
    if "--published" in args:
        names = names or list(PUBLISHED)
    if "--table" not in args:
        for name in names or PRESETS:
            run(name, *known[name])
    print(table(), published(), sep="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
