"""Hooks of `mkdocs build`: the API reference, and linked files outside docs/.

The pages link as on GitHub: `../launch/README.md` is the file beside docs/. Such files
become part of the site under the same path without `../`, and the links are changed to
fit, so that they are checked like any other. README.md is an exception: mkdocs would
take it for the front page, which is index.md.
"""

import pathlib
import posixpath
import re

import griffe
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "flowtok_jax"
REFERENCE = "reference"
LINK = re.compile(r"(\]\(|src=\")([^)\"\s#:]+)(?=[)\"#])")
RENAMED = {"README.md": "readme.md"}
# A bracket after another, on a line of prose without code: no link in a docstring.
BRACKETS = re.compile(r"^(?! {4})([^`\n]*)\]\[", re.MULTILINE)
COLUMNS = re.compile(r"\S {2,}\S")  # no prose: a table or an equation
SECTION = re.compile(r"(?:Args|Attributes|Raises|Returns|Source|Yields):\n")


def mark_tables(docstring: str) -> str:
    """Makes tables and equations of a docstring code, which keeps their columns."""
    first, *paragraphs = docstring.split("\n\n")
    for i, text in enumerate(paragraphs):
        if SECTION.match(text) or not COLUMNS.search(text):
            continue
        head, _, rest = text.partition("\n")
        if rest.startswith("    ") and not COLUMNS.search(head):
            paragraphs[i] = f"{head}\n\n{rest}"
        elif not head.startswith("    "):
            paragraphs[i] = "\n".join(f"    {line}" for line in text.split("\n"))
    return "\n\n".join([first, *paragraphs])


class ReadableDocstrings(griffe.Extension):
    """Makes Markdown read docstrings as a terminal shows them."""

    def on_object(self, *, obj, **kwargs):
        """Keeps columns, and `KIND[:ARGUMENTS][@WEIGHT]` from becoming a link."""
        if obj.docstring:
            text = mark_tables(obj.docstring.value)
            obj.docstring.value = BRACKETS.sub(r"\1]\\[", text)


def modules() -> list[str]:
    """Returns the dotted names of the package's modules that have a docstring."""
    found = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        if path.name == "__main__.py":
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        found.append(".".join(parts))
    return found


def page_of(module: str) -> str:
    """Returns the path of a module's page in the site."""
    return f"{REFERENCE}/{module}.md"


def outside_links(text: str, page: str) -> dict[str, str]:
    """Finds links to files outside docs/.

    Args:
        text: Markdown.
        page: path of its file, relative to the repository.

    Returns:
        Link -> path of the file it leads to, relative to the repository.
    """
    found = {}
    for _, link in LINK.findall(text):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
        if not path.startswith(("docs/", "../")) and (ROOT / path).is_file():
            found[link] = path
    return found


def on_config(config):
    """Adds the reference to the navigation, one section a folder of the package."""
    sections: dict[str, list] = {}
    for module in modules():
        title = module.removeprefix(f"{PACKAGE}.")
        folder = title.split(".")[0]
        if not (ROOT / PACKAGE / folder).is_dir() or module == PACKAGE:
            folder = ""
        sections.setdefault(folder, []).append({title: page_of(module)})
    top = sections.pop("")
    parts = [{name: pages} for name, pages in sorted(sections.items())]
    config.nav = [*config.nav, {"API reference": [*top, *parts]}]
    return config


def on_files(files, config):
    """Adds a page for each module, and the files outside docs/ that pages link to."""
    for module in modules():
        title = module.removeprefix(f"{PACKAGE}.")
        text = f"# {title}\n\n::: {module}\n"
        files.append(File.generated(config, page_of(module), content=text))
    pages = {f"docs/{file.src_uri}" for file in files.documentation_pages()}
    waiting = [page for page in pages if (ROOT / page).is_file()]
    added = set()
    while waiting:
        page = waiting.pop()
        for path in outside_links((ROOT / page).read_text(), page).values():
            if path in added:
                continue
            added.add(path)
            source = str(ROOT / path)
            name = RENAMED.get(path, path)
            files.append(File.generated(config, name, abs_src_path=source))
            if path.endswith(".md"):
                waiting.append(path)
    return files


def on_page_markdown(markdown, page, config, files):
    """Changes links between docs/ and the files outside to where the site has them."""
    here = page.file.src_uri
    origin = next((old for old, new in RENAMED.items() if new == here), here)
    if (ROOT / "docs" / here).is_file():
        origin = f"docs/{here}"

    def change(found: re.Match) -> str:
        before, link = found.groups()
        path = posixpath.join(posixpath.dirname(origin), link)
        path = posixpath.normpath(path)
        if "://" in link or not (ROOT / path).is_file():
            return found[0]
        path = RENAMED.get(path, path.removeprefix("docs/"))
        return before + posixpath.relpath(path, posixpath.dirname(here) or ".")

    return LINK.sub(change, markdown)
