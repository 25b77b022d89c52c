"""An exported model behind a page and an API; nothing is fetched, nor written unless asked for."""
