"""The frame of every page: a self-contained HTML file that loads nothing from elsewhere."""

import base64
import hashlib
from html import escape
from pathlib import Path

# Selects the command beside the button and copies it. It also works from file:// pages.
SCRIPT = """
for (const button of document.querySelectorAll("button")) button.onclick = () => {
  getSelection().selectAllChildren(button.previousElementSibling);
  document.execCommand("copy");
  button.textContent = "Copied";
};
"""


def shell(title: str, body: str) -> str:
    """The whole page around `body`."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    # This policy makes the browser refuse every request, and every script but SCRIPT.
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{style}</style></head><body><main>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )
