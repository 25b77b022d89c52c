"""An exported model behind a page and an API; nothing is written, and nothing is fetched."""
