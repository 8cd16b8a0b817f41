"""`privlm show RUN --item ID`: what a program did with one item, as the tree of its spans and calls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from privlm.errors import UsageError
from privlm.llm.program.trace import TRACE_FILE, read_item, read_items
from privlm.report.store import nearest

if TYPE_CHECKING:
    from rich.tree import Tree

Lines = list[dict[str, Any]]


def traces(run: Path, item: str) -> dict[str, Lines]:
    """Item -> lines of its trace; `item` is a whole name or what stands after its last slash.

    Raises UsageError, naming the nearest items, for one that was not traced.
    """
    path = run / TRACE_FILE
    if not path.exists():
        raise UsageError(f"{run} has no {TRACE_FILE}: its task runs no program, or no item of it has finished")
    found = read_item(path, item)
    if not found:
        raise UsageError(f"--item: no item '{item}' in {path}{nearest(item, read_items(path))}")
    return found


def tree(name: str, lines: Lines) -> Tree:
    """The spans of an item with their values, and in them its calls, with prompt and output if these were kept."""
    from rich.text import Text
    from rich.tree import Tree

    root = Tree(Text(f"{name}: {_title(lines[0])}", style="bold"))
    branches = {lines[0]["span"]: root}
    _add_values(root, lines[0])
    for line in lines[1:]:
        style = "cyan" if line["kind"] == "span" else ""
        branch = branches[line["span"]] = branches[line["parent"]].add(Text(_title(line), style=style))
        if line["kind"] == "span":
            _add_values(branch, line)
        else:
            _add_texts(branch, line)
    return root


def _title(line: dict[str, Any]) -> str:
    if line["kind"] == "span":
        return f"{line['name']} ({line['status']}, {line['ms']:,.0f} ms)"
    if line["sum_nll"] is not None:
        result = f"NLL {line['sum_nll']:.4f}"
    else:
        result = "" if line["parsed"] is None else f"= {line['parsed']}"
    remarks = [line["status"], f"{line['tokens']} tokens", "cached" if line["cached"] else f"{line['ms']:,.0f} ms"]
    remarks += [f"attempt {line['attempt']}"] if line["attempt"] > 1 else []
    return f"{line['step']} {result} ({', '.join(remarks)})".replace("  ", " ")


def _add_values(branch: Tree, line: dict[str, Any]) -> None:
    from rich.text import Text

    for name, value in line["values"].items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        branch.add(Text(f"{name}: {shown}", style="dim"))


def _add_texts(branch: Tree, line: dict[str, Any]) -> None:
    from rich.text import Text

    if line["prompt"] is None:
        branch.add(Text(f"prompt {line['prompt_sha256'][:16]} (llm.trace=hash: no texts)", style="dim"))
        return
    turns = line["prompt"]
    prompt = turns if isinstance(turns, str) else "\n".join(f"[{turn['role']}] {turn['content']}" for turn in turns)
    branch.add(Text(prompt, style="dim"))
    branch.add(Text(f"→ {line['output'] if line['continuation'] is None else line['continuation']}", style="green"))
