"""Owns the file tree of README.md, made from what each file says of itself; `python -m tests.readme_tree` renews it."""

import ast
import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
START, END = "<!-- file tree: python -m tests.readme_tree -->\n```\n", "```\n<!-- end of file tree -->\n"
FOLDERS = ("qwenvl", "scripts", "demo", "tools")
WITHOUT_DOCSTRING = {
    "scripts/zero2.json": "DeepSpeed ZeRO-2: gradients and optimizer shared over the GPUs",
    "scripts/zero3.json": "DeepSpeed ZeRO-3: weights, too",
    "scripts/zero3_offload.json": "ZeRO-3 with weights and optimizer in RAM",
    "demo/single_images.json": "records with pictures, in the official demo's format",
    "demo/video.json": "records with videos",
    "tools/check_image.py": "the official repository's name for check_data.py",
    "tools/process_bbox.ipynb": "bounding boxes between formats, drawn for a look",
}
LONGEST = 110
NOT_LISTED = re.compile(r"^demo/(images|videos)/|/__init__\.py$")


def purpose(path: str) -> str:
    """Return what a file is for: the first sentence of its docstring or first comment, without "Owns"."""
    if path in WITHOUT_DOCSTRING:
        return WITHOUT_DOCSTRING[path]
    if path.startswith("tools/"):
        return f"runs qwenvl/{path}"
    text = (REPOSITORY / path).read_text(encoding="utf-8")
    if path.endswith(".py"):
        text = ast.get_docstring(ast.parse(text)) or ""
    else:
        comments = [line[2:] for line in text.splitlines() if line.startswith("# ")]
        text = " ".join(comments)
    sentence = re.split(r"(?<=[^.])[.;](?:\s|$)", " ".join(text.split()), maxsplit=1)[0]
    sentence = re.split(r":\s", sentence, maxsplit=1)[0] if len(sentence) > LONGEST else sentence
    return sentence.removeprefix("Owns ").rstrip(".")


def file_tree() -> str:
    """Return the tree: one file and its purpose a line, folder by folder."""
    listed = subprocess.run(["git", "ls-files", *FOLDERS], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    lines: list[str] = []
    folder = None
    for path in sorted(listed.stdout.split(), key=lambda path: (str(Path(path).parent), path)):
        if NOT_LISTED.search(path):
            continue
        if Path(path).parent != folder:
            folder = Path(path).parent
            lines.append(f"{folder}/")
        lines.append(f"  {Path(path).name:<28}  {purpose(path)}")
    lines += ["qwen-vl-finetune/  links to the folders beside it, for paths written for the official repository"]
    lines += ["tests/  mirrors qwenvl/", "docs/  longer answers"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Put the present tree into README.md."""
    before, _, rest = README.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    README.write_text(before + START + file_tree() + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
