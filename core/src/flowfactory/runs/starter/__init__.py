"""A first config for somebody's own run: drafted from bundled examples, fitted to a card, written with comments."""
