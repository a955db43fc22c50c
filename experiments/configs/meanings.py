"""What the fields of a config mean: the comments that stand beside them, the only place where it is said."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

from ml_collections import ConfigDict

FOLDER = Path(__file__).parent
OF_SYSTEMS = {"molecule": "aspirin_paper.py", "liquid": "water_paper.py"}
"""Files in which the fields of each kind of system appear first."""


def meanings(config: ConfigDict) -> dict[str, str]:
    """The meaning of each field and section by its name, in the order of the files.

    The files are those of the fields of all experiments, of the kind of system and of the model. Where two comment on
    the same field, the first is of the field and the others are of a value.

    Args:
      config: of an experiment.
    """
    common = of_file(FOLDER / "common.py")
    of_system = of_file(FOLDER / OF_SYSTEMS[config.system]) if config.system in OF_SYSTEMS else {}
    found = common | of_system | common  # in this order, and the first comment is kept
    model = FOLDER / "models" / f"{config.get('model', {}).get('name')}.py"
    return found | (of_file(model, section="model.") if model.exists() else {})


def of_file(path: Path, *, section: str = "") -> dict[str, str]:
    """Comments beside the fields that the `get_config` of a file assigns, by their names.

    Args:
      path: of the file.
      section: that its config is of, with a dot. Empty: it is a whole one.
    """
    source = path.read_text(encoding="utf-8")
    comments = _comments(source)
    (function,) = [node for node in ast.parse(source).body if getattr(node, "name", "") == "get_config"]
    assignments = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
    names: dict[str, str] = {}  # of variables, what they stand for
    found: dict[str, str] = {}
    for node in sorted(assignments, key=lambda node: node.lineno):
        fields = [_dotted(target, names) for target in node.targets if isinstance(target, ast.Attribute)]
        # `config = …()` is all of it, `data = config.data = …` and `data = config.data` a part.
        meant = [f"{name}." for name in (*fields, _dotted(node.value, names)) if name] or [section]
        names |= {target.id: meant[0] for target in node.targets if isinstance(target, ast.Name)}
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        text = " ".join(comments[line] for line in lines if line in comments)
        found |= {name: text for name in fields if name and text}
    return found


def _dotted(node: ast.expr, names: dict[str, str]) -> str | None:
    """The name of a field; None for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not parts or not isinstance(node, ast.Name) or node.id not in names:
        return None
    return names[node.id] + ".".join(reversed(parts))


def _comments(source: str) -> dict[int, str]:
    """Text of the comments by their lines."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
