"""Hooks of `mkdocs build`: the API reference, and files outside docs/ that pages link to.

The pages link as on GitHub: `../launch/README.md` is the file beside docs/. Such files
become part of the site under the same path without `../`, and the links are changed to
fit, so that they are checked like any other.
"""

import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "flowtok_jax"
REFERENCE = "reference"
LINK = re.compile(r"(\]\(|src=\")([^)\"\s#:]+)(?=[)\"#])")
TITLE = re.compile(r"^# .+", re.MULTILINE)


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
            files.append(File.generated(config, path, abs_src_path=source))
            if path.endswith(".md"):
                waiting.append(path)
    return files


def on_page_markdown(markdown, page, config, files):
    """Changes links to files outside docs/ to where the site has them."""
    source = page.file.src_uri
    is_ours = (ROOT / "docs" / source).is_file()
    origin = f"docs/{source}" if is_ours else source
    outside = outside_links(markdown, origin)
    folder = posixpath.dirname(source) or "."

    def change(found: re.Match) -> str:
        before, link = found.groups()
        path = outside.get(link)
        if path is None and not is_ours:  # from outside into docs/
            path = posixpath.normpath(posixpath.join(folder, link))
            path = path.removeprefix("docs/")
        return before + (posixpath.relpath(path, folder) if path else link)

    return LINK.sub(change, markdown)
