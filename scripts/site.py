"""Hooks of mkdocs.yml, which mkdocs calls while it builds the site."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
#: Links of pages: to other pages, pictures, sources.
SHOWN = ["*.md", "docs/*", "data/*.md", "examples/*/*.*", "examples/*/*/*.yaml", "notebooks/*"]
SHOWN += ["configs/**/*.yaml", "src/**/*.py", "scripts/**/*.py"]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take files from the whole repository, each at its path there, and the theme's own."""
    docs = Path(config.docs_dir)
    shown = Files([f for f in files if not Path(f.abs_src_path or "").is_relative_to(docs)])
    for pattern in SHOWN:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            shown.append(File.generated(config, name, abs_src_path=str(path)))
    return shown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Drop the roles of docstrings: of ``:func:`add_lora` `` the name is left."""
    return re.sub(r":(?:attr|class|data|func|meth|mod):(<code>)~?", r"\1", html)
