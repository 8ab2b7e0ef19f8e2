"""What a page of Markdown has: links, anchors, fenced blocks and what stands before them in comments."""

import re
from dataclasses import dataclass, field
from pathlib import Path

FENCE = re.compile(r"^(\s*)(```+|~~~+)\s*(.*)$")
HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*\s*$")
COMMENT = re.compile(r"^\s*<!--\s*([a-z-]+)(?::\s*(.*?))?\s*-->\s*$")
CODE_SPAN = re.compile(r"(`+)(?:(?!\1).|\n)*?\1(?!`)")
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(\s*<?([^()\s<>]*(?:\([^()\s]*\)[^()\s]*)*)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s+<?(\S+?)>?\s*$", re.MULTILINE)
AUTOLINK = re.compile(r"<(https?://[^\s<>]+)>")
SOURCE = re.compile(r"""<(?:img|source|a)\s[^>]*?(?:src|srcset|href)=["']([^"']+)["']""")


@dataclass
class Block:
    """A fenced block: its info string, its lines, and the comments right above it."""

    line: int
    info: str
    lines: list
    comments: list = field(default_factory=list)

    @property
    def language(self):
        return self.info.split()[0].rstrip(",:") if self.info else ""

    @property
    def words(self):
        return self.info.split()[1:]

    @property
    def text(self):
        return "".join(line + "\n" for line in self.lines)

    def reason(self):
        """Why it is not run, where its info string says so."""
        found = re.search(r"\bnot-run:\s*(.+)$", self.info)
        return found.group(1).strip() if found else None

    def value(self, name):
        found = re.search(rf"\b{name}=(\S+)", self.info)
        return found.group(1) if found else None


@dataclass
class Comment:
    """A comment of the form `<!-- name: value -->` that stands in no block."""

    line: int
    name: str
    value: str


class Page:
    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        self.text = path.read_text(encoding="utf-8")
        self.lines = self.text.split("\n")
        self.steps = []  # blocks and comments, in order
        self.indented = []  # lines of code that no fence encloses
        self.headings = []
        self._prose = list(self.lines)  # without code
        self._read()

    @property
    def blocks(self):
        return [step for step in self.steps if isinstance(step, Block)]

    def _read(self):
        fence, block, comments, above = None, None, [], ""
        for at, line in enumerate(self.lines, 1):
            if block is not None:
                self._prose[at - 1] = ""
                if re.match(rf"^\s*{fence[0]}{{{len(fence)},}}\s*$", line):
                    self.steps.append(block)
                    block = None
                else:
                    block.lines.append(line[indent:] if line[:indent].isspace() else line)
                continue
            opened = FENCE.match(line)
            if opened:
                indent, fence = len(opened.group(1)), opened.group(2)
                block = Block(at, opened.group(3).strip(), [], comments)
                self._prose[at - 1] = ""
                comments = []
                continue
            comment = COMMENT.match(line)
            if comment:
                said = Comment(at, comment.group(1), comment.group(2) or "")
                comments.append(said)
                self.steps.append(said)
            elif line.strip():
                comments = []
            heading = HEADING.match(line)
            if heading:
                self.headings.append(heading.group(2))
            if line.startswith("    ") and (not above.strip() or above.startswith("    ")):
                # Code where no list is open: the last line that is not indented begins no item.
                before = next((it for it in reversed(self.lines[: at - 1]) if it.strip() and not it.startswith(" ")), "")
                if not re.match(r"^([-*+]|\d+[.)])\s", before):
                    self.indented.append(at)
                    self._prose[at - 1] = ""
            above = line
        if block is not None:
            raise ValueError(f"{self.name}:{block.line}: the block has no end")

    def anchors(self):
        """The anchors of its headings, as GitHub and mdBook make them."""
        found, seen = set(), {}
        for heading in self.headings:
            text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
            slug = re.sub(r"[^\w\- ]", "", text.lower().replace("`", "")).strip().replace(" ", "-")
            times = seen.get(slug, 0)
            seen[slug] = times + 1
            found.add(f"{slug}-{times}" if times else slug)
        found.update(re.findall(r"""<a\s+(?:id|name)=["']([^"']+)["']""", self.text))
        return found

    def links(self):
        """All targets with their lines."""
        blank = lambda it: re.sub(r"[^\n]", " ", it.group(0))
        text = CODE_SPAN.sub(blank, "\n".join(self._prose))
        for pattern in (LINK, REFERENCE, AUTOLINK, SOURCE):
            for found in pattern.finditer(text):
                yield text.count("\n", 0, found.start()) + 1, found.group(1)
