"""Tasks of lm-eval on a folder of the disk: a row of each kind of answer."""

import json
from pathlib import Path

SOURCE = """dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
fewshot_split: test
"""
TASKS = {
    "own_choice": """output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: answer
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    # A context that is empty, where nothing stands before the question.
    "own_start": """output_type: multiple_choice
doc_to_text: ""
doc_to_target: answer
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}]
""",
    "own_answer": """output_type: generate_until
doc_to_text: "{{question}} "
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["[", "dd"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    # Longer than the model's 96 positions: windows.
    "own_text": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
}
ANIMALS = ("cat", "dog", "cow", "owl", "fox")


def write_tasks(folder: Path) -> Path:
    rows = []
    for i in range(8):
        own = [ANIMALS[(i + k * (1 + i % 2)) % 5] for k in range(3)]
        question = (
            f"The {own[0]} sat near the {own[1]}{' and ' + own[2] if i % 3 else ''}. Who sat{', and where' * (i % 4)}?"
        )
        # No two windows of 96 tokens are the same: lm-eval's model for transformers then scores the
        # shorter end by the logits of other places.
        text = f"number {i} is " + "".join(f"{i + k} here, " for k in range(2 * i)) + f"at last {i}"
        rows.append({"question": question, "choices": [f"the {x}" for x in own], "answer": i % 3, "text": text})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = folder / "tasks"
    tasks.mkdir()
    for name, text in TASKS.items():
        (tasks / f"{name}.yaml").write_text(f"task: {name}\n{SOURCE.format(rows=path)}{text}")
    return tasks
